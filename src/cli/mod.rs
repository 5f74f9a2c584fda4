//! The commands, a file each.

mod admin;
mod agent;
mod artifacts;
mod attach;
mod bench;
mod children;
mod complain;
mod demo;
mod dev;
mod doctor;
mod erase;
mod fleet;
mod journal;
mod keys;
mod local;
mod logs;
mod note;
mod paint;
mod roles;
mod signals;
mod smoke;
mod tokens;
mod transcript;
mod turns;
mod usage;
mod watch;
mod web;
mod webhooks;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use secrecy::ExposeSecret as _;

use crate::config::Config;
use crate::keys::Keyring;
use crate::store::{PATIENCE, Store};

pub use complain::{complain, explain};
pub use logs::logging;

/// Above the options that every command has.
const EVERYWHERE: &str = "Everywhere";

const AFTER_HELP: &str = "\
First steps, with nothing set up:
  turnmill dev                        everything in one process, until Ctrl-C
  turnmill enqueue 'Fix the login'    in another terminal; add --watch to see the answer
  turnmill turns                      what ran, runs and waits

In production: turnmill migrate, once a release; turnmill worker, as many as you like; enqueue by SQL,
or over HTTP (turnmill web):
  SELECT turn_id FROM turnmill.enqueue_turn(prompt => '…', project_id => 'p1', session_id => 's1');

Commands use the Postgres of DATABASE_URL; without that, the one of a turnmill dev that runs here.
turnmill doctor says what is missing. Every setting: config/default.toml.";

/// Runs coding-agent turns durably on Postgres: the sandbox outlives the worker.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// TOML file with settings; the environment overrides it
    #[arg(long, global = true, env = "TURNMILL_CONFIG", value_name = "FILE", help_heading = EVERYWHERE)]
    pub config: Option<PathBuf>,
    /// What to log to stderr: error, warn, info, debug, or per module (turnmill=debug,sqlx=warn); +json for JSON lines
    #[arg(long, global = true, env = "TURNMILL_LOG", value_name = "FILTER", default_value = "", help_heading = EVERYWHERE)]
    pub log: String,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What `turnmill` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything here, with nothing to set up: Postgres, sandboxes, a worker, the HTTP API
    Dev(dev::Dev),
    /// Commit a turn to the queue
    Enqueue(turns::EnqueueArgs),
    /// Stream a turn's blocks into the terminal, until it ends
    Watch(watch::Watch),
    /// List the newest turns
    Turns(turns::Turns),
    /// List the files that a turn made or changed, or fetch one
    Artifacts(artifacts::ArtifactsArgs),
    /// Cancel a turn: at once if it waits, within a second if it runs
    Cancel(turns::Cancel),
    /// Enqueue an ended turn's message again
    Retry(turns::RetryArgs),
    /// Print what a turn's agent printed, word for word but for previews and secrets
    Journal(journal::Journal),
    /// Print the conversation as the agent remembers it after a turn
    Transcript(transcript::Transcript),
    /// Make a session that goes on from where another one is, or was
    Fork(turns::Fork),
    /// Take turns from the queue and run them, until SIGTERM
    Worker(worker::Worker),
    /// Serve the HTTP API, until SIGTERM
    Web(web::Web),
    /// Make, list and revoke tokens of the HTTP API
    Token(tokens::Tokens),
    /// Make, list, change and test webhooks: who is told over HTTP that turns have ended
    Webhook(webhooks::Webhooks),
    /// Run the local E2B-compatible server (it isolates nothing: for development and tests)
    Local(local::Local),
    /// Bring the database's schema up to date
    Migrate,
    /// Make the database's roles, and bind logins to tenants
    Roles(roles::Roles),
    /// Show and change pools: caps, templates, agents
    Pool(admin::Pools),
    /// Show and change tenants: weights, limits of running turns, budgets
    Tenant(fleet::Tenants),
    /// Sum what turns have cost, by day, tenant, model and more
    Usage(usage::Usage),
    /// Show this database's fleet, stop and resume it, set its budget, or give a copied database an identity of its own
    Fleet(fleet::FleetArgs),
    /// Erase a user or a session from every table
    Erase(erase::Erase),
    /// Make and exchange master keys; store the keys that users and tenants bring
    Keys(keys::Keys),
    /// Check what a worker needs, and say what to do about what is missing
    Doctor,
    /// Run one real turn in a pool and check all that it leaves
    Smoke(smoke::Smoke),
    /// Stand-ins for a coding agent
    Agent(agent::Agent),
    /// Watch a turn survive its worker's kill -9
    Demo(demo::Demo),
    /// Measure the queue beside raw Postgres, in one run
    Bench(bench::Bench),
}

