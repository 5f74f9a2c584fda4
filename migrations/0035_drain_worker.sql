-- A worker that an operator wants to end in order, from wherever he is.
ALTER TABLE turnmill.workers ADD COLUMN drain_at timestamptz;
COMMENT ON COLUMN turnmill.workers.drain_at IS 'When somebody wanted it to drain. It sees that with its next heartbeat, and does what it does at SIGTERM; null = nobody did.';
COMMENT ON COLUMN turnmill.workers.state IS 'active; draining = somebody wants it to end, so it counts for nothing new; gone = ended in order, or found dead.';

CREATE FUNCTION turnmill.drain_worker(worker_id text) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  w turnmill.workers;
BEGIN
  SELECT x.* INTO w FROM turnmill.workers x WHERE x.id = worker_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no worker "%"', worker_id USING ERRCODE = 'TM404', HINT = 'List workers with: turnmill fleet.';
  END IF;
  IF w.state = 'gone' OR w.lease_until <= clock_timestamp() THEN
    RAISE EXCEPTION 'worker "%" is not alive', worker_id USING ERRCODE = 'TM409', HINT = 'Other workers adopt its turns without being asked.';
  END IF;
  IF w.drain_at IS NOT NULL THEN
    RAISE EXCEPTION 'worker "%" is being drained already', worker_id USING ERRCODE = 'TM409', HINT = 'It ends with its next heartbeat.';
  END IF;
  UPDATE turnmill.workers x SET drain_at = clock_timestamp(), state = 'draining' WHERE x.id = worker_id;
  RETURN (SELECT count(*) FROM turnmill.jobs j WHERE j.worker_id = worker_id AND j.state = 'leased');
END $$;
COMMENT ON FUNCTION turnmill.drain_worker IS
'Asks a worker to end in order, as SIGTERM does: with its next heartbeat it takes nothing new, hands its turns over and exits; their
agents run on meanwhile. How many turns it has. TM404: no such worker. TM409: it is not alive, or drains already.';
