//! A turn's blocks by polling, or by waiting for the next.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, TurnsRead};
use super::problem::Problem;
use super::progress::{Progress, SharedPage};
use super::request::{Id, Query};
use crate::store::{PageLimits, Place, StreamBlock, Trouble, TurnPage};

/// Blocks of one page, if nobody says otherwise.
const LIMIT: i64 = 100;

/// Bytes of one page, as they are stored; one block is given whatever its size.
const BYTES_MAX: i64 = 4 << 20;

/// Which blocks.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BlocksQuery {
    /// Only what comes after this `seq`: `next_after` of the page before
    #[param(minimum = -1, default = -1)]
    after: Option<i32>,
    /// Blocks of one page at most
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<i64>,
    /// Seconds to wait while there is nothing new; the server may answer sooner
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: Option<u64>,
}

/// Blocks and status of a turn, from one moment.
#[derive(Debug, Serialize, ToSchema)]
pub struct BlocksPage {
    /// The turn.
    turn_id: String,
    /// Its status.
    #[schema(pattern = "^(pending|in_progress|completed|failed|cancelled)$")]
    status: String,
    /// Its newest generation. When it has grown, the answer started over: drop the blocks of lower ones.
    generation: i32,
    /// Why it waits, if it does.
    wait_reason: Option<String>,
    /// What went wrong, at last or with the newest try.
    error: Option<Trouble>,
    /// Of the newest generation, in order.
    blocks: Vec<StreamBlock>,
    /// To be given as `after` the next time.
    next_after: i32,
    /// Whether there are more right now.
    more: bool,
    /// Whether that was the last of it: the turn has ended and there is no more.
    closed: bool,
}

/// Read blocks
///
/// Returns at once what comes after `after`. With `wait`, and nothing there, it waits until there is: a block, or another status.
#[utoipa::path(get, path = "/v1/turns/{turn_id}/blocks", tag = "Read", operation_id = "read_blocks",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255), BlocksQuery),
    responses((status = 200, description = "Blocks and status, from one moment", body = BlocksPage)))]
pub async fn read(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(id): Id,
    Query(query): Query<BlocksQuery>,
) -> Result<Json<BlocksPage>, Problem> {
    let after = within("after", query.after.unwrap_or(-1), -1, i32::MAX)?;
    let limit = within("limit", query.limit.unwrap_or(LIMIT), 1, 500)?;
    let wait = Duration::from_secs(within("wait", query.wait.unwrap_or(0), 0, 60)?).min(app.config.wait_max);
    let (session_id, ordinal) = app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let place = Place { session_id, ordinal, seq: after, last_ordinal: ordinal };

    let until = Instant::now() + wait;
    let page = look(&app, &place, limit).await?;
    let settled = wait.is_zero() || !page.blocks.is_empty() || page.state.ended();
    if settled {
        return Ok(Json(shape(page, after)));
    }
    news(&app, &place, page, until).await?;
    Ok(Json(shape(look(&app, &place, limit).await?, after)))
}

/// Waits until the hub has something to tell that is not in this page.
pub async fn news(app: &App, place: &Place, page: TurnPage, until: Instant) -> Result<(), Problem> {
    let _seat = app.hub.seat().ok_or_else(|| Problem::new("too_many_readers", "This server has as many waiting reads as it takes."))?;
    let mut progress = Progress::in_turn(place.session_id.clone(), place.ordinal, place.seq);
    progress.advance(&[SharedPage::from(page)]);
    let mut feed = app.hub.join(progress, false);
    tokio::select! {
        _ = feed.next() => {}
        () = sleep_until(until) => {}
        () = app.stop.cancelled() => {}
    }
    Ok(())
}

/// The turn from a place on, from one moment.
pub async fn look(app: &App, place: &Place, limit: i64) -> Result<TurnPage, Problem> {
    let limits = PageLimits { turns: 1, blocks: limit, bytes: BYTES_MAX, reasons: true };
    let mut pages = app.store.pages(&[place], limits).await?;
    pages.pop().and_then(|mut turns| turns.pop()).ok_or_else(Problem::not_found)
}

fn shape(page: TurnPage, after: i32) -> BlocksPage {
    BlocksPage {
        next_after: page.blocks.last().map_or(after, |block| block.seq),
        closed: page.state.ended() && !page.more,
        more: page.more,
        turn_id: page.state.turn_id,
        status: page.state.status,
        generation: page.state.generation,
        wait_reason: page.state.wait_reason,
        error: page.state.error,
        blocks: page.blocks,
    }
}

/// A number of the query, if it is in its range.
pub fn within<N: PartialOrd + std::fmt::Display>(name: &str, value: N, min: N, max: N) -> Result<N, Problem> {
    if value >= min && value <= max { Ok(value) } else { Err(Problem::parameter(name, format!("{name} must be from {min} to {max}"))) }
}
