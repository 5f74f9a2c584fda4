//! What every answer gets on its way out: its request's id, its problem in words, and headers that keep it harmless.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::{debug, warn};
use uuid::Uuid;

use super::problem::Problem;

/// The header with the request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id of a client's own that is taken over.
const REQUEST_ID_MAX: usize = 64;

/// Marks an answer that says by itself what is wrong: a page for people.
#[derive(Debug, Clone, Copy)]
pub struct Written;

/// Outermost: nothing that a client gets has not been here.
pub async fn finish(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let since = Instant::now();
    let mut response = next.run(request).await;
    let (status, took_ms) = (response.status(), since.elapsed().as_millis());
    // Never the query: it may have a token.
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        warn!(request.id = %id, %method, path, status = status.as_u16(), took_ms, "{method} {path} was answered with {status}");
    } else {
        debug!(request.id = %id, %method, path, status = status.as_u16(), took_ms, "{method} {path}: {status}");
    }
    let written = response.extensions().get::<Written>().is_some();
    if !written && (status.is_client_error() || status.is_server_error()) {
        response = in_words(response, &id, &path);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn in_words(mut response: Response, id: &str, path: &str) -> Response {
    let problem = response.extensions_mut().remove::<Problem>();
    let mut problem = problem.unwrap_or_else(|| Problem::of_status(response.status()));
    path.clone_into(&mut problem.instance);
    id.clone_into(&mut problem.request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.remove(header::CONTENT_LENGTH);
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.body_mut() = Body::from(body);
    response
}

/// The client's own, if it is harmless; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let harmless =
        |id: &&str| !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/".contains(c));
    own.filter(harmless).map_or_else(|| format!("req_{}", Uuid::now_v7()), str::to_owned)
}
