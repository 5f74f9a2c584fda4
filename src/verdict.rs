//! Is it working? One sentence, from a few numbers. No I/O in this module: the sampler notes the verdict, the dashboard
//! says it.
//!
//! The worst that is true is what is said; the order of [`of`] is the order of what an operator would want to know first.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is wrong.
    Good,
    /// Turns wait, as they have to.
    Busy,
    /// Something is wrong, and something still works.
    Degraded,
    /// Nothing works.
    Down,
}

impl Level {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// What is to be judged.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Workers that are alive.
    pub workers: i64,
    /// Turns that could start, were there room.
    pub ready: i64,
    /// Turns that run.
    pub running: i64,
    /// Age of the oldest that could start, and why it waits.
    pub oldest: Option<(Duration, Option<String>)>,
    /// Slots held, and caps of all pools.
    pub held: i64,
    /// Caps of all pools.
    pub cap: i64,
    /// Pools with their state and its reason, if that is not active.
    pub stopped: Vec<(String, String, Option<String>)>,
    /// Pools there are.
    pub pools: usize,
    /// Starts of the last minutes.
    pub tries: i64,
    /// Attempts of the last minutes that ended with an error.
    pub tries_failed: i64,
    /// What most of them failed of.
    pub commonest: Option<String>,
    /// Slots held for turns that have ended, and releases long overdue.
    pub leaked: usize,
    /// Turns whose agent has said nothing for [`SILENT`].
    pub silent: usize,
    /// Since when nothing starts because somebody has stopped the fleet, and why.
    pub fleet_stopped: Option<(DateTime<Utc>, String)>,
}

/// The sentence, and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How bad.
    pub level: Level,
    /// The same for as long as the same is the matter.
    pub code: &'static str,
    /// For people.
    pub text: String,
}

/// A running turn that has said nothing for so long may be stuck.
pub const SILENT: Duration = Duration::from_secs(900);

/// Ready work that nothing is in the way of is claimed within a second; after this long something is wrong.
const UNCLAIMED: Duration = Duration::from_secs(30);

/// A wait for room that is worth a word.
const LONG_WAIT: Duration = Duration::from_secs(15);

/// The code of the one verdict that says itself since when.
pub const FLEET_STOPPED: &str = "fleet_stopped";

/// Fewer failures than this are no pattern.
const FAILED_MIN: i64 = 5;

/// Of five starts, one that fails.
const FAILED_SHARE: f64 = 0.2;

/// Judges.
pub fn of(facts: &Facts) -> Verdict {
    let say = |level, code, text: String| Verdict { level, code, text };
    // Whatever else there is, nothing of it gets better before that is over.
    if let Some((since, why)) = &facts.fleet_stopped {
        let waits = match facts.ready {
            0 => String::new(),
            1 => " 1 turn waits.".to_owned(),
            ready => format!(" {} wait.", turns(ready)),
        };
        let why = why.trim().trim_end_matches('.');
        return say(
            Level::Degraded,
            FLEET_STOPPED,
            format!("The fleet is stopped since {}: {why}.{waits}", since.format("%Y-%m-%d %H:%M UTC")),
        );
    }
    if facts.workers == 0 && facts.ready + facts.running > 0 {
        let text = format!("No worker is alive: {} wait, {} run on unattended.", turns(facts.ready), turns(facts.running));
        return say(Level::Down, "no_worker", text);
    }
    if let Some(verdict) = blocked(facts) {
        return verdict;
    }
    #[expect(clippy::cast_precision_loss, reason = "a share of small counts")]
    let share = facts.tries_failed as f64 / facts.tries.max(facts.tries_failed).max(1) as f64;
    if facts.tries_failed >= FAILED_MIN && share >= FAILED_SHARE {
        let what =
            facts.commonest.as_deref().and_then(|kind| kind.rsplit_once(' ')).map(|(phase, code)| format!(", most with {code} in {phase}"));
        let level = if share > 0.9 { Level::Down } else { Level::Degraded };
        let text = format!(
            "{:.0} % of attempts fail{}: {} of {} in the last minutes.",
            share * 100.0,
            what.unwrap_or_default(),
            facts.tries_failed,
            facts.tries
        );
        return say(level, "failing", text);
    }
    if let Some((age, None)) = &facts.oldest
        && *age > UNCLAIMED
    {
        return say(Level::Degraded, "unclaimed", format!("Nothing is in the way of {}, and nobody claims.", turns(facts.ready)));
    }
    if facts.leaked > 0 {
        return say(Level::Degraded, "leaked", format!("{} of {} slots are held by nothing that runs.", facts.leaked, facts.cap));
    }
    if facts.silent > 0 {
        let text = format!("{} without a word for {} minutes.", turns(i64::try_from(facts.silent).unwrap_or(0)), SILENT.as_secs() / 60);
        return say(Level::Degraded, "silent", text);
    }
    if facts.workers == 0 {
        return say(Level::Degraded, "no_worker", "No worker is alive. Nothing waits for one.".to_owned());
    }
    waiting(facts)
}

fn blocked(facts: &Facts) -> Option<Verdict> {
    let (pool, _, why) = facts.stopped.iter().find(|(_, state, _)| state == "blocked")?;
    let level = if facts.stopped.len() == facts.pools { Level::Down } else { Level::Degraded };
    let why = why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    Some(Verdict { level, code: "pool_blocked", text: format!("Pool {pool} is blocked, E2B refuses our key{why}.") })
}

