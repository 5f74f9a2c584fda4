//! What a handler takes from a request: an id of the path, the query, the body. What is wrong with them is said as a
//! [`Problem`], with the place.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::problem::{Problem, escape};
use super::shapes::Object;

/// Longest id and key; as everywhere in the schema.
pub const ID_MAX: usize = 255;

/// Longest query of a request.
const QUERY_MAX_BYTES: usize = 8192;

/// A body may come as slowly as this, once `arrival_max` is over: 100 kB a second.
const SLOWEST_BYTE: Duration = Duration::from_micros(10);

/// An id from the path. What can't be one is not found, as one that isn't there.
#[derive(Debug)]
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let found: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let id = found.map_err(|_| Problem::not_found())?.0;
        if is_id(&id) { Ok(Self(id)) } else { Err(Problem::not_found()) }
    }
}

/// Whether something could be an id.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.chars().count() <= ID_MAX && !id.contains('\0')
}

/// The query, with nothing in it that nobody knows.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|query| query.len() > QUERY_MAX_BYTES) {
            return Err(Problem::new("invalid_request", format!("The query is longer than {QUERY_MAX_BYTES} bytes.")));
        }
        let uri = without_token(&parts.uri)?;
        let found = axum::extract::Query::try_from_uri(&uri).map_err(|refused| {
            // It says `limit: invalid digit found in string`.
            let text = refused.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            match text.split_once(": ") {
                Some((name, detail)) => Problem::parameter(name, detail),
                None => Problem::parameter("", text),
            }
        })?;
        Ok(Self(found.0))
    }
}

/// The query parameter that stands in for a header where a browser can't set one. It is not the handlers' business.
pub const ACCESS_TOKEN: &str = "access_token";

/// What the query says to be the token.
pub fn token_of(uri: &Uri) -> Option<String> {
    let pairs: Vec<(String, String)> = axum::extract::Query::try_from_uri(uri).ok()?.0;
    pairs.into_iter().find(|(name, _)| name == ACCESS_TOKEN).map(|(_, token)| token)
}

fn without_token(uri: &Uri) -> Result<Uri, Problem> {
    let Some(query) = uri.query() else { return Ok(uri.clone()) };
    let kept: Vec<&str> = query.split('&').filter(|pair| pair.split('=').next() != Some(ACCESS_TOKEN)).collect();
    format!("/?{}", kept.join("&")).parse().map_err(|_| Problem::parameter("", "The query can't be read."))
}

/// A body of JSON.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        is_json(request.headers())?;
        Ok(Self(parse::<Object<T>>(&read(request, app).await?)?.0))
    }
}

/// A body of JSON that may be left out, or null.
#[derive(Debug)]
pub struct Maybe<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<App> for Maybe<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let announced = is_json(request.headers());
        let body = read(request, app).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        announced?;
        Ok(Self(parse::<Option<Object<T>>>(&body)?.unwrap_or_default().0))
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Problem::new("unsupported_media_type", format!("The body is announced as \"{essence}\".")))
}

/// All of it, within the limits of size and time.
pub async fn read(request: Request, app: &App) -> Result<Vec<u8>, Problem> {
    let max = app.config.body_max_bytes;
    let mut chunks = request.into_body().into_data_stream();
    let mut body = Vec::new();
    let mut until = Instant::now() + app.config.arrival_max;
    loop {
        let chunk = timeout_at(until, chunks.next()).await;
        let late = |_| Problem::new("request_timeout", "The body took too long to arrive.");
        let Some(chunk) = chunk.map_err(late)? else { return Ok(body) };
        let chunk = chunk.map_err(|_| Problem::new("invalid_request", "The body broke off."))?;
        if body.len() + chunk.len() > max {
            return Err(Problem::new("body_too_large", format!("The body is larger than {max} bytes.")));
        }
        body.extend_from_slice(&chunk);
        // A large one may take longer, but not for ever.
        until += SLOWEST_BYTE.saturating_mul(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let pointer = pointer(error.path());
        let error = error.into_inner();
        match error.classify() {
            Category::Data => Problem::body(pointer, said(&error)),
            Category::Syntax | Category::Eof | Category::Io => Problem::new("malformed_json", error.to_string()),
        }
    })?;
    json.end().map_err(|error| Problem::new("malformed_json", error.to_string()))?;
    Ok(value)
}

/// Without the place in the text, which is in the pointer.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(text, _)| text.to_owned())
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{}", escape(key)),
        Segment::Enum { variant } => format!("/{}", escape(variant)),
        Segment::Unknown => String::new(),
    };
    path.iter().map(step).collect()
}

/// Checks of fields that all have: collects what is wrong, so that one answer says all of it.
#[derive(Debug, Default)]
pub struct Checks(Option<Problem>);

impl Checks {
    /// A text that names something.
    pub fn id(&mut self, pointer: &str, value: Option<&str>) {
        self.must(value.is_none_or(is_id), pointer, "must be a text of 1 to 255 characters, without NUL");
    }

    /// The name of a pool.
    pub fn pool(&mut self, name: Option<&str>) {
        let may = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = name.is_none_or(|name| name.starts_with(may) && name.len() <= 63 && name.chars().all(|c| may(c) || "_.-".contains(c)));
        self.must(good, "/pool", "must be up to 63 of a-z, 0-9, _, ., -, a letter or a digit first");
    }

    /// Any condition.
    pub fn must(&mut self, holds: bool, pointer: &str, detail: &str) {
        if holds {
            return;
        }
        let next = Problem::body(pointer, format!("{} {detail}", pointer.trim_start_matches('/')));
        match &mut self.0 {
            Some(problem) => problem.errors.extend(next.errors),
            None => self.0 = Some(next),
        }
    }

    /// What was wrong.
    pub fn done(self) -> Result<(), Problem> {
        self.0.map_or(Ok(()), Err)
    }
}
