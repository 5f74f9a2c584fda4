//! Agents start as the database says: once per attempt and sandbox, and never again once somebody heard them.

use std::collections::BTreeMap;

use super::{Difference, Life, differs};
use crate::evidence::Evidence;
use crate::ledger::AgentRun;

pub fn check(evidence: &Evidence, fates: &BTreeMap<String, Life>, found: &mut Vec<Difference>) {
    let mut runs: BTreeMap<&str, Vec<&AgentRun>> = BTreeMap::new();
    for run in &evidence.runs {
        runs.entry(&run.message_uuid).or_default().push(run);
    }
    let sessions: BTreeMap<&str, &str> = evidence.turns.iter().map(|turn| (turn.id.as_str(), turn.session_id.as_str())).collect();
    for turn in &evidence.turns {
        let own = runs.remove(turn.message_uuid.as_str()).unwrap_or_default();
        let attempts = evidence.attempts.get(&turn.id).map(Vec::as_slice).unwrap_or_default();
        let mut once: BTreeMap<(&str, i64), usize> = BTreeMap::new();
        for run in &own {
            *once.entry((&run.sandbox, run.attempt)).or_default() += 1;
            let made_for = fates.get(&run.sandbox).map(|life| life.turn.as_str()).filter(|made_for| !made_for.is_empty());
            if made_for.is_some_and(|made_for| sessions.get(made_for) != Some(&turn.session_id.as_str())) {
                differs(found, "starts", Some(&turn.id), format!("its agent ran in a sandbox of another session: {run:?}"));
            }
            if !attempts.iter().any(|attempt| i64::from(attempt.attempt) == run.attempt) {
                differs(found, "starts", Some(&turn.id), format!("no attempt is on record for this start: {run:?}"));
            }
            // The first attempt of each generation goes on from the turns before, if their conversation was saved or is in
            // the sandbox that was kept; every other from the attempt before.
            let generation = |attempt: i64| attempts.iter().find(|a| i64::from(a.attempt) == attempt).map(|a| a.generation);
            let first = run.attempt == 1 || generation(run.attempt - 1) != generation(run.attempt);
            let kept = !turn.nothing && generation(run.attempt).is_some_and(|generation| evidence.kept(&turn.id, generation));
            let goes_on = !first || turn.remembers || kept;
            if goes_on != run.resumes {
                differs(found, "starts", Some(&turn.id), format!("attempt {} resumes: {}", run.attempt, run.resumes));
            }
        }
        for ((sandbox, attempt), times) in once.iter().filter(|(_, times)| **times > 1) {
            differs(found, "starts", Some(&turn.id), format!("attempt {attempt} was started {times} times in {sandbox}"));
        }
        // An attempt that was heard of is never done again: neither here nor elsewhere.
        let mut heard: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
        for attempt in attempts.iter().filter(|attempt| attempt.agent_ms.is_some()) {
            let sandboxes = heard.entry(attempt.attempt).or_default();
            let sandbox = attempt.sandbox_id.as_deref().unwrap_or_default();
            if !sandboxes.contains(&sandbox) {
                sandboxes.push(sandbox);
            }
            // Killed before its first breath, it may have noted nothing.
            let taken_away = fates.get(sandbox).is_none_or(|life| life.vanished) || turn.status == "cancelled";
            if !once.contains_key(&(sandbox, i64::from(attempt.attempt))) && !taken_away {
                differs(found, "starts", Some(&turn.id), format!("attempt {} is said to run, but no agent was started", attempt.attempt));
            }
        }
        let newest = heard.keys().max().copied().unwrap_or(0);
        if turn.attempt != newest {
            differs(found, "starts", Some(&turn.id), format!("it says that it had {} attempts, but {newest} were heard", turn.attempt));
        }
        for (attempt, sandboxes) in heard.iter().filter(|(_, sandboxes)| sandboxes.len() > 1) {
            differs(found, "starts", Some(&turn.id), format!("attempt {attempt} ran in {sandboxes:?}"));
        }
    }
    for (message, runs) in runs {
        differs(found, "starts", None, format!("{} starts for the message {message} of no turn", runs.len()));
    }
}
