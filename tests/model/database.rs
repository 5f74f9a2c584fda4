//! The statements of `src/store`, each as one step: what they check, and what they change.

use crate::Fence;
use crate::world::{Acting, Hands, Held, Job, JobState, Next, Slot, Stage, Status, World, Write};

/// `Ok`: it held, and was made.
pub type Answer = Result<(), Fenced>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced;

impl World {
    pub fn execute(&mut self, write: Write, without: Option<Fence>) -> Answer {
        match write {
            Write::CreateAsked { epoch } => {
                let held = self.held_under(epoch, &[Stage::Creating], true)?;
                held.asked = true;
            }
            Write::SandboxReady { turn, epoch, sandbox } => {
                self.job_under(turn, epoch, None, None, without != Some(Fence::ReadyEpoch))?;
                let held = self.held_under(epoch, &[Stage::Creating, Stage::Busy], without != Some(Fence::ReadyEpoch))?;
                (held.stage, held.sandbox) = (Stage::Busy, Some(sandbox));
            }
            Write::Append { turn, epoch, attempt, from } => {
                let at = (without != Some(Fence::AppendOffset)).then_some(from);
                let attempt_named = (without != Some(Fence::AppendEpoch)).then_some(attempt);
                let job = self.job_under(turn, epoch, attempt_named, at, without != Some(Fence::AppendEpoch))?;
                job.offset = from + 1;
                self.turns[turn].blocks.push((attempt, from));
            }
            Write::NextAttempt { turn, epoch, attempt, at } => {
                let next = self.epochs + 1;
                let job = self.job_under(turn, epoch, Some(attempt), Some(at), true)?;
                if let JobState::Leased { epoch, .. } = &mut job.state {
                    *epoch = next;
                }
                (job.attempt, job.offset) = (attempt + 1, 0);
                self.epochs = next;
                self.held_under(epoch, &[Stage::Busy], true)?.epoch = next;
            }
            Write::RetryLater { turn, epoch, attempt, restart } => {
                let fenced = without != Some(Fence::RetryEpoch);
                let job = self.job_under(turn, epoch, fenced.then_some(attempt), None, fenced)?;
                job.state = JobState::Ready;
                if restart {
                    (job.attempt, job.offset) = (job.attempt + 1, 0);
                }
                self.turns[turn].status = Status::Pending;
                self.start_release(epoch, fenced);
                if self.turns[turn].cancel_asked {
                    self.cancel(turn, without);
                }
            }
            Write::Settle { turn, epoch, attempt, at, status } => {
                let fenced = without != Some(Fence::SettleEpoch);
                let at = (fenced && without != Some(Fence::SettleOffset)).then_some(at);
                self.job_under(turn, epoch, fenced.then_some(attempt), at, fenced)?;
                self.end(turn, status);
                self.start_release(epoch, fenced);
                self.promote(without);
            }
            Write::HandOver { turn, epoch } => {
                let job = self.job_under(turn, epoch, None, None, true)?;
                job.state = JobState::Leased { worker: None, epoch };
            }
            Write::SlotFreed { epoch } => {
                self.held_under(epoch, &[Stage::Releasing], without != Some(Fence::FreedEpoch))?;
                self.slot = Slot::Free;
            }
        }
        Ok(())
    }

    /// The turn's leased job, if it has this epoch, attempt and offset.
    fn job_under(&mut self, turn: usize, named: u8, attempt: Option<u8>, at: Option<u8>, fenced: bool) -> Result<&mut Job, Fenced> {
        let job = self.turns[turn].job.as_mut().ok_or(Fenced)?;
        let JobState::Leased { epoch, .. } = job.state else { return Err(Fenced) };
        let matches = attempt.is_none_or(|it| it == job.attempt) && at.is_none_or(|it| it == job.offset);
        if (fenced && epoch != named) || !matches {
            return Err(Fenced);
        }
        self.seen.stale_write |= epoch != named;
        Ok(job)
    }

    fn held_under(&mut self, epoch: u8, stages: &[Stage], fenced: bool) -> Result<&mut Held, Fenced> {
        let Slot::Held(held) = &mut self.slot else { return Err(Fenced) };
        if !stages.contains(&held.stage) || (fenced && held.epoch != epoch) {
            return Err(Fenced);
        }
        self.seen.stale_write |= held.epoch != epoch;
        Ok(held)
    }

    fn start_release(&mut self, epoch: u8, fenced: bool) {
        if let Ok(held) = self.held_under(epoch, &[Stage::Creating, Stage::Busy], fenced) {
            held.stage = Stage::Releasing;
        }
    }

    fn end(&mut self, turn: usize, status: Status) {
        let turn = &mut self.turns[turn];
        turn.job = None;
        turn.status = status;
        turn.settled += 1;
        turn.cancel_asked = false;
    }

