//! Turns: list, read; edit and withdraw while they wait; cancel, retry.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, TurnsCancel, TurnsRead, TurnsWrite};
use super::blocks::within;
use super::enqueue::{Receipt, TurnOptions, check_message, check_options, idempotency_key, receipt};
use super::position::{cursor, read_cursor};
use super::problem::Problem;
use super::request::{Checks, Id, Json, Maybe, Query};
use super::shapes::Page;
use crate::store::{Trouble, TurnDetail};

/// One user message and everything the agent does about it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Turn {
    /// Its id.
    id: String,
    /// Its session.
    session_id: String,
    /// Its place in the session, from 1.
    ordinal: i32,
    /// pending, in_progress, completed, failed or cancelled. The last three never change again.
    #[schema(pattern = "^(pending|in_progress|completed|failed|cancelled)$")]
    status: String,
    /// Why it waits, if it does: session_busy, no_slot, create_rate, tenant_limit, backoff, budget,
    /// pool_paused, pool_blocked, fleet_stopped, no_worker.
    wait_reason: Option<String>,
    /// Unfinished turns of its session before it; null in lists.
    queue_position: Option<i64>,
    /// What the user said. In lists its first 2000 characters.
    user_message: String,
    /// Whether `user_message` is all of it.
    user_message_whole: bool,
    /// As given.
    #[schema(value_type = Object)]
    options: Value,
    /// Starts of the agent so far.
    attempt: i32,
    /// Grows when the answer starts over.
    generation: i32,
    /// What went wrong, at last or with the newest try.
    error: Option<Trouble>,
    /// Tokens, as the agent reports them.
    #[schema(value_type = Option<Object>)]
    usage: Option<Value>,
    /// Model cost of all its attempts, as the agent estimates it.
    cost_usd: Option<f64>,
    /// Seconds for which its attempts held a running sandbox; grows with the end of each.
    sandbox_s: Option<f64>,
    /// What these cost, at the pool's rate.
    sandbox_usd: Option<f64>,
    /// The turn that this one repeats.
    retry_of: Option<String>,
    /// When it was enqueued.
    created_at: DateTime<Utc>,
    /// When it first ran.
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    completed_at: Option<DateTime<Utc>>,
}

impl From<TurnDetail> for Turn {
    fn from(row: TurnDetail) -> Self {
        let message = row.error_message;
        Self {
            id: row.id,
            session_id: row.session_id,
            ordinal: row.ordinal,
            status: row.status,
            wait_reason: row.wait_reason,
            queue_position: row.queue_position,
            user_message: row.prompt,
            user_message_whole: row.prompt_whole,
            options: row.options,
            attempt: row.attempt,
            generation: row.generation,
            error: row.error_code.map(|code| Trouble { code, message }),
            usage: row.usage,
            cost_usd: row.cost_usd,
            sandbox_s: row.sandbox_s,
            sandbox_usd: row.sandbox_usd,
            retry_of: row.retry_of,
            created_at: row.created_at,
            started_at: row.started_at,
            completed_at: row.completed_at,
        }
    }
}

/// Which turns.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TurnsQuery {
    /// How many at most
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// `next_cursor` of the page before
    #[param(max_length = 2048)]
    cursor: Option<String>,
}

/// List a session's turns
///
/// Newest first.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/turns", tag = "Turns", operation_id = "list_turns",
    params(("session_id" = String, Path, description = "The session", max_length = 255), TurnsQuery),
    responses((status = 200, description = "One page of them", body = Page<Turn>)))]
pub async fn list(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(session_id): Id,
    Query(query): Query<TurnsQuery>,
) -> Result<Answer<Page<Turn>>, Problem> {
    let limit = within("limit", query.limit.unwrap_or(50), 1, 200)?;
    let which = ["turns", session_id.as_str()];
    let below = match &query.cursor {
        Some(text) => {
            let ordinal = read_cursor(text, &which, 1)?.pop().and_then(|text| text.parse().ok());
            Some(ordinal.ok_or_else(|| Problem::new("invalid_cursor", "The cursor is none of this list's."))?)
        }
        None => None,
    };
    app.store.session(&session_id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let mut rows = app.store.turns_of(&session_id, below, limit + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(0) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(0));
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor(&[which[0], which[1], &row.ordinal.to_string()]));
    Ok(Answer(Page { data: rows.into_iter().map(Turn::from).collect(), next_cursor }))
}

/// Read a turn
#[utoipa::path(get, path = "/v1/turns/{turn_id}", tag = "Turns", operation_id = "read_turn",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255)),
    responses((status = 200, description = "The turn", body = Turn)))]
pub async fn read(caller: Caller<TurnsRead>, State(app): State<App>, Id(id): Id) -> Result<Answer<Turn>, Problem> {
    let turn = app.store.turn_detail(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(turn.into()))
}

