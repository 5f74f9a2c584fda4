-- The project's CLAUDE.md as text. Claude Code reads it only together with the project's settings, which may start programs. Nor
-- does it read the user's settings any more: where an agent starts in its home, which is the default, the project's are the user's.
ALTER TABLE turnmill.pools ALTER COLUMN agent SET DEFAULT ARRAY[
    'claude', '-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose',
    '--forward-subagent-text', '--dangerously-skip-permissions', '--setting-sources=',
    '--strict-mcp-config', '--thinking-display=summarized', '--system-prompt-snapshot=off',
    '--append-system-prompt-file={instructions}', '--session-id={session}'];
UPDATE turnmill.pools SET agent = DEFAULT WHERE agent = ARRAY[
    'claude', '-p', '--input-format=stream-json', '--output-format=stream-json', '--verbose',
    '--forward-subagent-text', '--dangerously-skip-permissions', '--setting-sources=user',
    '--strict-mcp-config', '--thinking-display=summarized', '--system-prompt-snapshot=off',
    '--session-id={session}'];
COMMENT ON COLUMN turnmill.pools.agent IS 'Command line of the agent, a word an element. {session} stands for the agent''s session id. A word with {instructions} gets the name of a file with the turn''s append_system_prompt and the project''s CLAUDE.md, and is left out where there is neither. The turn''s other options are appended as --flag=value.';
