//! Acting through the dashboard: the form that asks for a reason, and the checks before anything is done.
//!
//! A deed is a POST of a form. It is done only for somebody whose token has `ops:act`, from a page of this very server
//! (the Origin, the cookie that other sites can't make a browser send, and a token in the form that they can't know), with
//! a reason; and what is done leaves its entry in the audit in the same transaction.

use axum::extract::{FromRequest, FromRequestParts as _, Request};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::App;
use super::super::problem::Problem;
use super::super::request::read;
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of};
use crate::store::Actor;

/// Longest reason.
const REASON_MAX: usize = 1000;

/// Longest form; one of a bulk act names its turns.
const FORM_MAX_BYTES: usize = 1 << 20;

/// A field of a form, beside its reason.
#[derive(Debug, Clone)]
pub struct Field {
    /// As it is sent.
    pub name: &'static str,
    /// As it is called; empty: it is hidden.
    pub label: String,
    /// What is in it.
    pub value: String,
    /// What to put in.
    pub hint: String,
}

impl Field {
    /// One that nobody sees.
    pub fn hidden(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, label: String::new(), value: value.into(), hint: String::new() }
    }
}

/// The form that asks whether, and why.
#[derive(Debug)]
pub struct Ask {
    /// Around it, where it is a page of its own.
    pub frame: Frame,
    /// It goes into a dialog of the page.
    pub part: bool,
    /// What is to be done: "Cancel this turn".
    pub title: String,
    /// What that means.
    pub about: String,
    /// Where it is sent.
    pub to: String,
    /// Its fields beside the reason.
    pub fields: Vec<Field>,
    /// What the button says.
    pub button: String,
    /// It takes something away.
    pub harmful: bool,
    /// Nothing would be done.
    pub nothing: bool,
    /// The same in SQL, if it can be said.
    pub sql: Option<String>,
    /// The same with curl.
    pub curl: Option<String>,
    /// The same as a command.
    pub shell: Option<String>,
    /// Where to go instead.
    pub back: String,
}

impl Ask {
    /// Around what is yet to be said.
    pub fn of(viewer: &Viewer, here: &'static str, to: impl Into<String>, back: impl Into<String>) -> Self {
        Self {
            frame: Frame::of(viewer, here, "Confirm"),
            part: viewer.part,
            title: String::new(),
            about: String::new(),
            to: to.into(),
            fields: Vec::new(),
            button: String::new(),
            harmful: false,
            nothing: false,
            sql: None,
            curl: None,
            shell: None,
            back: back.into(),
        }
    }

    fn by_hand(&self) -> bool {
        self.sql.is_some() || self.curl.is_some() || self.shell.is_some()
    }

    /// As a page, or as a part for a dialog.
    pub fn show(&self) -> Response {
        if self.part { page_of(&AskPart { ask: self }) } else { page_of(&AskPage { frame: &self.frame, ask: self }) }
    }
}

#[derive(askama::Template)]
#[template(path = "ask.html")]
struct AskPage<'a> {
    frame: &'a Frame,
    ask: &'a Ask,
}

#[derive(askama::Template)]
#[template(path = "ask_form.html")]
struct AskPart<'a> {
    ask: &'a Ask,
}

/// What every form has.
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    form_token: String,
    #[serde(default)]
    reason: String,
}

/// A deed that may be done: who does it and why, and the rest of the form.
#[derive(Debug)]
pub struct Deed<T> {
    /// Who, and why.
    pub actor: Actor,
    /// The rest.
    pub what: T,
}

impl<T: DeserializeOwned> FromRequest<App> for Deed<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        use axum::response::IntoResponse as _;
        let (mut parts, body) = request.into_parts();
        let viewer = Viewer::from_request_parts(&mut parts, app).await?;
        let headers = parts.headers.clone();
        let checked = async {
            same_origin(&headers)?;
            let body = body_of(Request::from_parts(parts, body), app).await?;
            let asked: Asked = parse(&body)?;
            // Not in constant time: it is one of 2^256, new with every visit.
            if asked.form_token != viewer.form_token {
                return Err(Fault::from(Problem::new(
                    "forbidden_origin",
                    "The form is not one of this visit. Load the page again, and send it from there.",
                )));
            }
            if !viewer.may_act {
                return Err(may_not_act());
            }
            let reason = asked.reason.trim().to_owned();
            if reason.is_empty() || reason.chars().count() > REASON_MAX || reason.contains('\0') {
                return Err(Fault::from(Problem::body(
                    "/reason",
                    format!("Say why, in up to {REASON_MAX} characters: it is kept in the audit."),
                )));
            }
            let actor = Actor { name: viewer.name.clone(), token_id: viewer.token_id.clone(), reason };
            Ok(Self { actor, what: parse(&body)? })
        };
        checked.await.map_err(Fault::into_response)
    }
}

/// Refuses what a page of elsewhere has a browser send.
pub fn same_origin(headers: &HeaderMap) -> Result<(), Fault> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = || Fault::from(Problem::new("forbidden_origin", "The form was sent from a page of elsewhere."));
    if text("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site)) {
        return Err(foreign());
    }
    // A proxy in front may rewrite the Host; it says so.
    let host = text("x-forwarded-host").or_else(|| headers.get(header::HOST).and_then(|host| host.to_str().ok()));
    match (text("origin"), host) {
        (None, _) => Ok(()),
        (Some(origin), Some(host)) if origin.split_once("://").is_some_and(|(_, from)| from == host) => Ok(()),
        _ => Err(foreign()),
    }
}

/// A form, whole.
pub async fn form<T: DeserializeOwned>(request: Request, app: &App) -> Result<T, Fault> {
    parse(&body_of(request, app).await?)
}

async fn body_of(request: Request, app: &App) -> Result<Vec<u8>, Fault> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(Fault::from(Problem::new("unsupported_media_type", "This takes a form, as its page sends it.")));
    }
    let body = read(request, app).await?;
    if body.len() > FORM_MAX_BYTES {
        return Err(Fault::from(Problem::new("body_too_large", format!("The form is larger than {FORM_MAX_BYTES} bytes."))));
    }
    Ok(body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_urlencoded::from_bytes(body)
        .map_err(|error| Fault::from(Problem::new("invalid_request", format!("The form can't be read: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_comes_from_a_page_of_this_server_or_not_at_all() {
        let from = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()));
            same_origin(&headers.collect::<HeaderMap>()).is_ok()
        };
        assert!(from(&[("host", "ops.example"), ("origin", "https://ops.example"), ("sec-fetch-site", "same-origin")]));
        assert!(from(&[("host", "10.0.0.1:8080"), ("x-forwarded-host", "ops.example"), ("origin", "https://ops.example")]));
        assert!(from(&[("host", "ops.example")]), "curl has none");
        assert!(!from(&[("host", "ops.example"), ("origin", "https://evil.example")]));
        assert!(!from(&[("host", "ops.example"), ("origin", "null")]));
        assert!(!from(&[("host", "ops.example"), ("origin", "https://ops.example.evil.example")]));
        assert!(!from(&[("host", "ops.example"), ("origin", "https://ops.example"), ("sec-fetch-site", "cross-site")]));
        assert!(!from(&[("host", "ops.example"), ("sec-fetch-site", "same-site")]));
    }
}
