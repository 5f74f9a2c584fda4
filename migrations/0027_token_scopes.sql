-- Tokens may see and say who is told that turns end.
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read, webhooks:read, webhooks:write.';
