//! What was done to sandboxes, as a file of JSON lines; and what should go wrong, on demand.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, fault_with_code};

/// The ledger and the faults to come.
#[derive(Debug)]
pub(super) struct Acts {
    path: PathBuf,
    ledger: Mutex<File>,
    faults: Mutex<Vec<Fault>>,
}

/// Something to go wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// `create`, `get`, `list`, `timeout`, `kill`, `pause`, `connect`, `network`, `start`, `stream`, `upload`, `download`,
    /// `template` or `build`.
    on: String,
    /// How often.
    #[serde(default = "once")]
    times: u32,
    /// Milliseconds before anything else.
    #[serde(default)]
    delay_ms: u64,
    /// Answered instead of doing it.
    status: Option<u16>,
    /// With the status.
    #[serde(default)]
    message: String,
    /// With the status.
    error_code: Option<String>,
    /// Seconds, with the status.
    retry_after: Option<u32>,
    /// Merged into the answer's body; a null takes its key away.
    patch: Option<Value>,
    /// Answered as a web page, with the status; a redirect leads to `location`.
    #[serde(default)]
    html: bool,
    /// With a status of 3xx.
    location: Option<String>,
    /// Header `Should-Retry`, with the status.
    should_retry: Option<bool>,
    /// Do it, but lose the answer.
    #[serde(default)]
    lose_answer: bool,
    /// On `stream`: cut a process's stream after this many milliseconds.
    cut_after_ms: Option<u64>,
    /// On `stream`: say nothing more on it after this many milliseconds.
    stall_after_ms: Option<u64>,
}

impl Fault {
    /// For the ledger.
    fn described(&self) -> Value {
        json!({
            "on": self.on, "status": self.status, "retry_after": self.retry_after, "delay_ms": self.delay_ms,
            "lose_answer": self.lose_answer, "cut_after_ms": self.cut_after_ms, "stall_after_ms": self.stall_after_ms,
        })
    }
}

/// What goes wrong with a process's stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum StreamFault {
    Cut { after: Duration },
    Stall { after: Duration },
}

impl StreamFault {
    pub fn after(&self) -> Duration {
        match self {
            Self::Cut { after } | Self::Stall { after } => *after,
        }
    }
}

fn once() -> u32 {
    1
}

impl Acts {
    /// Appends to the ledger of earlier servers on this directory. What it can hold without a gap:
    ///
    /// | act | when |
    /// | --- | --- |
    /// | `boot` | a server begins, and which sandboxes it finds: those of before that it does not find are gone |
    /// | `create`, `kill` | a sandbox was made, is gone; `kill` says why |
    /// | `pause`, `resume` | its processes stand still, go on |
    /// | `start`, `end` | a process in it; the supervisor's with epoch, verb and attempt, the end with its exit code |
    /// | `fault` | something went wrong because it was asked to |
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join("ledger.jsonl");
        let ledger = File::options().create(true).append(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { path, ledger: Mutex::new(ledger), faults: Mutex::default() })
    }

    /// Notes an act.
    pub fn note(&self, act: &str, sandbox: &str, detail: Value) {
        let line = json!({ "at_ms": now_ms(), "act": act, "sandbox": sandbox, "detail": detail });
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // One write, so that a crash tears no line in two; a full disk must not stop the server.
        drop(ledger.write_all(format!("{line}\n").as_bytes()));
    }

    /// Runs an act, unless a fault is due on it.
    pub async fn perform(&self, on: &str, act: impl Future<Output = Response>) -> Response {
        let Some(due) = self.take(on) else { return act.await };
        tokio::time::sleep(Duration::from_millis(due.delay_ms)).await;
        if let Some(status) = due.status {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = if due.html {
                (status, Html("<!doctype html><title>Some gateway</title>")).into_response()
            } else {
                fault_with_code(status, &due.message, due.error_code.as_deref())
            };
            let headers = [
                ("Retry-After", due.retry_after.map(|seconds| seconds.to_string())),
                ("Should-Retry", due.should_retry.map(|should| should.to_string())),
                ("Location", due.location),
            ];
            for (name, value) in headers {
                if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
                    response.headers_mut().insert(name, value);
                }
            }
            return response;
        }
        let response = act.await;
        let response = match due.patch {
            Some(patch) => patched(response, &patch).await,
            None => response,
        };
        if due.lose_answer {
            let cut = futures::stream::once(async { Err::<Vec<u8>, _>(std::io::Error::other("this answer is lost")) });
            return (response.status(), Body::from_stream(cut)).into_response();
        }
        response
    }

    /// What is due to go wrong with the next stream.
    pub fn stream_fault(&self) -> Option<StreamFault> {
        let due = self.take("stream")?;
        let cut = due.cut_after_ms.map(|after| StreamFault::Cut { after: Duration::from_millis(after) });
        cut.or_else(|| due.stall_after_ms.map(|after| StreamFault::Stall { after: Duration::from_millis(after) }))
    }

    fn take(&self, on: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = faults.iter().position(|fault| fault.on == on)?;
        faults[nth].times = faults[nth].times.saturating_sub(1);
        let due = if faults[nth].times == 0 { faults.remove(nth) } else { faults[nth].clone() };
        drop(faults);
        self.note("fault", "", due.described());
        Some(due)
    }
}

async fn patched(response: Response, patch: &Value) -> Response {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    for (key, new) in patch.as_object().into_iter().flatten() {
        if let Some(object) = value.as_object_mut() {
            object.remove(key);
            if !new.is_null() {
                object.insert(key.clone(), new.clone());
            }
        }
    }
    (parts.status, Json(value)).into_response()
}

/// `GET /_local/ledger`: a JSON array.
pub(super) async fn ledger(State(app): State<App>) -> Json<Vec<Value>> {
    let text = tokio::fs::read_to_string(&app.acts.path).await.unwrap_or_default();
    Json(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// `POST /_local/faults`: an array of faults, which replaces those not yet used up.
pub(super) async fn set_faults(State(app): State<App>, Json(faults): Json<Vec<Fault>>) -> StatusCode {
    *app.acts.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    StatusCode::NO_CONTENT
}

/// `PATCH /_local/faults`: an array of faults, after those not yet used up.
pub(super) async fn add_faults(State(app): State<App>, Json(faults): Json<Vec<Fault>>) -> StatusCode {
    app.acts.faults.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    StatusCode::NO_CONTENT
}

/// Milliseconds since 1970. The local server stands in for E2B's cloud, whose deadlines are on its own clock
/// and outlive its processes.
#[expect(clippy::disallowed_methods, reason = "E2B's own clock, not the fleet's")]
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
