-- Failures grouped by what failed, so that a new kind is seen at once and an old one is known.
CREATE TABLE turnmill.failures (
  phase        text NOT NULL,
  code         text NOT NULL,
  first_at     timestamptz NOT NULL,
  last_at      timestamptz NOT NULL,
  tries        bigint NOT NULL DEFAULT 0,
  turns        bigint NOT NULL DEFAULT 0,
  last_turn_id text NOT NULL,
  last_message text,
  PRIMARY KEY (phase, code)
);
COMMENT ON TABLE turnmill.failures IS 'One row per phase and error code, kept by the sampler as it closes each minute.';
COMMENT ON COLUMN turnmill.failures.phase IS 'How far the attempt was: sandbox, prepare, agent, finish; empty = not noted.';
COMMENT ON COLUMN turnmill.failures.code IS 'The error code.';
COMMENT ON COLUMN turnmill.failures.first_at IS 'When it was first seen.';
COMMENT ON COLUMN turnmill.failures.last_at IS 'When it was last seen.';
COMMENT ON COLUMN turnmill.failures.tries IS 'Attempts that ended so.';
COMMENT ON COLUMN turnmill.failures.turns IS 'Of these, the ones that were not tried again: turns that failed.';
COMMENT ON COLUMN turnmill.failures.last_turn_id IS 'The turn it was last seen with.';
COMMENT ON COLUMN turnmill.failures.last_message IS 'That turn''s error message, its start.';
