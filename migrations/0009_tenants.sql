-- Whose work starts next. A tenant without a row here has weight 1 and no limit.
CREATE TABLE turnmill.tenants (
  id          text PRIMARY KEY CHECK (id <> '' AND length(id) <= 255),
  weight      double precision NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1000000),
  running_max integer CHECK (running_max >= 0),
  running     integer NOT NULL DEFAULT 0,
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE turnmill.tenants IS 'Tenants with a weight or a limit of their own; all others have weight 1 and no limit.';
COMMENT ON COLUMN turnmill.tenants.id IS 'As in sessions.tenant_id.';
COMMENT ON COLUMN turnmill.tenants.weight IS 'Its share of a pool while others wait too: twice the weight, twice the running turns.';
COMMENT ON COLUMN turnmill.tenants.running_max IS 'Most of its turns that run at once, over all pools; null = no limit.';
COMMENT ON COLUMN turnmill.tenants.running IS 'Its turns that run now. Kept by a trigger of jobs while there is a limit; a claim locks the row, so the limit is exact (one that is new, within a second).';
COMMENT ON COLUMN turnmill.tenants.created_at IS 'When it was made.';

ALTER TABLE turnmill.jobs ADD COLUMN tenant_id text NOT NULL DEFAULT '';
COMMENT ON COLUMN turnmill.jobs.tenant_id IS 'The session''s tenant; empty = none. All turns without a tenant share as one.';

-- Heads of tenants are found by jumping from tenant to tenant, so that nobody's backlog is walked through.
CREATE INDEX jobs_ready_by_tenant ON turnmill.jobs (pool, tenant_id, priority DESC, queued_at, turn_id) WHERE state = 'ready';
DROP INDEX turnmill.jobs_ready;
CREATE INDEX jobs_leased_by_tenant ON turnmill.jobs (tenant_id) WHERE state = 'leased';
UPDATE turnmill.jobs j SET tenant_id = s.tenant_id FROM turnmill.sessions s WHERE s.id = j.session_id AND s.tenant_id IS NOT NULL;

-- A claim has the row locked. An end does not wait for whoever has it: a count that is too high until the next recount
-- only makes somebody wait.
CREATE FUNCTION turnmill.count_running() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE turnmill.tenants
  SET running = running + CASE WHEN TG_OP = 'UPDATE' AND NEW.state = 'leased' THEN 1 ELSE -1 END
  WHERE id = (SELECT t.id FROM turnmill.tenants t WHERE t.id = OLD.tenant_id AND t.running_max IS NOT NULL
              FOR NO KEY UPDATE SKIP LOCKED);
  RETURN NULL;
END $$;
CREATE TRIGGER tenants_count_starts AFTER UPDATE OF state ON turnmill.jobs
  FOR EACH ROW WHEN (NEW.tenant_id <> '' AND (OLD.state = 'leased') <> (NEW.state = 'leased'))
  EXECUTE FUNCTION turnmill.count_running();
CREATE TRIGGER tenants_count_ends AFTER DELETE ON turnmill.jobs
  FOR EACH ROW WHEN (OLD.tenant_id <> '' AND OLD.state = 'leased')
  EXECUTE FUNCTION turnmill.count_running();

-- Two statements: the count must see whatever was committed before the row was ours.
CREATE FUNCTION turnmill.set_tenant(id text, weight double precision DEFAULT NULL, running_max integer DEFAULT NULL, unlimited boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  INSERT INTO turnmill.tenants (id) VALUES (id) ON CONFLICT DO NOTHING;
  UPDATE turnmill.tenants t SET
    weight = coalesce(weight, t.weight),
    running_max = CASE WHEN unlimited THEN NULL ELSE coalesce(running_max, t.running_max) END
  WHERE t.id = id;
  PERFORM turnmill.recount_tenant(id);
END $$;
COMMENT ON FUNCTION turnmill.set_tenant IS 'Makes or changes a tenant: its weight, its limit of running turns. Null leaves what is there; unlimited => true takes the limit away.';

CREATE FUNCTION turnmill.recount_tenant(id text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE counted integer;
BEGIN
  PERFORM FROM turnmill.tenants t WHERE t.id = id FOR NO KEY UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  counted := (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = id AND j.state = 'leased');
  UPDATE turnmill.tenants t SET running = counted WHERE t.id = id AND t.running <> counted;
END $$;
COMMENT ON FUNCTION turnmill.recount_tenant IS 'Sets a tenant''s counter to what is true, unless somebody has its row this moment.';
