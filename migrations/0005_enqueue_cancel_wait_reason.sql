-- The public functions. All errors have a code of class TM, a message and a hint that says what to do.
--   TM400 bad argument   TM404 no such thing   TM409 conflicts with what is there

-- Makes a session's next turn claimable, if no turn of it is unfinished before it.
-- The head is chosen first and locked after: SKIP LOCKED inside the choice could take the second.
CREATE FUNCTION turnmill.promote(session text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  WITH head AS MATERIALIZED (
    SELECT turn_id FROM turnmill.jobs
    WHERE turn_id = (SELECT turn_id FROM turnmill.jobs
                     WHERE session_id = session AND state = 'waiting' ORDER BY ordinal LIMIT 1)
      AND state = 'waiting'
      AND NOT EXISTS (SELECT FROM turnmill.jobs WHERE session_id = session AND state <> 'waiting')
    FOR NO KEY UPDATE SKIP LOCKED)
  UPDATE turnmill.jobs j SET state = 'ready', run_at = clock_timestamp()
  FROM head WHERE j.turn_id = head.turn_id;
  RETURN FOUND;
END $$;
COMMENT ON FUNCTION turnmill.promote IS 'Makes the session''s next waiting turn ready if none is before it. Safe to call at any time.';

CREATE TYPE turnmill.receipt AS (
  turn_id    text,
  session_id text,
  status     text,
  replayed   boolean,
  waits_for  text
);
COMMENT ON TYPE turnmill.receipt IS 'What enqueue_turn did: replayed = the idempotency key was known and this is its turn; waits_for = why it does not start at once, as wait_reason says.';

-- Refuses what no worker could run, before anything is written.
CREATE FUNCTION turnmill.check_turn(prompt text, options jsonb, pool turnmill.pools) RETURNS void
LANGUAGE plpgsql STABLE AS $$
DECLARE
  limit_bytes integer := (SELECT f.prompt_max_bytes FROM turnmill.fleet f);
  stray text;
BEGIN
  IF prompt IS NULL OR btrim(prompt, E' \t\r\n') = '' THEN
    RAISE EXCEPTION 'the prompt is empty' USING ERRCODE = 'TM400',
      HINT = 'Give the user''s message as prompt => ''…''.';
  END IF;
  IF octet_length(prompt) > limit_bytes THEN
    RAISE EXCEPTION 'the prompt has % bytes, more than the limit of %', octet_length(prompt), limit_bytes
      USING ERRCODE = 'TM400',
      HINT = 'Shorten it, put large material into files of the project, or raise turnmill.fleet.prompt_max_bytes.';
  END IF;
  IF jsonb_typeof(options) <> 'object' THEN
    RAISE EXCEPTION 'options is not a JSON object' USING ERRCODE = 'TM400',
      HINT = 'For example: options => ''{"model": "claude-sonnet-4-5"}''.';
  END IF;
  SELECT k INTO stray FROM jsonb_object_keys(options) k WHERE k <> ALL (pool.options_allowed) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'option "%" is not allowed in pool "%"', stray, pool.name USING ERRCODE = 'TM400',
      HINT = format('Allowed are: %s.', array_to_string(pool.options_allowed, ', '));
  END IF;
  SELECT key INTO stray FROM jsonb_each(options) WHERE jsonb_typeof(value) NOT IN ('string', 'number') LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'option "%" is neither a text nor a number', stray USING ERRCODE = 'TM400';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_turn IS 'Raises TM400 for a prompt or options that no worker could run.';

-- The session's row, made on the way when it is new, checked against what the caller says of it.
CREATE FUNCTION turnmill.session_for(
  session text, project text, pool_name text, user_id text, tenant_id text
) RETURNS turnmill.sessions LANGUAGE plpgsql AS $$
DECLARE s turnmill.sessions;
BEGIN
  SELECT * INTO s FROM turnmill.sessions WHERE id = session;
  IF NOT FOUND THEN
    IF project IS NULL THEN
      RAISE EXCEPTION 'session "%" does not exist', coalesce(session, '(new)') USING ERRCODE = 'TM400',
        HINT = 'To start a new session say which project it belongs to: project_id => ''…''.';
    END IF;
    IF NOT EXISTS (SELECT FROM turnmill.pools p WHERE p.name = coalesce(pool_name, 'default')) THEN
      RAISE EXCEPTION 'there is no pool "%"', coalesce(pool_name, 'default') USING ERRCODE = 'TM404',
        HINT = format('Pools are: %s. Make one with: turnmill pool set NAME --cap N.',
                      (SELECT string_agg(name, ', ' ORDER BY name) FROM turnmill.pools));
    END IF;
    INSERT INTO turnmill.sessions AS t (id, project_id, user_id, tenant_id, pool)
    VALUES (coalesce(session, turnmill.new_id('sess')), project, user_id, tenant_id, coalesce(pool_name, 'default'))
    ON CONFLICT (id) DO NOTHING RETURNING * INTO s;
    IF NOT FOUND THEN  -- someone else made it just now
      SELECT * INTO s FROM turnmill.sessions WHERE id = session;
    END IF;
  END IF;
  IF s.project_id <> project THEN
    RAISE EXCEPTION 'session "%" belongs to another project', session USING ERRCODE = 'TM409',
      HINT = 'Use a session of this project, or leave session_id out to start a new one.';
  END IF;
  IF s.pool <> pool_name THEN
    RAISE EXCEPTION 'session "%" runs in pool "%", not in "%"', session, s.pool, pool_name USING ERRCODE = 'TM409',
      HINT = 'A session stays in its pool. Leave pool out, or start a new session.';
  END IF;
  RETURN s;
END $$;
COMMENT ON FUNCTION turnmill.session_for IS 'The session, made if it is new; TM400/404/409 when it can''t be the caller''s.';

CREATE FUNCTION turnmill.enqueue_turn(
  prompt          text,
  project_id      text DEFAULT NULL,
  session_id      text DEFAULT NULL,
  turn_id         text DEFAULT NULL,
  idempotency_key text DEFAULT NULL,
  options         jsonb DEFAULT '{}',
  pool            text DEFAULT NULL,
  priority        integer DEFAULT 0,
  user_id         text DEFAULT NULL,
  tenant_id       text DEFAULT NULL
) RETURNS turnmill.receipt LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  s turnmill.sessions;
  t turnmill.turns;
  p turnmill.pools;
  fresh_session boolean;
  waits boolean;
  queue_was_empty boolean;
  -- jsonb text is canonical, so equal bodies have equal hashes whatever their spacing.
  hash bytea := sha256(convert_to(jsonb_build_array(
    prompt, options, session_id, turn_id, pool, priority, user_id, tenant_id)::text, 'UTF8'));
BEGIN
  IF idempotency_key IS NOT NULL THEN
    SELECT x.* INTO t FROM turnmill.turns x
    WHERE x.idempotency_key = idempotency_key
      AND x.project_id = coalesce(project_id, (SELECT y.project_id FROM turnmill.sessions y WHERE y.id = session_id));
    IF FOUND THEN
      RETURN turnmill.replay(t, hash);
    END IF;
  END IF;

  fresh_session := session_id IS NULL OR NOT EXISTS (SELECT FROM turnmill.sessions x WHERE x.id = session_id);
  s := turnmill.session_for(session_id, project_id, pool, user_id, tenant_id);
  SELECT x.* INTO p FROM turnmill.pools x WHERE x.name = s.pool;
  PERFORM turnmill.check_turn(prompt, options, p);

  -- This UPDATE locks the session until the caller commits: ordinals have no gaps, and a higher
  -- one is never visible before a lower one. Workers never need this row's lock.
  UPDATE turnmill.sessions x SET turns = x.turns + 1 WHERE x.id = s.id RETURNING * INTO s;
  INSERT INTO turnmill.turns AS x (id, session_id, project_id, ordinal, prompt, options, idempotency_key, body_hash)
  VALUES (coalesce(turn_id, turnmill.new_id('turn')), s.id, s.project_id, s.turns, prompt, options, idempotency_key, hash)
  ON CONFLICT DO NOTHING RETURNING x.* INTO t;
  IF NOT FOUND THEN  -- the same key, or the same turn id, was committed by another transaction meanwhile
    UPDATE turnmill.sessions x SET turns = x.turns - 1 WHERE x.id = s.id;
    DELETE FROM turnmill.sessions x WHERE fresh_session AND x.id = s.id AND x.turns = 0;
    SELECT x.* INTO t FROM turnmill.turns x
    WHERE x.project_id = s.project_id AND x.idempotency_key = idempotency_key;
    IF FOUND THEN
      RETURN turnmill.replay(t, hash);
    END IF;
    RAISE EXCEPTION 'there is already a turn "%"', turn_id USING ERRCODE = 'TM409',
      HINT = 'Turn ids are used once. To make a repeated enqueue harmless, give an idempotency_key.';
  END IF;

  -- A statement of its own, so that it sees what was committed while we waited for the session.
  waits := EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id);
  queue_was_empty := NOT EXISTS (SELECT FROM turnmill.jobs j
    WHERE j.state = 'ready' AND j.pool = s.pool AND j.run_at <= clock_timestamp());
  INSERT INTO turnmill.jobs (turn_id, session_id, ordinal, pool, state, priority)
  VALUES (t.id, s.id, t.ordinal, s.pool, CASE WHEN waits THEN 'waiting' ELSE 'ready' END, priority);
  -- A hint, at most one for a burst: NOTIFY serialises commits, and whoever polls finds the rest.
  IF queue_was_empty AND NOT waits THEN
    PERFORM pg_notify('turnmill_ready', s.pool);
  END IF;
  RETURN (t.id, s.id, t.status, false, turnmill.wait_reason(t.id))::turnmill.receipt;
