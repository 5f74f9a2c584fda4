-- In PL/pgSQL, which keeps its plans: as SQL they were planned anew with each call, and that was most of what wait_reason cost.
CREATE OR REPLACE FUNCTION turnmill.spent_today(tenant_id text) RETURNS numeric LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN coalesce((SELECT sum(d.usd) FROM turnmill.spend_days d
                   WHERE d.day = (statement_timestamp() AT TIME ZONE 'UTC')::date AND d.tenant_id = $1), 0)
       + coalesce((SELECT sum(c.usd) FROM turnmill.fresh_charges c
                   WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s)
                     AND c.day = (statement_timestamp() AT TIME ZONE 'UTC')::date AND c.tenant_id = $1), 0);
END $$;

CREATE OR REPLACE FUNCTION turnmill.fleet_spent_today() RETURNS numeric LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT CASE WHEN s.day = (statement_timestamp() AT TIME ZONE 'UTC')::date THEN s.usd ELSE 0 END FROM turnmill.spend_state s)
       + coalesce((SELECT sum(c.usd) FROM turnmill.fresh_charges c
                   WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s)
                     AND c.day = (statement_timestamp() AT TIME ZONE 'UTC')::date), 0);
END $$;

CREATE OR REPLACE FUNCTION turnmill.over_budget(tenant_id text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = $1 AND t.budget_usd_per_day <= turnmill.spent_today($1))
      OR EXISTS (SELECT FROM turnmill.fleet f WHERE f.budget_usd_per_day <= turnmill.fleet_spent_today());
END $$;
