CREATE TABLE turnmill.slots (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pool           text NOT NULL REFERENCES turnmill.pools (name),
  state          text NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'creating', 'busy', 'warm', 'releasing')),
  retire         boolean NOT NULL DEFAULT false,
  epoch          bigint,
  due_at         timestamptz,
  turn_id        text,
  session_id     text,
  nonce          text,
  create_request jsonb,
  asked_at       timestamptz,
  sandbox_id     text,
  sandbox_at     timestamptz,
  CONSTRAINT free_is_empty CHECK ((state = 'free') = (nonce IS NULL)
    AND (state <> 'free' OR (epoch IS NULL AND turn_id IS NULL AND session_id IS NULL AND sandbox_id IS NULL))),
  CONSTRAINT held_has_an_intent CHECK (state = 'free' OR (epoch IS NOT NULL AND create_request IS NOT NULL)),
  CONSTRAINT running_has_a_sandbox CHECK (state NOT IN ('busy', 'warm') OR sandbox_id IS NOT NULL),
  CONSTRAINT releasing_has_a_time CHECK (state <> 'releasing' OR due_at IS NOT NULL)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
CREATE INDEX slots_free ON turnmill.slots (pool, id) WHERE state = 'free';
CREATE INDEX slots_releasing ON turnmill.slots (due_at) WHERE state = 'releasing';
CREATE UNIQUE INDEX slots_one_per_turn ON turnmill.slots (turn_id) WHERE state IN ('creating', 'busy');
COMMENT ON TABLE turnmill.slots IS 'One row per unit of a pool''s cap: free → creating → busy → releasing → free. Held by a sandbox, not by a worker; free again only when the sandbox is known to be gone.';
COMMENT ON COLUMN turnmill.slots.id IS 'Number of the slot.';
COMMENT ON COLUMN turnmill.slots.pool IS 'Its pool.';
COMMENT ON COLUMN turnmill.slots.state IS 'free; creating = intent recorded, maybe asked for; busy = its turn runs in it; warm = kept for its session; releasing = its sandbox is to be killed, by anyone when due.';
COMMENT ON COLUMN turnmill.slots.retire IS 'More than the cap: goes away instead of coming free.';
COMMENT ON COLUMN turnmill.slots.epoch IS 'Who may act on it: the epoch of its job, or of whoever releases it.';
COMMENT ON COLUMN turnmill.slots.due_at IS 'releasing: when anyone may take the release over.';
COMMENT ON COLUMN turnmill.slots.turn_id IS 'The turn that holds it.';
COMMENT ON COLUMN turnmill.slots.session_id IS 'The session whose files are in its sandbox.';
COMMENT ON COLUMN turnmill.slots.nonce IS 'Idempotency-Key of the create, and in the sandbox''s metadata: finds the sandbox when the answer was lost.';
COMMENT ON COLUMN turnmill.slots.create_request IS 'The body of the create call, word for word, so that an adopter sends the identical one.';
COMMENT ON COLUMN turnmill.slots.asked_at IS 'When the create was last sent.';
COMMENT ON COLUMN turnmill.slots.sandbox_id IS 'E2B''s id of the sandbox.';
COMMENT ON COLUMN turnmill.slots.sandbox_at IS 'When the sandbox was known to run.';

