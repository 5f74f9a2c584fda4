//! The control plane's calls about one sandbox: how long it lives, whether it runs, what it may reach, its end.
//!
//! Where a sandbox may be gone, `false` or `None` says so: E2B's 404 is the only proof of that.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{ApiVersion, Client, Sandbox};

/// One reading of a sandbox's load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct Metrics {
    /// Seconds since 1970.
    pub timestamp_unix: i64,
    /// Virtual processors.
    pub cpu_count: u32,
    /// Percent of all of them.
    pub cpu_used_pct: f64,
    /// Bytes.
    pub mem_used: u64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
}

impl Client {
    /// Lets a sandbox live for `timeout` from now, be that longer or shorter. `false`: it is gone.
    pub async fn set_timeout(&self, id: &str, timeout: Duration) -> Result<bool, ApiError> {
        self.told(self.call(Method::POST, &format!("/sandboxes/{id}/timeout")).json(&json!({ "timeout": timeout.as_secs() }))).await
    }

    /// Lets a sandbox live for at least `duration` from now. `false`: it is gone.
    pub async fn refresh(&self, id: &str, duration: Duration) -> Result<bool, ApiError> {
        self.told(self.call(Method::POST, &format!("/sandboxes/{id}/refreshes")).json(&json!({ "duration": duration.as_secs() }))).await
    }

    /// Freezes a sandbox, memory and all; it counts against no limit then, and lives until it is killed. One that
    /// is paused stays so. `false`: it is gone.
    pub async fn pause(&self, id: &str) -> Result<bool, ApiError> {
        match self.told(self.call(Method::POST, &format!("/sandboxes/{id}/pause")).json(&json!({}))).await {
            // Paused already, or on the way: its state tells which.
            Err(ApiError::Transient(text)) => match self.get(id).await? {
                Some(info) if info.state == "paused" => Ok(true),
                Some(_) => Err(ApiError::Transient(text)),
                None => Ok(false),
            },
            other => other,
        }
    }

    /// A sandbox that runs, woken if it was paused, and lives for at least `timeout`. `None`: it is gone.
    pub async fn connect(&self, version: ApiVersion, id: &str, timeout: Duration) -> Result<Option<Sandbox>, ApiError> {
        let path = match version {
            ApiVersion::V2 => format!("/v2/sandboxes/{id}/connect"),
            ApiVersion::V1 => format!("/sandboxes/{id}/connect"),
        };
        // v1 refuses a call without a body.
        let answer = self.ask(self.call(Method::POST, &path).json(&json!({ "timeout": timeout.as_secs() }))).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => answer.json().map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.refused()),
        }
    }

    /// Replaces what a sandbox may reach: E2B's own body, what it leaves out is cleared. `false`: it is gone.
    pub async fn set_network(&self, id: &str, network: &Value) -> Result<bool, ApiError> {
        self.told(self.call(Method::PUT, &format!("/sandboxes/{id}/network")).json(network)).await
    }

    /// A sandbox's readings, oldest first; some servers have none. `None`: it is gone.
    pub async fn metrics(&self, id: &str) -> Result<Option<Vec<Metrics>>, ApiError> {
        let answer = self.ask(self.call(Method::GET, &format!("/sandboxes/{id}/metrics"))).await?;
        match answer.status {
            StatusCode::OK => answer.json().map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.refused()),
        }
    }

    /// Ends a sandbox, a paused one too. `Ok` means that it is gone, by us or before.
    pub async fn kill(&self, id: &str) -> Result<(), ApiError> {
        self.told(self.call(Method::DELETE, &format!("/sandboxes/{id}"))).await.map(drop)
    }

    async fn told(&self, call: RequestBuilder) -> Result<bool, ApiError> {
        let answer = self.ask(call).await?;
        match answer.status {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.refused()),
        }
    }
}
