//! envd's processes: started, heard while somebody listens, signalled one pid at a time.
//!
//! As in the real one, a process runs on when its caller goes away, what it prints while nobody listens is
//! lost, a listener that stops reading holds it up, and its exit code is kept for 30 s.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use rustix::process::{Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::sandboxes::Sandbox;
use super::{App, fault, files, kill::pid};
use crate::e2b::connect::{Frame, Frames, frame};

/// How long an exit code is kept.
const EXIT_KEPT: Duration = Duration::from_secs(30);

/// Most bytes of one event.
const CHUNK: usize = 32 * 1024;

/// Events that may wait for a listener before the process is held up.
const QUEUE: usize = 16;

/// The processes of one sandbox, since this server started.
#[derive(Debug, Default, Clone)]
pub(super) struct Processes(Arc<Mutex<Vec<Arc<Process>>>>);

#[derive(Debug)]
struct Process {
    pid: u32,
    tag: Option<String>,
    config: Value,
    listeners: Mutex<Listeners>,
}

#[derive(Debug)]
enum Listeners {
    Running(Vec<mpsc::Sender<Value>>),
    Ended(Value),
}

#[derive(Debug, Deserialize)]
struct StartRequest {
    process: ProcessConfig,
    tag: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ProcessConfig {
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Selected {
    process: Selector,
    signal: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

/// `Start`.
pub(super) async fn start(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    app.acts
        .perform("start", async {
            let request: StartRequest = match message(&body) {
                Ok(request) => request,
                Err(error) => return ended("invalid_argument", &error),
            };
            let args = request.process.args.clone();
            let (child, config) = match spawn(&sandbox, request.process, &user_of(&headers)) {
                Ok(spawned) => spawned,
                Err((code, text)) => return ended(code, &text),
            };
            let (sender, events) = mpsc::channel(QUEUE);
            let process = Arc::new(Process {
                pid: child.id().unwrap_or(0),
                tag: request.tag,
                config,
                listeners: Mutex::new(Listeners::Running(vec![sender])),
            });
            app.acts.note("start", &sandbox.record.id, json!({ "pid": process.pid, "args": args }));
            sandbox.processes.add(process.clone());
            let deadline = header(&headers, "connect-timeout-ms").map(Duration::from_millis);
            tokio::spawn(run(sandbox.processes.clone(), process.clone(), child));
            stream(&sandbox, &process, events, &headers, deadline)
        })
        .await
}

/// `Connect`: what comes from now on.
pub(super) async fn connect(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let selected: Selected = match message(&body) {
        Ok(selected) => selected,
        Err(error) => return ended("invalid_argument", &error),
    };
    let Some(process) = sandbox.processes.find(&selected.process) else { return ended("not_found", &selected.process.missing()) };
    let (sender, events) = mpsc::channel(QUEUE);
    match &mut *process.listeners() {
        Listeners::Running(listeners) => listeners.push(sender),
        Listeners::Ended(end) => drop(sender.try_send(end.clone())),
    }
    stream(&sandbox, &process, events, &headers, None)
}

/// `List`.
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let running: Vec<Value> = sandbox
        .processes
        .running()
        .iter()
        .map(|process| {
            let mut row = json!({ "config": process.config, "pid": process.pid });
            if let Some(tag) = &process.tag {
                row["tag"] = tag.as_str().into();
            }
            row
        })
        .collect();
    Json(json!({ "processes": running })).into_response()
}

/// `SendSignal`: reaches one pid only, as the real one.
pub(super) async fn send_signal(State(app): State<App>, headers: HeaderMap, Json(selected): Json<Selected>) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let signal = match selected.signal.as_deref() {
        Some("SIGNAL_SIGKILL") => Signal::KILL,
        Some("SIGNAL_SIGTERM") => Signal::TERM,
        _ => return connect_fault(StatusCode::BAD_REQUEST, "invalid_argument", "invalid signal"),
    };
    match sandbox.processes.find(&selected.process).filter(|process| process.runs()) {
        Some(process) => {
            let _ = pid(process.pid).map(|pid| kill_process(pid, signal));
            Json(json!({})).into_response()
        }
        None => connect_fault(StatusCode::NOT_FOUND, "not_found", &selected.process.missing()),
    }
}

/// `GET /health`, of the server or of a sandbox.
pub(super) async fn health(State(app): State<App>, headers: HeaderMap) -> Response {
    if sandbox_id(&headers).is_none() {
        return StatusCode::OK.into_response();
    }
    sandbox_named(&app, &headers).map_or_else(|refused| refused, |_| StatusCode::NO_CONTENT.into_response())
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

fn sandbox_named(app: &App, headers: &HeaderMap) -> Result<Arc<Sandbox>, Response> {
    let Some(id) = sandbox_id(headers) else { return Err(fault(StatusCode::BAD_REQUEST, "missing header")) };
    app.sandboxes.get(&id).ok_or_else(|| {
        let body = json!({ "sandboxId": id, "message": "The sandbox was not found", "code": 502 });
        (StatusCode::BAD_GATEWAY, Json(body)).into_response()
    })
}

fn sandbox_id(headers: &HeaderMap) -> Option<String> {
    let named = headers.get("E2b-Sandbox-Id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    named.or_else(|| headers.get("Host")?.to_str().ok()?.split('.').next()?.strip_prefix("49983-").map(str::to_owned))
}

fn user_of(headers: &HeaderMap) -> String {
    let basic = headers.get("Authorization").and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Basic "));
    let user = basic.and_then(|text| BASE64.decode(text).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
    user.and_then(|user| user.split(':').next().map(str::to_owned)).filter(|user| !user.is_empty()).unwrap_or_else(|| "user".to_owned())
}

fn spawn(sandbox: &Sandbox, config: ProcessConfig, user: &str) -> Result<(Child, Value), (&'static str, String)> {
    let (home, uid) = match user {
        "root" => (sandbox.root.join("root"), None),
        "user" => (sandbox.root.join("home/user"), sandbox.record.uid),
        _ => return Err(("unauthenticated", format!("invalid username: '{user}'"))),
    };
    let cwd = match &config.cwd {
        Some(cwd) => files::place(sandbox, cwd, Some(user))
            .filter(|place| place.is_dir())
            .ok_or_else(|| ("invalid_argument", format!("cwd '{cwd}' does not exist")))?,
        None => home.clone(),
    };
    let described = json!({ "cmd": config.cmd, "args": config.args, "envs": config.envs, "cwd": config.cwd });
    // Through a shell, as the real one: a missing program is an exit code of a process that ran.
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", r#"exec "$@""#, "sh"]).arg(&config.cmd).args(&config.args).current_dir(cwd).env_clear();
    command.env("PATH", &sandbox.path).env("HOME", home).env("USER", user).env("LOGNAME", user);
    command.envs(&sandbox.record.env_vars).env("E2B_SANDBOX", "true").env("E2B_TEMPLATE_ID", &sandbox.record.template).envs(&config.envs);
    // Last: by this its processes are found when it is killed.
    command.env("E2B_SANDBOX_ID", &sandbox.record.id).env("TURNMILL_ROOT", &sandbox.root);
    if let Some(uid) = sandbox.record.uid {
        command.env("TURNMILL_AGENT_UID", uid.to_string());
    }
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = tokio::process::Command::from(command).spawn().map_err(|error| ("internal", error.to_string()))?;
    Ok((child, described))
}

/// Hears a process until it has ended and its pipes are closed, whoever listens.
async fn run(processes: Processes, process: Arc<Process>, mut child: Child) {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    tokio::join!(pump(&process, stdout, "stdout"), pump(&process, stderr, "stderr"));
    let end = match child.wait().await.map(|status| (status.code(), status)) {
        Ok((Some(0), _)) => json!({ "exited": true, "status": "exit status 0" }),
        Ok((Some(code), _)) => {
            json!({ "exitCode": code, "exited": true, "status": format!("exit status {code}"), "error": format!("exit status {code}") })
        }
        Ok((None, status)) => json!({ "exitCode": -1, "status": status.to_string(), "error": status.to_string() }),
        Err(error) => json!({ "exitCode": -1, "status": error.to_string(), "error": error.to_string() }),
    };
    let end = json!({ "event": { "end": end } });
    let before = std::mem::replace(&mut *process.listeners(), Listeners::Ended(end.clone()));
    if let Listeners::Running(listeners) = before {
        for listener in listeners {
            // Gone is gone.
            drop(listener.send(end.clone()).await);
        }
    }
    sleep(EXIT_KEPT).await;
    processes.remove(process.pid);
}

async fn pump(process: &Process, pipe: Option<impl AsyncRead + Unpin>, name: &str) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let listeners = match &*process.listeners() {
            Listeners::Running(listeners) => listeners.clone(),
            Listeners::Ended(_) => return,
        };
        if listeners.is_empty() {
            continue;
        }
        let event = json!({ "event": { "data": { name: BASE64.encode(&buffer[..n]) } } });
        for listener in listeners {
            if listener.send(event.clone()).await.is_err()
                && let Listeners::Running(all) = &mut *process.listeners()
            {
                all.retain(|other| !other.is_closed());
            }
        }
    }
}

/// A Connect stream of a process's events; cut without an end frame when its sandbox goes.
fn stream(
    sandbox: &Sandbox,
    process: &Arc<Process>,
    mut events: mpsc::Receiver<Value>,
    headers: &HeaderMap,
    deadline: Option<Duration>,
) -> Response {
    let (frames, body) = mpsc::channel::<std::io::Result<Vec<u8>>>(QUEUE);
    let keepalive = Duration::from_secs(header(headers, "keepalive-ping-interval").unwrap_or(90).max(1));
    let gone = sandbox.gone.clone();
    let pid_here = process.pid;
    tokio::spawn(async move {
        let until = deadline.map(|deadline| Instant::now() + deadline);
        let expired = async { if let Some(until) = until { sleep_until(until).await } else { std::future::pending().await } };
        tokio::pin!(expired);
        let mut next = Some(json!({ "event": { "start": { "pid": pid_here } } }));
        loop {
            if let Some(event) = next.take() {
                let last = event["event"]["end"].is_object();
                if frames.send(Ok(frame(&event))).await.is_err() {
                    return;
                }
                if last {
                    drop(frames.send(Ok(end_frame(&json!({})))).await);
                    return;
                }
            }
            tokio::select! {
                biased;
                () = gone.cancelled() => {
                    drop(frames.send(Err(std::io::Error::other("the sandbox is gone"))).await);
                    return;
                }
                () = &mut expired => {
                    let _ = pid(pid_here).map(|pid| kill_process(pid, Signal::KILL));
                    drop(frames.send(Ok(end_frame(&json!({ "error": { "code": "deadline_exceeded", "message": "context deadline exceeded" } })))).await);
                    return;
                }
                // The caller went away; the process runs on.
                () = frames.closed() => return,
                event = timeout(keepalive, events.recv()) => match event {
                    Ok(Some(event)) => next = Some(event),
                    Ok(None) => return,
                    Err(_) => next = Some(json!({ "event": { "keepalive": {} } })),
                },
            }
        }
    });
    ([("Content-Type", "application/connect+json")], Body::from_stream(ReceiverStream::new(body).boxed())).into_response()
}

fn message<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, String> {
    let mut frames = Frames::default();
    frames.push(body);
    match frames.next()? {
        Some(Frame::Message(message)) => serde_json::from_slice(&message).map_err(|error| error.to_string()),
        _ => Err("the request has no message".to_owned()),
    }
}

/// A stream that only says why there is none: HTTP 200 all the same.
fn ended(code: &str, message: &str) -> Response {
    let body = end_frame(&json!({ "error": { "code": code, "message": message } }));
    ([("Content-Type", "application/connect+json")], body).into_response()
}

fn end_frame(payload: &Value) -> Vec<u8> {
    let mut bytes = frame(payload);
    bytes[0] = 2;
    bytes
}

fn connect_fault(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "code": code, "message": message }))).into_response()
}

fn header(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Selector {
    fn missing(&self) -> String {
        match (self.pid, &self.tag) {
            (Some(pid), _) => format!("process with pid {pid} not found"),
            (None, tag) => format!("process with tag {} not found", tag.as_deref().unwrap_or_default()),
        }
    }
}

impl Process {
    fn listeners(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> bool {
        matches!(*self.listeners(), Listeners::Running(_))
    }
}

impl Processes {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, process: Arc<Process>) {
        self.all().push(process);
    }

    fn remove(&self, pid: u32) {
        self.all().retain(|process| process.pid != pid || process.runs());
    }

    fn find(&self, wanted: &Selector) -> Option<Arc<Process>> {
        let matches = |process: &&Arc<Process>| match (wanted.pid, &wanted.tag) {
            (Some(pid), _) => process.pid == pid,
            (None, tag) => tag.is_some() && process.tag == *tag,
        };
        self.all().iter().rev().find(matches).cloned()
    }

    fn running(&self) -> Vec<Arc<Process>> {
        self.all().iter().filter(|process| process.runs()).cloned().collect()
    }
}
