//! What a worker's process does next, in `src/worker`: one database write, one call, or one act in the sandbox.

use crate::Fence;
use crate::database::Fenced;
use crate::world::{Acting, Agent, Exit, Hands, JobState, LINES, Next, Releasing, Sandbox, Slot, Stage, Status, World, Write};

/// How a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Luck {
    /// It is done, and the worker hears of it.
    Heard,
    /// It is done, but the answer is lost: the worker will do it again.
    Unheard,
    /// The worker gives up waiting for a write that Postgres will run later.
    Late,
}

impl World {
    /// The worker's next step; `None`: it waits for others, or it can't go like this.
    pub fn step(&mut self, worker: usize, luck: Luck, without: Option<Fence>) -> Option<()> {
        match self.hands[worker].clone() {
            Hands::Idle => None,
            Hands::Releasing(releasing) => self.release(worker, releasing, luck, without),
            Hands::Acting(acting) => self.act(worker, acting, luck, without),
        }
    }

    fn act(&mut self, worker: usize, mut acting: Acting, luck: Luck, without: Option<Fence>) -> Option<()> {
        let Acting { turn, epoch, attempt, offset, .. } = acting;
        let settle = |status| Write::Settle { turn, epoch, attempt, at: offset, status };
        let retry_later = |restart| Write::RetryLater { turn, epoch, attempt, restart };
        let write = match acting.next {
            Next::Intent if without == Some(Fence::Intent) => {
                acting.next = Next::Send;
                return self.goes_on(worker, acting, luck);
            }
            Next::Intent => Write::CreateAsked { epoch },
            Next::Send => {
                self.e2b.calls.push((acting.nonce, worker));
                self.e2b.calls.sort_unstable();
                acting.next = Next::Wait;
                // In flight: whatever an earlier one was answered, this one may make a sandbox.
                acting.may_exist |= without != Some(Fence::DoubtKept);
                return self.goes_on(worker, acting, luck);
            }
            Next::Wait => return None,
            Next::Known => Write::SandboxReady { turn, epoch, sandbox: acting.sandbox? },
            Next::Start if self.living(&acting) => return self.start(worker, acting, luck, without),
            // Where an agent may have run, the attempt is lost; else only its start-up.
            Next::Start => retry_later(acting.found || (acting.start_sent && without != Some(Fence::StartRemembered))),
            Next::Follow => match self.read(&acting) {
                Journal::Line => Write::Append { turn, epoch, attempt, from: offset },
                Journal::Nothing => return None,
                Journal::Lost => retry_later(true),
                Journal::End(_) if acting.cancelled => settle(Status::Cancelled),
                Journal::End(Exit::Failed | Exit::Signalled) => Write::NextAttempt { turn, epoch, attempt, at: offset },
                Journal::End(Exit::Well) => settle(Status::Completed),
            },
            Next::GiveUp => retry_later(false),
            Next::Cancelled => settle(Status::Cancelled),
        };
        if let (Write::Settle { .. }, Some(Fence::KillOnRecord), Some(id)) = (write, without, acting.sandbox) {
            self.kill(id);
        }
        self.write(worker, acting, write, luck, without)
    }

    fn goes_on(&mut self, worker: usize, acting: Acting, luck: Luck) -> Option<()> {
        self.hands[worker] = Hands::Acting(acting);
        (luck == Luck::Heard).then_some(())
    }

    fn write(&mut self, worker: usize, mut acting: Acting, write: Write, luck: Luck, without: Option<Fence>) -> Option<()> {
        match luck {
            Luck::Late if self.late.is_some() => return None,
            Luck::Late => {
                self.late = Some(write);
                return Some(());
            }
            Luck::Unheard => return self.execute(write, without).ok(),
            Luck::Heard => {}
        }
        let answer = self.execute(write, without);
        self.hands[worker] = match (write, answer) {
            (Write::Append { turn, epoch, attempt, from }, Err(Fenced)) if self.stands_at(turn, epoch, attempt, from + 1) => {
                // An earlier commit of ours, whose answer was lost.
                acting.offset += 1;
                Hands::Acting(acting)
            }
            (_, Err(Fenced)) => Hands::Idle,
            (Write::Settle { .. } | Write::RetryLater { .. }, Ok(())) => Hands::Releasing(Releasing {
                epoch: acting.epoch,
                nonce: acting.nonce,
                sandbox: acting.sandbox,
                may_exist: acting.may_exist,
                gone: false,
                freed: false,
            }),
            (write, Ok(())) => {
                match write {
                    Write::CreateAsked { .. } => acting.next = Next::Send,
                    Write::SandboxReady { .. } => acting.next = Next::Start,
                    Write::Append { .. } => acting.offset += 1,
                    Write::NextAttempt { attempt, .. } => {
                        (acting.epoch, acting.attempt, acting.offset) = (self.epochs, attempt + 1, 0);
                        (acting.found, acting.next) = (true, Next::Start);
                    }
                    _ => {}
                }
                Hands::Acting(acting)
            }
        };
        Some(())
    }

