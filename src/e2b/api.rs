//! The control plane: sandboxes come, are found, live on, and go.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiVersion, Client, Sandbox, root_cause};

/// Longest time for any call but create.
const DEADLINE: Duration = Duration::from_secs(30);

/// Pages of one list; a server that never stops paging must not hold us for ever.
const PAGES_MAX: usize = 100;

/// Why there is no sandbox; the kind says what to do. Only `Unknown` may have made one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// Definitely none was made; another try may work.
    #[error("{0}")]
    Retry(String),
    /// Rate limit: not before this has passed.
    #[error("{1}")]
    RetryAfter(Duration, String),
    /// Concurrency limit of the account.
    #[error("{cause}")]
    AtCapacity {
        /// The limit, if the answer says it.
        cap: Option<u32>,
        /// E2B's words.
        cause: String,
    },
    /// Key refused, or the account is blocked.
    #[error("{0}")]
    Blocked(String),
    /// No try will ever work.
    #[error("{0}")]
    Config(String),
    /// The answer was lost, or doesn't say: find it by its metadata, or ask again with the same key.
    #[error("{0}")]
    Unknown(String),
}

/// Why any other call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// Another try may work.
    #[error("{0}")]
    Transient(String),
    /// It won't.
    #[error("{0}")]
    Refused(String),
}

/// A sandbox that lives, with what is needed to act in it.
#[derive(Debug, Clone, Deserialize)]
pub struct SandboxInfo {
    #[serde(flatten)]
    sandbox: Sandbox,
}

impl From<&SandboxInfo> for Sandbox {
    fn from(info: &SandboxInfo) -> Self {
        info.sandbox.clone()
    }
}

/// One row of a list.
#[derive(Debug, Clone, Deserialize)]
pub struct ListedSandbox {
    /// E2B's id.
    #[serde(rename = "sandboxID")]
    pub id: String,
    /// As given at create.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl Client {
    /// Makes a sandbox. `nonce` identifies this create: with v2 the server makes at most one for it, however
    /// often it is sent. `request` is E2B's own body, with `templateID`, `timeout` and `metadata`.
    pub async fn create(&self, nonce: &str, request: &Value, deadline: Duration) -> Result<Sandbox, CreateError> {
        let call = match self.config.api_version {
            ApiVersion::V2 => self.call(Method::POST, "/v2/sandboxes").header("Idempotency-Key", nonce).json(request),
            ApiVersion::V1 => {
                let mut request = request.clone();
                if let Some(body) = request.as_object_mut() {
                    body.insert("secure".to_owned(), true.into());
                }
                self.call(Method::POST, "/sandboxes").json(&request)
            }
        };
        let response = call.timeout(deadline).send().await.map_err(|error| {
            let text = format!("E2B can't be reached: {}", root_cause(&error));
            if error.is_connect() { CreateError::Retry(text) } else { CreateError::Unknown(text) }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(|error| CreateError::Unknown(format!("E2B's answer was cut: {}", root_cause(&error))))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| CreateError::Unknown(format!("E2B's answer can't be read: {error}")));
        }
        Err(create_error(status, &headers, &body))
    }

    /// A sandbox by id; `None`: E2B does not know it, so it is gone.
    pub async fn get(&self, id: &str) -> Result<Option<SandboxInfo>, ApiError> {
        match answer(self.call(Method::GET, &format!("/sandboxes/{id}"))).await? {
            (StatusCode::OK, body) => parse(&body).map(Some),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// Sandboxes with all of these labels, running and paused. The whole list or an error, never a part.
    pub async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<ListedSandbox>, ApiError> {
        // Each side is encoded twice inside a query value: our labels have only characters that encoding leaves alone.
        let wanted = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
        let mut all: Vec<ListedSandbox> = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let call = match self.config.api_version {
                ApiVersion::V2 => {
                    let mut query = vec![("metadata", wanted.as_str()), ("state", "running,paused"), ("limit", "100")];
                    query.extend(next.as_deref().map(|token| ("nextToken", token)));
                    self.call_with(Method::GET, "/v2/sandboxes", &query)
                }
                ApiVersion::V1 => self.call_with(Method::GET, "/sandboxes", &[("metadata", &wanted)]),
            };
            let response = call.timeout(DEADLINE).send().await.map_err(unreachable)?;
            next = response.headers().get("X-Next-Token").and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned);
            let status = response.status();
            let body = response.bytes().await.map_err(unreachable)?;
            if status != StatusCode::OK {
                return Err(refused(status, &body));
            }
            all.extend(parse::<Vec<ListedSandbox>>(&body)?);
            if next.is_none() {
                // A server that ignores the filter must not make us take others' sandboxes for ours.
                all.retain(|sandbox| labels.iter().all(|(key, value)| sandbox.metadata.get(*key).is_some_and(|v| v == value)));
                return Ok(all);
            }
        }
        Err(ApiError::Refused(format!("the list of sandboxes did not end after {PAGES_MAX} pages")))
    }

