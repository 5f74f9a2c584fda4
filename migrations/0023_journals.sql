-- What agents print, word for word, for when blocks don't say enough.
ALTER TABLE turnmill.pools ADD COLUMN journal_days integer NOT NULL DEFAULT 7 CHECK (journal_days BETWEEN 0 AND 3650);
COMMENT ON COLUMN turnmill.pools.journal_days IS 'Days for which the raw journals of finished attempts are kept, from now on; 0 = not at all.';

CREATE TABLE turnmill.journals (
  turn_id  text    NOT NULL REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  attempt  integer NOT NULL,
  data     bytea   NOT NULL,
  bytes    bigint  NOT NULL CHECK (bytes >= 0),
  whole    boolean NOT NULL,
  saved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  forget_at timestamptz NOT NULL,
  PRIMARY KEY (turn_id, attempt)
);
-- It is compressed already.
ALTER TABLE turnmill.journals ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX journals_to_forget ON turnmill.journals (forget_at);
COMMENT ON TABLE turnmill.journals IS 'What the agent of each finished attempt printed, byte for byte, as far as it was read: also what no block shows.';
COMMENT ON COLUMN turnmill.journals.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.journals.attempt IS 'Which start of its agent.';
COMMENT ON COLUMN turnmill.journals.data IS 'As gzip.';
COMMENT ON COLUMN turnmill.journals.bytes IS 'Of the journal itself, as far as it was read.';
COMMENT ON COLUMN turnmill.journals.whole IS 'Whether data has all of them; else only the beginning: it would have been too large.';
COMMENT ON COLUMN turnmill.journals.saved_at IS 'When.';
COMMENT ON COLUMN turnmill.journals.forget_at IS 'Until when it is kept, as the pool said when it was saved.';
