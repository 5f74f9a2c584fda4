//! What can happen to a turn, and what follows from it. No I/O in this module.
//!
//! pending ──claim──▶ in_progress ──settle──▶ completed | failed | cancelled
//!    ▲                    │
//!    └── retry_later ─────┘     next_attempt: the agent again, in the same sandbox
//!
//! A worker reports what [`Happened`] to its attempt; [`RetryPolicy::decide`] turns that into a [`Fate`].

use std::time::Duration;

use crate::agent::{ErrorCode, Failure, Outcome, Verdict};
use crate::keys::Mask;

/// Why a turn failed: a stable code for programs and a text for people, which says the phase and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnError {
    /// Stable, lower case with underscores.
    pub code: String,
    /// One or two sentences.
    pub message: String,
}

impl TurnError {
    /// From a code and a text.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// The terminal statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The agent finished.
    Completed,
    /// It won't; the error says why.
    Failed,
    /// Somebody asked for it.
    Cancelled,
}

impl Ending {
    /// As in `turns.status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a sandbox could not be made ready. The kind says what to do next, the error what users see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupFailure {
    /// Another try may work.
    Retry(TurnError),
    /// E2B's rate limit: not before this has passed.
    RateLimited(Duration, TurnError),
    /// E2B's concurrency limit, which is not this turn's fault; how many it says, where it does.
    AtCapacity(Option<u32>, TurnError),
    /// Our credentials are refused: nobody should claim from the pool.
    Blocked(TurnError),
    /// No try will ever work as the pool is configured.
    Config(TurnError),
    /// The sandbox that was kept for the session is of no use; a new one may be.
    NotKept(TurnError),
}

/// What became of a worker's attempt at a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    /// The agent's process ended by itself.
    AgentEnded(Outcome),
    /// Somebody asked for it, and the agent was stopped.
    Cancelled {
        /// In the asker's words.
        reason: Option<String>,
    },
    /// The turn's time was over, and the agent was stopped.
    TimedOut,
    /// The agent said nothing for this long while no tool of its ran, and was stopped.
    Idle(Duration),
    /// This many workers have died soon after they had taken the turn; nothing was tried.
    Poisoned(u32),
    /// There was no sandbox for it.
    StartupFailed(StartupFailure),
    /// Its attempts so far have spent what the turn may; no other was started.
    BudgetSpent {
        /// Dollars that it may.
        budget_usd: f64,
        /// Dollars that they have.
        spent_usd: f64,
    },
    /// Its agent has no key to its model.
    NoKey {
        /// Why.
        error: TurnError,
        /// Another try may find one.
        passing: bool,
    },
    /// The sandbox is gone, or what watched the agent in it is, and with it the files.
    SandboxLost(String),
    /// The journal is shorter than what was read of it.
    JournalDamaged {
        /// Bytes committed.
        offset: u64,
        /// Bytes there.
        size: u64,
    },
}

/// What follows for the turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// Settle it.
    End {
        /// Its terminal status.
        ending: Ending,
        /// Code and text, unless it completed.
        error: Option<TurnError>,
    },
    /// Put it back into the queue.
    RetryLater {
        /// Not before then.
        delay: Duration,
        /// Counts as a failed start-up.
        charged: bool,
        /// Starts over from scratch.
        restart: bool,
        /// What the whole pool has to know.
        for_pool: ForPool,
        /// For the turn's error columns while it waits.
        why: TurnError,
    },
    /// Start the agent again, in the sandbox that it has.
    NextAttempt {
        /// Not before then.
        delay: Duration,
        /// Goes on in its conversation: finished tool calls are not done again.
        resumes: bool,
        /// It did not take the conversation that it was given: the next one begins anew.
        forgets: bool,
        /// For the turn's error columns until it has ended.
        why: TurnError,
    },
}