    fn stands_at(&self, turn: usize, epoch: u8, attempt: u8, offset: u8) -> bool {
        self.turns[turn].job.as_ref().is_some_and(|job| {
            (job.attempt, job.offset) == (attempt, offset) && matches!(job.state, JobState::Leased { epoch: e, .. } if e == epoch)
        })
    }

    fn living(&self, acting: &Acting) -> bool {
        acting.sandbox.and_then(|id| self.e2b.sandboxes.get(id)).is_some_and(|sandbox| sandbox.alive)
    }

    /// `run-turn start`: `mkdir` decides who starts the attempt.
    fn start(&mut self, worker: usize, mut acting: Acting, luck: Luck, without: Option<Fence>) -> Option<()> {
        let sandbox = self.e2b.sandboxes.get_mut(acting.sandbox?)?;
        let Some(stale) = admit(sandbox, acting.epoch, without) else {
            self.hands[worker] = Hands::Idle;
            return (luck == Luck::Heard).then_some(());
        };
        let there = sandbox.agents.iter_mut().find(|agent| (agent.turn, agent.attempt) == (acting.turn, acting.attempt));
        match there {
            Some(_) if without != Some(Fence::MkdirOnce) => {}
            Some(agent) => agent.starts += 1,
            None => {
                // `kill_strays`: what the attempt before has left.
                for agent in &mut sandbox.agents {
                    agent.exit.get_or_insert(Exit::Signalled);
                }
                sandbox.agents.push(Agent { turn: acting.turn, attempt: acting.attempt, starts: 1, lines: 1, exit: None });
                self.seen.stale_act |= stale;
            }
        }
        match luck {
            Luck::Heard => acting.next = Next::Follow,
            Luck::Unheard => acting.start_sent = true,
            Luck::Late => return None,
        }
        self.hands[worker] = Hands::Acting(acting);
        Some(())
    }

    fn read(&self, acting: &Acting) -> Journal {
        let Some(sandbox) = acting.sandbox.and_then(|id| self.e2b.sandboxes.get(id)).filter(|sandbox| sandbox.alive) else {
            return Journal::Lost;
        };
        let agent = sandbox.agents.iter().find(|agent| (agent.turn, agent.attempt) == (acting.turn, acting.attempt));
        match agent {
            None => Journal::Nothing,
            Some(agent) if agent.lines > acting.offset => Journal::Line,
            Some(agent) => agent.exit.map_or(Journal::Nothing, Journal::End),
        }
    }

