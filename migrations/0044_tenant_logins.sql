-- SQL logins that see and write one tenant's sessions only. Who they are is told by session_user, which nobody can set.
CREATE TABLE turnmill.tenant_logins (
  login     regrole PRIMARY KEY,
  name      name NOT NULL,
  tenant_id text NOT NULL CHECK (tenant_id <> '' AND length(tenant_id) <= 255),
  bound_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE turnmill.tenant_logins IS 'Logins that are bound to a tenant; all others are to none. turnmill roles bind makes one.';
COMMENT ON COLUMN turnmill.tenant_logins.login IS 'The role that logs in. A renamed one stays bound.';
COMMENT ON COLUMN turnmill.tenant_logins.name IS 'Its name when it was bound: one that is dropped and made again is bound as well.';
COMMENT ON COLUMN turnmill.tenant_logins.tenant_id IS 'It sees and writes what is this tenant''s; all else looks as if it were not there.';
COMMENT ON COLUMN turnmill.tenant_logins.bound_at IS 'Since when.';

CREATE FUNCTION turnmill.bound_tenant() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT l.tenant_id FROM turnmill.tenant_logins l
          WHERE l.login = quote_ident(session_user)::regrole OR l.name = session_user
          ORDER BY l.login = quote_ident(session_user)::regrole DESC, l.bound_at DESC LIMIT 1);
END $$;
COMMENT ON FUNCTION turnmill.bound_tenant IS 'The tenant that this login is bound to; null: to none.';

