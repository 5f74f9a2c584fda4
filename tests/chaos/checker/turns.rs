//! No turn is lost, made up, unfinished, changed after its end, out of order or failed without a reason.

use std::collections::{BTreeMap, BTreeSet};

use super::expected::{End, play};
use super::{Difference, Life, differs, lost_sandboxes};
use crate::evidence::{Evidence, Turn};
use crate::fleet::{AGENT_TRIES, SANDBOXES_LOST_MAX};

pub fn check(evidence: &Evidence, fates: &BTreeMap<String, Life>, found: &mut Vec<Difference>) {
    presence(evidence, found);
    for turn in &evidence.turns {
        if turn.completed_ms.is_none() {
            differs(found, "unfinished", Some(&turn.id), format!("it is {} for ever; it waits for: {:?}", turn.status, turn.job));
            continue;
        }
        why_it_ended(evidence, fates, turn, found);
        match (evidence.ended.get(&turn.id), evidence.ended_now.get(&turn.id)) {
            (Some(then), Some(now)) if then != now => {
                differs(found, "changed", Some(&turn.id), format!("it changed after its end: {then:?}, now {now:?}"));
            }
            _ => {}
        }
    }
    if evidence.jobs_left > 0 && evidence.turns.iter().all(|turn| turn.completed_ms.is_some()) {
        differs(found, "unfinished", None, format!("all turns have ended, but {} jobs are left", evidence.jobs_left));
    }
    for panic in &evidence.panics {
        differs(found, "panic", None, panic.clone());
    }
    for refused in &evidence.refused {
        differs(found, "refused", None, refused.clone());
    }
    sessions(evidence, fates, found);
}

/// Acknowledged = there; there = in the web app's table too, by the same transaction.
fn presence(evidence: &Evidence, found: &mut Vec<Difference>) {
    let there: BTreeMap<&str, &Turn> = evidence.turns.iter().filter_map(|turn| Some((turn.key.as_deref()?, turn))).collect();
    for (key, id) in &evidence.acknowledged {
        if there.get(key.as_str()).is_none_or(|turn| turn.id != *id) {
            differs(found, "lost", Some(id), format!("its enqueue ({key}) was acknowledged, but it is not there"));
        }
    }
    let own: BTreeSet<(&str, &str)> = evidence.messages.iter().map(|(key, id)| (key.as_str(), id.as_str())).collect();
    let theirs: BTreeSet<(&str, &str)> = there.iter().map(|(key, turn)| (*key, turn.id.as_str())).collect();
    for (key, id) in own.symmetric_difference(&theirs) {
        differs(found, "lost", Some(id), format!("the caller's transaction ({key}) has only one of its two rows"));
    }
    for turn in &evidence.turns {
        let sent = turn.key.as_ref().and_then(|key| evidence.scripts.get(key));
        if sent.is_none_or(|script| turn.prompt != format!("/mock {script}")) {
            differs(found, "made_up", Some(&turn.id), "nobody enqueued it so");
        }
    }
}

/// Its status follows from its script, from a cancel that was sent, or from sandboxes that were taken away.
fn why_it_ended(evidence: &Evidence, fates: &BTreeMap<String, Life>, turn: &Turn, found: &mut Vec<Difference>) {
    let Some(script) = turn.key.as_ref().and_then(|key| evidence.scripts.get(key)) else { return };
    let code = turn.error_code.as_deref();
    let said = || format!("{} {code:?}: {:?}", turn.status, turn.error_message);
    let lost = lost_sandboxes(evidence, fates, turn);
    let restarts = usize::try_from(turn.generation - 1).unwrap_or(0);
    if restarts > lost.min(SANDBOXES_LOST_MAX) {
        differs(found, "error", Some(&turn.id), format!("it started over {restarts} times, with {lost} sandboxes taken away"));
    }
    let tries = play(script);
    let last = tries.last().map(|played| played.end.clone());
    // Failed attempts count over the whole turn, also those that were done again in another sandbox.
    let failures = |code: Option<&str>| {
        let mut ends = tries.iter().map(|played| &played.end);
        ends.any(|end| matches!(end, End::Failed { code: ours, again: true } if Some(ours.as_str()) == code))
            && (tries.len() - 1) * (restarts + 1) >= AGENT_TRIES
    };
    let explained = match turn.status.as_str() {
        "completed" => last == Some(End::Finished),
        "cancelled" => evidence.cancelled.contains(&turn.id),
        _ => match (code, last) {
            (Some("sandbox_lost"), _) => restarts == SANDBOXES_LOST_MAX && lost > SANDBOXES_LOST_MAX,
            (Some(code), Some(End::Failed { code: expected, again: false })) => code == expected || failures(Some(code)),
            (code, _) => failures(code),
        },
    };
    if !explained {
        differs(found, "error", Some(&turn.id), format!("no fault explains this end: {} ({lost} sandboxes were taken away)", said()));
    }
}

/// In order and one at a time: by the database's times, and by when agents really ran.
fn sessions(evidence: &Evidence, fates: &BTreeMap<String, Life>, found: &mut Vec<Difference>) {
    let mut sessions: BTreeMap<&str, Vec<&Turn>> = BTreeMap::new();
    for turn in &evidence.turns {
        sessions.entry(&turn.session_id).or_default().push(turn);
    }
    let runs = runs_by_message(evidence, fates);
    for (session, mut turns) in sessions {
        turns.sort_by_key(|turn| turn.ordinal);
        if turns.iter().zip(1..).any(|(turn, nth)| turn.ordinal != nth) {
            let ordinals: Vec<i32> = turns.iter().map(|turn| turn.ordinal).collect();
            differs(found, "session", None, format!("the turns of {session} are not numbered from 1: {ordinals:?}"));
        }
        let place = |key: &String| turns.iter().position(|turn| turn.key.as_ref() == Some(key));
        let acknowledged: Vec<_> = evidence.order.get(session).into_iter().flatten().filter_map(place).collect();
        if !acknowledged.is_sorted() {
            differs(found, "session", None, format!("the turns of {session} are not in the order of their enqueues: {acknowledged:?}"));
        }
        let (mut ended, mut ran) = ((i64::MIN, ""), (i64::MIN, ""));
        for turn in turns {
            if let Some(started) = turn.started_ms.filter(|started| *started < ended.0) {
                let text = format!("it was claimed {} ms before {} of its session had ended", ended.0 - started, ended.1);
                differs(found, "session", Some(&turn.id), text);
            }
            if let Some((from, to)) = runs.get(turn.message_uuid.as_str()) {
                if *from < ran.0 {
                    let text = format!("its agent started {} ms before that of {} of its session had ended", ran.0 - from, ran.1);
                    differs(found, "session", Some(&turn.id), text);
                }
                ran = ran.max((*to, &turn.id));
            }
            if turn.started_ms.is_some() {
                ended = ended.max((turn.completed_ms.unwrap_or(i64::MAX), &turn.id));
            }
        }
    }
}

/// When agents ran for a message: from the first start to the last end. One without an end of its own ended with its
/// sandbox.
fn runs_by_message<'a>(evidence: &'a Evidence, fates: &BTreeMap<String, Life>) -> BTreeMap<&'a str, (i64, i64)> {
    let mut runs: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for run in &evidence.runs {
        let gone = fates.get(&run.sandbox).and_then(|life| life.gone_ms).unwrap_or(i64::MAX);
        let to = run.to_ms.unwrap_or(gone).min(gone);
        let (from, last) = runs.entry(&run.message_uuid).or_insert((run.from_ms, to));
        *from = run.from_ms.min(*from);
        *last = to.max(*last);
    }
    runs
}
