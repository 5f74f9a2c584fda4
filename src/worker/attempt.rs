//! One worker's time with one turn, from the claim to the settle, readable top to bottom.

use std::collections::BTreeMap;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use serde_json::json;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use super::follow::Copier;
use super::{Assignment, Worker, follow, startup, upkeep};
use crate::block::Block;
use crate::sandbox::{Launch, SandboxError};
use crate::store::{Claimed, Fenced, Releasing, Retry, Settle, is_outage};
use crate::turn::{Ending, Fate, Happened, TurnError};

/// How long a released slot is left to its worker before anyone may kill the sandbox.
const RELEASE_HOLD: Duration = Duration::from_secs(30);

/// The same where the sandbox may or may not exist: to be looked for soon.
const SEARCH_HOLD: Duration = Duration::from_secs(2);

/// Why a worker lets go of a turn without settling it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LetGo {
    #[error(transparent)]
    Fenced(#[from] Fenced),
    #[error("the database refuses a statement: {0}")]
    Broken(sqlx::Error),
}

/// Runs one attempt; ends early, touching nothing, when the process loses its lease or stops.
pub(super) async fn run(worker: &Worker, mut assignment: Assignment) {
    let (turn, epoch) = (assignment.job.turn_id.clone(), assignment.job.epoch);
    let span = info_span!("turn.attempt", turn.id = %turn, turn.epoch = epoch, turn.attempt = assignment.job.attempt);
    let era = assignment.era.clone();
    match era.run_until_cancelled(attempt(worker, &mut assignment).instrument(span)).await {
        Some(Ok(())) => {}
        Some(Err(LetGo::Fenced(_))) => info!(turn.id = %turn, turn.epoch = epoch, "Turn {turn} is another worker's now"),
        Some(Err(LetGo::Broken(fault))) => {
            error!(turn.id = %turn, error = %fault, "Turn {turn} is handed over: the database refuses a statement");
            drop(worker.store.hand_over(&assignment.job).await);
        }
        None => debug!(turn.id = %turn, turn.epoch = epoch, "Turn {turn} is let go of; its agent runs on"),
    }
}

async fn attempt(worker: &Worker, assignment: &mut Assignment) -> Result<(), LetGo> {
    let job = &assignment.job;
    let mut copier = Copier::new(worker, job);
    let mut held = Held { sandbox_id: job.sandbox_id.clone(), may_exist: true };

    let ready = tokio::select! {
        ready = startup::ready(worker, job, &mut held) => ready?,
        reason = follow::cancelled(&mut assignment.cancel) => Err(Happened::Cancelled { reason }),
    };
    let happened = match ready {
        Err(happened) => happened,
        Ok(sandbox) => match startup::start(worker, job, &sandbox, &launch(worker, job)).await? {
            Err(happened) => happened,
            Ok(probe) => {
                persist(|| worker.store.agent_started(job)).await?;
                follow::to_the_end(worker, &sandbox, &mut copier, &mut assignment.cancel, probe).await?
            }
        },
    };

    let fate = worker.config.retry.decide(&happened, count(job.failures), count(job.sandboxes_lost), rand::random());
    settle(worker, job, &copier, &happened, fate, &held).await?;
    upkeep::release(worker, &held.releasing(job)).await;
    Ok(())
}

/// What is known of the sandbox that the slot holds.
#[derive(Debug)]
pub(super) struct Held {
    /// Its id, once E2B has said it.
    pub sandbox_id: Option<String>,
    /// Whether one may live: `false` only after a definite refusal.
    pub may_exist: bool,
}

impl Held {
    fn releasing(&self, job: &Claimed) -> Releasing {
        Releasing {
            slot_id: job.slot_id,
            epoch: job.epoch,
            sandbox_id: self.sandbox_id.clone(),
            nonce: job.nonce.clone(),
            since_asked: self.may_exist.then_some(Duration::ZERO),
        }
    }
}

