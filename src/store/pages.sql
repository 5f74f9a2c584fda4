-- What comes after a place in each of many sessions: their turns from an ordinal on, each with its next blocks of its
-- newest generation. One statement, so one snapshot: with a terminal status and no more candidates, that was all.
SELECT p.nth AS "nth!", t.id AS "turn_id!", t.ordinal AS "ordinal!", t.status AS "status!", t.generation AS "generation!",
       t.attempt AS "attempt!", t.error_code AS "error_code?", t.error_message AS "error_message?",
       CASE WHEN $8 AND t.status = 'pending' THEN turnmill.wait_reason(t.id) END AS wait_reason,
       b.seq AS "seq?", b.type AS "kind?", b.content::text AS "content?", b.parent_tool_use_id AS "parent_tool_use_id?",
       b.created_at AS "block_created_at?", b.candidates AS "candidates?"
FROM unnest($1::text[], $2::int[], $3::int[], $4::int[]) WITH ORDINALITY AS p(session_id, ordinal, seq, last_ordinal, nth)
CROSS JOIN LATERAL (
    SELECT t.id, t.ordinal, t.status, t.generation, t.attempt, t.error_code, t.error_message
    FROM turnmill.turns t
    WHERE t.session_id = p.session_id AND t.ordinal BETWEEN p.ordinal AND p.last_ordinal
    ORDER BY t.ordinal LIMIT $5
) t
LEFT JOIN LATERAL (
    SELECT c.*, count(*) OVER () AS candidates,
           row_number() OVER (ORDER BY c.seq) AS place,
           -- As stored: to know the size of what is compressed, it needn't be unpacked.
           sum(pg_column_size(c.content)) OVER (ORDER BY c.seq) - pg_column_size(c.content) AS bytes_before
    FROM (SELECT b.seq, b.type, b.content, b.parent_tool_use_id, b.created_at
          FROM turnmill.blocks b
          WHERE b.turn_id = t.id AND b.generation = t.generation
            AND b.seq > CASE WHEN t.ordinal = p.ordinal THEN p.seq ELSE -1 END
          ORDER BY b.seq LIMIT $6::bigint + 1) c
) b ON b.place <= $6::bigint AND b.bytes_before < $7
ORDER BY p.nth, t.ordinal, b.seq
