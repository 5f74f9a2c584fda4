-- Sandboxes that outlive their turn: warm, in their slot, or paused, where they cost none.
ALTER TABLE turnmill.pools
  ADD COLUMN warm_s integer NOT NULL DEFAULT 0 CHECK (warm_s BETWEEN 0 AND 86400),
  ADD COLUMN paused_s integer NOT NULL DEFAULT 0 CHECK (paused_s >= 0),
  ADD COLUMN sandbox_max_s integer NOT NULL DEFAULT 3600 CHECK (sandbox_max_s > 0);
COMMENT ON COLUMN turnmill.pools.warm_s IS 'How long a sandbox is kept running for its session''s next turn, unless others need the slot; 0 = not at all.';
COMMENT ON COLUMN turnmill.pools.paused_s IS 'How long it is kept paused after that, which costs no slot; 0 = it is killed.';
COMMENT ON COLUMN turnmill.pools.sandbox_max_s IS 'How long E2B lets a sandbox run without a pause (Hobby 3600, Pro 86400): none is used again whose age and turn_timeout_s come to more.';

ALTER TABLE turnmill.slots
  DROP CONSTRAINT slots_state_check, DROP CONSTRAINT running_has_a_sandbox, DROP CONSTRAINT releasing_has_a_time,
  ADD COLUMN holds text,
  ADD CONSTRAINT slots_state_check CHECK (state IN ('free', 'creating', 'busy', 'warm', 'pausing', 'releasing')),
  ADD CONSTRAINT running_has_a_sandbox CHECK (state NOT IN ('busy', 'warm', 'pausing') OR sandbox_id IS NOT NULL),
  ADD CONSTRAINT kept_has_a_time CHECK (state NOT IN ('warm', 'pausing', 'releasing') OR due_at IS NOT NULL);
DROP INDEX turnmill.slots_releasing;
CREATE INDEX slots_due ON turnmill.slots (due_at) WHERE state IN ('warm', 'pausing', 'releasing');
CREATE INDEX slots_kept ON turnmill.slots (session_id) WHERE state IN ('warm', 'pausing');
CREATE INDEX slots_kept_of_pool ON turnmill.slots (pool, state) WHERE state IN ('warm', 'pausing', 'releasing');
COMMENT ON TABLE turnmill.slots IS 'One row per unit of a pool''s cap: free → creating → busy → warm | pausing | releasing → free. Held by a sandbox, not by a worker; free again only when the sandbox is known to be gone or paused.';
COMMENT ON COLUMN turnmill.slots.state IS 'free; creating = intent recorded, maybe asked for; busy = its turn runs in it; warm = kept for its session; pausing, releasing = its sandbox is to be paused or killed, by anyone when due.';
COMMENT ON COLUMN turnmill.slots.due_at IS 'warm: until when it is kept; pausing, releasing: when anyone may take that over.';
COMMENT ON COLUMN turnmill.slots.holds IS 'The turn after which the conversation and the files in its sandbox are; null = a new one.';

CREATE TABLE turnmill.parked (
  sandbox_id     text PRIMARY KEY,
  pool           text NOT NULL,
  session_id     text NOT NULL,
  holds          text NOT NULL,
  nonce          text NOT NULL,
  create_request jsonb NOT NULL,
  parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  due_at         timestamptz NOT NULL,
  doomed         boolean NOT NULL DEFAULT false
);
CREATE INDEX parked_of_session ON turnmill.parked (session_id, parked_at DESC) WHERE NOT doomed;
CREATE INDEX parked_due ON turnmill.parked (due_at);
COMMENT ON TABLE turnmill.parked IS 'Paused sandboxes, each for its session''s next turn. They cost no slot, and never go away by themselves.';
COMMENT ON COLUMN turnmill.parked.sandbox_id IS 'E2B''s id of the sandbox.';
COMMENT ON COLUMN turnmill.parked.pool IS 'Its pool.';
COMMENT ON COLUMN turnmill.parked.session_id IS 'The session whose it is.';
COMMENT ON COLUMN turnmill.parked.holds IS 'The turn after which it was paused.';
COMMENT ON COLUMN turnmill.parked.nonce IS 'Of its create; in its metadata.';
COMMENT ON COLUMN turnmill.parked.create_request IS 'The body of its create.';
COMMENT ON COLUMN turnmill.parked.parked_at IS 'When it was paused.';
COMMENT ON COLUMN turnmill.parked.due_at IS 'When it is to be killed, by anyone.';
COMMENT ON COLUMN turnmill.parked.doomed IS 'Somebody kills it: no turn takes it any more.';

ALTER TABLE turnmill.attempts ADD COLUMN sandbox text CHECK (sandbox IN ('new', 'warm', 'paused'));
COMMENT ON COLUMN turnmill.attempts.sandbox IS 'Where a claimed turn found its sandbox: new, its session''s warm one, or its paused one; null = adopted or resumed.';

CREATE OR REPLACE FUNCTION turnmill.wait_reason(turn_id text) RETURNS text LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  RETURN (SELECT CASE
    WHEN j.state = 'waiting' THEN 'session_busy'
    WHEN j.state = 'leased' THEN NULL
    WHEN p.state = 'paused' THEN 'pool_paused'
    WHEN p.state = 'blocked' THEN 'pool_blocked'
    WHEN j.run_at > clock_timestamp() THEN 'backoff'
    WHEN EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = j.tenant_id AND t.running >= t.running_max) THEN 'tenant_limit'
    -- Its session's sandbox is being paused.
    WHEN kept.state = 'pausing' THEN 'session_busy'
    WHEN kept.state IS NULL AND q.creates_after > clock_timestamp() THEN CASE q.held_for WHEN 'capacity' THEN 'no_slot' ELSE 'create_rate' END
    WHEN kept.state IS NULL AND NOT EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = j.pool AND s.state = 'free' AND NOT s.retire)
      THEN 'no_slot'
    WHEN kept.state IS NULL AND q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at) < 1 THEN 'create_rate'
    WHEN NOT EXISTS (
      SELECT FROM turnmill.workers w WHERE w.state = 'active' AND w.lease_until > clock_timestamp()
        AND w.turns_max > (SELECT count(*) FROM turnmill.jobs l WHERE l.worker_id = w.id AND l.state = 'leased'))
      THEN 'no_worker'
  END
  FROM turnmill.jobs j
  JOIN turnmill.pools p ON p.name = j.pool
  JOIN turnmill.pool_states q ON q.pool = j.pool
  LEFT JOIN LATERAL (
    SELECT s.state FROM turnmill.slots s WHERE s.session_id = j.session_id AND s.state IN ('warm', 'pausing')
    ORDER BY s.state LIMIT 1) kept ON true
  WHERE j.turn_id = turn_id);
END $$;
