//! Enqueue: the one request that everything is about. And what became of it.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::App;
use super::auth::{Caller, TurnsWrite};
use super::problem::{Problem, escape};
use super::request::{Checks, ID_MAX, Id, Json};
use super::sessions::{bind, foreign_is_unknown};
use super::shapes::{Object, OnBusy, location};
use crate::store::{Bounds, Enqueue, NewSession, Receipt as Row};

/// A turn to enqueue.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnqueueTurn {
    /// What the user says: literal text, of at most `prompt_max_bytes` of the fleet.
    #[schema(min_length = 1, max_length = 1_000_000, pattern = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$", example = "Fix the login bug")]
    user_message: String,
    /// Per-turn settings, as the pool allows: model, max_turns, max_budget_usd, append_system_prompt, …
    #[serde(default)]
    #[schema(value_type = Option<TurnOptions>)]
    options: Option<Map<String, Value>>,
    /// Files for the agent's working directory; it sees the images among them.
    #[serde(default)]
    #[schema(max_items = 50, value_type = Option<Vec<Attachment>>)]
    attachments: Option<Vec<Object<Attachment>>>,
    /// What becomes of it while the session is busy; without it, as the session says.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// Higher goes first, within a pool. A token that is bound to a project or a tenant can't go before others.
    #[serde(default)]
    #[schema(minimum = -1000, maximum = 1000)]
    priority: Option<i32>,
    /// Project of a new session; may be left out by a token that is bound to one.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$", example = "shop")]
    project_id: Option<String>,
    /// Who talks: for a new session.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    user_id: Option<String>,
    /// Who pays: for a new session.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    tenant_id: Option<String>,
    /// Pool of a new session.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9][a-z0-9_.-]*$", example = "default")]
    pool: Option<String>,
}

/// A file that comes with a message: `text`, or `base64` of anything.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Where it lands, from the agent's working directory.
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", example = "data/report.csv")]
    path: String,
    /// Its content, if that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[^\\u0000]*$")]
    text: Option<String>,
    /// Its content, whatever it is, in the alphabet with + and /, with = at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(content_encoding = "base64")]
    base64: Option<String>,
    /// By the name, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9]+/[a-z0-9.+-]+$", max_length = 100, example = "text/csv")]
    media_type: Option<String>,
}

impl Attachment {
    fn check(&self, checks: &mut Checks, nth: usize) {
        let at = |field: &str| format!("/attachments/{nth}{field}");
        let one = self.text.is_some() != self.base64.is_some();
        checks.must(one, &at(""), "must have either text or base64");
        checks.must(!self.path.contains('\0'), &at("/path"), "must have no NUL in it");
        checks.must(
            !self.text.as_deref().is_some_and(|text| text.contains('\0')),
            &at("/text"),
            "must have no NUL in it; send it as base64",
        );
        let odd = |text: &Option<String>| text.as_deref().is_some_and(|text| text.contains('\0'));
        checks.must(!odd(&self.base64), &at("/base64"), "must be base64");
        checks.must(!odd(&self.media_type), &at("/media_type"), "must be a media type");
    }
}

/// Per-turn settings, for the document: texts and numbers, of those that the pool allows.
#[derive(Debug, Serialize, ToSchema)]
pub struct TurnOptions {
    /// The model.
    #[schema(required = false, min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    model: String,
    /// Most rounds of the agent.
    #[schema(required = false, minimum = 1, maximum = 1000)]
    max_turns: u32,
    /// Most dollars that the agent may spend.
    #[schema(required = false, minimum = 0.01, maximum = 1000)]
    max_budget_usd: f64,
    /// Said to the agent beside its own instructions.
    #[schema(required = false, max_length = 10_000, pattern = "^[^\\u0000]*$")]
    append_system_prompt: String,
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    /// The turn.
    turn_id: String,
    /// Its session.
    session_id: String,
    /// Its status.
    status: String,
    /// started: nothing of its session is before it; queued; interrupting: what runs is being cancelled for it.
    disposition: String,
    /// Unfinished turns of its session before it.
    queue_position: i32,
    /// Why it doesn't run at once.
    wait_reason: Option<String>,
    /// The Idempotency-Key was known: this is its turn, as it is now.
    replayed: bool,
}

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The answer to whoever enqueued.
pub fn receipt(row: Row) -> Result<Response, Problem> {
    let (Some(turn_id), Some(status)) = (row.turn_id, row.status) else {
        return Err(Problem::new("session_busy", "The session has an unfinished turn, and this one was not to wait."));
    };
    let at = location("/v1/turns/", &turn_id)?;
    let replayed = row.replayed;
    let receipt = Receipt {
        turn_id,
        session_id: row.session_id,
        status,
        disposition: row.disposition,
        queue_position: row.queue_position,
        wait_reason: row.waits_for,
        replayed,
    };
    let mut response = (StatusCode::ACCEPTED, [(header::LOCATION, at)], Answer(receipt)).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The key under which a repeated request is the same request.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= ID_MAX && key.bytes().all(|byte| byte.is_ascii_graphic()));
    let wrong = || Problem::parameter("Idempotency-Key", "Idempotency-Key must be 1 to 255 visible characters of ASCII, without blanks");
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// Texts and numbers, as Postgres can store them; which, says the pool.
pub fn check_options(checks: &mut Checks, options: Option<&Map<String, Value>>) {
    for (name, value) in options.into_iter().flatten() {
        let pointer = format!("/options/{}", escape(name));
        checks.must(value.is_string() || value.is_number(), &pointer, "must be a text or a number");
        let clean = !name.contains('\0') && !value.as_str().is_some_and(|text| text.contains('\0'));
        checks.must(clean, &pointer, "must have no NUL in it");
    }
}

