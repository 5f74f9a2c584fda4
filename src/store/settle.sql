-- Ends a turn, if its job still has this epoch and attempt and stands at this byte of the journal.
-- Deleting the job is the act that decides: of two that race, one finds it gone.
WITH job AS (
    DELETE FROM turnmill.jobs
    WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 AND journal_offset = $4
    RETURNING turn_id, slot_id, next_seq, generation, attempt, journal_offset, phase
),
added AS (
    INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content, parent_tool_use_id, source_uuid)
    SELECT job.turn_id, job.next_seq + b.nth, job.generation, job.attempt, b.type, b.content::jsonb, b.parent_tool_use_id, b.source_uuid
    FROM job CROSS JOIN unnest($12::int[], $13::text[], $14::text[], $15::text[], $16::text[])
        AS b(nth, type, content, parent_tool_use_id, source_uuid)
    ORDER BY b.nth
),
turn AS (
    UPDATE turnmill.turns t
    SET status = $5, error_code = $6, error_message = $7, usage = turnmill.add_usage(t.usage, $8),
        cost_usd = CASE WHEN $9::float8 IS NULL THEN t.cost_usd ELSE coalesce(t.cost_usd, 0) + $9::float8::numeric(14, 6) END,
        blocks = job.next_seq + $11::int, generation = job.generation, completed_at = clock_timestamp()
    FROM job WHERE t.id = job.turn_id
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
    SET state = f.state, holds = f.holds, turn_id = NULL,
        due_at = CASE f.state WHEN 'warm' THEN f.warm_until WHEN 'pausing' THEN clock_timestamp() + make_interval(secs => $10) * 2
                              ELSE clock_timestamp() + make_interval(secs => $10) END
    FROM (SELECT fate.*, CASE WHEN NOT $17::boolean OR holds IS NULL OR NOT current THEN 'releasing'
                              WHEN warm_until > clock_timestamp() AND NOT retire THEN 'warm'
                              WHEN paused_s > 0 THEN 'pausing'
                              ELSE 'releasing' END AS state FROM fate) f
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
