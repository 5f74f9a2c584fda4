-- Who may use the HTTP API, and for what.
CREATE TABLE turnmill.api_tokens (
  id           text PRIMARY KEY DEFAULT turnmill.new_id('tok'),
  hash         bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
  prefix       text NOT NULL,
  name         text NOT NULL CHECK (name <> '' AND length(name) <= 255),
  scopes       text[] NOT NULL CHECK (cardinality(scopes) > 0),
  project_id   text,
  tenant_id    text,
  session_id   text,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at   timestamptz,
  revoked_at   timestamptz,
  last_used_at timestamptz,
  -- A browser's token is short-lived by construction.
  CONSTRAINT of_a_session_expires CHECK (session_id IS NULL OR expires_at IS NOT NULL)
);
CREATE INDEX api_tokens_of_sessions ON turnmill.api_tokens (expires_at) WHERE session_id IS NOT NULL;
COMMENT ON TABLE turnmill.api_tokens IS 'Tokens of the HTTP API; the secrets themselves are nowhere. turnmill token create makes one.';
COMMENT ON COLUMN turnmill.api_tokens.id IS 'tok_ and a UUIDv7; names the token where its secret must not be.';
COMMENT ON COLUMN turnmill.api_tokens.hash IS 'SHA-256 of the whole token: 256 random bits need no slower hash, and looking up by it leaks nothing through time.';
COMMENT ON COLUMN turnmill.api_tokens.prefix IS 'How the token begins, for people who hold several.';
COMMENT ON COLUMN turnmill.api_tokens.name IS 'Whose it is, for people.';
COMMENT ON COLUMN turnmill.api_tokens.scopes IS 'turns:read, turns:write, turns:cancel, queue:read.';
COMMENT ON COLUMN turnmill.api_tokens.project_id IS 'Sees and makes sessions of this project only; null = of all.';
COMMENT ON COLUMN turnmill.api_tokens.tenant_id IS 'Sees and makes sessions of this tenant only; null = of all.';
COMMENT ON COLUMN turnmill.api_tokens.session_id IS 'Reads this session only: a browser''s token, made over HTTP.';
COMMENT ON COLUMN turnmill.api_tokens.created_at IS 'When it was made.';
COMMENT ON COLUMN turnmill.api_tokens.expires_at IS 'Refused from then on; null = never.';
COMMENT ON COLUMN turnmill.api_tokens.revoked_at IS 'Refused since then.';
COMMENT ON COLUMN turnmill.api_tokens.last_used_at IS 'Coarse: written at most once a minute.';
