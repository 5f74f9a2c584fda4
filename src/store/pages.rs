//! The one primitive that every reader over HTTP uses: of many sessions at once, what comes after a place in them.
//!
//! Status and blocks of a turn are from one snapshot: with a terminal status and no `more`, that was all of it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Store;

/// Where in a session to read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The session.
    pub session_id: String,
    /// From this turn on …
    pub ordinal: i32,
    /// … and of it, what comes after this block.
    pub seq: i32,
    /// To this turn at most.
    pub last_ordinal: i32,
}

/// How much at once.
#[derive(Debug, Clone, Copy)]
pub struct PageLimits {
    /// Turns of each session.
    pub turns: i64,
    /// Blocks of each turn.
    pub blocks: i64,
    /// Bytes of a turn's blocks as they are stored; the first is taken whatever its size.
    pub bytes: i64,
    /// Whether to say why turns wait, which costs more than all else.
    pub reasons: bool,
}

/// A turn as streams tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TurnState {
    /// Its id.
    pub turn_id: String,
    /// Place in its session.
    pub ordinal: i32,
    /// pending, `in_progress`, completed, failed, cancelled.
    pub status: String,
    /// Newest generation.
    pub generation: i32,
    /// Starts of the agent.
    pub attempt: i32,
    /// Why it waits, if it does and was asked for.
    pub wait_reason: Option<String>,
    /// What went wrong, at last or with the newest try.
    pub error: Option<Trouble>,
}

impl TurnState {
    /// Whether it can no longer change.
    pub fn ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Trouble {
    /// For programs; see docs/errors.md.
    pub code: String,
    /// For people.
    pub message: Option<String>,
}

/// One block as readers get it. Its content is passed on as Postgres has it: numbers of any size survive.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(title = "Block")]
pub struct StreamBlock {
    /// Its turn.
    pub turn_id: String,
    /// Dense from 0 over the whole turn.
    pub seq: i32,
    /// The generation that it belongs to.
    pub generation: i32,
    /// thinking, content, `tool_use`, `tool_result`.
    #[serde(rename = "type")]
    pub kind: String,
    /// See `turnmill.blocks.content`.
    #[schema(value_type = Object)]
    pub content: Box<RawValue>,
    /// The subagent's `tool_use`.
    pub parent_tool_use_id: Option<String>,
    /// When committed.
    pub created_at: DateTime<Utc>,
}

/// A turn with its next blocks.
#[derive(Debug, Clone)]
pub struct TurnPage {
    /// The turn.
    pub state: TurnState,
    /// Of its newest generation, in order.
    pub blocks: Vec<StreamBlock>,
    /// Whether there are more of them.
    pub more: bool,
}

impl Store {
    /// The generation of the block at a place, if there is one.
    pub async fn generation_at(&self, place: &Place) -> sqlx::Result<Option<i32>> {
        sqlx::query_scalar!(
            "SELECT b.generation FROM turnmill.turns t JOIN turnmill.blocks b ON b.turn_id = t.id
             WHERE t.session_id = $1 AND t.ordinal = $2 AND b.seq = $3",
            place.session_id,
            place.ordinal,
            place.seq,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// The turns after each place, in the order of `places`; of a session that is not there, none.
    pub async fn pages(&self, places: &[&Place], limits: PageLimits) -> sqlx::Result<Vec<Vec<TurnPage>>> {
        let sessions: Vec<&str> = places.iter().map(|p| p.session_id.as_str()).collect();
        let ordinals: Vec<i32> = places.iter().map(|p| p.ordinal).collect();
        let seqs: Vec<i32> = places.iter().map(|p| p.seq).collect();
        let lasts: Vec<i32> = places.iter().map(|p| p.last_ordinal).collect();
        let rows = sqlx::query_file!(
            "src/store/pages.sql",
            &sessions as &[&str],
            &ordinals,
            &seqs,
            &lasts,
            limits.turns,
            limits.blocks,
            limits.bytes,
            limits.reasons,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut pages: Vec<Vec<TurnPage>> = vec![Vec::new(); places.len()];
        for row in rows {
            let Some(page) = usize::try_from(row.nth - 1).ok().and_then(|nth| pages.get_mut(nth)) else { continue };
            if page.last().is_none_or(|turn| turn.state.ordinal != row.ordinal) {
                let error = row.error_code.map(|code| Trouble { code, message: row.error_message });
                let state = TurnState {
                    turn_id: row.turn_id.clone(),
                    ordinal: row.ordinal,
                    status: row.status,
                    generation: row.generation,
                    attempt: row.attempt,
                    wait_reason: row.wait_reason,
                    error,
                };
                page.push(TurnPage { state, blocks: Vec::new(), more: false });
            }
            let (Some(turn), Some(seq)) = (page.last_mut(), row.seq) else { continue };
            turn.blocks.push(StreamBlock {
                turn_id: row.turn_id,
                seq,
                generation: turn.state.generation,
                kind: row.kind.unwrap_or_default(),
                content: RawValue::from_string(row.content.unwrap_or_default()).map_err(|error| sqlx::Error::Decode(error.into()))?,
                parent_tool_use_id: row.parent_tool_use_id,
                created_at: row.block_created_at.unwrap_or_default(),
            });
            turn.more = usize::try_from(row.candidates.unwrap_or(0)).unwrap_or(usize::MAX) > turn.blocks.len();
        }
        Ok(pages)
    }
}
