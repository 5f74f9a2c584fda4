//! What is said in the end: one JSON object, and what to look at where something is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Args;
use super::checker::{self, Difference};
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::ledger::Deed;
use super::plant;

/// For a person: where to look.
pub fn explain(difference: &Difference, evidence: &Evidence, fleet: &Fleet) -> String {
    let Difference { check, turn, what } = difference;
    let Some(turn) = turn else { return format!("DIFFERENCE {check}: {what}") };
    let mut text = format!("DIFFERENCE {check} in {turn}: {what}");
    for line in evidence.history(turn) {
        text.extend(["\n    ", line.as_str()]);
    }
    for nth in 0..fleet.workers() {
        let log = fleet.log(&format!("worker-{nth}.log"));
        for line in log.lines().filter(|line| line.contains(turn.as_str())).take(30) {
            text.extend(["\n    ", &format!("worker {nth}: {line}")]);
        }
    }
    text
}

/// The figures.
pub fn all(args: &Args, evidence: &Evidence, differences: &[Difference], lies: &plant::Seen, ran: Duration) -> Value {
    let attempts = || evidence.attempts.values().flatten();
    let acts = |of: fn(&Deed) -> Option<String>| counts(evidence.acts.iter().filter_map(|act| of(&act.what)));
    let ended = evidence.turns.iter().filter(|turn| turn.completed_ms.is_some()).count();
    let turns_per_second = (f64::from(u32::try_from(ended).unwrap_or(0)) / ran.as_secs_f64() * 10.0).round() / 10.0;
    json!({
        "seed": args.seed,
        "seconds": ran.as_secs(),
        "workers": args.workers,
        "turns": evidence.turns.len(),
        "turns_per_second": turns_per_second,
        "sessions_of_several": evidence.turns.iter().filter(|turn| turn.ordinal == 2).count(),
        "statuses": counts(evidence.turns.iter().map(|turn| turn.status.clone())),
        "errors": counts(evidence.turns.iter().filter_map(|turn| turn.error_code.clone())),
        "blocks": evidence.blocks.values().map(Vec::len).sum::<usize>(),
        "faults": evidence.kinds.len(),
        "faults_by_kind": counts(evidence.kinds.iter().map(|&kind| kind.to_owned())),
        "faults_that_hit_nothing": evidence.idle.iter().map(|idle| idle.chars().take(120).collect()).collect::<Vec<String>>(),
        "answers_spoiled": acts(|deed| if let Deed::Fault { kind } = deed { Some(kind.clone()) } else { None }),
        "claims": counts(attempts().map(|attempt| attempt.taken.clone())),
        "sandboxes_found": counts(attempts().filter_map(|attempt| attempt.sandbox.clone())),
        "turns_that_recalled": evidence.blocks.values().filter(|blocks| blocks.iter().any(|b| checker::memory::recalled(b).is_some())).count(),
        "context_lost": evidence.blocks.values().flatten().filter(|block| block.content["kind"] == "context_lost").count(),
        "adoptions": attempts().filter(|attempt| attempt.taken == "adopted").count(),
        "agent_starts": evidence.runs.len(),
        "started_over": evidence.turns.iter().filter(|turn| turn.generation > 1).count(),
        "sandboxes": evidence.acts.iter().filter(|act| matches!(act.what, Deed::Create { .. })).count(),
        "kills": acts(|deed| if let Deed::Gone { why } = deed { Some(why.clone()) } else { None }),
        "most_sandboxes": checker::most_sandboxes(evidence),
        "refused_as_fenced": evidence.acts.iter().filter(|act| matches!(act.what, Deed::Ended { exit: Some(75), .. })).count(),
        "pauses_ms": pauses(evidence),
        "lies": { "seen": lies.seen, "missed": lies.missed, "left_out": lies.left_out },
        "differences": differences.iter().map(|d| json!({ "check": d.check, "turn": d.turn, "what": d.what })).collect::<Vec<_>>(),
    })
}

fn counts(words: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

/// From the signal to a worker with a running agent until another worker followed that agent.
fn pauses(evidence: &Evidence) -> Value {
    let mut by_kind: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for strike in &evidence.strikes {
        let of_worker = format!("-{}-", strike.pid);
        for attempts in evidence.attempts.values() {
            let held = attempts.iter().position(|attempt| {
                attempt.worker_id.contains(&of_worker)
                    && attempt.agent_ms.is_some_and(|at| at <= strike.at_ms)
                    && attempt.ended_ms.is_none_or(|at| at >= strike.at_ms)
            });
            let Some(held) = held else { continue };
            let next = attempts[held + 1..].iter().find(|next| next.taken == "adopted" && next.attempt == attempts[held].attempt);
            if let Some(agent_ms) = next.and_then(|next| next.agent_ms) {
                by_kind.entry(strike.kind).or_default().push(agent_ms - strike.at_ms);
            }
        }
    }
    let all: Vec<i64> = by_kind.values().flatten().copied().collect();
    let mut figures = json!({ "all": quantiles(all) });
    for (kind, pauses) in by_kind {
        figures[kind] = quantiles(pauses);
    }
    figures
}

fn quantiles(mut values: Vec<i64>) -> Value {
    values.sort_unstable();
    let at = |percent: usize| values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied();
    json!({ "count": values.len(), "p50": at(50), "p99": at(99), "max": values.last() })
}
