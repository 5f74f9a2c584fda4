-- An entry of the audit can be erased: what it was about and why. When, by whom and what was done stay, and nothing is changed into
-- something else.
CREATE FUNCTION turnmill.refuse_change_of_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.id, NEW.at, NEW.actor, NEW.token_id, NEW.act, NEW.kind, NEW.subject, NEW.reason, NEW.detail)
     IS DISTINCT FROM (OLD.id, OLD.at, OLD.actor, OLD.token_id, OLD.act, OLD.kind, 'erased', 'erased', '{}'::jsonb) THEN
    RAISE EXCEPTION 'the audit is only ever added to' USING ERRCODE = 'TM409',
      HINT = 'What names somebody who is to be forgotten is erased by: turnmill erase.';
  END IF;
  RETURN NEW;
END $$;
COMMENT ON FUNCTION turnmill.refuse_change_of_entry IS 'Lets an entry of the audit be erased, and no more.';
DROP TRIGGER audit_is_final ON turnmill.audit;
CREATE TRIGGER audit_is_kept BEFORE DELETE OR TRUNCATE ON turnmill.audit
  FOR EACH STATEMENT EXECUTE FUNCTION turnmill.refuse_change_of_audit();
CREATE TRIGGER audit_is_final BEFORE UPDATE ON turnmill.audit
  FOR EACH ROW EXECUTE FUNCTION turnmill.refuse_change_of_entry();
COMMENT ON TABLE turnmill.audit IS 'What people did through the dashboard. Never changed, never deleted by Turnmill; erased entries say so (turnmill erase).';
CREATE INDEX audit_of_named_turn ON turnmill.audit ((coalesce(detail ->> 'made', detail ->> 'turn'))) WHERE kind IN ('turn', 'sandbox');

CREATE FUNCTION turnmill.needs_origin(session_id text) RETURNS boolean LANGUAGE sql STABLE AS $$
  WITH origin AS (
    SELECT s.forked_from AS id FROM turnmill.sessions s WHERE s.id = needs_origin.session_id AND s.forked_from IS NOT NULL
    UNION SELECT a.id FROM turnmill.sessions s, turnmill.ancestors(s.forked_from) a
    WHERE s.id = needs_origin.session_id AND s.forked_from IS NOT NULL)
  SELECT (EXISTS (SELECT FROM origin JOIN turnmill.transcripts x ON x.turn_id = origin.id WHERE x.data IS NOT NULL)
      AND NOT EXISTS (SELECT FROM turnmill.transcripts x WHERE x.session_id = needs_origin.session_id AND x.data IS NOT NULL))
    OR (EXISTS (SELECT FROM origin JOIN turnmill.workspaces w ON w.turn_id = origin.id WHERE w.kind IN ('saved', 'carried'))
      AND NOT EXISTS (SELECT FROM turnmill.workspaces w WHERE w.session_id = needs_origin.session_id
                      AND w.kind IN ('saved', 'empty', 'carried')))
$$;
COMMENT ON FUNCTION turnmill.needs_origin IS
'Whether a fork would lose the conversation or files of the session that it was made from: it has saved none of its own yet.';
