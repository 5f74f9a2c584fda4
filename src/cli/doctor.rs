//! `turnmill doctor`: what a worker needs, checked one by one, each with what to do.

use std::process::ExitCode;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::{complain, on_path, paint, store};
use crate::config::Config;
use crate::keys::{Keyring, Source, Vault};
use crate::store::{Bounds, Store};

/// Prints the findings; exit code 1 when a worker could not run.
pub async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    match store(config).await {
        Ok(store) => {
            report.good("database", "reachable");
            database(&mut report, config, &store).await;
        }
        Err(error) => report.bad("database", &complain::text(&error)),
    }
    e2b(&mut report, config).await;
    keys(&mut report, config).await;
    match Vault::new(config.keys.master.expose_secret()) {
        Ok(vault) => match vault.sealing() {
            Some(id) => report.good("master key", &format!("conversations are sealed under \"{id}\"")),
            None => report.note("master key", "none: conversations are kept as they are; make one for all workers: turnmill keys new"),
        },
        Err(error) => report.bad("master key", &complain::text(&error)),
    }
    match on_path("claude") {
        Some(path) => report.good("claude", &format!("{} (used by turnmill dev; on E2B the template has its own)", path.display())),
        None => report.note("claude", "not on the PATH; only turnmill dev would use it: npm install -g @anthropic-ai/claude-code"),
    }
    match crate::local::postgres::find_bin() {
        Ok(path) => report.good("postgres", &format!("{} (for turnmill dev and demo)", path.display())),
        Err(error) => report.note("postgres", &complain::text(&error)),
    }
    Ok(report.end())
}

async fn database(report: &mut Report, config: &Config, store: &Store) {
    match store.check_schema().await {
        Ok(()) => report.good("schema", "up to date"),
        Err(error) => return report.bad("schema", &complain::text(&error)),
    }
    match store.expect_fleet(&config.fleet).await {
        Ok(fleet) => report.good("fleet", &format!("{} ({})", fleet.name, fleet.id)),
        Err(error) => report.bad("fleet", &complain::text(&error)),
    }
    match store.pools().await {
        Ok(pools) => {
            for pool in pools {
                let line = format!(
                    "{}: {} of {} slots held, {} turns ready, agent {}",
                    pool.name,
                    pool.held,
                    pool.cap,
                    pool.ready,
                    pool.agent.first().map_or("", String::as_str)
                );
                match (pool.state.as_str(), pool.state_reason) {
                    ("active", _) => report.good("pool", &line),
                    (state, why) => report.bad("pool", &format!("{line}, {state}: {}", why.unwrap_or_default())),
                }
            }
        }
        Err(error) => report.bad("pools", &complain::text(&error.into())),
    }
    webhooks(report, store).await;
    match store.workers().await.map(|all| all.into_iter().filter(|w| w.alive).count()) {
        Ok(0) => report.note("workers", "none is running; start one: turnmill worker"),
        Ok(n) => report.good("workers", &format!("{n} alive")),
        Err(error) => report.bad("workers", &complain::text(&error.into())),
    }
}

/// Where each key comes from, by name; and whether it is good, as far as that can be known without using it up.
async fn keys(report: &mut Report, config: &Config) {
    let keyring = match Keyring::new(config) {
        Ok(keyring) => keyring,
        Err(error) => return report.bad("keys", &complain::text(&error)),
    };
    for name in
        ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN", "USPARK_TOKEN", "E2B_API_KEY"]
    {
        if let Some(origin) = config.environment.origin(name) {
            report.good("key", &if origin == name { name.to_owned() } else { format!("{name}, from {origin}") });
        }
    }
    for source in keyring.order() {
        let found = match source {
            Source::Fixed => keyring.fixed().map(|credentials| credentials.key().map_or("", |(kind, _)| kind.variable()).to_owned()),
            Source::Bedrock => match keyring.bedrock() {
                Some(bedrock) => match bedrock.credentials(None, Duration::ZERO).await {
                    Ok(_) => {
                        Some(format!("{}, for turns of up to {} s (turn_timeout_s)", bedrock.describe(), bedrock.turn_max().as_secs()))
                    }
                    Err(trouble) => {
                        return report.bad("model key", &format!("{}: {} ({})", bedrock.describe(), trouble.text, trouble.code));
                    }
                },
                None => None,
            },
            Source::User => None,
        };
        if let Some(found) = found {
            return report.good("model key", &format!("every turn's: {found}"));
        }
    }
    let text = "none for every turn: only those whose user or tenant has one (turnmill keys list) can be answered, and the mock agent; set \
                ANTHROPIC_API_KEY for Claude Code, or see docs/keys.md";
    report.note("model key", text);
}

async fn webhooks(report: &mut Report, store: &Store) {
    match store.endpoints(&Bounds::default(), None, 1000).await {
        Ok(endpoints) => {
            for endpoint in endpoints {
                match (endpoint.disabled_reason, endpoint.failures) {
                    (Some(why), _) => report.note("webhook", &format!("{} ({}) is disabled: {why}", endpoint.id, endpoint.url)),
                    (None, 0) => report.good("webhook", &format!("{} ({})", endpoint.id, endpoint.url)),
                    (None, failures) => {
                        let error = endpoint.last_error.unwrap_or_default();
                        report.note("webhook", &format!("{} ({}) has failed {failures} times: {error}", endpoint.id, endpoint.url));
                    }
                }
            }
        }
        Err(error) => report.bad("webhooks", &complain::text(&error.into())),
    }
}

async fn e2b(report: &mut Report, config: &Config) {
    if config.e2b.api_key.expose_secret().is_empty() {
        return report.bad("sandboxes", "E2B_API_KEY is not set (turnmill dev brings its own sandboxes and needs none)");
    }
    let client = match crate::worker::client(config) {
        Ok(client) => client,
        Err(error) => return report.bad("sandboxes", &complain::text(&error)),
    };
    match client.list(&[("turnmill_fleet", "doctor")]).await {
        Ok(_) => report.good("sandboxes", "E2B takes our key"),
        // Some say themselves which of the settings it is.
        Err(error) if error.to_string().contains("E2B_") => report.bad("sandboxes", &error.to_string()),
        Err(error) => report.bad("sandboxes", &format!("{error}; check E2B_API_KEY, E2B_API_URL and E2B_DOMAIN")),
    }
}

#[derive(Default)]
struct Report {
    bad: usize,
}

impl Report {
    #[expect(clippy::unused_self, reason = "the three verdicts read alike")]
    fn good(&mut self, what: &str, text: &str) {
        anstream::println!("{}✓{} {what:<10} {}", paint::GOOD, paint::OFF, paint::safe(text));
    }

    #[expect(clippy::unused_self, reason = "the three verdicts read alike")]
    fn note(&mut self, what: &str, text: &str) {
        anstream::println!("{}•{} {what:<10} {}", paint::WARN, paint::OFF, paint::safe(text));
    }

    fn bad(&mut self, what: &str, text: &str) {
        self.bad += 1;
        anstream::println!("{}✗{} {what:<10} {}", paint::BAD, paint::OFF, paint::safe(text));
    }

    fn end(self) -> ExitCode {
        if self.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
