//! Whatever an agent prints: nothing panics, every block can be stored, and it does not matter where a worker was
//! cut off. libFuzzer calls this with one journal after the other and keeps those that reach new code.

#![no_main]
// The parser's files are ours by path; not all that they offer is wanted here.
#![allow(dead_code, unused_imports)]

mod agent;
#[path = "../src/block.rs"]
mod block;
#[path = "../src/worker/lines.rs"]
mod lines;
mod mutate;

use agent::{Exit, Fold, Outcome, Verdict};
use block::{Block, BlockKind};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lines::{Line, Lines};
use serde_json::Value;

/// Longer lines are left out, so that those are tried as well.
const LINE_MAX: usize = 6000;

/// Most dollars of `turns.cost_usd`.
const COST_MAX: f64 = 99_999_999.0;

fuzz_target!(|data: &[u8]| {
    // Where the journal is cut, and how the agent ended.
    let [cut, status, journal @ ..] = data else { return };
    let status = [0, 1, 127, 137][usize::from(status % 4)];
    let cut = usize::from(*cut) * journal.len() / 255;

    let (fold, blocks) = read(&[journal]);
    let outcome = fold.outcome(&exit(status));
    for block in blocks.iter().chain(&fold.dangling("why")) {
        is_storable(block);
    }
    is_settleable(&outcome, status);

    let (again, same) = read(&[&journal[..cut], &journal[cut..]]);
    assert_eq!(blocks, same, "chopped at byte {cut}");
    assert_eq!(outcome, again.outcome(&exit(status)));
    adopted(journal, cut, &blocks, &outcome, status);
    repeated(journal);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Every other time by bytes: torn lines, odd escapes.
    let changed = if seed % 2 == 0 && size > 2 { mutate::journal(&data[2..size], seed) } else { None };
    match changed.filter(|changed| changed.len() + 2 <= max_size) {
        Some(changed) => {
            data[2..2 + changed.len()].copy_from_slice(&changed);
            2 + changed.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
});

/// All blocks of a journal that comes in these pieces.
fn read(pieces: &[&[u8]]) -> (Fold, Vec<Block>) {
    let (mut fold, mut blocks) = (Fold::new(Some("ours".to_owned())).resumed(true).with_previews(), Vec::new());
    let mut lines = Lines::new(LINE_MAX);
    for piece in pieces {
        lines.push(piece, |line, _| blocks.extend(take(&mut fold, line)));
    }
    (fold, blocks)
}

fn take(fold: &mut Fold, line: Line) -> Vec<Block> {
    match line {
        Line::Whole(line) => fold.line(&line),
        Line::TooLong(bytes) => fold.oversized(bytes),
    }
}

/// A worker dies at the last whole line before `cut`; another reads from there, after all that was before.
fn adopted(journal: &[u8], cut: usize, blocks: &[Block], outcome: &Outcome, status: i32) {
    let (_, mut written) = read(&[&journal[..cut]]);
    let (mut fold, dropped) = read(&[&journal[..cut]]);
    assert_eq!(written, dropped);
    let whole = journal[..cut].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    Lines::new(LINE_MAX).push(&journal[whole..], |line, _| written.extend(take(&mut fold, line)));
    assert_eq!(written, blocks, "adopted at byte {whole}");
    assert_eq!(*outcome, fold.outcome(&exit(status)));
}

/// A resumed agent may print an event again: that says nothing new, unless the event has no name.
fn repeated(journal: &[u8]) {
    let mut fold = Fold::new(None);
    for line in journal.split(|&byte| byte == b'\n') {
        fold.line(line);
        let again = fold.line(line);
        assert!(again.iter().all(|block| block.source_uuid.is_none()), "{again:?}");
    }
}

fn exit(status: i32) -> Exit {
    Exit { status, stderr_tail: "said at the end".to_owned(), ..Exit::default() }
}

/// The table takes it, and readers find what its type promises.
fn is_storable(block: &Block) {
    let content = block.content.as_object().expect("an object");
    let text = |key: &str| assert!(content.get(key).is_some_and(Value::is_string), "{key} of {block:?}");
    match block.kind {
        BlockKind::Thinking | BlockKind::Content => text("text"),
        BlockKind::ToolUse => {
            text("tool_name");
            text("tool_use_id");
            assert!(content["parameters"].is_object(), "{block:?}");
        }
        BlockKind::ToolResult => {
            text("tool_use_id");
            text("result");
            assert!(content["error"].is_null() || content["error"].is_string(), "{block:?}");
        }
    }
    is_clean(&block.content);
    for column in [&block.parent_tool_use_id, &block.source_uuid].into_iter().flatten() {
        assert!(!column.contains('\0'), "{block:?}");
    }
    // What is read back is read by the same library: it must not be too deep for it.
    let written = block.content.to_string();
    assert!(serde_json::from_str::<Value>(&written).is_ok(), "{written}");
}

/// Neither `jsonb` nor `text` holds NUL; lone surrogates can't be in a String.
fn is_clean(value: &Value) {
    match value {
        Value::String(text) => assert!(!text.contains('\0'), "{text:?}"),
        Value::Array(all) => all.iter().for_each(is_clean),
        Value::Object(all) => all.iter().for_each(|(key, value)| {
            assert!(!key.contains('\0'), "{key:?}");
            is_clean(value);
        }),
        _ => {}
    }
}

fn is_settleable(outcome: &Outcome, status: i32) {
    if let Some(usage) = &outcome.spent.usage {
        is_clean(usage);
    }
    if let Some(cost) = outcome.spent.cost_usd() {
        assert!((0.0..COST_MAX).contains(&cost), "{cost}");
    }
    match &outcome.verdict {
        Verdict::Completed => assert_eq!(status, 0),
        Verdict::Failed(failure) => assert!(!failure.message.is_empty() && !failure.message.contains('\0'), "{failure:?}"),
    }
}
