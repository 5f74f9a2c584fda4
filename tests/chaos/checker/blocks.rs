//! The blocks of each turn are those that its agents said, in order, none twice, none missing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::expected::{End, Played, RECALLED, play};
use super::memory::recalled;
use super::{Difference, differs};
use crate::evidence::{Block, Evidence, Turn};

pub fn check(evidence: &Evidence, found: &mut Vec<Difference>) {
    let known: BTreeSet<&str> = evidence.turns.iter().map(|turn| turn.id.as_str()).collect();
    for (turn, blocks) in &evidence.blocks {
        if !known.contains(turn.as_str()) {
            differs(found, "blocks", Some(turn), format!("{} blocks of no turn", blocks.len()));
        }
    }
    let none = Vec::new();
    for turn in evidence.turns.iter().filter(|turn| turn.completed_ms.is_some()) {
        let Some(script) = turn.key.as_ref().and_then(|key| evidence.scripts.get(key)) else { continue };
        let blocks = evidence.blocks.get(&turn.id).unwrap_or(&none);
        if let Err(what) = of_turn(evidence, turn, &play(script), blocks) {
            differs(found, "blocks", Some(&turn.id), format!("{what}; script {script}"));
        }
    }
}

fn of_turn(evidence: &Evidence, turn: &Turn, tries: &[Played], blocks: &[Block]) -> Result<(), String> {
    if let Some((nth, block)) = blocks.iter().enumerate().find(|(nth, block)| usize::try_from(block.seq) != Ok(*nth)) {
        return Err(format!("block {nth} has seq {}", block.seq));
    }
    if usize::try_from(turn.blocks) != Ok(blocks.len()) {
        return Err(format!("it says that it has {} blocks, and has {}", turn.blocks, blocks.len()));
    }
    if !blocks.is_sorted_by_key(|block| (block.generation, block.attempt)) {
        return Err("blocks of an older attempt come after those of a newer".to_owned());
    }
    // Attempts by generation; each generation begins in a new sandbox, from the start of the script.
    let mut attempts: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for attempt in evidence.attempts.get(&turn.id).into_iter().flatten() {
        let of_generation = attempts.entry(attempt.generation).or_default();
        if !of_generation.contains(&attempt.attempt) {
            of_generation.push(attempt.attempt);
        }
    }
    let said = |generation: i32, attempt: i32| -> Vec<Value> {
        let theirs = blocks.iter().filter(|block| block.generation == generation && block.attempt == attempt);
        theirs
            .map(|block| match recalled(block) {
                Some(_) => json!(["content", { "text": RECALLED }]),
                None => json!([block.kind, block.content]),
            })
            .collect()
    };
    let mut counted = 0;
    for (generation, attempts) in &attempts {
        for (nth, attempt) in attempts.iter().enumerate() {
            let mut said = said(*generation, *attempt);
            counted += said.len();
            // Before all else it says what of the session it has lost, and nothing where it has lost nothing.
            let tells = said.first().is_some_and(|block| block[1]["kind"] == "context_lost");
            let gap = turn.gap && !evidence.kept(&turn.id, *generation);
            if tells != (nth == 0 && gap) && !(said.is_empty() && gap) {
                return Err(format!("generation {generation}, attempt {attempt}: context_lost is said: {tells}, a gap is there: {gap}"));
            }
            if tells {
                said.remove(0);
            }
            let last = nth + 1 == attempts.len();
            let Some(played) = tries.get(nth) else {
                return Err(format!("attempt {attempt} has no part in its script"));
            };
            let complete = if !last {
                whole(played, &said, "the agent failed before this call returned")
            } else if *generation < turn.generation {
                // Cut off with its sandbox.
                beginning(&played.blocks, &said)
            } else {
                last_attempt(turn, played, said)
            };
            complete.map_err(|what| format!("generation {generation}, attempt {attempt}: {what}"))?;
        }
    }
    if counted == blocks.len() { Ok(()) } else { Err(format!("{} blocks belong to no attempt", blocks.len() - counted)) }
}

/// The attempt with which the turn ended.
fn last_attempt(turn: &Turn, played: &Played, mut said: Vec<Value>) -> Result<(), String> {
    let code = turn.error_code.as_deref().unwrap_or_default();
    match turn.status.as_str() {
        "completed" => exactly(&played.blocks, &said),
        "cancelled" => cut_short(played, &said, "the turn was cancelled before this call returned"),
        _ => {
            let error = said.pop().ok_or("a failed turn has a last block that says so")?;
            if error[0] != "content" || error[1]["kind"] != "error" || error[1]["code"] != code || error[1]["text"] == "" {
                return Err(format!("the last block should tell the error {code}, and is {error}"));
            }
            let why = "the turn failed before this call returned";
            let by_itself = matches!(&played.end, End::Failed { code: ours, .. } if ours == code);
            if by_itself { whole(played, &said, why) } else { cut_short(played, &said, why) }
        }
    }
}

/// All of it, and an end for each call without one.
fn whole(played: &Played, said: &[Value], why: &str) -> Result<(), String> {
    let ends = played.open.iter().map(|id| lost_call(id, why));
    exactly(&played.blocks.iter().cloned().chain(ends).collect::<Vec<_>>(), said)
}

/// The beginning of it, and an end for each call that had none by then.
fn cut_short(played: &Played, said: &[Value], why: &str) -> Result<(), String> {
    let ends = said.iter().rev().take_while(|block| block[1]["kind"] == "lost").count();
    let (own, ends) = said.split_at(said.len() - ends);
    beginning(&played.blocks, own)?;
    let is_open = |call: &&Value| !own.iter().any(|block| block[0] == "tool_result" && block[1]["tool_use_id"] == call[1]["tool_use_id"]);
    let open = own.iter().filter(|block| block[0] == "tool_use").filter(is_open);
    let expected: Vec<Value> = open.map(|call| lost_call(call[1]["tool_use_id"].as_str().unwrap_or_default(), why)).collect();
    exactly(&expected, ends).map_err(|what| format!("ends of calls that were cut off: {what}"))
}

fn lost_call(id: &str, why: &str) -> Value {
    json!(["tool_result", { "tool_use_id": id, "result": "", "error": why, "kind": "lost" }])
}

fn beginning(expected: &[Value], said: &[Value]) -> Result<(), String> {
    exactly(&expected[..said.len().min(expected.len())], said)
}

fn exactly(expected: &[Value], said: &[Value]) -> Result<(), String> {
    let short = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), |v| v.to_string().chars().take(300).collect());
    let nth = (0..expected.len().max(said.len())).find(|nth| expected.get(*nth) != said.get(*nth));
    nth.map_or(Ok(()), |nth| {
        let counts = format!("{} expected, {} there", expected.len(), said.len());
        Err(format!("block {nth} should be {}, is {} ({counts})", short(expected.get(nth)), short(said.get(nth))))
    })
}
