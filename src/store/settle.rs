//! Settle: the terminal status, or the next try; with the last blocks and the slot's fate in one transaction.

use std::time::Duration;

use super::blocks::{BlockColumns, count};
use super::charges::ModelColumns;
use super::{Claimed, Fenced, Store};
use crate::agent::Spent;
use crate::block::Block;
use crate::turn::{Ending, TurnError};

/// Everything that the settling transaction writes about the turn.
#[derive(Debug, Clone)]
pub struct Settle {
    /// Its terminal status.
    pub ending: Ending,
    /// Blocks that no journal line made: synthetic tool results, the error block.
    pub blocks: Vec<Block>,
    /// The journal byte that is committed; the settle is refused if the database stands elsewhere.
    pub journal_offset: i64,
    /// Code and text, unless it completed.
    pub error: Option<TurnError>,
    /// What the attempt's model calls came to, as far as its agent has said.
    pub spent: Option<Spent>,
    /// The sandbox is of use to the session's next turn: nothing runs in it, and what it holds is whole.
    pub keep: bool,
}

/// What becomes of a settled turn's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept running, for the session's next turn.
    Warm,
    /// It is to be paused, by the caller; by anyone when the hold is over.
    Pausing,
    /// It is to be killed, likewise.
    Releasing,
}

impl Store {
    /// Ends the turn: last blocks, status, job gone, the session's next turn promoted; and the slot's fate, as the pool
    /// keeps sandboxes, with `hold` for what is to be done by the caller.
    pub async fn settle(&self, job: &Claimed, settle: &Settle, hold: Duration) -> sqlx::Result<Result<Kept, Fenced>> {
        let mut rows = BlockColumns::default();
        rows.extend(&job.turn_id, &settle.blocks);
        let models = ModelColumns::of(settle.spent.as_ref());
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query_file!(
            "src/store/settle.sql",
            job.turn_id,
            job.epoch,
            job.attempt,
            settle.journal_offset,
            settle.ending.as_str(),
            settle.error.as_ref().map(|e| e.code.clone()),
            settle.error.as_ref().map(|e| e.message.clone()),
            settle.spent.as_ref().and_then(|spent| spent.usage.clone()),
            &models.usd,
            hold.as_secs_f64(),
            count(&settle.blocks),
            &rows.nth,
            &rows.kind,
            &rows.content,
            &rows.parent as &[Option<String>],
            &rows.source as &[Option<String>],
            settle.keep,
            &models.model,
            &models.input,
            &models.output,
            &models.cache_read,
            &models.cache_write,
            models.said,
        )
        .fetch_one(&mut tx)
        .await?;
        if done.settled == 0 {
            tx.rollback().await?;
            return Ok(Err(Fenced));
        }
        // A second statement, because it must see the job gone.
        sqlx::query_scalar!("SELECT turnmill.promote($1)", job.session_id).fetch_one(&mut tx).await?;
        tx.commit().await?;
        Ok(Ok(match done.slot.as_deref() {
            Some("warm") => Kept::Warm,
            Some("pausing") => Kept::Pausing,
            _ => Kept::Releasing,
        }))
    }

    /// Puts the turn back into the queue for `delay`. With `restart` the next attempt starts over from
    /// scratch. The slot goes to `releasing`, or `pausing`, for `hold`.
    pub async fn retry_later(&self, job: &Claimed, retry: &Retry<'_>, hold: Duration) -> sqlx::Result<Result<(), Fenced>> {
        let mut tx = self.pool.begin().await?;
        let models = ModelColumns::of(retry.spent.as_ref());
        let done = sqlx::query_file!(
            "src/store/retry_later.sql",
            job.turn_id,
            job.epoch,
            job.attempt,
            retry.delay.as_secs_f64(),
            retry.charged,
            retry.restart,
            retry.why.code,
            retry.why.message,
            hold.as_secs_f64(),
            job.slot_id,
            retry.keep,
            &models.model,
            &models.input,
            &models.output,
            &models.cache_read,
            &models.cache_write,
            &models.usd,
            models.said,
            retry.spent.as_ref().and_then(|spent| spent.usage.clone()),
        )
        .fetch_one(&mut tx)
        .await?;
        if done.done == 0 {
            tx.rollback().await?;
            return Ok(Err(Fenced));
        }
        // Asked to cancel while it ran: it must not come back from the queue.
        sqlx::query!("SELECT turnmill.cancel_turn(turn_id, reason) FROM turnmill.cancel_requests WHERE turn_id = $1", job.turn_id)
            .fetch_optional(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(Ok(()))
    }
}

/// The next try of a turn.
#[derive(Debug, Clone)]
pub struct Retry<'a> {
    /// Not before then.
    pub delay: Duration,
    /// Whether it counts as a failed start-up.
    pub charged: bool,
    /// Whether the sandbox is lost with its files: new attempt, new generation.
    pub restart: bool,
    /// Whether the sandbox that was kept for the session is to be kept on.
    pub keep: bool,
    /// What the attempt's model calls came to, as far as its agent has said.
    pub spent: Option<Spent>,
    /// For the turn's error columns while it waits.
    pub why: &'a TurnError,
}
