//! Sandboxes as operators look for them: those in slots, those that are paused beside them, and those that nobody knows.
//!
//! Slots are as many as the caps allow, so a page looks at all of them; paused ones are read along the time at which they
//! are due, a page at a time.

use chrono::{DateTime, Utc};

use super::{LOOKED_AT_MAX, Store};

/// What to look for; `None`s: anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldFilter {
    /// Of this pool.
    pub pool: Option<String>,
    /// creating, busy, warm, pausing, releasing, or parked; wrong: leaked or overdue.
    pub state: Option<String>,
    /// Whose turn runs under this worker.
    pub worker: Option<String>,
    /// What is in the id of the sandbox, the turn or the session.
    pub text: Option<String>,
}

/// A slot that holds a sandbox, or may.
#[derive(Debug, Clone)]
pub struct HeldSlot {
    /// Its number.
    pub id: i64,
    /// Its pool.
    pub pool: String,
    /// creating, busy, warm, pausing or releasing.
    pub state: String,
    /// How far its turn is.
    pub phase: Option<String>,
    /// The turn that holds it.
    pub turn_id: Option<String>,
    /// Whose sandbox is in it.
    pub session_id: Option<String>,
    /// E2B's id, once it has said it.
    pub sandbox_id: Option<String>,
    /// Who has the turn.
    pub worker_id: Option<String>,
    /// Seconds since the sandbox was known to run, or was asked for.
    pub age_s: Option<f64>,
    /// Seconds since its turn's last block, or since its agent was started.
    pub silent_s: Option<f64>,
    /// When it is to be paused, killed or taken over.
    pub due_at: Option<DateTime<Utc>>,
    /// Held for a turn that has no job any more.
    pub leaked: bool,
    /// Its release or pause was due a while ago.
    pub overdue: bool,
    /// Goes away instead of coming free.
    pub retire: bool,
    /// Since when somebody wants it killed.
    pub kill_at: Option<DateTime<Utc>>,
}

/// A paused sandbox, which costs no slot.
#[derive(Debug, Clone)]
pub struct ParkedSandbox {
    /// E2B's id.
    pub sandbox_id: String,
    /// Its pool.
    pub pool: String,
    /// Whose it is.
    pub session_id: String,
    /// The turn after which it was paused.
    pub holds: String,
    /// Since when.
    pub parked_at: DateTime<Utc>,
    /// When it is to be killed.
    pub due_at: DateTime<Utc>,
    /// Somebody kills it.
    pub doomed: bool,
    /// Since when somebody wants it killed.
    pub kill_at: Option<DateTime<Utc>>,
}

/// A sandbox that E2B reports and no slot knows.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// E2B's id.
    pub sandbox_id: String,
    /// Its pool, if its labels say it.
    pub pool: Option<String>,
    /// What was found.
    pub reason: String,
    /// When it was first seen.
    pub noticed_at: DateTime<Utc>,
    /// When it was killed; `None`: within its grace.
    pub done_at: Option<DateTime<Utc>>,
    /// Since when somebody wants it killed.
    pub kill_at: Option<DateTime<Utc>>,
}

/// Where a page of paused sandboxes begins: after this one.
pub type AfterParked = Option<(DateTime<Utc>, String)>;

