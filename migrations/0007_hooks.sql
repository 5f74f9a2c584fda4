-- What runs in the sandbox around the agent.
ALTER TABLE turnmill.pools
  ADD COLUMN prepare text,
  ADD COLUMN watch text,
  ADD COLUMN finish text,
  ADD COLUMN prepare_timeout_s integer NOT NULL DEFAULT 300 CHECK (prepare_timeout_s > 0),
  ADD COLUMN finish_timeout_s integer NOT NULL DEFAULT 300 CHECK (finish_timeout_s > 0);
COMMENT ON COLUMN turnmill.pools.prepare IS 'Bash script that brings the project''s files into a new sandbox, with PROJECT_ID and the project''s token; null = the shipped one for uspark, empty = none.';
COMMENT ON COLUMN turnmill.pools.watch IS 'Bash script that gets the agent''s journal on its standard input, beside the agent; null = the shipped one for uspark, empty = none.';
COMMENT ON COLUMN turnmill.pools.finish IS 'Bash script that brings the files back when the agent has ended, however it ended; null = the shipped one for uspark, empty = none.';
COMMENT ON COLUMN turnmill.pools.prepare_timeout_s IS 'Seconds that prepare may take.';
COMMENT ON COLUMN turnmill.pools.finish_timeout_s IS 'Seconds that finish may take; after a cancel it is two of worker.stop_grace.';
