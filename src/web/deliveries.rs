//! What endpoints are told: list, read, send again; a test.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, WebhooksRead, WebhooksWrite};
use super::blocks::within;
use super::position::{cursor, read_cursor};
use super::problem::Problem;
use super::request::{Id, Json, Query};
use super::shapes::Page;
use crate::store::{self, REPLAYED_MAX, Replay, Since};

/// What one endpoint is told about one event.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookDelivery {
    /// Its id: the header `webhook-id`, the same for every try and every replay.
    id: String,
    /// Who is told.
    endpoint_id: String,
    /// What about; null: a test.
    turn_id: Option<String>,
    /// turn.completed, turn.failed, turn.cancelled or webhook.test.
    r#type: String,
    /// The body.
    #[schema(value_type = Object)]
    payload: Value,
    /// pending; delivered: answered with 2xx; failed: given up, until it is replayed.
    #[schema(pattern = "^(pending|delivered|failed)$")]
    state: String,
    /// Tries since it is due.
    attempts: i32,
    /// When it is tried next, while it is pending.
    next_at: Option<DateTime<Utc>>,
    /// When it was last tried.
    last_attempt_at: Option<DateTime<Utc>>,
    /// HTTP status of the last answer.
    last_status: Option<i32>,
    /// What was wrong with the last try.
    last_error: Option<String>,
    /// When it was delivered or given up.
    ended_at: Option<DateTime<Utc>>,
    /// When the event was.
    created_at: DateTime<Utc>,
}

impl From<store::Delivery> for WebhookDelivery {
    fn from(row: store::Delivery) -> Self {
        Self {
            next_at: (row.state == "pending").then_some(row.next_at),
            id: row.id,
            endpoint_id: row.endpoint_id,
            turn_id: row.turn_id,
            r#type: row.kind,
            payload: row.payload,
            state: row.state,
            attempts: row.attempts,
            last_attempt_at: row.last_attempt_at,
            last_status: row.last_status,
            last_error: row.last_error,
            ended_at: row.ended_at,
            created_at: row.created_at,
        }
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried, or tried again.
    Pending,
    /// It was answered with 2xx.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// Which deliveries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// Only of this state
    #[param(inline)]
    state: Option<DeliveryState>,
    /// How many at most
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// `next_cursor` of the page before
    #[param(max_length = 2048)]
    cursor: Option<String>,
}

/// List an endpoint's deliveries
///
/// Newest first. Those that have ended are forgotten after a month.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{endpoint_id}/deliveries", tag = "Webhooks", operation_id = "list_webhook_deliveries",
    params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255), DeliveriesQuery),
    responses((status = 200, description = "One page of them", body = Page<WebhookDelivery>)))]
pub async fn list(
    caller: Caller<WebhooksRead>,
    State(app): State<App>,
    Id(id): Id,
    Query(query): Query<DeliveriesQuery>,
) -> Result<Answer<Page<WebhookDelivery>>, Problem> {
    let limit = within("limit", query.limit.unwrap_or(50), 1, 200)?;
    let state = query.state.map(DeliveryState::as_str);
    let which = ["webhook_deliveries", id.as_str(), state.unwrap_or("")];
    let before = query.cursor.as_deref().map(|text| read_cursor(text, &which, 1)).transpose()?.and_then(|mut parts| parts.pop());
    app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let mut rows = app.store.deliveries(&id, state, before.as_deref(), limit + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(0) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(0));
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor(&[which[0], which[1], which[2], &row.id]));
    Ok(Answer(Page { data: rows.into_iter().map(WebhookDelivery::from).collect(), next_cursor }))
}

/// Read a delivery
#[utoipa::path(get, path = "/v1/webhook-deliveries/{delivery_id}", tag = "Webhooks", operation_id = "read_webhook_delivery",
    params(("delivery_id" = String, Path, description = "The delivery", max_length = 255)),
    responses((status = 200, description = "The delivery", body = WebhookDelivery)))]
pub async fn read(caller: Caller<WebhooksRead>, State(app): State<App>, Id(id): Id) -> Result<Answer<WebhookDelivery>, Problem> {
    let delivery = app.store.delivery(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(delivery.into()))
}

fn disabled() -> Problem {
    Problem::new("endpoint_disabled", "Nothing is sent to it.")
}

async fn accepted(app: &App, caller: &Caller<WebhooksWrite>, id: &str) -> Result<Response, Problem> {
    let delivery = app.store.delivery(id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok((StatusCode::ACCEPTED, Answer(WebhookDelivery::from(delivery))).into_response())
}

/// Replay a delivery
///
/// It is sent again, whatever became of it, under the same id; and tried as often as it was before. One that is under way just
/// now stays so.
#[utoipa::path(post, path = "/v1/webhook-deliveries/{delivery_id}/replay", tag = "Webhooks", operation_id = "replay_webhook_delivery",
    params(("delivery_id" = String, Path, description = "The delivery", max_length = 255)),
    responses((status = 202, description = "It is due", body = WebhookDelivery),
        (status = 409, description = "endpoint_disabled", body = Problem, content_type = "application/problem+json")))]
pub async fn replay(caller: Caller<WebhooksWrite>, State(app): State<App>, Id(id): Id) -> Result<Response, Problem> {
    match app.store.replay(&id, &caller.bounds).await? {
        Replay::Due => accepted(&app, &caller, &id).await,
        Replay::Disabled => Err(disabled()),
        Replay::Unknown => Err(Problem::not_found()),
    }
}

/// What to send again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayFailed {
    /// Failed deliveries of events that were not before then.
    since: DateTime<Utc>,
}

/// How much is sent again.
#[derive(Debug, Serialize, ToSchema)]
pub struct Replayed {
    /// Deliveries that are due now.
    replayed: u64,
    /// Whether there are more: ask once more.
    more: bool,
}

/// Replay an endpoint's failed deliveries
///
/// The oldest first, up to ten thousand of them at once.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint_id}/replay", tag = "Webhooks", operation_id = "replay_failed_webhooks",
    request_body = ReplayFailed, params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 202, description = "They are due", body = Replayed),
        (status = 409, description = "endpoint_disabled", body = Problem, content_type = "application/problem+json")))]
pub async fn replay_failed(
    caller: Caller<WebhooksWrite>,
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json<ReplayFailed>,
) -> Result<Response, Problem> {
    let endpoint = app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    if endpoint.state != "enabled" {
        return Err(disabled());
    }
    let replayed = app.store.replay_failed(&id, Since::At(body.since)).await?;
    let more = i64::try_from(replayed).is_ok_and(|count| count >= REPLAYED_MAX);
    Ok((StatusCode::ACCEPTED, Answer(Replayed { replayed, more })).into_response())
}

/// Send a test
///
/// A `webhook.test`, tried once. Read the delivery to see what came of it.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint_id}/test", tag = "Webhooks", operation_id = "test_webhook_endpoint",
    params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 202, description = "It is due", body = WebhookDelivery),
        (status = 409, description = "endpoint_disabled", body = Problem, content_type = "application/problem+json")))]
pub async fn test(caller: Caller<WebhooksWrite>, State(app): State<App>, Id(id): Id) -> Result<Response, Problem> {
    app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let sent = app.store.send_test(&id).await?.ok_or_else(disabled)?;
    accepted(&app, &caller, &sent).await
}
