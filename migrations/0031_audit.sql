-- Who pressed what, and why. Written in the transaction that does it: neither is there without the other.
CREATE TABLE turnmill.audit (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor    text NOT NULL,
  token_id text,
  act      text NOT NULL CHECK (act ~ '^[a-z_]+$'),
  kind     text NOT NULL,
  subject  text NOT NULL,
  reason   text NOT NULL CHECK (reason <> ''),
  detail   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object')
);
CREATE INDEX audit_of_subject ON turnmill.audit (kind, subject, id DESC);
COMMENT ON TABLE turnmill.audit IS 'What people did through the dashboard. Never changed, never deleted by Turnmill.';
COMMENT ON COLUMN turnmill.audit.id IS 'Number of the entry; newer ones have higher ones.';
COMMENT ON COLUMN turnmill.audit.at IS 'When.';
COMMENT ON COLUMN turnmill.audit.actor IS 'Who: the name of the token, or dev on a server without tokens.';
COMMENT ON COLUMN turnmill.audit.token_id IS 'The token that was used; null on a server without tokens.';
COMMENT ON COLUMN turnmill.audit.act IS 'What: cancel, retry and so on.';
COMMENT ON COLUMN turnmill.audit.kind IS 'To what: turn, session, pool, worker, sandbox, tenant.';
COMMENT ON COLUMN turnmill.audit.subject IS 'Its id.';
COMMENT ON COLUMN turnmill.audit.reason IS 'Why, in the words of who did it.';
COMMENT ON COLUMN turnmill.audit.detail IS 'What the act changed or made, where that is not the act itself.';

CREATE FUNCTION turnmill.refuse_change_of_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit is only ever added to' USING ERRCODE = 'TM409',
    HINT = 'Rows older than your retention are removed by whoever owns the table, with the trigger disabled.';
END $$;
CREATE TRIGGER audit_is_final BEFORE UPDATE OR DELETE ON turnmill.audit
  FOR EACH STATEMENT EXECUTE FUNCTION turnmill.refuse_change_of_audit();
