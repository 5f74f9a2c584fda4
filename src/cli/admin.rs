//! `turnmill migrate`, `pool`, `fleet`: what operators do to the database.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{paint, store};
use crate::config::Config;
use crate::store::PoolChange;

/// Brings the schema up to date.
pub async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    store(config).await?.migrate().await?;
    anstream::println!("The schema is up to date.");
    Ok(ExitCode::SUCCESS)
}

/// Show and change pools.
#[derive(Debug, Args)]
pub struct Pools {
    #[command(subcommand)]
    what: Option<PoolCommand>,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Show all pools (the default)
    List,
    /// Make a pool, or change one; takes effect at once
    Set(PoolSet),
}

#[derive(Debug, Args)]
struct PoolSet {
    /// The pool
    name: String,
    /// Most sandboxes at once, in the whole fleet
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=10000))]
    cap: Option<i32>,
    /// E2B template, id or alias
    #[arg(long)]
    template: Option<String>,
    /// The agent's command line, split at blanks; "mock" for the stand-in
    #[arg(long, value_name = "COMMAND")]
    agent: Option<String>,
    /// Seconds after which a turn is stopped
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..))]
    turn_timeout: Option<i32>,
    /// Which of E2B's create endpoints: v2, or v1 for servers that speak its API without it
    #[arg(long, value_parser = ["v1", "v2"])]
    api_version: Option<String>,
    /// Bash script that brings the project's files into a new sandbox: a file, "uspark" (the default) or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    prepare: Option<Hook>,
    /// Bash script that gets the agent's journal on its standard input: a file, "uspark" or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    watch: Option<Hook>,
    /// Bash script that brings the files back: a file, "uspark" or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    finish: Option<Hook>,
    /// Take no more turns from it
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Take turns from it again
    #[arg(long)]
    resume: bool,
}

/// The stand-in agent's command line, as a sandbox of the local server finds it.
pub fn mock_agent() -> Vec<String> {
    ["turnmill", "agent", "mock", "--session-id={session}"].map(str::to_owned).to_vec()
}

/// A hook's script; `None` = the shipped one, empty = none.
#[derive(Debug, Clone)]
struct Hook(Option<String>);

fn hook(value: &str) -> Result<Hook, String> {
    Ok(Hook(match value {
        "uspark" => None,
        "none" => Some(String::new()),
        file => Some(std::fs::read_to_string(file).map_err(|error| format!("{error}: give a file, \"uspark\" or \"none\""))?),
    }))
}

impl Pools {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        if let Some(PoolCommand::Set(set)) = self.what {
            let agent = match set.agent.as_deref() {
                Some("mock") => Some(mock_agent()),
                Some(words) => Some(words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()),
                None => None,
            };
            let state = if set.pause { Some("paused") } else { set.resume.then_some("active") };
            let change = PoolChange {
                cap: set.cap,
                template: set.template,
                agent,
                agent_env: None,
                turn_timeout_s: set.turn_timeout,
                state: state.map(str::to_owned),
                api_version: set.api_version,
                prepare: set.prepare.map(|hook| hook.0),
                watch: set.watch.map(|hook| hook.0),
                finish: set.finish.map(|hook| hook.0),
            };
            store.set_pool(&set.name, &change).await.with_context(|| format!("pool \"{}\" was not changed", set.name))?;
        }
        for pool in store.pools().await? {
            let state = pool.state_reason.map_or(pool.state.clone(), |why| format!("{} ({})", pool.state, paint::short(&why, 60)));
            anstream::println!(
                "{}{}{}  {}/{} sandboxes, {} ready, {state}, template {}, agent {}",
                paint::BOLD,
                pool.name,
                paint::OFF,
                pool.held,
                pool.cap,
                pool.ready,
                pool.template,
                paint::short(&pool.agent.join(" "), 60)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// This database's fleet.
#[derive(Debug, Args)]
pub struct FleetArgs {
    #[command(subcommand)]
    what: Option<FleetCommand>,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    /// Show the fleet's name, id and workers (the default)
    Show,
    /// Give this database a new fleet id and name, so that it touches none of its original's sandboxes
    Fork {
        /// What workers are then configured with (TURNMILL_FLEET)
        name: String,
    },
}

impl FleetArgs {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        if let Some(FleetCommand::Fork { name }) = self.what {
            store.fork_fleet(&name).await?;
        }
        let fleet = store.fleet().await?;
        anstream::println!("{}{}{}  {}", paint::BOLD, fleet.name, paint::OFF, fleet.id);
        for worker in store.workers().await? {
            let state = match (worker.state.as_str(), worker.alive) {
                ("gone", _) => "gone",
                (_, false) => "lease ran out",
                (state, true) => state,
            };
            anstream::println!("  {}  {state}, {}/{} turns, {}", worker.id, worker.turns, worker.turns_max, worker.version);
        }
        Ok(ExitCode::SUCCESS)
    }
}
