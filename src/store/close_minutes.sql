-- Counts the minutes that are over since the last one that was counted. Ten seconds after their end, so that what began in
-- them has been committed; what takes longer than that to commit is in no minute.
WITH due AS MATERIALIZED (
    SELECT m AS minute FROM generate_series(
        greatest(coalesce((SELECT max(minute) FROM turnmill.metrics_minute WHERE closed) + interval '1 minute',
                          date_trunc('minute', clock_timestamp()) - interval '5 minutes'),
                 date_trunc('minute', clock_timestamp()) - interval '60 minutes'),
        date_trunc('minute', clock_timestamp() - interval '10 seconds') - interval '1 minute',
        interval '1 minute') m
),
span AS MATERIALIZED (
    SELECT min(minute) AS low, max(minute) + interval '1 minute' AS high FROM due
),
enqueued AS (
    SELECT date_trunc('minute', t.created_at) AS minute, count(*) AS n
    FROM span JOIN turnmill.turns t ON t.created_at >= span.low AND t.created_at < span.high
    GROUP BY 1
),
taken AS MATERIALIZED (
    SELECT date_trunc('minute', a.taken_at) AS minute, a.turn_id, a.taken, a.attempt,
           extract(epoch FROM coalesce(a.agent_at, a.ended_at, clock_timestamp()) - a.taken_at) AS startup_s
    FROM span JOIN turnmill.attempts a ON a.taken_at >= span.low AND a.taken_at < span.high
),
tried AS (
    SELECT minute, count(*) FILTER (WHERE taken <> 'adopted') AS tries, count(*) FILTER (WHERE taken = 'adopted') AS adopted,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY startup_s) FILTER (WHERE taken = 'claimed') AS startup
    FROM taken GROUP BY minute
),
-- A turn starts once, whatever happens to it then.
begun AS MATERIALIZED (
    SELECT date_trunc('minute', t.started_at) AS minute, t.id, t.created_at, t.started_at, t.completed_at
    FROM (SELECT DISTINCT turn_id FROM taken WHERE taken = 'claimed') c JOIN turnmill.turns t ON t.id = c.turn_id
    CROSS JOIN span WHERE t.started_at >= span.low AND t.started_at < span.high
),
started AS (
    SELECT b.minute, count(*) AS n,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM b.started_at - b.created_at)) AS wait,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
               ORDER BY extract(epoch FROM coalesce(f.created_at, b.completed_at, clock_timestamp()) - b.started_at)) AS first_block
    FROM begun b LEFT JOIN turnmill.blocks f ON f.turn_id = b.id AND f.seq = 0
    GROUP BY b.minute
),
ended AS (
    SELECT date_trunc('minute', t.completed_at) AS minute,
           count(*) FILTER (WHERE t.status = 'completed') AS completed, count(*) FILTER (WHERE t.status = 'failed') AS failed,
           count(*) FILTER (WHERE t.status = 'cancelled') AS cancelled, sum(t.cost_usd) AS cost_usd
    FROM span JOIN turnmill.turns t ON t.completed_at >= span.low AND t.completed_at < span.high
    GROUP BY 1
),
failure AS MATERIALIZED (
    SELECT date_trunc('minute', a.ended_at) AS minute, coalesce(a.phase, '') AS phase, a.error_code AS code, a.ended_at,
           a.ended = 'settled' AS final, a.turn_id
    FROM span JOIN turnmill.attempts a ON a.ended_at >= span.low AND a.ended_at < span.high
    WHERE a.error_code IS NOT NULL AND a.error_code <> 'cancelled'
),
failed AS (
    SELECT minute, sum(n) AS n, jsonb_object_agg(phase || ' ' || code, n) AS by_kind
    FROM (SELECT minute, phase, code, count(*) AS n FROM failure GROUP BY minute, phase, code) f
    GROUP BY minute
),
known AS (
    INSERT INTO turnmill.failures AS k (phase, code, first_at, last_at, tries, turns, last_turn_id, last_message)
    SELECT g.phase, g.code, g.first_at, g.last_at, g.tries, g.turns, g.last_turn_id, left(t.error_message, 500)
    FROM (SELECT phase, code, min(ended_at) AS first_at, max(ended_at) AS last_at, count(*) AS tries,
                 count(*) FILTER (WHERE final) AS turns, (array_agg(turn_id ORDER BY ended_at DESC))[1] AS last_turn_id
          FROM failure GROUP BY phase, code) g
    LEFT JOIN turnmill.turns t ON t.id = g.last_turn_id
    ON CONFLICT (phase, code) DO UPDATE
    SET last_at = excluded.last_at, tries = k.tries + excluded.tries, turns = k.turns + excluded.turns,
        last_turn_id = excluded.last_turn_id, last_message = excluded.last_message
),
closed AS (
    INSERT INTO turnmill.metrics_minute AS m (minute, closed, enqueued, started, completed, failed, cancelled, tries, tries_failed, adopted,
        failures, cost_usd, wait_p50_s, wait_p95_s, startup_p50_s, startup_p95_s, first_block_p50_s, first_block_p95_s)
    SELECT due.minute, true, coalesce(enqueued.n, 0), coalesce(started.n, 0), coalesce(ended.completed, 0), coalesce(ended.failed, 0),
           coalesce(ended.cancelled, 0), coalesce(tried.tries, 0), coalesce(failed.n, 0), coalesce(tried.adopted, 0),
           coalesce(failed.by_kind, '{}'), coalesce(ended.cost_usd, 0), started.wait[1], started.wait[2], tried.startup[1], tried.startup[2],
           started.first_block[1], started.first_block[2]
    FROM due LEFT JOIN enqueued USING (minute) LEFT JOIN tried USING (minute) LEFT JOIN started USING (minute)
    LEFT JOIN ended USING (minute) LEFT JOIN failed USING (minute)
    ON CONFLICT (minute) DO UPDATE
    SET closed = true, enqueued = excluded.enqueued, started = excluded.started, completed = excluded.completed, failed = excluded.failed,
        cancelled = excluded.cancelled, tries = excluded.tries, tries_failed = excluded.tries_failed, adopted = excluded.adopted,
        failures = excluded.failures, cost_usd = excluded.cost_usd, wait_p50_s = excluded.wait_p50_s, wait_p95_s = excluded.wait_p95_s,
        startup_p50_s = excluded.startup_p50_s, startup_p95_s = excluded.startup_p95_s,
        first_block_p50_s = excluded.first_block_p50_s, first_block_p95_s = excluded.first_block_p95_s
    RETURNING 1
)
SELECT count(*) AS "closed!" FROM closed
