//! Sandboxes that somebody wants killed: asked for by whoever may not have E2B's key, carried out by any worker that has.
//!
//! The request is the record of an act that can't be undone: it stays until E2B says that the sandbox is gone, whoever dies
//! on the way. A sandbox id is never used twice, so a kill that comes late or again hits nothing else.

use std::time::Duration;

use serde_json::json;

use super::Store;
use super::audit::{Act, Actor, note};
use super::db::Tx;

/// Where a sandbox is, for whoever is about to kill it.
#[derive(Debug, Clone)]
pub struct SandboxPlace {
    /// creating, busy, warm, pausing, releasing, parked, doomed or orphan.
    pub place: String,
    /// Its slot, if it has one.
    pub slot_id: Option<i64>,
    /// Its pool, if known.
    pub pool: Option<String>,
    /// The session whose it is.
    pub session_id: Option<String>,
    /// The turn that runs in it.
    pub turn_id: Option<String>,
    /// How far that is.
    pub phase: Option<String>,
    /// Sandboxes that this turn has lost before.
    pub sandboxes_lost: Option<i32>,
    /// Somebody has asked for its end already.
    pub asked: bool,
}

impl Store {
    /// Where a sandbox of this fleet is; `None`: it has none of that id.
    pub async fn sandbox_place(&self, sandbox_id: &str) -> sqlx::Result<Option<SandboxPlace>> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            SandboxPlace,
            r#"SELECT x.place AS "place!", x.slot_id, x.pool, x.session_id, j.turn_id AS "turn_id?", j.phase AS "phase?", j.sandboxes_lost AS "sandboxes_lost?",
                 EXISTS (SELECT FROM turnmill.sandbox_kills k WHERE k.sandbox_id = $1) AS "asked!"
               FROM (
                 SELECT 1 AS nth, s.state AS place, s.id AS slot_id, s.pool, s.session_id, s.turn_id FROM turnmill.slots s WHERE s.sandbox_id = $1
                 UNION ALL
                 SELECT 2, CASE WHEN p.doomed THEN 'doomed' ELSE 'parked' END, NULL, p.pool, p.session_id, NULL FROM turnmill.parked p WHERE p.sandbox_id = $1
                 UNION ALL
                 SELECT 3, 'orphan', NULL, c.pool, NULL, NULL FROM turnmill.corrections c WHERE c.kind = 'orphan' AND c.subject = $1 AND c.done_at IS NULL) x
               LEFT JOIN turnmill.jobs j ON j.turn_id = x.turn_id AND j.slot_id = x.slot_id
               ORDER BY x.nth LIMIT 1"#,
            sandbox_id
        )
        .fetch_optional(&mut tx)
        .await;
        tx.done(row).await
    }

    /// Asks workers to kill a sandbox, on somebody's word; what it was.
    pub async fn kill_sandbox_by(&self, actor: &Actor, sandbox_id: &str) -> sqlx::Result<String> {
        let mut tx = self.pool.begin().await?;
        let place = ask(&mut tx, actor, sandbox_id).await;
        tx.done(place).await
    }

    /// Takes up to `limit` kills that are due, to be carried out by the caller; by anyone after `hold`. What is kept for a
    /// session is given up with it, so that no turn takes it any more.
    pub async fn due_kills(&self, limit: i64, hold: Duration) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            "WITH due AS MATERIALIZED (
               SELECT sandbox_id FROM turnmill.sandbox_kills WHERE due_at <= clock_timestamp() ORDER BY requested_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED),
             released AS (
               UPDATE turnmill.slots s SET state = 'releasing', epoch = nextval('turnmill.epochs'), due_at = clock_timestamp()
               FROM due WHERE s.sandbox_id = due.sandbox_id AND s.state IN ('warm', 'pausing')),
             doomed AS (
               UPDATE turnmill.parked p SET due_at = clock_timestamp() FROM due WHERE p.sandbox_id = due.sandbox_id AND NOT p.doomed)
             UPDATE turnmill.sandbox_kills k SET due_at = clock_timestamp() + make_interval(secs => $2)
             FROM due WHERE k.sandbox_id = due.sandbox_id RETURNING k.sandbox_id",
            limit,
            hold.as_secs_f64(),
        )
        .fetch_all(&self.pool)
        .await
    }

    /// E2B says that it is gone: so is the request, and what the reconciler had found of it is put right.
    pub async fn killed(&self, sandbox_id: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH done AS (DELETE FROM turnmill.sandbox_kills WHERE sandbox_id = $1)
             UPDATE turnmill.corrections SET done_at = clock_timestamp() WHERE kind = 'orphan' AND subject = $1 AND done_at IS NULL",
            sandbox_id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

async fn ask(tx: &mut Tx, actor: &Actor, sandbox_id: &str) -> sqlx::Result<String> {
    let place = sqlx::query_scalar!(r#"SELECT turnmill.kill_sandbox($1) AS "place!""#, sandbox_id).fetch_one(&mut *tx).await?;
    let turn = sqlx::query_scalar!(
        r#"SELECT turn_id AS "turn_id!" FROM turnmill.slots WHERE sandbox_id = $1 AND turn_id IS NOT NULL"#,
        sandbox_id
    );
    let turn = turn.fetch_optional(&mut *tx).await?;
    note(tx, actor, Act { verb: "kill", kind: "sandbox", subject: sandbox_id }, json!({ "was": place, "turn": turn })).await?;
    Ok(place)
}
