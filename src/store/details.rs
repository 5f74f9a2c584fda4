//! Turns as callers of the API see them, within their bounds: whole, and in lists.

use chrono::{DateTime, Utc};

use super::{Bounds, Store};

/// A turn, whole.
#[derive(Debug, Clone)]
pub struct TurnDetail {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session_id: String,
    /// Place in the session.
    pub ordinal: i32,
    /// pending, `in_progress`, completed, failed, cancelled.
    pub status: String,
    /// Why it waits, if it does.
    pub wait_reason: Option<String>,
    /// Unfinished turns of its session before it.
    pub queue_position: Option<i64>,
    /// The user's message, or its start.
    pub prompt: String,
    /// Whether that is all of it.
    pub prompt_whole: bool,
    /// As given.
    pub options: serde_json::Value,
    /// Starts of the agent.
    pub attempt: i32,
    /// Newest generation.
    pub generation: i32,
    /// What went wrong, at last or with the newest try.
    pub error_code: Option<String>,
    /// The same, for people.
    pub error_message: Option<String>,
    /// Tokens.
    pub usage: Option<serde_json::Value>,
    /// Model cost.
    pub cost_usd: Option<f64>,
    /// Seconds for which it held a running sandbox.
    pub sandbox_s: Option<f64>,
    /// What these cost.
    pub sandbox_usd: Option<f64>,
    /// The turn that it repeats.
    pub retry_of: Option<String>,
    /// When enqueued.
    pub created_at: DateTime<Utc>,
    /// First claim.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// Characters of a message that a list shows.
const SHOWN_IN_LISTS: i32 = 2000;

impl Store {
    /// One turn; `None`: no such id, or out of bounds.
    pub async fn turn_detail(&self, id: &str, bounds: &Bounds) -> sqlx::Result<Option<TurnDetail>> {
        sqlx::query_as!(
            TurnDetail,
            r#"SELECT t.id, t.session_id, t.ordinal, t.status, turnmill.wait_reason(t.id) AS wait_reason,
                 (SELECT count(*) FROM turnmill.jobs j, turnmill.jobs b
                  WHERE j.turn_id = t.id AND b.session_id = t.session_id AND b.ordinal < t.ordinal) AS queue_position,
                 t.prompt, true AS "prompt_whole!", t.options, t.attempt, t.generation, t.error_code, t.error_message, t.usage,
                 t.cost_usd::float8 AS cost_usd, t.sandbox_s::float8 AS sandbox_s, t.sandbox_usd::float8 AS sandbox_usd,
                 t.retry_of, t.created_at, t.started_at, t.completed_at
               FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = t.session_id
               WHERE t.id = $1 AND ($2::text IS NULL OR s.project_id = $2) AND ($3::text IS NULL OR s.tenant_id = $3)
                 AND ($4::text IS NULL OR s.id = $4)"#,
            id,
            bounds.project_id,
            bounds.tenant_id,
            bounds.session_id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// A session's turns below an ordinal, newest first; the caller has made sure that the session is in bounds.
    pub async fn turns_of(&self, session_id: &str, below: Option<i32>, limit: i64) -> sqlx::Result<Vec<TurnDetail>> {
        sqlx::query_as!(
            TurnDetail,
            r#"SELECT t.id, t.session_id, t.ordinal, t.status, turnmill.wait_reason(t.id) AS wait_reason,
                 NULL::bigint AS queue_position,
                 left(t.prompt, $4) AS "prompt!", length(t.prompt) <= $4 AS "prompt_whole!",
                 t.options, t.attempt, t.generation, t.error_code, t.error_message, t.usage,
                 t.cost_usd::float8 AS cost_usd, t.sandbox_s::float8 AS sandbox_s, t.sandbox_usd::float8 AS sandbox_usd,
                 t.retry_of, t.created_at, t.started_at, t.completed_at
               FROM turnmill.turns t
               WHERE t.session_id = $1 AND t.ordinal < coalesce($2, 2147483647)
               ORDER BY t.ordinal DESC LIMIT $3"#,
            session_id,
            below,
            limit,
            SHOWN_IN_LISTS,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// The session and place of a turn; `None`: no such id, or out of bounds.
    pub async fn place_of(&self, turn_id: &str, bounds: &Bounds) -> sqlx::Result<Option<(String, i32)>> {
        let row = sqlx::query!(
            "SELECT t.session_id, t.ordinal FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = t.session_id
             WHERE t.id = $1 AND ($2::text IS NULL OR s.project_id = $2) AND ($3::text IS NULL OR s.tenant_id = $3)
               AND ($4::text IS NULL OR s.id = $4)",
            turn_id,
            bounds.project_id,
            bounds.tenant_id,
            bounds.session_id,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|r| (r.session_id, r.ordinal)))
    }

    /// Changes message or options of a turn that has not started; `None` leaves what is there.
    pub async fn edit(&self, turn_id: &str, prompt: Option<&str>, options: Option<&serde_json::Value>) -> sqlx::Result<()> {
        sqlx::query!("SELECT turnmill.edit_turn($1, $2, $3)", turn_id, prompt, options).execute(&self.pool).await?;
        Ok(())
    }

    /// Cancels a turn only if it has not started.
    pub async fn withdraw(&self, turn_id: &str) -> sqlx::Result<()> {
        sqlx::query!("SELECT turnmill.withdraw_turn($1)", turn_id).execute(&self.pool).await?;
        Ok(())
    }

    /// Enqueues an ended turn's message again; repeating that with the same key is harmless.
    pub async fn retry_with_key(&self, turn_id: &str, key: Option<&str>) -> sqlx::Result<super::Receipt> {
        sqlx::query_as!(
            super::Receipt,
            r#"SELECT turn_id, session_id AS "session_id!", status, replayed AS "replayed!", waits_for, disposition AS "disposition!",
                 queue_position AS "queue_position!" FROM turnmill.retry_turn($1, idempotency_key => $2)"#,
            turn_id,
            key,
        )
        .fetch_one(&self.pool)
        .await
    }
}
