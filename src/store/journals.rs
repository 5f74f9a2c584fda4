//! The raw journals of finished attempts.

use super::{Claimed, Fenced, Store};

/// What one attempt's agent printed.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Which start of the agent.
    pub attempt: i32,
    /// As gzip.
    pub data: Vec<u8>,
    /// Of the journal itself.
    pub bytes: i64,
    /// Whether `data` has all of them.
    pub whole: bool,
}

impl Store {
    /// Keeps what this attempt's agent printed.
    pub async fn save_journal(&self, job: &Claimed, data: &[u8], bytes: i64, whole: bool) -> sqlx::Result<Result<(), Fenced>> {
        let saved = sqlx::query!(
            "INSERT INTO turnmill.journals (turn_id, attempt, data, bytes, whole, forget_at)
             SELECT j.turn_id, j.attempt, $4, $5, $6, clock_timestamp() + make_interval(days => p.journal_days)
             FROM turnmill.jobs j JOIN turnmill.pools p ON p.name = j.pool
             WHERE j.turn_id = $1 AND j.epoch = $2 AND j.attempt = $3 AND j.state = 'leased'
             ON CONFLICT (turn_id, attempt) DO UPDATE
             SET data = excluded.data, bytes = excluded.bytes, whole = excluded.whole, saved_at = excluded.saved_at,
                 forget_at = excluded.forget_at",
            job.turn_id,
            job.epoch,
            job.attempt,
            data,
            bytes,
            whole,
        )
        .execute(&self.pool)
        .await?;
        Ok(if saved.rows_affected() == 1 { Ok(()) } else { Err(Fenced) })
    }

    /// The journal of an attempt, or of the newest that has one.
    pub async fn journal(&self, turn_id: &str, attempt: Option<i32>) -> sqlx::Result<Option<Journal>> {
        sqlx::query_as!(
            Journal,
            "SELECT attempt, data, bytes, whole FROM turnmill.journals
             WHERE turn_id = $1 AND ($2::int IS NULL OR attempt = $2) ORDER BY attempt DESC LIMIT 1",
            turn_id,
            attempt,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// The attempts of a turn whose journals are kept, with their size in bytes.
    pub async fn journals(&self, turn_id: &str) -> sqlx::Result<Vec<(i32, i64)>> {
        let rows = sqlx::query!("SELECT attempt, bytes FROM turnmill.journals WHERE turn_id = $1 ORDER BY attempt", turn_id);
        Ok(rows.fetch_all(&self.pool).await?.into_iter().map(|row| (row.attempt, row.bytes)).collect())
    }

    /// Forgets those whose time is over, some at a time.
    pub(super) async fn forget_journals(&self) -> sqlx::Result<()> {
        sqlx::query!(
            // The statement's time, not the clock's: only what doesn't change can be looked for in an index.
            "DELETE FROM turnmill.journals x USING (
               SELECT turn_id, attempt FROM turnmill.journals WHERE forget_at < statement_timestamp()
               ORDER BY forget_at LIMIT 200 FOR UPDATE SKIP LOCKED) old
             WHERE x.turn_id = old.turn_id AND x.attempt = old.attempt"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
