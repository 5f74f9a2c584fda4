-- Moves fresh charges into the ledger and the roll-up. One worker at a time: whoever has the state's row. Summed is what
-- the ledger took: its key refuses what is there already.
WITH mine AS MATERIALIZED (
    SELECT s.summed_to FROM turnmill.spend_state s FOR NO KEY UPDATE SKIP LOCKED
),
-- From a place on, so that nobody walks through what has been moved already, however long vacuum can't remove that.
picked AS MATERIALIZED (
    SELECT c.id FROM mine CROSS JOIN LATERAL (
        SELECT c.id FROM turnmill.fresh_charges c WHERE c.id > mine.summed_to - 100000 ORDER BY c.id LIMIT $1) c
),
moved AS (
    DELETE FROM turnmill.fresh_charges c USING picked WHERE c.id = picked.id RETURNING c.*
),
kept AS (
    INSERT INTO turnmill.charges AS c (epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, turns, unpriced,
                                       input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd)
    SELECT epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, turns, unpriced,
           input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd
    FROM moved ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING c.*
),
days AS (
    INSERT INTO turnmill.spend_days AS d (day, tenant_id, pool, kind, model, turns, unpriced, input_tokens, output_tokens, cache_read_tokens,
                                          cache_write_tokens, seconds, usd)
    SELECT day, tenant_id, pool, kind, model, sum(turns), sum(unpriced), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens),
           sum(cache_write_tokens), sum(seconds), sum(usd)
    FROM kept GROUP BY day, tenant_id, pool, kind, model
    ON CONFLICT (day, tenant_id, pool, kind, model) DO UPDATE SET
        turns = d.turns + excluded.turns, unpriced = d.unpriced + excluded.unpriced,
        input_tokens = d.input_tokens + excluded.input_tokens, output_tokens = d.output_tokens + excluded.output_tokens,
        cache_read_tokens = d.cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = d.cache_write_tokens + excluded.cache_write_tokens,
        seconds = d.seconds + excluded.seconds, usd = d.usd + excluded.usd
),
-- The newest day, and all that is summed of it.
newest AS (
    SELECT n.day, (SELECT coalesce(sum(k.usd), 0) FROM kept k WHERE k.day = n.day) AS usd
    FROM (SELECT max(day) AS day FROM kept) n WHERE n.day IS NOT NULL
)
UPDATE turnmill.spend_state s
SET summed_to = greatest(s.summed_to, (SELECT max(id) FROM moved)),
    day = greatest(s.day, newest.day),
    usd = CASE WHEN newest.day < s.day THEN s.usd WHEN newest.day = s.day THEN s.usd + newest.usd ELSE newest.usd END
FROM newest
RETURNING (SELECT count(*) FROM kept) AS "summed!"
