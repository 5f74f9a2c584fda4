//! What goes wrong and when: all of it follows from the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng as _};
use serde_json::{Value, json};

use super::Args;
use super::fleet::LEASE;
use super::load::{self, Planned};

/// Every kind, and how many of a hundred or so it makes. Each comes at least once, if there are as many faults.
const KINDS: [(&str, usize); 25] = [
    ("worker_kill", 16),
    ("worker_stop", 7),
    ("worker_term", 6),
    ("postgres_crash", 4),
    ("backends_terminated", 8),
    ("e2b_kill", 6),
    ("create_rate_limited", 4),
    ("create_at_capacity", 2),
    ("create_5xx", 4),
    ("create_refused", 2),
    ("create_answer_lost", 5),
    ("create_slow", 3),
    ("calls_5xx", 5),
    ("calls_slow", 3),
    ("call_answer_lost", 4),
    ("kill_answer_lost", 2),
    ("stream_cut", 5),
    ("stream_stalled", 3),
    ("sandbox_vanishes", 6),
    ("cap_changed", 6),
    ("idle_after_select_for_update", 5),
    ("idle_after_enqueue", 4),
    ("idle_after_cancel", 3),
    ("cancel_waiting", 2),
    ("cancel_running", 3),
];

/// One thing that goes wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: &'static str,
    pub at: Duration,
    pub what: What,
}

/// With what it needs. `nth` chooses among whatever there is then.
#[derive(Debug, Clone)]
pub enum What {
    KillWorker {
        nth: usize,
        down: Duration,
    },
    SuspendWorker {
        nth: usize,
        time: Duration,
    },
    ReplaceWorker {
        nth: usize,
    },
    CrashPostgres {
        down: Duration,
    },
    TerminateBackends {
        share: f64,
    },
    KillServer {
        down: Duration,
    },
    /// The local server's own fault.
    Server(Value),
    Vanish {
        nth: u32,
    },
    Cap {
        cap: i32,
    },
    HoldTurns {
        nth: u32,
        time: Duration,
        commit: bool,
    },
    HoldEnqueue {
        turn: Box<Planned>,
        time: Duration,
        commit: bool,
    },
    HoldCancel {
        nth: u32,
        time: Duration,
        commit: bool,
    },
    Cancel {
        nth: u32,
        states: &'static [&'static str],
    },
}

/// All of them, in the order of their times.
pub fn plan(args: &Args) -> Vec<Fault> {
    let mut rng = StdRng::seed_from_u64(args.seed.unwrap_or_default() ^ 0x00c0_ffee);
    let wanted = |kind: &&str| args.only.is_empty() || args.only.iter().any(|only| only == kind);
    let mut once: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).filter(wanted).collect();
    once.shuffle(&mut rng);
    let weighted: Vec<&str> = KINDS.iter().flat_map(|(kind, weight)| std::iter::repeat_n(*kind, *weight)).filter(wanted).collect();
    let mut faults: Vec<Fault> = (0..args.faults)
        .filter_map(|nth| {
            let kind = once.get(nth).copied().or_else(|| weighted.get(rng.random_range(0..weighted.len().max(1))).copied())?;
            // Not before there is something to hit.
            let at = Duration::from_millis(rng.random_range(1000..(args.seconds * 1000).max(1001)));
            Some(Fault { kind, at, what: what(kind, &mut rng, nth, args) })
        })
        .collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn what(kind: &str, rng: &mut StdRng, nth_fault: usize, args: &Args) -> What {
    let nth: u32 = rng.random();
    let worker = rng.random_range(0..args.workers.max(1));
    let millis = |rng: &mut StdRng, from: u64, to: u64| Duration::from_millis(rng.random_range(from..to));
    match kind {
        "worker_kill" => What::KillWorker { nth: worker, down: millis(rng, 0, 1500) },
        "worker_stop" => What::SuspendWorker { nth: worker, time: LEASE + millis(rng, 500, 4000) },
        "worker_term" => What::ReplaceWorker { nth: worker },
        "postgres_crash" => What::CrashPostgres { down: millis(rng, 0, 2000) },
        "backends_terminated" => What::TerminateBackends { share: rng.random_range(0.2..1.0) },
        "e2b_kill" => What::KillServer { down: millis(rng, 0, 2500) },
        "sandbox_vanishes" => What::Vanish { nth },
        "cap_changed" => What::Cap { cap: [4, 10, 16, 28, 36][rng.random_range(0..5)] },
        "idle_after_select_for_update" => What::HoldTurns { nth, time: millis(rng, 1000, 7000), commit: rng.random() },
        "idle_after_enqueue" => {
            let session = format!("sess_held_{}", nth_fault % 3);
            // None that waits for a cancel: whether it was committed may never be known.
            let turn = (0..).map(|_| load::planned(rng, &session, 1_000_000 + nth_fault)).find(|turn| turn.cancel_after.is_none());
            let turn = Box::new(turn.expect("most turns are not cancelled"));
            What::HoldEnqueue { turn, time: millis(rng, 1000, 7000), commit: rng.random_ratio(2, 3) }
        }
        "idle_after_cancel" => What::HoldCancel { nth, time: millis(rng, 1000, 7000), commit: rng.random() },
        "cancel_waiting" => What::Cancel { nth, states: &["waiting", "ready"] },
        "cancel_running" => What::Cancel { nth, states: &["leased"] },
        _ => What::Server(of_server(kind, rng)),
    }
}

/// In the local server's own words.
fn of_server(kind: &str, rng: &mut StdRng) -> Value {
    let times = rng.random_range(1..8);
    let call = ["start", "upload", "download", "stream", "get", "timeout", "kill", "list"][rng.random_range(0..8)];
    let slow = ["start", "upload", "download", "get", "kill"][rng.random_range(0..5)];
    let call_5xx = if call == "stream" { "start" } else { call };
    let fault_5xx = [500, 502, 503, 504][rng.random_range(0..4)];
    match kind {
        "create_rate_limited" => {
            json!({ "on": "create", "times": times, "status": 429, "message": "rate limit exceeded", "retry_after": rng.random_range(0..3) })
        }
        "create_at_capacity" => json!({
            "on": "create", "times": rng.random_range(1..4), "status": 429,
            "message": "you have reached the maximum number of concurrent E2B sandboxes (20)" }),
        "create_5xx" => json!({ "on": "create", "times": times, "status": fault_5xx, "message": "some gateway" }),
        "create_refused" => {
            json!({ "on": "create", "times": times, "status": 500, "message": "no node", "error_code": "sandbox_create_failed" })
        }
        "create_answer_lost" => json!({ "on": "create", "times": rng.random_range(1..5), "lose_answer": true }),
        "create_slow" => json!({ "on": "create", "times": times, "delay_ms": rng.random_range(500..4000) }),
        "calls_5xx" => json!({ "on": call_5xx, "times": times * 2, "status": fault_5xx, "message": "some gateway" }),
        "calls_slow" => json!({ "on": slow, "times": times, "delay_ms": rng.random_range(200..2500) }),
        "call_answer_lost" => json!({ "on": slow, "times": times, "lose_answer": true }),
        "kill_answer_lost" => json!({ "on": "kill", "times": times, "lose_answer": true }),
        "stream_stalled" => json!({ "on": "stream", "times": rng.random_range(1..4), "stall_after_ms": rng.random_range(0..400) }),
        _ => json!({ "on": "stream", "times": times * 2, "cut_after_ms": rng.random_range(0..300) }),
    }
}
