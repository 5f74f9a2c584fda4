-- What happens to a message that comes while its session is busy, said in the receipt; and retries by hand.
ALTER TABLE turnmill.sessions ADD COLUMN on_busy text NOT NULL DEFAULT 'queue' CHECK (on_busy IN ('queue', 'reject', 'interrupt'));
COMMENT ON COLUMN turnmill.sessions.on_busy IS 'For a turn that comes while another is unfinished, unless the enqueue says otherwise: queue = it waits; reject = it is not taken; interrupt = the running one is cancelled and it waits for its turn.';
ALTER TABLE turnmill.turns ADD COLUMN retry_of text;
COMMENT ON COLUMN turnmill.turns.retry_of IS 'The ended turn that this one repeats, if somebody asked for that (retry_turn).';

ALTER TYPE turnmill.receipt ADD ATTRIBUTE disposition text, ADD ATTRIBUTE queue_position integer;
COMMENT ON TYPE turnmill.receipt IS 'What enqueue_turn did. disposition: started = nothing of its session is before it; queued; interrupting = the running turn is being cancelled for it; rejected = the session is busy, nothing was written and turn_id is null. queue_position: unfinished turns of its session before it. replayed = the idempotency key was known and this is its turn. waits_for = as wait_reason says.';

-- In plpgsql, whose plans are kept: a function in SQL is planned anew with every call.
CREATE FUNCTION turnmill.receipt_of(turn_id text, replayed boolean, disposition text DEFAULT NULL) RETURNS turnmill.receipt
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE made turnmill.receipt;
BEGIN
  SELECT t.id, t.session_id, t.status, replayed, turnmill.wait_reason(t.id),
    coalesce(disposition, CASE j.state WHEN 'waiting' THEN 'queued' ELSE 'started' END),
    (SELECT count(*) FROM turnmill.jobs b WHERE j.turn_id IS NOT NULL AND b.session_id = t.session_id AND b.ordinal < t.ordinal)::integer
  INTO made
  FROM turnmill.turns t LEFT JOIN turnmill.jobs j ON j.turn_id = t.id
  WHERE t.id = turn_id;
  RETURN made;
END $$;
COMMENT ON FUNCTION turnmill.receipt_of IS 'A turn''s receipt, as of now.';

CREATE OR REPLACE FUNCTION turnmill.replay(t turnmill.turns, hash bytea) RETURNS turnmill.receipt
LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF t.body_hash <> hash THEN
    RAISE EXCEPTION 'idempotency key "%" was used with another body, for turn "%"', t.idempotency_key, t.id
      USING ERRCODE = 'TM409', HINT = 'Use a new key for a new message; repeat a key only with the same arguments.';
  END IF;
  RETURN turnmill.receipt_of(t.id, true);
END $$;

DROP FUNCTION turnmill.enqueue_turn(text, text, text, text, text, jsonb, text, integer, text, text);
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
  tenant_id       text DEFAULT NULL,
  on_busy         text DEFAULT NULL
) RETURNS turnmill.receipt LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  s turnmill.sessions;
  t turnmill.turns;
  p turnmill.pools;
  fresh_session boolean;
  busy boolean;
  running text;
  queue_was_empty boolean;
  -- jsonb text is canonical, so equal bodies have equal hashes whatever their spacing.
  body jsonb := jsonb_build_array(prompt, options, session_id, turn_id, pool, priority, user_id, tenant_id);
  hash bytea := sha256(convert_to((CASE WHEN on_busy IS NULL THEN body ELSE body || to_jsonb(on_busy) END)::text, 'UTF8'));
BEGIN
  IF on_busy NOT IN ('queue', 'reject', 'interrupt') THEN
    RAISE EXCEPTION 'on_busy is "%"', on_busy USING ERRCODE = 'TM400',
      HINT = 'It is queue, reject or interrupt; null leaves it to the session.';
  END IF;
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
  IF s.tenant_id <> tenant_id THEN
    RAISE EXCEPTION 'session "%" belongs to another tenant', s.id USING ERRCODE = 'TM409',
      HINT = 'A session stays with its tenant. Leave tenant_id out, or start a new session.';
  END IF;
  SELECT x.* INTO p FROM turnmill.pools x WHERE x.name = s.pool;
  PERFORM turnmill.check_turn(prompt, options, p);

  -- This UPDATE locks the session until the caller commits: ordinals have no gaps, and a higher
  -- one is never visible before a lower one. Workers never need this row's lock.
  UPDATE turnmill.sessions x SET turns = x.turns + 1, tenant_id = coalesce(x.tenant_id, tenant_id) WHERE x.id = s.id RETURNING * INTO s;
  -- A statement of its own, so that it sees what was committed while we waited for the session.
  busy := EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id);
  IF busy AND coalesce(on_busy, s.on_busy) = 'reject' THEN
    UPDATE turnmill.sessions x SET turns = x.turns - 1 WHERE x.id = s.id;
    RETURN (NULL, s.id, NULL, false, 'session_busy', 'rejected',
      (SELECT count(*) FROM turnmill.jobs j WHERE j.session_id = s.id))::turnmill.receipt;
  END IF;

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

  queue_was_empty := NOT EXISTS (SELECT FROM turnmill.jobs j
    WHERE j.state = 'ready' AND j.pool = s.pool AND j.tenant_id = coalesce(s.tenant_id, '') AND j.run_at <= clock_timestamp());
  INSERT INTO turnmill.jobs (turn_id, session_id, ordinal, pool, state, priority, tenant_id)
  VALUES (t.id, s.id, t.ordinal, s.pool, CASE WHEN busy THEN 'waiting' ELSE 'ready' END, priority, coalesce(s.tenant_id, ''));
  -- A hint, at most one for a burst: NOTIFY serialises commits, and whoever polls finds the rest.
  IF queue_was_empty AND NOT busy THEN
    PERFORM pg_notify('turnmill_ready', s.pool);
  END IF;
  IF busy AND coalesce(on_busy, s.on_busy) = 'interrupt' THEN
    -- One that has not begun keeps its place: its message was not answered yet.
    SELECT j.turn_id INTO running FROM turnmill.jobs j JOIN turnmill.turns x ON x.id = j.turn_id
    WHERE j.session_id = s.id AND j.state <> 'waiting' AND x.started_at IS NOT NULL;
    IF FOUND THEN
      PERFORM turnmill.cancel_turn(running, format('interrupted by turn %s', t.id));
      RETURN turnmill.receipt_of(t.id, false, 'interrupting');
    END IF;
  END IF;
  RETURN turnmill.receipt_of(t.id, false);