END $$;
COMMENT ON FUNCTION turnmill.enqueue_turn IS
'Enqueues one user message, in the caller''s own transaction: it runs if and when that commits.
project_id is needed for a new session; session_id null starts one. Ids may be given (text) or are made.
idempotency_key: the same key and body of a project give the same turn again, another body is an error (TM409).
Errors: TM400 bad argument, TM404 no such pool, TM409 conflict. Returns turn_id, session_id, status, replayed, waits_for.
Example: SELECT turn_id FROM turnmill.enqueue_turn(prompt => ''Fix the login bug'', project_id => ''p1'', session_id => ''sess_42'');';

CREATE FUNCTION turnmill.replay(t turnmill.turns, hash bytea) RETURNS turnmill.receipt
LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF t.body_hash <> hash THEN
    RAISE EXCEPTION 'idempotency key "%" was used with another body, for turn "%"', t.idempotency_key, t.id
      USING ERRCODE = 'TM409', HINT = 'Use a new key for a new message; repeat a key only with the same arguments.';
  END IF;
  RETURN (t.id, t.session_id, t.status, true, turnmill.wait_reason(t.id))::turnmill.receipt;
END $$;
COMMENT ON FUNCTION turnmill.replay IS 'The receipt of a turn that a repeated enqueue found; TM409 when the bodies differ.';

