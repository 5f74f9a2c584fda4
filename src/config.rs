//! Configuration: `config/default.toml` (embedded), then a file, then the environment.
//!
//! Each key of the default file has an environment variable: `worker.lease` is `TURNMILL_WORKER__LEASE`.
//! A few have the names that everybody knows as well: `DATABASE_URL`, `E2B_API_KEY`, `E2B_API_URL`,
//! `E2B_DOMAIN`, `E2B_SANDBOX_URL`. A key that nobody knows is an error, in the file and in the environment.
//! Secrets may also be in files: [`Environment`].

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::e2b::ApiVersion;
use crate::keys::Environment;
use crate::store;
use crate::turn::RetryPolicy;
use crate::webhooks;

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
    /// What seals what is kept of users.
    pub keys: Keys,
    /// When to try again.
    pub retry: RetryPolicy,
    /// The HTTP API.
    pub web: Web,
    /// Who is told that turns have ended.
    pub webhooks: webhooks::Settings,
    /// Secrets as they were found, with where.
    #[serde(skip)]
    pub environment: Environment,
}

/// Master keys, and where the agents' keys come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// `ID:BASE64` words, the one that seals first; empty = none.
    pub master: SecretString,
    /// More secrets: `NAME=value` lines, or a directory with a file per name; empty = none.
    pub file: String,
    /// Where a turn looks for its agent's key: `fixed`, `bedrock`, `user`.
    pub order: String,
    /// Whether a turn may run without: `auto`, `always`, `never`.
    pub required: String,
    /// Models on Bedrock besides `BEDROCK_MODEL_ID` that turns may ask for.
    pub bedrock_models: String,
    /// How long the role may be assumed.
    #[serde(with = "humantime_serde")]
    pub bedrock_session_max: Duration,
    /// Another STS than AWS' own for the region; empty = that.
    pub sts_url: String,
}

/// How to reach Postgres.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://…`; empty = not set.
    pub url: SecretString,
    /// Postgres itself, where `url` is PgBouncer's; empty = not set.
    pub direct_url: SecretString,
    /// Whether `url` is PgBouncer's, in transaction mode.
    pub pgbouncer: bool,
    /// Most connections of this process.
    pub connections: u32,
    /// Longest statement.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Longest wait for a row that somebody else sits on.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
}

impl Database {
    /// How to connect to the database at `url`.
    pub fn options(&self, url: &str) -> store::Options {
        let direct = self.direct_url.expose_secret();
        store::Options {
            url: url.to_owned(),
            direct_url: (!direct.is_empty()).then(|| direct.to_owned()),
            connections: self.connections,
            limits: store::Limits { statement: self.statement_timeout, lock: self.lock_timeout, pgbouncer: self.pgbouncer },
        }
    }
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
    /// How long a fresh sandbox may take until it answers.
    #[serde(with = "humantime_serde")]
    pub ready_deadline: Duration,
    /// How long a sandbox that E2B says is running may answer nothing before it is given up.
    #[serde(with = "humantime_serde")]
    pub silence_max: Duration,
    /// Between two rounds in which slots are held against what E2B says.
    #[serde(with = "humantime_serde")]
    pub reconcile: Duration,
    /// Between two samples for the dashboard.
    #[serde(with = "humantime_serde")]
    pub sample: Duration,
    /// How long a sandbox of this fleet must have been nobody's before it is killed.
    #[serde(with = "humantime_serde")]
    pub orphan_grace: Duration,
    /// Most bytes of one journal.
    pub journal_max_bytes: u64,
    /// Longest line of a journal; a longer one becomes an error block.
    pub line_max_bytes: usize,
}

