//! A client for E2B's API, and for the servers of others that speak it.
//!
//! | file | part |
//! | --- | --- |
//! | `api` | control plane: create, get, list, set timeout, kill |
//! | `envd` | data plane: processes and files in one sandbox |
//! | `connect` | the framing of the data plane's streams |
//!
//! HTTP/1.1 only: E2B's proxy sends downloads as many small frames, which the `h2` crate takes for an attack.
//! Every request has a deadline, and no error is retried here: who calls knows what is worth another try.

mod api;
pub(crate) mod connect;
mod envd;

use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use api::{ApiError, CreateError, ListedSandbox, SandboxInfo};
pub use envd::{Command, Envd, EnvdError, Output, ProcessEvent, ProcessStream};

/// The port of the daemon in every sandbox.
const ENVD_PORT: u16 = 49983;

/// Domains whose sandboxes are all reached by `sandbox.DOMAIN` and two headers.
const SHARED_HOST_DOMAINS: [&str; 4] = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];

/// Which create endpoint to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// `POST /sandboxes`: no idempotency key.
    V1,
    /// `POST /v2/sandboxes`.
    V2,
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
    /// Which create endpoint to use.
    pub api_version: ApiVersion,
}

/// A connection pool to one account.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    config: std::sync::Arc<Config>,
}

/// A sandbox as far as one must know it to act in it.
#[derive(Debug, Clone, Deserialize)]
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
            .build()
            .context("no HTTP client: are the system's CA certificates installed (package ca-certificates)?")?;
        Ok(Self { http, config: std::sync::Arc::new(config) })
    }

    /// The data plane of one sandbox.
    pub fn envd(&self, sandbox: &Sandbox) -> Envd {
        Envd::new(self.http.clone(), self.data_plane(sandbox), sandbox)
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
            api_version: ApiVersion::V2,
        })
        .unwrap();
        client.data_plane(&Sandbox { id: "i1".to_owned(), access_token: None, domain: own.map(str::to_owned) })
    }

    #[test]
    fn the_data_plane_is_found_by_domain_template_or_the_sandbox_s_own_word() {
        assert_eq!(url("e2b.app", None, None), "https://sandbox.e2b.app");
        assert_eq!(url("my.cloud", None, None), "https://49983-i1.my.cloud");
        assert_eq!(url("e2b.app", None, Some("byoc.example")), "https://49983-i1.byoc.example");
        assert_eq!(url("e2b.app", Some("https://h/kruise/{sandbox_id}/{port}"), None), "https://h/kruise/i1/49983");
    }
}
