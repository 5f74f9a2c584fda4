-- What an attempt's end leaves for those who look at it later: how far it was, why, and when its worker was last heard.
ALTER TABLE turnmill.attempts
  ADD COLUMN phase text CHECK (phase IN ('sandbox', 'prepare', 'agent', 'finish')),
  ADD COLUMN error_code text,
  ADD COLUMN heard_at timestamptz;
COMMENT ON COLUMN turnmill.attempts.phase IS 'How far it was when it ended: sandbox, prepare, agent, finish; null = it runs, or ended before this was noted.';
COMMENT ON COLUMN turnmill.attempts.error_code IS 'What ended it, if that was an error: the code of the turn, or of the try.';
COMMENT ON COLUMN turnmill.attempts.heard_at IS 'When its worker was last heard of, if another one adopted the turn: from then until that one''s taken_at nobody had it.';

-- Neither column changes while an attempt runs, so its updates stay in their page.
CREATE INDEX attempts_taken ON turnmill.attempts (taken_at DESC);
CREATE INDEX attempts_failed ON turnmill.attempts (ended_at) WHERE error_code IS NOT NULL;
