//! `turnmill enqueue`, `turns`, `cancel`: what a web app does by SQL, by hand.

use std::process::ExitCode;

use clap::Args;

use super::{attach, paint, store, watch};
use crate::config::Config;
use crate::store::{Enqueue, Receipt, TurnRow};

/// Commit a turn to the queue.
#[derive(Debug, Args)]
pub struct EnqueueArgs {
    /// The user's message; - reads it from stdin
    prompt: String,
    /// Session to continue, or to start under this id; a new one without it
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Begin a new session from where this one is: its conversation, its files
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["key", "pool"])]
    fork: Option<String>,
    /// Project of a new session
    #[arg(long, value_name = "ID", default_value = "default", conflicts_with = "fork")]
    project: String,
    /// Pool of a new session
    #[arg(long)]
    pool: Option<String>,
    /// Id for the turn
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Idempotency key: repeating the command gives the same turn
    #[arg(long)]
    key: Option<String>,
    /// While the session is busy: queue, reject or interrupt; as the session says without it
    #[arg(long, value_parser = ["queue", "reject", "interrupt"])]
    on_busy: Option<String>,
    /// Higher first, within a pool
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Who pays; turns of one tenant share its weight and limit
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// Per-turn option, as the pool allows: model=…, max_turns=…
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// File for the agent's working directory, under its own name or as PATH there; may be repeated
    #[arg(long = "attach", value_name = "FILE[=PATH]")]
    attachments: Vec<String>,
    /// Stay and show the answer while it comes
    #[arg(long, short)]
    watch: bool,
    /// Print the receipt as JSON
    #[arg(long)]
    json: bool,
}

impl EnqueueArgs {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let prompt = if self.prompt == "-" { std::io::read_to_string(std::io::stdin())? } else { self.prompt };
        let options = self.options.iter().map(|option| pair(option)).collect::<anyhow::Result<serde_json::Map<_, _>>>()?;
        let attachments = attach::attachments(&self.attachments)?;
        let store = store(config).await?;
        let receipt = store
            .enqueue(&Enqueue {
                prompt,
                project_id: self.fork.is_none().then_some(self.project),
                session_id: self.session,
                fork: self.fork,
                turn_id: self.id,
                idempotency_key: self.key,
                options: Some(options.into()),
                pool: self.pool,
                priority: self.priority,
                tenant_id: self.tenant,
                on_busy: self.on_busy,
                user_id: None,
                attachments: Some(attachments),
            })
            .await?;
        show_receipt(&receipt, self.json)?;
        match receipt.turn_id {
            Some(turn) if self.watch => watch::follow(&store, &turn, self.json).await,
            Some(_) => Ok(ExitCode::SUCCESS),
            None => Ok(ExitCode::FAILURE),
        }
    }
}

fn show_receipt(receipt: &Receipt, json: bool) -> anyhow::Result<()> {
    if json {
        anstream::println!("{}", paint::json(receipt)?);
        return Ok(());
    }
    let session = paint::line(&receipt.session_id);
    let Some(turn) = receipt.turn_id.as_deref().map(paint::line) else {
        anstream::println!("{}rejected{}  session {session} is busy; nothing was enqueued", paint::BAD, paint::OFF);
        return Ok(());
    };
    let what = match (receipt.disposition.as_str(), &receipt.waits_for, &receipt.status) {
        (_, _, Some(status)) if receipt.replayed => format!("again: it is {status} already"),
        // First of its session, but held up elsewhere.
        ("started", Some(_), _) => "queued".to_owned(),
        (what, ..) => what.to_owned(),
    };
    let ahead = if receipt.queue_position > 0 { format!(", {} before it", receipt.queue_position) } else { String::new() };
    let waits = receipt.waits_for.as_ref().map(|why| format!(", waits: {why}")).unwrap_or_default();
    anstream::println!("{}{turn}{}  {what}{ahead}{waits}, session {session}", paint::BOLD, paint::OFF);
    Ok(())
}

/// Enqueue an ended turn's message again.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The turn that has ended
    turn: String,
    /// Stay and show the answer while it comes
    #[arg(long, short)]
    watch: bool,
    /// Print the receipt as JSON
    #[arg(long)]
    json: bool,
}

impl RetryArgs {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        let receipt = store.retry(&self.turn).await?;
        show_receipt(&receipt, self.json)?;
        match receipt.turn_id {
            Some(turn) if self.watch => watch::follow(&store, &turn, self.json).await,
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Make a session that goes on from where another one is, or was.
#[derive(Debug, Args)]
pub struct Fork {
    /// The session
    session: String,
    /// After this turn of it; after the last that has ended without it
    #[arg(long, value_name = "TURN")]
    at: Option<String>,
    /// Id for the new session
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

impl Fork {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let made = store(config).await?.fork(&self.session, self.id.as_deref(), self.at.as_deref()).await?;
        anstream::println!("{}{}{}", paint::BOLD, paint::line(&made), paint::OFF);
        Ok(ExitCode::SUCCESS)
    }
}

fn pair(option: &str) -> anyhow::Result<(String, serde_json::Value)> {
    let (key, value) = option.split_once('=').ok_or_else(|| anyhow::anyhow!("--option takes KEY=VALUE, not {option:?}"))?;
    let value = match serde_json::from_str(value) {
        Ok(number @ serde_json::Value::Number(_)) => number,
        _ => value.into(),
    };
    Ok((key.to_owned(), value))
}

/// List the newest turns.
#[derive(Debug, Args)]
pub struct Turns {
    /// Only of this status
    #[arg(long, value_parser = ["pending", "in_progress", "completed", "failed", "cancelled"])]
    status: Option<String>,
    /// How many
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// A JSON line each
    #[arg(long)]
    json: bool,
}

impl Turns {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let turns = store(config).await?.turns(self.status.as_deref(), self.limit).await?;
        if self.json {
            for turn in &turns {
                anstream::println!("{}", paint::json(turn)?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<[String; 3]> = turns.iter().map(columns).collect();
        let width = |nth: usize| rows.iter().map(|row| row[nth].chars().count()).max().unwrap_or(0);
        let (ids, states, costs) = (width(0), width(1), width(2));
        for ([id, state, cost], turn) in rows.iter().zip(&turns) {
            anstream::println!(
                "{id:<ids$}  {}{state:<states$}{}  {cost:>costs$}  {}{}{}  {}",
                paint::status(&turn.status),
                paint::OFF,
                paint::DIM,
                paint::time(turn.created_at),
                paint::OFF,
                paint::short(&turn.prompt_start, 60),
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Id, status with its reason, cost.
fn columns(turn: &TurnRow) -> [String; 3] {
    let why = turn
        .waits_for
        .as_ref()
        .or(turn.error_code.as_ref())
        .filter(|why| **why != turn.status)
        .map(|why| format!(" {why}"))
        .unwrap_or_default();
    let cost = turn.cost_usd.map(|usd| format!("${usd:.4}")).unwrap_or_default();
    [paint::line(&turn.id), format!("{}{why}", turn.status), cost]
}

/// Cancel a turn.
#[derive(Debug, Args)]
pub struct Cancel {
    /// The turn
    turn: String,
    /// Why, for people
    #[arg(long)]
    reason: Option<String>,
}

impl Cancel {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let status = store(config).await?.cancel(&self.turn, self.reason.as_deref()).await?;
        anstream::println!("{}  {}{status}{}", paint::line(&self.turn), paint::status(&status), paint::OFF);
        Ok(ExitCode::SUCCESS)
    }
}
