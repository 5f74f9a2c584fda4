-- What is below shows what is above it.
CREATE POLICY of_turn ON turnmill.artifacts
  USING ((SELECT turnmill.bound_tenant()) IS NULL OR EXISTS (SELECT FROM turnmill.turns t WHERE t.id = turn_id));
ALTER TABLE turnmill.artifacts ENABLE ROW LEVEL SECURITY;
