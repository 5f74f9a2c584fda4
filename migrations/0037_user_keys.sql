-- Users and tenants may bring the key to the model that their turns run with.
CREATE TABLE turnmill.user_keys (
  id        text PRIMARY KEY DEFAULT turnmill.new_id('key'),
  tenant_id text NOT NULL DEFAULT '' CHECK (length(tenant_id) <= 255),
  user_id   text NOT NULL DEFAULT '' CHECK (length(user_id) <= 255),
  data      bytea NOT NULL,
  key_id    text NOT NULL,
  set_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (tenant_id, user_id),
  CONSTRAINT of_somebody CHECK (tenant_id <> '' OR user_id <> '')
);
COMMENT ON TABLE turnmill.user_keys IS 'Keys to the model that users and tenants have given: never readable again but by a worker. turnmill keys set stores one.';
COMMENT ON COLUMN turnmill.user_keys.id IS 'key_ and a UUIDv7.';
COMMENT ON COLUMN turnmill.user_keys.tenant_id IS 'For sessions of this tenant; empty = of none. Two tenants'' users may have the same id.';
COMMENT ON COLUMN turnmill.user_keys.user_id IS 'For sessions of this user; empty = for all of the tenant whose user has none.';
COMMENT ON COLUMN turnmill.user_keys.data IS 'The key, sealed as this tenant''s and user''s.';
COMMENT ON COLUMN turnmill.user_keys.key_id IS 'The workers'' master key under which it is sealed.';
COMMENT ON COLUMN turnmill.user_keys.set_at IS 'When it was last given.';
