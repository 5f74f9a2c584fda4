-- MCP servers of a pool's own, and whether it trusts its projects.
ALTER TABLE turnmill.pools
  ADD COLUMN mcp_servers jsonb CHECK (jsonb_typeof(mcp_servers) = 'object'),
  ADD COLUMN trust_project boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN turnmill.pools.mcp_servers IS 'MCP servers that its agents have, by name, as "mcpServers" of Claude Code''s files; null = none. Given as a file, by --mcp-config. ${NAME} in it is a variable of agent_env.';
COMMENT ON COLUMN turnmill.pools.trust_project IS 'Whether the settings, hooks, commands and MCP servers of a project''s repository are used: they run programs without the agent''s say.';
