//! `/chat` of `turnmill dev`: a small page over the public API, nothing else.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse as _;
use axum::routing::get;

use super::App;
use super::document::html;

/// The page and its script. Only without tokens: it has none.
pub fn routes() -> Router<App> {
    let script = || async {
        let mut response = include_str!("chat.js").into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"));
        response
    };
    Router::new().route("/chat", get(|| async { html(include_str!("chat.html")) })).route("/chat.js", get(script))
}
