//! The state: the rows that decide, what E2B runs, and what each worker's process believes.

/// Lines that an agent prints when it ends well.
pub const LINES: u8 = 2;

pub type Epoch = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub turns: Vec<Turn>,
    /// The pool's only slot: the cap is one.
    pub slot: Slot,
    /// The last number of `turnmill.epochs`.
    pub epochs: Epoch,
    /// `workers.lease_until > clock_timestamp()`.
    pub leases: Vec<bool>,
    pub e2b: E2b,
    pub hands: Vec<Hands>,
    /// A statement that its sender gave up waiting for, and that Postgres may still run.
    pub late: Option<Write>,
    /// Faults that may still happen, and cancels that users may still ask for.
    pub faults: u8,
    pub cancels: u8,
    pub seen: Seen,
}

/// What must never be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    pub stale_write: bool,
    pub stale_act: bool,
    pub unrecorded_kill: bool,
}

/// Rows of `turns`, `jobs`, `blocks` and `cancel_requests` of one turn. All turns are of one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    pub status: Status,
    pub settled: u8,
    pub job: Option<Job>,
    /// Attempt and line of each, in the order of their seq.
    pub blocks: Vec<(u8, u8)>,
    pub cancel_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    NotYet,
    /// The enqueueing transaction has looked for jobs of the session, and has not committed yet.
    Enqueueing {
        waits: bool,
    },
    Pending,
    InProgress,
    Completed,
    Cancelled,
}

impl Status {
    pub fn terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    pub state: JobState,
    pub attempt: u8,
    pub offset: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    Waiting,
    Ready,
    /// Without a worker: handed over.
    Leased {
        worker: Option<usize>,
        epoch: Epoch,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Free,
    Held(Held),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    pub stage: Stage,
    pub epoch: Epoch,
    /// The epoch of the claim that took the slot: what the create's Idempotency-Key is made of.
    pub nonce: Epoch,
    pub asked: bool,
    pub sandbox: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Creating,
    Busy,
    Releasing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct E2b {
    /// All that were ever made, by id.
    pub sandboxes: Vec<Sandbox>,
    /// Creates under way: nonce, and whose.
    pub calls: Vec<(Epoch, usize)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sandbox {
    pub nonce: Epoch,
    pub alive: bool,
    /// The highest that the supervisor has seen.
    pub epoch: Epoch,
    pub agents: Vec<Agent>,
}

/// An attempt's directory in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    pub turn: usize,
    pub attempt: u8,
    pub starts: u8,
    /// Of the journal.
    pub lines: u8,
    pub exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    Well,
    Failed,
    Signalled,
}

/// What a worker's process does, in one task; it knows nothing of the world but what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hands {
    Idle,
    Acting(Acting),
    Releasing(Releasing),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "what a worker remembers is independent of each other")]
pub struct Acting {
    pub turn: usize,
    pub epoch: Epoch,
    pub attempt: u8,
    pub offset: u8,
    pub nonce: Epoch,
    pub sandbox: Option<usize>,
    /// The sandbox was known when the job was taken, so that an agent may have run in it.
    pub found: bool,
    /// An earlier create under this nonce may have made a sandbox.
    pub unsure: bool,
    /// `Held::may_exist`.
    pub may_exist: bool,
    /// A create failed: it may be given up.
    pub failed: bool,
    /// The supervisor was asked to start the agent, and the answer was lost.
    pub start_sent: bool,
    pub cancelled: bool,
    pub next: Next,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// `create_asked`.
    Intent,
    Send,
    Wait,
    /// `sandbox_ready`.
    Known,
    /// `run-turn start`.
    Start,
    /// The journal, and `append`; where it ends, what follows from that.
    Follow,
    /// `retry_later`: there was no sandbox.
    GiveUp,
    /// `settle`: somebody asked for it before there was an agent.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Releasing {
    pub epoch: Epoch,
    pub nonce: Epoch,
    pub sandbox: Option<usize>,
    pub may_exist: bool,
    pub gone: bool,
    pub freed: bool,
}

/// Fenced statements of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    CreateAsked { epoch: Epoch },
    SandboxReady { turn: usize, epoch: Epoch, sandbox: usize },
    Append { turn: usize, epoch: Epoch, attempt: u8, from: u8 },
    NextAttempt { turn: usize, epoch: Epoch, attempt: u8, at: u8 },
    RetryLater { turn: usize, epoch: Epoch, attempt: u8, restart: bool },
    Settle { turn: usize, epoch: Epoch, attempt: u8, at: u8, status: Status },
    HandOver { turn: usize, epoch: Epoch },
    SlotFreed { epoch: Epoch },
}

impl World {
    pub fn new(turns: usize, faults: u8, cancels: u8) -> Self {
        let turn = |nth| Turn {
            status: if nth == 0 { Status::Pending } else { Status::NotYet },
            settled: 0,
            job: (nth == 0).then_some(Job { state: JobState::Ready, attempt: 1, offset: 0 }),
            blocks: Vec::new(),
            cancel_asked: false,
        };
        Self {
            turns: (0..turns).map(turn).collect(),
            slot: Slot::Free,
            epochs: 0,
            leases: vec![true; 2],
            e2b: E2b::default(),
            hands: vec![Hands::Idle; 2],
            late: None,
            faults,
            cancels,
            seen: Seen::default(),
        }
    }

    pub fn next_epoch(&mut self) -> Epoch {
        self.epochs += 1;
        self.epochs
    }

    pub fn agents_of(&self, turn: usize) -> impl Iterator<Item = &Agent> {
        self.e2b.sandboxes.iter().flat_map(|sandbox| &sandbox.agents).filter(move |agent| agent.turn == turn)
    }
}
