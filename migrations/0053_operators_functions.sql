-- What operators set on the dashboard, a web server may set by these functions only: it writes no other column of these tables.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY[
    'set_tenant(text, double precision, integer, boolean)', 'set_tenant_budget(text, numeric)', 'set_fleet_budget(numeric)',
    'stop_fleet(text)', 'resume_fleet()'] LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION turnmill.%s FROM PUBLIC', name);
    EXECUTE format('ALTER FUNCTION turnmill.%s SECURITY DEFINER SET search_path = pg_catalog, pg_temp', name);
  END LOOP;
END $$;
