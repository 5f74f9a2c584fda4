-- Goes on with a turn in the sandbox that it has: attempt and epoch grow, the journal begins at byte 0 again,
-- seq does not. Refused unless the job has this epoch and attempt and stands at this byte.
WITH before AS MATERIALIZED (
    SELECT turn_id, session_id, tenant_id, pool, slot_id, next_seq, generation, attempt, journal_offset, phase
    FROM turnmill.jobs
    WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 AND journal_offset = $4 AND worker_id IS NOT NULL
    FOR NO KEY UPDATE
),
job AS (
    UPDATE turnmill.jobs j
    SET epoch = $5, attempt = j.attempt + 1, journal_offset = 0, resumes = $6, forgets = j.forgets OR $17,
        -- What it did not take is lost too, and not told of yet.
        context_told = j.context_told AND NOT $17, agent_failures = j.agent_failures + 1,
        next_seq = j.next_seq + $11::int, phase = 'prepare', unpriced = j.unpriced + (NOT $23)::int
    FROM before WHERE j.turn_id = before.turn_id
    RETURNING j.*
),
added AS (
    INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content, parent_tool_use_id, source_uuid)
    SELECT before.turn_id, before.next_seq + b.nth, before.generation, before.attempt, b.type, b.content::jsonb, b.parent_tool_use_id, b.source_uuid
    FROM before CROSS JOIN unnest($12::int[], $13::text[], $14::text[], $15::text[], $16::text[])
        AS b(nth, type, content, parent_tool_use_id, source_uuid)
    ORDER BY b.nth
),
-- Rounded before they are summed, so that charges and turn agree to the last digit.
called AS MATERIALIZED (
    SELECT m.model, m.input, m.output, m.cache_read, m.cache_write, m.usd::numeric(14, 6) AS usd
    FROM unnest($18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $10::float8[])
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
slot AS (
    UPDATE turnmill.slots s SET epoch = $5, metered_at = CASE WHEN s.metered_at IS NOT NULL THEN held.at END
    FROM job CROSS JOIN held WHERE s.id = job.slot_id AND s.epoch = $2
    RETURNING s.sandbox_id
),
turn AS (
    UPDATE turnmill.turns t
    SET error_code = $7, error_message = $8, usage = turnmill.add_usage(t.usage, $9),
        -- Null until an attempt has said something.
        cost_usd = coalesce(t.cost_usd, CASE WHEN $23 THEN 0 END) + c.usd,
        input_tokens = coalesce(t.input_tokens, CASE WHEN $23 THEN 0 END) + c.input,
        output_tokens = coalesce(t.output_tokens, CASE WHEN $23 THEN 0 END) + c.output,
        cache_read_tokens = coalesce(t.cache_read_tokens, CASE WHEN $23 THEN 0 END) + c.cache_read,
        cache_write_tokens = coalesce(t.cache_write_tokens, CASE WHEN $23 THEN 0 END) + c.cache_write,
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
        SELECT 'sandbox' AS kind, '' AS model, 0 AS turns, (NOT $23 AND job.phase IN ('agent', 'finish'))::int AS unpriced,
               0 AS input, 0 AS output, 0 AS cache_read, 0 AS cache_write, held.seconds, held.usd
        UNION ALL
        SELECT 'model', m.model, 0, 0, m.input, m.output, m.cache_read, m.cache_write, 0, m.usd FROM called m) c
),
noted AS (
    UPDATE turnmill.attempts a
    SET ended_at = clock_timestamp(), ended = 'retry', to_offset = before.journal_offset, detail = $8, error_code = $7,
        phase = before.phase
    FROM before WHERE a.epoch = $2
),
begun AS (
    INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, from_offset, from_seq, sandbox_id)
    SELECT job.epoch, job.turn_id, job.attempt, job.generation, job.worker_id, 'resumed', 0, job.next_seq, slot.sandbox_id
    FROM job CROSS JOIN slot
)
SELECT job.next_seq AS "next_seq!" FROM job
