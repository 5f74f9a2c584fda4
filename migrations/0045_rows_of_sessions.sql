-- Rows of other tenants are not there for a login that is bound to one. The owner of the tables is not looked at; other roles of
-- Turnmill's have policies of their own, which say true and so cost nothing (src/store/policies.sql).
--
-- A table a migration, here and in those that follow: each takes a lock that workers have to wait for, and of two such locks in one
-- transaction they may want the other one first.

-- In a subquery, so that it is asked once a statement and not once a row.
CREATE POLICY own_tenant ON turnmill.sessions
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR tenant_id = (SELECT turnmill.bound_tenant()));
ALTER TABLE turnmill.sessions ENABLE ROW LEVEL SECURITY;

-- With the rights of who looks, not of who has made it.
ALTER VIEW turnmill.answers SET (security_invoker = true);
ALTER VIEW turnmill.spend SET (security_invoker = true);
ALTER VIEW turnmill.ledger SET (security_invoker = true);
