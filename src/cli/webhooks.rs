//! `turnmill webhook`: who is told over HTTP that turns have ended.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;

use super::{paint, store};
use crate::config::Config;
use crate::store::{Bounds, Delivery, Endpoint, EndpointChange, REPLAYED_MAX, Replay, Since, Store};
use crate::webhooks::{EVENTS, Made, Registry, Wanted};

/// Make, list, change and test endpoints of webhooks, and see what they were told.
#[derive(Debug, Args)]
pub struct Webhooks {
    #[command(subcommand)]
    what: Option<WebhookCommand>,
}

#[derive(Debug, Subcommand)]
enum WebhookCommand {
    /// Show all endpoints (the default)
    List,
    /// Make an endpoint, and print its secret once
    Create(Create),
    /// Show all about an endpoint
    Show {
        /// The endpoint
        id: String,
    },
    /// Send to it again, from now on
    Enable {
        /// The endpoint
        id: String,
    },
    /// Send nothing to it, from now on; what waits is given up
    Disable {
        /// The endpoint
        id: String,
        /// Why, for people
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        reason: String,
    },
    /// Exchange its secret, and print the new one once; for a while both sign
    Rotate {
        /// The endpoint
        id: String,
        /// How long the old one signs as well; 0s if it has leaked [default: webhooks.rotation, 1day]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        keep_old: Option<Duration>,
    },
    /// Send it a test, and wait for what comes of it
    Test {
        /// The endpoint
        id: String,
    },
    /// Show what it was told, the newest first
    Deliveries {
        /// The endpoint
        id: String,
        /// Only those
        #[arg(long, value_name = "STATE", value_parser = ["pending", "delivered", "failed"])]
        state: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
    },
    /// Send a delivery again, or all of an endpoint's that failed
    Replay {
        /// The delivery (msg_…), or the endpoint (whe_…)
        id: String,
        /// Of an endpoint: only events of the last 2d, 12h, …
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30days")]
        since: Duration,
    },
    /// Forget it, and what it was told
    Delete {
        /// The endpoint
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Where to POST: https://, on the public internet unless webhooks.allow_networks names more
    url: String,
    /// What it is for, for people
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = description)]
    description: String,
    /// Only turns of this project
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    project: Option<String>,
    /// Only turns of this tenant
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    /// Only these events: turn.completed, turn.failed, turn.cancelled; all without it
    #[arg(long = "event", value_name = "EVENT", value_delimiter = ',', value_parser = EVENTS)]
    events: Vec<String>,
}

fn description(text: &str) -> Result<String, String> {
    if text.chars().count() <= 255 { Ok(text.to_owned()) } else { Err("give at most 255 characters".to_owned()) }
}

