//! Endpoints of webhooks: make, list, read, change, delete; exchange a secret.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, WebhooksRead, WebhooksWrite};
use super::blocks::within;
use super::position::{cursor, read_cursor};
use super::problem::Problem;
use super::request::{Checks, Id, Json, Maybe, Query};
use super::sessions::bind;
use super::shapes::{Page, location};
use crate::store::{self, EndpointChange};
use crate::webhooks::{Made, Wanted};

/// Longest description.
const DESCRIPTION_MAX: usize = 255;

/// Longest time for which two secrets sign.
const ROTATION_MAX_S: u32 = 30 * 24 * 3600;

/// What an endpoint can hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Event {
    /// A turn has answered.
    #[serde(rename = "turn.completed")]
    Completed,
    /// A turn has failed.
    #[serde(rename = "turn.failed")]
    Failed,
    /// A turn was cancelled.
    #[serde(rename = "turn.cancelled")]
    Cancelled,
}

fn names(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::Completed => "turn.completed".to_owned(),
        Event::Failed => "turn.failed".to_owned(),
        Event::Cancelled => "turn.cancelled".to_owned(),
    };
    events.iter().map(name).collect()
}

/// Whether it is told anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// It is.
    Enabled,
    /// It isn't, nor later of what happens meanwhile.
    Disabled,
}

/// Who is told that turns have ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEndpoint {
    /// Its id.
    id: String,
    /// Where to POST.
    url: String,
    /// What it is for, for people.
    description: String,
    /// Hears of this project's turns only; null: of all.
    project_id: Option<String>,
    /// Hears of this tenant's turns only; null: of all.
    tenant_id: Option<String>,
    /// What it wants to hear of: turn.completed, turn.failed, turn.cancelled.
    events: Vec<String>,
    /// enabled or disabled.
    #[schema(pattern = "^(enabled|disabled)$")]
    state: String,
    /// Why it is disabled: by hand, it is gone (410), or it failed for too long.
    disabled_reason: Option<String>,
    /// Since when.
    disabled_at: Option<DateTime<Utc>>,
    /// Deliveries that failed since the last that did not.
    failures: i32,
    /// The first of these.
    failing_since: Option<DateTime<Utc>>,
    /// When a delivery was last taken, within a second.
    last_success_at: Option<DateTime<Utc>>,
    /// When one last failed.
    last_failure_at: Option<DateTime<Utc>>,
    /// What was wrong then.
    last_error: Option<String>,
    /// Whether its secret is sealed where it is stored.
    secret_sealed: bool,
    /// Until when the secret before signs as well.
    old_secret_until: Option<DateTime<Utc>>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl From<store::Endpoint> for WebhookEndpoint {
    fn from(row: store::Endpoint) -> Self {
        Self {
            id: row.id,
            url: row.url,
            description: row.description,
            project_id: row.project_id,
            tenant_id: row.tenant_id,
            events: row.events,
            state: row.state,
            disabled_reason: row.disabled_reason,
            disabled_at: row.disabled_at,
            failures: row.failures,
            failing_since: row.failing_since,
            last_success_at: row.last_success_at,
            last_failure_at: row.last_failure_at,
            last_error: row.last_error,
            secret_sealed: row.secret_sealed,
            old_secret_until: row.old_secret_until,
            created_at: row.created_at,
        }
    }
}

/// A secret. It can't be read again.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookSecret {
    /// Whose.
    endpoint_id: String,
    /// `whsec_` and base64, as libraries of Standard Webhooks want it.
    #[schema(pattern = "^whsec_")]
    secret: String,
    /// Until when the one before signs as well; null: there was none.
    old_secret_until: Option<DateTime<Utc>>,
}

fn shown_once(status: StatusCode, made: Made) -> Response {
    let Made { endpoint_id, secret, old_secret_until } = made;
    (status, [(header::CACHE_CONTROL, "no-store")], Answer(WebhookSecret { endpoint_id, secret, old_secret_until })).into_response()
}

