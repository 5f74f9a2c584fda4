-- Takes due deliveries for a time: at most $1, of each endpoint at most $2 with those that this process has under way
-- already ($3, $4), of one that fails a single one, after a pause, to see whether it still does; of those that are slow ($7) one
-- after the other; and of both kinds at most $5, so that dead and slow endpoints don't hold up the living. Which is first is
-- drawn by lot: none can be before all others.
WITH RECURSIVE waiting AS (
    -- From endpoint to endpoint over the index, however many rows each has.
    (SELECT o.endpoint_id FROM turnmill.outbox o WHERE o.state = 'pending' ORDER BY o.endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT o.endpoint_id FROM turnmill.outbox o
            WHERE o.state = 'pending' AND o.endpoint_id > w.endpoint_id ORDER BY o.endpoint_id LIMIT 1)
    FROM waiting w WHERE w.endpoint_id IS NOT NULL
),
room AS MATERIALIZED (
    SELECT e.id, e.failures > 0 AS failing, e.failures > 0 OR e.id = ANY($7::text[]) AS costly,
           CASE WHEN e.failures > 0 THEN 1 ELSE $2::bigint END - coalesce(b.under_way, 0) AS free
    FROM waiting w JOIN turnmill.webhook_endpoints e ON e.id = w.endpoint_id AND e.state = 'enabled'
      AND (e.not_before IS NULL OR e.not_before <= statement_timestamp())
    LEFT JOIN unnest($3::text[], $4::bigint[]) AS b(id, under_way) ON b.id = e.id
),
chosen AS MATERIALIZED (
    SELECT r.id, r.failing, r.costly, CASE WHEN r.costly THEN least(r.free, 1) ELSE r.free END AS free,
           row_number() OVER (PARTITION BY r.costly ORDER BY random()) AS nth
    FROM room r
    WHERE r.free > 0
      -- The statement's time, not the clock's: only what doesn't change can be looked for in an index.
      AND EXISTS (SELECT FROM turnmill.outbox o WHERE o.endpoint_id = r.id AND o.state = 'pending' AND o.next_at <= statement_timestamp())
),
picked AS MATERIALIZED (
    SELECT d.id, c.id AS endpoint_id, c.failing
    FROM (SELECT * FROM chosen WHERE NOT costly OR nth <= $5 ORDER BY costly, nth) c
    CROSS JOIN LATERAL (
        SELECT o.id FROM turnmill.outbox o
        WHERE o.endpoint_id = c.id AND o.state = 'pending' AND o.next_at <= statement_timestamp()
        ORDER BY o.next_at LIMIT c.free FOR NO KEY UPDATE SKIP LOCKED
    ) d
    LIMIT $1
)
UPDATE turnmill.outbox o
SET attempts = o.attempts + 1, epoch = nextval('turnmill.epochs'), last_attempt_at = clock_timestamp(),
    next_at = clock_timestamp() + make_interval(secs => $6)
FROM picked p JOIN turnmill.webhook_endpoints e ON e.id = p.endpoint_id
WHERE o.id = p.id
RETURNING o.id, o.endpoint_id, o.epoch AS "epoch!", o.attempts, o.type AS kind, o.payload::text AS "body!", p.failing AS "failing!",
    extract(epoch FROM clock_timestamp() - o.since)::float8 AS "age_s!", extract(epoch FROM clock_timestamp())::bigint AS "now_s!",
    e.url, e.secret, e.secret_key_id,
    CASE WHEN e.old_secret_until > clock_timestamp() THEN e.old_secret END AS old_secret, e.old_secret_key_id
