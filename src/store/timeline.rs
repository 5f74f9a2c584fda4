//! One turn with all that happened to it: what it is, who had it when, what it said.

use chrono::{DateTime, Utc};

use super::Store;

/// A turn as operators see it.
#[derive(Debug, Clone)]
pub struct OpsTurn {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session_id: String,
    /// Place in the session.
    pub ordinal: i32,
    /// Its project.
    pub project_id: String,
    /// Who talks.
    pub user_id: Option<String>,
    /// Who pays.
    pub tenant_id: Option<String>,
    /// Where it runs.
    pub pool: String,
    /// pending, `in_progress`, completed, failed, cancelled.
    pub status: String,
    /// Why it waits, if it does.
    pub wait_reason: Option<String>,
    /// Somebody wants it cancelled.
    pub cancelling: bool,
    /// Of its job: waiting, ready or leased.
    pub job_state: Option<String>,
    /// How far it is.
    pub phase: Option<String>,
    /// Who has it.
    pub worker_id: Option<String>,
    /// Until when that one may act.
    pub lease_until: Option<DateTime<Utc>>,
    /// Not before then.
    pub run_at: Option<DateTime<Utc>>,
    /// The slot that it holds.
    pub slot_id: Option<i64>,
    /// The sandbox in it.
    pub sandbox_id: Option<String>,
    /// Bytes of the journal that are committed.
    pub journal_offset: Option<i64>,
    /// Start-ups that failed.
    pub failures: Option<i32>,
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
    /// Blocks so far.
    pub blocks: i32,
    /// What went wrong, at last or with the newest try.
    pub error_code: Option<String>,
    /// The same, for people.
    pub error_message: Option<String>,
    /// Tokens.
    pub usage: Option<serde_json::Value>,
    /// Model cost.
    pub cost_usd: Option<f64>,
    /// The turn that it repeats.
    pub retry_of: Option<String>,
    /// When enqueued.
    pub created_at: DateTime<Utc>,
    /// First claim.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Now, by the database's clock.
    pub now: DateTime<Utc>,
}

/// One worker's time with a turn.
#[derive(Debug, Clone)]
pub struct Period {
    /// The fence that it acted under.
    pub epoch: i64,
    /// Which start of the agent.
    pub attempt: i32,
    /// The turn's generation then.
    pub generation: i32,
    /// Who.
    pub worker_id: String,
    /// claimed, adopted or resumed.
    pub taken: String,
    /// When.
    pub taken_at: DateTime<Utc>,
    /// The journal byte where it went on.
    pub from_offset: i64,
    /// Seq of the first block that it could write.
    pub from_seq: i32,
    /// The sandbox.
    pub sandbox_id: Option<String>,
    /// new, warm or paused: where it found that.
    pub sandbox: Option<String>,
    /// When the sandbox was ready.
    pub sandbox_at: Option<DateTime<Utc>>,
    /// When its agent was known to run.
    pub agent_at: Option<DateTime<Utc>>,
    /// Its first block.
    pub first_block_at: Option<DateTime<Utc>>,
    /// Its last block so far.
    pub last_block_at: Option<DateTime<Utc>>,
    /// Blocks that it wrote.
    pub blocks: i64,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// settled, retry, `handed_over` or lost.
    pub ended: Option<String>,
    /// The journal byte up to which it committed.
    pub to_offset: Option<i64>,
    /// How far it was.
    pub phase: Option<String>,
    /// What ended it.
    pub error_code: Option<String>,
    /// The same, for people.
    pub detail: Option<String>,
    /// When its worker was last heard of.
    pub heard_at: Option<DateTime<Utc>>,
}

/// A block as it is shown: long texts in it are cut.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its place.
    pub seq: i32,
    /// The generation that it belongs to.
    pub generation: i32,
    /// The attempt that said it.
    pub attempt: i32,
    /// thinking, content, `tool_use`, `tool_result`.
    pub kind: String,
    /// See `turnmill.blocks.content`.
    pub content: serde_json::Value,
    /// Something in it was cut.
    pub cut: bool,
    /// The subagent's `tool_use`.
    pub parent_tool_use_id: Option<String>,
    /// When committed.
    pub created_at: DateTime<Utc>,
}

/// Some of a turn's blocks, in order.
#[derive(Debug, Clone, Default)]
pub struct SaidPage {
    /// The blocks.
    pub blocks: Vec<Said>,
    /// There are more in the direction that was asked for.
    pub more: bool,
}

/// Characters of one text of a block that are shown.
const SHOWN_CHARS: i32 = 65_536;

/// Characters of a message that are shown.
const PROMPT_CHARS: i32 = 20_000;