impl Fate {
    /// What is said of it without secrets: an error may repeat what an agent or a server has printed.
    #[must_use]
    pub fn masked(mut self, mask: &Mask) -> Self {
        let said = match &mut self {
            Self::End { error, .. } => error.as_mut(),
            Self::RetryLater { why, .. } | Self::NextAttempt { why, .. } => Some(why),
        };
        if let Some(said) = said {
            said.message = mask.text(&said.message).into_owned();
        }
        self
    }
}

/// What one turn's failed start-up says about its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForPool {
    /// Nothing.
    Nothing,
    /// Its credentials are refused: block it.
    Blocked,
    /// E2B's rate limit: nobody creates for this long.
    RateLimited(Duration),
    /// E2B has no room for more than this many, where it says so: nobody creates for a moment.
    AtCapacity(Option<u32>),
}

/// What went wrong with a turn before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setbacks {
    /// Start-ups that failed.
    pub startups: u32,
    /// Attempts whose agent failed.
    pub agents: u32,
    /// Sandboxes that vanished.
    pub sandboxes: u32,
}

/// How often and how fast things are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Start-ups of one turn that may fail before it does.
    pub startup_tries: u32,
    /// Longest first pause after a failed start-up; doubles with each, with full jitter.
    #[serde(with = "humantime_serde")]
    pub startup_delay: Duration,
    /// Longest pause at all.
    #[serde(with = "humantime_serde")]
    pub startup_delay_max: Duration,
    /// Sandboxes of one turn that may vanish before it fails; each restarts it from scratch.
    pub sandboxes_lost_max: u32,
    /// Attempts of one turn whose agent may fail before the turn does.
    pub agent_tries: u32,
    /// First pause after an agent failed; doubles with each.
    #[serde(with = "humantime_serde")]
    pub agent_delay: Duration,
    /// Longest such pause: the sandbox is held meanwhile.
    #[serde(with = "humantime_serde")]
    pub agent_delay_max: Duration,
    /// Workers that may die soon after they have taken one turn, before it is taken for their murderer.
    pub crashes_max: u32,
}

impl RetryPolicy {
    /// Decides a turn's fate. `before` does not count this time; `chance` in 0..1 spreads the retries of a burst.
    pub fn decide(&self, happened: &Happened, before: Setbacks, chance: f64) -> Fate {
        match happened {
            Happened::AgentEnded(outcome) => match &outcome.verdict {
                Verdict::Completed => Fate::End { ending: Ending::Completed, error: None },
                Verdict::Failed(failure) => self.after_agent(failure, before.agents, chance),
            },
            Happened::Cancelled { reason } => Fate::End {
                ending: Ending::Cancelled,
                error: Some(TurnError::new("cancelled", reason.as_deref().unwrap_or("cancelled while it ran"))),
            },
            Happened::TimedOut => failed(
                "turn_timeout",
                "the turn's time limit was over; the agent was stopped and what it said is kept. Raise the pool's turn_timeout_s, or ask for less at once",
            ),
            Happened::Idle(silence) => {
                let message = format!("the agent said nothing for {silence:?} and was stopped; see the pool's idle_timeout_s");
                self.after_agent(&Failure { code: ErrorCode::AgentIdle, message, retryable: true }, before.agents, chance)
            }
            Happened::Poisoned(crashes) => failed(
                "poisoned",
                format!("{crashes} workers died soon after they had taken this turn; look at their logs before you retry it"),
            ),
            Happened::BudgetSpent { budget_usd, spent_usd } => failed(
                ErrorCode::BudgetExhausted.as_str(),
                format!(
                    "the turn's attempts have cost ${spent_usd:.4} of the ${budget_usd} that it may, so none is started any more; what they \
                     said is kept. See its option max_budget_usd and the pool's --turn-budget-usd"
                ),
            ),
            Happened::StartupFailed(failure) => self.after_startup(failure, before.startups, chance),
            Happened::NoKey { error, passing } => self.without_key(error, *passing, before.startups, chance),
            Happened::SandboxLost(cause) => self.after_loss(cause, before.sandboxes, chance),
            Happened::JournalDamaged { offset, size } => failed(
                "journal_damaged",
                format!(
                    "the agent's journal has {size} bytes, but {offset} were already copied from it: something in the sandbox has overwritten it"
                ),
            ),
        }
    }

