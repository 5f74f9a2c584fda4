-- Conversations are sealed under a key of the workers, and kept for as long as a pool says.
ALTER TABLE turnmill.transcripts
  ALTER COLUMN data DROP NOT NULL,
  ADD COLUMN key_id text;
CREATE INDEX transcripts_oldest ON turnmill.transcripts (saved_at);
COMMENT ON COLUMN turnmill.transcripts.data IS 'The file, gzip, sealed where key_id says so; null = there was none (bytes 0), or it was larger than the pool allows.';
COMMENT ON COLUMN turnmill.transcripts.key_id IS 'The workers'' master key under which it is sealed; null = it is not.';

ALTER TABLE turnmill.pools
  ADD COLUMN context_versions integer NOT NULL DEFAULT 5 CHECK (context_versions > 0),
  ADD COLUMN context_days integer NOT NULL DEFAULT 90 CHECK (context_days > 0);
COMMENT ON COLUMN turnmill.pools.context_versions IS 'How many of its newest turns a session keeps the conversation of: as far back as a retry or a fork can go.';
COMMENT ON COLUMN turnmill.pools.context_days IS 'Days after its last turn that a session is remembered.';
