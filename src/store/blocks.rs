//! The fenced group append: blocks and journal offset of many turns in one statement.

use super::{Claimed, Store};
use crate::block::Block;

/// What one turn wants committed: the blocks that the journal's bytes `from_offset..to_offset` made.
#[derive(Debug, Clone)]
pub struct Append {
    /// The turn.
    pub turn_id: String,
    /// The fence.
    pub epoch: i64,
    /// The attempt whose journal this is.
    pub attempt: i32,
    /// Where the database believes the copy to be.
    pub from_offset: i64,
    /// Where it is afterwards.
    pub to_offset: i64,
    /// In journal order; may be empty when the lines made none.
    pub blocks: Vec<Block>,
}

/// Where the database says that the copy of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Who may act.
    pub epoch: i64,
    /// Which start of the agent.
    pub attempt: i32,
    /// Bytes of the journal committed.
    pub journal_offset: i64,
    /// Seq of the next block.
    pub next_seq: i32,
}

/// What became of an [`Append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Committed.
    Done,
    /// The row was locked by someone this moment; nothing was written; try again.
    Locked,
    /// Refused. With a position: the job still exists and stands there, which is either our own
    /// earlier commit whose answer was lost (same epoch and attempt), or another holder.
    Fenced(Option<Position>),
}

impl Store {
    /// Appends for many turns at once; an answer per turn, in the order of `appends`. At most one per turn.
    pub async fn append(&self, appends: &[Append]) -> sqlx::Result<Vec<Answer>> {
        let turns: Vec<&str> = appends.iter().map(|a| a.turn_id.as_str()).collect();
        let epochs: Vec<i64> = appends.iter().map(|a| a.epoch).collect();
        let attempts: Vec<i32> = appends.iter().map(|a| a.attempt).collect();
        let from: Vec<i64> = appends.iter().map(|a| a.from_offset).collect();
        let to: Vec<i64> = appends.iter().map(|a| a.to_offset).collect();
        let counts: Vec<i32> = appends.iter().map(|a| count(&a.blocks)).collect();
        let mut rows = BlockColumns::default();
        for append in appends {
            rows.extend(&append.turn_id, &append.blocks);
        }
        let answers = sqlx::query_file!(
            "src/store/append.sql",
            &turns as &[&str],
            &epochs,
            &attempts,
            &from,
            &to,
            &counts,
            &rows.turn_id,
            &rows.nth,
            &rows.kind,
            &rows.content,
            &rows.parent as &[Option<String>],
            &rows.source as &[Option<String>],
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(appends
            .iter()
            .map(|append| {
                let Some(row) = answers.iter().find(|row| row.turn_id == append.turn_id) else {
                    return Answer::Fenced(None);
                };
                match row.answer.as_str() {
                    "done" => Answer::Done,
                    "locked" => Answer::Locked,
                    _ => Answer::Fenced(position(row.epoch, row.attempt, row.journal_offset, row.next_seq)),
                }
            })
            .collect())
    }

    /// Whether Postgres would store this block at all. `Err` only when it can't be asked.
    pub async fn storable(&self, block: &Block) -> sqlx::Result<bool> {
        let tried = sqlx::query!(
            r#"SELECT octet_length($1::text) AS kind, jsonb_typeof($2::text::jsonb) AS content,
                      octet_length($3::text) AS parent, octet_length($4::text) AS source"#,
            block.kind.as_str(),
            block.content.to_string(),
            block.parent_tool_use_id,
            block.source_uuid,
        )
        .fetch_one(&self.pool)
        .await;
        match tried {
            Ok(_) => Ok(true),
            Err(error) if super::is_data_error(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The calls that this attempt's blocks leave without a result, in order, each with its parent: also for a worker
    /// that has not read the journal they came from.
    pub async fn open_calls(&self, job: &Claimed) -> sqlx::Result<Vec<(String, Option<String>)>> {
        let rows = sqlx::query!(
            r#"SELECT c.content ->> 'tool_use_id' AS "id!", c.parent_tool_use_id
               FROM turnmill.blocks c
               WHERE c.turn_id = $1 AND c.attempt = $2 AND c.type = 'tool_use' AND NOT EXISTS (
                 SELECT FROM turnmill.blocks r
                 WHERE r.turn_id = $1 AND r.attempt = $2 AND r.type = 'tool_result'
                   AND r.content ->> 'tool_use_id' = c.content ->> 'tool_use_id')
               ORDER BY c.seq"#,
            job.turn_id,
            job.attempt,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|r| (r.id, r.parent_tool_use_id)).collect())
    }

    /// Where the job of a turn stands; `None` when it has ended or waits.
    pub async fn position(&self, turn_id: &str) -> sqlx::Result<Option<Position>> {
        let row = sqlx::query!("SELECT epoch, attempt, journal_offset, next_seq FROM turnmill.jobs WHERE turn_id = $1", turn_id)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.and_then(|r| position(r.epoch, Some(r.attempt), Some(r.journal_offset), Some(r.next_seq))))
    }
}

fn position(epoch: Option<i64>, attempt: Option<i32>, offset: Option<i64>, seq: Option<i32>) -> Option<Position> {
    Some(Position { epoch: epoch?, attempt: attempt?, journal_offset: offset?, next_seq: seq? })
}

pub(super) fn count(blocks: &[Block]) -> i32 {
    i32::try_from(blocks.len()).unwrap_or(i32::MAX)
}

/// Blocks as the columns that `unnest` wants; `nth` counts from 0 within a turn.
#[derive(Default)]
pub(super) struct BlockColumns {
    pub turn_id: Vec<String>,
    pub nth: Vec<i32>,
    pub kind: Vec<String>,
    pub content: Vec<String>,
    pub parent: Vec<Option<String>>,
    pub source: Vec<Option<String>>,
}

impl BlockColumns {
    pub fn extend(&mut self, turn_id: &str, blocks: &[Block]) {
        for (nth, block) in (0..).zip(blocks) {
            self.turn_id.push(turn_id.to_owned());
            self.nth.push(nth);
            self.kind.push(block.kind.as_str().to_owned());
            self.content.push(block.content.to_string());
            self.parent.push(block.parent_tool_use_id.clone());
            self.source.push(block.source_uuid.clone());
        }
    }
}
