//! One worker's time with one turn, from the claim to the settle, readable top to bottom.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use super::budget::{believed, over_budget};
use super::context;
use super::credentials;
use super::files;
use super::follow::Copier;
use super::journal::Copied;
use super::launch::launch;
use super::running::Cancel;
use super::secrets::Secrets;
use super::{Assignment, Worker, follow, network, startup, upkeep};
use crate::block::Block;
use crate::keys::Credentials;
use crate::sandbox::SandboxError;
use crate::store::{Claimed, Fenced, Hold, Kept, NextAttempt, Releasing, Retry, Settle, Taken, is_outage};
use crate::turn::{Ending, Fate, ForPool, Happened, Setbacks, StartupFailure, TurnError};

/// How long a released slot is left to its worker before anyone may kill the sandbox.
const RELEASE_HOLD: Duration = Duration::from_secs(30);

/// The same where the sandbox may or may not exist: to be looked for soon.
const SEARCH_HOLD: Duration = Duration::from_secs(2);

/// How much longer than it is kept a warm sandbox may live: a turn that takes it at the last moment finds it there.
const WARM_SLACK: Duration = Duration::from_secs(60);

/// How long keeping a journal may take.
const JOURNAL: Duration = Duration::from_secs(5);

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
    let mut held = Held { sandbox_id: assignment.job.sandbox_id.clone(), may_exist: true, idle: false };
    let mut secrets = Secrets::new(worker, []);
    let mut pause = Duration::ZERO;
    loop {
        let since = Instant::now();
        let job = &assignment.job;
        let mut copier = Copier::new(worker, job);
        let happened = Box::pin(run_agent(worker, job, pause, &mut copier, &mut assignment.cancel, &mut held, &mut secrets)).await?;
        let asked = assignment.cancel.borrow().clone();
        let happened = match (happened, asked) {
            // It would start over only to be cancelled, and hide what was said.
            (Happened::SandboxLost(_), Some(reason)) => Happened::Cancelled { reason },
            (happened, _) => happened,
        };
        if copier.exit().is_none() && !held.idle {
            make_sure_it_is_over(worker, &held, job.sandbox_timeout).await;
        }
        let before = Setbacks { startups: count(job.failures), agents: count(job.agent_failures), sandboxes: count(job.sandboxes_lost) };
        let fate = worker.config.retry.decide(&happened, before, rand::random());
        let fate = match over_budget(job, copier.outcome_of(&happened).and_then(|outcome| outcome.spent.cost_usd())) {
            Some(over) if !matches!(fate, Fate::End { .. }) => worker.config.retry.decide(&over, before, 0.0),
            _ => fate,
        }
        .masked(&secrets.in_errors);
        let kept = match fate {
            Fate::End { ending, error } => end(worker, job, &copier, &happened, ending, error, &held).await?,
            Fate::RetryLater { delay, charged, restart, for_pool, why } => {
                tell_pool(worker, &job.pool, for_pool, &why).await?;
                // One that was kept for the session and could not be woken yet is worth another try.
                let keep = held.idle && !matches!(happened, Happened::StartupFailed(StartupFailure::NotKept(_)));
                let spent = believed(job, copier.outcome_of(&happened).map(|outcome| outcome.spent));
                let retry = Retry { delay, charged, restart, keep, spent, why: &why };
                persist(|| worker.store.retry_later(job, &retry, held.hold())).await?;
                worker.news.of(&job.turn_id);
                warn!(turn.id = %job.turn_id, error.code = %why.code, failures = job.failures, delay_ms = delay.as_millis(), "Turn {} is tried again in {delay:?}: {}", job.turn_id, why.message);
                if keep { Kept::Pausing } else { Kept::Releasing }
            }
            Fate::NextAttempt { delay, resumes, forgets, why } => {
                let epoch = persist_free(|| worker.store.next_epoch()).await?;
                let spent = believed(job, copier.outcome_of(&happened).map(|outcome| outcome.spent));
                let next = NextAttempt {
                    epoch,
                    journal_offset: copier.committed(),
                    blocks: &copier.dangling("the agent failed before this call returned"),
                    resumes,
                    forgets,
                    spent: spent.as_ref(),
                    why: &why,
                };
                let listed = worker.running.enter_again(&assignment.listed, epoch);
                let next_seq = persist(|| worker.store.next_attempt(job, &next)).await?;
                warn!(turn.id = %job.turn_id, error.code = %why.code, delay_ms = delay.as_millis(), "Turn {}: {}, in {delay:?}", job.turn_id, why.message);
                assignment.listed = listed;
                assignment.job.go_on(&next, next_seq, held.sandbox_id.clone(), since.elapsed());
                pause = delay;
                continue;
            }
        };
        match kept {
            // Whoever has the session's next turn takes it from there.
            Kept::Warm => worker.wake.notify_one(),
            Kept::Pausing => upkeep::release(worker, &Releasing { pause: true, ..held.releasing(job) }).await,
            Kept::Releasing => upkeep::release(worker, &held.releasing(job)).await,
        }
        return Ok(());
    }
}

