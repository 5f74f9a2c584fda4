//! envd's process service.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::process::{Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::App;
use super::acts::StreamFault;
use super::envd::{Refusal, answered, end_frame, header, message, sandbox_of, streamed, unary, user_of};
use super::kill::pid;
use super::sandboxes::Sandbox;
use super::simulated;
use super::spawn::{StartRequest, TerminalSize, spawn};
use super::table::{Process, Selector};
use crate::e2b::connect::frame;

/// Frames that may wait for the caller's connection.
const QUEUE: usize = 16;

/// `Start`.
pub(super) async fn start(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let started = async {
        if let Some(simulation) = &sandbox.simulation {
            let events = message::<StartRequest>(&body).and_then(|request| simulation.run(&request.process.args));
            return match events {
                Ok(events) => stream(&sandbox, simulated::PID, events, &headers, None, app.acts.stream_fault()),
                Err(refusal) => refusal.stream(),
            };
        }
        let spawned = message::<StartRequest>(&body).and_then(|request| Ok((spawn(&sandbox, &request, &user_of(&headers))?, request)));
        let (spawned, request) = match spawned {
            Ok(started) => started,
            Err(refusal) => return refusal.stream(),
        };
        let (acts, id, pid) = (app.acts.clone(), sandbox.record.id.clone(), spawned.child.id().unwrap_or(0));
        acts.note("start", &id, started(pid, &request.process.args));
        let ended = move |code| acts.note("end", &id, json!({ "pid": pid, "exit": code }));
        let (process, events) = sandbox.processes.take_up(spawned, request.tag, ended);
        let deadline = header(&headers, "connect-timeout-ms").map(Duration::from_millis);
        if let Some(deadline) = deadline {
            tokio::spawn(kill_at(deadline, process.clone()));
        }
        stream(&sandbox, process.pid, events, &headers, deadline, app.acts.stream_fault())
    };
    app.acts.perform("start", started).await
}

/// What the ledger says of a process; of our own supervisor, as whom it acts and how.
fn started(pid: u32, args: &[String]) -> Value {
    match args {
        [_, _, name, epoch, verb, _, _, _, attempt, ..] if name == "run-turn" => {
            json!({ "pid": pid, "epoch": epoch.parse::<i64>().ok(), "verb": verb, "attempt": attempt.parse::<i32>().ok() })
        }
        _ => json!({ "pid": pid, "args": args }),
    }
}

/// `Connect`: what comes from now on.
pub(super) async fn connect(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let found = message::<Selected>(&body).and_then(|selected| sandbox.processes.find(&selected.process));
    match found {
        Ok(process) => {
            let events = process.listen();
            stream(&sandbox, process.pid, events, &headers, None, None)
        }
        Err(refusal) => refusal.stream(),
    }
}

#[derive(Debug, Deserialize)]
struct Selected {
    process: Selector,
}

/// `List`.
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    sandbox_of(&app, &headers).map_or_else(|refused| refused, |sandbox| answered(Ok(json!({ "processes": sandbox.processes.list() }))))
}

#[derive(Debug, Deserialize)]
struct SendSignal {
    process: Selector,
    signal: String,
}

/// `SendSignal`: reaches one pid only, as the real one.
pub(super) async fn send_signal(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    answered(unary::<SendSignal>(&body).and_then(|request| {
        let signal = match request.signal.as_str() {
            "SIGNAL_SIGKILL" => Signal::KILL,
            "SIGNAL_SIGTERM" => Signal::TERM,
            other => return Err(Refusal::new("invalid_argument", format!("invalid signal: {other}"))),
        };
        let process = sandbox.processes.find_running(&request.process)?;
        let _ = pid(process.pid).map(|pid| kill_process(pid, signal));
        Ok(json!({}))
    }))
}

#[derive(Debug, Deserialize)]
struct SendInput {
    process: Selector,
    input: ProcessInput,
}

#[derive(Debug, Deserialize)]
struct ProcessInput {
    stdin: Option<String>,
    pty: Option<String>,
}

/// `SendInput`.
pub(super) async fn send_input(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let feed = async {
        let request: SendInput = unary(&body)?;
        let text = request.input.stdin.or(request.input.pty).unwrap_or_default();
        let bytes = BASE64.decode(text).map_err(|error| Refusal::new("invalid_argument", error.to_string()))?;
        sandbox.processes.find_running(&request.process)?.feed(&bytes).await?;
        Ok(json!({}))
    };
    answered(feed.await)
}

/// `CloseStdin`.
pub(super) async fn close_stdin(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let close = async {
        let request: Selected = unary(&body)?;
        sandbox.processes.find_running(&request.process)?.close_input().await?;
        Ok(json!({}))
    };
    answered(close.await)
}

#[derive(Debug, Deserialize)]
struct Update {
    process: Selector,
    pty: Option<TerminalUpdate>,
}

#[derive(Debug, Deserialize)]
struct TerminalUpdate {
    size: TerminalSize,
}

/// `Update`: the size of a terminal.
pub(super) async fn update(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let update = async {
        let request: Update = unary(&body)?;
        let process = sandbox.processes.find_running(&request.process)?;
        if let Some(TerminalUpdate { size }) = request.pty {
            process.resize(size.rows, size.cols).await?;
        }
        Ok(json!({}))
    };
    answered(update.await)
}

/// A Connect stream of a process's events; cut without an end frame when its sandbox goes.
fn stream(
    sandbox: &Sandbox,
    pid: u32,
    mut events: mpsc::Receiver<Value>,
    headers: &HeaderMap,
    deadline: Option<Duration>,
    fault: Option<StreamFault>,
) -> Response {
    let (frames, body) = mpsc::channel::<std::io::Result<Vec<u8>>>(QUEUE);
    let keepalive = Duration::from_secs(header(headers, "keepalive-ping-interval").unwrap_or(90).max(1));
    let gone = sandbox.gone();
    tokio::spawn(async move {
        let expired = at_last(deadline);
        let misbehaves = at_last(fault.as_ref().map(StreamFault::after));
        tokio::pin!(expired, misbehaves);
        let mut next = Some(json!({ "event": { "start": { "pid": pid } } }));
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
                    let error = json!({ "error": { "code": "deadline_exceeded", "message": "context deadline exceeded" } });
                    drop(frames.send(Ok(end_frame(&error))).await);
                    return;
                }
                () = &mut misbehaves => {
                    if let Some(StreamFault::Stall { .. }) = fault {
                        // Says nothing more, not even that it is there.
                        frames.closed().await;
                    } else {
                        drop(frames.send(Err(std::io::Error::other("this stream is cut"))).await);
                    }
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
    streamed(body)
}

/// The deadline of a call kills its process, whether or not its caller is still there.
async fn kill_at(deadline: Duration, process: Arc<Process>) {
    tokio::time::sleep(deadline).await;
    if process.runs() {
        let _ = pid(process.pid).map(|pid| kill_process(pid, Signal::KILL));
    }
}

async fn at_last(after: Option<Duration>) {
    match after {
        Some(after) => sleep_until(Instant::now() + after).await,
        None => std::future::pending().await,
    }
}