    fn after_agent(&self, failure: &Failure, failures: u32, chance: f64) -> Fate {
        if !failure.retryable || failures + 1 >= self.agent_tries {
            return failed(failure.code.as_str(), failure.message.clone());
        }
        Fate::NextAttempt {
            // At least half: the model's API has just had all the quick tries of the agent itself.
            delay: doubled(self.agent_delay, failures, self.agent_delay_max).mul_f64(0.5 + chance / 2.0),
            resumes: failure.code.keeps_conversation(),
            forgets: failure.code == ErrorCode::SessionNotFound,
            why: TurnError::new(failure.code.as_str(), format!("{}; it goes on in its sandbox", failure.message)),
        }
    }

    fn after_startup(&self, failure: &StartupFailure, failures: u32, chance: f64) -> Fate {
        let (delay, charged, for_pool, error) = match failure {
            StartupFailure::Config(error) => {
                return failed(&error.code, format!("no sandbox can start as it is configured: {}", error.message));
            }
            StartupFailure::Retry(error) if failures + 1 >= self.startup_tries => {
                return failed(&error.code, format!("no sandbox after {} tries; the last error: {}", failures + 1, error.message));
            }
            StartupFailure::Retry(error) => {
                (doubled(self.startup_delay, failures, self.startup_delay_max).mul_f64(chance), true, ForPool::Nothing, error)
            }
            // Not the turn's own pause: the pool's, so that no other turn runs into the same wall.
            StartupFailure::RateLimited(wait, error) => (Duration::ZERO, false, ForPool::RateLimited(*wait), error),
            StartupFailure::AtCapacity(cap, error) => (Duration::ZERO, false, ForPool::AtCapacity(*cap), error),
            StartupFailure::Blocked(error) => (Duration::ZERO, false, ForPool::Blocked, error),
            StartupFailure::NotKept(error) => (Duration::ZERO, false, ForPool::Nothing, error),
        };
        let why = TurnError::new(&error.code, format!("no sandbox yet: {}", error.message));
        Fate::RetryLater { delay, charged, restart: false, for_pool, why }
    }

    fn without_key(&self, error: &TurnError, passing: bool, failures: u32, chance: f64) -> Fate {
        if !passing {
            return failed(&error.code, format!("no key for the agent: {}", error.message));
        }
        if failures + 1 >= self.startup_tries {
            return failed(&error.code, format!("no key for the agent after {} tries; the last error: {}", failures + 1, error.message));
        }
        Fate::RetryLater {
            delay: doubled(self.startup_delay, failures, self.startup_delay_max).mul_f64(chance),
            charged: true,
            restart: false,
            for_pool: ForPool::Nothing,
            why: TurnError::new(&error.code, format!("no key for the agent yet: {}", error.message)),
        }
    }

    fn after_loss(&self, cause: &str, sandboxes_lost: u32, chance: f64) -> Fate {
        if sandboxes_lost >= self.sandboxes_lost_max {
            return failed("sandbox_lost", format!("the sandbox was lost while the agent ran, {} times: {cause}", sandboxes_lost + 1));
        }
        Fate::RetryLater {
            delay: self.startup_delay.mul_f64(chance),
            charged: false,
            restart: true,
            for_pool: ForPool::Nothing,
            why: TurnError::new(
                "sandbox_lost",
                format!("the sandbox was lost while the agent ran; the turn starts over in a new one: {cause}"),
            ),
        }
    }
}

/// The pause after this many failures.
fn doubled(first: Duration, failures: u32, max: Duration) -> Duration {
    first.saturating_mul(2u32.saturating_pow(failures.min(16))).min(max)
}

fn failed(code: &str, message: impl Into<String>) -> Fate {
    Fate::End { ending: Ending::Failed, error: Some(TurnError::new(code, message)) }
}
