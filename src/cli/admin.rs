//! `turnmill migrate`, `pool`, `tenant`, `fleet`: what operators do to the database.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::fleet::{Dollars, dollars, some_dollars};
use super::{paint, store};
use crate::config::Config;
use crate::keys::check_allowed;
use crate::store::PoolChange;

/// Brings the schema up to date.
pub async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let roles = store(config).await?.migrate().await?;
    anstream::println!("The schema is up to date.");
    if !roles {
        anstream::println!("Its roles are not there, so only its owner has rights on it; for others make them: turnmill roles create");
    }
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
    Set(Box<PoolSet>),
}

#[derive(Debug, Args)]
struct PoolSet {
    /// The pool
    #[arg(value_parser = name)]
    name: String,
    /// Most sandboxes at once, in the whole fleet
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=10000))]
    cap: Option<i32>,
    /// E2B template, id or alias
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    template: Option<String>,
    /// The agent's command line, split at blanks; "mock" for the stand-in
    #[arg(long, value_name = "COMMAND", value_parser = agent)]
    agent: Option<Agent>,
    /// Directory in the sandbox where agent and hooks start; "" for the home of their user
    #[arg(long, value_name = "DIR", value_parser = workdir)]
    workdir: Option<String>,
    /// Seconds after which a turn is stopped
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..))]
    turn_timeout: Option<i32>,
    /// Seconds without a word, while no tool runs, after which the agent is stopped and tried again
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..))]
    idle_timeout: Option<i32>,
    /// Most sandboxes created per second, in the whole fleet; "none" for no limit of ours
    #[arg(long, value_name = "N", value_parser = rate)]
    create_rate: Option<Rate>,
    /// Creates that may come at once after a pause
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    create_burst: Option<i32>,
    /// Which of E2B's create endpoints: v2, or v1 for servers that speak its API without it
    #[arg(long, value_parser = ["v1", "v2"])]
    api_version: Option<String>,
    /// Bash script that brings the project's files into a new sandbox: a file, "uspark" (the default) or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    prepare: Option<Hook>,
    /// Bash script that gets the agent's journal on its standard input: a file, "uspark" or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    watch: Option<Hook>,
    /// Bash script that brings the files back, or says by exit code 10 that it does not: a file, "uspark" or "none"
    #[arg(long, value_name = "FILE", value_parser = hook)]
    finish: Option<Hook>,
    /// What becomes of a sandbox after its turn: "kill" (the default), "warm:TIME" = kept running for its session's next
    /// turn, unless others need the slot; "pause:TIME" = kept paused, which costs no slot; or both: "warm:5m,pause:7days"
    #[arg(long, value_name = "WHAT", value_parser = release)]
    release: Option<Release>,
    /// How long E2B lets a sandbox run: 3600 on Hobby, 86400 on Pro. None is used again whose age and --turn-timeout come to
    /// more
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..))]
    sandbox_max: Option<i32>,
    /// Newest turns of a session whose conversation is kept: how far back a retry or a fork can go
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    context_versions: Option<i32>,
    /// Days after its last turn that a session is remembered
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i32).range(1..))]
    context_days: Option<i32>,
    /// How files get into a session's next sandbox: auto (a snapshot, unless the finish hook carries them), snapshot, hooks or none
    #[arg(long, value_name = "POLICY", value_parser = ["auto", "snapshot", "hooks", "none"])]
    workspace: Option<String>,
    /// Largest snapshot, as tar.gz
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(i64).range(0..=536_870_912))]
    workspace_max: Option<i64>,
    /// Files that a turn makes are kept for readers up to this size; 0: only listed
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(i64).range(0..=536_870_912))]
    artifact_max: Option<i64>,
    /// What is neither listed nor kept, in place of what is now: patterns of names or, with a slash, of paths, split at commas
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    files_exclude: Option<Vec<String>>,
    /// Whether readers may watch blocks grow, word by word: adds --include-partial-messages to the agent's command line
    #[arg(long, value_parser = ["on", "off"])]
    previews: Option<String>,
    /// MCP servers of its own: a file like .mcp.json, in which ${NAME} is a variable of the agent's environment; "none"
    #[arg(long, value_name = "FILE", value_parser = servers)]
    mcp_servers: Option<Servers>,
    /// Whether settings, hooks, commands and MCP servers of the project's repository are used. They run programs in the
    /// sandbox without the agent's say
    #[arg(long, value_parser = ["on", "off"])]
    trust_project: Option<String>,
    /// Days for which what agents print is kept word for word (turnmill journal); 0: not at all
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i32).range(0..=3650))]
    journal_days: Option<i32>,
    /// What a sandbox costs an hour, for usage and budgets; "none" if it costs nothing. E2B's list price: 0.0504 per vCPU and
    /// 0.0162 per GiB of memory
    #[arg(long, value_name = "USD", value_parser = dollars)]
    sandbox_usd_per_hour: Option<Dollars>,
    /// Most that one turn's model calls may cost, over all its attempts; "none" for no limit. A turn's own max_budget_usd can
    /// only be less. The agent must take --max-budget-usd
    #[arg(long, value_name = "USD", value_parser = some_dollars)]
    turn_budget_usd: Option<Dollars>,
    /// Whether the agent's key stays out of the sandbox: E2B adds it to requests for the model on their way out
    #[arg(long, value_parser = ["on", "off"])]
    inject_key: Option<String>,
    /// What a sandbox may reach besides its model: host names (*.example.com too), addresses and networks, split at commas;
    /// "none", or "all" (the default)
    #[arg(long, value_name = "HOSTS", value_parser = egress)]
    egress_allow: Option<EgressAllow>,
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

