//! Scripts, styles and the icon, in the binary. Their names have a hash, so that browsers keep them for good.

use std::sync::OnceLock;

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// One file: its name in pages, its kind, what is in it.
type Asset = (&'static str, &'static str, &'static [u8]);

const ALL: [Asset; 7] = [
    ("ops.css", "text/css; charset=utf-8", include_bytes!("assets/ops.css")),
    ("ops.js", "text/javascript; charset=utf-8", include_bytes!("assets/ops.js")),
    ("icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    ("htmx.min.js", "text/javascript; charset=utf-8", include_bytes!("assets/htmx.min.js")),
    ("idiomorph-ext.min.js", "text/javascript; charset=utf-8", include_bytes!("assets/idiomorph-ext.min.js")),
    ("uPlot.iife.min.js", "text/javascript; charset=utf-8", include_bytes!("assets/uPlot.iife.min.js")),
    ("uPlot.min.css", "text/css; charset=utf-8", include_bytes!("assets/uPlot.min.css")),
];

/// The style of all pages, for one that is to stand alone.
pub const STYLE: &str = include_str!("assets/ops.css");

fn hashed() -> &'static [(String, Asset)] {
    static HASHED: OnceLock<Vec<(String, Asset)>> = OnceLock::new();
    HASHED.get_or_init(|| {
        let name = |&(name, _, bytes): &Asset| {
            let hash = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(bytes)[..9]);
            let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
            format!("{stem}-{hash}.{ending}")
        };
        ALL.iter().map(|asset| (name(asset), *asset)).collect()
    })
}

/// Where a page finds a file.
pub fn url(name: &str) -> String {
    let found = hashed().iter().find(|(_, (plain, ..))| *plain == name);
    format!("/ops/assets/{}", found.map_or(name, |(hashed, _)| hashed))
}

/// Gives a file.
pub async fn serve(Path(name): Path<String>) -> Response {
    let Some((_, (_, kind, bytes))) = hashed().iter().find(|(hashed, _)| *hashed == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    response
}
