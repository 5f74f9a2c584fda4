//! What the sampler writes, and what is drawn of it: a row a minute, and failures grouped by what failed.
//!
//! Gauges are noted with every sample. Counts are made once a minute is over, for all minutes since the last one that was
//! counted, and the failures with them in the same statement: none is in twice, whoever samples.

use chrono::{DateTime, Utc};

use super::Store;

/// How full it is at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Turns that could start, were there room.
    pub ready: i64,
    /// Turns behind another of their session.
    pub waiting: i64,
    /// Turns that run.
    pub running: i64,
    /// Age of the oldest that could start.
    pub oldest_ready_s: Option<f64>,
    /// Caps of all pools.
    pub cap: i64,
    /// Slots that hold a sandbox.
    pub held: i64,
    /// What E2B lists as running.
    pub reported: Option<i64>,
    /// Workers that are alive.
    pub workers: i64,
    /// Turns that they can run.
    pub turns_max: i64,
    /// Turns that wait, by reason.
    pub reasons: serde_json::Value,
    /// What is to be said of it.
    pub verdict: String,
}

/// One minute.
#[derive(Debug, Clone)]
pub struct Minute {
    /// Its beginning.
    pub minute: DateTime<Utc>,
    /// Its counts are final.
    pub closed: bool,
    /// Turns enqueued.
    pub enqueued: i32,
    /// Turns started.
    pub started: i32,
    /// Turns completed.
    pub completed: i32,
    /// Turns failed.
    pub failed: i32,
    /// Turns cancelled.
    pub cancelled: i32,
    /// Starts, also the next ones of a turn.
    pub tries: i32,
    /// Attempts that ended with an error.
    pub tries_failed: i32,
    /// Model cost of the turns that ended.
    pub cost_usd: f64,
    /// Seconds from enqueue to claim.
    pub wait_p95_s: Option<f64>,
    /// Turns that could start.
    pub ready: Option<i32>,
    /// Turns behind another.
    pub waiting: Option<i32>,
    /// Turns that run.
    pub running: Option<i32>,
    /// Slots held.
    pub held: Option<i32>,
    /// Caps.
    pub cap: Option<i32>,
}

/// A kind of failure.
#[derive(Debug, Clone)]
pub struct Failure {
    /// How far the attempt was.
    pub phase: String,
    /// Error code.
    pub code: String,
    /// First seen.
    pub first_at: DateTime<Utc>,
    /// Last seen.
    pub last_at: DateTime<Utc>,
    /// Attempts that ended so.
    pub tries: i64,
    /// Turns that failed of it.
    pub turns: i64,
    /// Attempts that ended so in the last hour.
    pub last_hour: i64,
    /// The turn it was last seen with.
    pub last_turn_id: String,
    /// What that said.
    pub last_message: Option<String>,
}

/// Starts of the last minutes that are counted, and how many failed.
#[derive(Debug, Clone, Default)]
pub struct Tries {
    /// Starts.
    pub tries: i64,
    /// Attempts that ended with an error.
    pub failed: i64,
    /// The commonest failure of them, as `PHASE CODE`.
    pub commonest: Option<String>,
    /// Seconds since the last sample.
    pub sampled_s: Option<f64>,
}

