//! The next attempt of a turn in the sandbox of the one before.

use std::time::Duration;

use super::blocks::{BlockColumns, count};
use super::charges::ModelColumns;
use super::{Claimed, Fenced, Store};
use crate::agent::Spent;
use crate::block::Block;
use crate::turn::TurnError;

/// What a failed attempt leaves behind for the next one.
#[derive(Debug)]
pub struct NextAttempt<'a> {
    /// The fence of the next attempt.
    pub epoch: i64,
    /// The journal byte that is committed of the failed one.
    pub journal_offset: i64,
    /// Ends for the calls that it left open.
    pub blocks: &'a [Block],
    /// Whether the next one goes on in its conversation.
    pub resumes: bool,
    /// Whether it did not take the conversation that it was given.
    pub forgets: bool,
    /// What its model calls came to, as far as its agent has said.
    pub spent: Option<&'a Spent>,
    /// Why it failed; shown with the turn until that has ended.
    pub why: &'a TurnError,
}

impl Store {
    /// An epoch for the next attempt: known to this process before the job has it.
    pub async fn next_epoch(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(r#"SELECT nextval('turnmill.epochs') AS "epoch!""#).fetch_one(&self.pool).await
    }

    /// The agent failed in a sandbox that lives: the job goes on with the next attempt, from byte 0 of a new
    /// journal, under a new epoch. Gives the seq of its first block.
    pub async fn next_attempt(&self, job: &Claimed, next: &NextAttempt<'_>) -> sqlx::Result<Result<i32, Fenced>> {
        let mut rows = BlockColumns::default();
        rows.extend(&job.turn_id, next.blocks);
        let models = ModelColumns::of(next.spent);
        let seq = sqlx::query_file_scalar!(
            "src/store/next_attempt.sql",
            job.turn_id,
            job.epoch,
            job.attempt,
            next.journal_offset,
            next.epoch,
            next.resumes,
            next.why.code,
            next.why.message,
            next.spent.and_then(|spent| spent.usage.as_ref()),
            &models.usd,
            count(next.blocks),
            &rows.nth,
            &rows.kind,
            &rows.content,
            &rows.parent as &[Option<String>],
            &rows.source as &[Option<String>],
            next.forgets,
            &models.model,
            &models.input,
            &models.output,
            &models.cache_read,
            &models.cache_write,
            models.said,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(seq.ok_or(Fenced))
    }
}

impl Claimed {
    /// The job as it is once [`Store::next_attempt`] is done, `elapsed` after it was taken.
    pub fn go_on(&mut self, next: &NextAttempt<'_>, next_seq: i32, sandbox_id: Option<String>, elapsed: Duration) {
        self.epoch = next.epoch;
        self.attempt += 1;
        self.agent_failures += 1;
        self.resumes = next.resumes;
        self.forgets |= next.forgets;
        self.journal_offset = 0;
        self.next_seq = next_seq;
        self.sandbox_id = sandbox_id;
        self.unseen = false;
        match next.spent.and_then(Spent::cost_usd) {
            Some(usd) => self.spent_usd += usd,
            None => self.unpriced += 1,
        }
        self.time_left = self.time_left.saturating_sub(elapsed);
    }
}