-- The hot table: narrow, nothing references it, rows live only as long as their turn is unfinished.
CREATE TABLE turnmill.jobs (
  turn_id        text PRIMARY KEY,
  session_id     text NOT NULL,
  ordinal        integer NOT NULL,
  pool           text NOT NULL,
  state          text NOT NULL CHECK (state IN ('waiting', 'ready', 'leased')),
  priority       integer NOT NULL DEFAULT 0,
  queued_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  run_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  worker_id      text,
  epoch          bigint,
  phase          text CHECK (phase IN ('sandbox', 'prepare', 'agent', 'finish')),
  slot_id        bigint,
  attempt        integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
  generation     integer NOT NULL DEFAULT 1 CHECK (generation > 0),
  failures       integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
  sandboxes_lost integer NOT NULL DEFAULT 0 CHECK (sandboxes_lost >= 0),
  journal_offset bigint NOT NULL DEFAULT 0 CHECK (journal_offset >= 0),
  next_seq       integer NOT NULL DEFAULT 0 CHECK (next_seq >= 0),
  -- A leased job without a worker was handed over: the next claim adopts it.
  CONSTRAINT leased_has_an_epoch CHECK ((state = 'leased') = (epoch IS NOT NULL)),
  CONSTRAINT leased_has_a_phase CHECK ((state = 'leased') = (phase IS NOT NULL)),
  CONSTRAINT leased_has_a_slot CHECK ((state = 'leased') = (slot_id IS NOT NULL)),
  CONSTRAINT only_leased_has_a_worker CHECK (worker_id IS NULL OR state = 'leased')
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000);
CREATE UNIQUE INDEX jobs_one_per_session ON turnmill.jobs (session_id) WHERE state <> 'waiting';
CREATE INDEX jobs_ready ON turnmill.jobs (pool, priority DESC, queued_at, turn_id) WHERE state = 'ready';
CREATE INDEX jobs_leased ON turnmill.jobs (worker_id) WHERE state = 'leased';
CREATE INDEX jobs_waiting ON turnmill.jobs (session_id, ordinal) WHERE state = 'waiting';
COMMENT ON TABLE turnmill.jobs IS 'The queue row of an unfinished turn: waiting → ready → leased → gone.';
COMMENT ON COLUMN turnmill.jobs.turn_id IS 'Its turn.';
COMMENT ON COLUMN turnmill.jobs.session_id IS 'The turn''s session: at most one job of it is not waiting.';
COMMENT ON COLUMN turnmill.jobs.ordinal IS 'The turn''s place in its session.';
COMMENT ON COLUMN turnmill.jobs.pool IS 'Where it runs.';
COMMENT ON COLUMN turnmill.jobs.state IS 'waiting = an earlier turn of the session is unfinished; ready = claimable from run_at; leased = a worker has it.';
COMMENT ON COLUMN turnmill.jobs.priority IS 'Higher first, within a pool.';
COMMENT ON COLUMN turnmill.jobs.queued_at IS 'Its age in the queue.';
COMMENT ON COLUMN turnmill.jobs.run_at IS 'Not before then: the backoff after a failed start-up.';
COMMENT ON COLUMN turnmill.jobs.worker_id IS 'Who has it; null on a leased job = handed over.';
COMMENT ON COLUMN turnmill.jobs.epoch IS 'Who may act for it. New with every claim and adoption, so that it can fence.';
COMMENT ON COLUMN turnmill.jobs.phase IS 'How far it is: sandbox, prepare, agent, finish.';
COMMENT ON COLUMN turnmill.jobs.slot_id IS 'The slot that it holds.';
COMMENT ON COLUMN turnmill.jobs.attempt IS 'The start of the agent that is due or running; a take-over is not a new one.';
COMMENT ON COLUMN turnmill.jobs.generation IS 'Grows when an attempt starts the turn over.';
COMMENT ON COLUMN turnmill.jobs.failures IS 'Failed start-ups, charged to the retry budget.';
COMMENT ON COLUMN turnmill.jobs.sandboxes_lost IS 'Sandboxes that vanished while the agent ran.';
COMMENT ON COLUMN turnmill.jobs.journal_offset IS 'Bytes of the attempt''s journal whose blocks are committed.';
COMMENT ON COLUMN turnmill.jobs.next_seq IS 'Seq of the turn''s next block.';

