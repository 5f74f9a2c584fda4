//! What E2B's refusals mean, and what to do next.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use serde::Deserialize;

use super::ApiVersion;
use crate::keys::shortened;

/// Why there is no sandbox: a stable code, and E2B's words with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs: becomes the turn's `error_code`.
    pub code: &'static str,
    /// For people.
    pub text: String,
}

/// Why a create made no sandbox; the kind says what to do next. Only `Unknown` may have made one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// Definitely none was made; another try may work.
    #[error("{0}")]
    Retry(Refusal),
    /// Rate limit: not before this has passed.
    #[error("{1}")]
    RetryAfter(Duration, Refusal),
    /// Concurrency limit of the account.
    #[error("{cause}")]
    AtCapacity {
        /// The limit, if the answer says it.
        cap: Option<u32>,
        /// E2B's words.
        cause: Refusal,
    },
    /// Key refused, or the account is blocked.
    #[error("{0}")]
    Blocked(Refusal),
    /// No try will ever work.
    #[error("{0}")]
    Config(Refusal),
    /// The answer was lost, or doesn't say: find it by its metadata, or ask again with the same key.
    #[error("{0}")]
    Unknown(Refusal),
}

/// Why any other call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Another try may work.
    #[error("{0}")]
    Transient(String),
    /// Rate limit: not before this has passed.
    #[error("{1}")]
    RetryAfter(Duration, String),
    /// Key refused, or the account is blocked.
    #[error("{0}")]
    Unauthorized(String),
    /// No try will work.
    #[error("{0}")]
    Refused(String),
}

/// A refusal as it came: E2B's error body, of which other servers leave parts out.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
    message: String,
    error_code: Option<String>,
    html: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Body {
    #[serde(default)]
    message: String,
    error_code: Option<String>,
}

impl<'a> Refused<'a> {
    pub fn read(status: StatusCode, headers: &'a HeaderMap, body: &[u8]) -> Self {
        let start = shortened(&String::from_utf8_lossy(body), 200);
        let read = serde_json::from_slice(body).unwrap_or(Body { message: start, error_code: None });
        Self { status, headers, html: is_html(headers, body), message: read.message, error_code: read.error_code }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whole seconds; E2B sends no dates.
    fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs)
    }

    fn text(&self) -> String {
        let status = self.status.as_u16();
        if self.status.is_redirection() {
            let to = self.header(LOCATION.as_str()).unwrap_or("somewhere else");
            return format!("E2B's address answers {status}, a redirect to {to}: set E2B_API_URL (or E2B_DOMAIN) to where it leads");
        }
        if self.html {
            return format!("the address answers {status} with a web page, not as E2B's API does: check E2B_API_URL and E2B_DOMAIN");
        }
        let next = match status {
            401..=403 => "; check E2B_API_KEY, and the account it belongs to",
            _ => "",
        };
        format!("E2B answered {status}: {}{next}", self.message.trim())
    }

    fn refusal(&self, code: &'static str) -> Refusal {
        Refusal { code, text: self.text() }
    }

    /// As the answer to a create.
    pub fn of_create(&self, version: ApiVersion) -> CreateError {
        // Somebody else's address says nothing about the turn.
        if self.status.is_redirection() {
            return CreateError::Blocked(self.refusal("e2b_redirect"));
        }
        if self.html && self.status.as_u16() < 500 {
            return CreateError::Blocked(self.refusal("e2b_not_an_api"));
        }
        let says_no_retry = self.header("Should-Retry") == Some("false");
        match (self.status.as_u16(), self.error_code.as_deref()) {
            (401..=403, _) => CreateError::Blocked(self.refusal("e2b_unauthorized")),
            (404 | 405, _) => CreateError::Config(self.no_template(version)),
            (409, _) => CreateError::Unknown(self.refusal("sandbox_start_failed")),
            (429, _) => self.too_many(),
            (500, Some("sandbox_create_refused")) => CreateError::Config(self.refusal("sandbox_config")),
            (500.., _) if says_no_retry => CreateError::Config(self.refusal("sandbox_config")),
            // These say that none was made; any other failure of a server or a proxy leaves it open.
            (500.., Some("sandbox_create_failed" | "sandbox_capacity_unavailable" | "sandbox_no_compatible_node")) => {
                CreateError::Retry(self.refusal("sandbox_start_failed"))
            }
            (408 | 500.., _) => CreateError::Unknown(self.refusal("sandbox_start_failed")),
            _ => CreateError::Config(self.refusal("sandbox_config")),
        }
    }

    fn too_many(&self) -> CreateError {
        match self.retry_after() {
            Some(wait) => CreateError::RetryAfter(wait, self.refusal("sandbox_rate_limited")),
            None if self.message.contains("concurrent") => {
                CreateError::AtCapacity { cap: number_in_parentheses(&self.message), cause: self.refusal("sandbox_at_capacity") }
            }
            None => CreateError::RetryAfter(Duration::from_secs(1), self.refusal("sandbox_rate_limited")),
        }
    }

    fn no_template(&self, version: ApiVersion) -> Refusal {
        let hint = match version {
            _ if self.message.contains("emplate") => "build it (e2b/README.md), or name another: turnmill pool set NAME --template …",
            ApiVersion::V2 => "does the template exist? A server without POST /v2/sandboxes needs turnmill pool set NAME --api-version v1",
            ApiVersion::V1 => "does the template exist? turnmill pool set NAME --template …",
        };
        Refusal { code: "template_not_found", text: format!("{}; {hint}", self.text()) }
    }

    /// As the answer to any other call: by E2B's own rule, `Should-Retry` decides where it is sent.
    pub fn of_call(&self) -> ApiError {
        let text = self.text();
        match (self.status.as_u16(), self.header("Should-Retry")) {
            (401..=403, _) => ApiError::Unauthorized(text),
            (429, _) => ApiError::RetryAfter(self.retry_after().unwrap_or(Duration::from_secs(1)), text),
            (_, Some("true")) => ApiError::Transient(text),
            (_, Some("false")) => ApiError::Refused(text),
            (409 | 500.., _) => ApiError::Transient(text),
            _ => ApiError::Refused(text),
        }
    }
}

