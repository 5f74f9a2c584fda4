//! Turns and their blocks as callers see them: enqueue, cancel, read.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Executor, Postgres};

use super::Store;

/// A turn to enqueue; see the comment of `turnmill.enqueue_turn`.
#[derive(Debug, Clone, Default)]
pub struct Enqueue {
    /// The user's message.
    pub prompt: String,
    /// Needed for a new session.
    pub project_id: Option<String>,
    /// `None`: a new one.
    pub session_id: Option<String>,
    /// The session is new, and begins from where this one is.
    pub fork: Option<String>,
    /// `None`: made.
    pub turn_id: Option<String>,
    /// Makes a repeated enqueue harmless.
    pub idempotency_key: Option<String>,
    /// Allow-listed by the pool; `None`: none.
    pub options: Option<serde_json::Value>,
    /// `None`: the session's, or `default`.
    pub pool: Option<String>,
    /// Higher first, within a pool.
    pub priority: i32,
    /// Who talks.
    pub user_id: Option<String>,
    /// Who pays.
    pub tenant_id: Option<String>,
    /// queue, reject or interrupt; `None`: as the session says.
    pub on_busy: Option<String>,
    /// Files for the agent's working directory, as `enqueue_turn` takes them; `None`: none.
    pub attachments: Option<serde_json::Value>,
}

/// What an enqueue did.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// The turn; `None`: the session was busy and it was not to wait.
    pub turn_id: Option<String>,
    /// Its session.
    pub session_id: String,
    /// Its status.
    pub status: Option<String>,
    /// The idempotency key was known: this is its turn.
    pub replayed: bool,
    /// Why it does not start at once.
    pub waits_for: Option<String>,
    /// started, queued, interrupting or rejected.
    pub disposition: String,
    /// Unfinished turns of its session before it.
    pub queue_position: i32,
}

/// A turn as the web app sees it.
#[derive(Debug, Clone, Serialize)]
pub struct TurnRow {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session_id: String,
    /// Place in the session.
    pub ordinal: i32,
    /// pending, `in_progress`, completed, failed, cancelled.
    pub status: String,
    /// Why it waits, if it does.
    pub waits_for: Option<String>,
    /// The start of the message, for lists.
    pub prompt_start: String,
    /// Starts of the agent.
    pub attempt: i32,
    /// Newest generation.
    pub generation: i32,
    /// What went wrong.
    pub error_code: Option<String>,
    /// The same, for people.
    pub error_message: Option<String>,
    /// Model cost.
    pub cost_usd: Option<f64>,
    /// When enqueued.
    pub created_at: DateTime<Utc>,
    /// First claim.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
}

/// One block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockRow {
    /// Dense from 0.
    pub seq: i32,
    /// The generation that it belongs to.
    pub generation: i32,
    /// thinking, content, `tool_use`, `tool_result`.
    #[serde(rename = "type")]
    pub kind: String,
    /// See `turnmill.blocks.content`.
    pub content: serde_json::Value,
    /// The subagent's `tool_use`.
    pub parent_tool_use_id: Option<String>,
    /// When committed.
    pub created_at: DateTime<Utc>,
}

/// Blocks and status of a turn from one snapshot: with a terminal status there are no more blocks.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The turn's status.
    pub status: String,
    /// Why it waits, if it does.
    pub waits_for: Option<String>,
    /// Tries of it that have failed so far, while another is to come.
    pub failures: i32,
    /// What went wrong, at last or with the newest try.
    pub error_code: Option<String>,
    /// The same, for people.
    pub error_message: Option<String>,
    /// With `seq` above the one asked for, in order.
    pub blocks: Vec<BlockRow>,
}

/// One worker's time with a turn, from `turnmill.attempts`.
#[derive(Debug, Clone, Serialize)]
pub struct Seam {
    /// The fence that it acted under.
    pub epoch: i64,
    /// Who.
    pub worker_id: String,
    /// claimed or adopted.
    pub taken: String,
    /// When.
    pub taken_at: DateTime<Utc>,
    /// The journal byte where it went on.
    pub from_offset: i64,
    /// Seq of the first block that it could write.
    pub from_seq: i32,
    /// Which start of the agent.
    pub attempt: i32,
    /// How it ended, if it has.
    pub ended: Option<String>,
}

impl Enqueue {
    /// The call itself, in whatever transaction.
    pub(super) async fn run(&self, database: impl Executor<'_, Database = Postgres>) -> sqlx::Result<Receipt> {
        sqlx::query_as!(
            Receipt,
            r#"SELECT turn_id, session_id AS "session_id!", status, replayed AS "replayed!", waits_for, disposition AS "disposition!",
                 queue_position AS "queue_position!"
               FROM turnmill.enqueue_turn(prompt => $1, project_id => $2, turn_id => $4,
                 session_id => CASE WHEN $12::text IS NULL THEN $3 ELSE turnmill.fork_session($12, $3) END,
                 idempotency_key => $5, options => coalesce($6, '{}'::jsonb), pool => $7, priority => $8, user_id => $9,
                 tenant_id => $10, on_busy => $11, attachments => coalesce($13, '[]'::jsonb))"#,
            self.prompt,
            self.project_id,
            self.session_id,
            self.turn_id,
            self.idempotency_key,
            self.options,
            self.pool,
            self.priority,
            self.user_id,
            self.tenant_id,
            self.on_busy,
            self.fork,
            self.attachments,
        )
        .fetch_one(database)
        .await
    }
}

impl Store {
    /// Enqueues by the same SQL function that everybody uses.
    pub async fn enqueue(&self, turn: &Enqueue) -> sqlx::Result<Receipt> {
        turn.run(&self.pool).await
    }

