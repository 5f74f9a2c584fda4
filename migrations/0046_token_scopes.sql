-- All that a token may be allowed, in one place again.
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read, webhooks:read, webhooks:write; for the dashboard ops:read, ops:act.';