async fn settle(worker: &Worker, job: &Claimed, copier: &Copier<'_>, happened: &Happened, fate: Fate, held: &Held) -> Result<(), LetGo> {
    let hold = if held.sandbox_id.is_some() { RELEASE_HOLD } else { SEARCH_HOLD };
    match fate {
        Fate::End { ending, error } => {
            let outcome = copier.outcome_of(happened);
            let settle = Settle {
                ending,
                blocks: last_blocks(copier, ending, error.as_ref()),
                journal_offset: copier.committed(),
                usage: outcome.as_ref().and_then(|o| o.usage.clone()),
                cost_usd: outcome.as_ref().and_then(|o| o.cost_usd),
                error,
            };
            persist(|| worker.store.settle(job, &settle, hold)).await?;
            let code = settle.error.as_ref().map_or("", |e| &e.code);
            info!(turn.id = %job.turn_id, turn.status = ending.as_str(), error.code = code, "Turn {} {} {code}", job.turn_id, ending.as_str());
        }
        Fate::RetryLater { delay, charged, restart, blocks_pool, why } => {
            if blocks_pool {
                warn!(pool = %job.pool, "Pool {} is blocked: {}", job.pool, why.message);
                persist_free(|| worker.store.block_pool(&job.pool, &why.message)).await?;
            }
            let retry = Retry { delay, charged, restart, why: &why };
            persist(|| worker.store.retry_later(job, &retry, hold)).await?;
            warn!(turn.id = %job.turn_id, error.code = %why.code, failures = job.failures, delay_ms = delay.as_millis(), "Turn {} is tried again in {delay:?}: {}", job.turn_id, why.message);
        }
    }
    Ok(())
}

/// What no journal line said: the end of calls that never ended, and the error, for clients that watch blocks only.
fn last_blocks(copier: &Copier<'_>, ending: Ending, error: Option<&TurnError>) -> Vec<Block> {
    let mut blocks = match ending {
        Ending::Completed => Vec::new(),
        Ending::Failed => copier.dangling("the turn failed before this call returned"),
        Ending::Cancelled => copier.dangling("the turn was cancelled before this call returned"),
    };
    if let (Ending::Failed, Some(error)) = (ending, error) {
        blocks.push(Block::error(&error.code, &error.message));
    }
    blocks
}

/// The agent's command line, environment and input. The prompt is in the input only.
fn launch(worker: &Worker, job: &Claimed) -> Launch {
    let mut command: Vec<String> = job.agent.iter().map(|word| word.replace("{session}", &job.agent_session_id)).collect();
    for (key, value) in job.options.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        command.push(format!("--{}={value}", key.replace('_', "-")));
    }
    let mut environment: BTreeMap<String, String> = job
        .agent_env
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    environment.insert("PROJECT_ID".to_owned(), job.project_id.clone());
    worker.credentials.add_to(&mut environment);
    let input = json!({
        "type": "user",
        "uuid": job.message_uuid,
        "message": { "role": "user", "content": [{ "type": "text", "text": job.prompt }] },
        "parent_tool_use_id": null,
        // Literal text: a slash command or @path in it is not interpreted.
        "client_composed": true,
    });
    Launch {
        command,
        environment,
        input: input.to_string(),
        workdir: job.workdir.clone(),
        journal_max_bytes: worker.config.worker.journal_max_bytes,
    }
}

/// Repeats a fenced write for as long as the database is away. Who holds no lease any more is dropped from
/// outside, so this needs no limit of its own.
pub(super) async fn persist<F>(write: impl Fn() -> F) -> Result<(), LetGo>
where
    F: Future<Output = sqlx::Result<Result<(), Fenced>>>,
{
    Ok(persist_free(write).await??)
}

async fn persist_free<T, F>(write: impl Fn() -> F) -> Result<T, LetGo>
where
    F: Future<Output = sqlx::Result<T>>,
{
    write
        .retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_delay(Duration::from_secs(1))
                .with_jitter()
                .without_max_times(),
        )
        .when(is_outage)
        .notify(|fault, pause| warn!(error = %fault, "The database is away; trying again in {pause:?}"))
        .await
        .map_err(LetGo::Broken)
}

/// In a sandbox's own words: fenced there means fenced.
pub(super) fn unless_fenced<T>(result: Result<T, SandboxError>) -> Result<Result<T, SandboxError>, LetGo> {
    match result {
        Err(SandboxError::Fenced) => Err(LetGo::Fenced(Fenced)),
        other => Ok(other),
    }
}

fn count(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}