fn waiting(facts: &Facts) -> Verdict {
    let say = |level, code, text: String| Verdict { level, code, text };
    let (age, reason) = match &facts.oldest {
        Some((age, reason)) if *age > LONG_WAIT => (*age, reason.as_deref().unwrap_or_default()),
        _ if facts.running == 0 && facts.ready == 0 => return say(Level::Good, "idle", "All is well, and nothing runs.".to_owned()),
        _ => return say(Level::Good, "working", format!("All is well: {} running, nothing waits for long.", turns(facts.running))),
    };
    let waits = format!("{} wait, the oldest for {} s", turns(facts.ready), age.as_secs());
    match reason {
        "no_slot" => say(Level::Busy, "full", format!("Full: {} of {} slots are held; {waits}.", facts.held, facts.cap)),
        "create_rate" => say(Level::Busy, "create_rate", format!("Sandboxes can't be made any faster; {waits}.")),
        "tenant_limit" => say(Level::Busy, "tenant_limit", format!("Tenants are at their limits; {waits}.")),
        "budget" => say(Level::Busy, "budget", format!("A budget of this day is spent; {waits}.")),
        "pool_paused" => say(Level::Busy, "pool_paused", format!("A pool is paused; {waits}.")),
        "backoff" => say(Level::Busy, "backoff", format!("Failed turns wait for their next try; {waits}.")),
        "no_worker" => say(Level::Busy, "workers_full", format!("Every worker has as much as it takes; {waits}.")),
        other => say(Level::Busy, "waiting", format!("Turns wait for {other}; {waits}.")),
    }
}

fn turns(count: i64) -> String {
    if count == 1 { "1 turn".to_owned() } else { format!("{count} turns") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Facts {
        Facts { workers: 2, running: 12, held: 12, cap: 50, pools: 2, tries: 40, ..Facts::default() }
    }

    fn judged(change: impl FnOnce(&mut Facts)) -> (Level, &'static str) {
        let mut facts = fleet();
        change(&mut facts);
        let verdict = of(&facts);
        (verdict.level, verdict.code)
    }

    fn waits(facts: &mut Facts, seconds: u64, reason: Option<&str>) {
        facts.ready = 3;
        facts.oldest = Some((Duration::from_secs(seconds), reason.map(str::to_owned)));
    }

    #[test]
    fn the_worst_that_is_true_is_said() {
        assert_eq!(judged(|_| {}), (Level::Good, "working"));
        assert_eq!(judged(|f| f.running = 0), (Level::Good, "idle"));
        assert_eq!(judged(|f| f.workers = 0), (Level::Down, "no_worker"));
        assert_eq!(judged(|f| (f.workers, f.running) = (0, 0)), (Level::Degraded, "no_worker"));
        let blocked = ("a".to_owned(), "blocked".to_owned(), None);
        assert_eq!(judged(|f| f.stopped = vec![blocked.clone()]), (Level::Degraded, "pool_blocked"));
        assert_eq!(judged(|f| f.stopped = vec![blocked.clone(), blocked.clone()]), (Level::Down, "pool_blocked"));
        assert_eq!(judged(|f| f.tries_failed = 8), (Level::Degraded, "failing"));
        assert_eq!(judged(|f| f.tries_failed = 39), (Level::Down, "failing"));
        assert_eq!(judged(|f| f.tries_failed = 7), (Level::Good, "working"), "less than one of five");
        assert_eq!(judged(|f| (f.tries, f.tries_failed) = (4, 4)), (Level::Good, "working"), "no pattern yet");
        assert_eq!(judged(|f| f.leaked = 1), (Level::Degraded, "leaked"));
        assert_eq!(judged(|f| f.silent = 1), (Level::Degraded, "silent"));
        assert_eq!(judged(|f| waits(f, 31, None)), (Level::Degraded, "unclaimed"));
        assert_eq!(judged(|f| waits(f, 29, None)), (Level::Busy, "waiting"));
        assert_eq!(judged(|f| waits(f, 16, Some("no_slot"))), (Level::Busy, "full"));
        assert_eq!(judged(|f| waits(f, 3, Some("no_slot"))), (Level::Good, "working"));
        assert_eq!(judged(|f| waits(f, 600, Some("tenant_limit"))), (Level::Busy, "tenant_limit"));
    }

    #[test]
    fn a_stopped_fleet_is_what_is_said_with_its_time_and_its_reason() {
        let mut facts = fleet();
        facts.fleet_stopped = Some((DateTime::from_timestamp(1_800_000_000, 0).unwrap(), "by ann: the key has leaked.".to_owned()));
        assert_eq!(of(&facts).text, "The fleet is stopped since 2027-01-15 08:00 UTC: by ann: the key has leaked.");
        (facts.ready, facts.workers, facts.tries_failed) = (1, 0, 39);
        let verdict = of(&facts);
        assert_eq!((verdict.level, verdict.code), (Level::Degraded, FLEET_STOPPED), "whatever else there is");
        assert!(verdict.text.ends_with("leaked. 1 turn waits."), "{}", verdict.text);
    }
}
