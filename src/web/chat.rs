//! `/chat` of `turnmill dev`: a small page over the public API, nothing else.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::App;

/// What the page may do: run and show what it is made of, and ask this server. Everything else is blocked by the browser, should
/// what an agent says ever become more than text: no script in the page, no HTML made from text, no picture or frame of elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The page and what it is made of. Only without tokens: it has none.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/chat", get(|| async { file("text/html; charset=utf-8", include_str!("chat.html")) }))
        .route("/chat.css", get(|| async { file("text/css; charset=utf-8", include_str!("chat.css")) }))
        .route("/chat.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("chat.js")) }))
        .route("/chat_turns.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("chat_turns.js")) }))
        .route("/chat.svg", get(|| async { file("image/svg+xml", include_str!("chat.svg")) }))
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
