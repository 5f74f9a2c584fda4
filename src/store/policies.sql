-- Who serves all tenants sees all rows of the table. Made once: it takes a lock that nobody who works likes to wait behind.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_policies WHERE schemaname = 'turnmill' AND tablename = '{table}' AND policyname = 'of_workers') THEN
    CREATE POLICY of_workers ON turnmill.{table} TO turnmill_worker, turnmill_web USING (true);
  END IF;
  IF NOT EXISTS (SELECT FROM pg_policies WHERE schemaname = 'turnmill' AND tablename = '{table}' AND policyname = 'of_viewers') THEN
    CREATE POLICY of_viewers ON turnmill.{table} FOR SELECT TO turnmill_viewer USING (true);
  END IF;
END $$;
