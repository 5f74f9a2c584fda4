//! Who is looking at the dashboard.
//!
//! A browser shows an API token once, in a form, and gets a cookie of 256 random bits that scripts can't read and other
//! sites can't make it send; the database has its SHA-256 and which token it stands for. So the token is not in the
//! browser, and revoking it ends the visit. Tokens that are bound to a project, tenant or session can't enter: the
//! dashboard is of the whole fleet.
//!
//! A server without tokens asks for none; it serves its own machine only.

use std::time::Duration;

use axum::extract::{FromRequestParts, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::super::App;
use super::super::auth::{Scope, hash};
use super::super::problem::Problem;
use super::deed;
use super::frame::{Fault, Frame, page_of};

/// Look at the dashboard.
#[derive(Debug)]
pub struct OpsRead;
impl Scope for OpsRead {
    const NAME: &'static str = "ops:read";
}

/// Act through it.
#[derive(Debug)]
pub struct OpsAct;
impl Scope for OpsAct {
    const NAME: &'static str = "ops:act";
}

/// How long a browser stays in without showing a token again.
const VISIT: Duration = Duration::from_secs(12 * 3600);

const COOKIE: &str = "turnmill_ops";

/// Somebody who may look.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// The token's name, or dev.
    pub name: String,
    /// The token; `None` on a server without them.
    pub token_id: Option<String>,
    /// Whether they may act, too.
    pub may_act: bool,
    /// What forms of this visit have in them, and no other site knows.
    pub form_token: String,
    /// How they want pages to look.
    pub looks: Looks,
    /// htmx asks for a part of a page.
    pub part: bool,
}

/// How somebody wants pages to look, as cookies of theirs say: so that no page changes its looks after it is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looks {
    /// light, dark, or empty: as their system says.
    pub theme: &'static str,
    /// compact, or empty: comfortable.
    pub density: &'static str,
}

impl Looks {
    /// What a request says.
    fn of(headers: &HeaderMap) -> Self {
        let theme = match cookie(headers, "turnmill_theme") {
            Some("light") => "light",
            Some("dark") => "dark",
            _ => "",
        };
        Self { theme, density: if cookie(headers, "turnmill_density") == Some("compact") { "compact" } else { "" } }
    }
}

impl FromRequestParts<App> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let looks = Looks::of(&parts.headers);
        let part = parts.headers.contains_key("hx-request");
        if app.open {
            let form_token = form_token(&app.desk.secret);
            return Ok(Self { name: "dev".to_owned(), token_id: None, may_act: true, form_token, looks, part });
        }
        let Some(cookie) = cookie(&parts.headers, COOKIE) else { return Err(to_the_door(parts, part)) };
        let visit = app.store.visit(&hash(cookie)).await.map_err(|error| Fault::from(error).into_response())?;
        let Some(visit) = visit.filter(|visit| visit.scopes.iter().any(|scope| scope == OpsRead::NAME)) else {
            return Err(to_the_door(parts, part));
        };
        Ok(Self {
            name: visit.name,
            token_id: Some(visit.token_id),
            may_act: visit.scopes.iter().any(|scope| scope == OpsAct::NAME),
            form_token: form_token(cookie.as_bytes()),
            looks,
            part,
        })
    }
}

/// Made of the cookie, which only this browser and nobody's page has: nothing more to store.
fn form_token(secret: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::new().chain_update(b"form:").chain_update(secret).finalize())
}

