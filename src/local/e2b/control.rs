//! The control plane: sandboxes are made, found and listed.

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

use super::sandboxes::{Known, Record, Sandbox};
use super::{App, fault, fault_with_code, network};

/// The longest run of E2B's Pro plan.
pub(super) const TIMEOUT_MAX_S: u64 = 24 * 3600;

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
    #[serde(default)]
    auto_pause: bool,
    #[serde(default)]
    network: Value,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
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
    if let Some(wrong) = network::wrong(&create.network) {
        return fault(StatusCode::BAD_REQUEST, &wrong);
    }
    if let Some(full) = at_limit(app) {
        return full;
    }
    // Any other name is taken as well: nothing needs to be built to have a local sandbox.
    let (template, alias) = app.templates.find(&create.template_id).unwrap_or_else(|| (create.template_id.clone(), create.template_id));
    let mut record = app.sandboxes.blank(&template, timeout);
    record.alias = Some(alias);
    record.metadata = create.metadata;
    record.env_vars = create.env_vars;
    record.auto_pause = create.auto_pause;
    record.network = create.network;
    if let (Some(allowed), Some(network)) = (create.allow_internet_access, record.network.as_object_mut()) {
        network.insert("allowInternetAccess".to_owned(), allowed.into());
    }
    let answer = described(&record, record.end_ms, true);
    let keyed = key.is_some();
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
    let detail = json!({ "metadata": sandbox.record.metadata, "live": app.sandboxes.count(), "keyed": keyed });
    app.acts.note("create", &sandbox.record.id, detail);
    (StatusCode::CREATED, Json(answer)).into_response()
}

pub(super) fn at_limit(app: &App) -> Option<Response> {
    let limit = app.options.concurrency.filter(|limit| app.sandboxes.count() >= *limit as usize)?;
    let text = format!(
        "you have reached the maximum number of concurrent E2B sandboxes ({limit}). Stop some, or start the local server with a higher --concurrency"
    );
    Some(fault(StatusCode::TOO_MANY_REQUESTS, &text))
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
        let running = found.iter().filter(|sandbox| !sandbox.is_paused()).count();
        response.headers_mut().insert("X-Total-Running", running.into());
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
        let found = filtered(&app, query.metadata.as_deref(), Some("running"));
        Json(found.iter().map(|sandbox| described_now(sandbox, false)).collect::<Vec<_>>()).into_response()
    };
    app.acts.perform("list", list).await
}

fn filtered(app: &App, metadata: Option<&str>, states: Option<&str>) -> Vec<Arc<Sandbox>> {
    let states: Vec<&str> = states.unwrap_or("running,paused").split(',').collect();
    let decoded = |text: &str| percent_decoded(&percent_decoded(text));
    // Both sides of each pair are encoded twice.
    let wanted: Vec<(String, String)> = metadata
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect();
    let matches = |sandbox: &Arc<Sandbox>| {
        states.contains(&state(sandbox)) && wanted.iter().all(|(key, value)| sandbox.record.metadata.get(key) == Some(value))
    };
    app.sandboxes.all().into_iter().filter(matches).collect()
}

/// `%XX` as its byte; anything else as it is.
fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let escaped =
            tail.first_chunk::<2>().filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn state(sandbox: &Sandbox) -> &'static str {
    if sandbox.is_paused() { "paused" } else { "running" }
}

pub(super) fn unknown(id: &str) -> Response {
    fault(StatusCode::NOT_FOUND, &format!("Sandbox {id} not found"))
}

pub(super) fn allowed(app: &App, headers: &HeaderMap) -> Result<(), Response> {
    let given = headers.get("X-API-Key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let good = app.options.api_key.as_deref().map_or(!given.is_empty(), |key| key == given);
    if good {
        Ok(())
    } else {
        Err(fault(StatusCode::UNAUTHORIZED, "Invalid API key, please visit https://e2b.dev/docs/api-key for more information."))
    }
}

pub(super) fn described_now(sandbox: &Sandbox, whole: bool) -> Value {
    let record = Record { paused: sandbox.is_paused(), network: sandbox.network(), ..sandbox.record.clone() };
    described(&record, sandbox.end_ms.load(Ordering::Relaxed), whole)
}

fn described(record: &Record, end_ms: u64, whole: bool) -> Value {
    let mut described = json!({
        "templateID": record.template,
        "sandboxID": record.id,
        "clientID": "local",
        "alias": record.alias.as_ref().unwrap_or(&record.template),
        "startedAt": time(record.started_ms),
        "endAt": time(end_ms),
        "envdVersion": ENVD_VERSION,
        "cpuCount": 2,
        "memoryMB": 1024,
        "diskSizeMB": 1024,
        "metadata": record.metadata,
        "state": if record.paused { "paused" } else { "running" },
    });
    if whole {
        described["envdAccessToken"] = Value::from(record.token.as_str());
        described["domain"] = Value::Null;
        described["trafficAccessToken"] = Value::Null;
        described["lifecycle"] = json!({ "autoResume": false, "onTimeout": if record.auto_pause { "pause" } else { "kill" } });
        if record.network.is_object() {
            described["network"] = record.network.clone();
        }
    }
    described
}

pub(super) fn time(ms: u64) -> Option<String> {
    let at = DateTime::from_timestamp_millis(i64::try_from(ms).unwrap_or(i64::MAX))?;
    Some(at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn a_filter_value_is_decoded_as_the_sdk_encodes_it() {
        // `a b&c`, as the SDK sends it: encoded twice, then once more as a query value, which axum undoes.
        assert_eq!(percent_decoded(&percent_decoded("a%2520b%2526c")), "a b&c");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%c3%bc"), "ü");
    }
}