    /// Enqueues an ended turn's message again, as a new turn at the end of its session.
    pub async fn retry(&self, turn_id: &str) -> sqlx::Result<Receipt> {
        sqlx::query_as!(
            Receipt,
            r#"SELECT turn_id, session_id AS "session_id!", status, replayed AS "replayed!", waits_for, disposition AS "disposition!",
                 queue_position AS "queue_position!" FROM turnmill.retry_turn($1)"#,
            turn_id,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Makes a session that begins from where another one is, or was after `at`; its id.
    pub async fn fork(&self, session_id: &str, new_id: Option<&str>, at: Option<&str>) -> sqlx::Result<String> {
        let made = sqlx::query_scalar!(r#"SELECT turnmill.fork_session($1, $2, $3) AS "id!""#, session_id, new_id, at);
        made.fetch_one(&self.pool).await
    }

    /// Cancels by the same SQL function that everybody uses: `cancelled`, `cancelling`, or the status it has.
    pub async fn cancel(&self, turn_id: &str, reason: Option<&str>) -> sqlx::Result<String> {
        sqlx::query_scalar!(r#"SELECT turnmill.cancel_turn($1, $2) AS "status!""#, turn_id, reason).fetch_one(&self.pool).await
    }

    /// One turn; `None`: no such id.
    pub async fn turn(&self, turn_id: &str) -> sqlx::Result<Option<TurnRow>> {
        sqlx::query_as!(
            TurnRow,
            r#"SELECT id, session_id, ordinal, status, turnmill.wait_reason(id) AS waits_for, left(prompt, 80) AS "prompt_start!",
                 attempt, generation, error_code, error_message, cost_usd::float8 AS cost_usd, created_at, started_at, completed_at
               FROM turnmill.turns WHERE id = $1"#,
            turn_id
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// The newest turns, optionally of one status.
    pub async fn turns(&self, status: Option<&str>, limit: i64) -> sqlx::Result<Vec<TurnRow>> {
        sqlx::query_as!(
            TurnRow,
            r#"SELECT id, session_id, ordinal, status, turnmill.wait_reason(id) AS waits_for, left(prompt, 80) AS "prompt_start!",
                 attempt, generation, error_code, error_message, cost_usd::float8 AS cost_usd, created_at, started_at, completed_at
               FROM turnmill.turns WHERE $1::text IS NULL OR status = $1
               ORDER BY created_at DESC, id DESC LIMIT $2"#,
            status,
            limit
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Blocks after `after` (-1: all) with the status of the same snapshot; `None`: no such turn.
    pub async fn read(&self, turn_id: &str, after: i32, limit: i64) -> sqlx::Result<Option<Reading>> {
        let rows = sqlx::query!(
            r#"SELECT t.status, turnmill.wait_reason(t.id) AS waits_for, t.error_code, t.error_message,
                 (SELECT j.failures + j.agent_failures FROM turnmill.jobs j WHERE j.turn_id = t.id) AS failures,
                 b.seq AS "seq?", b.generation AS "generation?", b.type AS "type?", b.content AS "content?",
                 b.parent_tool_use_id AS "parent_tool_use_id?", b.created_at AS "created_at?"
               FROM turnmill.turns t
               LEFT JOIN LATERAL (SELECT * FROM turnmill.blocks b WHERE b.turn_id = t.id AND b.seq > $2
                                  ORDER BY b.seq LIMIT $3) b ON true
               WHERE t.id = $1 ORDER BY b.seq"#,
            turn_id,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let mut reading = Reading {
            status: first.status.clone(),
            waits_for: first.waits_for.clone(),
            failures: first.failures.unwrap_or(0),
            error_code: first.error_code.clone(),
            error_message: first.error_message.clone(),
            blocks: Vec::with_capacity(rows.len()),
        };
        reading.blocks.extend(rows.into_iter().filter_map(|r| {
            Some(BlockRow {
                seq: r.seq?,
                generation: r.generation?,
                kind: r.r#type?,
                content: r.content?,
                parent_tool_use_id: r.parent_tool_use_id,
                created_at: r.created_at?,
            })
        }));
        Ok(Some(reading))
    }

    /// Who had the turn when, oldest first.
    pub async fn seams(&self, turn_id: &str) -> sqlx::Result<Vec<Seam>> {
        sqlx::query_as!(
            Seam,
            "SELECT epoch, worker_id, taken, taken_at, from_offset, from_seq, attempt, ended
             FROM turnmill.attempts WHERE turn_id = $1 ORDER BY epoch",
            turn_id
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Sandboxes that the turn has had.
    pub async fn sandboxes_of(&self, turn_id: &str) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            r#"SELECT DISTINCT sandbox_id AS "id!" FROM turnmill.attempts WHERE turn_id = $1 AND sandbox_id IS NOT NULL"#,
            turn_id
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Removes a session with its turns and blocks, once all of its turns have ended. `false`: not yet.
    pub async fn forget_session(&self, session_id: &str) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        // The lock that enqueues take: no turn comes in between.
        let found = sqlx::query!(
            r#"SELECT EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id) AS "busy!"
               FROM turnmill.sessions s WHERE s.id = $1 FOR UPDATE"#,
            session_id
        )
        .fetch_optional(&mut tx)
        .await?;
        if found.is_some_and(|session| session.busy) {
            return Ok(false);
        }
        sqlx::query!("DELETE FROM turnmill.attempts a USING turnmill.turns t WHERE t.session_id = $1 AND a.turn_id = t.id", session_id)
            .execute(&mut tx)
            .await?;
        sqlx::query!("DELETE FROM turnmill.sessions WHERE id = $1", session_id).execute(&mut tx).await?;
        tx.commit().await?;
        Ok(true)
    }
}
