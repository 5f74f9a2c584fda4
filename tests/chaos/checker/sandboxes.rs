//! Never more sandboxes than the cap, none left, and nobody acts in one under a lower epoch than was seen there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Difference, differs};
use crate::evidence::Evidence;
use crate::ledger::Deed;

pub fn check(evidence: &Evidence, found: &mut Vec<Difference>) {
    let (_, above) = lives(evidence);
    for (at_ms, live, bound) in above {
        differs(found, "cap", None, format!("{live} sandboxes lived at {at_ms}, where at most {bound} may"));
    }
    left(evidence, found);
    epochs(evidence, found);
}

/// The most that ever lived, and each moment in which more did than may.
pub fn lives(evidence: &Evidence) -> (usize, Vec<(i64, usize, i64)>) {
    let mut live: BTreeSet<&str> = BTreeSet::new();
    let mut paused: BTreeSet<&str> = BTreeSet::new();
    let (mut most, mut above) = (0, Vec::new());
    for act in &evidence.acts {
        let sandbox = act.sandbox.as_str();
        match &act.what {
            Deed::Boot(there) => live = there.iter().map(String::as_str).filter(|id| !paused.contains(id)).collect(),
            Deed::Create { .. } => drop(live.insert(sandbox)),
            Deed::Gone { .. } => drop(live.remove(sandbox)),
            Deed::Pause => {
                live.remove(sandbox);
                paused.insert(sandbox);
            }
            Deed::Resume => {
                paused.remove(sandbox);
                live.insert(sandbox);
            }
            _ => continue,
        }
        most = most.max(live.len());
        let bound = bound(evidence, act.at_ms);
        if !matches!(act.what, Deed::Gone { .. } | Deed::Pause) && i64::try_from(live.len()).unwrap_or(i64::MAX) > bound {
            above.push((act.at_ms, live.len(), bound));
        }
    }
    (most, above)
}

/// The cap then, or what was held when it was lowered; while a change was under way, the wider of both.
fn bound(evidence: &Evidence, at_ms: i64) -> i64 {
    let begun = evidence.caps.iter().filter(|change| change.before_ms <= at_ms);
    let settled = evidence.caps.iter().rposition(|change| change.after_ms <= at_ms).unwrap_or(0);
    begun.skip(settled).map(|change| change.cap.max(change.held)).max().unwrap_or(0)
}

fn left(evidence: &Evidence, found: &mut Vec<Difference>) {
    for sandbox in &evidence.listed {
        differs(found, "left", None, format!("sandbox {sandbox} is left"));
    }
    for slot in &evidence.slots_left {
        differs(found, "left", None, format!("a slot is not free: {slot}"));
    }
    let mut live: BTreeSet<&str> = BTreeSet::new();
    for act in &evidence.acts {
        match &act.what {
            Deed::Boot(there) => live = there.iter().map(String::as_str).collect(),
            Deed::Create { .. } => drop(live.insert(&act.sandbox)),
            Deed::Gone { .. } => drop(live.remove(act.sandbox.as_str())),
            _ => {}
        }
    }
    for sandbox in live {
        differs(found, "left", None, format!("sandbox {sandbox} was made and never ended"));
    }
}

/// An act that began after one with a higher epoch had been accepted must not be accepted itself.
fn epochs(evidence: &Evidence, found: &mut Vec<Difference>) {
    let mut highest: BTreeMap<&str, i64> = BTreeMap::new();
    let mut under_way: BTreeMap<(&str, i64), (i64, &str, i64)> = BTreeMap::new();
    for act in &evidence.acts {
        let sandbox = act.sandbox.as_str();
        match &act.what {
            Deed::Began { pid, epoch, verb, .. } => {
                let seen = highest.get(sandbox).copied().unwrap_or(0);
                under_way.insert((sandbox, *pid), (*epoch, verb, seen));
            }
            Deed::Ended { pid, exit: Some(0) } => {
                let Some((epoch, verb, seen)) = under_way.remove(&(sandbox, *pid)) else { continue };
                if epoch < seen {
                    let text = format!("{verb} of epoch {epoch} was accepted in {sandbox} after epoch {seen} had been");
                    differs(found, "epoch", None, text);
                }
                let highest = highest.entry(sandbox).or_default();
                *highest = epoch.max(*highest);
            }
            _ => {}
        }
    }
}
