//! One lie for each thing that the checker is to see. A checker that finds nothing may be blind.

use super::checker::check;
use super::checker::memory::recalled;
use super::evidence::{Block, Evidence};
use super::ledger::{Act, Deed};

/// A lie, and the check that must find it.
type Lie = (&'static str, &'static str, fn(&mut Evidence) -> Option<()>);

const LIES: [Lie; 24] = [
    ("a block is missing", "blocks", |e| {
        let (_, blocks) = e.blocks.iter_mut().find(|(_, blocks)| blocks.len() > 2)?;
        blocks.remove(1);
        Some(())
    }),
    ("a block is there twice, under the next seq", "blocks", |e| {
        let (id, blocks) = e.blocks.iter_mut().find(|(_, blocks)| blocks.len() > 2)?;
        blocks.insert(1, blocks[0].clone());
        blocks.iter_mut().zip(0..).for_each(|(block, seq)| block.seq = seq);
        let turn = e.turns.iter_mut().find(|turn| turn.id == *id)?;
        turn.blocks += 1;
        Some(())
    }),
    ("two blocks are swapped", "blocks", |e| {
        let blocks = e.blocks.values_mut().find(|blocks| blocks.len() > 2 && blocks[0].content != blocks[1].content)?;
        let first = blocks[0].content.clone();
        blocks[0].content = std::mem::replace(&mut blocks[1].content, first);
        Some(())
    }),
    ("a completed turn lacks its last block", "blocks", |e| {
        let turn = e.turns.iter_mut().find(|turn| turn.status == "completed" && turn.blocks > 0)?;
        turn.blocks -= 1;
        e.blocks.get_mut(&turn.id)?.pop();
        Some(())
    }),
    ("blocks of a turn that is not there", "blocks", |e| {
        let blocks = e.blocks.values().next()?.clone();
        e.blocks.insert("turn_nobody".to_owned(), blocks);
        Some(())
    }),
    ("an agent is started twice", "starts", |e| {
        let run = e.runs.first()?.clone();
        e.runs.push(run);
        Some(())
    }),
    ("an agent is started in a second sandbox and heard there", "starts", |e| {
        let attempts = e.attempts.values_mut().find(|attempts| attempts.iter().any(|attempt| attempt.agent_ms.is_some()))?;
        let mut second = attempts.iter().find(|attempt| attempt.agent_ms.is_some())?.clone();
        second.sandbox_id = Some("i_other".to_owned());
        attempts.push(second);
        Some(())
    }),
    ("an agent runs for nobody", "starts", |e| {
        let mut run = e.runs.first()?.clone();
        run.message_uuid = "00000000".to_owned();
        e.runs.push(run);
        Some(())
    }),
    ("a first attempt goes on in a conversation", "starts", |e| {
        e.runs.iter_mut().find(|run| run.attempt == 1)?.resumes = true;
        Some(())
    }),
    ("an attempt is on record, but no agent was started", "starts", |e| {
        let turn = e.turns.iter().find(|turn| turn.status == "completed")?;
        e.runs.retain(|run| run.message_uuid != turn.message_uuid);
        Some(())
    }),
    ("a turn claims an attempt that nobody heard", "starts", |e| {
        e.turns.iter_mut().find(|turn| turn.status == "completed")?.attempt += 1;
        Some(())
    }),
    ("a sandbox is left", "left", |e| {
        let nth = e.acts.iter().rposition(|act| matches!(act.what, Deed::Gone { .. }))?;
        e.acts.remove(nth);
        Some(())
    }),
    ("a sandbox too many at the same time", "cap", |e| {
        let first = e.acts.iter().position(|act| matches!(act.what, Deed::Create { .. }))?;
        let at_ms = e.acts[first].at_ms;
        let more = |nth| Act { at_ms, sandbox: format!("i_more{nth}"), what: Deed::Create { turn: String::new() } };
        e.acts.splice(first..first, (0..60).map(more));
        Some(())
    }),
    ("a lower epoch is accepted", "epoch", |e| {
        let nth = e.acts.iter().rposition(|act| matches!(act.what, Deed::Ended { exit: Some(0), .. }))?;
        let sandbox = e.acts[nth].sandbox.clone();
        let at_ms = e.acts[nth].at_ms;
        let late = [Deed::Began { pid: -7, epoch: 0, verb: "probe".to_owned(), attempt: 1 }, Deed::Ended { pid: -7, exit: Some(0) }];
        let acts = late.map(|what| Act { at_ms, sandbox: sandbox.clone(), what });
        e.acts.splice(nth + 1..=nth, acts);
        Some(())
    }),
    ("an acknowledged turn is gone", "lost", |e| {
        let turn = e.turns.iter().position(|turn| turn.key.as_ref().is_some_and(|key| e.acknowledged.contains_key(key)))?;
        e.turns.remove(turn);
        Some(())
    }),
    ("a turn that nobody committed is there", "lost", |e| {
        let mut turn = e.turns.first()?.clone();
        turn.id = "turn_ghost".to_owned();
        turn.key = Some("chaos-ghost".to_owned());
        e.turns.push(turn);
        Some(())
    }),
    ("a turn never ends", "unfinished", |e| {
        e.turns.first_mut()?.completed_ms = None;
        Some(())
    }),
    ("a turn changed after its end", "changed", |e| {
        e.ended.values_mut().next()?.row = "another".to_owned();
        Some(())
    }),
    ("a turn failed for no reason", "error", |e| {
        let turn = e.turns.iter_mut().find(|turn| turn.status == "completed")?;
        turn.status = "failed".to_owned();
        turn.error_code = Some("sandbox_start_failed".to_owned());
        Some(())
    }),
    ("two turns of a session at once", "session", |e| {
        let second = e.turns.iter().find(|turn| turn.ordinal == 2 && e.runs.iter().any(|run| run.message_uuid == turn.message_uuid))?;
        let first = e.turns.iter().find(|turn| turn.session_id == second.session_id && turn.ordinal == 1)?;
        let mut run = e.runs.iter().find(|run| run.message_uuid == second.message_uuid)?.clone();
        let earlier = e.runs.iter().find(|run| run.message_uuid == first.message_uuid)?;
        run.from_ms = earlier.from_ms;
        let uuid = second.message_uuid.clone();
        e.runs.iter_mut().filter(|run| run.message_uuid == uuid).for_each(|old| old.from_ms = run.from_ms);
        Some(())
    }),
    ("an agent has forgotten a turn and does not say so", "memory", |e| {
        let block = recalling(e)?;
        let (_, rest) = block.content["text"].as_str()?.split_once('\n')?;
        block.content["text"] = rest.into();
        Some(())
    }),
    ("an agent remembers what nobody said", "memory", |e| {
        let block = recalling(e)?;
        block.content["text"] = format!("/mock {{\"made\": \"up\"}}\n{}", block.content["text"].as_str()?).into();
        Some(())
    }),
    ("a woken sandbox is not counted", "cap", |e| {
        let first = e.acts.iter().position(|act| matches!(act.what, Deed::Create { .. }))?;
        let at_ms = e.acts[first].at_ms;
        let more = |nth| Act { at_ms, sandbox: format!("i_more{nth}"), what: Deed::Resume };
        e.acts.splice(first..first, (0..60).map(more));
        Some(())
    }),
    ("turns of a session change places", "session", |e| {
        let order = e.order.values_mut().find(|keys| keys.len() > 1)?;
        order.swap(0, 1);
        Some(())
    }),
];

/// A block in which an agent remembers two turns or more, of which the first was answered.
fn recalling(evidence: &mut Evidence) -> Option<&mut Block> {
    let completed: Vec<&str> = evidence.turns.iter().filter(|turn| turn.status == "completed").map(|turn| turn.prompt.as_str()).collect();
    evidence
        .blocks
        .values_mut()
        .flatten()
        .find(|block| recalled(block).and_then(|text| text.split_once('\n')).is_some_and(|(first, _)| completed.contains(&first)))
}

/// What became of the lies.
#[derive(Debug, Default)]
pub struct Seen {
    pub seen: usize,
    /// There was nothing to lie about: too short a run.
    pub left_out: Vec<&'static str>,
    pub missed: Vec<&'static str>,
}

/// Tells each lie to the checker.
pub fn all(evidence: &Evidence) -> Seen {
    let mut all = Seen::default();
    for (what, named, lie) in LIES {
        let mut lied = evidence.clone();
        match lie(&mut lied) {
            Some(()) if check(&lied).iter().any(|difference| difference.check == named) => all.seen += 1,
            Some(()) => all.missed.push(what),
            None => all.left_out.push(what),
        }
    }
    all
}
