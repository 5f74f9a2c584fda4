//! Sessions: make, list, read, change; interrupt what runs; a browser's token.

use std::time::Duration;

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, TurnsCancel, TurnsRead, TurnsWrite, new_token};
use super::blocks::within;
use super::position::{cursor, from_micros, micros, read_cursor};
use super::problem::Problem;
use super::request::{Checks, Id, Json, Maybe, Query};
use super::shapes::{OnBusy, Page, location};
use super::turns::{CancelBody, Cancelled};
use crate::store::{Bounds, NewSession, SessionFilter, SessionRow};

/// A conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    /// Its id.
    id: String,
    /// Its project.
    project_id: String,
    /// Who talks, in your terms.
    user_id: Option<String>,
    /// Who pays, in your terms.
    tenant_id: Option<String>,
    /// The pool in which its turns run.
    pool: String,
    /// What becomes of a turn that comes while another is unfinished: queue, reject or interrupt.
    on_busy: String,
    /// How many turns it has had.
    turns: i32,
    /// How many of them are unfinished, counted up to a thousand.
    unfinished: i64,
    /// The one that runs or is next.
    current_turn_id: Option<String>,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        Self {
            id: row.id,
            project_id: row.project_id,
            user_id: row.user_id,
            tenant_id: row.tenant_id,
            pool: row.pool,
            on_busy: row.on_busy,
            turns: row.turns,
            unfinished: row.unfinished,
            current_turn_id: row.current_turn_id,
            created_at: row.created_at,
        }
    }
}

/// A session to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Your own id for it; with one, making it again is harmless. Hard to guess is best: all ids are of one namespace.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    id: Option<String>,
    /// The project; may be left out by a token that is bound to one.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    project_id: Option<String>,
    /// Who talks, in your terms.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    user_id: Option<String>,
    /// Who pays, in your terms.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    tenant_id: Option<String>,
    /// The pool for its turns.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9][a-z0-9_.-]*$", example = "default")]
    pool: Option<String>,
    /// What becomes of a turn that comes while another is unfinished.
    on_busy: Option<OnBusy>,
}

/// Project and tenant of something to be made: what the body says, within what the token is bound to.
pub fn bind(bounds: &Bounds, project: Option<String>, tenant: Option<String>) -> Result<(Option<String>, Option<String>), Problem> {
    let mut checks = Checks::default();
    let within = |bound: &Option<String>, said: &Option<String>| bound.is_none() || said.is_none() || bound == said;
    checks.must(within(&bounds.project_id, &project), "/project_id", "is not the one that this token is bound to");
    checks.must(within(&bounds.tenant_id, &tenant), "/tenant_id", "is not the one that this token is bound to");
    // Else who has one project could spend what any tenant may, with its own key.
    let free = bounds.project_id.is_none() || bounds.tenant_id.is_some() || tenant.is_none();
    checks.must(free, "/tenant_id", "is not for a token that is bound to a project and to no tenant: have one made with --tenant");
    checks.done()?;
    Ok((bounds.project_id.clone().or(project), bounds.tenant_id.clone().or(tenant)))
}

/// Something of this id is there, but not for this caller: as if it were not.
pub fn foreign_is_unknown(problem: Problem, bounds: &Bounds) -> Problem {
    if problem.code == "conflict" && *bounds != Bounds::default() { Problem::not_found() } else { problem }
}

/// Make a session
///
/// Not needed before the first turn: enqueueing makes the session on the way.
#[utoipa::path(post, path = "/v1/sessions", tag = "Sessions", operation_id = "create_session", request_body = CreateSession,
    responses((status = 201, description = "Made", body = Session, headers(("Location" = String, description = "Where it is"))),
        (status = 200, description = "It was there already, and is the same", body = Session),
        (status = 409, description = "conflict: it is there, and another", body = Problem, content_type = "application/problem+json")))]
pub async fn create(caller: Caller<TurnsWrite>, State(app): State<App>, Json(body): Json<CreateSession>) -> Result<Response, Problem> {
    let mut checks = Checks::default();
    for (pointer, value) in
        [("/id", &body.id), ("/project_id", &body.project_id), ("/user_id", &body.user_id), ("/tenant_id", &body.tenant_id)]
    {
        checks.id(pointer, value.as_deref());
    }
    checks.pool(body.pool.as_deref());
    checks.done()?;
    let (project_id, tenant_id) = bind(&caller.bounds, body.project_id, body.tenant_id)?;
    let new = NewSession {
        id: body.id,
        project_id,
        user_id: body.user_id,
        tenant_id,
        pool: body.pool,
        on_busy: body.on_busy.map(|on_busy| on_busy.as_str().to_owned()),
    };
    let made = app.store.create_session(&new).await.map_err(|error| foreign_is_unknown(error.into(), &caller.bounds));
    let (id, made) = made?;
    let session = app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    let at = location("/v1/sessions/", &session.id)?;
    Ok((status, [(header::LOCATION, at)], Answer(Session::from(session))).into_response())
}

/// Which sessions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SessionsQuery {
    /// Only of this project
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    project_id: Option<String>,
    /// Only of this tenant
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    tenant_id: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// `next_cursor` of the page before
    #[param(max_length = 2048)]
    cursor: Option<String>,
}

/// List sessions
///
/// Newest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "Sessions", operation_id = "list_sessions", params(SessionsQuery),
    responses((status = 200, description = "One page of them", body = Page<Session>)))]
