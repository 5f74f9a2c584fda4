//! Worker processes and their leases: one row per process boot, one heartbeat for all its jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Store;

/// A worker process as the database sees it.
#[derive(Debug, Clone)]
pub struct WorkerRow {
    /// Host, pid and random part.
    pub id: String,
    /// active, draining or gone.
    pub state: String,
    /// Whether its lease holds now, by the database's clock.
    pub alive: bool,
    /// Turns that it has.
    pub turns: i64,
    /// Turns that it runs at once.
    pub turns_max: i32,
    /// Version of its binary.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

/// What a renewal of the lease came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It was held all the time.
    Extended,
    /// It had run out, so others may have adopted the jobs, and is now new: the caller must have let go of everything
    /// that it did under the old one.
    Anew,
    /// The database has another fleet's id now, or does not know this process: it must not act any more.
    Refused,
}

impl Store {
    /// Makes the process known and gives it its first lease.
    pub async fn register_worker(&self, id: &str, lease: Duration, turns_max: i32, host: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "INSERT INTO turnmill.workers (id, lease_until, turns_max, host, pid, version)
             VALUES ($1, clock_timestamp() + make_interval(secs => $2), $3, $4, $5, $6)
             ON CONFLICT (id) DO NOTHING",
            id,
            lease.as_secs_f64(),
            turns_max,
            host,
            i32::try_from(std::process::id()).unwrap_or_default(),
            env!("CARGO_PKG_VERSION"),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Extends the lease, if the database still belongs to this fleet.
    pub async fn renew(&self, id: &str, fleet_id: &str, lease: Duration) -> sqlx::Result<Renewal> {
        let held = sqlx::query_scalar!(
            r#"WITH before AS MATERIALIZED (
                 SELECT id, lease_until > clock_timestamp() AS held FROM turnmill.workers
                 WHERE id = $1 AND EXISTS (SELECT FROM turnmill.fleet f WHERE f.id = $3) FOR NO KEY UPDATE)
               UPDATE turnmill.workers w
               SET lease_until = clock_timestamp() + make_interval(secs => $2), heartbeat_at = clock_timestamp(), state = 'active'
               FROM before WHERE w.id = before.id
               RETURNING before.held AS "held!""#,
            id,
            lease.as_secs_f64(),
            fleet_id,
        )
        .fetch_optional(&self.heartbeats)
        .await?;
        Ok(match held {
            Some(true) => Renewal::Extended,
            Some(false) => Renewal::Anew,
            None => Renewal::Refused,
        })
    }

    /// Ends the lease now: whatever the process still has is adopted by others at once.
    pub async fn release_worker(&self, id: &str) -> sqlx::Result<()> {
        sqlx::query!("UPDATE turnmill.duties SET lease_until = clock_timestamp() WHERE worker_id = $1", id).execute(&self.pool).await?;
        sqlx::query!(
            "UPDATE turnmill.workers SET lease_until = clock_timestamp(), released_at = clock_timestamp(), state = 'gone' WHERE id = $1",
            id
        )
        .execute(&self.pool)
        .await?;
        self.wake_claimers().await
    }

    /// All workers that were seen in the last hour, newest first.
    pub async fn workers(&self) -> sqlx::Result<Vec<WorkerRow>> {
        sqlx::query_as!(
            WorkerRow,
            r#"SELECT w.id, w.state, w.lease_until > clock_timestamp() AS "alive!", w.turns_max, w.version, w.started_at,
                      (SELECT count(*) FROM turnmill.jobs j WHERE j.state = 'leased' AND j.worker_id = w.id) AS "turns!"
               FROM turnmill.workers w WHERE w.heartbeat_at > clock_timestamp() - interval '1 hour'
               ORDER BY w.started_at DESC"#
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Marks workers whose lease ran out long ago as gone, and forgets those of last week.
    pub(super) async fn sweep_workers(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.workers SET state = 'gone'
             WHERE state <> 'gone' AND lease_until < clock_timestamp() - interval '1 minute'"
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!(
            "DELETE FROM turnmill.workers w
             WHERE w.state = 'gone' AND w.heartbeat_at < clock_timestamp() - interval '7 days'
               AND NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.state = 'leased' AND j.worker_id = w.id)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
