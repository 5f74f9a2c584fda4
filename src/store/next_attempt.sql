-- Goes on with a turn in the sandbox that it has: attempt and epoch grow, the journal begins at byte 0 again,
-- seq does not. Refused unless the job has this epoch and attempt and stands at this byte.
WITH before AS MATERIALIZED (
    SELECT turn_id, next_seq, generation, attempt, journal_offset, phase
    FROM turnmill.jobs
    WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 AND journal_offset = $4 AND worker_id IS NOT NULL
    FOR NO KEY UPDATE
),
job AS (
    UPDATE turnmill.jobs j
    SET epoch = $5, attempt = j.attempt + 1, journal_offset = 0, resumes = $6, forgets = j.forgets OR $17,
        -- What it did not take is lost too, and not told of yet.
        context_told = j.context_told AND NOT $17, agent_failures = j.agent_failures + 1,
        next_seq = j.next_seq + $11::int, phase = 'prepare'
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
slot AS (
    UPDATE turnmill.slots s SET epoch = $5
    FROM job WHERE s.id = job.slot_id AND s.epoch = $2
    RETURNING s.sandbox_id
),
turn AS (
    UPDATE turnmill.turns t
    SET error_code = $7, error_message = $8, usage = turnmill.add_usage(t.usage, $9),
        cost_usd = CASE WHEN $10::float8 IS NULL THEN t.cost_usd ELSE coalesce(t.cost_usd, 0) + $10::float8::numeric(14, 6) END
    FROM job WHERE t.id = job.turn_id
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
