//! Errors as RFC 9457 wants them: `application/problem+json` with a stable `code`.
//!
//! A handler returns a [`Problem`]; the request's id is filled in on the way out (`respond::finish`), where also what the
//! framework itself refuses becomes one.

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::{Refused, Wrong, is_data_error, is_outage, refused};

/// What can be wrong: code, status, title, and what to do about it. The page at /docs shows this table.
pub const CODES: [(&str, u16, &str, &str); 27] = [
    ("malformed_json", 400, "The body is not JSON", "Send one JSON value as UTF-8; the detail says where it ends to be one."),
    (
        "invalid_request",
        400,
        "Something in the request is not as it must be",
        "See errors: each has a pointer into the body, or names a parameter.",
    ),
    (
        "invalid_cursor",
        400,
        "The cursor is not one of ours",
        "Give next_cursor of the page before as it is, with the same filters; or leave it out to begin anew.",
    ),
    (
        "invalid_position",
        400,
        "The position is not one of ours",
        "Give the id of the last event, or next_after, as it is; or leave it out to begin anew.",
    ),
    ("missing_token", 401, "There is no token", "Send Authorization: Bearer TOKEN. turnmill token create makes one."),
    ("invalid_token", 401, "The token is not known", "Check that it was copied whole. turnmill token list shows how each begins."),
    ("expired_token", 401, "The token has expired", "Get a new one."),
    ("revoked_token", 401, "The token was revoked", "Get a new one."),
    ("insufficient_scope", 403, "The token may not do this", "Make one with the scope that the detail names."),
    (
        "forbidden_origin",
        403,
        "This server serves its own machine only",
        "It was started without tokens. Ask it as localhost or 127.0.0.1, from no other web page.",
    ),
    ("not_found", 404, "There is no such thing", "Check the id. What the token can't reach is not there for it either."),
    ("method_not_allowed", 405, "Not with this method", "See the Allow header."),
    ("request_timeout", 408, "The request's body took too long to arrive", "Send it again."),
    ("session_busy", 409, "The session is busy and takes no turn now", "Wait for its turn to end, or send on_busy: queue or interrupt."),
    ("turn_started", 409, "The turn has started", "Cancel it and enqueue a new one."),
    ("turn_ended", 409, "The turn has ended and never changes again", "Enqueue a new one, or retry this one."),
    ("turn_unfinished", 409, "The turn has not ended yet", "Wait until it has, or cancel it."),
    (
        "too_many_endpoints",
        409,
        "There are too many endpoints of this project and tenant",
        "Delete one that nobody needs, or have one receiver pass on what it hears.",
    ),
    ("endpoint_disabled", 409, "The endpoint is disabled", "Enable it first: PATCH it with state: enabled."),
    (
        "no_master_key",
        409,
        "The server has nothing to seal it with",
        "Give it and all workers a master key (keys.master): turnmill keys new.",
    ),
    ("conflict", 409, "It contradicts what is there", "The detail says what is there."),
    ("body_too_large", 413, "The body is too large", "Put large material into files of the project."),
    ("unsupported_media_type", 415, "The body is not announced as JSON", "Send Content-Type: application/json."),
    (
        "idempotency_key_reused",
        422,
        "The idempotency key was used for another request",
        "Use a new key for a new request; repeat a key only with the same body.",
    ),
    ("internal", 500, "Our fault", "Try again; if it stays, give us the request_id."),
    ("unavailable", 503, "The server can't answer now", "Try again after Retry-After."),
    ("too_many_readers", 503, "Too many streams are open on this server", "Try again after Retry-After; another server may have room."),
];

/// One thing that is wrong with a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Fault {
    /// JSON pointer into the body; "" is all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Name of the query parameter or header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What is wrong.
    pub detail: String,
}

/// An error, as its reader gets it (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(title = "Problem")]
pub struct Problem {
    /// Where it is explained.
    pub r#type: String,
    /// The same for every problem of this code.
    pub title: &'static str,
    /// The status again.
    pub status: u16,
    /// Stable, for programs.
    pub code: &'static str,
    /// What happened this time.
    pub detail: String,
    /// What was asked for.
    pub instance: String,
    /// Names this request in our logs.
    pub request_id: String,
    /// What is wrong with the request, one by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// Seconds after which it may work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Problem {
    /// One of [`CODES`]; `detail` says what happened this time.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        let found = CODES.iter().find(|(known, ..)| *known == code);
        let &(code, status, title, _) = found.unwrap_or(&("internal", 500, "Our fault", ""));
        let retry_after = (status == 503).then_some(1);
        let r#type = format!("/docs#{code}");
        let (instance, request_id) = (String::new(), String::new());
        Self { r#type, title, status, code, detail: detail.into(), instance, request_id, errors: Vec::new(), retry_after }
    }

