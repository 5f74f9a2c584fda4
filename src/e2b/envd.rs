//! The data plane: processes and files in one sandbox.
//!
//! envd lets a process run on when its caller goes away, forgets what it printed while nobody listened, and
//! kills it when a `Connect-Timeout-Ms` is over; so none is sent, and nothing here relies on a stream being whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::connect::{Frame, Frames, StreamError, frame};
use super::{ENVD_PORT, Sandbox, root_cause};

/// Seconds after which envd says that it is still there.
const KEEPALIVE_S: u64 = 20;

/// A stream that says nothing for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(2 * KEEPALIVE_S + 10);

/// How long a process may take to start.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A process to start.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program.
    pub cmd: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Added to the sandbox's own environment.
    pub envs: BTreeMap<String, String>,
    /// `None`: the user's home.
    pub cwd: Option<String>,
    /// Linux user in the sandbox.
    pub user: String,
    /// A name for it; mind that envd finds processes reliably by pid only.
    pub tag: Option<String>,
}

/// What a process printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// All of it.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: Vec<u8>,
    /// -1 when a signal ended it.
    pub exit_code: i32,
}

/// What a process's stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It runs.
    Started {
        /// In the sandbox.
        pid: u32,
    },
    /// Printed; may end within a character.
    Stdout(Bytes),
    /// The same.
    Stderr(Bytes),
    /// It ended and its pipes are closed.
    Ended {
        /// -1 when a signal ended it.
        exit_code: i32,
    },
}

/// A process's events, in order. It was cut unless its last is `Ended`.
pub type ProcessStream = BoxStream<'static, Result<ProcessEvent, EnvdError>>;

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
    /// Anything else that trying again won't change.
    #[error("the sandbox refused: {0}")]
    Rejected(String),
}

/// The daemon of one sandbox.
#[derive(Debug, Clone)]
pub struct Envd {
    http: reqwest::Client,
    base: String,
    headers: HeaderMap,
}

impl Envd {
    pub(super) fn new(http: reqwest::Client, base: String, sandbox: &Sandbox) -> Self {
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
        Self { http, base: base.trim_end_matches('/').to_owned(), headers }
    }

    /// Starts a process and hears what it says. Dropping the stream leaves the process alone.
    pub async fn start(&self, command: &Command) -> Result<ProcessStream, EnvdError> {
        let mut body = json!({
            "process": { "cmd": command.cmd, "args": command.args, "envs": command.envs, "cwd": command.cwd },
            "stdin": false,
        });
        if let Some(tag) = &command.tag {
            body["tag"] = tag.as_str().into();
        }
        let user = BASE64.encode(format!("{}:", command.user));
        let call = self
            .http
            .post(format!("{}/process.Process/Start", self.base))
            .headers(self.headers.clone())
            .header("Authorization", format!("Basic {user}"))
            .header("Content-Type", "application/connect+json")
            .header("Connect-Protocol-Version", "1")
            .header("Keepalive-Ping-Interval", KEEPALIVE_S)
            .body(frame(&body));
        let response = timeout(START_DEADLINE, call.send()).await.map_err(|_| EnvdError::DeadlineExceeded)?.map_err(unreachable)?;
        Ok(events(ok(response).await?))
    }

    /// Runs a short process to its end.
    pub async fn run(&self, command: &Command, deadline: Duration) -> Result<Output, EnvdError> {
        let run = async {
            let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), exit_code: -1 };
            let mut events = self.start(command).await?;
            while let Some(event) = events.try_next().await? {
                match event {
                    ProcessEvent::Started { .. } => {}
                    ProcessEvent::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
                    ProcessEvent::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
                    ProcessEvent::Ended { exit_code } => output.exit_code = exit_code,
                }
            }
            Ok(output)
        };
        timeout(deadline, run).await.map_err(|_| EnvdError::DeadlineExceeded)?
    }

    /// Writes a file, making its directories.
    pub async fn upload(&self, path: &str, user: &str, body: Bytes, deadline: Duration) -> Result<(), EnvdError> {
        let length = body.len() as u64;
        // Multipart, which every version of envd takes.
        let part = reqwest::multipart::Part::stream_with_length(body, length).file_name("file");
        let form = reqwest::multipart::Form::new().part("file", part);
        let call = self.files(reqwest::Method::POST, path, user).multipart(form).timeout(deadline);
        ok(call.send().await.map_err(unreachable)?).await.map(drop)
    }

    /// Bytes of a file; fewer, or none, where it is shorter.
    pub async fn download(&self, path: &str, user: &str, range: Range<u64>, deadline: Duration) -> Result<Bytes, EnvdError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let call = self
            .files(reqwest::Method::GET, path, user)
            .header(RANGE, format!("bytes={}-{}", range.start, range.end - 1))
            .timeout(deadline);
        let response = call.send().await.map_err(unreachable)?;
        // The range begins at the end of the file, or behind it.
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Bytes::new());
        }
        let response = ok(response).await?;
        // A server that doesn't know ranges sends it all.
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { range.start };
        let bytes = response.bytes().await.map_err(unreachable)?;
        let start = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        Ok(bytes.slice(start..start.saturating_add(wanted).min(bytes.len())))
    }

    fn files(&self, method: reqwest::Method, path: &str, user: &str) -> RequestBuilder {
        let plain = format!("{}/files", self.base);
        let url = Url::parse_with_params(&plain, [("path", path), ("username", user)]).map_or(plain, String::from);
        self.http.request(method, url).headers(self.headers.clone())
    }
}