    /// Hears of a cancel: before there is an agent it just ends; then it stops the agent through the supervisor.
    pub fn notice_cancel(&mut self, worker: usize, without: Option<Fence>) -> Option<()> {
        let Hands::Acting(acting) = &mut self.hands[worker] else { return None };
        if acting.cancelled || !self.turns[acting.turn].cancel_asked {
            return None;
        }
        match acting.next {
            Next::Intent | Next::Send | Next::Wait | Next::Known => acting.next = Next::Cancelled,
            Next::Follow => {
                let sandbox = acting.sandbox.and_then(|id| self.e2b.sandboxes.get_mut(id)).filter(|sandbox| sandbox.alive)?;
                match admit(sandbox, acting.epoch, without) {
                    None => self.hands[worker] = Hands::Idle,
                    Some(stale) => {
                        acting.cancelled = true;
                        let key = (acting.turn, acting.attempt);
                        if let Some(agent) = sandbox.agents.iter_mut().find(|agent| (agent.turn, agent.attempt) == key)
                            && agent.exit.is_none()
                        {
                            agent.exit = Some(Exit::Signalled);
                            self.seen.stale_act |= stale;
                        }
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// The create was refused for good, or may have failed: `retry_later`, for another claim.
    pub fn give_up(&mut self, worker: usize) -> Option<()> {
        let Hands::Acting(acting) = &mut self.hands[worker] else { return None };
        if acting.next != Next::Intent || !acting.failed {
            return None;
        }
        acting.next = Next::GiveUp;
        Some(())
    }

    /// `upkeep::release`: kill, then free.
    fn release(&mut self, worker: usize, mut releasing: Releasing, luck: Luck, without: Option<Fence>) -> Option<()> {
        if !releasing.gone && (without != Some(Fence::KillBeforeFree) || releasing.freed) {
            if luck != Luck::Heard {
                return None;
            }
            match releasing.sandbox {
                Some(id) => self.kill(id),
                None if releasing.may_exist => self.search(releasing.nonce, without)?,
                None => {}
            }
            releasing.gone = true;
            self.hands[worker] = if releasing.freed { Hands::Idle } else { Hands::Releasing(releasing) };
            return Some(());
        }
        let write = Write::SlotFreed { epoch: releasing.epoch };
        match luck {
            Luck::Late if self.late.is_some() => return None,
            Luck::Late => self.late = Some(write),
            Luck::Unheard => self.execute(write, without).ok()?,
            Luck::Heard => {
                let freed = self.execute(write, without).is_ok();
                releasing.freed = true;
                self.hands[worker] = if freed && !releasing.gone { Hands::Releasing(releasing) } else { Hands::Idle };
            }
        }
        Some(())
    }

    /// Looks for the nonce and kills what it finds. Finds nothing: waits until no create under it can come any more.
    fn search(&mut self, nonce: u8, without: Option<Fence>) -> Option<()> {
        let found: Vec<usize> =
            (0..self.e2b.sandboxes.len()).filter(|id| self.e2b.sandboxes[*id].nonce == nonce && self.e2b.sandboxes[*id].alive).collect();
        let called = self.e2b.calls.iter().any(|(call, _)| *call == nonce);
        let about_to = self.hands.iter().any(|hands| matches!(hands, Hands::Acting(a) if a.nonce == nonce && a.next == Next::Send));
        if found.is_empty() && (called || about_to) && without != Some(Fence::SearchPatience) {
            return None;
        }
        for id in found {
            self.kill(id);
        }
        Some(())
    }

    fn kill(&mut self, id: usize) {
        let recorded = match self.slot {
            Slot::Held(held) => held.stage == Stage::Releasing || held.nonce != self.e2b.sandboxes[id].nonce,
            Slot::Free => true,
        };
        self.seen.unrecorded_kill |= self.e2b.sandboxes[id].alive && !recorded;
        self.e2b.sandboxes[id].alive = false;
    }

    /// `due_releases`: who takes one over does so under a new epoch. `None`: nothing is releasing.
    pub fn take_release(&mut self, worker: usize) -> Option<()> {
        let epoch = self.epochs + 1;
        let Slot::Held(held) = &mut self.slot else { return None };
        if held.stage != Stage::Releasing {
            return None;
        }
        self.epochs = epoch;
        held.epoch = epoch;
        let (sandbox, may_exist) = (held.sandbox, held.asked);
        self.hands[worker] = Hands::Releasing(Releasing { epoch, nonce: held.nonce, sandbox, may_exist, gone: false, freed: false });
        Some(())
    }
}

/// `fence` in run-turn. `None`: refused; else whether the act is one of a lower epoch than was seen.
fn admit(sandbox: &mut Sandbox, epoch: u8, without: Option<Fence>) -> Option<bool> {
    let stale = epoch < sandbox.epoch;
    if stale && without != Some(Fence::SandboxEpoch) {
        return None;
    }
    sandbox.epoch = sandbox.epoch.max(epoch);
    Some(stale)
}

enum Journal {
    Line,
    End(Exit),
    Nothing,
    Lost,
}

/// E2B and the agents.
impl World {
    /// The create at this place of the list arrives; the key makes a second one of the same nonce the same sandbox.
    pub fn create(&mut self, call: usize, answered: bool) {
        let (nonce, worker) = self.e2b.calls.remove(call);
        let known = self.e2b.sandboxes.iter().position(|sandbox| sandbox.nonce == nonce);
        let id = known.unwrap_or_else(|| {
            self.e2b.sandboxes.push(Sandbox { nonce, alive: true, epoch: 0, agents: Vec::new() });
            self.e2b.sandboxes.len() - 1
        });
        let Some(acting) = self.waits_for(worker, nonce) else { return };
        if answered {
            (acting.sandbox, acting.next) = (Some(id), Next::Known);
        } else {
            (acting.unsure, acting.may_exist, acting.failed, acting.next) = (true, true, true, Next::Intent);
        }
    }

    /// E2B refuses the call: it made nothing, which says nothing about one before it.
    pub fn refuse(&mut self, call: usize, without: Option<Fence>) {
        let (nonce, worker) = self.e2b.calls.remove(call);
        if let Some(acting) = self.waits_for(worker, nonce) {
            acting.may_exist = acting.unsure && without != Some(Fence::DoubtKept);
            (acting.failed, acting.next) = (true, Next::Intent);
        }
    }

    fn waits_for(&mut self, worker: usize, nonce: u8) -> Option<&mut Acting> {
        match &mut self.hands[worker] {
            Hands::Acting(acting) if acting.next == Next::Wait && acting.nonce == nonce => Some(acting),
            _ => None,
        }
    }

    /// The agent in this sandbox prints its last line and ends.
    pub fn work(&mut self, sandbox: usize, fails: bool) -> Option<()> {
        let sandbox = self.e2b.sandboxes.get_mut(sandbox).filter(|sandbox| sandbox.alive)?;
        let agent = sandbox.agents.iter_mut().find(|agent| agent.exit.is_none())?;
        (agent.lines, agent.exit) = if fails { (agent.lines, Some(Exit::Failed)) } else { (LINES, Some(Exit::Well)) };
        Some(())
    }
}