/// An endpoint to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEndpoint {
    /// Where to POST: https://, on the public internet unless the configuration allows more.
    #[schema(min_length = 1, max_length = 2048, example = "https://app.example/hooks/turnmill")]
    url: String,
    /// What it is for, for people.
    #[schema(max_length = 255, pattern = "^[^\\u0000]*$")]
    description: Option<String>,
    /// Hears of this project's turns only; a token that is bound to one need not say it.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    project_id: Option<String>,
    /// Hears of this tenant's turns only, likewise.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    tenant_id: Option<String>,
    /// What it wants to hear of; everything without it.
    #[schema(min_items = 1, max_items = 3)]
    events: Option<Vec<Event>>,
}

fn check_description(checks: &mut Checks, description: Option<&str>) {
    let good = |text: &str| text.chars().count() <= DESCRIPTION_MAX && !text.contains('\0');
    checks.must(description.is_none_or(good), "/description", "must have at most 255 characters, without NUL");
}

fn check_events(checks: &mut Checks, events: Option<&[Event]>) {
    checks.must(events.is_none_or(|events| (1..=3).contains(&events.len())), "/events", "must have one to three elements");
}

fn url(app: &App, text: &str) -> Result<String, Problem> {
    app.registry.guard.check_url(text).map_err(|wrong| Problem::body("/url", format!("url {wrong}")))
}

/// Make an endpoint
///
/// From now on it is told when turns end, signed as Standard Webhooks says, at least once and in no certain order. The answer has
/// its secret, which can't be read again.
#[utoipa::path(post, path = "/v1/webhook-endpoints", tag = "Webhooks", operation_id = "create_webhook_endpoint", request_body = CreateEndpoint,
    responses((status = 201, description = "Its secret", body = WebhookSecret, headers(("Location" = String, description = "Where it is"))),
        (status = 409, description = "too_many_endpoints", body = Problem, content_type = "application/problem+json")))]
pub async fn create(caller: Caller<WebhooksWrite>, State(app): State<App>, Json(body): Json<CreateEndpoint>) -> Result<Response, Problem> {
    let mut checks = Checks::default();
    checks.id("/project_id", body.project_id.as_deref());
    checks.id("/tenant_id", body.tenant_id.as_deref());
    check_description(&mut checks, body.description.as_deref());
    check_events(&mut checks, body.events.as_deref());
    checks.done()?;
    let url = url(&app, &body.url)?;
    let (project_id, tenant_id) = bind(&caller.bounds, body.project_id, body.tenant_id)?;
    let (description, events) = (body.description.unwrap_or_default(), names(&body.events.unwrap_or_default()));
    let made = app.registry.add(Wanted { url, description, project_id, tenant_id, events }).await?;
    let many = || Problem::new("too_many_endpoints", format!("There are {} already.", app.registry.settings.endpoints_max));
    let made = made.ok_or_else(many)?;
    let at = location("/v1/webhook-endpoints/", &made.endpoint_id)?;
    let mut response = shown_once(StatusCode::CREATED, made);
    response.headers_mut().insert(header::LOCATION, at);
    Ok(response)
}

/// Which endpoints.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndpointsQuery {
    /// How many at most
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// `next_cursor` of the page before
    #[param(max_length = 2048)]
    cursor: Option<String>,
}

/// List endpoints
///
/// Newest first. A token that is bound to a project or a tenant sees those of its own.
#[utoipa::path(get, path = "/v1/webhook-endpoints", tag = "Webhooks", operation_id = "list_webhook_endpoints", params(EndpointsQuery),
    responses((status = 200, description = "One page of them", body = Page<WebhookEndpoint>)))]
pub async fn list(
    caller: Caller<WebhooksRead>,
    State(app): State<App>,
    Query(query): Query<EndpointsQuery>,
) -> Result<Answer<Page<WebhookEndpoint>>, Problem> {
    let limit = within("limit", query.limit.unwrap_or(50), 1, 200)?;
    let which = ["webhook_endpoints"];
    let before = query.cursor.as_deref().map(|text| read_cursor(text, &which, 1)).transpose()?.and_then(|mut parts| parts.pop());
    let mut rows = app.store.endpoints(&caller.bounds, before.as_deref(), limit + 1).await?;
    let more = i64::try_from(rows.len()).unwrap_or(0) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(0));
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor(&[which[0], &row.id]));
    Ok(Answer(Page { data: rows.into_iter().map(WebhookEndpoint::from).collect(), next_cursor }))
}

