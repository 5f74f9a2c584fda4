-- Tokens may see what turns have cost.
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read, usage:read, webhooks:read, webhooks:write, keys:write, ops:read, ops:act.';
