//! Follows one agent's journal to its end: bytes → whole lines → blocks → the writer.
//!
//! Where it stands is the number of journal bytes whose blocks are committed, and nothing else. A cut stream,
//! another worker or another day resumes from that byte. The parser's state is a fold over the journal from
//! byte 0, so a resuming worker first feeds it what was committed before, and discards the blocks.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::Worker;
use super::attempt::{LetGo, unless_fenced};
use super::journal;
use super::lines::{Line, Lines};
use super::previews::Seat;
use super::pulse::{Leeway, Pulse};
use super::running::Cancel;
use super::silence::Silence;
use crate::agent::{Exit, Fold, Outcome};
use crate::block::Block;
use crate::keys::Mask;
use crate::sandbox::{AgentExit, AgentState, Probe, Sandbox, SandboxError, Signal};
use crate::store::{Append, Claimed, Fenced};
use crate::turn::Happened;

/// Journal bytes that may wait for the writer before the journal is read no further.
const WAITING_MAX: u64 = 4 << 20;

/// Journal bytes without a block that are committed with the next block; who adopts the turn reads them again. An agent
/// that prints its words one by one must not cost a commit for each.
const IDLE_MAX: u64 = 64 << 10;

/// Bytes of one ranged read.
const CHUNK: u64 = 4 << 20;

/// What listing and unpacking in e2b/files may take before the agent starts.
const FILES: Duration = Duration::from_secs(300);

/// Pause before the journal is followed again, where it gave nothing.
const REFOLLOW: Duration = Duration::from_millis(200);

/// Follows the agent until it has ended and everything it said is committed. Stops it when the turn is
/// cancelled or its time is over; keeps the sandbox alive meanwhile.
pub(super) async fn to_the_end(
    worker: &Worker,
    sandbox: &Sandbox,
    copier: &mut Copier<'_>,
    cancel: &mut watch::Receiver<Cancel>,
    probe: Probe,
) -> Result<Happened, LetGo> {
    let job = copier.job;
    let pulse = copier.pulse.clone();
    // Until its first word the project's files come in.
    pulse.beat(Leeway::More(FILES + Duration::from_secs(u64::try_from(job.hooks.prepare_timeout_s).unwrap_or(0))));
    let stopped: OnceLock<Happened> = OnceLock::new();
    let ended = tokio::select! {
        ended = copier.copy(sandbox, probe) => Some(ended?),
        () = stop_when_asked(worker, sandbox, job, &pulse, cancel, &stopped) => None,
        () = keep_alive(sandbox, job.sandbox_timeout) => None,
    };
    copier.flush().await?;
    Ok(match (ended, stopped.into_inner()) {
        (Some(Happened::AgentEnded(outcome)), Some(why)) if !outcome.completed() => why,
        (Some(happened @ Happened::AgentEnded(_)), _) => happened,
        (None, Some(Happened::Idle(_))) => Happened::SandboxLost("the agent had fallen silent and could not be stopped".to_owned()),
        (_, Some(why)) => why,
        (Some(happened), None) => happened,
        (None, None) => Happened::SandboxLost("it was followed no further".to_owned()),
    })
}

/// Resolves with the reason when somebody cancels the turn.
pub(super) async fn cancelled(cancel: &mut watch::Receiver<Cancel>) -> Option<String> {
    let asked = cancel.wait_for(Option::is_some).await.map(|asked| asked.clone().flatten());
    match asked {
        Ok(reason) => reason,
        Err(_) => std::future::pending().await,
    }
}

