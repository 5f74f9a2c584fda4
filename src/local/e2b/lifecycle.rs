//! The control plane's calls about one sandbox: how long it lives, whether it runs, its end.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::acts::now_ms;
use super::control::{TIMEOUT_MAX_S, allowed, at_limit, described_now, time, unknown};
use super::envd::machine_metrics;
use super::sandboxes::Sandbox;
use super::{App, fault, network};

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

/// `POST /sandboxes/{id}/pause`.
pub(super) async fn pause(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let pause = async {
        let Some(sandbox) = app.sandboxes.get(&id) else { return unknown(&id) };
        match app.sandboxes.pause(&sandbox).await {
            Ok(true) => StatusCode::NO_CONTENT.into_response(),
            Ok(false) => fault(StatusCode::CONFLICT, &format!("Sandbox {id} is already paused")),
            Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        }
    };
    app.acts.perform("pause", pause).await
}

/// `POST /v2/sandboxes/{id}/connect`: 200 if it ran, 201 if it was paused. The body may be left out.
pub(super) async fn connect_v2(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap, body: axum::body::Bytes) -> Response {
    let timeout = serde_json::from_slice::<Timeout>(&body).map_or(300, |body| body.timeout);
    connect(&app, &id, &headers, timeout, true).await
}

/// `POST /sandboxes/{id}/connect`: a body is needed.
pub(super) async fn connect_v1(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Timeout>, JsonRejection>,
) -> Response {
    let Ok(Json(Timeout { timeout })) = body else { return fault(StatusCode::BAD_REQUEST, "value is required but missing") };
    connect(&app, &id, &headers, timeout, true).await
}

/// `POST /sandboxes/{id}/resume`: an error if it runs.
pub(super) async fn resume(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Timeout>, JsonRejection>,
) -> Response {
    let Ok(Json(Timeout { timeout })) = body else { return fault(StatusCode::BAD_REQUEST, "value is required but missing") };
    connect(&app, &id, &headers, timeout, false).await
}

async fn connect(app: &App, id: &str, headers: &HeaderMap, timeout: u64, also_running: bool) -> Response {
    if let Err(refused) = allowed(app, headers) {
        return refused;
    }
    let connect = async {
        let Some(sandbox) = app.sandboxes.get(id) else { return unknown(id) };
        if !also_running && !sandbox.is_paused() {
            return fault(StatusCode::CONFLICT, &format!("Sandbox {id} is already running"));
        }
        if sandbox.is_paused()
            && let Some(full) = at_limit(app)
        {
            return full;
        }
        match app.sandboxes.resume(&sandbox, timeout.min(TIMEOUT_MAX_S)).await {
            Ok(resumed) => {
                let status = if resumed { StatusCode::CREATED } else { StatusCode::OK };
                (status, Json(described_now(&sandbox, true))).into_response()
            }
            Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        }
    };
    app.acts.perform("connect", connect).await
}

/// `PUT /sandboxes/{id}/network`.
pub(super) async fn set_network(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(network): Json<Value>,
) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let set = async {
        let Some(sandbox) = app.sandboxes.get(&id) else { return unknown(&id) };
        if let Some(wrong) = network::wrong(&network) {
            return fault(StatusCode::BAD_REQUEST, &wrong);
        }
        app.acts.note("network", &id, network::without_values(&network));
        match sandbox.set_network(network) {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        }
    };
    app.acts.perform("network", set).await
}

/// `GET /sandboxes/{id}/metrics`: one reading, of this machine.
pub(super) async fn metrics(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    if app.sandboxes.get(&id).is_none() {
        return unknown(&id);
    }
    let now = machine_metrics();
    Json(json!([{
        "timestamp": time(now_ms()), "timestampUnix": now["ts"], "cpuCount": now["cpu_count"], "cpuUsedPct": now["cpu_used_pct"],
        "memUsed": now["mem_used"], "memTotal": now["mem_total"], "memCache": now["mem_cache"], "diskUsed": now["disk_used"], "diskTotal": now["disk_total"],
    }]))
    .into_response()
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