CREATE FUNCTION turnmill.reaches_turn(turn_id text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE bound text := turnmill.bound_tenant();
BEGIN
  RETURN bound IS NULL OR EXISTS (
    SELECT FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = t.session_id WHERE t.id = turn_id AND s.tenant_id = bound);
END $$;
COMMENT ON FUNCTION turnmill.reaches_turn IS 'Whether this login may know of the turn.';

CREATE FUNCTION turnmill.check_reach_of_turn(turn_id text) RETURNS void LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  IF NOT turnmill.reaches_turn(turn_id) THEN
    RAISE EXCEPTION 'there is no turn "%"', turn_id USING ERRCODE = 'TM404', HINT = 'List turns with: turnmill turns.';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_reach_of_turn IS 'Raises what is raised for a turn that is not there, if this login may not know of it.';

CREATE FUNCTION turnmill.check_reach_of_session(session_id text) RETURNS void LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE bound text := turnmill.bound_tenant();
BEGIN
  IF bound IS NOT NULL AND NOT EXISTS (SELECT FROM turnmill.sessions s WHERE s.id = session_id AND s.tenant_id = bound) THEN
    RAISE EXCEPTION 'there is no session "%"', session_id USING ERRCODE = 'TM404',
      HINT = 'A session is made with its first turn: turnmill.enqueue_turn(…, session_id => ''…'').';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_reach_of_session IS 'Raises what is raised for a session that is not there, if this login may not know of it.';

CREATE FUNCTION turnmill.own_tenant(tenant_id text, priority integer DEFAULT 0) RETURNS text LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE bound text := turnmill.bound_tenant();
BEGIN
  IF bound IS NULL THEN
    RETURN tenant_id;
  END IF;
  IF tenant_id <> bound THEN
    RAISE EXCEPTION 'this login is bound to tenant "%"', bound USING ERRCODE = 'TM400', HINT = 'Leave tenant_id out.';
  END IF;
  IF priority > 0 THEN
    RAISE EXCEPTION 'priority is %', priority USING ERRCODE = 'TM400',
      HINT = 'A login that is bound to a tenant can''t go before others: give 0 or less.';
  END IF;
  RETURN bound;
END $$;
COMMENT ON FUNCTION turnmill.own_tenant IS 'The tenant for which this login enqueues; TM400: it may not for that one, or not so urgently.';

-- Of the project, but another tenant's: not its business, and no receipt for it.
CREATE OR REPLACE FUNCTION turnmill.replay(t turnmill.turns, hash bytea) RETURNS turnmill.receipt LANGUAGE plpgsql STABLE AS $$
BEGIN
  IF NOT turnmill.reaches_turn(t.id) THEN
    RAISE EXCEPTION 'idempotency key "%" is taken in this project', t.idempotency_key
      USING ERRCODE = 'TM409', HINT = 'Use another one: keys are a project''s, also where several tenants share it.';
  END IF;
  IF t.body_hash <> hash THEN
    RAISE EXCEPTION 'idempotency key "%" was used with another body, for turn "%"', t.idempotency_key, t.id
      USING ERRCODE = 'TM409', HINT = 'Use a new key for a new message; repeat a key only with the same arguments.';
  END IF;
  RETURN turnmill.receipt_of(t.id, true);
END $$;

-- What web apps call runs with the rights of the tables' owner, so that they need none on the tables; each begins by asking
-- whether this login may know of what it is about. The bodies are as they are now, but for that.
DO $$
DECLARE
  guarded record;
  before text;
  after text;
BEGIN
  FOR guarded IN SELECT name::regproc AS function, first, guard FROM (VALUES
    ('turnmill.enqueue_turn', E'\nBEGIN\n', 'tenant_id := turnmill.own_tenant(tenant_id, priority);'),
    ('turnmill.create_session', E'\nBEGIN\n', 'tenant_id := turnmill.own_tenant(tenant_id);'),
    -- By then it is there, whoever has made it.
    ('turnmill.session_for', E'\n  IF s.project_id <> project THEN\n', 'PERFORM turnmill.check_reach_of_session(s.id);'),
    ('turnmill.set_session', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_session(session_id);'),
    ('turnmill.fork_session', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_session(session_id);'),
    ('turnmill.cancel_turn', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.retry_turn', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.hold_waiting_turn', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.withdraw_turn', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.read_turn', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.artifact', E'\nBEGIN\n', 'PERFORM turnmill.check_reach_of_turn(turn_id);'),
    ('turnmill.wait_reason', E'\nBEGIN\n', 'IF NOT turnmill.reaches_turn(turn_id) THEN RETURN NULL; END IF;')
  ) AS f (name, first, guard) LOOP
    before := pg_get_functiondef(guarded.function);
    after := overlay(before PLACING
      CASE guarded.first WHEN E'\nBEGIN\n' THEN E'\nBEGIN\n  ' || guarded.guard || E'\n' ELSE E'\n  ' || guarded.guard || guarded.first END
      FROM strpos(before, guarded.first) FOR length(guarded.first));
    ASSERT strpos(before, guarded.first) > 0, format('%s is not as it was when this was written', guarded.function);
    EXECUTE after;
  END LOOP;
END $$;

DO $$
DECLARE
  public_function regprocedure;
BEGIN
  FOR public_function IN SELECT oid::regprocedure FROM pg_proc
    WHERE pronamespace = 'turnmill'::regnamespace AND proname IN ('enqueue_turn', 'create_session', 'set_session', 'fork_session',
      'cancel_turn', 'retry_turn', 'edit_turn', 'withdraw_turn', 'read_turn', 'artifact', 'wait_reason',
      -- and what the dashboard's web server asks for, which may change no slot and no worker itself
      'kill_sandbox', 'drain_worker', 'fit_slots_to_cap')
  LOOP
    EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, pg_temp', public_function);
  END LOOP;
END $$;

-- A web server exchanges secrets of webhooks, and can read none of them.
CREATE FUNCTION turnmill.rotate_webhook_secret(endpoint_id text, secret bytea, secret_key_id text, keep interval) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE until timestamptz;
BEGIN
  UPDATE turnmill.webhook_endpoints e
  SET old_secret = e.secret, old_secret_key_id = e.secret_key_id, secret = secret, secret_key_id = secret_key_id,
      old_secret_until = clock_timestamp() + keep
  WHERE e.id = endpoint_id RETURNING e.old_secret_until INTO until;
  RETURN until;
END $$;
COMMENT ON FUNCTION turnmill.rotate_webhook_secret IS
'Another secret signs from now on, sealed as its key id says; the one before does as well until the time that is returned. Null: no such endpoint.';

-- Whoever runs them acts with the owner's rights from here on, so they are nobody's until rights are given (src/store/rights.sql).
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA turnmill FROM PUBLIC;
