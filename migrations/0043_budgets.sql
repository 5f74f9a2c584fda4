-- Limits of what may be spent: a turn's, a tenant's a day, the fleet's a day; and the fleet's stop.
ALTER TABLE turnmill.pools ADD COLUMN turn_budget_usd numeric(12, 6) CHECK (turn_budget_usd > 0);
COMMENT ON COLUMN turnmill.pools.turn_budget_usd IS 'Most that one turn''s model calls may cost, over all its attempts; its own option max_budget_usd can only be less. null = no limit. Given to the agent as --max-budget-usd.';

ALTER TABLE turnmill.tenants ADD COLUMN budget_usd_per_day numeric(14, 6) CHECK (budget_usd_per_day >= 0);
COMMENT ON COLUMN turnmill.tenants.budget_usd_per_day IS 'What its charges of a UTC day may come to before none of its turns starts any more, until the next; null = no limit. What runs is not stopped.';

ALTER TABLE turnmill.fleet
  ADD COLUMN budget_usd_per_day numeric(14, 6) CHECK (budget_usd_per_day >= 0),
  ADD COLUMN stopped_at timestamptz,
  ADD COLUMN stopped_reason text,
  ADD CONSTRAINT stopped_for_a_reason CHECK ((stopped_at IS NULL) = (stopped_reason IS NULL));
COMMENT ON COLUMN turnmill.fleet.budget_usd_per_day IS 'The same for all turns together, also those without a tenant.';
COMMENT ON COLUMN turnmill.fleet.stopped_at IS 'Since when no turn starts; null = turns start. What runs goes on, and is taken over as ever.';
COMMENT ON COLUMN turnmill.fleet.stopped_reason IS 'Why, for people.';

CREATE FUNCTION turnmill.spent_today(tenant_id text) RETURNS numeric LANGUAGE sql STABLE AS $$
  SELECT coalesce((SELECT sum(d.usd) FROM turnmill.spend_days d
                   WHERE d.day = (statement_timestamp() AT TIME ZONE 'UTC')::date AND d.tenant_id = $1), 0)
       + coalesce((SELECT sum(c.usd) FROM turnmill.fresh_charges c
                   WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s)
                     AND c.day = (statement_timestamp() AT TIME ZONE 'UTC')::date AND c.tenant_id = $1), 0)
