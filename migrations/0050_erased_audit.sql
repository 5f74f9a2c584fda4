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
