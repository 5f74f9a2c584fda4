-- Tokens may give users' own keys.
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read, webhooks:read, webhooks:write, keys:write, ops:read, ops:act.';