/// An agent's command line, a word an element.
#[derive(Debug, Clone)]
pub struct Agent(pub Vec<String>);

/// Reads one: "mock", or words.
pub fn agent(value: &str) -> Result<Agent, String> {
    let words: Vec<_> = if value == "mock" { mock_agent() } else { value.split_whitespace().map(str::to_owned).collect() };
    if words.is_empty() { Err("give a program and its arguments, or \"mock\"".to_owned()) } else { Ok(Agent(words)) }
}

/// The name of a pool or a fleet.
pub(super) fn name(value: &str) -> Result<String, String> {
    let may = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = value.starts_with(may) && value.len() <= 63 && value.chars().all(|c| may(c) || "_.-".contains(c));
    if good { Ok(value.to_owned()) } else { Err("give up to 63 of a-z, 0-9, \"_\", \".\", \"-\", a letter or a digit first".to_owned()) }
}

fn workdir(value: &str) -> Result<String, String> {
    if value.is_empty() || value.starts_with('/') { Ok(value.to_owned()) } else { Err("give a path from the root, or \"\"".to_owned()) }
}

/// Creates a second; `None` = no limit.
#[derive(Debug, Clone, Copy)]
struct Rate(Option<f64>);

fn rate(value: &str) -> Result<Rate, String> {
    if value == "none" {
        return Ok(Rate(None));
    }
    let rate = value.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.map(|rate| Rate(Some(rate))).ok_or_else(|| "give a number above 0, or \"none\"".to_owned())
}

/// Seconds that a sandbox is kept warm, and then paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Release(i32, i32);

/// Longest time that a sandbox runs anywhere.
const WARM_MAX: i32 = 86_400;

