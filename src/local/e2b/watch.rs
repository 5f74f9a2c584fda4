//! envd's directory watches, as a stream or asked for piece by piece.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use notify::event::{ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::App;
use super::envd::{Refusal, answered, header, message, sandbox_of, streamed, unary, user_of};
use super::filesystem::{Caller, entry};
use super::sandboxes::Sandbox;
use crate::e2b::connect::frame;

/// Events that may wait for whoever watches; more are lost.
const QUEUE: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watch {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    include_entry: bool,
}

/// The watches of one sandbox that are asked for piece by piece.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<String, Watching>>);

/// Watches for as long as it lives.
#[derive(Debug)]
struct Watching {
    events: mpsc::Receiver<Value>,
    _watcher: RecommendedWatcher,
}

fn begin(sandbox: &Arc<Sandbox>, user: String, watch: &Watch) -> Result<Watching, Refusal> {
    let caller = Caller { sandbox, user };
    let root = caller.place(&watch.path)?;
    if !root.exists() {
        return Err(Refusal::new("not_found", format!("path not found: {}", watch.path)));
    }
    if !root.is_dir() {
        return Err(Refusal::new("invalid_argument", format!("path is not a directory: {}", watch.path)));
    }
    // As notify sees it: links resolved.
    let root = root.canonicalize()?;
    let (sender, events) = mpsc::channel(QUEUE);
    let (place, about, include_entry) = (root.clone(), sandbox.clone(), watch.include_entry);
    let heard = move |event: notify::Result<Event>| {
        for (kind, path) in event.iter().flat_map(changes) {
            if let Some(name) = name_in(&place, &path) {
                let mut said = json!({ "name": name, "type": kind });
                if include_entry && let Ok(entry) = entry(&about, &path) {
                    said["entry"] = entry;
                }
                drop(sender.try_send(said));
            }
        }
    };
    let failed = |error: notify::Error| Refusal::new("internal", error.to_string());
    let mut watcher = notify::recommended_watcher(heard).map_err(failed)?;
    let mode = if watch.recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
    watcher.watch(&root, mode).map_err(failed)?;
    Ok(Watching { events, _watcher: watcher })
}

/// What an event means in envd's words; its rename is the old name's, the new name is created.
fn changes(event: &Event) -> Vec<(&'static str, PathBuf)> {
    let kind = match event.kind {
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => "EVENT_TYPE_CREATE",
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => "EVENT_TYPE_RENAME",
        EventKind::Modify(ModifyKind::Metadata(_)) => "EVENT_TYPE_CHMOD",
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => "EVENT_TYPE_WRITE",
        EventKind::Remove(_) => "EVENT_TYPE_REMOVE",
        // `Both` repeats what From and To have said.
        _ => return Vec::new(),
    };
    event.paths.iter().map(|path| (kind, path.clone())).collect()
}

fn name_in(root: &Path, path: &Path) -> Option<String> {
    let name = path.strip_prefix(root).ok()?.to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

/// `WatchDir`: a stream until the caller goes.
pub(super) async fn watch_dir(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let watching = match message::<Watch>(&body).and_then(|watch| begin(&sandbox, user_of(&headers), &watch)) {
        Ok(watching) => watching,
        Err(refusal) => return refusal.stream(),
    };
    let keepalive = Duration::from_secs(header(&headers, "keepalive-ping-interval").unwrap_or(90).max(1));
    let (frames, said) = mpsc::channel(16);
    let gone = sandbox.gone();
    tokio::spawn(async move {
        // All of it: with the watcher its events end.
        let mut watching = watching;
        let mut next = json!({ "start": {} });
        while frames.send(Ok(frame(&next))).await.is_ok() {
            next = tokio::select! {
                () = gone.cancelled() => {
                    drop(frames.send(Err(std::io::Error::other("the sandbox is gone"))).await);
                    return;
                }
                () = frames.closed() => return,
                event = timeout(keepalive, watching.events.recv()) => match event {
                    Ok(Some(event)) => json!({ "filesystem": event }),
                    Ok(None) => return,
                    Err(_) => json!({ "keepalive": {} }),
                },
            };
        }
    });
    streamed(said)
}

/// `CreateWatcher`.
pub(super) async fn create_watcher(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    answered(unary::<Watch>(&body).and_then(|watch| {
        let id = format!("w{:016x}", rand::random::<u64>());
        let watching = begin(&sandbox, user_of(&headers), &watch)?;
        sandbox.watches.all().insert(id.clone(), watching);
        Ok(json!({ "watcherId": id }))
    }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watcher {
    watcher_id: String,
}

/// `GetWatcherEvents`: those since it was last asked.
pub(super) async fn get_watcher_events(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    answered(unary::<Watcher>(&body).and_then(|request| {
        let mut watches = sandbox.watches.all();
        let watching = watches.get_mut(&request.watcher_id).ok_or_else(|| unknown(&request.watcher_id))?;
        let events: Vec<Value> = std::iter::from_fn(|| watching.events.try_recv().ok()).collect();
        Ok(json!({ "events": events }))
    }))
}

/// `RemoveWatcher`.
pub(super) async fn remove_watcher(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let sandbox = match sandbox_of(&app, &headers) {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    answered(unary::<Watcher>(&body).and_then(|request| match sandbox.watches.all().remove(&request.watcher_id) {
        Some(_) => Ok(json!({})),
        None => Err(unknown(&request.watcher_id)),
    }))
}

fn unknown(id: &str) -> Refusal {
    Refusal::new("not_found", format!("watcher with id {id} not found"))
}

impl Watches {
    /// Ends all of them.
    pub fn clear(&self) {
        self.all().clear();
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, Watching>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