$$;
COMMENT ON FUNCTION turnmill.spent_today IS 'Dollars that were booked for a tenant on this UTC day, up to this moment; '''' = all turns without one.';

CREATE FUNCTION turnmill.fleet_spent_today() RETURNS numeric LANGUAGE sql STABLE AS $$
  SELECT (SELECT CASE WHEN s.day = (statement_timestamp() AT TIME ZONE 'UTC')::date THEN s.usd ELSE 0 END FROM turnmill.spend_state s)
       + coalesce((SELECT sum(c.usd) FROM turnmill.fresh_charges c
                   WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s)
                     AND c.day = (statement_timestamp() AT TIME ZONE 'UTC')::date), 0)
$$;
COMMENT ON FUNCTION turnmill.fleet_spent_today IS 'Dollars that were booked on this UTC day, up to this moment.';

CREATE FUNCTION turnmill.over_budget(tenant_id text) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = $1 AND t.budget_usd_per_day <= turnmill.spent_today($1))
      OR EXISTS (SELECT FROM turnmill.fleet f WHERE f.budget_usd_per_day <= turnmill.fleet_spent_today())
$$;
COMMENT ON FUNCTION turnmill.over_budget IS 'Whether the tenant''s budget of this day is spent, or the fleet''s.';

CREATE OR REPLACE FUNCTION turnmill.wait_reason(turn_id text) RETURNS text LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  RETURN (SELECT CASE
    WHEN j.state = 'waiting' THEN 'session_busy'
    WHEN j.state = 'leased' THEN NULL
    WHEN EXISTS (SELECT FROM turnmill.fleet f WHERE f.stopped_at IS NOT NULL) THEN 'fleet_stopped'
    WHEN p.state = 'paused' THEN 'pool_paused'
    WHEN p.state = 'blocked' THEN 'pool_blocked'
    WHEN turnmill.over_budget(j.tenant_id) THEN 'budget'
    WHEN j.run_at > clock_timestamp() THEN 'backoff'
    WHEN EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = j.tenant_id AND t.running >= t.running_max) THEN 'tenant_limit'
    -- Its session's sandbox is being paused.
    WHEN kept.state = 'pausing' THEN 'session_busy'
    WHEN kept.state IS NULL AND q.creates_after > clock_timestamp() THEN CASE q.held_for WHEN 'capacity' THEN 'no_slot' ELSE 'create_rate' END
    WHEN kept.state IS NULL AND NOT EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = j.pool AND s.state = 'free' AND NOT s.retire)
      THEN 'no_slot'
    WHEN kept.state IS NULL AND q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at) < 1 THEN 'create_rate'
    WHEN NOT EXISTS (
      SELECT FROM turnmill.workers w WHERE w.state = 'active' AND w.lease_until > clock_timestamp()
        AND w.turns_max > (SELECT count(*) FROM turnmill.jobs l WHERE l.worker_id = w.id AND l.state = 'leased'))
      THEN 'no_worker'
  END
  FROM turnmill.jobs j
  JOIN turnmill.pools p ON p.name = j.pool
  JOIN turnmill.pool_states q ON q.pool = j.pool
  LEFT JOIN LATERAL (
    SELECT s.state FROM turnmill.slots s WHERE s.session_id = j.session_id AND s.state IN ('warm', 'pausing')
    ORDER BY s.state LIMIT 1) kept ON true
  WHERE j.turn_id = turn_id);
END $$;
COMMENT ON FUNCTION turnmill.wait_reason IS
'Why a turn does not run: session_busy, fleet_stopped, pool_paused, pool_blocked, budget (its tenant''s day, or the fleet''s), backoff,
tenant_limit, create_rate, no_slot (ours, or E2B''s own limit), no_worker; null when nothing is in its way, when it runs or has ended.
turnmill.waits_until says when a budget or a backoff ends.';

CREATE FUNCTION turnmill.waits_until(turn_id text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  RETURN (SELECT CASE turnmill.wait_reason(turn_id)
    WHEN 'backoff' THEN j.run_at
    WHEN 'budget' THEN CASE WHEN NOT EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = j.tenant_id AND t.budget_usd_per_day = 0)
                             AND NOT EXISTS (SELECT FROM turnmill.fleet f WHERE f.budget_usd_per_day = 0)
      THEN (date_trunc('day', clock_timestamp() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC' END
  END
  FROM turnmill.jobs j WHERE j.turn_id = turn_id AND j.state = 'ready');
END $$;
COMMENT ON FUNCTION turnmill.waits_until IS
'When what a turn waits for ends by itself, where that is known: the next UTC midnight for a spent budget, the next try for a
backoff; else null. A budget of 0 never ends by itself.';

-- Whoever waited may start at once.
CREATE FUNCTION turnmill.check_budget(usd numeric) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF usd < 0 OR usd > 1000000 THEN
    RAISE EXCEPTION 'the budget is %', usd USING ERRCODE = 'TM400',
      HINT = 'Give a number of dollars from 0 to 1000000. Null leaves what is there; unlimited takes the budget away.';
  END IF;
END $$;
COMMENT ON FUNCTION turnmill.check_budget IS 'Raises TM400 unless it is an amount that can be a day''s budget, or null.';

CREATE FUNCTION turnmill.set_tenant_budget(id text, usd_per_day numeric) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  PERFORM turnmill.check_id('the tenant''s id', id, false);
  PERFORM turnmill.check_budget(usd_per_day);
  INSERT INTO turnmill.tenants (id) VALUES (id) ON CONFLICT DO NOTHING;
  UPDATE turnmill.tenants t SET budget_usd_per_day = usd_per_day WHERE t.id = id;
  PERFORM pg_notify('turnmill_ready', '');
END $$;
COMMENT ON FUNCTION turnmill.set_tenant_budget IS 'Sets what a tenant may spend on a UTC day, in dollars; null = no limit. Holds from the next claim on. TM400: no such amount.';

CREATE FUNCTION turnmill.set_fleet_budget(usd_per_day numeric) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  PERFORM turnmill.check_budget(usd_per_day);
  UPDATE turnmill.fleet f SET budget_usd_per_day = usd_per_day;
  PERFORM pg_notify('turnmill_ready', '');
END $$;
COMMENT ON FUNCTION turnmill.set_fleet_budget IS 'Sets what all turns together may spend on a UTC day, in dollars; null = no limit. Holds from the next claim on. TM400: no such amount.';

CREATE FUNCTION turnmill.stop_fleet(reason text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  IF reason IS NULL OR btrim(reason) = '' OR length(reason) > 1000 THEN
    RAISE EXCEPTION 'there is no reason' USING ERRCODE = 'TM400', HINT = 'Say why, in up to 1000 characters: whoever is on call reads it.';
  END IF;
  UPDATE turnmill.fleet f SET stopped_at = coalesce(f.stopped_at, clock_timestamp()), stopped_reason = reason;
END $$;
COMMENT ON FUNCTION turnmill.stop_fleet IS 'From the next claim on no turn starts, until turnmill.resume_fleet. What runs goes on to its end; cancel what must not. TM400: no reason.';

CREATE FUNCTION turnmill.resume_fleet() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE turnmill.fleet f SET stopped_at = NULL, stopped_reason = NULL;
  PERFORM pg_notify('turnmill_ready', '');
END $$;
COMMENT ON FUNCTION turnmill.resume_fleet IS 'Turns start again.';
