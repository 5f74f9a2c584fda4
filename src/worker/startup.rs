//! A sandbox for the turn, and the agent in it. Every step may be done again by whoever adopts the turn:
//! the create has a nonce, the supervisor starts an attempt once.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::Worker;
use super::attempt::{Held, LetGo, persist, unless_fenced};
use crate::e2b::{self, ApiError, ApiVersion, CreateError};
use crate::sandbox::{AgentState, Launch, Probe, Sandbox, SandboxError};
use crate::store::{Claimed, Taken};
use crate::turn::{Happened, StartupFailure, TurnError};

/// Tries of one create within one claim; further ones come from the queue, with its backoff.
const CREATE_TRIES: usize = 3;

/// The first envd with access tokens and `stdin: false`.
const ENVD_MIN: (u32, u32) = (0, 3);

/// A running sandbox with the supervisor in it.
pub(super) async fn ready(worker: &Worker, job: &Claimed, held: &mut Held) -> Result<Result<Sandbox, Happened>, LetGo> {
    let found = match &job.sandbox_id {
        Some(id) => find(worker, job, id).await,
        None => create(worker, job, held).await?,
    };
    let sandbox = match found {
        // The turn's id is its caller's and may hold anything; the message's is as good, and safe in a path.
        Ok(sandbox) => Sandbox::new(&worker.e2b, &sandbox, &job.message_uuid, job.epoch, job.attempt, worker.config.worker.call_deadline),
        Err(happened) => return Ok(Err(happened)),
    };
    held.sandbox_id = Some(sandbox.id().to_owned());
    persist(|| worker.store.sandbox_ready(job, sandbox.id())).await?;
    // An adopted sandbox may have an agent in it: that is worth more patience than one without.
    let patience = if job.unseen { worker.config.worker.ready_deadline } else { worker.config.worker.silence_max };
    match insist(&sandbox, patience, || sandbox.install()).await? {
        Ok(()) => Ok(Ok(sandbox)),
        Err(error) => Ok(Err(not_ready(job, sandbox.envd_version(), &error))),
    }
}

/// The agent of this attempt runs, or has run: starts it unless somebody has.
pub(super) async fn start(worker: &Worker, job: &Claimed, sandbox: &Sandbox, launch: &Launch) -> Result<Result<Probe, Happened>, LetGo> {
    // Asked once, it may have started: that is worth as much patience as an agent that runs.
    Ok(match insist(sandbox, worker.config.worker.silence_max, || sandbox.start(launch)).await? {
        // Started once, and now nobody watches it: what it did can't be known, so its sandbox goes.
        Ok(probe) if probe.state == AgentState::Lost => Err(Happened::SandboxLost("the agent's supervisor was killed".to_owned())),
        Ok(probe) => Ok(probe),
        // It was asked to start and may have: the attempt is lost, not just its start-up.
        Err(error @ (SandboxError::Gone | SandboxError::Unreachable(_))) => Err(Happened::SandboxLost(error.to_string())),
        Err(error) => Err(not_ready(job, sandbox.envd_version(), &error)),
    })
}

/// Whether nobody has started the agent of this attempt yet.
pub(super) async fn never_started(worker: &Worker, sandbox: &Sandbox) -> Result<bool, LetGo> {
    Ok(look(worker, sandbox).await?.is_some_and(|probe| probe.state == AgentState::None))
}

/// What the supervisor says of this attempt; `None`: it does not answer.
pub(super) async fn look(worker: &Worker, sandbox: &Sandbox) -> Result<Option<Probe>, LetGo> {
    Ok(insist(sandbox, worker.config.worker.call_deadline, || sandbox.probe()).await?.ok())
}

async fn create(worker: &Worker, job: &Claimed, held: &mut Held) -> Result<Result<e2b::Sandbox, Happened>, LetGo> {
    let version = worker.config.e2b.api_version(job.api_version.as_deref());
    // v1 has no key that would make a second call harmless: what may have been made is looked for and killed.
    if version == ApiVersion::V1 && job.taken == Taken::Adopted {
        let text = "the worker before was lost while it created the sandbox".to_owned();
        return Ok(Err(Happened::StartupFailed(StartupFailure::Retry(TurnError::new("sandbox_start_failed", text)))));
    }
    let mut pauses =
        ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_jitter().with_max_times(CREATE_TRIES - 1).build();
    // An earlier create under this nonce may have made a sandbox, whatever the next ones are answered.
    let mut unsure = job.taken == Taken::Adopted;
    loop {
        // On disk before the call: from here on a sandbox may exist.
        persist(|| worker.store.create_asked(job)).await?;
        held.may_exist = true;
        let error = match worker.e2b.create(version, &job.nonce, &job.create_request, worker.config.worker.create_deadline).await {
            Ok(sandbox) => return Ok(Ok(sandbox)),
            Err(error) => error,
        };
        unsure |= matches!(error, CreateError::Unknown(_));
        held.may_exist = unsure;
        let again = match error {
            CreateError::Retry(_) => true,
            CreateError::Unknown(_) => version == ApiVersion::V2,
            _ => false,
        };
        match pauses.next().filter(|_| again) {
            Some(pause) => {
                debug!(turn.id = %job.turn_id, %error, "No sandbox for turn {} yet; asking again in {pause:?}", job.turn_id);
                sleep(pause).await;
            }
            None => return Ok(Err(Happened::StartupFailed(failure(error)))),
        }
    }
}