    /// `turnmill.promote`. Says whether it would find something, so that a tidy that does nothing is no step.
    pub fn promote(&mut self, without: Option<Fence>) -> bool {
        let unfinished = |state: JobState| state != JobState::Waiting;
        let busy = self.turns.iter().flat_map(|turn| &turn.job).any(|job| unfinished(job.state));
        let head = self.turns.iter_mut().flat_map(|turn| &mut turn.job).find(|job| job.state == JobState::Waiting);
        match head {
            Some(job) if !busy || without == Some(Fence::PromoteCheck) => {
                job.state = JobState::Ready;
                true
            }
            _ => false,
        }
    }

    /// `turnmill.cancel_turn`.
    pub fn cancel(&mut self, turn: usize, without: Option<Fence>) {
        match self.turns[turn].job.as_ref().map(|job| job.state) {
            Some(JobState::Leased { .. }) if without != Some(Fence::CancelState) => self.turns[turn].cancel_asked = true,
            Some(_) => {
                self.end(turn, Status::Cancelled);
                self.promote(without);
            }
            None => {}
        }
    }

    /// `enqueue_turn` up to its look at the session's jobs: it holds the session's row, but no job's.
    pub fn enqueue(&mut self, turn: usize) {
        let waits = self.turns.iter().any(|turn| turn.job.is_some());
        self.turns[turn].status = Status::Enqueueing { waits };
    }

    pub fn commit_enqueue(&mut self, turn: usize, waits: bool) {
        let state = if waits { JobState::Waiting } else { JobState::Ready };
        self.turns[turn].job = Some(Job { state, attempt: 1, offset: 0 });
        self.turns[turn].status = Status::Pending;
    }

    /// `tidy`; `false`: there was nothing to do.
    pub fn tidy(&mut self, without: Option<Fence>) -> bool {
        let mut did = without != Some(Fence::Tidy) && self.promote(without);
        for turn in 0..self.turns.len() {
            let queued = self.turns[turn].job.as_ref().is_some_and(|job| !matches!(job.state, JobState::Leased { .. }));
            if self.turns[turn].cancel_asked && queued {
                self.cancel(turn, without);
                did = true;
            }
        }
        did
    }

    /// `claim.sql` for one job: an orphan first, then a ready job with the free slot. `None`: nothing to take.
    pub fn claim(&mut self, worker: usize, without: Option<Fence>) -> Option<Acting> {
        let orphaned = |world: &Self, state| match state {
            JobState::Leased { worker: None, .. } => true,
            JobState::Leased { worker: Some(w), .. } => !world.leases[w],
            _ => false,
        };
        let state = |world: &Self, turn: usize| world.turns[turn].job.as_ref().map(|job| job.state);
        let orphan = (0..self.turns.len()).find(|turn| state(self, *turn).is_some_and(|it| orphaned(self, it)));
        let ready = (0..self.turns.len()).find(|turn| state(self, *turn) == Some(JobState::Ready) && self.slot == Slot::Free);
        let turn = orphan.or(ready)?;
        let epoch = self.next_epoch();
        match &mut self.slot {
            Slot::Held(held) => {
                held.epoch = epoch;
                if without == Some(Fence::SameNonce) {
                    held.nonce = epoch;
                }
            }
            slot @ Slot::Free => *slot = Slot::Held(Held { stage: Stage::Creating, epoch, nonce: epoch, asked: false, sandbox: None }),
        }
        let Slot::Held(held) = self.slot else { unreachable!() };
        self.turns[turn].status = Status::InProgress;
        let job = self.turns[turn].job.as_mut()?;
        job.state = JobState::Leased { worker: Some(worker), epoch };
        Some(Acting {
            turn,
            epoch,
            attempt: job.attempt,
            offset: job.offset,
            nonce: held.nonce,
            sandbox: held.sandbox,
            found: held.sandbox.is_some(),
            unsure: held.asked,
            may_exist: true,
            failed: false,
            start_sent: false,
            cancelled: false,
            next: if held.sandbox.is_some() { Next::Known } else { Next::Intent },
        })
    }

    /// `hand_over_strangers`; `false`: there were none.
    pub fn hand_over_strangers(&mut self, worker: usize) -> bool {
        let known = match &self.hands[worker] {
            Hands::Acting(acting) => Some(acting.epoch),
            _ => None,
        };
        let mut did = false;
        for job in self.turns.iter_mut().flat_map(|turn| &mut turn.job) {
            if let JobState::Leased { worker: Some(w), epoch } = job.state
                && w == worker
                && known != Some(epoch)
            {
                job.state = JobState::Leased { worker: None, epoch };
                did = true;
            }
        }
        did
    }
}