impl Command {
    /// Whether it runs until it is stopped, and so logs what it does.
    pub fn is_service(&self) -> bool {
        matches!(self, Self::Dev(_) | Self::Worker(_) | Self::Web(_) | Self::Local(_))
    }
}

/// Where the database is.
#[derive(Debug, Args)]
pub struct DatabaseArg {
    /// Postgres of the fleet; without it, a `turnmill dev` that runs here
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
}

impl Cli {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(self.config.as_deref())?;
        logs::hide(&config.secrets());
        match self.command {
            Command::Dev(dev) => Box::pin(dev.run(config)).await,
            Command::Enqueue(enqueue) => enqueue.run(&config).await,
            Command::Watch(watch) => watch.run(&config).await,
            Command::Turns(turns) => turns.run(&config).await,
            Command::Artifacts(artifacts) => artifacts.run(&config).await,
            Command::Cancel(cancel) => cancel.run(&config).await,
            Command::Retry(retry) => retry.run(&config).await,
            Command::Transcript(transcript) => transcript.run(&config).await,
            Command::Journal(journal) => journal.run(&config).await,
            Command::Fork(fork) => fork.run(&config).await,
            Command::Worker(worker) => worker.run(config).await,
            Command::Web(web) => web.run(config).await,
            Command::Token(tokens) => tokens.run(&config).await,
            Command::Webhook(webhooks) => webhooks.run(&config).await,
            Command::Local(local) => local.run().await,
            Command::Migrate => admin::migrate(&config).await,
            Command::Roles(roles) => roles.run(&config).await,
            Command::Pool(pools) => pools.run(&config).await,
            Command::Tenant(tenants) => tenants.run(&config).await,
            Command::Fleet(fleet) => fleet.run(&config).await,
            Command::Keys(keys) => keys.run(&config).await,
            Command::Erase(erase) => erase.run(&config).await,
            Command::Smoke(smoke) => smoke.run(config).await,
            Command::Usage(usage) => usage.run(&config).await,
            Command::Doctor => doctor::run(&config).await,
            Command::Demo(demo) => demo.run().await,
            Command::Bench(bench) => Box::pin(bench.run(config)).await,
            Command::Agent(agent) => Ok(agent.run()),
        }
    }
}

/// Where agents' keys come from; what is fixed among them is in no line of the log.
fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    let keyring = Keyring::new(config)?;
    logs::hide(keyring.for_hooks(keyring.fixed().unwrap_or_default()).secrets());
    Ok(keyring)
}

/// The database of the configuration, or of a `turnmill dev` on this machine.
async fn store(config: &Config) -> anyhow::Result<Store> {
    let configured = config.database.url.expose_secret();
    let url = if configured.is_empty() {
        match note::find() {
            note::Found::Running(url) => url,
            note::Found::Gone => anyhow::bail!("the `turnmill dev` that was here is gone; start it again, or set DATABASE_URL"),
            note::Found::Nothing => anyhow::bail!("no database: set DATABASE_URL, or start one with everything else: turnmill dev"),
        }
    } else {
        configured.to_owned()
    };
    Store::connect(&config.database.options(&url), PATIENCE).await
}

/// Our own executable, for the processes that we start.
fn ourselves() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("finding our own executable")
}

/// What to type to start us again: our name if that is what the PATH finds, else where we are.
fn called() -> String {
    let Ok(ours) = ourselves().and_then(|path| Ok(path.canonicalize()?)) else { return "turnmill".to_owned() };
    if on_path("turnmill").and_then(|path| path.canonicalize().ok()).is_some_and(|found| found == ours) {
        return "turnmill".to_owned();
    }
    let path = ours.display().to_string();
    if path.contains(|c: char| !c.is_alphanumeric() && !"/._-+".contains(c)) { format!("'{}'", path.replace('\'', "'\\''")) } else { path }
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::var_os("PATH").and_then(|path| std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| Path::is_file(p)))
}

/// Whether colours belong there.
trait TerminalLike {
    fn is_terminal_like(&self) -> bool;
}

impl<S: anstream::stream::RawStream> TerminalLike for anstream::AutoStream<S> {
    fn is_terminal_like(&self) -> bool {
        self.current_choice() != anstream::ColorChoice::Never
    }
}