fn failure(error: CreateError) -> StartupFailure {
    let said = |refusal: e2b::Refusal| TurnError::new(refusal.code, refusal.text);
    match error {
        CreateError::Retry(why) | CreateError::Unknown(why) => StartupFailure::Retry(said(why)),
        CreateError::RetryAfter(wait, why) => StartupFailure::RateLimited(wait, said(why)),
        CreateError::AtCapacity { cap, cause } => StartupFailure::AtCapacity(cap, said(cause)),
        CreateError::Blocked(why) => StartupFailure::Blocked(said(why)),
        CreateError::Config(why) => StartupFailure::Config(said(why)),
    }
}

/// A sandbox from before: an adopted turn's, or the one that was kept for the session, which may be paused.
async fn find(worker: &Worker, job: &Claimed, id: &str) -> Result<e2b::Sandbox, Happened> {
    let since = Instant::now();
    loop {
        let error = match worker.e2b.get(id).await {
            Ok(Some(info)) if info.state == "paused" => match wake(worker, job, id).await {
                Ok(Some(sandbox)) => return Ok(sandbox),
                Ok(None) => return Err(lost(job, "E2B does not know it any more")),
                Err(ApiError::RetryAfter(wait, text)) if job.unseen => {
                    let why = TurnError::new("sandbox_rate_limited", text);
                    return Err(Happened::StartupFailed(StartupFailure::RateLimited(wait, why)));
                }
                Err(error) => error,
            },
            Ok(Some(info)) => return Ok(info.sandbox),
            Ok(None) => return Err(lost(job, "E2B does not know it any more")),
            Err(error) => error,
        };
        if since.elapsed() >= worker.config.worker.silence_max {
            return Err(lost(job, &format!("E2B can't be asked for it: {error}")));
        }
        warn!(sandbox.id = id, %error, "E2B can't be asked for sandbox {id}; trying on");
        sleep(Duration::from_millis(500)).await;
    }
}

/// Lets a paused sandbox run again: its slot is held.
async fn wake(worker: &Worker, job: &Claimed, id: &str) -> Result<Option<e2b::Sandbox>, ApiError> {
    worker.e2b.connect(worker.config.e2b.api_version(job.api_version.as_deref()), id, job.sandbox_timeout).await
}

/// What it means that a sandbox from before is gone: for a turn that has not begun in it, that it needs another.
fn lost(job: &Claimed, why: &str) -> Happened {
    if job.unseen {
        let text = format!("the sandbox that was kept for the session is gone: {why}");
        return Happened::StartupFailed(StartupFailure::NotKept(TurnError::new("sandbox_not_kept", text)));
    }
    Happened::SandboxLost(why.to_owned())
}

/// Repeats an act until the sandbox answers, for as long as it may be worth it.
pub(super) async fn insist<T, F>(sandbox: &Sandbox, patience: Duration, act: impl Fn() -> F) -> Result<Result<T, SandboxError>, LetGo>
where
    F: Future<Output = Result<T, SandboxError>>,
{
    let since = Instant::now();
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .without_max_times()
        .build();
    loop {
        match unless_fenced(act().await)? {
            // A proxy that does not know it yet, or any more, says the same: the control plane decides.
            Err(SandboxError::Gone) if since.elapsed() < patience && !matches!(sandbox.exists().await, Ok(false)) => {}
            Err(SandboxError::Unreachable(_)) if since.elapsed() < patience => {}
            done => return Ok(done),
        }
        sleep(pauses.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

/// What a sandbox that can't be used means for the turn.
fn not_ready(job: &Claimed, envd: Option<&str>, error: &SandboxError) -> Happened {
    let config = |code, text| Happened::StartupFailed(StartupFailure::Config(TurnError::new(code, text)));
    match error {
        // The session's kept sandbox; a new one may do.
        _ if job.unseen && job.sandbox_id.is_some() => lost(job, &error.to_string()),
        SandboxError::DiskFull(_) => config("sandbox_disk_full", format!("{error}; give the template more disk, or the project less")),
        SandboxError::Unfit(_) => config("template_unfit", format!("{error}; build it anew: e2b/README.md")),
        SandboxError::Refused(_) if envd.is_some_and(is_old) => {
            let text =
                format!("envd {} in the template is older than {ENVD_MIN:?}: build the template anew; {error}", envd.unwrap_or_default());
            config("envd_too_old", text)
        }
        // With a sandbox from before, an agent may have run in it: the attempt is lost, not just its start-up.
        _ if job.sandbox_id.is_some() => lost(job, &error.to_string()),
        _ => Happened::StartupFailed(StartupFailure::Retry(TurnError::new("sandbox_start_failed", error.to_string()))),
    }
}

/// Says so only where something failed: servers of others call whatever they have 0.1.0.
fn is_old(envd: &str) -> bool {
    let mut parts = envd.split('.').map_while(|part| part.parse::<u32>().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < ENVD_MIN
}
