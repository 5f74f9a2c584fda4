-- Who wants to be told over HTTP that turns have ended.
CREATE TABLE turnmill.webhook_endpoints (
  id                text PRIMARY KEY DEFAULT turnmill.new_id('whe'),
  url               text NOT NULL CHECK (url <> '' AND length(url) <= 2048),
  description       text NOT NULL DEFAULT '' CHECK (length(description) <= 255),
  project_id        text CHECK (project_id <> ''),
  tenant_id         text CHECK (tenant_id <> ''),
  events            text[] NOT NULL DEFAULT ARRAY['turn.completed', 'turn.failed', 'turn.cancelled']
                    CHECK (cardinality(events) > 0 AND events <@ ARRAY['turn.completed', 'turn.failed', 'turn.cancelled']),
  secret            bytea NOT NULL,
  secret_key_id     text,
  old_secret        bytea,
  old_secret_key_id text,
  old_secret_until  timestamptz,
  state             text NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
  disabled_reason   text,
  disabled_at       timestamptz,
  failures          integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
  failing_since     timestamptz,
  not_before        timestamptz,
  last_success_at   timestamptz,
  last_failure_at   timestamptz,
  last_error        text,
  created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT old_secret_ends CHECK ((old_secret IS NULL) = (old_secret_until IS NULL)),
  CONSTRAINT disabled_says_when_and_why CHECK ((state = 'disabled') = (disabled_at IS NOT NULL AND disabled_reason IS NOT NULL)),
  CONSTRAINT failing_since_its_first_failure CHECK ((failures = 0) = (failing_since IS NULL))
  -- Every delivery writes to its endpoint's row.
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
-- As a turn that ends looks for those that want to know: unbound is '', which no id is.
CREATE INDEX webhook_endpoints_of ON turnmill.webhook_endpoints (coalesce(project_id, ''), coalesce(tenant_id, '')) WHERE state = 'enabled';
COMMENT ON TABLE turnmill.webhook_endpoints IS 'Who is told over HTTP that turns have ended. turnmill webhook create makes one.';
COMMENT ON COLUMN turnmill.webhook_endpoints.id IS 'whe_ and a UUIDv7.';
COMMENT ON COLUMN turnmill.webhook_endpoints.url IS 'Where to POST.';
COMMENT ON COLUMN turnmill.webhook_endpoints.description IS 'What it is for, for people.';
COMMENT ON COLUMN turnmill.webhook_endpoints.project_id IS 'Hears of this project''s turns only; null = of all.';
COMMENT ON COLUMN turnmill.webhook_endpoints.tenant_id IS 'Hears of this tenant''s turns only; null = of all.';
COMMENT ON COLUMN turnmill.webhook_endpoints.events IS 'What it wants to hear of: turn.completed, turn.failed, turn.cancelled.';
COMMENT ON COLUMN turnmill.webhook_endpoints.secret IS 'The key that signs, sealed where secret_key_id says so.';
COMMENT ON COLUMN turnmill.webhook_endpoints.secret_key_id IS 'The workers'' master key under which it is sealed; null = it is not.';
COMMENT ON COLUMN turnmill.webhook_endpoints.old_secret IS 'While secrets are exchanged, the one before signs as well.';
COMMENT ON COLUMN turnmill.webhook_endpoints.old_secret_key_id IS 'As secret_key_id, of the one before.';
COMMENT ON COLUMN turnmill.webhook_endpoints.old_secret_until IS 'Until when the one before signs as well.';
COMMENT ON COLUMN turnmill.webhook_endpoints.state IS 'enabled; disabled = nothing is sent, and of what happens meanwhile it is not told later either.';
COMMENT ON COLUMN turnmill.webhook_endpoints.disabled_reason IS 'Why, for people: by hand, gone (410), or it failed for too long.';
COMMENT ON COLUMN turnmill.webhook_endpoints.disabled_at IS 'Since when.';
COMMENT ON COLUMN turnmill.webhook_endpoints.failures IS 'Deliveries that failed since the last that did not.';
COMMENT ON COLUMN turnmill.webhook_endpoints.failing_since IS 'The first of these failures.';
COMMENT ON COLUMN turnmill.webhook_endpoints.not_before IS 'It is asked nothing until then: it failed, or wants it so (Retry-After); null = it is well.';
COMMENT ON COLUMN turnmill.webhook_endpoints.last_success_at IS 'Coarse: written at most once a second.';
COMMENT ON COLUMN turnmill.webhook_endpoints.last_failure_at IS 'When a delivery last failed.';
COMMENT ON COLUMN turnmill.webhook_endpoints.last_error IS 'What was wrong then.';
COMMENT ON COLUMN turnmill.webhook_endpoints.created_at IS 'When it was made.';
