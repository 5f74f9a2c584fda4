//! Who may do what when, and what must hold.

use stateright::{Model, Property};

use crate::worker::Luck;
use crate::world::{Agent, Hands, JobState, LINES, Slot, Status, Turn, World};

/// What keeps the promises; each can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    AppendEpoch,
    AppendOffset,
    SettleEpoch,
    SettleOffset,
    RetryEpoch,
    ReadyEpoch,
    FreedEpoch,
    /// `cancel_turn` deletes only jobs that nobody has.
    CancelState,
    /// `promote` looks for another job of the session that is not waiting.
    PromoteCheck,
    Tidy,
    /// `hand_over_strangers`.
    Strangers,
    /// `create_asked` before the create.
    Intent,
    /// An adopter sends the identical create.
    SameNonce,
    /// A refused create does not end the doubt about one before it, nor about the next.
    DoubtKept,
    /// A search that finds nothing waits until no create can come any more.
    SearchPatience,
    KillBeforeFree,
    /// The settle is committed before the kill.
    KillOnRecord,
    SandboxEpoch,
    MkdirOnce,
    /// Who has asked for a start and never heard of it counts the attempt as begun.
    StartRemembered,
}

/// Two workers, one session, one slot.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub turns: usize,
    pub faults: u8,
    pub cancels: u8,
    pub without: Option<Fence>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Enqueue(usize),
    CommitEnqueue(usize),
    Cancel(usize),
    Tidy,
    Claim(usize),
    /// The answer of the claim is lost.
    ClaimUnheard(usize),
    HandOverStrangers(usize),
    TakeRelease(usize),
    Step(usize, Luck),
    /// What was late runs now.
    RunLate,
    NoticeCancel(usize),
    GiveUp(usize),
    /// In order, as a deploy does.
    HandOver(usize),
    /// Its lease runs out; it does not know, and goes on.
    LoseLease(usize),
    Renew(usize),
    Crash(usize),
    Create(usize),
    CreateUnheard(usize),
    Refuse(usize),
    Work(usize),
    Fail(usize),
    Vanish(usize),
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.turns, self.faults, self.cancels)]
    }

    /// Those that are plainly impossible are left out; of the others `next_state` knows.
    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let faults = world.faults > 0;
        for w in 0..world.hands.len() {
            if world.hands[w] != Hands::Idle {
                actions.extend([Action::Step(w, Luck::Heard), Action::NoticeCancel(w), Action::GiveUp(w)]);
                if faults {
                    actions.extend([Action::Step(w, Luck::Unheard), Action::Step(w, Luck::Late), Action::HandOver(w), Action::Crash(w)]);
                }
            } else if world.leases[w] {
                actions.extend([Action::Claim(w), Action::HandOverStrangers(w), Action::TakeRelease(w)]);
                actions.extend(faults.then_some(Action::ClaimUnheard(w)));
            }
            actions.extend(if world.leases[w] { faults.then_some(Action::LoseLease(w)) } else { Some(Action::Renew(w)) });
        }
        for call in 0..world.e2b.calls.len() {
            actions.push(Action::Create(call));
            if faults {
                actions.extend([Action::CreateUnheard(call), Action::Refuse(call)]);
            }
        }
        for id in (0..world.e2b.sandboxes.len()).filter(|id| world.e2b.sandboxes[*id].alive) {
            actions.push(Action::Work(id));
            if faults {
                actions.extend([Action::Fail(id), Action::Vanish(id)]);
            }
        }
        for turn in 0..self.turns {
            match world.turns[turn].status {
                Status::NotYet => actions.push(Action::Enqueue(turn)),
                Status::Enqueueing { .. } => actions.push(Action::CommitEnqueue(turn)),
                _ if world.cancels > 0 => actions.push(Action::Cancel(turn)),
                _ => {}
            }
        }
        actions.extend((self.turns > 1 || self.cancels > 0).then_some(Action::Tidy));
        actions.extend(world.late.map(|_| Action::RunLate));
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        world.faults = before.faults.checked_sub(u8::from(is_fault(before, &action)))?;
        self.carry_out(&mut world, &action)?;
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("a turn settles at most once", |_, world: &World| {
                world.turns.iter().all(|turn| turn.settled == u8::from(turn.status.terminal()))
            }),
            Property::always("when nobody can go on, all has ended and nothing is left", |model: &Self, world: &World| {
                world.is_over() || model.can_go_on(world)
            }),
            Property::always("blocks are lines of the journal, in order, none twice, none missing", |_, world: &World| {
                (0..world.turns.len()).all(|turn| world.blocks_are_prefixes(turn))
            }),
            Property::always("a completed turn has its whole journal", |_, world: &World| {
                let whole = |turn: &Turn| turn.blocks.iter().rev().take(usize::from(LINES)).map(|(_, line)| *line).eq((0..LINES).rev());
                world.turns.iter().filter(|turn| turn.status == Status::Completed).all(whole)
            }),
            Property::always("no write of a stale epoch takes effect", |_, world: &World| !world.seen.stale_write),
            Property::always("no act of a stale epoch takes effect in a sandbox", |_, world: &World| !world.seen.stale_act),
            Property::always("an agent is started once per attempt", |_, world: &World| {
                (0..world.turns.len()).all(|turn| {
                    let starts = |attempt| world.agents_of(turn).filter(|a| a.attempt == attempt).map(|a| a.starts).sum::<u8>();
                    world.agents_of(turn).all(|agent| starts(agent.attempt) == 1)
                })
            }),
            Property::always("live sandboxes stay within the cap", |_, world: &World| world.living_sandboxes().count() <= 1),
            Property::always("a slot is free only when its sandbox is gone", |_, world: &World| match world.slot {
                Slot::Free => world.living_sandboxes().count() == 0,
                Slot::Held(held) => world.living_sandboxes().all(|nonce| nonce == held.nonce),
            }),
            Property::always("a sandbox is killed only when that is on record", |_, world: &World| !world.seen.unrecorded_kill),
            Property::always("turns of a session run one at a time, in order", |_, world: &World| world.session_is_in_order()),
        ];
        if self.without.is_none() {
            all.extend([
                Property::sometimes("a turn completes after a take-over", |_, world: &World| {
                    let adopted =
                        |agent: &Agent, epoch| agent.attempt == 1 && world.turns[agent.turn].status == Status::Completed && epoch > 1;
                    world.e2b.sandboxes.iter().any(|s| s.nonce == 1 && s.agents.len() == 1 && adopted(&s.agents[0], s.epoch))
                }),
                Property::sometimes("a turn starts over in another sandbox", |_, world: &World| {
                    let ran = world.e2b.sandboxes.iter().filter(|s| s.agents.first().is_some_and(|agent| agent.turn == 0)).count();
                    world.turns[0].status == Status::Completed && ran == 2
                }),
                Property::sometimes("an agent goes on in its sandbox", |_, world: &World| {
                    world.turns[0].status == Status::Completed && world.e2b.sandboxes.len() == 1 && world.e2b.sandboxes[0].agents.len() == 2
                }),
                Property::sometimes("a turn is cancelled while it runs", |_, world: &World| {
                    world.turns[0].status == Status::Cancelled && !world.turns[0].blocks.is_empty()
                }),
            ]);
        }
        all
    }
}