/// Whatever comes next, the session's next turn or this one anew: it must not run beside an agent that nobody has seen
/// end. Not for ever: a sandbox that is not extended ends by itself.
async fn make_sure_it_is_over(worker: &Worker, held: &Held, at_most: Duration) {
    let Some(id) = held.sandbox_id.as_deref() else { return };
    let since = Instant::now();
    while !upkeep::kill(worker, id).await && since.elapsed() < at_most {
        sleep(Duration::from_secs(1)).await;
    }
}

/// One start of the agent and all that it says; or why there was none.
async fn run_agent(
    worker: &Worker,
    job: &Claimed,
    pause: Duration,
    copier: &mut Copier<'_>,
    cancel: &mut watch::Receiver<Cancel>,
    held: &mut Held,
    secrets: &mut Secrets,
) -> Result<Happened, LetGo> {
    if let Some(crashes) = u32::try_from(job.crashes).ok().filter(|crashes| *crashes >= worker.config.retry.crashes_max) {
        return Ok(Happened::Poisoned(crashes));
    }
    // Who adopts a turn whose agent may run already takes it to its end.
    if let Some(over) = over_budget(job, None).filter(|_| job.taken == Taken::Claimed) {
        return Ok(over);
    }
    let past = persist_free(|| worker.store.past(job)).await?;
    if job.unseen && !context::is_as_left(job, &past) {
        let text = "the sandbox that was kept for the session holds another state than this turn begins from".to_owned();
        return Ok(Happened::StartupFailed(StartupFailure::NotKept(TurnError::new("sandbox_not_kept", text))));
    }
    held.idle = job.unseen && job.sandbox_id.is_some();
    let cancelled = |reason| Ok(Happened::Cancelled { reason });
    if !pause.is_zero() {
        // Between two attempts no agent runs.
        tokio::select! {
            () = sleep(pause) => {}
            reason = follow::cancelled(cancel) => return cancelled(reason),
        }
    }
    let mut key = Credentials::default();
    if job.unseen {
        // Before a sandbox is made for nothing, or a kept one taken.
        key = match credentials::find(worker, job).await? {
            Ok(key) => key,
            Err(happened) => {
                held.may_exist = job.taken == Taken::Adopted || job.sandbox_id.is_some();
                return Ok(happened);
            }
        };
    }
    // In a sandbox from before an agent may run: it must be stopped, not left alone.
    let ready = if job.sandbox_id.is_some() {
        startup::ready(worker, job, held).await?
    } else {
        tokio::select! {
            ready = startup::ready(worker, job, held) => ready?,
            reason = follow::cancelled(cancel) => return cancelled(reason),
        }
    };
    let sandbox = match ready {
        Ok(sandbox) => sandbox,
        Err(happened) => return Ok(happened),
    };
    let asked = cancel.borrow().clone();
    if let Some(reason) = asked
        && startup::never_started(worker, &sandbox).await?
    {
        held.idle = true;
        return cancelled(reason);
    }
    if !job.unseen {
        key = if startup::never_started(worker, &sandbox).await? {
            match credentials::find(worker, job).await? {
                Ok(key) => key,
                Err(happened) => return Ok(happened),
            }
        } else {
            // It has what it was started with, and waits for nobody who could give it another.
            credentials::at_hand(worker, job).await?
        };
    }
    let key = credentials::given_before(worker, job).await?.and(worker, job, key).await?;
    *secrets = Secrets::new(worker, key.secrets());
    copier.hide(secrets.said.clone());
    let (memory, forgotten) = context::recall(worker, job, past).await?;
    let luggage = files::gather(worker, job, &sandbox).await?;
    context::tell(worker, job, &[("conversation", forgotten.as_deref()), ("files", luggage.lost.as_deref())]).await?;
    held.idle = false;
    let rules = luggage.rules.clone();
    let start = launch(worker, job, &key, &memory, &luggage);
    // They may be large, and the turn may be long.
    drop((memory, luggage));
    if let Some(happened) = network::limit(worker, job, &sandbox, &key, &start).await? {
        return Ok(happened);
    }
    let started = startup::start(worker, job, &sandbox, &start).await?;
    drop(start);
    let probe = match started {
        Ok(probe) => probe,
        Err(happened) => return Ok(happened),
    };
    persist(|| worker.store.agent_started(job)).await?;
    let happened = follow::to_the_end(worker, &sandbox, copier, cancel, probe).await?;
    if let Some(journal) = copier.journal() {
        keep_journal(worker, job, &journal).await?;
    }
    if let Some(exit) = copier.exit() {
        context::keep(worker, &sandbox, job, exit, &secrets.said).await?;
        files::keep(worker, &sandbox, job, &rules, exit).await?;
    }
    Ok(happened)
}