-- Ends a turn that no worker has. Also what a worker's settle does for the queue, in SQL's own words.
CREATE FUNCTION turnmill.cancel_turn(turn_id text, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  now_status text;
  gone turnmill.jobs;
BEGIN
  SELECT t.status INTO now_status FROM turnmill.turns t WHERE t.id = turn_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404',
      HINT = 'List turns with: turnmill turns.';
  END IF;
  IF now_status IN ('completed', 'failed', 'cancelled') THEN
    RETURN now_status;
  END IF;
  -- Waits for a claim that is taking it this moment; if that wins, the row is leased and stays.
  DELETE FROM turnmill.jobs j WHERE j.turn_id = turn_id AND j.state IN ('waiting', 'ready') RETURNING * INTO gone;
  IF FOUND THEN
    UPDATE turnmill.turns t SET status = 'cancelled', error_code = 'cancelled',
      error_message = coalesce(reason, 'cancelled while it waited'), blocks = gone.next_seq,
      completed_at = clock_timestamp()
    WHERE t.id = turn_id;
    PERFORM turnmill.promote(gone.session_id);
    RETURN 'cancelled';
  END IF;
  IF EXISTS (SELECT FROM turnmill.jobs j WHERE j.turn_id = turn_id) THEN
    INSERT INTO turnmill.cancel_requests (turn_id, reason) VALUES (turn_id, reason)
    ON CONFLICT DO NOTHING;
    RETURN 'cancelling';
  END IF;
  SELECT t.status INTO now_status FROM turnmill.turns t WHERE t.id = turn_id;
  RETURN now_status;
END $$;
COMMENT ON FUNCTION turnmill.cancel_turn IS
'Cancels a turn, in the caller''s own transaction. Returns cancelled (it was waiting: done), cancelling (it runs: its worker
stops the agent within a second; the blocks stay) or the terminal status it already has. TM404: no such turn.';

CREATE FUNCTION turnmill.wait_reason(turn_id text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE
    WHEN j.state = 'waiting' THEN 'session_busy'
    WHEN j.state = 'leased' THEN NULL
    WHEN p.state = 'paused' THEN 'pool_paused'
    WHEN p.state = 'blocked' THEN 'pool_blocked'
    WHEN j.run_at > clock_timestamp() THEN 'backoff'
    WHEN NOT EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = j.pool AND s.state = 'free' AND NOT s.retire)
      THEN 'no_slot'
    WHEN NOT EXISTS (
      SELECT FROM turnmill.workers w WHERE w.state = 'active' AND w.lease_until > clock_timestamp()
        AND w.turns_max > (SELECT count(*) FROM turnmill.jobs l WHERE l.worker_id = w.id AND l.state = 'leased'))
      THEN 'no_worker'
  END
  FROM turnmill.jobs j JOIN turnmill.pools p ON p.name = j.pool
  WHERE j.turn_id = wait_reason.turn_id
$$;
COMMENT ON FUNCTION turnmill.wait_reason IS
'Why a turn does not run: session_busy, pool_paused, pool_blocked, backoff, no_slot, no_worker; null when nothing is in its way, when it runs or has ended.';