/// Read an endpoint
#[utoipa::path(get, path = "/v1/webhook-endpoints/{endpoint_id}", tag = "Webhooks", operation_id = "read_webhook_endpoint",
    params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 200, description = "The endpoint", body = WebhookEndpoint)))]
pub async fn read(caller: Caller<WebhooksRead>, State(app): State<App>, Id(id): Id) -> Result<Answer<WebhookEndpoint>, Problem> {
    let endpoint = app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(endpoint.into()))
}

/// What to change of an endpoint; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeEndpoint {
    /// Where to POST, also what waits already.
    #[schema(min_length = 1, max_length = 2048)]
    url: Option<String>,
    /// What it is for, for people.
    #[schema(max_length = 255, pattern = "^[^\\u0000]*$")]
    description: Option<String>,
    /// What it wants to hear of.
    #[schema(min_items = 1, max_items = 3)]
    events: Option<Vec<Event>>,
    /// Disabled, it is told nothing, and what it was still to be told is given up. Enabled, it is as new.
    state: Option<EndpointState>,
}

/// Change an endpoint
#[utoipa::path(patch, path = "/v1/webhook-endpoints/{endpoint_id}", tag = "Webhooks", operation_id = "change_webhook_endpoint",
    request_body = ChangeEndpoint, params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 200, description = "As it is now", body = WebhookEndpoint)))]
pub async fn change(
    caller: Caller<WebhooksWrite>,
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json<ChangeEndpoint>,
) -> Result<Answer<WebhookEndpoint>, Problem> {
    let mut checks = Checks::default();
    check_description(&mut checks, body.description.as_deref());
    check_events(&mut checks, body.events.as_deref());
    checks.done()?;
    app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let change = EndpointChange {
        url: body.url.map(|text| url(&app, &text)).transpose()?,
        description: body.description,
        events: body.events.map(|events| names(&events)),
        enabled: body.state.map(|state| match state {
            EndpointState::Enabled => Ok(()),
            EndpointState::Disabled => Err("by hand, over the API".to_owned()),
        }),
    };
    app.store.change_endpoint(&id, &change).await?;
    let endpoint = app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(endpoint.into()))
}

/// Delete an endpoint
///
/// What it was still to be told is not sent any more, and its deliveries are forgotten.
#[utoipa::path(delete, path = "/v1/webhook-endpoints/{endpoint_id}", tag = "Webhooks", operation_id = "delete_webhook_endpoint",
    params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 204, description = "It is gone")))]
pub async fn delete(caller: Caller<WebhooksWrite>, State(app): State<App>, Id(id): Id) -> Result<StatusCode, Problem> {
    app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    if app.store.delete_endpoint(&id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found()) }
}

/// How to exchange a secret.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// Seconds for which the one before signs as well; a day without it. 0: it has leaked.
    #[schema(minimum = 0, maximum = 2_592_000)]
    keep_old_s: Option<u32>,
}

/// Exchange a secret
///
/// For a while each delivery has a signature of the new and one of the old secret, so that its receiver can change over at any
/// time meanwhile.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{endpoint_id}/rotate", tag = "Webhooks", operation_id = "rotate_webhook_secret",
    request_body = Option<RotateSecret>, params(("endpoint_id" = String, Path, description = "The endpoint", max_length = 255)),
    responses((status = 200, description = "The new secret", body = WebhookSecret)))]
pub async fn rotate(
    caller: Caller<WebhooksWrite>,
    State(app): State<App>,
    Id(id): Id,
    Maybe(body): Maybe<RotateSecret>,
) -> Result<Response, Problem> {
    let keep = body.keep_old_s;
    if keep.is_some_and(|seconds| seconds > ROTATION_MAX_S) {
        return Err(Problem::body("/keep_old_s", format!("keep_old_s must be from 0 to {ROTATION_MAX_S}")));
    }
    app.store.endpoint(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let keep = keep.map(|seconds| std::time::Duration::from_secs(seconds.into()));
    let made = app.registry.rotate(&id, keep).await?.ok_or_else(Problem::not_found)?;
    Ok(shown_once(StatusCode::OK, made))
}
