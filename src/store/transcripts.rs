//! What the agent remembers of a conversation, kept when a turn ends for the next one.

use super::{Claimed, Store};
use crate::block::Block;

/// What is there of a session before one of its turns.
#[derive(Debug, Clone)]
pub struct Past {
    /// Place of the newest turn before it whose agent was started; `None`: it is the first.
    pub spoke: Option<i32>,
    /// The newest conversation that was saved before it, gzip, and after which turn.
    pub saved: Option<(i32, Vec<u8>)>,
}

impl Store {
    /// The session before this turn.
    pub async fn past(&self, job: &Claimed) -> sqlx::Result<Past> {
        let row = sqlx::query!(
            r#"SELECT (SELECT max(t.ordinal) FROM turnmill.turns t
                       WHERE t.session_id = $1 AND t.ordinal < $2 AND t.attempt > 0) AS spoke,
                      s.ordinal AS "ordinal?", s.data AS "data?"
               FROM (SELECT) one LEFT JOIN LATERAL (
                 SELECT s.ordinal, s.data FROM turnmill.transcripts s
                 WHERE s.session_id = $1 AND s.ordinal < $2 ORDER BY s.ordinal DESC LIMIT 1) s ON true"#,
            job.session_id,
            job.ordinal,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Past { spoke: row.spoke, saved: row.ordinal.zip(row.data) })
    }

    /// Saves the conversation as it is after this turn, unless somebody else has the turn.
    pub async fn save_transcript(&self, job: &Claimed, gzip: &[u8], bytes: i64) -> sqlx::Result<()> {
        sqlx::query!(
            "INSERT INTO turnmill.transcripts (turn_id, session_id, ordinal, data, bytes)
             SELECT j.turn_id, j.session_id, j.ordinal, $4, $5 FROM turnmill.jobs j
             WHERE j.turn_id = $1 AND j.epoch = $2 AND j.attempt = $3
             ON CONFLICT (turn_id) DO UPDATE SET data = excluded.data, bytes = excluded.bytes, saved_at = clock_timestamp()",
            job.turn_id,
            job.epoch,
            job.attempt,
            gzip,
            bytes,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Puts a block before the answer, once, whoever comes and goes.
    pub async fn tell_context_lost(&self, job: &Claimed, block: &Block) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH job AS (
               UPDATE turnmill.jobs SET context_told = true, next_seq = next_seq + 1
               WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 AND NOT context_told
               RETURNING turn_id, next_seq - 1 AS seq, generation, attempt)
             INSERT INTO turnmill.blocks (turn_id, seq, generation, attempt, type, content)
             SELECT turn_id, seq, generation, attempt, $4, $5 FROM job",
            job.turn_id,
            job.epoch,
            job.attempt,
            block.kind.as_str(),
            block.content,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
