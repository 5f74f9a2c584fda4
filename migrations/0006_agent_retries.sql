-- A failed agent goes on in its living sandbox, in its own conversation.
ALTER TABLE turnmill.jobs
  ADD COLUMN agent_failures integer NOT NULL DEFAULT 0 CHECK (agent_failures >= 0),
  ADD COLUMN resumes boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN turnmill.jobs.agent_failures IS 'Attempts whose agent failed and was tried again in the same sandbox.';
COMMENT ON COLUMN turnmill.jobs.resumes IS 'The attempt goes on in the agent''s conversation of the one before, so finished tool calls are not done again.';

ALTER TABLE turnmill.attempts DROP CONSTRAINT attempts_taken_check;
ALTER TABLE turnmill.attempts ADD CONSTRAINT attempts_taken_check CHECK (taken IN ('claimed', 'adopted', 'resumed'));
COMMENT ON COLUMN turnmill.attempts.taken IS 'claimed from the queue, adopted from a worker that lost or gave up its lease, or resumed: the next attempt in the same sandbox.';

COMMENT ON COLUMN turnmill.pools.agent IS 'Command line of the agent, a word an element. {session} stands for the agent''s session id, and --session-id={session} becomes --resume={session} where a conversation goes on; the turn''s options are appended as --flag=value.';

CREATE FUNCTION turnmill.add_usage(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN a IS NULL THEN b WHEN b IS NULL THEN a ELSE b || coalesce((
    SELECT jsonb_object_agg(key, (a ->> key)::numeric + (b ->> key)::numeric)
    FROM jsonb_object_keys(b) AS key
    WHERE jsonb_typeof(a -> key) = 'number' AND jsonb_typeof(b -> key) = 'number'), '{}') END
$$;
COMMENT ON FUNCTION turnmill.add_usage IS 'Sums the counters of two attempts of a turn; what is no number is taken from the later one.';