    /// Lets a sandbox live for `timeout` from now. `false`: it is gone.
    pub async fn set_timeout(&self, id: &str, timeout: Duration) -> Result<bool, ApiError> {
        let call = self.call(Method::POST, &format!("/sandboxes/{id}/timeout")).json(&json!({ "timeout": timeout.as_secs() }));
        match answer(call).await? {
            (status, _) if status.is_success() => Ok(true),
            (StatusCode::NOT_FOUND, _) => Ok(false),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// Ends a sandbox. `Ok` means that it is gone, by us or before.
    pub async fn kill(&self, id: &str) -> Result<(), ApiError> {
        match answer(self.call(Method::DELETE, &format!("/sandboxes/{id}"))).await? {
            (status, _) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            (status, body) => Err(refused(status, &body)),
        }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.call_with(method, path, &[])
    }

    fn call_with(&self, method: Method, path: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = format!("{}{path}", self.config.api_url.trim_end_matches('/'));
        if !query.is_empty()
            && let Ok(with_query) = Url::parse_with_params(&url, query)
        {
            url = with_query.into();
        }
        self.http.request(method, url).header("X-API-Key", self.config.api_key.expose_secret())
    }
}

async fn answer(call: RequestBuilder) -> Result<(StatusCode, Vec<u8>), ApiError> {
    let response = call.timeout(DEADLINE).send().await.map_err(unreachable)?;
    let status = response.status();
    Ok((status, response.bytes().await.map_err(unreachable)?.to_vec()))
}

fn unreachable(error: reqwest::Error) -> ApiError {
    ApiError::Transient(format!("E2B can't be reached: {}", root_cause(&error)))
}

fn parse<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Transient(format!("E2B's answer can't be read: {error}")))
}

fn refused(status: StatusCode, body: &[u8]) -> ApiError {
    let text = Fault::read(body).text(status);
    match status.as_u16() {
        409 | 429 | 500.. => ApiError::Transient(text),
        _ => ApiError::Refused(text),
    }
}

/// E2B's error body; other servers leave parts of it out.
#[derive(Debug, Default, Deserialize)]
struct Fault {
    #[serde(default)]
    message: String,
    #[serde(default)]
    error_code: Option<String>,
}

impl Fault {
    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body)
            .unwrap_or_else(|_| Self { message: String::from_utf8_lossy(body).chars().take(200).collect(), error_code: None })
    }

    fn text(&self, status: StatusCode) -> String {
        format!("E2B answered {}: {}", status.as_u16(), self.message.trim())
    }
}

fn create_error(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> CreateError {
    let fault = Fault::read(body);
    let text = fault.text(status);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (status.as_u16(), fault.error_code.as_deref()) {
        (401..=403, _) => CreateError::Blocked(text),
        (409, _) => CreateError::Unknown(text),
        (429, _) => match header(RETRY_AFTER.as_str()).and_then(|s| s.parse().ok()) {
            Some(seconds) => CreateError::RetryAfter(Duration::from_secs(seconds), text),
            None if fault.message.contains("concurrent") => {
                CreateError::AtCapacity { cap: number_in_parentheses(&fault.message), cause: text }
            }
            None => CreateError::RetryAfter(Duration::from_secs(1), text),
        },
        (500, Some("sandbox_create_refused")) => CreateError::Config(text),
        (500.., _) if header("Should-Retry") == Some("false") => CreateError::Config(text),
        // These say that none was made; any other failure of a server or a proxy leaves it open.
        (500.., Some("sandbox_create_failed" | "sandbox_capacity_unavailable" | "sandbox_no_compatible_node")) => CreateError::Retry(text),
        (408 | 500.., _) => CreateError::Unknown(text),
        _ => CreateError::Config(text),
    }
}

fn number_in_parentheses(text: &str) -> Option<u32> {
    text.split_once('(')?.1.split_once(')')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> CreateError {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        create_error(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    #[test]
    fn every_answer_to_a_create_says_what_to_do_next() {
        use CreateError::{AtCapacity, Blocked, Config, Retry, RetryAfter, Unknown};
        let capacity = r#"{"code":429,"message":"you have reached the maximum number of concurrent E2B sandboxes (20). If you need more, contact us"}"#;
        assert!(matches!(error(429, &[], capacity), AtCapacity { cap: Some(20), .. }));
        let rate = r#"{"code":429,"message":"Rate limit exceeded"}"#;
        assert!(matches!(error(429, &[("retry-after", "7")], rate), RetryAfter(wait, _) if wait == Duration::from_secs(7)));
        assert!(matches!(error(401, &[], "{}"), Blocked(_)));
        assert!(matches!(error(403, &[], r#"{"message":"team is blocked"}"#), Blocked(_)));
        assert!(matches!(error(400, &[], r#"{"message":"Timeout cannot be greater than 1 hours"}"#), Config(_)));
        assert!(matches!(error(404, &[], r#"{"message":"template 'x' not found"}"#), Config(_)));
        assert!(matches!(error(302, &[], ""), Config(_)));
        assert!(matches!(error(503, &[], r#"{"error_code":"sandbox_capacity_unavailable","message":""}"#), Retry(_)));
        assert!(matches!(error(500, &[], r#"{"error_code":"sandbox_create_refused","message":""}"#), Config(_)));
        assert!(matches!(error(503, &[("should-retry", "false")], "{}"), Config(_)));
        // May have made one.
        assert!(matches!(error(504, &[], r#"{"error_code":"sandbox_placement_timeout","message":""}"#), Unknown(_)));
        assert!(matches!(error(500, &[], "<html>bad gateway</html>"), Unknown(_)));
        assert!(matches!(error(409, &[], r#"{"error_code":"idempotency_in_progress","message":""}"#), Unknown(_)));
    }
}