impl Webhooks {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let mut config = config.clone();
        if config.database.url.expose_secret().is_empty() {
            // It is dev's database that is found, and dev asks this machine.
            config.webhooks.allow_loopback();
        }
        let config = &config;
        let store = store(config).await?;
        match self.what.unwrap_or(WebhookCommand::List) {
            WebhookCommand::List => list(&store).await?,
            WebhookCommand::Create(create) => create.run(store, config).await?,
            WebhookCommand::Show { id } => show(&there(&store, &id).await?),
            WebhookCommand::Enable { id } => change(&store, &id, Ok(()), "Enabled.").await?,
            WebhookCommand::Disable { id, reason } => change(&store, &id, Err(reason), "Disabled.").await?,
            WebhookCommand::Rotate { id, keep_old } => {
                there(&store, &id).await?;
                let registry = Registry::new(store, config)?;
                let made = registry.rotate(&id, keep_old).await?.ok_or_else(|| unknown(&id))?;
                print_secret(&registry, &made);
            }
            WebhookCommand::Test { id } => return test(&store, &id, config.webhooks.timeout).await,
            WebhookCommand::Deliveries { id, state, limit } => {
                there(&store, &id).await?;
                store.deliveries(&id, state.as_deref(), None, limit).await?.iter().for_each(print_delivery);
            }
            WebhookCommand::Replay { id, since } => replay(&store, &id, since).await?,
            WebhookCommand::Delete { id } => {
                anyhow::ensure!(store.delete_endpoint(&id).await?, unknown(&id));
                anstream::println!("Deleted.");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(self, store: Store, config: &Config) -> anyhow::Result<()> {
        let registry = Registry::new(store, config)?;
        let url = registry.guard.check_url(&self.url).map_err(|wrong| anyhow::anyhow!("the URL {wrong}"))?;
        let wanted = Wanted { url, description: self.description, project_id: self.project, tenant_id: self.tenant, events: self.events };
        let made = registry.add(wanted).await?;
        let made = made.ok_or_else(|| {
            anyhow::anyhow!(
                "there are {} endpoints of this project and tenant already; delete one with: turnmill webhook delete ID",
                registry.settings.endpoints_max
            )
        })?;
        print_secret(&registry, &made);
        Ok(())
    }
}

fn print_secret(registry: &Registry, made: &Made) {
    let beside = made.old_secret_until.map(|until| format!(" The old one signs as well until {}.", paint::time(until))).unwrap_or_default();
    anstream::eprintln!("{}  its secret is shown this once:{beside}", made.endpoint_id);
    if !registry.seals() {
        anstream::eprintln!(
            "{}It is not sealed in the database: there is no master key here (TURNMILL_KEYS__MASTER, turnmill keys new).{}",
            paint::WARN,
            paint::OFF
        );
    }
    anstream::println!("{}", made.secret);
}

fn unknown(id: &str) -> anyhow::Error {
    anyhow::anyhow!("there is no endpoint \"{id}\"; list endpoints with: turnmill webhook list")
}

async fn there(store: &Store, id: &str) -> anyhow::Result<Endpoint> {
    store.endpoint(id, &Bounds::default()).await?.ok_or_else(|| unknown(id))
}

async fn change(store: &Store, id: &str, enabled: Result<(), String>, said: &str) -> anyhow::Result<()> {
    let changed = store.change_endpoint(id, &EndpointChange { enabled: Some(enabled), ..EndpointChange::default() }).await?;
    anyhow::ensure!(changed, unknown(id));
    anstream::println!("{said}");
    Ok(())
}

fn state_of(endpoint: &Endpoint) -> String {
    match (&endpoint.disabled_reason, endpoint.failures) {
        (Some(why), _) => format!("{}disabled{}: {}", paint::BAD, paint::OFF, paint::line(why)),
        (None, 0) => format!("{}enabled{}", paint::GOOD, paint::OFF),
        (None, failures) => {
            let error = paint::short(endpoint.last_error.as_deref().unwrap_or_default(), 100);
            format!("{}failing{}: {failures} in a row, the last: {error}", paint::WARN, paint::OFF)
        }
    }
}

async fn list(store: &Store) -> anyhow::Result<()> {
    for endpoint in store.endpoints(&Bounds::default(), None, 1000).await? {
        let only = |what: &str, id: &Option<String>| id.as_ref().map(|id| format!(", {what} {}", paint::line(id))).unwrap_or_default();
        anstream::println!(
            "{}{}{}  {}  {}{}{}  {}",
            paint::BOLD,
            endpoint.id,
            paint::OFF,
            paint::short(&endpoint.url, 100),
            endpoint.events.join(" "),
            only("project", &endpoint.project_id),
            only("tenant", &endpoint.tenant_id),
            state_of(&endpoint),
        );
    }
    Ok(())
}

fn show(endpoint: &Endpoint) {
    let time = |at: Option<chrono::DateTime<chrono::Utc>>| at.map_or("never".to_owned(), paint::time);
    let id = |id: &Option<String>| id.as_ref().map_or("all".to_owned(), |id| paint::line(id));
    let sealed = if endpoint.secret_sealed { "sealed" } else { "not sealed" };
    let old = endpoint.old_secret_until.map(|until| format!(", the old one signs until {}", paint::time(until))).unwrap_or_default();
    let since = endpoint.disabled_at.or(endpoint.failing_since).map(|at| format!(" (since {})", paint::time(at))).unwrap_or_default();
    anstream::println!(
        "{}{}{}  {}\n  url           {}\n  description   {}\n  project       {}\n  tenant        {}\n  events        {}\n  state         {}{since}\n  last success  {}\n  last failure  {}\n  secret        {sealed}{old}\n  made          {}",
        paint::BOLD,
        endpoint.id,
        paint::OFF,
        endpoint.state,
        paint::line(&endpoint.url),
        paint::line(&endpoint.description),
        id(&endpoint.project_id),
        id(&endpoint.tenant_id),
        endpoint.events.join(" "),
        state_of(endpoint),
        time(endpoint.last_success_at),
        time(endpoint.last_failure_at),
        paint::time(endpoint.created_at),
    );
}

fn print_delivery(delivery: &Delivery) {
    let style = match delivery.state.as_str() {
        "delivered" => paint::GOOD,
        "failed" => paint::BAD,
        _ => paint::WARN,
    };
    let next = if delivery.state == "pending" { format!(", next try {}", paint::time(delivery.next_at)) } else { String::new() };
    let error = delivery.last_error.as_ref().map(|error| format!(": {}", paint::short(error, 100))).unwrap_or_default();
    anstream::println!(
        "{}  {}  {style}{}{}  {}  {}  tries {}{next}{error}",
        delivery.id,
        paint::time(delivery.created_at),
        delivery.state,
        paint::OFF,
        delivery.kind,
        paint::line(delivery.turn_id.as_deref().unwrap_or("-")),
        delivery.attempts,
    );
}

/// Tried once, by whatever worker is there.
async fn test(store: &Store, id: &str, timeout: Duration) -> anyhow::Result<ExitCode> {
    there(store, id).await?;
    let disabled = || anyhow::anyhow!("the endpoint is disabled; enable it with: turnmill webhook enable {id}");
    let sent = store.send_test(id).await?.ok_or_else(disabled)?;
    let since = Instant::now();
    loop {
        let delivery = store.delivery(&sent, &Bounds::default()).await?.ok_or_else(|| unknown(id))?;
        if delivery.state != "pending" {
            print_delivery(&delivery);
            return Ok(if delivery.state == "delivered" { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        anyhow::ensure!(
            since.elapsed() < timeout + Duration::from_secs(10),
            "nobody has delivered {sent} yet: is a worker running? turnmill doctor; then: turnmill webhook deliveries {id}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn replay(store: &Store, id: &str, since: Duration) -> anyhow::Result<()> {
    let disabled = "the endpoint is disabled; enable it first with: turnmill webhook enable ID";
    if id.starts_with("whe_") {
        anyhow::ensure!(there(store, id).await?.state == "enabled", disabled);
        let mut replayed = 0;
        loop {
            let now = store.replay_failed(id, Since::Ago(since)).await?;
            replayed += now;
            if i64::try_from(now).is_ok_and(|now| now < REPLAYED_MAX) {
                break;
            }
        }
        anstream::println!("{replayed} deliveries are due again.");
        return Ok(());
    }
    match store.replay(id, &Bounds::default()).await? {
        Replay::Due => anstream::println!("It is due again."),
        Replay::Disabled => anyhow::bail!(disabled),
        Replay::Unknown => anyhow::bail!("there is no delivery \"{id}\"; list them with: turnmill webhook deliveries ENDPOINT"),
    }
    Ok(())
}