/// What to change of a turn that waits.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditTurn {
    /// Another message.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 1_000_000, pattern = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$")]
    user_message: Option<String>,
    /// Other options, all of them.
    #[serde(default)]
    #[schema(value_type = Option<TurnOptions>)]
    options: Option<Map<String, Value>>,
}

/// Edit a turn
///
/// Only as long as it has not started; a claim that comes at the same time either waits for the change or refuses it.
#[utoipa::path(patch, path = "/v1/turns/{turn_id}", tag = "Turns", operation_id = "edit_turn", request_body = EditTurn,
    params(("turn_id" = String, Path, description = "The turn", max_length = 255)),
    responses((status = 200, description = "As it is now", body = Turn),
        (status = 409, description = "turn_started, turn_ended", body = Problem, content_type = "application/problem+json")))]
pub async fn edit(
    caller: Caller<TurnsWrite>,
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json<EditTurn>,
) -> Result<Answer<Turn>, Problem> {
    let mut checks = Checks::default();
    check_message(&mut checks, body.user_message.as_deref());
    check_options(&mut checks, body.options.as_ref());
    checks.done()?;
    app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    app.store.edit(&id, body.user_message.as_deref(), body.options.map(Value::Object).as_ref()).await?;
    let turn = app.store.turn_detail(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(turn.into()))
}

/// Withdraw a turn
///
/// Only as long as it has not started: nothing of it was or will be run. It stays to be read, as cancelled. To stop one that
/// runs, cancel it.
#[utoipa::path(delete, path = "/v1/turns/{turn_id}", tag = "Turns", operation_id = "withdraw_turn",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255)),
    responses((status = 200, description = "As it is now", body = Turn),
        (status = 409, description = "turn_started, turn_ended", body = Problem, content_type = "application/problem+json")))]
pub async fn withdraw(caller: Caller<TurnsWrite>, State(app): State<App>, Id(id): Id) -> Result<Answer<Turn>, Problem> {
    app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    app.store.withdraw(&id).await?;
    let turn = app.store.turn_detail(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    app.hub.poke(&turn.session_id);
    Ok(Answer(turn.into()))
}

/// Why something is cancelled.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelBody {
    /// For people; the turn's error says it.
    #[serde(default)]
    #[schema(max_length = 1000, pattern = "^[^\\u0000]*$")]
    reason: Option<String>,
}

impl CancelBody {
    /// Checked.
    pub fn reason(self) -> Result<Option<String>, Problem> {
        let good = self.reason.as_deref().is_none_or(|reason| !reason.contains('\0') && reason.chars().count() <= 1000);
        if good { Ok(self.reason) } else { Err(Problem::body("/reason", "reason must have at most 1000 characters, and no NUL")) }
    }
}

/// What was cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct Cancelled {
    /// The turn; null: none ran.
    pub turn_id: Option<String>,
    /// cancelled; cancelling: it ran, and stops within a second or so; or the status that it had already.
    pub status: Option<String>,
}

/// Cancel a turn
///
/// At once if it waits, within a second or so if it runs; what was said stays. One that has ended stays as it is: no error.
#[utoipa::path(post, path = "/v1/turns/{turn_id}/cancel", tag = "Turns", operation_id = "cancel_turn", request_body = Option<CancelBody>,
    params(("turn_id" = String, Path, description = "The turn", max_length = 255)),
    responses((status = 200, description = "What it is now", body = Cancelled)))]
pub async fn cancel(
    caller: Caller<TurnsCancel>,
    State(app): State<App>,
    Id(id): Id,
    Maybe(body): Maybe<CancelBody>,
) -> Result<Answer<Cancelled>, Problem> {
    let reason = body.reason()?;
    let (session_id, _) = app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let status = app.store.cancel(&id, reason.as_deref()).await?;
    app.hub.poke(&session_id);
    Ok(Answer(Cancelled { turn_id: Some(id), status: Some(status) }))
}

/// Retry a turn
///
/// Enqueues an ended turn's message again, as a new turn at the end of its session; `retry_of` names the old one.
#[utoipa::path(post, path = "/v1/turns/{turn_id}/retry", tag = "Turns", operation_id = "retry_turn",
    params(("turn_id" = String, Path, description = "The turn that has ended", max_length = 255),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeating harmless, for all time; unique in the project", min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    responses((status = 202, description = "Committed", body = Receipt, headers(
        ("Location" = String, description = "Where the new turn is"), ("Idempotency-Replayed" = Option<String>, description = "true, if the key was known"))),
        (status = 409, description = "turn_unfinished", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "idempotency_key_reused", body = Problem, content_type = "application/problem+json")))]
pub async fn retry(caller: Caller<TurnsWrite>, State(app): State<App>, Id(id): Id, headers: HeaderMap) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?;
    let (session_id, _) = app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let row = app.store.retry_with_key(&id, key.as_deref()).await?;
    app.hub.poke(&session_id);
    receipt(row)
}
