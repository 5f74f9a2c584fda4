-- A try has failed: the next one, or none; and what that says of its endpoint, which is disabled when it is gone ($7), or has
-- failed at least $8 times in a row, for at least $9 seconds. All that waits for it waits longer with each failure, up to a
-- minute, or for as long as it wants ($10).
WITH told AS (
    UPDATE turnmill.outbox
    SET epoch = NULL, last_status = $3, last_error = $4, state = CASE WHEN $6::float8 IS NULL THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN $6 IS NULL THEN clock_timestamp() END,
        next_at = clock_timestamp() + make_interval(secs => coalesce($6, 0))
    WHERE id = $1 AND epoch = $2
    RETURNING endpoint_id
),
seen AS (
    SELECT e.id, $7::boolean OR (e.failures + 1 >= $8::int AND e.failing_since <= clock_timestamp() - make_interval(secs => $9)) AS over
    FROM told JOIN turnmill.webhook_endpoints e ON e.id = told.endpoint_id
    WHERE e.state = 'enabled' FOR NO KEY UPDATE OF e
)
UPDATE turnmill.webhook_endpoints e
SET failures = e.failures + 1, failing_since = coalesce(e.failing_since, clock_timestamp()), last_failure_at = clock_timestamp(),
    not_before = clock_timestamp() + make_interval(secs => greatest(least(2 ^ least(e.failures, 6), 60), $10::float8)),
    last_error = $4, state = CASE WHEN seen.over THEN 'disabled' ELSE 'enabled' END,
    disabled_at = CASE WHEN seen.over THEN clock_timestamp() END,
    disabled_reason = CASE WHEN seen.over THEN $5 END
FROM seen WHERE e.id = seen.id
RETURNING seen.over AS "over!"
