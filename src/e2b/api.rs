//! The control plane: sandboxes are made and found.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiError, CreateError, Refusal, Refused, is_html};
use super::{ApiVersion, Client, Sandbox, root_cause};

/// Longest time for any call but create.
const DEADLINE: Duration = Duration::from_secs(30);

/// Pages of one list; a server that never stops paging must not hold us for ever.
const PAGES_MAX: usize = 100;

/// What the control plane says of a sandbox. Other servers leave most of it out.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo {
    /// With what is needed to act in it.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// `running` or `paused`.
    #[serde(default = "running")]
    pub state: String,
    /// When its time is over, RFC 3339; of a paused one, when it was paused.
    #[serde(default)]
    pub end_at: String,
    /// As given at create.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Virtual processors.
    #[serde(default)]
    pub cpu_count: u32,
    /// MiB of memory.
    #[serde(default, rename = "memoryMB")]
    pub memory_mb: u32,
}

fn running() -> String {
    "running".to_owned()
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
    /// `running` or `paused`.
    #[serde(default = "running")]
    pub state: String,
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    pub fn refused(&self) -> ApiError {
        Refused::read(self.status, &self.headers, &self.body).of_call()
    }

    pub fn json<T: for<'a> Deserialize<'a>>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            if is_html(&self.headers, &self.body) {
                ApiError::Refused("the address answers with a web page, not as E2B's API does: check E2B_API_URL and E2B_DOMAIN".to_owned())
            } else {
                ApiError::Transient(format!("E2B's answer can't be read: {error}"))
            }
        })
    }
}

impl Client {
    /// Makes a sandbox. `nonce` identifies this create: with v2 the server makes at most one for it, however
    /// often it is sent. `request` is E2B's own body, with `templateID`, `timeout` and `metadata`.
    pub async fn create(&self, version: ApiVersion, nonce: &str, request: &Value, deadline: Duration) -> Result<Sandbox, CreateError> {
        let call = match version {
            ApiVersion::V2 => self.call(Method::POST, "/v2/sandboxes").header("Idempotency-Key", nonce).json(request),
            ApiVersion::V1 => {
                let mut request = request.clone();
                if let Some(body) = request.as_object_mut() {
                    body.insert("secure".to_owned(), true.into());
                }
                self.call(Method::POST, "/sandboxes").json(&request)
            }
        };
        let lost = |text: String| CreateError::Unknown(Refusal { code: "e2b_unreachable", text });
        let response = call.timeout(deadline).send().await.map_err(|error| {
            let cause = root_cause(&error);
            if error.is_connect() {
                let text = format!("E2B can't be reached at {}: {cause}; check E2B_DOMAIN and E2B_API_URL", self.config.api_url);
                CreateError::Retry(Refusal { code: "e2b_unreachable", text })
            } else {
                lost(format!("E2B did not answer: {cause}"))
            }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(|error| lost(format!("E2B's answer was cut: {}", root_cause(&error))))?;
        if !status.is_success() {
            return Err(Refused::read(status, &headers, &body).of_create(version));
        }
        serde_json::from_slice(&body).map_err(|error| {
            if is_html(&headers, &body) {
                let text = "the address answers with a web page, not as E2B's API does: check E2B_API_URL and E2B_DOMAIN";
                CreateError::Blocked(Refusal { code: "e2b_not_an_api", text: text.to_owned() })
            } else {
                lost(format!("E2B's answer can't be read: {error}"))
            }
        })
    }

    /// A sandbox by id; `None`: E2B does not know it, so it is gone.
    pub async fn get(&self, id: &str) -> Result<Option<SandboxInfo>, ApiError> {
        let answer = self.ask(self.call(Method::GET, &format!("/sandboxes/{id}"))).await?;
        match answer.status {
            StatusCode::OK => answer.json().map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.refused()),
        }
    }

    /// Sandboxes with all of these labels, running and paused. The whole list or an error, never a part. A server
    /// without the paged list is asked for the old one, which has running ones only.
    pub async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<ListedSandbox>, ApiError> {
        // Each side is encoded twice inside a query value: our labels have only characters that encoding leaves alone.
        let wanted = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
        let mut all: Vec<ListedSandbox> = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("metadata", wanted.as_str()), ("state", "running,paused"), ("limit", "100")];
            query.extend(next.as_deref().map(|token| ("nextToken", token)));
            let mut answer = self.ask(self.call_with(Method::GET, "/v2/sandboxes", &query)).await?;
            if matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
                answer = self.ask(self.call_with(Method::GET, "/sandboxes", &[("metadata", &wanted)])).await?;
            }
            if answer.status != StatusCode::OK {
                return Err(answer.refused());
            }
            next = answer.headers.get("X-Next-Token").and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned);
            all.extend(answer.json::<Vec<ListedSandbox>>()?);
            if next.is_none() {
                // A server that ignores the filter must not make us take others' sandboxes for ours.
                all.retain(|sandbox| labels.iter().all(|(key, value)| sandbox.metadata.get(*key).is_some_and(|v| v == value)));
                return Ok(all);
            }
        }
        Err(ApiError::Refused(format!("the list of sandboxes did not end after {PAGES_MAX} pages")))
    }

    pub(super) fn call(&self, method: Method, path: &str) -> RequestBuilder {
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

    pub(super) async fn ask(&self, call: RequestBuilder) -> Result<Answer, ApiError> {
        let unreachable = |error: reqwest::Error| ApiError::Transient(format!("E2B can't be reached: {}", root_cause(&error)));
        let response = call.timeout(DEADLINE).send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await.map_err(unreachable)?.to_vec() })
    }
}
