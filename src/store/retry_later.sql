-- Puts a turn back into the queue, if its job still has this epoch and attempt. With $6 the next attempt starts over.
WITH before AS MATERIALIZED (
    SELECT turn_id, session_id, tenant_id, pool, slot_id, phase
    FROM turnmill.jobs WHERE turn_id = $1 AND epoch = $2 AND attempt = $3
    FOR NO KEY UPDATE
),
job AS (
    UPDATE turnmill.jobs j
    SET state = 'ready', worker_id = NULL, epoch = NULL, phase = NULL, slot_id = NULL,
        run_at = clock_timestamp() + make_interval(secs => $4),
        failures = j.failures + CASE WHEN $5 THEN 1 ELSE 0 END,
        sandboxes_lost = j.sandboxes_lost + CASE WHEN $6 THEN 1 ELSE 0 END,
        unpriced = j.unpriced + (NOT $18 AND before.phase IN ('agent', 'finish'))::int,
        attempt = j.attempt + CASE WHEN $6 THEN 1 ELSE 0 END,
        resumes = j.resumes AND NOT $6, context_told = j.context_told AND NOT $6,
        generation = j.generation + CASE WHEN $6 THEN 1 ELSE 0 END,
        journal_offset = CASE WHEN $6 THEN 0 ELSE j.journal_offset END
    FROM before WHERE j.turn_id = before.turn_id
    RETURNING j.turn_id, j.generation
),
-- Rounded before they are summed, so that charges and turn agree to the last digit.
called AS MATERIALIZED (
    SELECT m.model, m.input, m.output, m.cache_read, m.cache_write, m.usd::numeric(14, 6) AS usd
    FROM unnest($12::text[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::float8[])
        AS m(model, input, output, cache_read, cache_write, usd)
),
-- For how long the attempt held a running sandbox that nobody has booked yet.
held AS MATERIALIZED (
    SELECT m.at, m.seconds, (m.seconds * coalesce(m.rate, 0) / 3600)::numeric(14, 6) AS usd
    FROM (SELECT c.at, p.sandbox_usd_per_hour AS rate,
                 coalesce(greatest(extract(epoch FROM c.at - s.metered_at), 0), 0)::numeric(14, 3) AS seconds
          FROM before job JOIN turnmill.pools p ON p.name = job.pool CROSS JOIN (SELECT clock_timestamp() AS at) c
          LEFT JOIN turnmill.slots s ON s.id = job.slot_id AND s.epoch = $2 AND s.sandbox_id IS NOT NULL) m
),
turn AS (
    UPDATE turnmill.turns t
    SET status = 'pending', generation = job.generation, error_code = $7, error_message = $8,
        usage = turnmill.add_usage(t.usage, $19),
        -- Null until an attempt has said something.
        cost_usd = coalesce(t.cost_usd, CASE WHEN $18 THEN 0 END) + c.usd,
        input_tokens = coalesce(t.input_tokens, CASE WHEN $18 THEN 0 END) + c.input,
        output_tokens = coalesce(t.output_tokens, CASE WHEN $18 THEN 0 END) + c.output,
        cache_read_tokens = coalesce(t.cache_read_tokens, CASE WHEN $18 THEN 0 END) + c.cache_read,
        cache_write_tokens = coalesce(t.cache_write_tokens, CASE WHEN $18 THEN 0 END) + c.cache_write,
        sandbox_s = coalesce(t.sandbox_s, 0) + held.seconds, sandbox_usd = coalesce(t.sandbox_usd, 0) + held.usd
    FROM job CROSS JOIN held CROSS JOIN (
        SELECT coalesce(sum(usd), 0) AS usd, coalesce(sum(input), 0) AS input, coalesce(sum(output), 0) AS output,
               coalesce(sum(cache_read), 0) AS cache_read, coalesce(sum(cache_write), 0) AS cache_write FROM called) c
    WHERE t.id = job.turn_id
    RETURNING t.project_id
),
booked AS (
    INSERT INTO turnmill.fresh_charges (epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, turns, unpriced,
                                        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd)
    SELECT $2, c.kind, c.model, (held.at AT TIME ZONE 'UTC')::date, held.at, job.pool, job.tenant_id, turn.project_id, job.session_id,
           job.turn_id, c.turns, c.unpriced, c.input, c.output, c.cache_read, c.cache_write, c.seconds, c.usd
    FROM before job CROSS JOIN turn CROSS JOIN held CROSS JOIN LATERAL (
        SELECT 'sandbox' AS kind, '' AS model, 0 AS turns, (NOT $18 AND job.phase IN ('agent', 'finish'))::int AS unpriced,
               0 AS input, 0 AS output, 0 AS cache_read, 0 AS cache_write, held.seconds, held.usd
        UNION ALL
        SELECT 'model', m.model, 0, 0, m.input, m.output, m.cache_read, m.cache_write, 0, m.usd FROM called m) c
),
slot AS (
    UPDATE turnmill.slots s
    SET state = CASE WHEN $11 THEN 'pausing' ELSE 'releasing' END, turn_id = NULL,
        due_at = clock_timestamp() + make_interval(secs => $9), metered_at = CASE WHEN s.metered_at IS NOT NULL THEN held.at END
    FROM job CROSS JOIN held WHERE s.id = $10 AND s.epoch = $2
),
noted AS (
    UPDATE turnmill.attempts a
    SET ended_at = clock_timestamp(), ended = 'retry', detail = $8, error_code = $7, phase = before.phase
    FROM before WHERE a.epoch = $2
)
SELECT count(*) AS "done!" FROM job