/// Something is said.
pub fn check_message(checks: &mut Checks, message: Option<&str>) {
    let message = message.unwrap_or("x");
    checks.must(!message.trim().is_empty(), "/user_message", "must not be empty");
    checks.must(!message.contains('\0'), "/user_message", "must have no NUL in it");
}

impl EnqueueTurn {
    fn check(&self, bounds: &Bounds) -> Result<(), Problem> {
        let mut checks = Checks::default();
        check_message(&mut checks, Some(&self.user_message));
        check_options(&mut checks, self.options.as_ref());
        for (pointer, value) in [("/project_id", &self.project_id), ("/user_id", &self.user_id), ("/tenant_id", &self.tenant_id)] {
            checks.id(pointer, value.as_deref());
        }
        checks.pool(self.pool.as_deref());
        for (nth, attachment) in self.attachments.iter().flatten().enumerate() {
            attachment.0.check(&mut checks, nth);
        }
        let priority = self.priority.unwrap_or(0);
        checks.must((-1000..=1000).contains(&priority), "/priority", "must be from -1000 to 1000");
        let bound = *bounds != Bounds::default();
        checks.must(!bound || priority <= 0, "/priority", "must not be above 0 with a token that is bound: it would go before others");
        checks.done()
    }
}

/// Enqueue a turn
///
/// Commits one user message; it runs as soon as its session, its pool and a worker have room. A session that is not there yet is
/// made on the way. With an `Idempotency-Key` a repeated request is the same turn: the receipt says `replayed`.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/turns", tag = "Turns", operation_id = "enqueue_turn", request_body = EnqueueTurn,
    params(("session_id" = String, Path, description = "The session, also a new one", max_length = 255),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeating harmless, for all time; unique in the project", min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    responses((status = 202, description = "Committed", body = Receipt, headers(
        ("Location" = String, description = "Where the turn is"), ("Idempotency-Replayed" = Option<String>, description = "true, if the key was known"))),
        (status = 409, description = "session_busy, conflict", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "idempotency_key_reused", body = Problem, content_type = "application/problem+json")))]
pub async fn enqueue(
    caller: Caller<TurnsWrite>,
    State(app): State<App>,
    Id(session_id): Id,
    headers: HeaderMap,
    Json(body): Json<EnqueueTurn>,
) -> Result<Response, Problem> {
    body.check(&caller.bounds)?;
    let key = idempotency_key(&headers)?;
    let bounds = &caller.bounds;
    let (project_id, tenant_id) = bind(bounds, body.project_id, body.tenant_id)?;
    let turn = Enqueue {
        prompt: body.user_message,
        project_id: project_id.clone(),
        session_id: Some(session_id.clone()),
        turn_id: None,
        idempotency_key: key,
        options: body.options.map(Value::Object),
        pool: body.pool.clone(),
        priority: body.priority.unwrap_or(0),
        user_id: body.user_id.clone(),
        tenant_id: tenant_id.clone(),
        fork: None,
        attachments: body.attachments.map(|files| files.into_iter().map(|file| serde_json::to_value(file.0).unwrap_or_default()).collect()),
        on_busy: body.on_busy.map(|on_busy| on_busy.as_str().to_owned()),
    };
    let row = if app.store.session(&session_id, bounds).await?.is_some() {
        app.store.enqueue(&turn).await?
    } else {
        // New, or there and not for this caller: then it can't be made, and is not found.
        let session =
            NewSession { id: Some(session_id.clone()), project_id, user_id: body.user_id, tenant_id, pool: body.pool, on_busy: None };
        app.store.enqueue_in_new(&session, &turn).await.map_err(|error| foreign_is_unknown(error.into(), bounds))?
    };
    app.hub.poke(&session_id);
    receipt(row)
}
