//! What every page has around it, and what is said when there is none.

use askama::Template;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};

use super::super::problem::Problem;
use super::super::respond::Written;
use super::assets::url;
use super::enter::{Looks, Viewer};

/// Nothing from elsewhere, nothing inline, no frames: whatever gets into a page, it can't run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// What the template `base.html` fills in.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The page's name.
    pub title: String,
    /// Path of the page of the bar that it belongs to.
    pub here: &'static str,
    /// Who looks; empty: nobody yet.
    pub who: String,
    /// Whether they may leave: not where nobody has to enter.
    pub may_leave: bool,
    /// Goes into every form.
    pub form_token: String,
    /// How it looks.
    pub looks: Looks,
}

impl Frame {
    /// Around a page for somebody.
    pub fn of(viewer: &Viewer, here: &'static str, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            here,
            who: viewer.name.clone(),
            may_leave: viewer.token_id.is_some(),
            form_token: viewer.form_token.clone(),
            looks: viewer.looks,
        }
    }

    /// Around a page for anybody.
    pub fn outside(title: &str, looks: Looks) -> Self {
        Self { title: title.to_owned(), here: "", who: String::new(), may_leave: false, form_token: String::new(), looks }
    }
}

/// A whole page.
pub fn page_of(template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => with_policy(Html(text).into_response()),
        Err(error) => Fault::from(Problem::new("internal", format!("The page can't be written: {error}"))).into_response(),
    }
}

/// A part of a page.
pub fn part_of(template: &impl Template) -> Response {
    page_of(template)
}

/// The headers that make a page harmless.
pub fn with_policy(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    headers.insert(header::VARY, HeaderValue::from_static("HX-Request"));
    response.extensions_mut().insert(Written);
    response
}

/// Something went wrong: a [`Problem`], shown as a page.
#[derive(Debug)]
pub struct Fault(Problem);

impl<E: Into<Problem>> From<E> for Fault {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

#[derive(Template)]
#[template(path = "fault.html")]
struct FaultPage<'a> {
    frame: Frame,
    problem: &'a Problem,
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let page = FaultPage { frame: Frame::outside(self.0.title, Looks::default()), problem: &self.0 };
        let text = page.render().unwrap_or_else(|_| self.0.detail.clone());
        let mut response = with_policy(Html(text).into_response());
        *response.status_mut() = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }
}

/// There is no such page.
pub async fn missing(uri: Uri) -> Response {
    if !uri.path().starts_with("/ops") {
        return Problem::not_found().into_response();
    }
    Fault::from(Problem::new("not_found", "There is no such page.")).into_response()
}

/// Scripts and styles of the head, in the order in which they are needed.
pub fn scripts() -> [String; 4] {
    ["htmx.min.js", "idiomorph-ext.min.js", "uPlot.iife.min.js", "ops.js"].map(url)
}