impl Store {
    /// Slots that hold a sandbox: what is wrong first, then the oldest.
    pub async fn held_slots(&self, filter: &HeldFilter, limit: i64) -> sqlx::Result<Vec<HeldSlot>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            HeldSlot,
            r#"WITH held AS MATERIALIZED (
                 SELECT s.id, s.pool, s.state, s.turn_id, s.session_id, s.sandbox_id, s.holds, s.due_at, s.retire,
                   j.phase, j.worker_id, j.epoch AS job_epoch, coalesce(s.sandbox_at, s.asked_at) AS since,
                   (s.state IN ('creating', 'busy') AND j.turn_id IS NULL) AS leaked,
                   (s.state IN ('pausing', 'releasing') AND s.due_at < clock_timestamp() - interval '2 minutes') AS overdue
                 FROM turnmill.slots s
                 LEFT JOIN turnmill.jobs j ON j.turn_id = s.turn_id AND j.slot_id = s.id AND j.epoch = s.epoch
                 WHERE s.state <> 'free'),
               found AS MATERIALIZED (
                 SELECT * FROM held h
                 WHERE ($1::text IS NULL OR h.pool = $1) AND ($2::text IS NULL OR h.state = $2 OR ($2 = 'wrong' AND (h.leaked OR h.overdue)))
                   AND ($3::text IS NULL OR h.worker_id = $3)
                   AND ($4::text IS NULL OR position($4 IN h.sandbox_id) > 0 OR position($4 IN h.turn_id) > 0 OR position($4 IN h.session_id) > 0)
                 ORDER BY (h.leaked OR h.overdue) DESC, h.since, h.id LIMIT $5)
               SELECT f.id AS "id!", f.pool AS "pool!", f.state AS "state!", f.phase AS "phase?", f.turn_id, f.session_id, f.sandbox_id, f.worker_id AS "worker_id?",
                 extract(epoch FROM clock_timestamp() - f.since)::float8 AS age_s,
                 CASE WHEN f.phase = 'agent' THEN extract(epoch FROM clock_timestamp() - coalesce(b.created_at, a.agent_at))::float8 END AS silent_s,
                 f.due_at, f.leaked AS "leaked!", f.overdue AS "overdue!", f.retire AS "retire!", k.requested_at AS "kill_at?"
               FROM found f
               LEFT JOIN turnmill.attempts a ON a.epoch = f.job_epoch
               LEFT JOIN LATERAL (SELECT b.created_at FROM turnmill.blocks b WHERE b.turn_id = f.turn_id AND f.phase = 'agent' ORDER BY b.seq DESC LIMIT 1) b ON true
               LEFT JOIN turnmill.sandbox_kills k ON k.sandbox_id = f.sandbox_id
               ORDER BY (f.leaked OR f.overdue) DESC, f.since, f.id"#,
            filter.pool,
            filter.state,
            filter.worker,
            filter.text,
            limit,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Paused sandboxes, those that are due first.
    pub async fn parked_sandboxes(&self, filter: &HeldFilter, after: &AfterParked, limit: i64) -> sqlx::Result<Vec<ParkedSandbox>> {
        let (at, id) = after.clone().unzip();
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            ParkedSandbox,
            r#"SELECT p.sandbox_id, p.pool, p.session_id, p.holds, p.parked_at, p.due_at, p.doomed, k.requested_at AS "kill_at?"
               FROM (SELECT sandbox_id, pool, session_id, holds, parked_at, due_at, doomed FROM turnmill.parked WHERE due_at >= coalesce($1::timestamptz, '-infinity') ORDER BY due_at LIMIT $6) p
               LEFT JOIN turnmill.sandbox_kills k ON k.sandbox_id = p.sandbox_id
               WHERE ($1::timestamptz IS NULL OR (p.due_at, p.sandbox_id) > ($1, $2)) AND ($3::text IS NULL OR p.pool = $3)
                 AND ($4::text IS NULL OR position($4 IN p.sandbox_id) > 0 OR position($4 IN p.session_id) > 0 OR position($4 IN p.holds) > 0)
               ORDER BY p.due_at, p.sandbox_id LIMIT $5"#,
            at,
            id,
            filter.pool,
            filter.text,
            limit,
            LOOKED_AT_MAX,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Sandboxes that are nobody's, and the last that were: those that live first.
    pub async fn orphans(&self, limit: i64) -> sqlx::Result<Vec<Orphan>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            Orphan,
            r#"SELECT c.subject AS "sandbox_id!", c.pool, c.reason AS "reason!", c.noticed_at AS "noticed_at!", c.done_at, k.requested_at AS "kill_at?"
               FROM (
                 (SELECT * FROM turnmill.corrections WHERE kind = 'orphan' AND done_at IS NULL LIMIT $1)
                 UNION ALL
                 (SELECT * FROM turnmill.corrections WHERE kind = 'orphan' AND noticed_at > statement_timestamp() - interval '1 day' AND done_at IS NOT NULL ORDER BY noticed_at DESC LIMIT 5)) c
               LEFT JOIN turnmill.sandbox_kills k ON k.sandbox_id = c.subject
               ORDER BY (c.done_at IS NOT NULL), c.noticed_at DESC"#,
            limit
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// What is kept for a session's next turn: its warm sandbox, and its paused ones.
    pub async fn kept_for(&self, session_id: &str) -> sqlx::Result<Vec<(String, String, DateTime<Utc>)>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query!(
            r#"(SELECT s.sandbox_id AS "sandbox_id!", s.state AS "state!", s.due_at AS "due_at!" FROM turnmill.slots s
                WHERE s.session_id = $1 AND s.state IN ('warm', 'pausing'))
               UNION ALL
               (SELECT p.sandbox_id, 'paused', p.due_at FROM turnmill.parked p WHERE p.session_id = $1 AND NOT p.doomed ORDER BY p.parked_at DESC LIMIT 10)"#,
            session_id
        )
        .fetch_all(&mut tx)
        .await;
        Ok(tx.done(rows).await?.into_iter().map(|row| (row.sandbox_id, row.state, row.due_at)).collect())
    }
}