/// Waits for a cancel, the end of the turn's time or too long a silence, then climbs the ladder. Returns only when even SIGKILL
/// brought no end.
async fn stop_when_asked(
    worker: &Worker,
    sandbox: &Sandbox,
    job: &Claimed,
    pulse: &Pulse,
    cancel: &mut watch::Receiver<Cancel>,
    stopped: &OnceLock<Happened>,
) {
    let why = tokio::select! {
        reason = cancelled(cancel) => Happened::Cancelled { reason },
        () = sleep(job.time_left) => Happened::TimedOut,
        () = pulse.quiet_for(job.idle_timeout) => Happened::Idle(job.idle_timeout),
    };
    info!(sandbox.id = sandbox.id(), "Stopping the agent in sandbox {}: {why:?}", sandbox.id());
    drop(stopped.set(why));
    for signal in [Signal::Int, Signal::Term, Signal::Kill] {
        if let Err(error) = sandbox.signal(signal).await {
            warn!(sandbox.id = sandbox.id(), %error, "{signal:?} did not reach the agent in sandbox {}", sandbox.id());
        }
        sleep(worker.config.worker.stop_grace).await;
    }
}

/// Extends the sandbox's deadline while it is followed; never returns. When the whole fleet dies, the sandbox
/// ends soon after.
async fn keep_alive(sandbox: &Sandbox, timeout: Duration) {
    loop {
        let pause = match sandbox.extend(timeout).await {
            Ok(()) => timeout / 2,
            // Whoever follows the journal finds out what that means.
            Err(error) => {
                debug!(sandbox.id = sandbox.id(), %error, "Sandbox {} could not be extended", sandbox.id());
                Duration::from_secs(5)
            }
        };
        sleep(pause).await;
    }
}

/// Copies one attempt's journal into Postgres.
#[derive(Debug)]
pub(super) struct Copier<'a> {
    worker: &'a Worker,
    pub job: &'a Claimed,
    fold: Fold,
    lines: Lines,
    /// Bytes received, whole lines or not.
    read: u64,
    /// Bytes whose blocks are committed.
    committed: u64,
    /// Blocks of the lines between `committed` and `lines.consumed()`.
    waiting: Vec<Block>,
    /// How the agent has ended, once it has.
    exit: Option<AgentExit>,
    /// When the agent last said something.
    pulse: Arc<Pulse>,
    /// The commit under way, and the offset that it brings. Kept here, so that it is never forgotten half-way.
    writing: Option<AbortOnDropHandle<(u64, Result<(), Fenced>)>>,
    /// For those who watch.
    previews: Option<Seat>,
    /// All that was read, where the pool keeps that.
    journal: Option<journal::Copy>,
    /// What nobody may see of it.
    mask: Mask,
}

impl<'a> Copier<'a> {
    pub fn new(worker: &'a Worker, job: &'a Claimed) -> Self {
        let fold = Fold::new(Some(job.message_uuid.clone())).resumed(job.resumes);
        Self {
            worker,
            job,
            fold: if job.previews { fold.with_previews() } else { fold },
            lines: Lines::new(worker.config.worker.line_max_bytes),
            read: 0,
            committed: u64::try_from(job.journal_offset).unwrap_or(0),
            waiting: Vec::new(),
            exit: None,
            pulse: Arc::default(),
            writing: None,
            previews: worker.previews.enter(job),
            journal: job.keeps_journal.then(journal::Copy::default),
            mask: Mask::default(),
        }
    }

    /// Nothing is read before it is known what nobody may see.
    pub fn hide(&mut self, mask: Mask) {
        self.mask = mask;
    }

    /// The journal byte that the database stands at.
    pub fn committed(&self) -> i64 {
        i64::try_from(self.committed).unwrap_or(i64::MAX)
    }

    /// It has read all that was committed before it came.
    pub fn has_caught_up(&self) -> bool {
        self.lines.consumed() >= self.committed
    }

    /// How the agent has ended, once it has.
    pub fn exit(&self) -> Option<&AgentExit> {
        self.exit.as_ref()
    }

    /// All that was read, to be kept; nothing where the pool keeps none, or nothing was read.
    pub fn journal(&mut self) -> Option<journal::Copied> {
        self.journal.take().map(journal::Copy::finish).filter(|copied| copied.bytes > 0)
    }

    /// Ends for calls that never ended.
    pub fn dangling(&self, why: &str) -> Vec<Block> {
        self.fold.dangling(why)
    }