/// The form that asks for a token; for htmx, which would put it into the page, as an order to go there.
fn to_the_door(parts: &Parts, part: bool) -> Response {
    let path = parts.uri.path_and_query().map_or("/ops", |path| path.as_str());
    let door = if path == "/ops" || part { "/ops/enter".to_owned() } else { format!("/ops/enter?next={}", super::look::encoded(path)) };
    if !part {
        return Redirect::to(&door).into_response();
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert("hx-redirect", HeaderValue::from_static("/ops/enter"));
    response
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Where to go from the door.
#[derive(Debug, Deserialize)]
pub struct Door {
    next: Option<String>,
}

/// Only within the dashboard: nobody is sent elsewhere from here.
fn within(next: Option<&str>) -> &str {
    let good =
        |next: &&str| next.starts_with("/ops") && !next.contains("//") && !next.contains('\\') && next.chars().all(|c| !c.is_control());
    next.filter(good).unwrap_or("/ops")
}

#[derive(askama::Template)]
#[template(path = "enter.html")]
struct EnterPage<'a> {
    frame: Frame,
    next: &'a str,
    wrong: Option<String>,
}

/// The form.
pub async fn ask(State(app): State<App>, headers: HeaderMap, Query(door): Query<Door>) -> Response {
    if app.open {
        return Redirect::to("/ops").into_response();
    }
    let frame = Frame::outside("Enter", Looks::of(&headers));
    page_of(&EnterPage { frame, next: within(door.next.as_deref()), wrong: None })
}

/// What the form sends.
#[derive(Debug, Deserialize)]
struct Shown {
    token: String,
    #[serde(default)]
    next: Option<String>,
}

/// Takes a token for a cookie.
pub async fn enter(State(app): State<App>, request: Request) -> Result<Response, Fault> {
    let headers = request.headers().clone();
    deed::same_origin(&headers)?;
    let shown: Shown = deed::form(request, &app).await?;
    let next = within(shown.next.as_deref());
    let refused = |wrong: String| {
        let mut page = page_of(&EnterPage { frame: Frame::outside("Enter", Looks::of(&headers)), next, wrong: Some(wrong) });
        *page.status_mut() = StatusCode::FORBIDDEN;
        Ok(page)
    };
    let Some(bearer) = app.store.bearer(&hash(shown.token.trim())).await? else {
        return refused("This token is not known here. turnmill token list shows how each begins.".to_owned());
    };
    if bearer.state != "active" {
        return refused(format!("The token {} is {}. Make a new one.", bearer.id, bearer.state));
    }
    if bearer.bounds != crate::store::Bounds::default() {
        return refused("This token is bound to a project, a tenant or a session. The dashboard is of the whole fleet.".to_owned());
    }
    if !bearer.scopes.iter().any(|scope| scope == OpsRead::NAME) {
        return refused("This token lacks the scope ops:read. Make one: turnmill token create NAME --scope ops:read,ops:act".to_owned());
    }
    let secret = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    app.store.begin_visit(&hash(&secret), &bearer.id, VISIT).await?;
    let mut response = Redirect::to(next).into_response();
    set_cookie(&mut response, &headers, &secret, VISIT);
    Ok(response)
}

/// Ends the visit.
pub async fn leave(State(app): State<App>, request: Request) -> Result<Response, Fault> {
    let headers = request.headers().clone();
    deed::same_origin(&headers)?;
    if let Some(cookie) = cookie(&headers, COOKIE) {
        app.store.end_visit(&hash(cookie)).await?;
    }
    let mut response = Redirect::to("/ops/enter").into_response();
    set_cookie(&mut response, &headers, "", Duration::ZERO);
    Ok(response)
}

fn set_cookie(response: &mut Response, headers: &HeaderMap, value: &str, lasts: Duration) {
    // Behind a proxy that speaks TLS; a client that lies about it only keeps itself out.
    let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/ops; Max-Age={}; HttpOnly; SameSite=Strict{secure}", lasts.as_secs());
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
}

/// What a page says that can't be reached by whoever asks.
pub fn may_not_act() -> Fault {
    Fault::from(Problem::new("insufficient_scope", "You may look, and not act: your token lacks the scope ops:act."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_from_the_door() {
        for good in ["/ops", "/ops/turns?status=failed", "/ops/turns/turn_1"] {
            assert_eq!(within(Some(good)), good);
        }
        for bad in
            ["https://evil.example", "//evil.example", "/opsx//evil", "/ops\\evil", "/", "/docs", "/ops\r\nx: y", "javascript:alert(1)"]
        {
            assert_eq!(within(Some(bad)), "/ops", "{bad}");
        }
        assert_eq!(within(None), "/ops");
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let headers = HeaderMap::from_iter([(header::COOKIE, "xturnmill_ops=1; turnmill_opsx=2; turnmill_ops=3".parse().unwrap())]);
        assert_eq!(cookie(&headers, COOKIE), Some("3"));
    }
}
