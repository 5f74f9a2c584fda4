//! Slots: the intent of a create, the sandbox once it is known, and its release.
//!
//! free ──claim──▶ creating ──ready──▶ busy ──settle──▶ releasing ──gone──▶ free
//!                                      ▲ └──settle──▶ warm ──▶ pausing ──parked──▶ free
//!                                      └────claim──────┘
//!
//! A slot is free again only when its sandbox is known to be gone or paused, whoever finds out. What is kept for a
//! session, and until when, is in `kept`.

use std::time::Duration;

use super::jobs::fenced;
use super::{Claimed, Fenced, Store};

/// A slot whose sandbox is to be killed, by whoever holds this epoch.
#[derive(Debug, Clone)]
pub struct Releasing {
    /// The slot.
    pub slot_id: i64,
    /// The fence for it.
    pub epoch: i64,
    /// The sandbox; `None` when the create's answer was never seen.
    pub sandbox_id: Option<String>,
    /// Finds the sandbox in E2B's list.
    pub nonce: String,
    /// Since the create was last sent, by the database's clock; `None`: it never was.
    pub since_asked: Option<Duration>,
    /// It is to be paused, not killed.
    pub pause: bool,
}

impl Store {
    /// Right before the create call: from now on a sandbox may exist.
    pub async fn create_asked(&self, job: &Claimed) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "UPDATE turnmill.slots SET asked_at = clock_timestamp(), metered_at = clock_timestamp()
             WHERE id = $1 AND epoch = $2 AND state = 'creating'",
            job.slot_id,
            job.epoch
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(fenced(done))
    }

    /// The sandbox is known: the slot is busy with it, the job goes on to prepare.
    pub async fn sandbox_ready(&self, job: &Claimed, sandbox_id: &str) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "WITH job AS (
               UPDATE turnmill.jobs SET phase = CASE phase WHEN 'sandbox' THEN 'prepare' ELSE phase END
               WHERE turn_id = $1 AND epoch = $2 RETURNING slot_id),
             noted AS (
               UPDATE turnmill.attempts a SET sandbox_id = $3, sandbox_at = clock_timestamp() FROM job WHERE a.epoch = $2),
             room AS (  -- E2B has room again
               UPDATE turnmill.pool_states q SET capacity_hits = 0
               FROM job JOIN turnmill.slots s ON s.id = job.slot_id WHERE q.pool = s.pool AND s.state = 'creating' AND q.capacity_hits > 0)
             UPDATE turnmill.slots s SET state = 'busy', sandbox_id = $3, sandbox_at = coalesce(s.sandbox_at, clock_timestamp())
             FROM job WHERE s.id = job.slot_id AND s.epoch = $2 AND s.state IN ('creating', 'busy')",
            job.turn_id,
            job.epoch,
            sandbox_id,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(fenced(done))
    }

    /// Its sandbox, which was created without such limits, is about to be told what it may reach: whoever has it next must know.
    pub async fn note_network(&self, job: &Claimed) -> sqlx::Result<Result<(), Fenced>> {
        let noted = sqlx::query!(
            r#"UPDATE turnmill.slots s SET create_request = s.create_request || '{"network": {}}' WHERE s.id = $1 AND s.epoch = $2"#,
            job.slot_id,
            job.epoch
        );
        Ok(fenced(noted.execute(&self.pool).await?.rows_affected()))
    }

    /// Takes over pauses and releases that are due, for `hold`: their worker may have died before it came to them.
    pub async fn due_releases(&self, limit: i64, hold: Duration) -> sqlx::Result<Vec<Releasing>> {
        let rows = sqlx::query!(
            r#"WITH due AS MATERIALIZED (
                 SELECT id FROM turnmill.slots WHERE state IN ('pausing', 'releasing') AND due_at <= clock_timestamp()
                 ORDER BY due_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
               UPDATE turnmill.slots s
               SET epoch = nextval('turnmill.epochs'),
                   due_at = clock_timestamp() + make_interval(secs => $2) * CASE s.state WHEN 'pausing' THEN 6 ELSE 1 END
               FROM due WHERE s.id = due.id
               RETURNING s.id, s.epoch AS "epoch!", s.sandbox_id, s.nonce AS "nonce!", s.state = 'pausing' AS "pause!",
                 extract(epoch FROM clock_timestamp() - s.asked_at)::float8 AS since_asked"#,
            limit,
            hold.as_secs_f64(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|r| Releasing {
                slot_id: r.id,
                epoch: r.epoch,
                sandbox_id: r.sandbox_id,
                nonce: r.nonce,
                since_asked: r.since_asked.map(|s| Duration::from_secs_f64(s.max(0.0))),
                pause: r.pause,
            })
            .collect())
    }

    /// The sandbox is gone: the slot comes free, or goes away if the cap was lowered meanwhile. A slot that
    /// comes free takes the place of one that is marked to retire, so that no create starts above the cap.
    /// Wakes the claimers when something waits for it.
    pub async fn slot_freed(&self, slot_id: i64, epoch: i64) -> sqlx::Result<Result<(), Fenced>> {
        self.let_go(slot_id, epoch, false).await
    }

    /// The same where the sandbox is paused: it waits for its session's next turn without a slot.
    pub async fn slot_parked(&self, slot_id: i64, epoch: i64) -> sqlx::Result<Result<(), Fenced>> {
        self.let_go(slot_id, epoch, true).await
    }

    async fn let_go(&self, slot_id: i64, epoch: i64, parked: bool) -> sqlx::Result<Result<(), Fenced>> {
        let row = sqlx::query!(
            r#"WITH mine AS MATERIALIZED (
                 SELECT * FROM turnmill.slots
                 WHERE id = $1 AND epoch = $2 AND state IN ('pausing', 'releasing') FOR UPDATE),
               parked AS (
                 INSERT INTO turnmill.parked (sandbox_id, pool, session_id, holds, nonce, create_request, due_at)
                 SELECT m.sandbox_id, m.pool, m.session_id, m.holds, m.nonce, m.create_request,
                   clock_timestamp() + make_interval(secs => p.paused_s)
                 FROM mine m JOIN turnmill.pools p ON p.name = m.pool WHERE $3),
               -- It ran on after its turn, be it warm or until it was gone: that is its session's.
               booked AS (
                 INSERT INTO turnmill.fresh_charges (epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, seconds, usd)
                 SELECT m.epoch, 'kept', '', (m.at AT TIME ZONE 'UTC')::date, m.at, m.pool, coalesce(n.tenant_id, ''), n.project_id, n.id,
                   m.seconds, m.seconds * coalesce(p.sandbox_usd_per_hour, 0) / 3600
                 FROM (SELECT mine.*, c.at, extract(epoch FROM c.at - mine.metered_at)::numeric(14, 3) AS seconds
                       FROM mine CROSS JOIN (SELECT clock_timestamp() AS at) c) m
                 JOIN turnmill.sessions n ON n.id = m.session_id JOIN turnmill.pools p ON p.name = m.pool
                 WHERE m.sandbox_id IS NOT NULL AND m.seconds >= 1),
               heir AS MATERIALIZED (
                 SELECT s.id FROM turnmill.slots s JOIN mine m ON s.pool = m.pool AND s.id <> m.id
                 WHERE s.retire AND NOT m.retire LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED),
               inherited AS (UPDATE turnmill.slots s SET retire = false FROM heir WHERE s.id = heir.id RETURNING s.id),
               dropped AS (
                 DELETE FROM turnmill.slots s USING mine m
                 WHERE s.id = m.id AND (m.retire OR EXISTS (SELECT FROM heir)) RETURNING s.id),
               freed AS (
                 UPDATE turnmill.slots s
                 SET state = 'free', epoch = NULL, due_at = NULL, turn_id = NULL, session_id = NULL, nonce = NULL,
                     create_request = NULL, asked_at = NULL, sandbox_id = NULL, sandbox_at = NULL, holds = NULL, metered_at = NULL
                 FROM mine m WHERE s.id = m.id AND NOT m.retire AND NOT EXISTS (SELECT FROM heir) RETURNING s.id)
               SELECT count(*) AS "mine!",
                 (SELECT count(pg_notify('turnmill_ready', pool)) FROM mine WHERE EXISTS (
                    SELECT FROM turnmill.jobs j WHERE j.pool = mine.pool AND j.state = 'ready')) AS "woken!" FROM mine"#,
            slot_id,
            epoch,
            parked
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(fenced(u64::try_from(row.mine).unwrap_or(0)))
    }

    /// Slots that hold a sandbox or may.
    pub async fn slots_held(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM turnmill.slots WHERE state <> 'free'"#).fetch_one(&self.pool).await
    }

    /// The same, of one session.
    pub async fn slots_held_by(&self, session_id: &str) -> sqlx::Result<i64> {
        let held = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM turnmill.slots WHERE session_id = $1"#, session_id);
        held.fetch_one(&self.pool).await
    }
}
