//! What the reconciler reads and writes: its duty, the slots, and what it has put right.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Store;

/// Something that was found wrong.
#[derive(Debug, Clone)]
pub struct Correction {
    /// orphan or `leaked_slot`.
    pub kind: String,
    /// The sandbox or the slot.
    pub subject: String,
    /// What was found.
    pub reason: String,
    /// When it was first seen.
    pub noticed_at: DateTime<Utc>,
    /// When it was put right.
    pub done_at: Option<DateTime<Utc>>,
}

impl Store {
    /// Takes a duty of the fleet for `lease`, or keeps it; `false`: another worker has it.
    pub async fn take_duty(&self, duty: &str, worker: &str, lease: Duration) -> sqlx::Result<bool> {
        let taken = sqlx::query!(
            "UPDATE turnmill.duties SET worker_id = $1, lease_until = clock_timestamp() + make_interval(secs => $2)
             WHERE name = $3 AND (worker_id = $1 OR lease_until <= clock_timestamp())",
            worker,
            lease.as_secs_f64(),
            duty,
        )
        .execute(&self.pool)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// Sandboxes and nonces that slots know. To be read *after* E2B was asked: the intent of every create is on disk
    /// before E2B hears of it.
    pub async fn known_to_slots(&self) -> sqlx::Result<HashSet<String>> {
        // One statement, so that a sandbox on its way between the two is in one of them.
        let known = sqlx::query_scalar!(
            r#"SELECT known AS "known!"
               FROM (SELECT nonce, sandbox_id FROM turnmill.slots UNION ALL SELECT nonce, sandbox_id FROM turnmill.parked) all_of_them,
                 unnest(ARRAY[nonce, sandbox_id]) AS known
               WHERE known IS NOT NULL"#
        );
        Ok(known.fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// Notes a sandbox that no slot knows; how long ago that was first noticed.
    pub async fn notice_orphan(&self, sandbox_id: &str, pool: &str, reason: &str) -> sqlx::Result<Duration> {
        let since = sqlx::query_scalar!(
            r#"INSERT INTO turnmill.corrections AS c (kind, subject, pool, reason) VALUES ('orphan', $1, nullif($2, ''), $3)
               ON CONFLICT (kind, subject) WHERE done_at IS NULL DO UPDATE SET reason = c.reason
               RETURNING extract(epoch FROM clock_timestamp() - c.noticed_at)::float8 AS "since!""#,
            sandbox_id,
            pool,
            reason,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Duration::from_secs_f64(since.max(0.0)))
    }

    /// It was killed.
    pub async fn orphan_killed(&self, sandbox_id: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.corrections SET done_at = clock_timestamp() WHERE kind = 'orphan' AND subject = $1 AND done_at IS NULL",
            sandbox_id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Orphans that E2B lists no more need no correction; old ones are forgotten.
    pub async fn settle_corrections(&self, listed: &[String]) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.corrections
             WHERE (done_at IS NULL AND kind = 'orphan' AND subject <> ALL ($1)) OR noticed_at < clock_timestamp() - interval '30 days'",
            listed
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Releases slots that are held for a turn which has no job any more, which no single statement of ours leaves
    /// behind; their numbers.
    pub async fn release_leaked_slots(&self) -> sqlx::Result<Vec<i64>> {
        sqlx::query_scalar!(
            r#"WITH leaked AS MATERIALIZED (
                 SELECT s.id FROM turnmill.slots s
                 WHERE s.state IN ('creating', 'busy')
                   AND NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.turn_id = s.turn_id AND j.slot_id = s.id AND j.epoch = s.epoch)
                 FOR NO KEY UPDATE SKIP LOCKED),
               released AS (
                 UPDATE turnmill.slots s SET state = 'releasing', epoch = nextval('turnmill.epochs'), due_at = clock_timestamp(), turn_id = NULL
                 FROM leaked WHERE s.id = leaked.id
                 RETURNING s.id, s.pool)
               INSERT INTO turnmill.corrections (kind, subject, pool, reason, done_at)
               SELECT 'leaked_slot', id::text, pool, 'held for a turn that has no job', clock_timestamp() FROM released
               RETURNING subject::bigint AS "id!""#
        )
        .fetch_all(&self.pool)
        .await
    }

    /// What E2B says is running, per pool.
    pub async fn note_reported(&self, pools: &[String], counts: &[i32]) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.pool_states q
             SET reported = coalesce((SELECT n FROM unnest($1::text[], $2::int[]) AS r(pool, n) WHERE r.pool = q.pool), 0),
                 reported_at = clock_timestamp()",
            pools,
            counts,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The newest corrections.
    pub async fn corrections(&self, limit: i64) -> sqlx::Result<Vec<Correction>> {
        sqlx::query_as!(
            Correction,
            "SELECT kind, subject, reason, noticed_at, done_at FROM turnmill.corrections ORDER BY noticed_at DESC LIMIT $1",
            limit
        )
        .fetch_all(&self.pool)
        .await
    }
}
