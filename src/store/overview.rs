//! How full the queue is, at a price that doesn't grow with it: unfinished turns only, counted up to a limit.

use chrono::{DateTime, Utc};

use super::Store;

/// Up to where jobs of one kind are counted.
pub const COUNTED_MAX: i64 = 10_000;

/// A pool's share of the queue.
#[derive(Debug, Clone)]
pub struct QueueRow {
    /// The pool.
    pub pool: String,
    /// active, paused or blocked.
    pub state: String,
    /// Turns that could start, were there room.
    pub ready: i64,
    /// Turns that run.
    pub running: i64,
    /// Its cap.
    pub cap: i32,
    /// Slots that hold a sandbox.
    pub held: i64,
    /// Since when the first of the ready ones is queued; among the first of each tenant.
    pub oldest_ready_at: Option<DateTime<Utc>>,
}

/// What is not a pool's.
#[derive(Debug, Clone, Copy)]
pub struct QueueTotals {
    /// Turns behind another of their session.
    pub waiting: i64,
    /// Workers with a lease.
    pub workers: i64,
    /// Turns that these can run at once.
    pub turns_max: i64,
}

impl Store {
    /// Whether the database answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        sqlx::query_scalar!("SELECT 1").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// The database's clock.
    pub async fn clock(&self) -> sqlx::Result<DateTime<Utc>> {
        sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(&self.pool).await
    }

    /// Each pool's queue.
    pub async fn queue(&self) -> sqlx::Result<Vec<QueueRow>> {
        sqlx::query_as!(
            QueueRow,
            r#"SELECT p.name AS pool, p.state, p.cap,
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready' LIMIT $1) r) AS "ready!",
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state IN ('creating', 'busy')) AS "running!",
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state <> 'free') AS "held!",
                 (WITH RECURSIVE tenant AS (
                    (SELECT j.tenant_id FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready' ORDER BY j.tenant_id LIMIT 1)
                    UNION ALL
                    SELECT n.tenant_id FROM tenant t CROSS JOIN LATERAL (
                      SELECT j.tenant_id FROM turnmill.jobs j
                      WHERE j.pool = p.name AND j.state = 'ready' AND j.tenant_id > t.tenant_id ORDER BY j.tenant_id LIMIT 1) n)
                  SELECT min(f.queued_at) FROM (SELECT * FROM tenant LIMIT 1000) t CROSS JOIN LATERAL (
                    SELECT j.queued_at FROM turnmill.jobs j
                    WHERE j.pool = p.name AND j.state = 'ready' AND j.tenant_id = t.tenant_id
                    ORDER BY j.priority DESC, j.queued_at LIMIT 1) f) AS oldest_ready_at
               FROM turnmill.pools p ORDER BY p.name"#,
            COUNTED_MAX
        )
        .fetch_all(&self.pool)
        .await
    }

    /// The rest of the queue.
    pub async fn queue_totals(&self) -> sqlx::Result<QueueTotals> {
        sqlx::query_as!(
            QueueTotals,
            r#"SELECT
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.state = 'waiting' LIMIT $1) w) AS "waiting!",
                 count(*) AS "workers!", coalesce(sum(w.turns_max), 0)::bigint AS "turns_max!"
               FROM turnmill.workers w WHERE w.state = 'active' AND w.lease_until > clock_timestamp()"#,
            COUNTED_MAX
        )
        .fetch_one(&self.pool)
        .await
    }
}
