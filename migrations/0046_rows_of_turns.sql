-- What is below shows what is above it.
CREATE POLICY of_session ON turnmill.turns
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.sessions s WHERE s.id = session_id));
ALTER TABLE turnmill.turns ENABLE ROW LEVEL SECURITY;
