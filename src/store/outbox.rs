//! What endpoints are to be told: taken for a time by whoever delivers, with an epoch as its fence, and settled by it.

use std::time::Duration;

use super::{Fenced, Store};
use crate::keys::Sealed;

/// Rows of one sweep.
const SWEPT_MAX: i64 = 5000;

/// A delivery that is due, and how to sign it.
#[derive(Debug, Clone)]
pub struct Due {
    /// `msg_…`
    pub id: String,
    /// Who is told.
    pub endpoint_id: String,
    /// The right to say how this try ended.
    pub epoch: i64,
    /// Which try it is, from 1.
    pub attempts: i32,
    /// The event's type.
    pub kind: String,
    /// What to send, to the byte.
    pub body: String,
    /// Whether the endpoint's last delivery failed.
    pub failing: bool,
    /// For how long it has been due.
    pub age: Duration,
    /// The database's time, in seconds since 1970.
    pub now_s: i64,
    /// Where to.
    pub url: String,
    /// What signs.
    pub secret: Sealed,
    /// What signs as well, for a while.
    pub old_secret: Option<Sealed>,
}

/// How much a process may have under way.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// More in all.
    pub free: i64,
    /// More to endpoints that fail or are slow.
    pub free_costly: i64,
    /// To one endpoint at once.
    pub of_one: i64,
}

/// A try that failed.
#[derive(Debug, Clone)]
pub struct FailedTry<'a> {
    /// Status of the answer, if there was one.
    pub status: Option<u16>,
    /// What was wrong.
    pub error: &'a str,
    /// The next one; `None`: it is given up.
    pub next: Option<Duration>,
    /// For how long it wants to be asked nothing.
    pub wants: Duration,
    /// It says of itself that it is gone.
    pub gone: bool,
    /// Failures in a row, and the time that they must have lasted, after which an endpoint is disabled.
    pub limit: (i32, Duration),
    /// Why it is, if it is.
    pub why_disabled: &'a str,
}

impl Store {
    /// Takes what is due for `hold`; then others may. `busy`: endpoints with how much this process has under way to each; `slow`:
    /// those that it has seen to be slow.
    pub async fn due_deliveries(&self, room: Room, busy: &[(String, i64)], slow: &[String], hold: Duration) -> sqlx::Result<Vec<Due>> {
        let (endpoints, counts): (Vec<String>, Vec<i64>) = busy.iter().cloned().unzip();
        let rows = sqlx::query_file!(
            "src/store/due_deliveries.sql",
            room.free,
            room.of_one,
            &endpoints,
            &counts,
            room.free_costly,
            hold.as_secs_f64(),
            slow,
        )
        .fetch_all(&self.pool)
        .await?;
        let due = rows.into_iter().map(|row| Due {
            id: row.id,
            endpoint_id: row.endpoint_id,
            epoch: row.epoch,
            attempts: row.attempts,
            kind: row.kind,
            body: row.body,
            failing: row.failing,
            age: Duration::try_from_secs_f64(row.age_s).unwrap_or_default(),
            now_s: row.now_s,
            url: row.url,
            secret: Sealed { key_id: row.secret_key_id, data: row.secret },
            old_secret: row.old_secret.map(|data| Sealed { key_id: row.old_secret_key_id, data }),
        });
        Ok(due.collect())
    }

