-- What the agent remembers of a conversation, kept outside its sandbox.
CREATE TABLE turnmill.transcripts (
  turn_id    text PRIMARY KEY REFERENCES turnmill.turns (id) ON DELETE CASCADE,
  session_id text NOT NULL,
  ordinal    integer NOT NULL,
  data       bytea NOT NULL,
  bytes      bigint NOT NULL CHECK (bytes >= 0),
  saved_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX transcripts_of_session ON turnmill.transcripts (session_id, ordinal DESC);
COMMENT ON TABLE turnmill.transcripts IS 'The agent''s own session file as it was when a turn ended: the next turn goes on from it in a new sandbox.';
COMMENT ON COLUMN turnmill.transcripts.turn_id IS 'The turn after which it was saved.';
COMMENT ON COLUMN turnmill.transcripts.session_id IS 'That turn''s session.';
COMMENT ON COLUMN turnmill.transcripts.ordinal IS 'That turn''s place in it.';
COMMENT ON COLUMN turnmill.transcripts.data IS 'The file, gzip.';
COMMENT ON COLUMN turnmill.transcripts.bytes IS 'Its size before that.';
COMMENT ON COLUMN turnmill.transcripts.saved_at IS 'When.';

ALTER TABLE turnmill.pools
  -- A pattern in the agent's home: the CLI names the directory after the one that it runs in.
  ADD COLUMN transcript text DEFAULT '.claude/projects/*/{session}.jsonl' CHECK (transcript ~ '^[A-Za-z0-9._/*{}-]+$' AND transcript !~ '\.\.'),
  ADD COLUMN transcript_max_bytes bigint NOT NULL DEFAULT 67108864 CHECK (transcript_max_bytes > 0);
COMMENT ON COLUMN turnmill.pools.transcript IS 'Where in its home the agent keeps a conversation; {session} is its id of that, * any name. Null = nowhere: each turn begins anew.';
COMMENT ON COLUMN turnmill.pools.transcript_max_bytes IS 'A larger one is not saved, and the next turn says that the conversation was lost.';

ALTER TABLE turnmill.jobs
  ADD COLUMN forgets boolean NOT NULL DEFAULT false,
  ADD COLUMN context_told boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN turnmill.jobs.forgets IS 'The agent did not take the conversation that it was given: the next attempt begins one anew.';
COMMENT ON COLUMN turnmill.jobs.context_told IS 'The answer begins with a block that says what could not be restored.';
