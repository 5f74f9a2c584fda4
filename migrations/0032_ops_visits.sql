-- A browser that has shown a token to the dashboard. The token itself is not in the browser: its revocation ends the visit.
CREATE TABLE turnmill.ops_visits (
  hash       bytea PRIMARY KEY CHECK (length(hash) = 32),
  token_id   text NOT NULL REFERENCES turnmill.api_tokens (id) ON DELETE CASCADE,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at timestamptz NOT NULL
);
CREATE INDEX ops_visits_expired ON turnmill.ops_visits (expires_at);
COMMENT ON TABLE turnmill.ops_visits IS 'Browsers that are in the dashboard, each by way of a token.';
COMMENT ON COLUMN turnmill.ops_visits.hash IS 'SHA-256 of what its cookie has: 256 random bits.';
COMMENT ON COLUMN turnmill.ops_visits.token_id IS 'The token that it came with, whose scopes it has, and with which it ends.';
COMMENT ON COLUMN turnmill.ops_visits.created_at IS 'When it came.';
COMMENT ON COLUMN turnmill.ops_visits.expires_at IS 'When it must show a token again.';
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read, webhooks:read, webhooks:write; for the dashboard ops:read, ops:act.';
