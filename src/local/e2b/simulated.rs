//! A sandbox without processes: it plays a script of the stand-in agent, and speaks the supervisor's protocol as
//! `e2b/run-turn` does. The journal is a function of time, so one costs next to nothing while nobody looks.
//!
//! It knows nothing but the supervisor: no other command, no other file. It does not stand still while paused.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::envd::Refusal;
use super::fault;
use crate::agent::mock::{self, Script};

/// What its processes are called.
pub(super) const PID: u32 = 1;

/// Events that may wait for the caller's connection.
const QUEUE: usize = 16;

/// The exit code of `run-turn` for an epoch that is over.
const FENCED: i32 = 75;

/// One sandbox.
#[derive(Debug)]
pub(super) struct Simulation {
    script: Arc<Script>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    inputs: HashMap<String, Bytes>,
    attempts: HashMap<String, Arc<Attempt>>,
}

/// One start of the agent.
#[derive(Debug)]
struct Attempt {
    since: Instant,
    journal: Bytes,
    /// When how much of the journal is there.
    sizes: Vec<(Duration, usize)>,
    end: Option<(Duration, u8)>,
    stopped: Mutex<Option<(Duration, u8)>>,
    stop: Notify,
}

impl Attempt {
    fn new(script: &Script, input: &Value) -> Self {
        let timeline = mock::timeline(script, input["uuid"].as_str().unwrap_or_default());
        let mut journal = Vec::new();
        let mut sizes = Vec::new();
        for (at, line) in timeline.lines {
            journal.extend(line);
            sizes.push((at, journal.len()));
        }
        Self { since: Instant::now(), journal: journal.into(), sizes, end: timeline.end, stopped: Mutex::default(), stop: Notify::new() }
    }

    /// When and how it ends, or has ended.
    fn end(&self) -> Option<(Duration, u8)> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).or(self.end)
    }

    /// Bytes of the journal that are there, and the exit code once all are.
    fn now(&self) -> (usize, Option<u8>) {
        let end = self.end();
        let now = end.map_or(self.since.elapsed(), |(at, _)| self.since.elapsed().min(at));
        let lines = self.sizes.partition_point(|(at, _)| *at <= now);
        let size = lines.checked_sub(1).map_or(0, |last| self.sizes[last].1);
        (size, end.filter(|(at, _)| self.since.elapsed() >= *at).map(|(_, code)| code))
    }

    /// Until the next line, or the end.
    fn next(&self) -> Option<Duration> {
        let now = self.since.elapsed();
        let line = self.sizes.iter().map(|(at, _)| *at).find(|at| *at > now);
        line.or(self.end.map(|(at, _)| at)).map(|at| at.saturating_sub(now) + Duration::from_millis(1))
    }

    fn report(&self) -> Value {
        let (size, exit) = self.now();
        let state = if exit.is_some() { "exited" } else { "alive" };
        let files = json!({ "changed": 0, "list_bytes": 0, "archive_bytes": 0, "carried": false });
        let exit = exit
            .map(|status| json!({ "status": status, "journal_bytes": size, "reason": null, "finish": null, "ran": true, "files": files }));
        json!({ "state": state, "journal": size, "exit": exit, "stderr_tail": "" })
    }
}

impl Simulation {
    pub fn new(script: Arc<Script>) -> Self {
        Self { script, state: Mutex::default() }
    }

    /// Runs a command of the supervisor; its events.
    pub fn run(&self, args: &[String]) -> Result<mpsc::Receiver<Value>, Refusal> {
        let none = || Refusal::new("unimplemented", "a simulated sandbox has only the supervisor");
        let [_, _, name, epoch, verb, _, turn, _, attempt, rest @ ..] = args else { return Err(none()) };
        let attempt = format!("turn-{turn}/attempt-{attempt}");
        let epoch: u64 = epoch.parse().ok().filter(|_| name == "run-turn").ok_or_else(none)?;
        let mut state = self.lock();
        if epoch < state.epoch {
            return Ok(said(&json!({ "state": "fenced" }), FENCED));
        }
        state.epoch = epoch;
        if verb == "start" && !state.attempts.contains_key(&attempt) {
            let begun = Arc::new(self.begin(state.inputs.get(&epoch.to_string()))?);
            state.attempts.insert(attempt.clone(), begun);
        }
        let Some(attempt) = state.attempts.get(&attempt).cloned() else {
            return Ok(said(&json!({ "state": "none", "journal": 0, "exit": null, "stderr_tail": "" }), 0));
        };
        match (verb.as_str(), rest) {
            ("follow", [_, offset]) => return Ok(follow(attempt, offset.parse().map_err(|_| none())?)),
            ("signal", [signal]) => attempt.kill(signal),
            _ => {}
        }
        Ok(said(&attempt.report(), 0))
    }

