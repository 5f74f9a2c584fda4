-- Which state a turn begins from: that of the turn before it, of the turn before the one that it retries, or of the turn
-- that its session was forked at.
ALTER TABLE turnmill.sessions ADD COLUMN forked_from text;
COMMENT ON COLUMN turnmill.sessions.forked_from IS 'The turn of another session after which this one begins, in its place; null = from nothing.';
CREATE INDEX sessions_forked ON turnmill.sessions (forked_from) WHERE forked_from IS NOT NULL;

CREATE FUNCTION turnmill.ancestors(turn_id text, most integer DEFAULT 100)
RETURNS TABLE (n integer, id text, ordinal integer, started boolean) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
  at turnmill.turns;
  again text;
BEGIN
  SELECT t.* INTO at FROM turnmill.turns t WHERE t.id = turn_id;
  n := 0;
  WHILE n < most LOOP
    -- A retry begins where the turn that it repeats began.
    again := at.retry_of;
    WHILE again IS NOT NULL LOOP
      SELECT t.* INTO at FROM turnmill.turns t WHERE t.id = again;
      again := at.retry_of;
    END LOOP;
    SELECT t.* INTO at FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = at.session_id
    WHERE (at.ordinal > 1 AND t.session_id = s.id AND t.ordinal = at.ordinal - 1) OR (at.ordinal = 1 AND t.id = s.forked_from);
    EXIT WHEN NOT FOUND;
    n := n + 1; id := at.id; ordinal := at.ordinal; started := at.attempt > 0;
    RETURN NEXT;
  END LOOP;
END $$;
COMMENT ON FUNCTION turnmill.ancestors IS
'The turns whose state this one continues, nearest first, at most so many; through retries and forks. started: its agent was.';

CREATE FUNCTION turnmill.fork_session(session_id text, new_session_id text DEFAULT NULL, at_turn text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  s turnmill.sessions;
  t turnmill.turns;
  made text;
BEGIN
  PERFORM turnmill.check_id('new_session_id', new_session_id);
  SELECT x.* INTO s FROM turnmill.sessions x WHERE x.id = session_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no session "%"', session_id USING ERRCODE = 'TM404',
      HINT = 'A session is made with its first turn: turnmill.enqueue_turn(…, session_id => ''…'').';
  END IF;
  SELECT x.* INTO t FROM turnmill.turns x
  WHERE x.session_id = s.id AND (x.id = at_turn OR (at_turn IS NULL AND x.completed_at IS NOT NULL))
  ORDER BY x.ordinal DESC LIMIT 1;
  IF NOT FOUND THEN
    RAISE EXCEPTION '%', CASE WHEN at_turn IS NULL THEN format('session "%s" has no turn that has ended', session_id)
        ELSE format('there is no turn "%s" in session "%s"', at_turn, session_id) END
      USING ERRCODE = CASE WHEN at_turn IS NULL THEN 'TM409' ELSE 'TM404' END,
      HINT = 'Fork a session at one of its turns that has ended; without at_turn at the last of them.';
  END IF;
  IF t.completed_at IS NULL THEN
    RAISE EXCEPTION 'turn "%" is % and nothing can be forked from it yet', t.id, t.status USING ERRCODE = 'TM409',
      HINT = 'Wait until it has ended, or fork at an earlier turn.';
  END IF;
  INSERT INTO turnmill.sessions AS x (id, project_id, user_id, tenant_id, pool, on_busy, forked_from)
  VALUES (coalesce(new_session_id, turnmill.new_id('sess')), s.project_id, s.user_id, s.tenant_id, s.pool, s.on_busy, t.id)
  ON CONFLICT DO NOTHING RETURNING x.id INTO made;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is already a session "%"', new_session_id USING ERRCODE = 'TM409',
      HINT = 'Give an id that is new, or leave it out.';
  END IF;
  RETURN made;
END $$;
COMMENT ON FUNCTION turnmill.fork_session IS
'Makes a session that begins with the conversation and the files of another one as they were after one of its turns (the last that
has ended, unless at_turn says which), and goes its own way from there. Returns its id. TM404: no such session or turn. TM409: the
turn has not ended, or the new id is taken.
Example: SELECT turnmill.fork_session(''sess_42'', at_turn => ''turn_7'');';

COMMENT ON FUNCTION turnmill.retry_turn IS
'Enqueues an ended turn''s message again, as a new turn at the end of its session; its retry_of names the old one, which stays
as it is. It begins with the conversation and the files from before the old one. TM404: no such turn. TM409: it has not ended.
Returns a receipt, as enqueue_turn does.';
