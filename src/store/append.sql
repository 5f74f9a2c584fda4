-- Commits the new blocks of many turns and the journal offsets that they bring, in one round trip.
-- Per turn: done, locked (another transaction holds the job this moment: try again), fenced (not ours
-- any more, or not where we think: the current position is in the answer).
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::int[], $4::bigint[], $5::bigint[], $6::int[])
        AS t(turn_id, epoch, attempt, from_offset, to_offset, blocks)
),
held AS MATERIALIZED (
    SELECT j.turn_id
    FROM turnmill.jobs j JOIN input i USING (turn_id) JOIN turnmill.turns t ON t.id = j.turn_id
    WHERE j.state = 'leased' AND j.epoch = i.epoch AND j.attempt = i.attempt AND j.journal_offset = i.from_offset
    -- Ordered, so that two writers can't deadlock; skipped, so that one locked row stalls nobody.
    ORDER BY j.turn_id
    FOR NO KEY UPDATE OF j SKIP LOCKED
    -- The blocks' foreign key will want this lock: who sits on a turn's row stalls that turn alone.
    FOR KEY SHARE OF t SKIP LOCKED
),
moved AS (
    UPDATE turnmill.jobs j
    SET journal_offset = i.to_offset, next_seq = j.next_seq + i.blocks
    FROM held JOIN input i USING (turn_id)
    WHERE j.turn_id = held.turn_id
    RETURNING j.turn_id, j.next_seq - i.blocks AS first_seq, j.generation, j.attempt
),
added AS (
    INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content, parent_tool_use_id, source_uuid)
    SELECT m.turn_id, m.first_seq + b.nth, m.generation, m.attempt, b.type, b.content::jsonb, b.parent_tool_use_id, b.source_uuid
    FROM unnest($7::text[], $8::int[], $9::text[], $10::text[], $11::text[], $12::text[])
        AS b(turn_id, nth, type, content, parent_tool_use_id, source_uuid)
    JOIN moved m USING (turn_id)
    ORDER BY m.turn_id, b.nth
)
SELECT i.turn_id AS "turn_id!",
       CASE WHEN m.turn_id IS NOT NULL THEN 'done'
            WHEN j.epoch = i.epoch AND j.attempt = i.attempt AND j.journal_offset = i.from_offset THEN 'locked'
            ELSE 'fenced' END AS "answer!",
       j.epoch AS "epoch?", j.attempt AS "attempt?", j.journal_offset AS "journal_offset?", j.next_seq AS "next_seq?"
FROM input i
LEFT JOIN moved m USING (turn_id)
LEFT JOIN turnmill.jobs j ON j.turn_id = i.turn_id