impl Protocol {
    fn carry_out(&self, world: &mut World, action: &Action) -> Option<()> {
        let without = self.without;
        let idle = |world: &World, w: usize| world.hands[w] == Hands::Idle && world.leases[w];
        match *action {
            Action::Enqueue(turn) => {
                (world.turns[turn].status == Status::NotYet && world.turns[turn - 1].status != Status::NotYet).then(|| world.enqueue(turn))
            }
            Action::CommitEnqueue(turn) => match world.turns[turn].status {
                Status::Enqueueing { waits } => {
                    world.commit_enqueue(turn, waits);
                    Some(())
                }
                _ => None,
            },
            Action::Cancel(turn) => {
                world.cancels = world.cancels.checked_sub(1)?;
                (world.turns[turn].job.is_some() && !world.turns[turn].cancel_asked).then(|| world.cancel(turn, without))
            }
            Action::Tidy => world.tidy(without).then_some(()),
            Action::Claim(w) if idle(world, w) => {
                world.hands[w] = Hands::Acting(world.claim(w, without)?);
                Some(())
            }
            Action::ClaimUnheard(w) if idle(world, w) => world.claim(w, without).map(drop),
            Action::HandOverStrangers(w) if without != Some(Fence::Strangers) => world.hand_over_strangers(w).then_some(()),
            Action::TakeRelease(w) if idle(world, w) => world.take_release(w),
            Action::Claim(_) | Action::ClaimUnheard(_) | Action::HandOverStrangers(_) | Action::TakeRelease(_) => None,
            Action::Step(w, luck) => world.step(w, luck, without),
            Action::RunLate => {
                let write = world.late.take()?;
                let _ = world.execute(write, without);
                Some(())
            }
            Action::NoticeCancel(w) => world.notice_cancel(w, without),
            Action::GiveUp(w) => world.give_up(w),
            Action::HandOver(w) => {
                let Hands::Acting(acting) = std::mem::replace(&mut world.hands[w], Hands::Idle) else { return None };
                world.execute(crate::world::Write::HandOver { turn: acting.turn, epoch: acting.epoch }, without).ok()
            }
            Action::LoseLease(w) => std::mem::replace(&mut world.leases[w], false).then_some(()),
            // Whatever it did under the old lease it has let go of.
            Action::Renew(w) => {
                world.hands[w] = Hands::Idle;
                (!std::mem::replace(&mut world.leases[w], true)).then_some(())
            }
            Action::Crash(w) => {
                world.leases[w] = false;
                (std::mem::replace(&mut world.hands[w], Hands::Idle) != Hands::Idle).then_some(())
            }
            Action::Create(call) => {
                world.create(call, true);
                Some(())
            }
            Action::CreateUnheard(call) => {
                world.create(call, false);
                Some(())
            }
            Action::Refuse(call) => {
                world.refuse(call, without);
                Some(())
            }
            Action::Work(sandbox) => world.work(sandbox, false),
            Action::Fail(sandbox) => world.work(sandbox, true),
            Action::Vanish(sandbox) => std::mem::replace(&mut world.e2b.sandboxes[sandbox].alive, false).then_some(()),
        }
    }

