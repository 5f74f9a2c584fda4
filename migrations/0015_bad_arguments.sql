-- Bad arguments are refused as TM400 with what to do, not by a constraint's name.

-- What callers name things by.
CREATE FUNCTION turnmill.check_id(what text, value text, may_be_null boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF value = '' OR length(value) > 255 OR (value IS NULL AND NOT may_be_null) THEN
    RAISE EXCEPTION '% %', what, CASE WHEN value IS NULL THEN 'is null' WHEN value = '' THEN 'is empty'
        ELSE format('has %s characters, more than the limit of 255', length(value)) END
      USING ERRCODE = 'TM400',
      HINT = format('Give a text of 1 to 255 characters%s.', CASE WHEN may_be_null THEN ', or leave it out' ELSE '' END);
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_id IS 'Raises TM400 unless it is a text of 1 to 255 characters, or null where that means something.';

CREATE OR REPLACE FUNCTION turnmill.check_turn(prompt text, options jsonb, pool turnmill.pools) RETURNS void
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
  IF jsonb_typeof(options) IS DISTINCT FROM 'object' THEN
    RAISE EXCEPTION 'options is not a JSON object' USING ERRCODE = 'TM400',
      HINT = 'For example: options => ''{"model": "claude-sonnet-4-5"}''; leave it out for none.';
  END IF;
  SELECT k INTO stray FROM jsonb_object_keys(options) k WHERE k <> ALL (pool.options_allowed) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'option "%" is not allowed in pool "%"', stray, pool.name USING ERRCODE = 'TM400',
      HINT = format('Allowed are: %s.', array_to_string(pool.options_allowed, ', '));
  END IF;
  SELECT key INTO stray FROM jsonb_each(options) WHERE jsonb_typeof(value) NOT IN ('string', 'number') LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'option "%" is neither a text nor a number', stray USING ERRCODE = 'TM400',
      HINT = format('Give it as {"%s": "…"}; leave the option out for none.', stray);
  END IF;
  -- The agent would fail with them, in a sandbox that was made for nothing.
  IF options ->> 'max_turns' !~ '^[0-9]+$' THEN
    RAISE EXCEPTION 'option "max_turns" is "%"', options ->> 'max_turns' USING ERRCODE = 'TM400',
      HINT = 'Give a whole number, as {"max_turns": 20}.';
  END IF;
  IF options ->> 'max_budget_usd' !~ '^([0-9]+\.?[0-9]*|\.[0-9]+)$' THEN
    RAISE EXCEPTION 'option "max_budget_usd" is "%"', options ->> 'max_budget_usd' USING ERRCODE = 'TM400',
      HINT = 'Give a number of dollars, as {"max_budget_usd": 2.5}.';
  END IF;
END $$;

CREATE OR REPLACE FUNCTION turnmill.session_for(
  session text, project text, pool_name text, user_id text, tenant_id text
) RETURNS turnmill.sessions LANGUAGE plpgsql AS $$
DECLARE s turnmill.sessions;
BEGIN
  PERFORM turnmill.check_id('project_id', project);
  PERFORM turnmill.check_id('session_id', session);
  PERFORM turnmill.check_id('tenant_id', tenant_id);
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

-- What enqueue_turn writes as it was given. Called only for what a constraint would refuse, so a good turn pays nothing.
CREATE FUNCTION turnmill.refuse_bad_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM turnmill.check_id('turn_id', NEW.id, false);
  PERFORM turnmill.check_id('idempotency_key', NEW.idempotency_key);
  RETURN NEW;
END $$;
CREATE TRIGGER turns_have_good_ids BEFORE INSERT ON turnmill.turns
  FOR EACH ROW WHEN (NEW.id = '' OR length(NEW.id) > 255 OR NEW.idempotency_key = '' OR length(NEW.idempotency_key) > 255)
  EXECUTE FUNCTION turnmill.refuse_bad_turn();

CREATE FUNCTION turnmill.refuse_null_priority() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'priority is null' USING ERRCODE = 'TM400', HINT = 'Give a whole number, higher first; leave it out for 0.';
END $$;
CREATE TRIGGER jobs_have_a_priority BEFORE INSERT ON turnmill.jobs
  FOR EACH ROW WHEN (NEW.priority IS NULL) EXECUTE FUNCTION turnmill.refuse_null_priority();

CREATE OR REPLACE FUNCTION turnmill.set_session(session_id text, on_busy text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  IF on_busy IS NULL OR on_busy NOT IN ('queue', 'reject', 'interrupt') THEN
    RAISE EXCEPTION 'on_busy is %', coalesce('"' || on_busy || '"', 'null') USING ERRCODE = 'TM400',
      HINT = 'It is queue, reject or interrupt.';
  END IF;
  UPDATE turnmill.sessions s SET on_busy = on_busy WHERE s.id = session_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no session "%"', session_id USING ERRCODE = 'TM404',
      HINT = 'A session is made with its first turn: turnmill.enqueue_turn(…, session_id => ''…'').';
  END IF;
END $$;

CREATE OR REPLACE FUNCTION turnmill.set_tenant(id text, weight double precision DEFAULT NULL, running_max integer DEFAULT NULL, unlimited boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  PERFORM turnmill.check_id('the tenant''s id', id, false);
  -- NaN is above every number.
  IF weight <= 0 OR weight > 1000000 THEN
    RAISE EXCEPTION 'weight is %', weight USING ERRCODE = 'TM400',
      HINT = 'Give a number above 0, up to 1000000: all other tenants have 1. Null leaves what is there.';
  END IF;
  IF running_max < 0 THEN
    RAISE EXCEPTION 'running_max is %', running_max USING ERRCODE = 'TM400',
      HINT = 'Give a whole number from 0. Null leaves what is there; unlimited => true takes the limit away.';
  END IF;
  INSERT INTO turnmill.tenants (id) VALUES (id) ON CONFLICT DO NOTHING;
  UPDATE turnmill.tenants t SET
    weight = coalesce(weight, t.weight),
    running_max = CASE WHEN unlimited THEN NULL ELSE coalesce(running_max, t.running_max) END
  WHERE t.id = id;
  PERFORM turnmill.recount_tenant(id);
END $$;
