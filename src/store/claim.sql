-- Takes up to $2 jobs for worker $1, each with a new epoch: first those whose worker is gone, then
-- ready ones together with a free slot of their pool. One statement, so that job and slot can't disagree.
--
-- AS MATERIALIZED: a LIMIT under a nested loop may be evaluated again and claim more than it says.
-- FOR NO KEY UPDATE: nothing references these rows by key, so no MultiXact appears.
WITH adopted AS MATERIALIZED (
    SELECT turn_id, slot_id, nextval('turnmill.epochs') AS epoch
    FROM (
        SELECT j.turn_id, j.slot_id
        FROM turnmill.jobs j
        WHERE j.state = 'leased'
          -- The database compares its own clock; a lease that was renewed in this moment costs the
          -- slower of the two one refused write.
          AND NOT EXISTS (SELECT FROM turnmill.workers w
                          WHERE w.id = j.worker_id AND w.lease_until > clock_timestamp())
        ORDER BY j.queued_at
        LIMIT $2
        FOR NO KEY UPDATE OF j SKIP LOCKED
    ) orphan
),
wanted AS MATERIALIZED (
    SELECT turn_id, session_id, pool, priority, queued_at
    FROM (
        SELECT j.*
        FROM turnmill.pools p
        -- Per pool, no more than it has free slots: a full pool must not hide another's work.
        CROSS JOIN LATERAL (
            SELECT r.turn_id, r.session_id, r.pool, r.priority, r.queued_at
            FROM turnmill.jobs r
            WHERE r.pool = p.name AND r.state = 'ready' AND r.run_at <= clock_timestamp()
            ORDER BY r.priority DESC, r.queued_at, r.turn_id
            LIMIT (SELECT count(*) FROM (
                       SELECT FROM turnmill.slots s
                       WHERE s.pool = p.name AND s.state = 'free' AND NOT s.retire LIMIT $2) free)
            FOR NO KEY UPDATE OF r SKIP LOCKED
        ) j
        WHERE p.state = 'active'
    ) ready
    ORDER BY priority DESC, queued_at
    LIMIT $2 - (SELECT count(*) FROM adopted)
),
room AS MATERIALIZED (
    SELECT s.id AS slot_id, s.pool
    FROM (SELECT pool, count(*) AS n FROM wanted GROUP BY pool) w
    CROSS JOIN LATERAL (
        SELECT s.id, s.pool FROM turnmill.slots s
        WHERE s.pool = w.pool AND s.state = 'free' AND NOT s.retire
        ORDER BY s.id LIMIT w.n
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) s
),
started AS MATERIALIZED (
    SELECT j.turn_id, j.session_id, r.slot_id, nextval('turnmill.epochs') AS epoch
    FROM (SELECT *, row_number() OVER (PARTITION BY pool ORDER BY priority DESC, queued_at) AS nth FROM wanted) j
    JOIN (SELECT *, row_number() OVER (PARTITION BY pool ORDER BY slot_id) AS nth FROM room) r USING (pool, nth)
),
taken AS (
    SELECT turn_id, slot_id, epoch, 'adopted' AS taken FROM adopted
    UNION ALL
    SELECT turn_id, slot_id, epoch, 'claimed' FROM started
),
job AS (
    UPDATE turnmill.jobs j
    SET state = 'leased', worker_id = $1, epoch = t.epoch, slot_id = t.slot_id,
        phase = coalesce(j.phase, 'sandbox')
    FROM taken t WHERE j.turn_id = t.turn_id
    RETURNING j.*, t.taken
),
-- The intent of a create is on disk before anybody calls E2B. Its body holds no worker and no secret,
-- so that whoever takes over can send the identical call.
slot AS (
    UPDATE turnmill.slots s
    SET epoch = t.epoch,
        state = CASE t.taken WHEN 'claimed' THEN 'creating' ELSE s.state END,
        turn_id = t.turn_id,
        session_id = j.session_id,
        nonce = CASE t.taken WHEN 'claimed' THEN 'tm-' || s.id || '-' || t.epoch ELSE s.nonce END,
        create_request = CASE t.taken WHEN 'claimed' THEN jsonb_build_object(
            'templateID', p.template,
            'timeout', p.sandbox_timeout_s,
            'metadata', jsonb_build_object(
                'turnmill_fleet', (SELECT f.id FROM turnmill.fleet f),
                'turnmill_turn', t.turn_id,
                'turnmill_nonce', 'tm-' || s.id || '-' || t.epoch)) ELSE s.create_request END
    FROM taken t
    JOIN turnmill.jobs j ON j.turn_id = t.turn_id
    JOIN turnmill.pools p ON p.name = j.pool
    WHERE s.id = t.slot_id
    RETURNING s.*
),
turn AS (
    UPDATE turnmill.turns t
    SET status = 'in_progress', started_at = coalesce(t.started_at, clock_timestamp()), generation = job.generation
    FROM job WHERE t.id = job.turn_id
    RETURNING t.id, t.prompt, t.options, t.message_uuid, t.project_id, t.started_at
),
superseded AS (
    UPDATE turnmill.attempts a
    SET ended_at = clock_timestamp(), ended = 'lost', to_offset = job.journal_offset
    FROM job WHERE a.turn_id = job.turn_id AND a.ended_at IS NULL
),
noted AS (
    INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, from_offset, from_seq, sandbox_id)
    SELECT j.epoch, j.turn_id, j.attempt, j.generation, $1, j.taken, j.journal_offset, j.next_seq, s.sandbox_id
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
       turn.prompt            AS "prompt!",
       turn.options           AS "options!",
       turn.message_uuid::text AS "message_uuid!",
       session.agent_session_id::text AS "agent_session_id!",
       pool.agent             AS "agent!",
       pool.agent_env         AS "agent_env!",
       pool.workdir           AS "workdir?",
       pool.api_version       AS "api_version?",
       pool.prepare           AS "prepare?",
       pool.watch             AS "watch?",
       pool.finish            AS "finish?",
       pool.prepare_timeout_s AS "prepare_timeout_s!",
       pool.finish_timeout_s  AS "finish_timeout_s!",
       pool.sandbox_timeout_s AS "sandbox_timeout_s!",
       greatest(pool.turn_timeout_s - extract(epoch FROM clock_timestamp() - turn.started_at), 0)::float8 AS "seconds_left!"
FROM job
JOIN slot ON slot.id = job.slot_id
JOIN turn ON turn.id = job.turn_id
JOIN turnmill.sessions session ON session.id = job.session_id
JOIN turnmill.pools pool ON pool.name = job.pool