impl Store {
    /// Notes a sample in its minute.
    pub async fn note_sample(&self, sample: &Sample) -> sqlx::Result<()> {
        sqlx::query!(
            "INSERT INTO turnmill.metrics_minute (minute, ready, waiting, running, oldest_ready_s, cap, held, reported, workers, turns_max, reasons, verdict)
             VALUES (date_trunc('minute', clock_timestamp()), $1::bigint, $2::bigint, $3::bigint, $4, $5::bigint, $6::bigint, $7::bigint, $8::bigint, $9::bigint, $10, $11)
             ON CONFLICT (minute) DO UPDATE SET ready = excluded.ready, waiting = excluded.waiting, running = excluded.running,
               oldest_ready_s = excluded.oldest_ready_s, cap = excluded.cap, held = excluded.held, reported = excluded.reported,
               workers = excluded.workers, turns_max = excluded.turns_max, reasons = excluded.reasons, verdict = excluded.verdict",
            sample.ready,
            sample.waiting,
            sample.running,
            sample.oldest_ready_s,
            sample.cap,
            sample.held,
            sample.reported,
            sample.workers,
            sample.turns_max,
            sample.reasons,
            sample.verdict,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Counts the minutes that are over, up to an hour's, and forgets those of three months ago.
    pub async fn close_minutes(&self) -> sqlx::Result<i64> {
        let closed = sqlx::query_file_scalar!("src/store/close_minutes.sql").fetch_one(&self.pool).await?;
        sqlx::query!(
            "DELETE FROM turnmill.metrics_minute WHERE minute IN (
               SELECT minute FROM turnmill.metrics_minute WHERE minute < statement_timestamp() - interval '90 days' ORDER BY minute LIMIT 1000)"
        )
        .execute(&self.pool)
        .await?;
        Ok(closed)
    }

    /// The minutes of the last so many, oldest first.
    pub async fn minutes(&self, last: i32) -> sqlx::Result<Vec<Minute>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            Minute,
            r#"SELECT minute, closed, enqueued, started, completed, failed, cancelled, tries, tries_failed, cost_usd::float8 AS "cost_usd!",
                 wait_p95_s, ready, waiting, running, held, cap
               FROM turnmill.metrics_minute WHERE minute >= date_trunc('minute', statement_timestamp()) - make_interval(mins => $1) ORDER BY minute"#,
            last
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Since when the verdict has been this one; `None`: for longer than a day, or nobody has sampled.
    pub async fn verdict_since(&self, verdict: &str) -> sqlx::Result<Option<DateTime<Utc>>> {
        let mut tx = self.pool.glance().await?;
        let since = sqlx::query_scalar!(
            r#"SELECT min(m.minute) FROM turnmill.metrics_minute m
               WHERE m.verdict = $1 AND m.minute > (
                 SELECT o.minute FROM turnmill.metrics_minute o
                 WHERE o.verdict <> $1 AND o.minute > statement_timestamp() - interval '1 day' ORDER BY o.minute DESC LIMIT 1)"#,
            verdict
        )
        .fetch_one(&mut tx)
        .await;
        tx.done(since).await
    }

    /// Kinds of failures, those of the last hour first.
    pub async fn failures(&self, limit: i64) -> sqlx::Result<Vec<Failure>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            Failure,
            r#"WITH hour AS (
                 SELECT f.key, sum(f.value::bigint)::bigint AS n FROM turnmill.metrics_minute m CROSS JOIN jsonb_each_text(m.failures) f
                 WHERE m.minute > statement_timestamp() - interval '1 hour' GROUP BY f.key)
               SELECT f.phase, f.code, f.first_at, f.last_at, f.tries, f.turns, coalesce(hour.n, 0) AS "last_hour!", f.last_turn_id, f.last_message
               FROM turnmill.failures f LEFT JOIN hour ON hour.key = f.phase || ' ' || f.code
               ORDER BY coalesce(hour.n, 0) DESC, f.last_at DESC LIMIT $1"#,
            limit
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Starts and failures of the last five minutes that are counted.
    pub async fn recent_tries(&self) -> sqlx::Result<Tries> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            Tries,
            r#"WITH last AS MATERIALIZED (
                 SELECT * FROM turnmill.metrics_minute WHERE closed AND minute > statement_timestamp() - interval '7 minutes' ORDER BY minute DESC LIMIT 5)
               SELECT coalesce(sum(tries), 0) AS "tries!", coalesce(sum(tries_failed), 0) AS "failed!",
                 (SELECT f.key FROM last s CROSS JOIN jsonb_each_text(s.failures) f GROUP BY f.key ORDER BY sum(f.value::bigint) DESC, f.key LIMIT 1) AS commonest,
                 (SELECT extract(epoch FROM clock_timestamp() - max(lease_until))::float8 FROM turnmill.duties WHERE name = 'sample' AND worker_id IS NOT NULL) AS sampled_s
               FROM last"#
        )
        .fetch_one(&mut tx)
        .await;
        tx.done(row).await
    }
}
