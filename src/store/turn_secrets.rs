//! What the processes of a running turn were given, for whoever adopts it.

use super::jobs::fenced;
use super::{Claimed, Fenced, Store};
use crate::keys::Sealed;

impl Store {
    /// Notes what an attempt is about to be started with.
    pub async fn note_secrets(&self, job: &Claimed, sealed: &Sealed) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "INSERT INTO turnmill.turn_secrets (turn_id, attempt, data, key_id)
             SELECT j.turn_id, j.attempt, $4, $5 FROM turnmill.jobs j WHERE j.turn_id = $1 AND j.epoch = $2 AND j.attempt = $3
             ON CONFLICT (turn_id, attempt) DO UPDATE SET data = excluded.data, key_id = excluded.key_id",
            job.turn_id,
            job.epoch,
            job.attempt,
            sealed.data,
            sealed.key_id,
        );
        Ok(fenced(done.execute(&self.pool).await?.rows_affected()))
    }

    /// What its attempts so far were started with.
    pub async fn noted_secrets(&self, turn_id: &str) -> sqlx::Result<Vec<Sealed>> {
        let rows = sqlx::query!("SELECT data, key_id FROM turnmill.turn_secrets WHERE turn_id = $1 ORDER BY attempt", turn_id);
        Ok(rows.fetch_all(&self.pool).await?.into_iter().map(|row| Sealed { key_id: Some(row.key_id), data: row.data }).collect())
    }

    /// Forgets those of turns that have ended.
    pub(super) async fn forget_secrets(&self) -> sqlx::Result<()> {
        sqlx::query!("DELETE FROM turnmill.turn_secrets s WHERE NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.turn_id = s.turn_id)")
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
