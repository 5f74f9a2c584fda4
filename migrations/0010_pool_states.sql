-- What changes often about a pool, apart from its settings.
ALTER TABLE turnmill.pools
  ADD COLUMN create_rate double precision CHECK (create_rate > 0),
  ADD COLUMN create_burst integer NOT NULL DEFAULT 10 CHECK (create_burst > 0),
  ADD COLUMN idle_timeout_s integer NOT NULL DEFAULT 600 CHECK (idle_timeout_s > 0);
COMMENT ON COLUMN turnmill.pools.create_rate IS 'Most sandboxes created per second, fleet-wide; null = no limit of ours (E2B''s own still holds: Hobby 1, Pro 5).';
COMMENT ON COLUMN turnmill.pools.create_burst IS 'Creates that may come at once after a pause.';
COMMENT ON COLUMN turnmill.pools.idle_timeout_s IS 'Seconds without a word from an agent that has no tool call open and has not given its result, after which it is stopped and tried again. Until its first word it also has prepare_timeout_s.';

CREATE TABLE turnmill.pool_states (
  pool          text PRIMARY KEY REFERENCES turnmill.pools (name) ON DELETE CASCADE,
  tokens        double precision NOT NULL DEFAULT 1,
  tokens_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  creates_after timestamptz NOT NULL DEFAULT clock_timestamp(),
  held_for      text CHECK (held_for IN ('rate', 'capacity')),
  capacity_hits integer NOT NULL DEFAULT 0 CHECK (capacity_hits >= 0),
  account_cap   integer,
  reported      integer,
  reported_at   timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE turnmill.pool_states IS 'One row per pool: its create-rate bucket, what E2B last refused, what E2B last reported.';
COMMENT ON COLUMN turnmill.pool_states.pool IS 'The pool.';
COMMENT ON COLUMN turnmill.pool_states.tokens IS 'Creates that were free at tokens_at; create_rate more come each second, up to create_burst.';
COMMENT ON COLUMN turnmill.pool_states.tokens_at IS 'When tokens was true.';
COMMENT ON COLUMN turnmill.pool_states.creates_after IS 'Nobody creates before then: E2B has said 429.';
COMMENT ON COLUMN turnmill.pool_states.held_for IS 'Why: rate = its rate limit, capacity = its limit of concurrent sandboxes.';
COMMENT ON COLUMN turnmill.pool_states.capacity_hits IS 'Pauses for capacity since the last create that worked; each is twice as long, from 1 s to 10 s. Refusals that come during a pause are part of it.';
COMMENT ON COLUMN turnmill.pool_states.account_cap IS 'The account''s own limit, where E2B''s refusal named it.';
COMMENT ON COLUMN turnmill.pool_states.reported IS 'Sandboxes of this fleet and pool that E2B listed as running.';
COMMENT ON COLUMN turnmill.pool_states.reported_at IS 'When.';
INSERT INTO turnmill.pool_states (pool) SELECT name FROM turnmill.pools;

CREATE FUNCTION turnmill.new_pool_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO turnmill.pool_states (pool) VALUES (NEW.name);
  RETURN NULL;
END $$;
CREATE TRIGGER pools_have_a_state AFTER INSERT ON turnmill.pools
  FOR EACH ROW EXECUTE FUNCTION turnmill.new_pool_state();
