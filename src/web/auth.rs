//! Who asks, what they may do, and what of the database is in their reach.
//!
//! A token is 256 random bits with a prefix that leak scanners can find; the database has its SHA-256. A handler names the
//! scope that it needs in its signature, [`Caller<TurnsRead>`], so it can't be forgotten. A browser's token reads one
//! session for some minutes; since `EventSource` can't set headers, such a one may also be in the query.
//!
//! Without tokens (`turnmill dev`, `turnmill web --open`) the server is for its own machine: [`same_machine`] keeps web
//! pages out that talk a browser into asking it.

use std::marker::PhantomData;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::App;
use super::ops::{OpsAct, OpsRead};
use super::problem::Problem;
use super::request::token_of;
use crate::store::{Bounds, NewToken};

/// Everything that a token may be allowed.
pub const SCOPES: [&str; 10] = [
    TurnsRead::NAME,
    TurnsWrite::NAME,
    TurnsCancel::NAME,
    QueueRead::NAME,
    UsageRead::NAME,
    WebhooksRead::NAME,
    WebhooksWrite::NAME,
    KeysWrite::NAME,
    OpsRead::NAME,
    OpsAct::NAME,
];

/// Characters of a token that are shown: its kind and 48 of its bits.
const PREFIX_CHARS: usize = 12;

/// What a token may be allowed.
pub trait Scope {
    /// As tokens name it.
    const NAME: &'static str;
}

/// Read sessions, turns, blocks, streams; make browsers' tokens.
#[derive(Debug)]
pub struct TurnsRead;
impl Scope for TurnsRead {
    const NAME: &'static str = "turns:read";
}

/// Make sessions, enqueue, edit, withdraw, retry.
#[derive(Debug)]
pub struct TurnsWrite;
impl Scope for TurnsWrite {
    const NAME: &'static str = "turns:write";
}

/// Cancel and interrupt.
#[derive(Debug)]
pub struct TurnsCancel;
impl Scope for TurnsCancel {
    const NAME: &'static str = "turns:cancel";
}

/// See how full the whole fleet is.
#[derive(Debug)]
pub struct QueueRead;
impl Scope for QueueRead {
    const NAME: &'static str = "queue:read";
}

/// See what turns have cost.
#[derive(Debug)]
pub struct UsageRead;
impl Scope for UsageRead {
    const NAME: &'static str = "usage:read";
}

/// See who is told that turns end, and of what.
#[derive(Debug)]
pub struct WebhooksRead;
impl Scope for WebhooksRead {
    const NAME: &'static str = "webhooks:read";
}

/// Say who is to be told.
#[derive(Debug)]
pub struct WebhooksWrite;
impl Scope for WebhooksWrite {
    const NAME: &'static str = "webhooks:write";
}

/// Give and forget users' own keys.
#[derive(Debug)]
pub struct KeysWrite;
impl Scope for KeysWrite {
    const NAME: &'static str = "keys:write";
}

/// Somebody who may do what `S` says.
#[derive(Debug)]
pub struct Caller<S> {
    /// What of the database is there for them.
    pub bounds: Bounds,
    /// When their right ends.
    pub until: Option<Instant>,
    /// The token, if there is one.
    pub token_id: Option<String>,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<App> for Caller<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Some(token) = presented(parts)? else {
            let open = Self { bounds: Bounds::default(), until: None, token_id: None, scope: PhantomData };
            return if app.open { Ok(open) } else { Err(Problem::new("missing_token", "The request has no token.")) };
        };
        let invalid = || Problem::new("invalid_token", "The token is not known here.");
        let bearer = app.store.bearer(&hash(&token.text)).await?.ok_or_else(invalid)?;
        match bearer.state.as_str() {
            "active" => {}
            "expired" => return Err(Problem::new("expired_token", format!("The token {} has expired.", bearer.id))),
            _ => return Err(Problem::new("revoked_token", format!("The token {} was revoked.", bearer.id))),
        }
        // In a query, where proxies log it, only one that is worth little.
        if token.in_query && bearer.bounds.session_id.is_none() {
            return Err(Problem::new("invalid_token", "Only a session's token may be in the query; send this one as a header."));
        }
        if !bearer.scopes.iter().any(|scope| scope == S::NAME) {
            return Err(Problem::new("insufficient_scope", format!("The token lacks the scope {}.", S::NAME)));
        }
        let until = bearer.seconds_left.map(|seconds| Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or_default());
        Ok(Self { bounds: bearer.bounds, until, token_id: Some(bearer.id), scope: PhantomData })
    }
}

struct Presented {
    text: String,
    in_query: bool,
}

fn presented(parts: &Parts) -> Result<Option<Presented>, Problem> {
    if let Some(header) = parts.headers.get(header::AUTHORIZATION) {
        let malformed = || Problem::new("invalid_token", "The Authorization header is not: Bearer TOKEN.");
        let (scheme, text) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(malformed)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(malformed());
        }
        return Ok(Some(Presented { text: text.trim().to_owned(), in_query: false }));
    }
    Ok(token_of(&parts.uri).map(|text| Presented { text, in_query: true }))
}

/// What the database knows of a token.
pub fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// A new token, and what the database is to know of it.
pub fn new_token(name: &str, scopes: &[&str], bounds: Bounds, expires_in: Option<Duration>) -> (String, NewToken) {
    let secret = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let token = if bounds.session_id.is_some() { format!("tms_{secret}") } else { format!("tmk_{secret}") };
    let stored = NewToken {
        hash: hash(&token),
        prefix: token.chars().take(PREFIX_CHARS).collect(),
        name: name.to_owned(),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        project_id: bounds.project_id,
        tenant_id: bounds.tenant_id,
        session_id: bounds.session_id,
        expires_in,
    };
    (token, stored)
}

/// A server without tokens answers whom it can take for somebody on its own machine: no page of elsewhere whose name
/// resolves to us (the Host), and none that has a browser post to us (the Origin).
pub async fn same_machine(State(app): State<App>, request: Request, next: Next) -> Response {
    let refused = || Problem::new("forbidden_origin", "The request comes from, or is for, another place than this machine.");
    if app.open && !(names_loopback(request.headers(), &header::HOST) && names_loopback(request.headers(), &header::ORIGIN)) {
        return refused().into_response();
    }
    next.run(request).await
}

fn names_loopback(headers: &HeaderMap, name: &header::HeaderName) -> bool {
    let Some(value) = headers.get(name) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let authority = value.split_once("://").map_or(value, |(_, rest)| rest);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_taken_for_it() {
        let named = |value: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, value.parse().unwrap())]);
            names_loopback(&headers, &header::HOST)
        };
        for good in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "http://localhost:3000", "http://127.0.0.1"] {
            assert!(named(good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:80", "10.0.0.1", "null", "http://evil.example", "127.0.0.1.evil.example", ""] {
            assert!(!named(bad), "{bad}");
        }
    }
}
