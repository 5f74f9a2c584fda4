-- Whoever adopts a turn has to know what must not be stored of what its agent says: the worker before may have had other keys.
CREATE TABLE turnmill.turn_secrets (
  turn_id text NOT NULL REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  attempt integer NOT NULL,
  data    bytea NOT NULL,
  key_id  text NOT NULL,
  PRIMARY KEY (turn_id, attempt)
);
COMMENT ON TABLE turnmill.turn_secrets IS 'The secrets that the processes of a running turn were given. Gone soon after it has ended.';
COMMENT ON COLUMN turnmill.turn_secrets.turn_id IS 'The turn.';
COMMENT ON COLUMN turnmill.turn_secrets.attempt IS 'The attempt that was started with them.';
COMMENT ON COLUMN turnmill.turn_secrets.data IS 'The secrets, each ended by NUL, sealed as this turn''s.';
COMMENT ON COLUMN turnmill.turn_secrets.key_id IS 'The workers'' master key under which they are sealed; without one nothing is kept.';