pub async fn list(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Query(query): Query<SessionsQuery>,
) -> Result<Answer<Page<Session>>, Problem> {
    let limit = within("limit", query.limit.unwrap_or(50), 1, 200)?;
    for (name, value) in [("project_id", &query.project_id), ("tenant_id", &query.tenant_id)] {
        if value.as_deref().is_some_and(|value| !super::request::is_id(value)) {
            return Err(Problem::parameter(name, format!("{name} must be a text of 1 to 255 characters, without NUL")));
        }
    }
    let which = ["sessions", query.project_id.as_deref().unwrap_or(""), query.tenant_id.as_deref().unwrap_or("")];
    let before = match &query.cursor {
        Some(text) => {
            let mut parts = read_cursor(text, &which, 2)?;
            let id = parts.pop().unwrap_or_default();
            Some((from_micros(&parts.pop().unwrap_or_default())?, id))
        }
        None => None,
    };
    let bounds = &caller.bounds;
    if let Some(id) = &bounds.session_id {
        let only = app.store.session(id, bounds).await?.filter(|_| before.is_none());
        return Ok(Answer(Page { data: only.into_iter().map(Session::from).collect(), next_cursor: None }));
    }
    // What is out of bounds is not there.
    let Ok((project_id, tenant_id)) = bind(bounds, query.project_id.clone(), query.tenant_id.clone()) else {
        return Ok(Answer(Page { data: Vec::new(), next_cursor: None }));
    };
    let mut rows = app.store.sessions(&SessionFilter { project_id, tenant_id, before, limit: limit + 1 }).await?;
    let more = i64::try_from(rows.len()).unwrap_or(0) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(0));
    let last = rows.last().filter(|_| more).map(|row| (micros(row.created_at), row.id.clone()));
    let next_cursor = last.map(|(at, id)| cursor(&[which[0], which[1], which[2], &at, &id]));
    Ok(Answer(Page { data: rows.into_iter().map(Session::from).collect(), next_cursor }))
}

/// Read a session
#[utoipa::path(get, path = "/v1/sessions/{session_id}", tag = "Sessions", operation_id = "read_session",
    params(("session_id" = String, Path, description = "The session", max_length = 255)),
    responses((status = 200, description = "The session", body = Session)))]
pub async fn read(caller: Caller<TurnsRead>, State(app): State<App>, Id(id): Id) -> Result<Answer<Session>, Problem> {
    let session = app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(session.into()))
}

/// What to change of a session.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSession {
    /// What becomes of a turn that comes while another is unfinished.
    on_busy: OnBusy,
}

/// Change a session
#[utoipa::path(patch, path = "/v1/sessions/{session_id}", tag = "Sessions", operation_id = "change_session", request_body = ChangeSession,
    params(("session_id" = String, Path, description = "The session", max_length = 255)),
    responses((status = 200, description = "As it is now", body = Session)))]
pub async fn change(
    caller: Caller<TurnsWrite>,
    State(app): State<App>,
    Id(id): Id,
    Json(body): Json<ChangeSession>,
) -> Result<Answer<Session>, Problem> {
    app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    app.store.set_on_busy(&id, body.on_busy.as_str()).await?;
    let session = app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(session.into()))
}

/// Interrupt a session
///
/// Cancels its turn that runs, if one does; those behind it then run. To cancel for a new message at once, enqueue that with
/// `on_busy: interrupt`.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/interrupt", tag = "Sessions", operation_id = "interrupt_session",
    request_body = Option<CancelBody>,
    params(("session_id" = String, Path, description = "The session", max_length = 255)),
    responses((status = 200, description = "What was cancelled, if anything", body = Cancelled)))]
pub async fn interrupt(
    caller: Caller<TurnsCancel>,
    State(app): State<App>,
    Id(id): Id,
    Maybe(body): Maybe<CancelBody>,
) -> Result<Answer<Cancelled>, Problem> {
    let reason = body.reason()?;
    app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let (turn_id, status) = app.store.interrupt(&id, reason.as_deref()).await?.unzip();
    app.hub.poke(&id);
    Ok(Answer(Cancelled { turn_id, status }))
}

/// How long a browser's token is to last.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeToken {
    /// Seconds; five minutes without it.
    #[schema(minimum = 1, maximum = 900)]
    expires_in_s: Option<u64>,
}

/// A browser's token.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionToken {
    /// As a header `Authorization: Bearer …`, or, for `EventSource`, as `?access_token=…`.
    token: String,
    /// The session that it reads, and nothing else.
    session_id: String,
    /// When it ends. Streams end then, too.
    expires_at: Option<DateTime<Utc>>,
}

/// Make a browser's token
///
/// It reads this session and its turns for some minutes, and can do nothing else. Make it on your server, give it to the page.
#[utoipa::path(post, path = "/v1/sessions/{session_id}/tokens", tag = "Sessions", operation_id = "create_session_token",
    request_body = Option<MakeToken>,
    params(("session_id" = String, Path, description = "The session", max_length = 255)),
    responses((status = 201, description = "The token; it can't be read again", body = SessionToken)))]
pub async fn token(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(id): Id,
    Maybe(body): Maybe<MakeToken>,
) -> Result<Response, Problem> {
    if caller.bounds.session_id.is_some() {
        return Err(Problem::new("insufficient_scope", "A session's token makes no others."));
    }
    let longest = app.config.session_token_max.as_secs().max(1);
    let seconds = body.expires_in_s.unwrap_or(300.min(longest));
    if seconds < 1 || seconds > longest {
        return Err(Problem::body("/expires_in_s", format!("expires_in_s must be from 1 to {longest}")));
    }
    let session = app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let bounds = Bounds { session_id: Some(session.id.clone()), ..caller.bounds };
    let (token, stored) = new_token("a browser", &["turns:read"], bounds, Some(Duration::from_secs(seconds)));
    let (_, expires_at) = app.store.add_token(&stored).await?;
    app.store.forget_expired_tokens().await?;
    let made = SessionToken { token, session_id: session.id, expires_at };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Answer(made)).into_response())
}