impl Store {
    /// One turn; `None`: no such id.
    pub async fn ops_turn(&self, id: &str) -> sqlx::Result<Option<OpsTurn>> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            OpsTurn,
            r#"SELECT t.id, t.session_id, t.ordinal, t.project_id, s.user_id, s.tenant_id, s.pool, t.status, turnmill.wait_reason(t.id) AS wait_reason,
                 EXISTS (SELECT FROM turnmill.cancel_requests c WHERE c.turn_id = t.id) AS "cancelling!",
                 j.state AS "job_state?", j.phase AS "phase?", j.worker_id AS "worker_id?", w.lease_until AS "lease_until?", j.run_at AS "run_at?",
                 j.slot_id AS "slot_id?", x.sandbox_id AS "sandbox_id?", j.journal_offset AS "journal_offset?", j.failures AS "failures?",
                 left(t.prompt, $2) AS "prompt!", length(t.prompt) <= $2 AS "prompt_whole!", t.options, t.attempt, t.generation,
                 coalesce(j.next_seq, t.blocks) AS "blocks!", t.error_code, t.error_message, t.usage, t.cost_usd::float8 AS cost_usd, t.retry_of,
                 t.created_at, t.started_at, t.completed_at, clock_timestamp() AS "now!"
               FROM turnmill.turns t JOIN turnmill.sessions s ON s.id = t.session_id
               LEFT JOIN turnmill.jobs j ON j.turn_id = t.id
               LEFT JOIN turnmill.workers w ON w.id = j.worker_id
               LEFT JOIN turnmill.slots x ON x.id = j.slot_id AND x.turn_id = t.id
               WHERE t.id = $1"#,
            id,
            PROMPT_CHARS,
        )
        .fetch_optional(&mut tx)
        .await;
        tx.done(row).await
    }

    /// Who had the turn when, oldest first; the newest two hundred.
    pub async fn periods(&self, turn_id: &str) -> sqlx::Result<Vec<Period>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            Period,
            r#"WITH had AS MATERIALIZED (
                 SELECT a.*, lead(a.from_seq) OVER (ORDER BY a.epoch) AS until_seq
                 FROM (SELECT * FROM turnmill.attempts WHERE turn_id = $1 ORDER BY epoch DESC LIMIT 200) a)
               SELECT a.epoch AS "epoch!", a.attempt AS "attempt!", a.generation AS "generation!", a.worker_id AS "worker_id!", a.taken AS "taken!",
                 a.taken_at AS "taken_at!", a.from_offset AS "from_offset!", a.from_seq AS "from_seq!", a.sandbox_id, a.sandbox, a.sandbox_at, a.agent_at,
                 first.created_at AS "first_block_at?", last.created_at AS "last_block_at?",
                 coalesce(last.seq - a.from_seq + 1, 0)::bigint AS "blocks!",
                 a.ended_at, a.ended, a.to_offset, a.phase, a.error_code, a.detail, a.heard_at
               FROM had a
               LEFT JOIN LATERAL (
                 SELECT b.created_at FROM turnmill.blocks b
                 WHERE b.turn_id = $1 AND b.seq >= a.from_seq AND b.seq < coalesce(a.until_seq, 2147483647) ORDER BY b.seq LIMIT 1) first ON true
               LEFT JOIN LATERAL (
                 SELECT b.created_at, b.seq FROM turnmill.blocks b
                 WHERE b.turn_id = $1 AND b.seq >= a.from_seq AND b.seq < coalesce(a.until_seq, 2147483647) ORDER BY b.seq DESC LIMIT 1) last ON true
               ORDER BY a.epoch"#,
            turn_id
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Blocks after one, oldest first.
    pub async fn said_after(&self, turn_id: &str, after: i32, limit: i64) -> sqlx::Result<SaidPage> {
        self.said(turn_id, after, i32::MAX, false, limit).await
    }

    /// The last blocks before one, oldest first.
    pub async fn said_before(&self, turn_id: &str, before: i32, limit: i64) -> sqlx::Result<SaidPage> {
        let mut page = self.said(turn_id, -1, before, true, limit).await?;
        page.blocks.reverse();
        Ok(page)
    }

    async fn said(&self, turn_id: &str, after: i32, before: i32, backwards: bool, limit: i64) -> sqlx::Result<SaidPage> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            Said,
            r#"SELECT b.seq AS "seq!", b.generation AS "generation!", b.attempt AS "attempt!", b.type AS "kind!", shown.content AS "content!", shown.cut AS "cut!",
                 b.parent_tool_use_id, b.created_at AS "created_at!"
               FROM (
                 (SELECT * FROM turnmill.blocks WHERE NOT $4::boolean AND turn_id = $1 AND seq > $2 AND seq < $3 ORDER BY seq LIMIT $5)
                 UNION ALL
                 (SELECT * FROM turnmill.blocks WHERE $4::boolean AND turn_id = $1 AND seq > $2 AND seq < $3 ORDER BY seq DESC LIMIT $5)) b
               CROSS JOIN LATERAL (
                 SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN length(e.value #>> '{}') > $6 THEN to_jsonb(left(e.value #>> '{}', $6)) ELSE e.value END), '{}') AS content,
                   coalesce(bool_or(length(e.value #>> '{}') > $6), false) AS cut
                 FROM jsonb_each(b.content) e) shown
               ORDER BY CASE WHEN $4 THEN -b.seq ELSE b.seq END"#,
            turn_id,
            after,
            before,
            backwards,
            limit + 1,
            SHOWN_CHARS,
        )
        .fetch_all(&mut tx)
        .await;
        let mut blocks = tx.done(rows).await?;
        let more = i64::try_from(blocks.len()).unwrap_or(0) > limit;
        blocks.truncate(usize::try_from(limit).unwrap_or(0));
        Ok(SaidPage { blocks, more })
    }

    /// One block, whole.
    pub async fn block(&self, turn_id: &str, seq: i32) -> sqlx::Result<Option<serde_json::Value>> {
        sqlx::query_scalar!("SELECT content FROM turnmill.blocks WHERE turn_id = $1 AND seq = $2", turn_id, seq)
            .fetch_optional(&self.pool)
            .await
    }
}