    /// What the agent made of the turn: also when it was stopped, for the tokens that it used.
    pub fn outcome_of(&self, happened: &Happened) -> Option<Outcome> {
        match happened {
            Happened::AgentEnded(outcome) => Some(outcome.clone()),
            _ if self.read > 0 => Some(self.fold.outcome(&Exit { status: 137, ..Exit::default() })),
            _ => None,
        }
    }

    /// Runs until the agent has ended and all of its journal is copied.
    async fn copy(&mut self, sandbox: &Sandbox, mut probe: Probe) -> Result<Happened, LetGo> {
        if let Err(happened) = self.catch_up(sandbox).await? {
            return Ok(happened);
        }
        let mut silence = Silence::new(self.worker.config.worker.silence_max);
        loop {
            match probe.state {
                AgentState::Exited => {
                    let Some(exit) = probe.exit else { return Ok(Happened::SandboxLost("its exit file can't be read".to_owned())) };
                    self.exit = Some(exit.clone());
                    return Ok(match self.read_to(sandbox, exit.journal_bytes).await? {
                        Ok(()) => Happened::AgentEnded(self.fold.outcome(&exit_of(&exit, probe.stderr_tail))),
                        Err(happened) => happened,
                    });
                }
                AgentState::Alive => {}
                AgentState::Lost | AgentState::None | AgentState::Fenced => {
                    return Ok(Happened::SandboxLost("the agent's supervisor was killed".to_owned()));
                }
            }
            let (before, since) = (self.read, Instant::now());
            if let Some(error) = self.follow_once(sandbox).await? {
                debug!(sandbox.id = sandbox.id(), %error, "The journal's stream was cut at byte {}", self.read);
            }
            match unless_fenced(sandbox.probe().await)? {
                Ok(answer) => {
                    silence.ends();
                    probe = answer;
                }
                Err(error) => {
                    if let Err(lost) = self.still_there(sandbox, &error, &mut silence).await {
                        return Ok(lost);
                    }
                }
            }
            // It answers, but can't be followed: not again at once.
            if probe.state == AgentState::Alive && self.read == before && since.elapsed() < REFOLLOW {
                sleep(REFOLLOW).await;
            }
        }
    }

    /// Feeds the parser what was committed before this worker had the turn.
    async fn catch_up(&mut self, sandbox: &Sandbox) -> Result<Result<(), Happened>, LetGo> {
        let target = self.committed;
        let done = self.read_to(sandbox, target).await?;
        self.waiting.clear();
        Ok(done.and_then(|()| {
            if self.lines.consumed() == target {
                Ok(())
            } else {
                Err(Happened::JournalDamaged { offset: target, size: self.lines.consumed() })
            }
        }))
    }

    /// Reads by range up to exactly `size`, committing on the way what is new.
    async fn read_to(&mut self, sandbox: &Sandbox, size: u64) -> Result<Result<(), Happened>, LetGo> {
        let mut silence = Silence::new(self.worker.config.worker.silence_max);
        while self.read < size {
            match unless_fenced(sandbox.read(self.read, size.min(self.read + CHUNK)).await)? {
                Ok(bytes) if bytes.is_empty() => return Ok(Err(Happened::JournalDamaged { offset: size, size: self.read })),
                Ok(bytes) => {
                    self.take(&bytes);
                    silence.ends();
                    if self.lines.consumed() > self.committed {
                        self.flush().await?;
                    }
                }
                Err(error) => {
                    if let Err(lost) = self.still_there(sandbox, &error, &mut silence).await {
                        return Ok(Err(lost));
                    }
                }
            }
        }
        if self.read > size {
            return Ok(Err(Happened::JournalDamaged { offset: self.read, size }));
        }
        self.flush().await?;
        Ok(Ok(()))
    }