    /// There is nothing there, or nothing for this caller: the same words.
    pub fn not_found() -> Self {
        Self::new("not_found", "There is nothing of this id in reach of this token.")
    }

    /// Something in the body is wrong.
    pub fn body(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let fault = Fault { pointer: Some(pointer.into()), parameter: None, detail: detail.into() };
        Self::new("invalid_request", fault.detail.clone()).with(fault)
    }

    /// A query parameter or a header is wrong.
    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        let fault = Fault { pointer: None, parameter: Some(name.into()), detail: detail.into() };
        Self::new("invalid_request", fault.detail.clone()).with(fault)
    }

    fn with(mut self, fault: Fault) -> Self {
        self.errors.push(fault);
        self
    }

    /// What became of a request that the framework refused by itself.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            404 => Self::not_found(),
            405 => Self::new("method_not_allowed", "This path knows other methods."),
            413 => Self::new("body_too_large", "The body is larger than this server takes."),
            415 => Self::new("unsupported_media_type", "The body must be JSON."),
            408 => Self::new("request_timeout", "The request took too long to arrive."),
            400..500 => Self::new("invalid_request", "The request is not as it must be."),
            503 => Self::new("unavailable", "The server is busy."),
            _ => Self::new("internal", "Something went wrong here."),
        }
    }

    /// What a public SQL function refused, in terms of the API.
    fn of_refused(refused: Refused) -> Self {
        let Refused { wrong, message, hint } = refused;
        let text = hint.map_or(message.clone(), |hint| format!("{message}. {hint}"));
        match wrong {
            Wrong::Argument => Self::body(pointer_of(&message), message),
            Wrong::Unknown if message.starts_with("there is no pool") => Self::body("/pool", message),
            Wrong::Unknown => Self::not_found(),
            // Its text names a turn that may be another's.
            Wrong::Conflict if message.starts_with("idempotency key") => {
                Self::new("idempotency_key_reused", "This project has used the key for a request with another body.")
            }
            Wrong::Conflict if message.ends_with("has started") => Self::new("turn_started", text),
            Wrong::Conflict if message.ends_with("can no longer change") => Self::new("turn_ended", text),
            Wrong::Conflict if message.ends_with("can't be retried yet") => Self::new("turn_unfinished", message),
            Wrong::Conflict => Self::new("conflict", text),
        }
    }
}

/// Where in a body the argument is that SQL complains of.
fn pointer_of(message: &str) -> String {
    if let Some(option) = message.strip_prefix("option \"").and_then(|rest| rest.split('"').next()) {
        return format!("/options/{}", escape(option));
    }
    if let Some(nth) = message.strip_prefix("attachment ").and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok()) {
        return format!("/attachments/{}", nth.saturating_sub(1));
    }
    if message.contains("attachments") {
        return "/attachments".to_owned();
    }
    let fields = [("the prompt", "/user_message"), ("options", "/options"), ("on_busy", "/on_busy"), ("project_id", "/project_id")];
    let more = [
        ("attachments", "/attachments"),
        ("the attachments", "/attachments"),
        ("session_id", "/id"),
        ("tenant_id", "/tenant_id"),
        ("idempotency_key", ""),
    ];
    fields.iter().chain(&more).find(|(start, _)| message.starts_with(start)).map_or(String::new(), |(_, pointer)| (*pointer).to_owned())
}

/// A name as a step of a JSON pointer.
pub fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        if let Some(refused) = refused(&error) {
            return Self::of_refused(refused);
        }
        if is_outage(&error) {
            tracing::warn!(%error, "A request could not be answered: {error}");
            return Self::new("unavailable", "The database does not answer now.");
        }
        if is_data_error(&error) {
            // Our own checks should have found it; what Postgres says of it is not for strangers.
            tracing::warn!(%error, "A request had what Postgres won't take: {error}");
            return Self::new("invalid_request", "Something in the request can't be stored.");
        }
        tracing::error!(%error, "A request failed: {error}");
        Self::new("internal", "Something went wrong here.")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        let headers = response.headers_mut();
        if self.status == 401 {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer realm=\"turnmill\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(HeaderName::from_static("retry-after"), seconds.into());
        }
        response.extensions_mut().insert(self);
        response
    }
}
