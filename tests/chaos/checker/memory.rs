//! What agents remember of their sessions: the messages before, each once and in order. None that was answered is missing,
//! unless it was said that something was lost.

use std::collections::BTreeMap;

use super::{Difference, differs};
use crate::evidence::{Block, Evidence, Turn};

/// What the agent remembered, where the block tells that: the messages before, a line each, of which none has two.
pub fn recalled(block: &Block) -> Option<&str> {
    let text = block.content["text"].as_str().filter(|_| block.kind == "content" && block.content.get("kind").is_none())?;
    (text.is_empty() || text.starts_with("/mock {")).then_some(text)
}

pub fn check(evidence: &Evidence, found: &mut Vec<Difference>) {
    let mut sessions: BTreeMap<&str, Vec<&Turn>> = BTreeMap::new();
    for turn in &evidence.turns {
        sessions.entry(&turn.session_id).or_default().push(turn);
    }
    for turns in sessions.values_mut() {
        turns.sort_by_key(|turn| turn.ordinal);
        // The turns since something was lost, and said to be.
        let mut since: Vec<&Turn> = Vec::new();
        let mut before: Vec<&str> = Vec::new();
        for turn in turns.iter() {
            let blocks = evidence.blocks.get(&turn.id).map(Vec::as_slice).unwrap_or_default();
            let told = |block: &Block| block.content["lost"].as_array().is_some_and(|lost| lost.contains(&"conversation".into()));
            let lost = blocks.iter().any(|block| block.content["kind"] == "context_lost" && told(block));
            if lost {
                since.clear();
            }
            for text in blocks.iter().filter_map(recalled) {
                let messages: Vec<&str> = text.lines().collect();
                if !in_order(&messages, &before) {
                    differs(found, "memory", Some(&turn.id), format!("it remembers what was not said, or not so: {messages:?}"));
                }
                let forgotten = since.iter().find(|turn| turn.status == "completed" && !messages.contains(&turn.prompt.as_str()));
                if let Some(forgotten) = forgotten {
                    differs(found, "memory", Some(&turn.id), format!("it has forgotten {} and does not say so", forgotten.id));
                }
            }
            since.push(turn);
            before.push(&turn.prompt);
        }
    }
}

/// Whether these are some of those, each once and in their order.
fn in_order(some: &[&str], all: &[&str]) -> bool {
    let mut all = all.iter();
    some.iter().all(|message| all.any(|said| said == message))
}