    /// Follows until the stream ends (`None`) or is cut. While the writer commits, the next lines are parsed;
    /// when too much waits for it, the journal is read no further.
    async fn follow_once(&mut self, sandbox: &Sandbox) -> Result<Option<SandboxError>, LetGo> {
        let mut stream = match unless_fenced(sandbox.follow(self.read).await)? {
            Ok(stream) => pin!(stream),
            Err(error) => return Ok(Some(error)),
        };
        let cut = loop {
            if self.writing.is_none() && (!self.waiting.is_empty() || self.lines.consumed() > self.committed + IDLE_MAX) {
                self.write();
            }
            self.preview();
            let room = self.read - self.committed < WAITING_MAX;
            let busy = self.writing.is_some();
            tokio::select! {
                done = written(&mut self.writing) => self.committed = done?,
                bytes = stream.next(), if room || !busy => match bytes {
                    Some(Ok(bytes)) => self.take(&bytes),
                    Some(Err(error)) => break Some(error),
                    None => break None,
                },
            }
        };
        self.flush().await?;
        Ok(cut)
    }

    /// Commits all whole lines that were read.
    async fn flush(&mut self) -> Result<(), LetGo> {
        while self.writing.is_some() || self.lines.consumed() > self.committed {
            if self.writing.is_none() {
                self.write();
            }
            self.committed = written(&mut self.writing).await?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.read += bytes.len() as u64;
        let (fold, waiting, journal, mask) = (&mut self.fold, &mut self.waiting, &mut self.journal, &self.mask);
        self.lines.push(bytes, |line, _| match line {
            Line::Whole(line) => {
                let line = mask.bytes(&line);
                waiting.extend(fold.line(&line));
                if let Some(journal) = journal.as_mut().filter(|_| !fold.was_piece()) {
                    journal.line(&line);
                }
            }
            Line::TooLong(bytes) => {
                if let Some(journal) = journal {
                    journal.too_long(bytes);
                }
                waiting.extend(fold.oversized(bytes));
            }
        });
        self.pulse.beat(if self.fold.may_be_silent() { Leeway::Endless } else { Leeway::None });
    }

    /// Notes what is not a block yet, for those who watch.
    fn preview(&self) {
        if let (Some(seat), Some(growing)) = (&self.previews, self.fold.previews()) {
            let blocks_wait = !self.waiting.is_empty() || self.writing.is_some();
            seat.note((!blocks_wait).then(|| self.committed()), growing, &self.mask);
        }
    }

    fn write(&mut self) {
        let to = self.lines.consumed();
        let append = Append {
            turn_id: self.job.turn_id.clone(),
            epoch: self.job.epoch,
            attempt: self.job.attempt,
            from_offset: self.committed(),
            to_offset: i64::try_from(to).unwrap_or(i64::MAX),
            blocks: std::mem::take(&mut self.waiting),
        };
        let writer = self.worker.writer.clone();
        self.writing = Some(AbortOnDropHandle::new(tokio::spawn(async move { (to, writer.append(append).await) })));
    }

    /// After an act failed: waits a moment, or says that the sandbox is lost. Only the control plane's 404
    /// proves that; silence does after a long time.
    async fn still_there(&self, sandbox: &Sandbox, error: &SandboxError, silence: &mut Silence) -> Result<(), Happened> {
        if matches!(error, SandboxError::Gone) && matches!(sandbox.exists().await, Ok(false)) {
            return Err(Happened::SandboxLost("E2B does not know it any more".to_owned()));
        }
        let Some(pause) = silence.next() else { return Err(Happened::SandboxLost(error.to_string())) };
        debug!(turn.id = %self.job.turn_id, %error, "Sandbox {} does not answer; trying again in {pause:?}", sandbox.id());
        sleep(pause).await;
        Ok(())
    }
}

/// Waits for the commit under way, for ever if there is none; the offset that it brought.
async fn written(writing: &mut Option<AbortOnDropHandle<(u64, Result<(), Fenced>)>>) -> Result<u64, LetGo> {
    let Some(commit) = writing else { return std::future::pending().await };
    let (to, done) = commit.await.unwrap_or((0, Err(Fenced)));
    *writing = None;
    done?;
    Ok(to)
}

fn exit_of(exit: &AgentExit, stderr_tail: String) -> Exit {
    Exit { status: exit.status, stderr_tail, reason: exit.reason.clone(), finish: exit.finish.clone() }
}