fn release(value: &str) -> Result<Release, String> {
    let help = || "give \"kill\", \"warm:5m\", \"pause:7days\" or \"warm:5m,pause:7days\"; warm for a day at most".to_owned();
    let (mut warm, mut paused) = (0, 0);
    for part in value.split(',').filter(|_| value != "kill") {
        let (what, time) = part.split_once(':').ok_or_else(help)?;
        let seconds = humantime::parse_duration(time).ok().and_then(|time| i32::try_from(time.as_secs()).ok()).filter(|s| *s > 0);
        match (what, seconds) {
            ("warm", Some(seconds)) if seconds <= WARM_MAX && warm == 0 && paused == 0 => warm = seconds,
            ("pause", Some(seconds)) if paused == 0 => paused = seconds,
            _ => return Err(help()),
        }
    }
    Ok(Release(warm, paused))
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

/// MCP servers by name; `None`: none.
#[derive(Debug, Clone)]
struct Servers(Option<serde_json::Value>);

fn servers(value: &str) -> Result<Servers, String> {
    if value == "none" {
        return Ok(Servers(None));
    }
    let text = std::fs::read_to_string(value).map_err(|error| format!("{error}: give a file, or \"none\""))?;
    let mut file: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("it is no JSON: {error}"))?;
    let found = file["mcpServers"].take();
    let of = |server: &serde_json::Value| server["command"].is_string() || server["url"].is_string();
    match found.as_object() {
        Some(all) if all.values().all(of) => Ok(Servers(Some(found))),
        Some(_) => Err("each server has a \"command\" or a \"url\"".to_owned()),
        None => Err(r#"write {"mcpServers": {"NAME": {"command": …} or {"type": "http", "url": …}}}"#.to_owned()),
    }
}

/// What may be reached; `None`: everything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EgressAllow(Option<Vec<String>>);

fn egress(value: &str) -> Result<EgressAllow, String> {
    match value {
        "all" => Ok(EgressAllow(None)),
        "none" => Ok(EgressAllow(Some(Vec::new()))),
        words => {
            let words: Vec<String> = words.split(',').map(|word| word.trim().to_owned()).collect();
            words.iter().try_for_each(|word| check_allowed(word))?;
            Ok(EgressAllow(Some(words)))
        }
    }
}

impl Pools {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        if let Some(PoolCommand::Set(set)) = self.what {
            let state = if set.pause { Some("paused") } else { set.resume.then_some("active") };
            let change = PoolChange {
                cap: set.cap,
                template: set.template,
                agent: set.agent.map(|agent| agent.0),
                agent_env: None,
                workdir: set.workdir,
                turn_timeout_s: set.turn_timeout,
                idle_timeout_s: set.idle_timeout,
                create_rate: set.create_rate.map(|rate| rate.0),
                create_burst: set.create_burst,
                state: state.map(str::to_owned),
                state_reason: None,
                api_version: set.api_version,
                prepare: set.prepare.map(|hook| hook.0),
                watch: set.watch.map(|hook| hook.0),
                finish: set.finish.map(|hook| hook.0),
                release: set.release.map(|Release(warm, paused)| (warm, paused)),
                sandbox_max_s: set.sandbox_max,
                context_versions: set.context_versions,
                context_days: set.context_days,
                workspace: set.workspace,
                workspace_max_bytes: set.workspace_max,
                artifact_max_bytes: set.artifact_max,
                files_exclude: set.files_exclude,
                previews: set.previews.map(|word| word == "on"),
                mcp_servers: set.mcp_servers.map(|servers| servers.0),
                trust_project: set.trust_project.map(|word| word == "on"),
                journal_days: set.journal_days,
                sandbox_usd_per_hour: set.sandbox_usd_per_hour.map(|usd| usd.0),
                turn_budget_usd: set.turn_budget_usd.map(|usd| usd.0),
                inject_key: set.inject_key.map(|word| word == "on"),
                egress_allow: set.egress_allow.map(|allow| allow.0),
            };
            let made = store.set_pool(&set.name, &change).await.with_context(|| format!("pool \"{}\" was not changed", set.name))?;
            anstream::println!("{} {}.", if made { "Made pool" } else { "Changed pool" }, set.name);
        }
        for pool in store.pools().await? {
            let state = pool.state_reason.map_or(pool.state.clone(), |why| format!("{} ({})", pool.state, paint::short(&why, 60)));
            let rate = pool.create_rate.map(|rate| format!(", {rate} creates/s")).unwrap_or_default();
            let reported = pool.reported.map(|n| format!(", E2B says {n}")).unwrap_or_default();
            let account = pool.account_cap.map(|n| format!(", its account's limit is {n}")).unwrap_or_default();
            let price = pool.sandbox_usd_per_hour.map(|usd| format!(", ${usd}/h each")).unwrap_or_default();
            let budget = pool.turn_budget_usd.map(|usd| format!(", at most ${usd} a turn")).unwrap_or_default();
            let kept = match (pool.warm, pool.parked) {
                (0, 0) => String::new(),
                (warm, parked) => format!(" ({warm} warm; {parked} paused besides)"),
            };
            anstream::println!(
                "{}{}{}  {}/{} sandboxes{kept}{reported}{account}{rate}{price}{budget}, {} ready, {state}, template {}, agent {}",
                paint::BOLD,
                pool.name,
                paint::OFF,
                pool.held,
                pool.cap,
                pool.ready,
                paint::line(&pool.template),
                paint::short(&pool.agent.join(" "), 60)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_sandbox_is_read_or_refused() {
        assert_eq!(release("kill"), Ok(Release(0, 0)));
        assert_eq!(release("warm:5m"), Ok(Release(300, 0)));
        assert_eq!(release("pause:7days"), Ok(Release(0, 604_800)));
        assert_eq!(release("warm:90s,pause:1h"), Ok(Release(90, 3600)));
        for wrong in ["", "warm", "warm:", "warm:0s", "warm:2days", "pause:1h,warm:5m", "kill,warm:5m", "warm:5m,warm:5m", "sleep:5m"] {
            assert!(release(wrong).unwrap_err().contains("warm:5m,pause:7days"), "{wrong}");
        }
    }
}