/// Limits and rhythms of the HTTP API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    /// Address and port.
    pub listen: SocketAddr,
    /// Who may ask from a browser: origins with commas between them, `*` for all; empty = nobody.
    pub cors_origins: String,
    /// Longest body of a request.
    pub body_max_bytes: usize,
    /// Longest head of a request: its line and its headers.
    pub head_max_bytes: usize,
    /// How long a request's head may take to arrive, and its body.
    #[serde(with = "humantime_serde")]
    pub arrival_max: Duration,
    /// How long a client may take nothing of what it asked for.
    #[serde(with = "humantime_serde")]
    pub stall_max: Duration,
    /// Most connections of this process.
    pub connections_max: usize,
    /// Most streams and waiting reads of this process.
    pub readers_max: usize,
    /// Events that wait for one reader before it is dropped.
    pub reader_events_max: usize,
    /// Bytes that wait for one reader before it is dropped.
    pub reader_bytes_max: usize,
    /// Between two signs of life on a silent stream.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long one stream lasts before its client is asked to connect anew.
    #[serde(with = "humantime_serde")]
    pub stream_max: Duration,
    /// Between two looks for news of what is being read, where hints come.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// The same where none come: through PgBouncer without `direct_url`.
    #[serde(with = "humantime_serde")]
    pub poll_unheard: Duration,
    /// How long a read may wait for news at most, whatever it asks for.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// How long a browser's token for one session lasts at most.
    #[serde(with = "humantime_serde")]
    pub session_token_max: Duration,
    /// How long requests may take to end when the server is to.
    #[serde(with = "humantime_serde")]
    pub drain_max: Duration,
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
    /// `v2` or `v1` of the create endpoint, for pools that don't say.
    pub api_version: String,
    /// Extra headers of every request, `Name: value; Name: value`.
    pub headers: SecretString,
    /// How often a sandbox's stream must say something.
    #[serde(with = "humantime_serde")]
    pub keepalive: Duration,
}

impl E2b {
    /// Which endpoints to use, for a pool with or without a say.
    pub fn api_version(&self, pool: Option<&str>) -> ApiVersion {
        // Both were checked: one when the configuration was read, the other by the database.
        pool.unwrap_or(&self.api_version).parse().unwrap_or(ApiVersion::V2)
    }

    /// The extra headers.
    pub fn headers(&self) -> anyhow::Result<HeaderMap> {
        let given = self.headers.expose_secret().split(';').map(str::trim).filter(|header| !header.is_empty());
        given
            .map(|header| {
                // Not said in the error: it may be a secret.
                let parts = header.split_once(':').and_then(|(name, value)| Some((name.trim().parse().ok()?, value.trim().parse().ok()?)));
                let (name, mut value): (HeaderName, HeaderValue) =
                    parts.context("e2b.headers must look like: Name: value; Other-Name: value")?;
                value.set_sensitive(true);
                Ok((name, value))
            })
            .collect()
    }
}

impl Config {
    /// Every secret in it: what must be masked wherever it may be said.
    pub fn secrets(&self) -> Vec<SecretString> {
        let passwords = [&self.database.url, &self.database.direct_url].map(|url| {
            let url = reqwest::Url::parse(url.expose_secret()).ok();
            url.and_then(|url| url.password().map(str::to_owned)).unwrap_or_default()
        });
        let headers =
            self.e2b.headers.expose_secret().split(';').filter_map(|header| header.split_once(':')).map(|(_, value)| value.trim());
        let master = self.keys.master.expose_secret().split_whitespace().filter_map(|key| key.split_once(':')).map(|(_, bytes)| bytes);
        let all = headers.chain(master).chain([self.e2b.api_key.expose_secret()]).map(str::to_owned).chain(passwords);
        all.filter(|secret| !secret.is_empty()).map(SecretString::from).collect()
    }