/// Decodes a stream; ends after its end frame, or with an error when it was cut.
fn events(response: Response) -> ProcessStream {
    let state = (response, Frames::default(), false);
    let decoded = stream::try_unfold(state, |(mut response, mut frames, ended)| async move {
        if ended {
            return Ok(None);
        }
        loop {
            match frames.next().map_err(EnvdError::Rejected)? {
                Some(Frame::Message(message)) => {
                    if let Some(event) = event(&message)? {
                        return Ok(Some((event, (response, frames, false))));
                    }
                }
                Some(Frame::End(None)) => return Ok(None),
                Some(Frame::End(Some(error))) => return Err(stream_error(error)),
                None => {
                    let more =
                        timeout(SILENCE_MAX, response.chunk()).await.map_err(|_| EnvdError::Unreachable("it fell silent".to_owned()))?;
                    match more.map_err(unreachable)? {
                        Some(bytes) => frames.push(&bytes),
                        None => return Err(EnvdError::Unreachable("the stream was cut".to_owned())),
                    }
                }
            }
        }
    });
    decoded.boxed()
}

#[derive(Deserialize)]
struct Message {
    event: Event,
}

/// protobuf-JSON: defaults are left out, unknown keys may be there.
#[derive(Deserialize)]
struct Event {
    start: Option<Start>,
    data: Option<Data>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    pid: u32,
}

#[derive(Deserialize)]
struct Data {
    stdout: Option<String>,
    // One server sends what should be on stdout here.
    pty: Option<String>,
    stderr: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    #[serde(default)]
    exit_code: i32,
}

fn event(message: &[u8]) -> Result<Option<ProcessEvent>, EnvdError> {
    let message: Message =
        serde_json::from_slice(message).map_err(|error| EnvdError::Rejected(format!("an event can't be read: {error}")))?;
    let bytes =
        |text: &str| BASE64.decode(text).map(Bytes::from).map_err(|error| EnvdError::Rejected(format!("output can't be read: {error}")));
    Ok(match message.event {
        Event { start: Some(start), .. } => Some(ProcessEvent::Started { pid: start.pid }),
        Event { data: Some(Data { stdout: Some(text), .. } | Data { pty: Some(text), .. }), .. } => {
            Some(ProcessEvent::Stdout(bytes(&text)?))
        }
        Event { data: Some(Data { stderr: Some(text), .. }), .. } => Some(ProcessEvent::Stderr(bytes(&text)?)),
        Event { end: Some(end), .. } => Some(ProcessEvent::Ended { exit_code: end.exit_code }),
        // A keep-alive, or something newer than us.
        Event { .. } => None,
    })
}

async fn ok(response: Response) -> Result<Response, EnvdError> {
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
        409 => EnvdError::NotReady(text),
        502 if message.contains("not found") => EnvdError::Gone,
        502 if message.contains("port is not open") => EnvdError::NotReady(text),
        408 | 429 | 499 | 500.. => EnvdError::Unreachable(text),
        _ => EnvdError::Rejected(text),
    })
}

fn stream_error(error: StreamError) -> EnvdError {
    let StreamError { code, message } = error;
    match code.as_str() {
        "unavailable" | "aborted" | "canceled" | "resource_exhausted" => EnvdError::Unreachable(message),
        "deadline_exceeded" => EnvdError::DeadlineExceeded,
        "not_found" => EnvdError::NotFound(message),
        "unauthenticated" | "permission_denied" => EnvdError::Unauthorized(message),
        _ => EnvdError::Rejected(format!("{code}: {message}")),
    }
}

fn unreachable(error: reqwest::Error) -> EnvdError {
    if error.is_timeout() { EnvdError::DeadlineExceeded } else { EnvdError::Unreachable(root_cause(&error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_as_the_real_envd_sends_them() {
        let read = |text: &str| event(text.as_bytes()).unwrap();
        assert_eq!(read(r#"{"event":{"start":{"pid":5763}}}"#), Some(ProcessEvent::Started { pid: 5763 }));
        assert_eq!(read(r#"{"event":{"data":{"stdout":"b3V0Cg=="}}}"#), Some(ProcessEvent::Stdout("out\n".into())));
        assert_eq!(read(r#"{"event":{"data":{"stderr":"ZXJyCg=="}}}"#), Some(ProcessEvent::Stderr("err\n".into())));
        assert_eq!(read(r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#), Some(ProcessEvent::Ended { exit_code: 0 }));
        assert_eq!(read(r#"{"event":{"end":{"exitCode":-1,"status":"signal: killed"}}}"#), Some(ProcessEvent::Ended { exit_code: -1 }));
        assert_eq!(read(r#"{"event":{"keepalive":{}}}"#), None);
    }
}