    fn begin(&self, input: Option<&Bytes>) -> Result<Attempt, Refusal> {
        let input: Value = input.and_then(|line| serde_json::from_slice(line).ok()).unwrap_or_default();
        let prompt = input["message"]["content"][0]["text"].as_str().unwrap_or_default();
        let asked = mock::script_in(prompt).map(|name| Script::find(&name)).transpose();
        let asked = asked.map_err(|error| Refusal::new("invalid_argument", format!("{error:#}")))?;
        Ok(Attempt::new(asked.as_ref().unwrap_or(&self.script), &input))
    }

    /// Keeps what the agent is to read; takes anything else without keeping it.
    pub async fn upload(&self, path: &str, content: impl Stream<Item = io::Result<Bytes>>) -> Value {
        let mut content = pin!(content);
        let mut all = Vec::new();
        while let Some(Ok(bytes)) = content.next().await {
            all.extend_from_slice(&bytes);
        }
        let mut parts = path.rsplit('/');
        let (name, epoch) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if name == "input.jsonl" {
            self.lock().inputs.insert(epoch.to_owned(), all.into());
        }
        json!({ "name": name, "path": path, "type": "file" })
    }

    /// A journal, whole or by range.
    pub fn download(&self, path: &str, headers: &HeaderMap) -> Response {
        let attempt = path.rsplit_once('/').and_then(|(dir, _)| dir.find("turn-").map(|at| &dir[at..]));
        let Some(attempt) = attempt.and_then(|attempt| self.lock().attempts.get(attempt).cloned()) else {
            return fault(StatusCode::NOT_FOUND, &format!("path '{path}' does not exist"));
        };
        let journal = attempt.journal.slice(..attempt.now().0);
        let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
        let Some((from, to)) = range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))) else {
            return journal.into_response();
        };
        if from >= journal.len() {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        (StatusCode::PARTIAL_CONTENT, journal.slice(from..(to + 1).min(journal.len()))).into_response()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt {
    fn kill(&self, signal: &str) {
        let code = match signal {
            "INT" => 130,
            "TERM" => 143,
            _ => 137,
        };
        if self.now().1.is_none() {
            *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.since.elapsed(), code));
            self.stop.notify_waiters();
        }
    }
}

/// The events of a command that prints one line and ends.
fn said(line: &Value, exit_code: i32) -> mpsc::Receiver<Value> {
    let (events, heard) = mpsc::channel(2);
    // There is room for both.
    drop(events.try_send(stdout(format!("{line}\n").as_bytes())));
    drop(events.try_send(json!({ "event": { "end": { "exitCode": exit_code, "exited": true } } })));
    heard
}

/// The journal from an offset on, live, until the attempt has ended.
fn follow(attempt: Arc<Attempt>, mut offset: usize) -> mpsc::Receiver<Value> {
    let (events, heard) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            // Before the look, so that a stop in between is not missed.
            let stopped = attempt.stop.notified();
            let (size, exit) = attempt.now();
            if size > offset {
                if events.send(stdout(&attempt.journal[offset..size])).await.is_err() {
                    return;
                }
                offset = size;
            }
            if exit.is_some() {
                drop(events.send(json!({ "event": { "end": { "exited": true } } })).await);
                return;
            }
            tokio::select! {
                () = stopped => {}
                () = events.closed() => return,
                () = async { match attempt.next() { Some(pause) => sleep(pause).await, None => std::future::pending().await } } => {}
            }
        }
    });
    heard
}

fn stdout(bytes: &[u8]) -> Value {
    json!({ "event": { "data": { "stdout": BASE64.encode(bytes) } } })
}