    /// It was answered with 2xx; its endpoint is well.
    pub async fn delivered(&self, due: &Due, status: u16) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            r#"WITH told AS (
                 UPDATE turnmill.outbox SET state = 'delivered', epoch = NULL, last_status = $3, last_error = NULL, ended_at = clock_timestamp()
                 WHERE id = $1 AND epoch = $2 RETURNING endpoint_id),
               well AS (
                 UPDATE turnmill.webhook_endpoints e SET failures = 0, failing_since = NULL, not_before = NULL, last_success_at = clock_timestamp()
                 FROM told WHERE e.id = told.endpoint_id
                   AND (e.failures > 0 OR e.last_success_at IS NULL OR e.last_success_at < clock_timestamp() - interval '1 second'))
               SELECT count(*) AS "done!" FROM told"#,
            due.id,
            due.epoch,
            i32::from(status),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(if done.done == 0 { Err(Fenced) } else { Ok(()) })
    }

    /// A try failed; whether its endpoint was disabled for it.
    pub async fn delivery_failed(&self, due: &Due, failed: &FailedTry<'_>) -> sqlx::Result<bool> {
        let over = sqlx::query_file_scalar!(
            "src/store/delivery_failed.sql",
            due.id,
            due.epoch,
            failed.status.map(i32::from),
            failed.error,
            failed.why_disabled,
            failed.next.map(|next| next.as_secs_f64()),
            failed.gone,
            failed.limit.0,
            failed.limit.1.as_secs_f64(),
            failed.wants.as_secs_f64(),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(over.unwrap_or(false))
    }

    /// It could not be tried, by no fault of its endpoint: due again after `delay`, and this try did not count.
    pub async fn put_off(&self, due: &Due, delay: Duration, why: Option<&str>) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.outbox SET epoch = NULL, attempts = attempts - 1, last_error = coalesce($4, last_error),
               next_at = clock_timestamp() + make_interval(secs => $3)
             WHERE id = $1 AND epoch = $2",
            due.id,
            due.epoch,
            delay.as_secs_f64(),
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives up what disabled endpoints were still to be told, and forgets what ended longer than `keep` ago and what is
    /// left of endpoints that were deleted. Each on its own; the first error, if any.
    pub async fn sweep_outbox(&self, keep: Duration) -> sqlx::Result<()> {
        let done = [self.give_up_disabled().await, self.forget_ended(keep).await, self.forget_deleted().await];
        done.into_iter().collect()
    }

    async fn give_up_disabled(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.outbox o
             SET state = 'failed', epoch = NULL, ended_at = clock_timestamp(), last_error = coalesce(o.last_error || '; then ', '') || 'the endpoint was disabled'
             FROM (SELECT p.id FROM turnmill.webhook_endpoints e CROSS JOIN LATERAL (
                     -- Of a try that is under way, whoever has it says how it ended; or nobody does, in time.
                     SELECT p.id FROM turnmill.outbox p
                     WHERE p.endpoint_id = e.id AND p.state = 'pending' AND (p.epoch IS NULL OR p.next_at <= statement_timestamp())
                     LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED) p
                   WHERE e.state = 'disabled') over
             WHERE o.id = over.id",
            SWEPT_MAX,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn forget_ended(&self, keep: Duration) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.outbox o USING (
               SELECT id FROM turnmill.outbox
               WHERE state <> 'pending' AND ended_at < statement_timestamp() - make_interval(secs => $1)
               ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED) old
             WHERE o.id = old.id",
            keep.as_secs_f64(),
            SWEPT_MAX,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn forget_deleted(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH RECURSIVE told AS (
               (SELECT o.endpoint_id FROM turnmill.outbox o ORDER BY o.endpoint_id LIMIT 1)
               UNION ALL
               SELECT (SELECT o.endpoint_id FROM turnmill.outbox o WHERE o.endpoint_id > t.endpoint_id ORDER BY o.endpoint_id LIMIT 1)
               FROM told t WHERE t.endpoint_id IS NOT NULL)
             DELETE FROM turnmill.outbox o USING (
               SELECT l.id FROM told t CROSS JOIN LATERAL (
                 SELECT p.id FROM turnmill.outbox p WHERE p.endpoint_id = t.endpoint_id LIMIT $1 FOR UPDATE SKIP LOCKED) l
               WHERE NOT EXISTS (SELECT FROM turnmill.webhook_endpoints e WHERE e.id = t.endpoint_id)) left_behind
             WHERE o.id = left_behind.id",
            SWEPT_MAX,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
