-- Slots held against what E2B says, by one worker of the fleet at a time.
CREATE TABLE turnmill.duties (
  name        text PRIMARY KEY CHECK (name IN ('reconcile')),
  worker_id   text,
  lease_until timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.duties IS 'What one worker of the fleet does at a time.';
COMMENT ON COLUMN turnmill.duties.name IS 'reconcile = hold slots against E2B''s list.';
COMMENT ON COLUMN turnmill.duties.worker_id IS 'Who has it.';
COMMENT ON COLUMN turnmill.duties.lease_until IS 'Until when; then anyone may take it.';
INSERT INTO turnmill.duties (name) VALUES ('reconcile');

CREATE TABLE turnmill.corrections (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind       text NOT NULL CHECK (kind IN ('orphan', 'leaked_slot')),
  subject    text NOT NULL,
  pool       text,
  reason     text NOT NULL,
  noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  done_at    timestamptz
);
CREATE UNIQUE INDEX corrections_pending ON turnmill.corrections (kind, subject) WHERE done_at IS NULL;
CREATE INDEX corrections_newest ON turnmill.corrections (noticed_at DESC);
COMMENT ON TABLE turnmill.corrections IS 'What the reconciler found wrong, and when it was put right.';
COMMENT ON COLUMN turnmill.corrections.id IS 'Number of the correction.';
COMMENT ON COLUMN turnmill.corrections.kind IS 'orphan = a sandbox of this fleet that no slot knows; leaked_slot = a slot that is held for a turn which has ended.';
COMMENT ON COLUMN turnmill.corrections.subject IS 'The sandbox''s id, or the slot''s.';
COMMENT ON COLUMN turnmill.corrections.pool IS 'Its pool, if known.';
COMMENT ON COLUMN turnmill.corrections.reason IS 'What was found, for people.';
COMMENT ON COLUMN turnmill.corrections.noticed_at IS 'When it was first seen.';
COMMENT ON COLUMN turnmill.corrections.done_at IS 'When it was put right, or had gone by itself; null = within its grace, or not done yet.';

ALTER TABLE turnmill.jobs ADD COLUMN crashes integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN turnmill.jobs.crashes IS 'Worker processes that had died within a lease of taking it when it was last taken.';
ALTER TABLE turnmill.workers ADD COLUMN released_at timestamptz;
COMMENT ON COLUMN turnmill.workers.released_at IS 'When it gave its lease back in order; null = it runs, or died.';
COMMENT ON COLUMN turnmill.attempts.ended IS 'settled; retry = another try was scheduled; handed_over = given back in order; lost = its lease ran out.';