END $$;
COMMENT ON FUNCTION turnmill.enqueue_turn IS
'Enqueues one user message, in the caller''s own transaction: it runs if and when that commits.
project_id is needed for a new session; session_id null starts one. Ids may be given (text) or are made.
idempotency_key: the same key and body of a project give the same turn again, another body is an error (TM409).
on_busy: what to do while the session has an unfinished turn: queue (default) | reject | interrupt; null = as the session says.
Errors: TM400 bad argument, TM404 no such pool, TM409 conflict. Returns turn_id, session_id, status, replayed, waits_for, disposition, queue_position.
Example: SELECT turn_id FROM turnmill.enqueue_turn(prompt => ''Fix the login bug'', project_id => ''p1'', session_id => ''sess_42'');';

CREATE FUNCTION turnmill.retry_turn(
  turn_id text, new_turn_id text DEFAULT NULL, idempotency_key text DEFAULT NULL
) RETURNS turnmill.receipt LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  old turnmill.turns;
  made turnmill.receipt;
BEGIN
  SELECT t.* INTO old FROM turnmill.turns t WHERE t.id = turn_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
  IF old.completed_at IS NULL THEN
    RAISE EXCEPTION 'turn "%" is % and can''t be retried yet', turn_id, old.status USING ERRCODE = 'TM409',
      HINT = 'Wait until it has ended, or cancel it first: turnmill.cancel_turn(id).';
  END IF;
  made := turnmill.enqueue_turn(prompt => old.prompt, options => old.options, session_id => old.session_id,
    turn_id => new_turn_id, idempotency_key => idempotency_key, on_busy => 'queue');
  UPDATE turnmill.turns t SET retry_of = old.id WHERE t.id = made.turn_id AND t.retry_of IS NULL AND NOT made.replayed;
  RETURN made;
END $$;
COMMENT ON FUNCTION turnmill.retry_turn IS
'Enqueues an ended turn''s message again, as a new turn at the end of its session; its retry_of names the old one, which stays
as it is. TM404: no such turn. TM409: it has not ended. Returns a receipt, as enqueue_turn does.';

CREATE FUNCTION turnmill.set_session(session_id text, on_busy text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  UPDATE turnmill.sessions s SET on_busy = on_busy WHERE s.id = session_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no session "%"', session_id USING ERRCODE = 'TM404';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.set_session IS 'Changes what happens to turns that come while the session is busy: queue, reject or interrupt.';

CREATE OR REPLACE FUNCTION turnmill.wait_reason(turn_id text) RETURNS text LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  RETURN (SELECT CASE
    WHEN j.state = 'waiting' THEN 'session_busy'
    WHEN j.state = 'leased' THEN NULL
    WHEN p.state = 'paused' THEN 'pool_paused'
    WHEN p.state = 'blocked' THEN 'pool_blocked'
    WHEN j.run_at > clock_timestamp() THEN 'backoff'
    WHEN EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = j.tenant_id AND t.running >= t.running_max) THEN 'tenant_limit'
    WHEN q.creates_after > clock_timestamp() THEN CASE q.held_for WHEN 'capacity' THEN 'no_slot' ELSE 'create_rate' END
    WHEN NOT EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = j.pool AND s.state = 'free' AND NOT s.retire)
      THEN 'no_slot'
    WHEN q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at) < 1 THEN 'create_rate'
    WHEN NOT EXISTS (
      SELECT FROM turnmill.workers w WHERE w.state = 'active' AND w.lease_until > clock_timestamp()
        AND w.turns_max > (SELECT count(*) FROM turnmill.jobs l WHERE l.worker_id = w.id AND l.state = 'leased'))
      THEN 'no_worker'
  END
  FROM turnmill.jobs j
  JOIN turnmill.pools p ON p.name = j.pool
  JOIN turnmill.pool_states q ON q.pool = j.pool
  WHERE j.turn_id = turn_id);
END $$;
COMMENT ON FUNCTION turnmill.wait_reason IS
'Why a turn does not run: session_busy, pool_paused, pool_blocked, backoff, tenant_limit, create_rate, no_slot (ours, or E2B''s own
limit), no_worker; null when nothing is in its way, when it runs or has ended.';
