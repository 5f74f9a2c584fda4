-- What callers do before a turn begins: make its session, change their mind.
CREATE INDEX sessions_newest ON turnmill.sessions (created_at DESC, id DESC);
CREATE INDEX sessions_of_project ON turnmill.sessions (project_id, created_at DESC, id DESC);
CREATE INDEX sessions_of_tenant ON turnmill.sessions (tenant_id, created_at DESC, id DESC) WHERE tenant_id IS NOT NULL;

CREATE FUNCTION turnmill.create_session(
  session_id text DEFAULT NULL, project_id text DEFAULT NULL, user_id text DEFAULT NULL, tenant_id text DEFAULT NULL,
  pool text DEFAULT NULL, on_busy text DEFAULT NULL, OUT id text, OUT made boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE s turnmill.sessions;
BEGIN
  IF project_id IS NULL THEN
    RAISE EXCEPTION 'project_id is null' USING ERRCODE = 'TM400', HINT = 'Say which project the session belongs to.';
  END IF;
  IF on_busy NOT IN ('queue', 'reject', 'interrupt') THEN
    RAISE EXCEPTION 'on_busy is "%"', on_busy USING ERRCODE = 'TM400', HINT = 'It is queue, reject or interrupt.';
  END IF;
  made := session_id IS NULL OR NOT EXISTS (SELECT FROM turnmill.sessions x WHERE x.id = session_id);
  s := turnmill.session_for(session_id, project_id, pool, user_id, tenant_id);
  -- Not adopted silently: a session without a tenant is another's as long as nobody says otherwise.
  IF s.tenant_id IS DISTINCT FROM tenant_id AND tenant_id IS NOT NULL THEN
    RAISE EXCEPTION 'session "%" belongs to another tenant', s.id USING ERRCODE = 'TM409',
      HINT = 'A session stays with its tenant. Leave tenant_id out, or start a new session.';
  END IF;
  IF s.user_id <> user_id THEN
    RAISE EXCEPTION 'session "%" is another user''s', s.id USING ERRCODE = 'TM409',
      HINT = 'Leave user_id out, or start a new session.';
  END IF;
  IF on_busy IS NOT NULL AND s.on_busy <> on_busy THEN
    IF NOT made THEN
      RAISE EXCEPTION 'session "%" has on_busy "%"', s.id, s.on_busy USING ERRCODE = 'TM409',
        HINT = 'Change it with turnmill.set_session, or leave on_busy out.';
    END IF;
    UPDATE turnmill.sessions x SET on_busy = on_busy WHERE x.id = s.id;
  END IF;
  id := s.id;
END $$;
COMMENT ON FUNCTION turnmill.create_session IS
'Makes a session before its first turn; one that is there already and is the same is left as it is (made = false).
enqueue_turn makes sessions on the way, so nobody has to. TM400 bad argument, TM404 no such pool, TM409 it is another one''s.';

-- The job's row is locked first: claims skip it meanwhile, and whoever claims after reads what is written here.
CREATE FUNCTION turnmill.hold_waiting_turn(turn_id text) RETURNS turnmill.turns LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE t turnmill.turns;
BEGIN
  PERFORM FROM turnmill.jobs j WHERE j.turn_id = turn_id AND j.state IN ('waiting', 'ready') FOR NO KEY UPDATE;
  SELECT x.* INTO t FROM turnmill.turns x WHERE x.id = turn_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
  IF t.completed_at IS NOT NULL THEN
    RAISE EXCEPTION 'turn "%" is % and can no longer change', turn_id, t.status USING ERRCODE = 'TM409',
      HINT = 'Enqueue a new turn instead.';
  END IF;
  IF t.started_at IS NOT NULL THEN
    RAISE EXCEPTION 'turn "%" has started', turn_id USING ERRCODE = 'TM409',
      HINT = 'Cancel it and enqueue a new one: turnmill.cancel_turn(id).';
  END IF;
  RETURN t;
END $$;
COMMENT ON FUNCTION turnmill.hold_waiting_turn IS 'The turn, kept from being claimed until the caller commits; TM404 no such turn, TM409 it has started or ended.';

CREATE FUNCTION turnmill.edit_turn(turn_id text, prompt text DEFAULT NULL, options jsonb DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  t turnmill.turns := turnmill.hold_waiting_turn(turn_id);
  p turnmill.pools;
BEGIN
  SELECT x.* INTO p FROM turnmill.pools x JOIN turnmill.sessions s ON s.pool = x.name WHERE s.id = t.session_id;
  PERFORM turnmill.check_turn(coalesce(prompt, t.prompt), coalesce(options, t.options), p);
  UPDATE turnmill.turns x SET prompt = coalesce(prompt, x.prompt), options = coalesce(options, x.options) WHERE x.id = turn_id;
END $$;
COMMENT ON FUNCTION turnmill.edit_turn IS
'Changes the message or the options of a turn that has not started, in the caller''s own transaction; null leaves what is there.
Its idempotency key still stands for the enqueue as it was. TM400 bad argument, TM404 no such turn, TM409 it has started or ended.';

CREATE FUNCTION turnmill.withdraw_turn(turn_id text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  IF EXISTS (SELECT FROM turnmill.turns t WHERE t.id = turn_id AND t.status = 'cancelled' AND t.started_at IS NULL) THEN
    RETURN;
  END IF;
  PERFORM turnmill.hold_waiting_turn(turn_id);
  PERFORM turnmill.cancel_turn(turn_id, 'withdrawn before it started');
END $$;
COMMENT ON FUNCTION turnmill.withdraw_turn IS
'Cancels a turn only if it has not started: nothing of it was ever run. Once more is no error. TM404 no such turn, TM409 it has
started or ended.';
