//! What all of envd's endpoints share: which sandbox and user a request is for, and Connect's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::sandboxes::Sandbox;
use super::{App, fault};
use crate::e2b::connect::{Frame, Frames, frame};

/// A call that failed, in Connect's words.
#[derive(Debug)]
pub(super) struct Refusal {
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As the answer of a unary call.
    pub fn unary(self) -> Response {
        let status = match self.code {
            "invalid_argument" | "failed_precondition" => StatusCode::BAD_REQUEST,
            "unauthenticated" => StatusCode::UNAUTHORIZED,
            "permission_denied" => StatusCode::FORBIDDEN,
            "not_found" => StatusCode::NOT_FOUND,
            "already_exists" => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "code": self.code, "message": self.message }))).into_response()
    }

    /// As a stream that only says why there is none: HTTP 200 all the same.
    pub fn stream(self) -> Response {
        let body = end_frame(&json!({ "error": { "code": self.code, "message": self.message } }));
        ([("Content-Type", "application/connect+json")], body).into_response()
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => "not_found",
            std::io::ErrorKind::AlreadyExists => "already_exists",
            std::io::ErrorKind::PermissionDenied => "permission_denied",
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory => "invalid_argument",
            _ => "internal",
        };
        Self::new(code, error.to_string())
    }
}

/// `GET /health`, of the server or of a sandbox.
pub(super) async fn health(State(app): State<App>, headers: HeaderMap) -> Response {
    if sandbox_id(&headers).is_none() {
        return StatusCode::OK.into_response();
    }
    sandbox_named(&app, &headers).map_or_else(|refused| refused, |_| StatusCode::NO_CONTENT.into_response())
}

/// `GET /envs`.
pub(super) async fn envs(State(app): State<App>, headers: HeaderMap) -> Response {
    sandbox_of(&app, &headers).map_or_else(|refused| refused, |sandbox| Json(&sandbox.record.env_vars).into_response())
}

/// `GET /metrics` of a sandbox: of this machine, as nothing isolates it.
pub(super) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    sandbox_of(&app, &headers).map_or_else(|refused| refused, |_| Json(machine_metrics()).into_response())
}

/// This machine's memory and processors, in envd's shape.
pub(super) fn machine_metrics() -> Value {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let (total, free) = (info.totalram * unit, info.freeram * unit);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    json!({
        "ts": super::acts::now_ms() / 1000, "cpu_count": processors, "cpu_used_pct": 0.0,
        "mem_total": total, "mem_used": total - free, "mem_cache": 0, "mem_total_mib": total >> 20, "mem_used_mib": (total - free) >> 20,
        "disk_used": 0, "disk_total": 0,
    })
}

/// The sandbox that a request is for, if its token is good.
pub(super) fn sandbox_of(app: &App, headers: &HeaderMap) -> Result<Arc<Sandbox>, Response> {
    let sandbox = sandbox_named(app, headers)?;
    if headers.get("X-Access-Token").is_none_or(|token| token != sandbox.record.token.as_str()) {
        let text = "unauthorized access, please provide a valid access token or method signing if supported";
        return Err(fault(StatusCode::UNAUTHORIZED, text));
    }
    Ok(sandbox)
}

/// The sandbox that a request names, whoever asks. A paused one is not found, as E2B's proxy has it.
pub(super) fn sandbox_named(app: &App, headers: &HeaderMap) -> Result<Arc<Sandbox>, Response> {
    let Some(id) = sandbox_id(headers) else { return Err(fault(StatusCode::BAD_REQUEST, "missing header")) };
    app.sandboxes.get(&id).filter(|sandbox| !sandbox.is_paused()).ok_or_else(|| {
        let body = json!({ "sandboxId": id, "message": "The sandbox was not found", "code": 502 });
        (StatusCode::BAD_GATEWAY, Json(body)).into_response()
    })
}

fn sandbox_id(headers: &HeaderMap) -> Option<String> {
    let named = headers.get("E2b-Sandbox-Id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    named.or_else(|| headers.get("Host")?.to_str().ok()?.split('.').next()?.strip_prefix("49983-").map(str::to_owned))
}

/// The Linux user that a request asks for.
pub(super) fn user_of(headers: &HeaderMap) -> String {
    let basic = headers.get("Authorization").and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Basic "));
    let user = basic.and_then(|text| BASE64.decode(text).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
    user.and_then(|user| user.split(':').next().map(str::to_owned)).filter(|user| !user.is_empty()).unwrap_or_else(|| "user".to_owned())
}

/// The one message of a request for a stream.
pub(super) fn message<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Refusal> {
    let mut frames = Frames::default();
    frames.push(body);
    let invalid = |text: String| Refusal::new("invalid_argument", text);
    match frames.next().map_err(invalid)? {
        Some(Frame::Message(message)) => serde_json::from_slice(&message).map_err(|error| invalid(error.to_string())),
        _ => Err(invalid("the request has no message".to_owned())),
    }
}

/// The message of a unary call.
pub(super) fn unary<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new("invalid_argument", error.to_string()))
}

/// A unary call's answer.
pub(super) fn answered(answer: Result<Value, Refusal>) -> Response {
    answer.map_or_else(Refusal::unary, |answer| Json(answer).into_response())
}

/// The last frame of a stream.
pub(super) fn end_frame(payload: &Value) -> Vec<u8> {
    let mut bytes = frame(payload);
    bytes[0] = 2;
    bytes
}

/// A stream whose frames come from a channel; an `Err` cuts it.
pub(super) fn streamed(frames: mpsc::Receiver<std::io::Result<Vec<u8>>>) -> Response {
    ([("Content-Type", "application/connect+json")], Body::from_stream(ReceiverStream::new(frames).boxed())).into_response()
}

/// A number in a header.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