/// For whoever wants to look closer, and nothing that a turn's end may wait for: one try.
async fn keep_journal(worker: &Worker, job: &Claimed, journal: &Copied) -> Result<(), LetGo> {
    let bytes = i64::try_from(journal.bytes).unwrap_or(i64::MAX);
    let saving = worker.store.save_journal(job, &journal.data, bytes, journal.whole);
    match timeout(JOURNAL, saving).await {
        Ok(Ok(saved)) => saved?,
        Ok(Err(error)) => warn!(turn.id = %job.turn_id, %error, "The journal of turn {} is not kept: {error}", job.turn_id),
        Err(_) => warn!(turn.id = %job.turn_id, "The journal of turn {} is not kept: that took longer than {JOURNAL:?}", job.turn_id),
    }
    Ok(())
}

/// What one turn has run into concerns all turns of its pool.
async fn tell_pool(worker: &Worker, pool: &str, what: ForPool, why: &TurnError) -> Result<(), LetGo> {
    let hold = match what {
        ForPool::Nothing => return Ok(()),
        ForPool::Blocked => {
            warn!(pool, "Pool {pool} is blocked: {}", why.message);
            return persist_free(|| worker.store.block_pool(pool, &why.message)).await;
        }
        ForPool::RateLimited(wait) => Hold::Rate(wait),
        ForPool::AtCapacity(cap) => Hold::Capacity { account_cap: cap.and_then(|cap| i32::try_from(cap).ok()) },
    };
    let pause = persist_free(|| worker.store.hold_creates(pool, hold, rand::random())).await?;
    warn!(pool, error.code = %why.code, "Nothing is created in pool {pool} for {pause:?}: {}", why.message);
    Ok(())
}

/// What is known of the sandbox that the slot holds.
#[derive(Debug)]
pub(super) struct Held {
    /// Its id, once E2B has said it.
    pub sandbox_id: Option<String>,
    /// Whether one may live: `false` only after a definite refusal.
    pub may_exist: bool,
    /// No agent runs in it: this turn's was not started, that of the turn before has ended.
    pub idle: bool,
}

impl Held {
    fn hold(&self) -> Duration {
        if self.sandbox_id.is_some() { RELEASE_HOLD } else { SEARCH_HOLD }
    }

