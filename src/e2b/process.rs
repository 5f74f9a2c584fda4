//! The data plane's processes.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::connect::{Frame, Frames, frame};
use super::envd::{Envd, EnvdError, ok, stream_error, unreachable};

/// How long a process may take to start.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Who asks about processes that others started.
const ROOT: &str = "root";

/// A process to start.
#[derive(Debug, Clone, Default)]
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
    /// Whether it gets a pipe; else `/dev/null`.
    pub stdin: bool,
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

/// A process as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ProcessInfo {
    /// In the sandbox.
    pub pid: u32,
    /// As given at its start.
    pub tag: Option<String>,
    /// What runs.
    #[serde(default)]
    pub config: ProcessConfig,
}

/// What runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ProcessConfig {
    /// Program.
    #[serde(default)]
    pub cmd: String,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// The signals that envd knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

impl Envd {
    /// Starts a process and hears what it says. Dropping the stream leaves the process alone.
    pub async fn start(&self, command: &Command) -> Result<ProcessStream, EnvdError> {
        let mut body = json!({
            "process": { "cmd": command.cmd, "args": command.args, "envs": command.envs, "cwd": command.cwd },
            "stdin": command.stdin,
        });
        if let Some(tag) = &command.tag {
            body["tag"] = tag.as_str().into();
        }
        self.stream("process.Process/Start", &command.user, &body).await
    }

    /// Hears what a process says from now on. One that ended less than 30 s ago says that it has; an older one is
    /// `NotFound`.
    pub async fn connect(&self, pid: u32) -> Result<ProcessStream, EnvdError> {
        self.stream("process.Process/Connect", ROOT, &selected(pid, json!({}))).await
    }

    async fn stream(&self, procedure: &str, user: &str, body: &Value) -> Result<ProcessStream, EnvdError> {
        let call = self
            .connect_call(procedure, user)
            .header("Content-Type", "application/connect+json")
            .header("Keepalive-Ping-Interval", self.keepalive.as_secs().max(1))
            .body(frame(body));
        let response = timeout(START_DEADLINE, call.send()).await.map_err(|_| EnvdError::DeadlineExceeded)?.map_err(unreachable)?;
        Ok(events(ok(response).await?, self.keepalive))
    }

    /// Processes that envd started and that run.
    pub async fn processes(&self, deadline: Duration) -> Result<Vec<ProcessInfo>, EnvdError> {
        let answer = self.ask("process.Process/List", ROOT, &json!({}), deadline).await?;
        let found = answer["processes"].as_array().into_iter().flatten();
        let info =
            |process| ProcessInfo::deserialize(process).map_err(|error| EnvdError::Rejected(format!("a process can't be read: {error}")));
        found.map(info).collect()
    }

    /// Signals one process; its children get nothing of it.
    pub async fn signal(&self, pid: u32, signal: Signal, deadline: Duration) -> Result<(), EnvdError> {
        let name = match signal {
            Signal::Term => "SIGNAL_SIGTERM",
            Signal::Kill => "SIGNAL_SIGKILL",
        };
        self.ask("process.Process/SendSignal", ROOT, &selected(pid, json!({ "signal": name })), deadline).await.map(drop)
    }

    /// Writes to the standard input of a process that was started with one.
    pub async fn send_input(&self, pid: u32, bytes: &[u8], deadline: Duration) -> Result<(), EnvdError> {
        let input = json!({ "input": { "stdin": BASE64.encode(bytes) } });
        self.ask("process.Process/SendInput", ROOT, &selected(pid, input), deadline).await.map(drop)
    }

    /// Ends a process's standard input. Needs envd 0.5.2.
    pub async fn close_stdin(&self, pid: u32, deadline: Duration) -> Result<(), EnvdError> {
        self.ask("process.Process/CloseStdin", ROOT, &selected(pid, json!({})), deadline).await.map(drop)
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
}

/// By pid: envd's look-up by tag stops at the first process with another tag.
fn selected(pid: u32, mut body: Value) -> Value {
    body["process"] = json!({ "pid": pid });
    body
}

/// Decodes a stream; ends after its end frame, or with an error when it was cut or says nothing any more.
fn events(response: Response, keepalive: Duration) -> ProcessStream {
    let silence_max = keepalive.mul_f64(2.5);
    let state = (response, Frames::default(), false);
    let decoded = stream::try_unfold(state, move |(mut response, mut frames, ended)| async move {
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
                        timeout(silence_max, response.chunk()).await.map_err(|_| EnvdError::Unreachable("it fell silent".to_owned()))?;
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
