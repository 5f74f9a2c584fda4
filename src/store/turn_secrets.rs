//! What the processes of turns were given, for whoever adopts one, or takes up a sandbox in which it may still be.

use super::jobs::fenced;
use super::{Claimed, Fenced, Store};
use crate::keys::Sealed;

impl Store {
    /// Notes what an attempt is about to be started with, and all that was known of it before; `over` what is noted of it, which else
    /// stays: the caller could not open that.
    pub async fn note_secrets(&self, job: &Claimed, sealed: &Sealed, over: bool) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "INSERT INTO turnmill.turn_secrets (turn_id, attempt, data, key_id)
             SELECT j.turn_id, j.attempt, $4, $5 FROM turnmill.jobs j WHERE j.turn_id = $1 AND j.epoch = $2 AND j.attempt = $3
             ON CONFLICT (turn_id, attempt) DO UPDATE
             SET data = CASE WHEN $6 THEN excluded.data ELSE turn_secrets.data END,
                 key_id = CASE WHEN $6 THEN excluded.key_id ELSE turn_secrets.key_id END",
            job.turn_id,
            job.epoch,
            job.attempt,
            sealed.data,
            sealed.key_id,
            over,
        );
        Ok(fenced(done.execute(&self.pool).await?.rows_affected()))
    }

    /// What the turns of a session were started with, as far as a sandbox may still know it; each with its turn.
    pub async fn noted_secrets(&self, session_id: &str) -> sqlx::Result<Vec<(String, Sealed)>> {
        let rows = sqlx::query!(
            "SELECT s.turn_id, s.data, s.key_id FROM turnmill.turn_secrets s JOIN turnmill.turns t ON t.id = s.turn_id
             WHERE t.session_id = $1 ORDER BY t.ordinal, s.attempt",
            session_id
        );
        let rows = rows.fetch_all(&self.pool).await?.into_iter();
        Ok(rows.map(|row| (row.turn_id, Sealed { key_id: Some(row.key_id), data: row.data })).collect())
    }

    /// Forgets those of sessions that have neither a turn nor a sandbox.
    pub(super) async fn forget_secrets(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.turn_secrets s USING turnmill.turns t
             WHERE t.id = s.turn_id AND NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = t.session_id)
               AND NOT EXISTS (SELECT FROM turnmill.slots k WHERE k.session_id = t.session_id)
               AND NOT EXISTS (SELECT FROM turnmill.parked p WHERE p.session_id = t.session_id)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
