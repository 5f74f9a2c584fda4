//! Compares what the system says with what the ledgers say. Nothing here is the product's code, nor calls it.
//!
//! | file | holds |
//! | --- | --- |
//! | `turns` | none lost, none made up, each ended once and for ever, sessions in order, errors explained |
//! | `blocks`, `expected` | each turn's blocks are those that its agents said |
//! | `memory` | agents remember their sessions, or say what is lost |
//! | `starts` | an agent is started once per attempt and sandbox |
//! | `sandboxes` | never above the cap, none left, nobody acts under a lower epoch |

mod blocks;
pub mod expected;
pub mod memory;
mod sandboxes;
mod starts;
mod turns;

use std::collections::BTreeMap;

use super::evidence::{Evidence, Turn};
use super::ledger::Deed;

/// Something that is not as it should be.
#[derive(Debug, Clone)]
pub struct Difference {
    pub check: &'static str,
    pub turn: Option<String>,
    pub what: String,
}

/// Everything that is not as it should be.
pub fn check(evidence: &Evidence) -> Vec<Difference> {
    let fates = fates(evidence);
    let mut found = Vec::new();
    turns::check(evidence, &fates, &mut found);
    blocks::check(evidence, &mut found);
    memory::check(evidence, &mut found);
    starts::check(evidence, &fates, &mut found);
    sandboxes::check(evidence, &mut found);
    found
}

/// The most that ever lived at the same time.
pub fn most_sandboxes(evidence: &Evidence) -> usize {
    sandboxes::lives(evidence).0
}

fn differs(found: &mut Vec<Difference>, check: &'static str, turn: Option<&str>, what: impl Into<String>) {
    found.push(Difference { check, turn: turn.map(str::to_owned), what: what.into() });
}

/// What became of a sandbox, by the server's ledger.
#[derive(Debug, Clone)]
pub struct Life {
    pub turn: String,
    /// Lost without a request of ours.
    pub vanished: bool,
    pub gone_ms: Option<i64>,
}

/// By sandbox.
fn fates(evidence: &Evidence) -> BTreeMap<String, Life> {
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    let unseen = |at_ms| Life { turn: String::new(), vanished: false, gone_ms: Some(at_ms) };
    for act in &evidence.acts {
        match &act.what {
            Deed::Create { turn } => {
                lives.insert(act.sandbox.clone(), Life { turn: turn.clone(), vanished: false, gone_ms: None });
            }
            Deed::Gone { why } => {
                let life = lives.entry(act.sandbox.clone()).or_insert_with(|| unseen(act.at_ms));
                life.gone_ms = Some(act.at_ms);
                life.vanished = why != "request";
            }
            // Killed by a server that was killed before it could write that down.
            Deed::Boot(there) => {
                for (_, life) in lives.iter_mut().filter(|(id, life)| life.gone_ms.is_none() && !there.contains(id)) {
                    life.gone_ms = Some(act.at_ms);
                }
                for id in there {
                    lives.entry(id.clone()).or_insert_with(|| Life { turn: String::new(), vanished: false, gone_ms: None });
                }
            }
            _ => {}
        }
    }
    lives
}

/// Sandboxes that this turn used and that were taken from it.
fn lost_sandboxes(evidence: &Evidence, fates: &BTreeMap<String, Life>, turn: &Turn) -> usize {
    let attempts = evidence.attempts.get(&turn.id).map(Vec::as_slice).unwrap_or_default();
    let mut used: Vec<&String> = attempts.iter().filter_map(|attempt| attempt.sandbox_id.as_ref()).collect();
    used.sort();
    used.dedup();
    // One that the server never noted was promised by a server that was killed before it made it.
    used.iter().filter(|id| fates.get(**id).is_none_or(|life| life.vanished)).count()
}