    /// Faults help nobody: they do not count.
    fn can_go_on(&self, world: &World) -> bool {
        let mut actions = Vec::new();
        self.actions(world, &mut actions);
        let helps = |action: &Action| !is_fault(world, action) && !matches!(action, Action::Cancel(_));
        actions.into_iter().any(|action| helps(&action) && self.next_state(world, action).is_some())
    }
}

impl World {
    fn living_sandboxes(&self) -> impl Iterator<Item = u8> {
        self.e2b.sandboxes.iter().filter(|sandbox| sandbox.alive).map(|sandbox| sandbox.nonce)
    }

    fn is_over(&self) -> bool {
        self.turns.iter().all(|turn| turn.status.terminal() && turn.job.is_none())
            && self.slot == Slot::Free
            && self.living_sandboxes().next().is_none()
    }

    /// Per attempt the first lines of its journal, attempts in order.
    fn blocks_are_prefixes(&self, turn: usize) -> bool {
        let mut expected = (0, 0);
        self.turns[turn].blocks.iter().all(|(attempt, line)| {
            let next = if *attempt == expected.0 { expected } else { (expected.0.max(*attempt), 0) };
            expected = (*attempt, line + 1);
            let printed = self.agents_of(turn).find(|agent| agent.attempt == *attempt).map_or(0, |agent| agent.lines);
            (*attempt, *line) == next && *line < printed
        })
    }

    fn session_is_in_order(&self) -> bool {
        let unfinished = |turn: &Turn| !turn.status.terminal();
        let jobs = self.turns.iter().flat_map(|turn| &turn.job).filter(|job| job.state != JobState::Waiting).count();
        let began = |turn: &Turn| matches!(turn.status, Status::InProgress | Status::Completed);
        let overtaken = self.turns.windows(2).any(|two| unfinished(&two[0]) && began(&two[1]));
        jobs <= 1 && !overtaken
    }
}

/// What has a limit, so that the states have an end. A release may always be taken over from nobody.
fn is_fault(world: &World, action: &Action) -> bool {
    match action {
        Action::ClaimUnheard(_)
        | Action::Step(_, Luck::Unheard | Luck::Late)
        | Action::HandOver(_)
        | Action::LoseLease(_)
        | Action::Crash(_)
        | Action::CreateUnheard(_)
        | Action::Refuse(_)
        | Action::Fail(_)
        | Action::Vanish(_) => true,
        Action::TakeRelease(_) => {
            let Slot::Held(held) = world.slot else { return false };
            world.hands.iter().any(|hands| matches!(hands, Hands::Releasing(r) if r.epoch == held.epoch))
        }
        _ => false,
    }
}
