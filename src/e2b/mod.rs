//! A client for E2B's API, and for the servers of others that speak it.
//!
//! | file | part |
//! | --- | --- |
//! | `api` | control plane: create, get, list |
//! | `life` | control plane, one sandbox: timeout, pause, connect, network, metrics, kill |
//! | `error` | what a refusal means |
//! | `envd` | data plane: the daemon of one sandbox, and its errors |
//! | `process` | data plane: processes |
//! | `files` | data plane: files and directories |
//! | `connect` | the framing of the data plane's streams |
//!
//! HTTP/1.1 only: E2B's proxy sends downloads as many small frames, which the `h2` crate takes for an attack.
//! Every request has a deadline, and no error is retried here: who calls knows what is worth another try.

mod api;
pub(crate) mod connect;
mod envd;
mod error;
mod files;
mod life;
mod process;

use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use api::{ListedSandbox, SandboxInfo};
pub use envd::{Envd, EnvdError};
pub use error::{ApiError, CreateError, Refusal};
pub use files::{Entry, EntryKind};
pub use life::Metrics;
pub use process::{Command, Output, ProcessConfig, ProcessEvent, ProcessInfo, ProcessStream, Signal};

/// The port of the daemon in every sandbox.
const ENVD_PORT: u16 = 49983;

/// Domains whose sandboxes are all reached by `sandbox.DOMAIN` and two headers.
const SHARED_HOST_DOMAINS: [&str; 4] = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];

/// Which endpoints to create and connect by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// `POST /sandboxes`: no idempotency key, so a lost answer can't be asked for again.
    V1,
    /// `POST /v2/sandboxes`.
    V2,
}

impl std::str::FromStr for ApiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(format!("the API version is v1 or v2, not {text:?}")),
        }
    }
}

/// Where the API is and who we are.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the control plane.
    pub api_url: String,
    /// Domain of sandboxes whose create answer names none.
    pub domain: String,
    /// Base URL of the data plane, for servers with their own routing; may contain `{sandbox_id}` and `{port}`.
    pub sandbox_url: Option<String>,
    /// Account key.
    pub api_key: SecretString,
    /// Sent with every request: what a gateway in front of it wants.
    pub headers: reqwest::header::HeaderMap,
    /// How often a process's stream must say something, whole seconds; one that is silent for two and a half of
    /// these is dead.
    pub keepalive: Duration,
}

/// A connection pool to one account.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    config: std::sync::Arc<Config>,
}

/// A sandbox as far as one must know it to act in it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// E2B's id.
    #[serde(rename = "sandboxID")]
    pub id: String,
    /// What its data plane wants to see; servers without access control give none.
    #[serde(rename = "envdAccessToken", default)]
    access_token: Option<SecretString>,
    /// Where its data plane is, when not at the account's domain.
    #[serde(default)]
    domain: Option<String>,
    /// Of the daemon in it, as `0.6.13`; that of the template's build day.
    #[serde(default)]
    pub envd_version: Option<String>,
}

impl Client {
    /// Fails when the machine has no CA certificates.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        crate::tls::install();
        let http = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("turnmill/", env!("CARGO_PKG_VERSION")))
            .default_headers(config.headers.clone())
            .build()
            .context("no HTTP client: are the system's CA certificates installed (package ca-certificates)?")?;
        Ok(Self { http, config: std::sync::Arc::new(config) })
    }

    /// The data plane of one sandbox.
    pub fn envd(&self, sandbox: &Sandbox) -> Envd {
        Envd::new(self.http.clone(), self.data_plane(sandbox), sandbox, self.config.keepalive)
    }

    fn data_plane(&self, sandbox: &Sandbox) -> String {
        let domain = sandbox.domain.as_deref().filter(|d| !d.is_empty()).unwrap_or(&self.config.domain);
        match &self.config.sandbox_url {
            Some(url) => url.replace("{sandbox_id}", &sandbox.id).replace("{port}", &ENVD_PORT.to_string()),
            None if SHARED_HOST_DOMAINS.contains(&domain) => format!("https://sandbox.{domain}"),
            None => format!("https://{ENVD_PORT}-{}.{domain}", sandbox.id),
        }
    }
}

impl Sandbox {
    fn token(&self) -> Option<&str> {
        self.access_token.as_ref().map(ExposeSecret::expose_secret).filter(|token| !token.is_empty())
    }
}

/// The cause at the bottom: reqwest's own text only says "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(domain: &str, sandbox_url: Option<&str>, own: Option<&str>) -> String {
        let client = Client::new(Config {
            api_url: String::new(),
            domain: domain.to_owned(),
            sandbox_url: sandbox_url.map(str::to_owned),
            api_key: "k".into(),
            headers: reqwest::header::HeaderMap::new(),
            keepalive: Duration::from_secs(20),
        })
        .unwrap();
        client.data_plane(&Sandbox { id: "i1".to_owned(), access_token: None, domain: own.map(str::to_owned), envd_version: None })
    }

    #[test]
    fn the_data_plane_is_found_by_domain_template_or_the_sandbox_s_own_word() {
        assert_eq!(url("e2b.app", None, None), "https://sandbox.e2b.app");
        assert_eq!(url("my.cloud", None, None), "https://49983-i1.my.cloud");
        assert_eq!(url("e2b.app", None, Some("byoc.example")), "https://49983-i1.byoc.example");
        assert_eq!(url("e2b.app", Some("https://h/kruise/{sandbox_id}/{port}"), None), "https://h/kruise/i1/49983");
    }
}
