//! The control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::acts::now_ms;
use super::sandboxes::{Known, Record, Sandbox};
use super::{App, fault, fault_with_code};

/// The longest run of E2B's Pro plan.
const TIMEOUT_MAX_S: u64 = 24 * 3600;

/// What envd says that it is; features of ours follow it.
const ENVD_VERSION: &str = "0.6.13";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<i64>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    env_vars: BTreeMap<String, String>,
}

/// `POST /v2/sandboxes`.
pub(super) async fn create_v2(State(app): State<App>, headers: HeaderMap, body: Result<Json<Value>, JsonRejection>) -> Response {
    let key = headers.get("Idempotency-Key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    create(&app, &headers, body, key, 300).await
}

/// `POST /sandboxes`: no key, a shorter default.
pub(super) async fn create_v1(State(app): State<App>, headers: HeaderMap, body: Result<Json<Value>, JsonRejection>) -> Response {
    create(&app, &headers, body, None, 15).await
}

async fn create(app: &App, headers: &HeaderMap, body: Result<Json<Value>, JsonRejection>, key: Option<String>, timeout_s: i64) -> Response {
    if let Err(refused) = allowed(app, headers) {
        return refused;
    }
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return fault(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    app.acts.perform("create", async { created(app, &request, key, timeout_s) }).await
}

fn created(app: &App, request: &Value, key: Option<String>, timeout_s: i64) -> Response {
    if let Some(known) = key.as_deref().and_then(|key| app.sandboxes.known(key)) {
        return if known.request == *request {
            (StatusCode::CREATED, Json(known.answer)).into_response()
        } else {
            let text = "this Idempotency-Key was used with another body";
            fault_with_code(StatusCode::UNPROCESSABLE_ENTITY, text, Some("idempotency_request_mismatch"))
        };
    }
    let create: Create = match serde_json::from_value(request.clone()) {
        Ok(create) => create,
        Err(error) => return fault(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let timeout = match u64::try_from(create.timeout.unwrap_or(timeout_s)) {
        Ok(seconds @ 1..=TIMEOUT_MAX_S) => seconds,
        Ok(1..) => return fault(StatusCode::BAD_REQUEST, "Timeout cannot be greater than 24 hours"),
        _ => return fault(StatusCode::BAD_REQUEST, "timeout must be greater than 0"),
    };
    if let Some(limit) = app.options.concurrency.filter(|limit| app.sandboxes.count() >= *limit as usize) {
        let text = format!(
            "you have reached the maximum number of concurrent E2B sandboxes ({limit}). Stop some, or start the local server with a higher --concurrency"
        );
        return fault(StatusCode::TOO_MANY_REQUESTS, &text);
    }
    let mut record = app.sandboxes.blank(&create.template_id, timeout);
    record.metadata = create.metadata;
    record.env_vars = create.env_vars;
    let answer = described(&record, record.end_ms, true);
    // Before it is made: after a crash in between, a repeated create finds a sandbox that is gone, never a second one.
    if let Some(key) = key
        && let Err(error) = app.sandboxes.remember(Known { key, request: request.clone(), answer: answer.clone() })
    {
        return fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}"));
    }
    let sandbox = match app.sandboxes.create(record) {
        Ok(sandbox) => sandbox,
        Err(error) => return fault_with_code(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}"), Some("sandbox_create_failed")),
    };
    app.acts.note("create", &sandbox.record.id, json!({ "metadata": sandbox.record.metadata, "live": app.sandboxes.count() }));
    (StatusCode::CREATED, Json(answer)).into_response()
}

/// `GET /sandboxes/{id}`.
pub(super) async fn get(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let get = async { app.sandboxes.get(&id).map_or_else(|| unknown(&id), |sandbox| Json(described_now(&sandbox, true)).into_response()) };
    app.acts.perform("get", get).await
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    metadata: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

/// `GET /v2/sandboxes`: filtered, a page at a time.
pub(super) async fn list_v2(State(app): State<App>, Query(query): Query<ListQuery>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let list = async {
        let limit = query.limit.unwrap_or(100);
        let Some(skip) = query.next_token.as_deref().map_or(Some(0), |token| token.parse().ok()) else {
            return fault(StatusCode::BAD_REQUEST, "invalid nextToken");
        };
        if !(1..=100).contains(&limit) {
            return fault(StatusCode::BAD_REQUEST, "limit must be between 1 and 100");
        }
        let found = filtered(&app, query.metadata.as_deref(), query.state.as_deref());
        let page: Vec<Value> = found.iter().skip(skip).take(limit).map(|sandbox| described_now(sandbox, false)).collect();
        let mut response = Json(page).into_response();
        response.headers_mut().insert("X-Total-Running", found.len().into());
        if skip + limit < found.len() {
            response.headers_mut().insert("X-Next-Token", (skip + limit).into());
        }
        response
    };
    app.acts.perform("list", list).await
}

/// `GET /sandboxes`: running ones, in one piece.
pub(super) async fn list_v1(State(app): State<App>, Query(query): Query<ListQuery>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let list = async {
        let found = filtered(&app, query.metadata.as_deref(), None);
        Json(found.iter().map(|sandbox| described_now(sandbox, false)).collect::<Vec<_>>()).into_response()
    };
    app.acts.perform("list", list).await
}

fn filtered(app: &App, metadata: Option<&str>, state: Option<&str>) -> Vec<Arc<Sandbox>> {
    if state.is_some_and(|state| !state.split(',').any(|state| state == "running")) {
        return Vec::new();
    }
    // The two sides of each pair are encoded twice; our own labels have nothing to encode.
    let wanted: Vec<(&str, &str)> = metadata.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    let matches = |sandbox: &Arc<Sandbox>| wanted.iter().all(|(key, value)| sandbox.record.metadata.get(*key).is_some_and(|v| v == value));
    app.sandboxes.all().into_iter().filter(matches).collect()
}

#[derive(Debug, Deserialize)]
pub(super) struct Timeout {
    timeout: u64,
}

/// `POST /sandboxes/{id}/timeout`: from now; also shortens.
pub(super) async fn set_timeout(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Timeout>, JsonRejection>,
) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let Ok(Json(Timeout { timeout })) = body else { return fault(StatusCode::BAD_REQUEST, "value is required but missing") };
    let set = async { app.sandboxes.get(&id).map_or_else(|| unknown(&id), |sandbox| live_for(&sandbox, timeout.min(TIMEOUT_MAX_S))) };
    app.acts.perform("timeout", set).await
}

#[derive(Debug, Deserialize)]
pub(super) struct Refresh {
    #[serde(default)]
    duration: u64,
}

/// `POST /sandboxes/{id}/refreshes`: only extends.
pub(super) async fn refresh(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Refresh>, JsonRejection>,
) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let duration = body.map_or(0, |Json(refresh)| refresh.duration).clamp(15, TIMEOUT_MAX_S);
    let Some(sandbox) = app.sandboxes.get(&id) else { return unknown(&id) };
    if sandbox.end_ms.load(Ordering::Relaxed) >= now_ms() + duration * 1000 {
        return StatusCode::NO_CONTENT.into_response();
    }
    live_for(&sandbox, duration)
}

fn live_for(sandbox: &Sandbox, seconds: u64) -> Response {
    match sandbox.live_for(seconds) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
    }
}

/// `DELETE /sandboxes/{id}`.
pub(super) async fn kill(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let kill = async { if app.sandboxes.kill(&id, "request").await { StatusCode::NO_CONTENT.into_response() } else { unknown(&id) } };
    app.acts.perform("kill", kill).await
}

/// `DELETE /_local/sandboxes/{id}`: vanishes, as E2B's do now and then.
pub(super) async fn vanish(State(app): State<App>, Path(id): Path<String>) -> Response {
    if app.sandboxes.kill(&id, "vanished").await { StatusCode::NO_CONTENT.into_response() } else { unknown(&id) }
}

fn unknown(id: &str) -> Response {
    fault(StatusCode::NOT_FOUND, &format!("Sandbox {id} not found"))
}

fn allowed(app: &App, headers: &HeaderMap) -> Result<(), Response> {
    let given = headers.get("X-API-Key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let good = app.options.api_key.as_deref().map_or(!given.is_empty(), |key| key == given);
    if good {
        Ok(())
    } else {
        Err(fault(StatusCode::UNAUTHORIZED, "Invalid API key, please visit https://e2b.dev/docs/api-key for more information."))
    }
}

fn described_now(sandbox: &Sandbox, whole: bool) -> Value {
    described(&sandbox.record, sandbox.end_ms.load(Ordering::Relaxed), whole)
}

fn described(record: &Record, end_ms: u64, whole: bool) -> Value {
    let time = |ms: u64| {
        DateTime::from_timestamp_millis(i64::try_from(ms).unwrap_or(i64::MAX)).map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true))
    };
    let mut described = json!({
        "templateID": record.template,
        "sandboxID": record.id,
        "clientID": "local",
        "alias": record.template,
        "startedAt": time(record.started_ms),
        "endAt": time(end_ms),
        "envdVersion": ENVD_VERSION,
        "cpuCount": 2,
        "memoryMB": 1024,
        "diskSizeMB": 1024,
        "metadata": record.metadata,
        "state": "running",
    });
    if whole {
        described["envdAccessToken"] = Value::from(record.token.as_str());
        described["domain"] = Value::Null;
    }
    described
}