CREATE TABLE turnmill.cancel_requests (
  turn_id      text PRIMARY KEY,
  reason       text,
  requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.cancel_requests IS 'Cancels of leased jobs, for their workers: a row of its own, so that a caller''s open transaction never locks a job.';
COMMENT ON COLUMN turnmill.cancel_requests.turn_id IS 'The turn to cancel.';
COMMENT ON COLUMN turnmill.cancel_requests.reason IS 'Why, for people.';
COMMENT ON COLUMN turnmill.cancel_requests.requested_at IS 'When it was asked for.';

CREATE TABLE turnmill.attempts (
  epoch       bigint PRIMARY KEY,
  turn_id     text NOT NULL,
  attempt     integer NOT NULL,
  generation  integer NOT NULL,
  worker_id   text NOT NULL,
  taken       text NOT NULL CHECK (taken IN ('claimed', 'adopted')),
  taken_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  from_offset bigint NOT NULL,
  from_seq    integer NOT NULL,
  sandbox_id  text,
  sandbox_at  timestamptz,
  agent_at    timestamptz,
  ended_at    timestamptz,
  ended       text CHECK (ended IN ('settled', 'retry', 'handed_over', 'lost')),
  to_offset   bigint,
  detail      text,
  CONSTRAINT ended_says_how CHECK ((ended_at IS NULL) = (ended IS NULL))
);
CREATE INDEX attempts_of_turn ON turnmill.attempts (turn_id, epoch);
COMMENT ON TABLE turnmill.attempts IS 'The turn''s timeline: a row per epoch, so who had it when, and how that ended.';
COMMENT ON COLUMN turnmill.attempts.epoch IS 'The fence under which it acted.';
COMMENT ON COLUMN turnmill.attempts.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.attempts.attempt IS 'Which start of the agent; the same for a take-over.';
COMMENT ON COLUMN turnmill.attempts.generation IS 'The turn''s generation then.';
COMMENT ON COLUMN turnmill.attempts.worker_id IS 'Who.';
COMMENT ON COLUMN turnmill.attempts.taken IS 'claimed from the queue, or adopted from a worker that lost or gave up its lease.';
COMMENT ON COLUMN turnmill.attempts.taken_at IS 'When.';
COMMENT ON COLUMN turnmill.attempts.from_offset IS 'The journal byte where it went on.';
COMMENT ON COLUMN turnmill.attempts.from_seq IS 'The seq of the first block that it could write.';
COMMENT ON COLUMN turnmill.attempts.sandbox_id IS 'The sandbox it used.';
COMMENT ON COLUMN turnmill.attempts.sandbox_at IS 'When the sandbox was ready for it.';
COMMENT ON COLUMN turnmill.attempts.agent_at IS 'When it knew that the agent runs.';
COMMENT ON COLUMN turnmill.attempts.ended_at IS 'When it ended; null while it runs.';
COMMENT ON COLUMN turnmill.attempts.ended IS 'settled; retry = another try was scheduled; handed_over; lost = its lease ran out.';
COMMENT ON COLUMN turnmill.attempts.to_offset IS 'The journal byte up to which it committed.';
COMMENT ON COLUMN turnmill.attempts.detail IS 'What went wrong, if anything.';

-- Slot rows follow the cap. Lowering deletes free ones and marks held ones; nothing that runs is killed.
CREATE FUNCTION turnmill.fit_slots_to_cap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE surplus integer;
BEGIN
  SELECT count(*) - NEW.cap INTO surplus FROM turnmill.slots WHERE pool = NEW.name AND NOT retire;
  IF surplus < 0 THEN
    WITH back AS MATERIALIZED (
      SELECT id FROM turnmill.slots WHERE pool = NEW.name AND retire LIMIT -surplus FOR NO KEY UPDATE)
    UPDATE turnmill.slots s SET retire = false FROM back WHERE s.id = back.id;
    SELECT count(*) - NEW.cap INTO surplus FROM turnmill.slots WHERE pool = NEW.name AND NOT retire;
    INSERT INTO turnmill.slots (pool) SELECT NEW.name FROM generate_series(1, -surplus);
  ELSIF surplus > 0 THEN
    WITH free AS MATERIALIZED (
      SELECT id FROM turnmill.slots WHERE pool = NEW.name AND NOT retire AND state = 'free'
      ORDER BY id DESC LIMIT surplus FOR UPDATE SKIP LOCKED)
    DELETE FROM turnmill.slots s USING free WHERE s.id = free.id;
    SELECT count(*) - NEW.cap INTO surplus FROM turnmill.slots WHERE pool = NEW.name AND NOT retire;
    WITH held AS MATERIALIZED (
      SELECT id FROM turnmill.slots WHERE pool = NEW.name AND NOT retire
      ORDER BY (state = 'free') DESC, id DESC LIMIT greatest(surplus, 0) FOR NO KEY UPDATE)
    UPDATE turnmill.slots s SET retire = true FROM held WHERE s.id = held.id;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER slots_follow_cap AFTER INSERT OR UPDATE OF cap ON turnmill.pools
  FOR EACH ROW EXECUTE FUNCTION turnmill.fit_slots_to_cap();
INSERT INTO turnmill.pools (name) VALUES ('default');
