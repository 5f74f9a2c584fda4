//! The data plane: the daemon of one sandbox.
//!
//! envd lets a process run on when its caller goes away, forgets what it printed while nobody listened, and
//! kills it when a `Connect-Timeout-Ms` is over; so none is sent, and nothing here relies on a stream being whole.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response};
use serde_json::Value;

use super::connect::StreamError;
use super::{ENVD_PORT, Sandbox, root_cause};

/// Why a call into a sandbox failed; the kind says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvdError {
    /// The proxy does not know the sandbox: ask the control plane.
    #[error("the sandbox was not found")]
    Gone,
    /// It is there, but not answering yet, or in between two states.
    #[error("the sandbox does not answer yet: {0}")]
    NotReady(String),
    /// No answer, or a stream that was cut: try again.
    #[error("the sandbox can't be reached: {0}")]
    Unreachable(String),
    /// Our own deadline was over.
    #[error("the sandbox took too long to answer")]
    DeadlineExceeded,
    /// Token or user refused.
    #[error("the sandbox refused our credentials: {0}")]
    Unauthorized(String),
    /// No such file or process.
    #[error("not found in the sandbox: {0}")]
    NotFound(String),
    /// No space left in the sandbox.
    #[error("the sandbox's disk is full: {0}")]
    DiskFull(String),
    /// Anything else that trying again won't change.
    #[error("the sandbox refused: {0}")]
    Rejected(String),
}

/// The daemon of one sandbox.
#[derive(Debug, Clone)]
pub struct Envd {
    pub(super) http: reqwest::Client,
    pub(super) base: String,
    pub(super) headers: HeaderMap,
    pub(super) keepalive: Duration,
}

impl Envd {
    pub(super) fn new(http: reqwest::Client, base: String, sandbox: &Sandbox, keepalive: Duration) -> Self {
        let mut headers = HeaderMap::new();
        let token = sandbox.token().map(|token| ("x-access-token", token.to_owned()));
        let routing = [("e2b-sandbox-id", sandbox.id.clone()), ("e2b-sandbox-port", ENVD_PORT.to_string())];
        for (name, value) in routing.into_iter().chain(token) {
            // What is no header value would never have reached its sandbox.
            if let Ok(mut value) = HeaderValue::from_str(&value) {
                value.set_sensitive(name == "x-access-token");
                headers.insert(name, value);
            }
        }
        Self { http, base: base.trim_end_matches('/').to_owned(), headers, keepalive }
    }

    /// Whether it answers at all.
    pub async fn is_healthy(&self, deadline: Duration) -> Result<(), EnvdError> {
        let call = self.http.get(format!("{}/health", self.base)).headers(self.headers.clone()).timeout(deadline);
        ok(call.send().await.map_err(unreachable)?).await.map(drop)
    }

    /// A Connect call in the name of a user of the sandbox.
    pub(super) fn connect_call(&self, procedure: &str, user: &str) -> RequestBuilder {
        self.http
            .post(format!("{}/{procedure}", self.base))
            .headers(self.headers.clone())
            .header("Authorization", format!("Basic {}", BASE64.encode(format!("{user}:"))))
            .header("Connect-Protocol-Version", "1")
    }

    /// A unary call; its answer is protobuf-JSON: what is a default is left out.
    pub(super) async fn ask(&self, procedure: &str, user: &str, body: &Value, deadline: Duration) -> Result<Value, EnvdError> {
        let response = self.connect_call(procedure, user).json(body).timeout(deadline).send().await.map_err(unreachable)?;
        let body = ok(response).await?.bytes().await.map_err(unreachable)?;
        serde_json::from_slice(&body).map_err(|error| EnvdError::Rejected(format!("its answer can't be read: {error}")))
    }
}

pub(super) async fn ok(response: Response) -> Result<Response, EnvdError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.bytes().await.unwrap_or_default();
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = said["message"].as_str().map_or_else(|| String::from_utf8_lossy(&body).chars().take(200).collect(), str::to_owned);
    let text = format!("{}: {}", status.as_u16(), message.trim());
    Err(match status.as_u16() {
        401 | 403 => EnvdError::Unauthorized(text),
        404 => EnvdError::NotFound(text),
        507 => EnvdError::DiskFull(text),
        409 => EnvdError::NotReady(text),
        502 if message.contains("not found") => EnvdError::Gone,
        502 if message.contains("port is not open") => EnvdError::NotReady(text),
        408 | 429 | 499 | 500.. => EnvdError::Unreachable(text),
        _ => EnvdError::Rejected(text),
    })
}

pub(super) fn stream_error(error: StreamError) -> EnvdError {
    let StreamError { code, message } = error;
    match code.as_str() {
        "unavailable" | "aborted" | "canceled" | "resource_exhausted" => EnvdError::Unreachable(message),
        "deadline_exceeded" => EnvdError::DeadlineExceeded,
        "not_found" => EnvdError::NotFound(message),
        "unauthenticated" | "permission_denied" => EnvdError::Unauthorized(message),
        _ => EnvdError::Rejected(format!("{code}: {message}")),
    }
}

pub(super) fn unreachable(error: reqwest::Error) -> EnvdError {
    if error.is_timeout() { EnvdError::DeadlineExceeded } else { EnvdError::Unreachable(root_cause(&error)) }
}
