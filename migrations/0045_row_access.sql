-- Rows of other tenants are not there for a login that is bound to one. The owner of the tables is not looked at; other roles of
-- Turnmill's have policies of their own, which say true and so cost nothing (src/store/rights.sql).
ALTER TABLE turnmill.sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE turnmill.turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE turnmill.blocks ENABLE ROW LEVEL SECURITY;
ALTER TABLE turnmill.attachments ENABLE ROW LEVEL SECURITY;
ALTER TABLE turnmill.artifacts ENABLE ROW LEVEL SECURITY;

-- In a subquery, so that it is asked once a statement and not once a row.
CREATE POLICY own_tenant ON turnmill.sessions
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR tenant_id = (SELECT turnmill.bound_tenant()));
-- What is below shows what is above it.
CREATE POLICY of_session ON turnmill.turns
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.sessions s WHERE s.id = session_id));
CREATE POLICY of_turn ON turnmill.blocks
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.turns t WHERE t.id = turn_id));
CREATE POLICY of_turn ON turnmill.attachments
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.turns t WHERE t.id = turn_id));
CREATE POLICY of_turn ON turnmill.artifacts
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.turns t WHERE t.id = turn_id));

-- With the rights of who looks, not of who has made it.
ALTER VIEW turnmill.answers SET (security_invoker = true);
ALTER VIEW turnmill.spend SET (security_invoker = true);
ALTER VIEW turnmill.ledger SET (security_invoker = true);
