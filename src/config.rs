//! Configuration: `config/default.toml` (embedded), then a file, then the environment.
//!
//! Each key of the default file has an environment variable: `worker.lease` is `TURNMILL_WORKER__LEASE`.
//! A few have the names that everybody knows as well: `DATABASE_URL`, `E2B_API_KEY`, `E2B_API_URL`,
//! `E2B_DOMAIN`, `E2B_SANDBOX_URL`. A key that nobody knows is an error, in the file and in the environment.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use serde::Deserialize;

use crate::turn::RetryPolicy;

const DEFAULTS: &str = include_str!("../config/default.toml");

/// Everything that can be set; see `config/default.toml` for what each key means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the fleet whose database this is.
    pub fleet: String,
    /// Postgres.
    pub database: Database,
    /// This process's share of the work.
    pub worker: Worker,
    /// Where sandboxes come from.
    pub e2b: E2b,
    /// When to try again.
    pub retry: RetryPolicy,
}

/// How to reach Postgres.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://…`; empty = not set.
    pub url: SecretString,
    /// Most connections of this process.
    pub connections: u32,
}

/// Limits and rhythms of a worker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Turns that the process runs at once.
    pub turns_max: NonZeroU32,
    /// How long after the last heartbeat its turns are adopted by others.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Between two renewals of the lease.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Longest pause between two looks at the queue.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// Between two looks for cancel requests.
    #[serde(with = "humantime_serde")]
    pub cancel_poll: Duration,
    /// How long blocks are gathered before they are committed together.
    #[serde(with = "humantime_serde")]
    pub flush: Duration,
    /// Between the steps SIGINT, SIGTERM, SIGKILL when an agent is to stop.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
    /// Longest time for one create call.
    #[serde(with = "humantime_serde")]
    pub create_deadline: Duration,
    /// Longest time for any other single call into a sandbox.
    #[serde(with = "humantime_serde")]
    pub call_deadline: Duration,
    /// Most bytes of one journal.
    pub journal_max_bytes: u64,
    /// Longest line of a journal; a longer one becomes an error block.
    pub line_max_bytes: usize,
}

/// The E2B account, or a server that speaks its API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct E2b {
    /// Account key.
    pub api_key: SecretString,
    /// Control plane; empty = `https://api.DOMAIN`.
    pub api_url: String,
    /// E2B's domain.
    pub domain: String,
    /// Data plane, may contain `{sandbox_id}` and `{port}`; empty = E2B's own rule.
    pub sandbox_url: String,
    /// `v2` or `v1` of the create endpoint.
    pub api_version: String,
}

impl Config {
    /// Reads defaults, `file` and the environment.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        Self::load_with(file, &|name| std::env::var(name).ok(), std::env::vars().map(|(name, _)| name))
    }

    fn load_with(
        file: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<String>,
        names: impl Iterator<Item = String>,
    ) -> anyhow::Result<Self> {
        let defaults = config::File::from_str(DEFAULTS, config::FileFormat::Toml);
        let keys = leaf_keys(&config::Config::builder().add_source(defaults.clone()).build()?.try_deserialize()?, "");
        for name in names.filter(|name| name.starts_with("TURNMILL_") && name.contains("__")) {
            anyhow::ensure!(
                keys.iter().any(|key| env_name(key) == name),
                "the environment variable {name} names no configuration key; see config/default.toml"
            );
        }
        let mut builder = config::Config::builder().add_source(defaults);
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        for key in &keys {
            let value = variable(&env_name(key)).or_else(|| well_known(key).and_then(variable));
            builder = builder.set_override_option(key, value)?;
        }
        let read = || format!("reading the configuration{}", file.map(|f| format!(" from {}", f.display())).unwrap_or_default());
        let config: Self = builder.build().with_context(read)?.try_deserialize().with_context(read)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        let w = &self.worker;
        anyhow::ensure!(
            w.heartbeat * 2 < w.lease,
            "worker.heartbeat ({:?}) must be less than half of worker.lease ({:?}), or one slow renewal loses every turn",
            w.heartbeat,
            w.lease
        );
        anyhow::ensure!(
            matches!(self.e2b.api_version.as_str(), "v1" | "v2"),
            "e2b.api_version is v1 or v2, not {:?}",
            self.e2b.api_version
        );
        anyhow::ensure!(self.database.connections >= 2, "database.connections must be at least 2");
        Ok(())
    }
}

fn env_name(key: &str) -> String {
    format!("TURNMILL_{}", key.replace('.', "__").to_uppercase())
}

fn well_known(key: &str) -> Option<&'static str> {
    Some(match key {
        "database.url" => "DATABASE_URL",
        "e2b.api_key" => "E2B_API_KEY",
        "e2b.api_url" => "E2B_API_URL",
        "e2b.domain" => "E2B_DOMAIN",
        "e2b.sandbox_url" => "E2B_SANDBOX_URL",
        _ => return None,
    })
}

fn leaf_keys(value: &serde_json::Value, prefix: &str) -> Vec<String> {
    let Some(table) = value.as_object() else { return vec![prefix.to_owned()] };
    let join = |key: &String| if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
    table.iter().flat_map(|(key, value)| leaf_keys(value, &join(key))).collect()
}
