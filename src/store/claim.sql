-- Takes up to $2 jobs for worker $1, each with a new epoch: first those whose worker is gone, then
-- ready ones together with a free slot of their pool, or with the one in which their session's sandbox is kept warm.
-- One statement, so that job and slot can't disagree.
--
-- AS MATERIALIZED: a LIMIT under a nested loop may be evaluated again and claim more than it says.
-- FOR NO KEY UPDATE: nothing references these rows by key, so no MultiXact appears.
-- SKIP LOCKED, everywhere and for turns too: no row that somebody sits on holds up the others.
WITH RECURSIVE orphan AS MATERIALIZED (
    SELECT j.turn_id, j.slot_id, j.queued_at,
           -- Processes that died within a lease of taking it. In order they give it back, and after an outage they beat again.
           (SELECT count(*) FROM turnmill.attempts a JOIN turnmill.workers w ON w.id = a.worker_id
            WHERE a.turn_id = j.turn_id AND w.released_at IS NULL
              AND (a.ended IS NULL OR a.ended = 'lost') AND w.heartbeat_at < coalesce(a.ended_at, clock_timestamp())
              AND w.lease_until <= clock_timestamp() AND a.taken_at > w.heartbeat_at - (w.lease_until - w.heartbeat_at)) AS crashes
    FROM turnmill.jobs j JOIN turnmill.turns t ON t.id = j.turn_id JOIN turnmill.slots s ON s.id = j.slot_id
    WHERE j.state = 'leased'
      -- The database compares its own clock; a lease that was renewed in this moment costs the
      -- slower of the two one refused write.
      AND NOT EXISTS (SELECT FROM turnmill.workers w
                      WHERE w.id = j.worker_id AND w.lease_until > clock_timestamp())
    ORDER BY j.queued_at
    LIMIT $2
    FOR NO KEY UPDATE OF j, t, s SKIP LOCKED
),
-- One that has already been there when two workers died is taken alone: so that it, if it is the murderer, takes no
-- neighbour with it.
adopted AS MATERIALIZED (
    SELECT turn_id, slot_id, crashes, nextval('turnmill.epochs') AS epoch
    FROM (SELECT *, row_number() OVER (PARTITION BY crashes >= 2 ORDER BY queued_at) AS nth FROM orphan) o
    WHERE crashes < 2 OR (nth = 1 AND NOT EXISTS (
        SELECT FROM turnmill.jobs j JOIN turnmill.attempts a ON a.epoch = j.epoch
        WHERE j.state = 'leased' AND j.worker_id = $1 AND j.crashes >= 2 AND a.taken_at > clock_timestamp() - interval '1 minute'))
),
-- The create-rate buckets of pools that have one. Locked, so that no token is spent twice.
bucket AS MATERIALIZED (
    SELECT q.pool, least(p.create_burst, q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at)) AS tokens
    FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name
    WHERE p.state = 'active' AND p.create_rate IS NOT NULL AND q.creates_after <= clock_timestamp()
      AND q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at) >= 1
      AND EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = p.name AND s.state = 'free' AND NOT s.retire)
      AND EXISTS (SELECT FROM turnmill.jobs r WHERE r.pool = p.name AND r.state = 'ready' AND r.run_at <= clock_timestamp())
    FOR NO KEY UPDATE OF q SKIP LOCKED
),
day AS MATERIALIZED (
    SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS today
),
-- What was booked today and is in no roll-up yet. Asked for only where there is a budget.
fresh AS MATERIALIZED (
    SELECT c.tenant_id, sum(c.usd) AS usd FROM turnmill.fresh_charges c
    WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s) AND c.day = (SELECT today FROM day)
    GROUP BY c.tenant_id
),
-- Whether turns start at all. One that was claimed goes on, whatever is spent.
fleet AS MATERIALIZED (
    SELECT f.stopped_at IS NULL AND (f.budget_usd_per_day IS NULL OR f.budget_usd_per_day
               > (SELECT CASE WHEN s.day = (SELECT today FROM day) THEN s.usd ELSE 0 END FROM turnmill.spend_state s)
               + (SELECT coalesce(sum(usd), 0) FROM fresh)) AS may_start
    FROM turnmill.fleet f
),
-- Pools in which something may start, and how much: no more than free slots, so that a full pool hides nobody's work.
-- coming: slots that will be free in a moment. creates: a slot may be what is missing, and not the leave to create.
open AS MATERIALIZED (
    SELECT o.* FROM (
        SELECT p.name AS pool,
               (SELECT count(*) FROM (
                   SELECT FROM turnmill.slots s WHERE s.pool = p.name AND s.state = 'free' AND NOT s.retire
                   LIMIT CASE WHEN b.pool IS NOT NULL THEN least(floor(b.tokens)::bigint, $2)
                              WHEN p.create_rate IS NULL AND q.creates_after <= clock_timestamp() THEN $2
                              ELSE 0 END) free) AS room,
               (SELECT count(*) FROM (SELECT FROM turnmill.slots s WHERE s.pool = p.name AND s.state = 'free' AND NOT s.retire LIMIT 1000) free) AS free,
               (b.pool IS NOT NULL OR (p.create_rate IS NULL AND q.creates_after <= clock_timestamp())) AS creates,
               EXISTS (SELECT FROM turnmill.slots s WHERE s.pool = p.name AND s.state = 'warm') AS warm,
               (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state IN ('pausing', 'releasing') AND NOT s.retire) AS coming
        FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name LEFT JOIN bucket b ON b.pool = p.name
        WHERE p.state = 'active' AND (SELECT may_start FROM fleet)
    ) o
    WHERE o.room > 0 OR o.warm
),
-- Each tenant with ready work, by jumps along the index: nobody's backlog is walked through.
head AS (
    SELECT o.pool, first.tenant_id FROM open o CROSS JOIN LATERAL (
        SELECT r.tenant_id FROM turnmill.jobs r WHERE r.pool = o.pool AND r.state = 'ready' ORDER BY r.tenant_id LIMIT 1) first
    UNION ALL
    SELECT h.pool, next.tenant_id FROM head h CROSS JOIN LATERAL (
        SELECT r.tenant_id FROM turnmill.jobs r
        WHERE r.pool = h.pool AND r.state = 'ready' AND r.tenant_id > h.tenant_id ORDER BY r.tenant_id LIMIT 1) next
),
-- Of those, the ones that have spent what they may today. What is booked is seen at once: more than the budget is spent
-- only by turns that run when it is reached.
over_budget AS MATERIALIZED (
    SELECT t.id FROM turnmill.tenants t LEFT JOIN fresh c ON c.tenant_id = t.id
    WHERE t.budget_usd_per_day IS NOT NULL AND t.id IN (SELECT h.tenant_id FROM head h)
      AND t.budget_usd_per_day <= coalesce(c.usd, 0) + (SELECT coalesce(sum(d.usd), 0) FROM turnmill.spend_days d
                                                        WHERE d.day = (SELECT today FROM day) AND d.tenant_id = t.id)
),
-- What each may start. Rows of tenants with a limit are locked, so that the limit is exact.
limited AS MATERIALIZED (
    SELECT t.id, t.running_max - t.running AS room
    FROM turnmill.tenants t
    WHERE t.running < t.running_max AND EXISTS (
        SELECT FROM head h JOIN turnmill.jobs r ON r.pool = h.pool AND r.tenant_id = h.tenant_id
        WHERE h.tenant_id = t.id AND r.state = 'ready' AND r.run_at <= clock_timestamp())
    FOR NO KEY UPDATE OF t SKIP LOCKED
),
-- The first few of each, by what its tenant would then have running for its weight. A few more than wanted: some may
-- be locked, and limits are applied to what could be.
candidate AS MATERIALIZED (
    SELECT h.pool, h.tenant_id, r.turn_id, r.priority, r.queued_at, kept.slot_id AS warm_slot,
           (coalesce(n.running, 0) + r.nth) / coalesce(t.weight, 1) AS share
    FROM head h
    LEFT JOIN turnmill.tenants t ON t.id = h.tenant_id
    LEFT JOIN limited l ON l.id = h.tenant_id
    LEFT JOIN (SELECT j.tenant_id, count(*) AS running FROM turnmill.jobs j
               WHERE j.state = 'leased' GROUP BY j.tenant_id) n ON n.tenant_id = h.tenant_id
    CROSS JOIN LATERAL (
        SELECT r.*, row_number() OVER (ORDER BY r.priority DESC, r.queued_at, r.turn_id) AS nth FROM (
            SELECT r.turn_id, r.session_id, r.priority, r.queued_at FROM turnmill.jobs r
            WHERE r.pool = h.pool AND r.tenant_id = h.tenant_id AND r.state = 'ready' AND r.run_at <= clock_timestamp()
            ORDER BY r.priority DESC, r.queued_at, r.turn_id
            LIMIT $2 + 32) r
    ) r
    LEFT JOIN LATERAL (
        SELECT s.id AS slot_id, s.state FROM turnmill.slots s
        WHERE s.session_id = r.session_id AND (s.state = 'pausing' OR (s.state = 'warm' AND NOT s.retire AND s.due_at > clock_timestamp()))
        ORDER BY s.state LIMIT 1) kept ON true
    WHERE (t.running_max IS NULL OR l.id IS NOT NULL) AND NOT EXISTS (SELECT FROM over_budget b WHERE b.id = h.tenant_id)
      -- Its sandbox is on its way to where it can be taken up again.
      AND kept.state IS DISTINCT FROM 'pausing'
),
-- nth: its place among those that need a free slot, or how many of these come before it. Who has a warm sandbox takes
-- nobody's place but that of somebody who is before it and lacks a slot: then the sandbox is to go (evict_warm).
ranked AS MATERIALIZED (
    SELECT c.*, count(*) FILTER (WHERE c.warm_slot IS NULL)
                OVER (PARTITION BY c.pool ORDER BY c.priority DESC, c.share, c.queued_at, c.turn_id) AS nth
    FROM candidate c
),
unlocked_cold AS MATERIALIZED (
    SELECT j.*
    FROM open o
    CROSS JOIN LATERAL (
        SELECT j.turn_id, j.session_id, j.pool, c.tenant_id, c.priority, c.share, c.queued_at, c.warm_slot
        FROM ranked c JOIN turnmill.jobs j ON j.turn_id = c.turn_id JOIN turnmill.turns t ON t.id = c.turn_id
        WHERE c.pool = o.pool AND c.warm_slot IS NULL AND c.nth <= o.room + 64 AND j.state = 'ready'
        ORDER BY c.nth
        -- Where a tenant's limit will take some away, others are needed in their place.
        LIMIT o.room + CASE WHEN o.room > 0 AND EXISTS (SELECT FROM limited) THEN 32 ELSE 0 END
        FOR NO KEY UPDATE OF j, t SKIP LOCKED
    ) j
),
unlocked_warm AS MATERIALIZED (
    SELECT j.turn_id, j.session_id, j.pool, c.tenant_id, c.priority, c.share, c.queued_at, s.id AS warm_slot
    FROM ranked c JOIN open o ON o.pool = c.pool
    JOIN turnmill.jobs j ON j.turn_id = c.turn_id JOIN turnmill.turns t ON t.id = c.turn_id JOIN turnmill.slots s ON s.id = c.warm_slot
    WHERE (NOT o.creates OR c.nth <= o.free + o.coming) AND j.state = 'ready'
      AND s.state = 'warm' AND NOT s.retire AND s.session_id = j.session_id
    ORDER BY c.priority DESC, c.share, c.queued_at, c.turn_id
    LIMIT $2
    FOR NO KEY UPDATE OF j, t, s SKIP LOCKED
),
unlocked AS (
    SELECT * FROM unlocked_cold UNION ALL SELECT * FROM unlocked_warm
),
wanted AS MATERIALIZED (
    SELECT turn_id, session_id, pool, priority, share, queued_at, warm_slot
    FROM (SELECT u.*, row_number() OVER (PARTITION BY u.pool, u.warm_slot IS NULL ORDER BY u.priority DESC, u.share, u.queued_at, u.turn_id) AS nth_in_pool
          FROM (SELECT u.*, row_number() OVER (PARTITION BY u.tenant_id ORDER BY u.priority DESC, u.queued_at, u.turn_id) AS nth_of_tenant
                FROM unlocked u) u
          LEFT JOIN limited l ON l.id = u.tenant_id
          WHERE l.id IS NULL OR u.nth_of_tenant <= l.room) u
    JOIN open o USING (pool)
    WHERE warm_slot IS NOT NULL OR nth_in_pool <= o.room
    ORDER BY priority DESC, share, queued_at
    LIMIT $2 - (SELECT count(*) FROM adopted)
),
room AS MATERIALIZED (
    SELECT s.id AS slot_id, s.pool
    FROM (SELECT pool, count(*) AS n FROM wanted WHERE warm_slot IS NULL GROUP BY pool) w
    CROSS JOIN LATERAL (
        SELECT s.id, s.pool FROM turnmill.slots s
        WHERE s.pool = w.pool AND s.state = 'free' AND NOT s.retire
        ORDER BY s.id LIMIT w.n
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) s
),
cold AS MATERIALIZED (
    SELECT j.turn_id, j.session_id, j.pool, r.slot_id
    FROM (SELECT *, row_number() OVER (PARTITION BY pool ORDER BY priority DESC, share, queued_at) AS nth FROM wanted WHERE warm_slot IS NULL) j
    JOIN (SELECT *, row_number() OVER (PARTITION BY pool ORDER BY slot_id) AS nth FROM room) r USING (pool, nth)
),
-- The session's paused sandbox comes into the slot.
thawed AS MATERIALIZED (
    SELECT c.turn_id, p.* FROM cold c CROSS JOIN LATERAL (
        SELECT p.sandbox_id, p.nonce, p.create_request, p.holds FROM turnmill.parked p
        WHERE p.session_id = c.session_id AND NOT p.doomed AND p.due_at > clock_timestamp()
        ORDER BY p.parked_at DESC LIMIT 1 FOR UPDATE OF p SKIP LOCKED) p
),
unparked AS (
    DELETE FROM turnmill.parked p USING thawed WHERE p.sandbox_id = thawed.sandbox_id
),
started AS MATERIALIZED (
    SELECT s.*, nextval('turnmill.epochs') AS epoch FROM (
        SELECT c.turn_id, c.slot_id, CASE WHEN t.turn_id IS NULL THEN 'new' ELSE 'paused' END AS sandbox
        FROM cold c LEFT JOIN thawed t USING (turn_id)
        UNION ALL
        SELECT turn_id, warm_slot, 'warm' FROM wanted WHERE warm_slot IS NOT NULL) s
),
spent AS (
    UPDATE turnmill.pool_states q SET tokens = b.tokens - s.n, tokens_at = clock_timestamp()
    FROM bucket b JOIN (SELECT pool, count(*) AS n FROM cold GROUP BY pool) s USING (pool)
    WHERE q.pool = b.pool
),
taken AS (
    SELECT turn_id, slot_id, epoch, crashes, 'adopted' AS taken, NULL AS sandbox FROM adopted
    UNION ALL
    SELECT turn_id, slot_id, epoch, 0, 'claimed', sandbox FROM started
),
job AS (
    UPDATE turnmill.jobs j
    SET state = 'leased', worker_id = $1, epoch = t.epoch, slot_id = t.slot_id,
        phase = coalesce(j.phase, 'sandbox'), crashes = t.crashes
    FROM taken t WHERE j.turn_id = t.turn_id
    RETURNING j.*, t.taken, t.sandbox
),
-- The intent of a create is on disk before anybody calls E2B. Its body holds no worker and no secret,
-- so that whoever takes over can send the identical call.
slot AS (
    UPDATE turnmill.slots s
    SET epoch = t.epoch,
        state = CASE t.sandbox WHEN 'new' THEN 'creating' WHEN 'paused' THEN 'busy' WHEN 'warm' THEN 'busy' ELSE s.state END,
        turn_id = t.turn_id,
        session_id = j.session_id,
        due_at = CASE WHEN t.sandbox IS NULL THEN s.due_at END,
        sandbox_id = coalesce(z.sandbox_id, s.sandbox_id),
        holds = coalesce(z.holds, s.holds),
        metered_at = CASE WHEN t.sandbox IN ('warm', 'paused') THEN clock_timestamp() ELSE s.metered_at END,
        nonce = CASE t.sandbox WHEN 'new' THEN 'tm-' || s.id || '-' || t.epoch WHEN 'paused' THEN z.nonce ELSE s.nonce END,
        create_request = CASE t.sandbox WHEN 'new' THEN jsonb_build_object(
            'templateID', p.template,
            'timeout', p.sandbox_timeout_s,
            'metadata', jsonb_build_object(
                'turnmill_fleet', (SELECT f.id FROM turnmill.fleet f),
                'turnmill_pool', p.name,
                'turnmill_turn', t.turn_id,
                'turnmill_nonce', 'tm-' || s.id || '-' || t.epoch))
            -- Limited from its first moment; its model and the key are added later, and not stored.
            || CASE WHEN p.egress_allow IS NOT NULL
                    THEN jsonb_build_object('network', jsonb_build_object('allowOut', p.egress_allow, 'denyOut', ARRAY['0.0.0.0/0']))
                    WHEN p.inject_key THEN jsonb_build_object('network', jsonb_build_object()) ELSE jsonb_build_object() END
          WHEN 'paused' THEN z.create_request ELSE s.create_request END
    FROM taken t
    JOIN turnmill.jobs j ON j.turn_id = t.turn_id
    JOIN turnmill.pools p ON p.name = j.pool
    LEFT JOIN thawed z ON z.turn_id = t.turn_id
    WHERE s.id = t.slot_id
    RETURNING s.*
),
-- The time for which a sandbox was kept warm is its session's, and no turn's.
booked AS (
    INSERT INTO turnmill.fresh_charges (epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, seconds, usd)
    SELECT k.epoch, 'kept', '', (k.at AT TIME ZONE 'UTC')::date, k.at, k.pool, coalesce(n.tenant_id, ''), n.project_id, n.id,
           k.seconds, k.seconds * coalesce(p.sandbox_usd_per_hour, 0) / 3600
    FROM (SELECT s.*, c.at, extract(epoch FROM c.at - s.metered_at)::numeric(14, 3) AS seconds
          FROM started t JOIN turnmill.slots s ON s.id = t.slot_id CROSS JOIN (SELECT clock_timestamp() AS at) c
          WHERE t.sandbox = 'warm') k
    JOIN turnmill.sessions n ON n.id = k.session_id JOIN turnmill.pools p ON p.name = k.pool
    WHERE k.seconds >= 1
),
turn AS (
    UPDATE turnmill.turns t
    SET status = 'in_progress', started_at = coalesce(t.started_at, clock_timestamp()), generation = job.generation
    FROM job WHERE t.id = job.turn_id
    RETURNING t.id, t.prompt, t.options, t.message_uuid, t.project_id, t.started_at, t.cost_usd
),
superseded AS (
    UPDATE turnmill.attempts a
    SET ended_at = clock_timestamp(), to_offset = job.journal_offset,
        ended = CASE WHEN EXISTS (SELECT FROM turnmill.workers w WHERE w.id = a.worker_id AND w.released_at IS NOT NULL)
                     THEN 'handed_over' ELSE 'lost' END,
        phase = job.phase,
        heard_at = (SELECT coalesce(w.released_at, w.heartbeat_at) FROM turnmill.workers w WHERE w.id = a.worker_id)
    FROM job WHERE a.turn_id = job.turn_id AND a.ended_at IS NULL
),
noted AS (
    INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, from_offset, from_seq, sandbox_id, sandbox)
    SELECT j.epoch, j.turn_id, j.attempt, j.generation, $1, j.taken, j.journal_offset, j.next_seq, s.sandbox_id, j.sandbox
    FROM job j JOIN slot s ON s.id = j.slot_id
)
SELECT job.turn_id            AS "turn_id!",
       job.session_id         AS "session_id!",
       turn.project_id        AS "project_id!",
       job.ordinal            AS "ordinal!",
       job.pool               AS "pool!",
       job.epoch              AS "epoch!",
       job.attempt            AS "attempt!",
       job.generation         AS "generation!",
       job.failures           AS "failures!",
       job.sandboxes_lost     AS "sandboxes_lost!",
       job.agent_failures     AS "agent_failures!",
       job.resumes            AS "resumes!",
       job.journal_offset     AS "journal_offset!",
       job.next_seq           AS "next_seq!",
       job.taken              AS "taken!",
       slot.id                AS "slot_id!",
       slot.state             AS "slot_state!",
       slot.nonce             AS "nonce!",
       slot.create_request    AS "create_request!",
       slot.sandbox_id        AS "sandbox_id?",
       slot.holds             AS "holds?",
       job.phase              AS "phase!",
       pool.warm_s            AS "warm_s!",
       turn.prompt            AS "prompt!",
       turn.options           AS "options!",
       turn.message_uuid::text AS "message_uuid!",
       session.agent_session_id::text AS "agent_session_id!",
       pool.agent             AS "agent!",
       pool.agent_env         AS "agent_env!",
       pool.workdir           AS "workdir?",
       pool.inject_key        AS "inject_key!",
       pool.egress_allow      AS "egress_allow?",
       pool.previews          AS "previews!",
       pool.mcp_servers       AS "mcp_servers?",
       pool.trust_project     AS "trust_project!",
       pool.journal_days > 0  AS "keeps_journal!",
       pool.api_version       AS "api_version?",
       pool.prepare           AS "prepare?",
       pool.watch             AS "watch?",
       pool.finish            AS "finish?",
       pool.prepare_timeout_s AS "prepare_timeout_s!",
       pool.finish_timeout_s  AS "finish_timeout_s!",
       job.forgets            AS "forgets!",
       pool.transcript        AS "transcript?",
       pool.transcript_max_bytes AS "transcript_max_bytes!",
       pool.sandbox_timeout_s AS "sandbox_timeout_s!",
       pool.idle_timeout_s    AS "idle_timeout_s!",
       pool.turn_budget_usd::float8 AS "turn_budget_usd?",
       coalesce(turn.cost_usd, 0)::float8 AS "spent_usd!",
       job.unpriced AS "unpriced!",
       job.crashes            AS "crashes!",
       asked.turn_id IS NOT NULL AS "cancel_asked!",
       asked.reason           AS "cancel_reason?",
       greatest(pool.turn_timeout_s - extract(epoch FROM clock_timestamp() - turn.started_at), 0)::float8 AS "seconds_left!"
FROM job
JOIN slot ON slot.id = job.slot_id
JOIN turn ON turn.id = job.turn_id
JOIN turnmill.sessions session ON session.id = job.session_id
JOIN turnmill.pools pool ON pool.name = job.pool
LEFT JOIN turnmill.cancel_requests asked ON asked.turn_id = job.turn_id
