//! Templates are asked for, their files uploaded, their builds started and watched. Nothing is built: a build that
//! would have all it needs is ready at once, and the ledger says what it was to do. Gone with the server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::acts::now_ms;
use super::control::{allowed, time};
use super::{App, fault};

/// All templates of one server.
#[derive(Debug, Default)]
pub(super) struct Templates(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By id.
    templates: BTreeMap<String, Template>,
    /// Hashes of the uploaded archives.
    files: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Template {
    name: String,
    /// By id; `None` until the steps are known.
    builds: BTreeMap<String, Option<Build>>,
}

#[derive(Debug)]
struct Build {
    at_ms: u64,
    steps: Vec<Value>,
    /// The step, from 1, whose files were never uploaded.
    lacks: Option<usize>,
}

impl Templates {
    /// Id and name of a template that was built here, by its id or by its name with or without a tag.
    pub fn find(&self, wanted: &str) -> Option<(String, String)> {
        let name = untagged(wanted);
        let known = self.known();
        known
            .templates
            .iter()
            .find(|(id, template)| *id == name || template.name == name)
            .map(|(id, template)| (id.clone(), template.name.clone()))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn untagged(name: &str) -> &str {
    name.split_once(':').map_or(name, |(name, _)| name)
}

#[derive(Debug, Deserialize)]
pub(super) struct Request {
    name: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(rename = "cpuCount")]
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
}

/// `POST /v3/templates`: a template of this name, made anew or built anew.
pub(super) async fn request(State(app): State<App>, headers: HeaderMap, body: Result<Json<Request>, JsonRejection>) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return fault(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    app.acts.perform("template", async { requested(&app, request) }).await
}

fn requested(app: &App, mut request: Request) -> Response {
    let name = untagged(&request.name).to_owned();
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_/".contains(&byte)) {
        return fault(
            StatusCode::BAD_REQUEST,
            &format!("invalid template name '{name}': lower-case letters, digits, dashes and underscores"),
        );
    }
    if request.memory_mb.is_some_and(|memory| memory % 2 == 1) {
        return fault(StatusCode::BAD_REQUEST, "memory must be an even number of MiB");
    }
    if let Some((_, tag)) = request.name.split_once(':') {
        request.tags.insert(0, tag.to_owned());
    }
    if request.tags.is_empty() {
        request.tags.push("default".to_owned());
    }
    let build = uuid::Uuid::new_v4().to_string();
    let id = app.templates.find(&name).map_or_else(|| app.sandboxes.blank(&name, 0).id.split_off(1), |(id, _)| id);
    let mut known = app.templates.known();
    let template = known.templates.entry(id.clone()).or_default();
    template.name.clone_from(&name);
    template.builds.insert(build.clone(), None);
    let detail =
        json!({ "name": name, "build": build, "tags": request.tags, "cpuCount": request.cpu_count, "memoryMB": request.memory_mb });
    app.acts.note("template", &id, detail);
    let answer = json!({ "templateID": id, "buildID": build, "public": false, "names": [name], "aliases": [name], "tags": request.tags });
    (StatusCode::ACCEPTED, Json(answer)).into_response()
}

/// `GET /templates/{id}/files/{hash}`: where to upload an archive, unless it is there.
pub(super) async fn files(State(app): State<App>, Path((id, hash)): Path<(String, String)>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let known = app.templates.known();
    if !known.templates.contains_key(&id) {
        return unknown(&id);
    }
    let host = headers.get("Host").and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    let url = format!("http://{host}/_local/templates/{id}/files/{hash}");
    (StatusCode::CREATED, Json(json!({ "present": known.files.contains(&hash), "url": url }))).into_response()
}

/// `PUT` to that address. As with a signed one of the cloud, knowing it is enough.
pub(super) async fn upload(State(app): State<App>, Path((id, hash)): Path<(String, String)>, body: Body) -> Response {
    let mut bytes = 0;
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => bytes += chunk.len(),
            Err(error) => return fault(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }
    if bytes == 0 {
        return fault(StatusCode::BAD_REQUEST, "an archive has at least one byte");
    }
    app.acts.note("template-files", &id, json!({ "hash": hash, "bytes": bytes }));
    app.templates.known().files.insert(hash);
    StatusCode::OK.into_response()
}

/// `POST /v2/templates/{id}/builds/{buildID}`: what the build consists of.
pub(super) async fn build(
    State(app): State<App>,
    Path((id, build)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Json<Value>, JsonRejection>,
) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let request = match body {
        Ok(Json(request)) => request,
        Err(rejection) => return fault(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    app.acts.perform("build", async { started(&app, &id, &build, &request) }).await
}

fn started(app: &App, id: &str, build: &str, request: &Value) -> Response {
    if request["fromImage"].is_string() == request["fromTemplate"].is_string() {
        return fault(StatusCode::BAD_REQUEST, "a build starts from an image or from a template: give one of fromImage, fromTemplate");
    }
    let steps = request["steps"].as_array().cloned().unwrap_or_default();
    if let Some(odd) = steps.iter().find(|step| !matches!(step["type"].as_str(), Some("RUN" | "COPY" | "ENV" | "WORKDIR" | "USER"))) {
        return fault(StatusCode::BAD_REQUEST, &format!("unknown step {odd}"));
    }
    let mut known = app.templates.known();
    let lacks = |step: &Value| step["type"] == "COPY" && !step["filesHash"].as_str().is_some_and(|hash| known.files.contains(hash));
    let lacks = steps.iter().position(lacks).map(|nth| nth + 1);
    let Some(slot) = known.templates.get_mut(id).and_then(|template| template.builds.get_mut(build)) else { return unknown(build) };
    if slot.is_some() {
        return fault(StatusCode::BAD_REQUEST, &format!("build '{build}' was started before"));
    }
    *slot = Some(Build { at_ms: now_ms(), steps, lacks });
    app.acts.note("build", id, json!({ "build": build, "request": request }));
    StatusCode::ACCEPTED.into_response()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusQuery {
    #[serde(default)]
    logs_offset: usize,
}

/// `GET /templates/{id}/builds/{buildID}/status`: how it went, and the log from an entry on.
pub(super) async fn status(
    State(app): State<App>,
    Path((id, build)): Path<(String, String)>,
    Query(query): Query<StatusQuery>,
    headers: HeaderMap,
) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    let known = app.templates.known();
    let Some(known) = known.templates.get(&id).and_then(|template| template.builds.get(&build)) else { return unknown(&build) };
    let (status, steps, at_ms) = match known {
        None => ("waiting", &[][..], now_ms()),
        Some(build) => (if build.lacks.is_some() { "error" } else { "ready" }, &build.steps[..], build.at_ms),
    };
    let entry = |(nth, step): (usize, &Value)| {
        let words: Vec<&str> = step["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let message = format!("[{}/{}] {} {}", nth + 1, steps.len(), step["type"].as_str().unwrap_or_default(), words.join(" "));
        json!({ "timestamp": time(at_ms), "level": "info", "step": (nth + 1).to_string(), "message": message })
    };
    let entries: Vec<Value> = steps.iter().enumerate().skip(query.logs_offset).take(100).map(entry).collect();
    let mut answer = json!({ "templateID": id, "buildID": build, "status": status, "logs": [], "logEntries": entries });
    if let Some(nth) = known.as_ref().and_then(|build| build.lacks) {
        answer["reason"] = json!({ "step": nth.to_string(), "message": format!("the files of step {nth} were not uploaded") });
    }
    Json(answer).into_response()
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(State(app): State<App>, Path(alias): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refused) = allowed(&app, &headers) {
        return refused;
    }
    match app.templates.find(&alias) {
        Some((id, _)) => Json(json!({ "templateID": id, "public": false })).into_response(),
        None => unknown(&alias),
    }
}

fn unknown(what: &str) -> Response {
    fault(StatusCode::NOT_FOUND, &format!("'{what}' not found"))
}
