-- Ends a turn, if its job still has this epoch and attempt and stands at this byte of the journal.
-- Deleting the job is the act that decides: of two that race, one finds it gone.
WITH job AS (
    DELETE FROM turnmill.jobs
    WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 AND journal_offset = $4
    RETURNING turn_id, session_id, tenant_id, pool, slot_id, next_seq, generation, attempt, journal_offset, phase
),
added AS (
    INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content, parent_tool_use_id, source_uuid)
    SELECT job.turn_id, job.next_seq + b.nth, job.generation, job.attempt, b.type, b.content::jsonb, b.parent_tool_use_id, b.source_uuid
    FROM job CROSS JOIN unnest($12::int[], $13::text[], $14::text[], $15::text[], $16::text[])
        AS b(nth, type, content, parent_tool_use_id, source_uuid)
    ORDER BY b.nth
),
-- Rounded before they are summed, so that charges and turn agree to the last digit.
called AS MATERIALIZED (
    SELECT m.model, m.input, m.output, m.cache_read, m.cache_write, m.usd::numeric(14, 6) AS usd
    FROM unnest($18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $9::float8[])
        AS m(model, input, output, cache_read, cache_write, usd)
),
-- For how long the attempt held a running sandbox that nobody has booked yet.
held AS MATERIALIZED (
    SELECT m.at, m.seconds, (m.seconds * coalesce(m.rate, 0) / 3600)::numeric(14, 6) AS usd
    FROM (SELECT c.at, p.sandbox_usd_per_hour AS rate,
                 coalesce(greatest(extract(epoch FROM c.at - s.metered_at), 0), 0)::numeric(14, 3) AS seconds
          FROM job JOIN turnmill.pools p ON p.name = job.pool CROSS JOIN (SELECT clock_timestamp() AS at) c
          LEFT JOIN turnmill.slots s ON s.id = job.slot_id AND s.epoch = $2 AND s.sandbox_id IS NOT NULL) m
),
turn AS (
    UPDATE turnmill.turns t
    SET status = $5, error_code = $6, error_message = $7, usage = turnmill.add_usage(t.usage, $8),
        -- Null until an attempt has said something.
        cost_usd = coalesce(t.cost_usd, CASE WHEN $23 THEN 0 END) + c.usd,
        input_tokens = coalesce(t.input_tokens, CASE WHEN $23 THEN 0 END) + c.input,
        output_tokens = coalesce(t.output_tokens, CASE WHEN $23 THEN 0 END) + c.output,
        cache_read_tokens = coalesce(t.cache_read_tokens, CASE WHEN $23 THEN 0 END) + c.cache_read,
        cache_write_tokens = coalesce(t.cache_write_tokens, CASE WHEN $23 THEN 0 END) + c.cache_write,
        sandbox_s = coalesce(t.sandbox_s, 0) + held.seconds, sandbox_usd = coalesce(t.sandbox_usd, 0) + held.usd,
        blocks = job.next_seq + $11::int, generation = job.generation, completed_at = clock_timestamp()
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
    FROM job CROSS JOIN turn CROSS JOIN held CROSS JOIN LATERAL (
        SELECT 'sandbox' AS kind, '' AS model, 1 AS turns, (NOT $23 AND job.phase IN ('agent', 'finish'))::int AS unpriced,
               0 AS input, 0 AS output, 0 AS cache_read, 0 AS cache_write, held.seconds, held.usd
        UNION ALL
        SELECT 'model', m.model, 0, 0, m.input, m.output, m.cache_read, m.cache_write, 0, m.usd FROM called m) c
),
-- Where no agent was started, the sandbox still holds what it held before, if anything. None is kept until an age at
-- which the session's next turn might outlive it, nor of a template that the pool has no more.
fate AS (
    SELECT s.id, s.create_request ->> 'templateID' = p.template AS current, CASE WHEN job.phase IN ('agent', 'finish') THEN job.turn_id ELSE s.holds END AS holds, s.retire, p.paused_s,
           least(clock_timestamp() + make_interval(secs => p.warm_s),
                 s.sandbox_at + make_interval(secs => p.sandbox_max_s - p.turn_timeout_s)) AS warm_until
    FROM job JOIN turnmill.slots s ON s.id = job.slot_id AND s.epoch = $2 JOIN turnmill.pools p ON p.name = s.pool
),
slot AS (
    UPDATE turnmill.slots s
    SET state = f.state, holds = f.holds, turn_id = NULL, metered_at = CASE WHEN s.metered_at IS NOT NULL THEN held.at END,
        due_at = CASE f.state WHEN 'warm' THEN f.warm_until WHEN 'pausing' THEN clock_timestamp() + make_interval(secs => $10) * 2
                              ELSE clock_timestamp() + make_interval(secs => $10) END
    FROM (SELECT fate.*, CASE WHEN NOT $17::boolean OR holds IS NULL OR NOT current THEN 'releasing'
                              WHEN warm_until > clock_timestamp() AND NOT retire THEN 'warm'
                              WHEN paused_s > 0 THEN 'pausing'
                              ELSE 'releasing' END AS state FROM fate) f CROSS JOIN held
    WHERE s.id = f.id AND s.epoch = $2
    RETURNING s.state
),
noted AS (
    UPDATE turnmill.attempts a
    SET ended_at = clock_timestamp(), ended = 'settled', to_offset = job.journal_offset, detail = $6, error_code = $6,
        phase = job.phase
    FROM job WHERE a.epoch = $2
),
asked AS (
    DELETE FROM turnmill.cancel_requests c USING job WHERE c.turn_id = job.turn_id
)
SELECT count(*) AS "settled!", (SELECT state FROM slot) AS "slot?" FROM job