pub(super) fn is_html(headers: &HeaderMap, body: &[u8]) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| value.starts_with("text/html"));
    said || body.trim_ascii_start().starts_with(b"<")
}

fn number_in_parentheses(text: &str) -> Option<u32> {
    text.split_once('(')?.1.split_once(')')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> (CreateError, ApiError) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let refused = Refused::read(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
        (refused.of_create(ApiVersion::V2), refused.of_call())
    }

    #[test]
    fn every_answer_to_a_create_says_what_to_do_next() {
        use CreateError::{AtCapacity, Blocked, Config, Retry, RetryAfter, Unknown};
        let error = |status, headers, body| refused(status, headers, body).0;
        let capacity = r#"{"code":429,"message":"you have reached the maximum number of concurrent E2B sandboxes (20). If you need more, contact us"}"#;
        assert!(matches!(error(429, &[], capacity), AtCapacity { cap: Some(20), .. }));
        let rate = r#"{"code":429,"message":"Rate limit exceeded"}"#;
        assert!(matches!(error(429, &[("retry-after", "7")], rate), RetryAfter(wait, _) if wait == Duration::from_secs(7)));
        assert!(matches!(error(401, &[], "{}"), Blocked(_)));
        assert!(matches!(error(403, &[], r#"{"message":"team is blocked"}"#), Blocked(_)));
        assert!(matches!(error(400, &[], r#"{"message":"Timeout cannot be greater than 1 hours"}"#), Config(_)));
        assert!(matches!(error(404, &[], r#"{"message":"template 'x' not found"}"#), Config(Refusal { code: "template_not_found", .. })));
        assert!(matches!(error(404, &[], "<html>nginx</html>"), Blocked(Refusal { code: "e2b_not_an_api", .. })));
        let moved = error(302, &[("location", "https://other/")], "");
        assert!(matches!(&moved, Blocked(Refusal { code: "e2b_redirect", text }) if text.contains("https://other/")), "{moved}");
        assert!(matches!(error(503, &[], r#"{"error_code":"sandbox_capacity_unavailable","message":""}"#), Retry(_)));
        assert!(matches!(error(500, &[], r#"{"error_code":"sandbox_create_refused","message":""}"#), Config(_)));
        assert!(matches!(error(503, &[("should-retry", "false")], "{}"), Config(_)));
        // May have made one.
        assert!(matches!(error(504, &[], r#"{"error_code":"sandbox_placement_timeout","message":""}"#), Unknown(_)));
        assert!(matches!(error(500, &[], "<html>bad gateway</html>"), Unknown(_)));
        assert!(matches!(error(409, &[], r#"{"error_code":"idempotency_in_progress","message":""}"#), Unknown(_)));
    }

    #[test]
    fn should_retry_decides_and_without_it_the_status_does() {
        let error = |status, headers| refused(status, headers, "{}").1;
        assert!(matches!(error(400, &[("should-retry", "true")]), ApiError::Transient(_)));
        assert!(matches!(error(503, &[("should-retry", "false")]), ApiError::Refused(_)));
        assert!(matches!(error(409, &[]), ApiError::Transient(_)));
        assert!(matches!(error(502, &[]), ApiError::Transient(_)));
        assert!(matches!(error(400, &[]), ApiError::Refused(_)));
        assert!(matches!(error(403, &[]), ApiError::Unauthorized(_)));
        assert!(matches!(error(429, &[("retry-after", "3")]), ApiError::RetryAfter(wait, _) if wait == Duration::from_secs(3)));
    }
}
