//! What the agent remembers of a conversation, kept when a turn ends for the next one.

use super::{Claimed, Store};
use crate::block::Block;
use crate::keys::Sealed;

/// What there is of the state that a turn begins from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// The turn that it continues: the nearest before it whose agent was started; `None`: it is the first.
    pub from: Option<String>,
    /// Bytes of the conversation after that one; 0: there was none; `None`: nobody has looked.
    pub bytes: Option<i64>,
    /// The newest conversation that was saved before it.
    pub saved: Option<SavedBy>,
    /// Turns since that one whose conversation was not.
    pub missing: i64,
}

/// Who saved a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedBy {
    /// The turn after which it is.
    pub turn_id: String,
    /// The agent's id of it: another session's where that one was forked.
    pub agent_session_id: String,
}

impl Store {
    /// What there is from before this turn.
    pub async fn past(&self, job: &Claimed) -> sqlx::Result<Past> {
        let row = sqlx::query!(
            r#"WITH before AS MATERIALIZED (
                 SELECT a.n, a.id, s.bytes, s.data IS NOT NULL AS saved
                 FROM turnmill.ancestors($1) a LEFT JOIN turnmill.transcripts s ON s.turn_id = a.id WHERE a.started),
               saved AS MATERIALIZED (SELECT n, id FROM before WHERE saved ORDER BY n LIMIT 1)
               SELECT near.id AS "from?", near.bytes AS "bytes?", saved.id AS "saved?", x.agent_session_id::text AS "of?",
                 (SELECT count(*) FROM before b WHERE b.bytes IS DISTINCT FROM 0 AND b.n < coalesce(saved.n, b.n + 1)) AS "missing!"
               FROM (SELECT) one
               LEFT JOIN (SELECT id, bytes FROM before ORDER BY n LIMIT 1) near ON true
               LEFT JOIN saved ON true
               LEFT JOIN turnmill.turns t ON t.id = saved.id
               LEFT JOIN turnmill.sessions x ON x.id = t.session_id"#,
            job.turn_id,
        )
        .fetch_one(&self.pool)
        .await?;
        let saved = row.saved.zip(row.of).map(|(turn_id, agent_session_id)| SavedBy { turn_id, agent_session_id });
        Ok(Past { from: row.from, bytes: row.bytes, saved, missing: row.missing })
    }

    /// The conversation that was saved after a turn, gzip in its seal; `None`: it was forgotten meanwhile.
    pub async fn transcript(&self, turn_id: &str) -> sqlx::Result<Option<Sealed>> {
        let row =
            sqlx::query!(r#"SELECT key_id, data AS "data!" FROM turnmill.transcripts WHERE turn_id = $1 AND data IS NOT NULL"#, turn_id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|r| Sealed { key_id: r.key_id, data: r.data }))
    }

    /// Notes that the conversation has so many bytes after this turn, and saves it, unless somebody else has the turn.
    /// What the pool keeps no longer of the session goes.
    pub async fn save_transcript(&self, job: &Claimed, bytes: i64, saved: Option<&Sealed>) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            "INSERT INTO turnmill.transcripts (turn_id, session_id, ordinal, data, bytes, key_id)
             SELECT j.turn_id, j.session_id, j.ordinal, $4, $5, $6 FROM turnmill.jobs j
             WHERE j.turn_id = $1 AND j.epoch = $2 AND j.attempt = $3
             ON CONFLICT (turn_id) DO UPDATE
             SET data = excluded.data, bytes = excluded.bytes, key_id = excluded.key_id, saved_at = clock_timestamp()",
            job.turn_id,
            job.epoch,
            job.attempt,
            saved.map(|saved| saved.data.as_slice()),
            bytes,
            saved.and_then(|saved| saved.key_id.as_deref()),
        )
        .execute(&mut tx)
        .await?;
        // Counted are those that can be restored. What this turn began from stays, so that it can be retried; and what a fork
        // was made from, until that has begun.
        sqlx::query!(
            "DELETE FROM turnmill.transcripts x
             WHERE x.session_id = $1
               AND x.ordinal < (SELECT n.ordinal FROM turnmill.transcripts n WHERE n.session_id = $1 AND n.data IS NOT NULL
                                ORDER BY n.ordinal DESC LIMIT 1 OFFSET (SELECT p.context_versions - 1 FROM turnmill.pools p WHERE p.name = $2))
               AND x.turn_id IS DISTINCT FROM (SELECT a.id FROM turnmill.ancestors($3) a JOIN turnmill.transcripts b ON b.turn_id = a.id
                                               WHERE b.data IS NOT NULL ORDER BY a.n LIMIT 1)
               AND NOT EXISTS (SELECT FROM turnmill.sessions f WHERE f.forked_from = x.turn_id AND f.turns < 2)",
            job.session_id,
            job.pool,
            job.turn_id,
        )
        .execute(&mut tx)
        .await?;
        tx.commit().await
    }

    /// Forgets what sessions have not come back for in their pool's time.
    pub async fn forget_old(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.transcripts x USING (
               SELECT s.turn_id FROM turnmill.transcripts s
               JOIN turnmill.sessions of ON of.id = s.session_id JOIN turnmill.pools p ON p.name = of.pool
               WHERE s.saved_at < statement_timestamp() - make_interval(days => (SELECT min(q.context_days) FROM turnmill.pools q))
                 AND NOT EXISTS (SELECT FROM turnmill.transcripts newer WHERE newer.session_id = s.session_id
                                 AND newer.saved_at >= clock_timestamp() - make_interval(days => p.context_days))
               ORDER BY s.saved_at LIMIT 1000) old
             WHERE x.turn_id = old.turn_id"
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!(
            "DELETE FROM turnmill.workspaces x USING (
               SELECT s.turn_id FROM turnmill.workspaces s
               JOIN turnmill.sessions of ON of.id = s.session_id JOIN turnmill.pools p ON p.name = of.pool
               WHERE s.saved_at < statement_timestamp() - make_interval(days => (SELECT min(q.context_days) FROM turnmill.pools q))
                 AND NOT EXISTS (SELECT FROM turnmill.workspaces newer WHERE newer.session_id = s.session_id
                                 AND newer.saved_at >= clock_timestamp() - make_interval(days => p.context_days))
               ORDER BY s.saved_at LIMIT 1000) old
             WHERE x.turn_id = old.turn_id"
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
