//! Worker processes and their leases: one row per process boot, one heartbeat for all its jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::Store;
use super::audit::{Act, Actor, note};
use super::db::Tx;

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
    /// Its host's name.
    pub host: String,
    /// Its process there.
    pub pid: i32,
    /// Seconds since its last heartbeat.
    pub heartbeat_s: f64,
    /// Until when it may act.
    pub lease_until: DateTime<Utc>,
    /// When somebody wanted it to end.
    pub drain_at: Option<DateTime<Utc>>,
    /// When it gave its lease back in order.
    pub released_at: Option<DateTime<Utc>>,
}

/// Workers that are listed at most: the newest.
pub const WORKERS_MAX: i64 = 1000;

/// What a renewal of the lease came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It was held all the time.
    Extended,
    /// It had run out, so others may have adopted the jobs, and is now new: the caller must have let go of everything
    /// that it did under the old one.
    Anew,
    /// Somebody wants it to end: it is to hand over and exit, as at SIGTERM.
    Drain,
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
        let row = sqlx::query!(
            r#"WITH before AS MATERIALIZED (
                 SELECT id, lease_until > clock_timestamp() AS held FROM turnmill.workers
                 WHERE id = $1 AND EXISTS (SELECT FROM turnmill.fleet f WHERE f.id = $3) FOR NO KEY UPDATE)
               UPDATE turnmill.workers w
               SET lease_until = clock_timestamp() + make_interval(secs => $2), heartbeat_at = clock_timestamp(),
                 state = CASE WHEN w.drain_at IS NULL THEN 'active' ELSE 'draining' END
               FROM before WHERE w.id = before.id
               RETURNING before.held AS "held!", w.drain_at IS NOT NULL AS "drain!""#,
            id,
            lease.as_secs_f64(),
            fleet_id,
        )
        .fetch_optional(&self.heartbeats)
        .await?;
        Ok(match row {
            Some(row) if row.drain => Renewal::Drain,
            Some(row) if row.held => Renewal::Extended,
            Some(_) => Renewal::Anew,
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

    /// Asks a worker to end in order, on somebody's word; how many turns it hands over.
    pub async fn drain_worker_by(&self, actor: &Actor, id: &str) -> sqlx::Result<i64> {
        let mut tx = self.pool.begin().await?;
        let turns = drain(&mut tx, actor, id).await;
        tx.done(turns).await
    }

    /// All workers that were seen in the last hour, newest first.
    pub async fn workers(&self) -> sqlx::Result<Vec<WorkerRow>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            WorkerRow,
            r#"SELECT w.id, w.state, w.lease_until > clock_timestamp() AS "alive!", w.turns_max, w.version, w.started_at,
                      w.host, w.pid, extract(epoch FROM clock_timestamp() - w.heartbeat_at)::float8 AS "heartbeat_s!", w.lease_until, w.drain_at, w.released_at,
                      (SELECT count(*) FROM turnmill.jobs j WHERE j.state = 'leased' AND j.worker_id = w.id) AS "turns!"
               FROM turnmill.workers w WHERE w.heartbeat_at > clock_timestamp() - interval '1 hour'
               ORDER BY w.started_at DESC LIMIT $1"#,
            WORKERS_MAX
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
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

async fn drain(tx: &mut Tx, actor: &Actor, id: &str) -> sqlx::Result<i64> {
    let turns = sqlx::query_scalar!(r#"SELECT turnmill.drain_worker($1) AS "turns!""#, id).fetch_one(&mut *tx).await?;
    note(tx, actor, Act { verb: "drain", kind: "worker", subject: id }, json!({ "turns": turns })).await?;
    Ok(turns)
}
