//! What people do through the dashboard: each act with its entry in the audit, in one transaction.
//!
//! A new act is a function here, or beside its noun: it does what it does in a transaction of its own, and calls [`note`]
//! in it.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::db::Tx;
use super::{Receipt, Store};

/// Who acts, and why.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The name of the token, or dev.
    pub name: String,
    /// The token; `None` on a server without them.
    pub token_id: Option<String>,
    /// In their own words.
    pub reason: String,
}

/// What is done, to what.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// As cancel, retry, pause.
    pub verb: &'a str,
    /// As turn, pool, worker.
    pub kind: &'a str,
    /// Its id.
    pub subject: &'a str,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// Its number.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// What.
    pub act: String,
    /// To what kind of thing.
    pub kind: String,
    /// To which.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// What it changed.
    pub detail: Value,
}

/// Enters an act into the audit, in the act's own transaction.
pub(super) async fn note(tx: &mut Tx, actor: &Actor, act: Act<'_>, detail: Value) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO turnmill.audit (actor, token_id, act, kind, subject, reason, detail) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        actor.name,
        actor.token_id,
        act.verb,
        act.kind,
        act.subject,
        actor.reason,
        detail,
    )
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// Cancels a turn on somebody's word; what it is then.
    pub async fn cancel_by(&self, actor: &Actor, turn_id: &str) -> sqlx::Result<String> {
        let why = format!("cancelled by {}: {}", actor.name, actor.reason);
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query_scalar!(r#"SELECT turnmill.cancel_turn($1, $2) AS "status!""#, turn_id, why).fetch_one(&mut tx).await;
        let Ok(status) = done else { return tx.done(done).await };
        note(&mut tx, actor, Act { verb: "cancel", kind: "turn", subject: turn_id }, json!({ "status": status })).await?;
        tx.commit().await?;
        Ok(status)
    }

    /// Enqueues an ended turn's message again on somebody's word.
    pub async fn retry_by(&self, actor: &Actor, turn_id: &str) -> sqlx::Result<Receipt> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query_as!(
            Receipt,
            r#"SELECT turn_id, session_id AS "session_id!", status, replayed AS "replayed!", waits_for, disposition AS "disposition!",
                 queue_position AS "queue_position!" FROM turnmill.retry_turn($1)"#,
            turn_id,
        )
        .fetch_one(&mut tx)
        .await;
        let Ok(receipt) = done else { return tx.done(done).await };
        note(&mut tx, actor, Act { verb: "retry", kind: "turn", subject: turn_id }, json!({ "made": receipt.turn_id })).await?;
        tx.commit().await?;
        Ok(receipt)
    }

    /// The newest entries, of one thing or of all; below a number.
    pub async fn audit(&self, of: Option<(&str, &str)>, below: Option<i64>, limit: i64) -> sqlx::Result<Vec<AuditRow>> {
        let (kind, subject) = of.unzip();
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            AuditRow,
            "SELECT id, at, actor, act, kind, subject, reason, detail FROM turnmill.audit
             WHERE ($1::text IS NULL OR (kind = $1 AND subject = $2)) AND id < coalesce($3, 9223372036854775807)
             ORDER BY id DESC LIMIT $4",
            kind,
            subject,
            below,
            limit,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }
}