    /// Reads defaults, `file` and the environment.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        // Names that are no text are none of ours.
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        Self::load_with(file, &|name| std::env::var(name).ok(), names)
    }

    fn load_with(
        file: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<String>,
        names: impl Iterator<Item = String>,
    ) -> anyhow::Result<Self> {
        let defaults = config::File::from_str(DEFAULTS, config::FileFormat::Toml);
        let keys = leaf_keys(&config::Config::builder().add_source(defaults.clone()).build()?.try_deserialize()?, "");
        for name in names.filter(|name| name.starts_with("TURNMILL_")) {
            anyhow::ensure!(
                keys.iter().any(|key| env_name(key) == name) || is_no_setting(&name) || Environment::names_a_file(&name),
                "the environment variable {name} names no configuration key: worker.lease is TURNMILL_WORKER__LEASE; \
                 see config/default.toml"
            );
        }
        let mut builder = config::Config::builder().add_source(defaults);
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        let read = || format!("reading the configuration{}", file.map(|f| format!(" from {}", f.display())).unwrap_or_default());
        let secrets = variable(&env_name("keys.file")).or_else(|| builder.clone().build().ok()?.get_string("keys.file").ok());
        let environment = Environment::read(variable, secrets.as_deref().filter(|path| !path.is_empty()).map(Path::new))?;
        for key in &keys {
            let secret = || environment.plain(well_known(key).unwrap_or(&env_name(key)));
            let value = variable(&env_name(key)).or_else(secret).or_else(|| well_known(key).and_then(variable));
            builder = builder.set_override_option(key, value)?;
        }
        let mut config: Self = builder.build().with_context(read)?.try_deserialize().with_context(read)?;
        config.environment = environment;
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
        self.e2b.api_version.parse::<ApiVersion>().map_err(anyhow::Error::msg).context("e2b.api_version")?;
        self.e2b.headers()?;
        is_web_url("E2B_API_URL (e2b.api_url)", &self.e2b.api_url, "https://api.e2b.app")?;
        is_web_url("E2B_SANDBOX_URL (e2b.sandbox_url)", &self.e2b.sandbox_url, "https://{port}-{sandbox_id}.e2b.app")?;
        // E2B's daemon dies of an interval of zero.
        anyhow::ensure!(self.e2b.keepalive >= Duration::from_secs(1), "e2b.keepalive must be at least 1s");
        anyhow::ensure!(!w.reconcile.is_zero(), "worker.reconcile must be more than zero");
        anyhow::ensure!(!w.sample.is_zero(), "worker.sample must be more than zero");
        anyhow::ensure!(!self.database.statement_timeout.is_zero(), "database.statement_timeout must be more than zero");
        anyhow::ensure!(!self.database.lock_timeout.is_zero(), "database.lock_timeout must be more than zero");
        anyhow::ensure!(self.database.connections >= 2, "database.connections must be at least 2");
        crate::web::check(&self.web)?;
        is_web_url("keys.sts_url", &self.keys.sts_url, "https://sts.us-east-1.amazonaws.com")?;
        self.webhooks.check()?;
        Ok(())
    }
}

/// Variables that begin as ours do and are no keys of the configuration: what the command line, the stand-in agent, the
/// processes in a sandbox and the tests read.
const OTHERS: [&str; 13] = [
    "CONFIG",
    "LOG",
    "LOCAL_LISTEN",
    "LOCAL_DIR",
    "MOCK_SCRIPT",
    "MOCK_LEDGER",
    "ROOT",
    "AGENT_UID",
    "PREPARE",
    "WATCH",
    "FINISH",
    "PREPARE_LIMIT",
    "FINISH_LIMIT",
];

fn is_no_setting(name: &str) -> bool {
    let rest = name.strip_prefix("TURNMILL_").unwrap_or(name);
    let of_tests = rest.starts_with("TEST_") || rest == "SEED";
    // Kubernetes tells every pod of a service called turnmill, or turnmill-something, in variables like these.
    let of_kubernetes = !rest.contains("__")
        && (rest.contains("SERVICE_HOST") || rest.contains("SERVICE_PORT") || rest.split('_').any(|word| word == "PORT"));
    OTHERS.contains(&rest) || of_tests || of_kubernetes
}

/// A base URL of ours, where placeholders may stand for the sandbox; empty: not set.
fn is_web_url(name: &str, url: &str, example: &str) -> anyhow::Result<()> {
    let filled = url.replace("{sandbox_id}", "s").replace("{port}", "1");
    let good = url.is_empty() || reqwest::Url::parse(&filled).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    anyhow::ensure!(good, "{name} is \"{url}\", which is no http:// or https:// URL; write it like {example}");
    Ok(())
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