    fn releasing(&self, job: &Claimed) -> Releasing {
        Releasing {
            slot_id: job.slot_id,
            epoch: job.epoch,
            sandbox_id: self.sandbox_id.clone(),
            nonce: job.nonce.clone(),
            since_asked: self.may_exist.then_some(Duration::ZERO),
            pause: false,
        }
    }
}

async fn end(
    worker: &Worker,
    job: &Claimed,
    copier: &Copier<'_>,
    happened: &Happened,
    ending: Ending,
    error: Option<TurnError>,
    held: &Held,
) -> Result<Kept, LetGo> {
    let keep = keeps(worker, job, copier, happened, held).await;
    let settle = Settle {
        ending,
        blocks: last_blocks(worker, copier, ending, error.as_ref()).await?,
        journal_offset: copier.committed(),
        spent: believed(job, copier.outcome_of(happened).map(|outcome| outcome.spent)),
        error,
        keep,
    };
    let kept = persist(|| worker.store.settle(job, &settle, held.hold())).await?;
    worker.news.of(&job.turn_id);
    worker.turn_ended.notify_one();
    let code = settle.error.as_ref().map_or("", |e| &e.code);
    info!(turn.id = %job.turn_id, turn.status = ending.as_str(), error.code = code, "Turn {} {} {code}", job.turn_id, ending.as_str());
    Ok(kept)
}

/// Whether the sandbox can serve the session's next turn, if the pool wants that; it then lives for long enough. In one whose
/// agent never ran the project's files may be missing.
async fn keeps(worker: &Worker, job: &Claimed, copier: &Copier<'_>, happened: &Happened, held: &Held) -> bool {
    let over = matches!(
        happened,
        Happened::AgentEnded(_) | Happened::Cancelled { .. } | Happened::TimedOut | Happened::Idle(_) | Happened::BudgetSpent { .. }
    );
    let Some(id) = held.sandbox_id.as_deref().filter(|_| over && (held.idle || copier.exit().is_some_and(|exit| exit.ran))) else {
        return false;
    };
    if job.warm.is_zero() {
        return true;
    }
    // Never shorter than it has now: whoever adopts the turn should this worker end before the settle needs it.
    match worker.e2b.set_timeout(id, job.sandbox_timeout.max(job.warm + WARM_SLACK)).await {
        Ok(lives) => lives,
        // As long as it lives anyway: who takes it up finds out.
        Err(error) => {
            debug!(sandbox.id = id, %error, "Sandbox {id} could not be extended");
            true
        }
    }
}

/// What no journal line said: the end of calls that never ended, and the error, for clients that watch blocks only.
/// Who adopts a turn that is to end may never get to read its journal: then by the blocks.
async fn last_blocks(worker: &Worker, copier: &Copier<'_>, ending: Ending, error: Option<&TurnError>) -> Result<Vec<Block>, LetGo> {
    let why = match ending {
        Ending::Completed => return Ok(Vec::new()),
        Ending::Failed => "the turn failed before this call returned",
        Ending::Cancelled => "the turn was cancelled before this call returned",
    };
    let mut blocks = if copier.has_caught_up() {
        copier.dangling(why)
    } else {
        let open = persist_free(|| worker.store.open_calls(copier.job)).await?;
        open.into_iter().map(|(id, parent)| Block::lost_call(&id, parent, why)).collect()
    };
    if let (Ending::Failed, Some(error)) = (ending, error) {
        blocks.push(Block::error(&error.code, &error.message));
    }
    Ok(blocks)
}

/// Repeats a fenced write for as long as the database is away. Who holds no lease any more is dropped from
/// outside, so this needs no limit of its own.
pub(super) async fn persist<T, F>(write: impl Fn() -> F) -> Result<T, LetGo>
where
    F: Future<Output = sqlx::Result<Result<T, Fenced>>>,
{
    Ok(persist_free(write).await??)
}

pub(super) async fn persist_free<T, F>(write: impl Fn() -> F) -> Result<T, LetGo>
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
