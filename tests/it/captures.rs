//! What the real Claude Code 2.1.330 printed, as blocks and outcomes; and that it makes no difference where a
//! worker was cut off. The captures are in `tests/fixtures/captures`.

use std::path::PathBuf;

use insta::assert_json_snapshot;
use serde_json::{Value, json};
use turnmill::agent::{Exit, Fold, Verdict, mock};

/// Exit codes of the captured processes that did not end with 0.
const STATUS: [(&str, i32); 16] = [
    ("err-conn-refused", 1),
    ("err-e400_credit", 1),
    ("err-e401", 1),
    ("err-e404", 1),
    ("err-e429", 1),
    ("err-e529", 1),
    ("max_tokens", 1),
    ("maxbudget", 1),
    ("maxturns", 1),
    ("refusal", 1),
    ("retry2-e529", 1),
    ("sess-7-resume-unknown", 1),
    ("uv-1-e529", 1),
    ("sig-SIGKILL-tool", 137),
    ("sig-SIGTERM-tool", 143),
    ("rit-slow_tool-1-killed", 137),
];

fn captures() -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    assert!(all.len() > 30, "the captures are there");
    all
}

/// The uuid under which the CLI was given its message, where it was given one.
fn message_uuid(journal: &[u8]) -> Option<String> {
    journal.split(|&byte| byte == b'\n').find_map(|line| {
        let event: Value = serde_json::from_slice(line).ok()?;
        (event["type"] == "result").then(|| event["user_message_uuid"].as_str().map(str::to_owned))?
    })
}

fn exit(name: &str) -> Exit {
    let status = STATUS.iter().find(|(capture, _)| *capture == name).map_or(0, |(_, status)| *status);
    Exit { status, ..Exit::default() }
}

#[test]
fn every_capture_gives_the_blocks_and_the_outcome_that_a_reader_would_expect() {
    for (name, journal) in captures() {
        let mut fold = Fold::new(message_uuid(&journal));
        let blocks: Vec<Value> = journal
            .split(|&byte| byte == b'\n')
            .flat_map(|line| fold.line(line))
            .map(|block| shortened(json!({ "type": block.kind.as_str(), "content": block.content, "parent": block.parent_tool_use_id })))
            .collect();
        let outcome = fold.outcome(&exit(&name));
        let verdict = match &outcome.verdict {
            Verdict::Completed => json!("completed"),
            Verdict::Failed(failure) => {
                json!({ "code": failure.code.as_str(), "retryable": failure.retryable, "message": failure.message })
            }
        };
        let open = fold.dangling("lost").len();
        assert_json_snapshot!(
            name,
            shortened(json!({ "blocks": blocks, "verdict": verdict, "cost_usd": outcome.cost_usd, "open_calls": open }))
        );
    }
}

/// Long texts as their start and length, so that a snapshot can be read.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > 200 => {
            json!(format!("{}… ({} characters)", text.chars().take(160).collect::<String>(), text.chars().count()))
        }
        Value::Array(all) => all.into_iter().map(shortened).collect(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, shortened(value))).collect(),
        other => other,
    }
}

#[test]
fn wherever_a_capture_is_cut_and_adopted_the_blocks_are_the_same() {
    let mock_scripts = mock::Script::find("hostile").into_iter().chain(mock::Script::find("tools"));
    let mocks = mock_scripts.map(|script| ("mock".to_owned(), mock::lines(&script, "11111111-0000-4000-8000-000000000000").concat()));
    for (name, journal) in captures().into_iter().chain(mocks) {
        let uuid = message_uuid(&journal);
        let lines: Vec<&[u8]> = journal.split_inclusive(|&byte| byte == b'\n').collect();
        let mut whole = Fold::new(uuid.clone());
        let expected: Vec<_> = lines.iter().flat_map(|line| whole.line(line)).collect();
        let expected_outcome = whole.outcome(&exit(&name));
        for cut in 0..=lines.len() {
            let mut first = Fold::new(uuid.clone());
            let mut blocks: Vec<_> = lines[..cut].iter().flat_map(|line| first.line(line)).collect();
            // The adopter has nothing but the journal and the offset: it reads again, and drops what is committed.
            let mut second = Fold::new(uuid.clone());
            lines[..cut].iter().for_each(|line| drop(second.line(line)));
            blocks.extend(lines[cut..].iter().flat_map(|line| second.line(line)));
            assert_eq!(blocks, expected, "{name} cut at line {cut}");
            assert_eq!(second.outcome(&exit(&name)), expected_outcome, "{name} cut at line {cut}");
        }
    }
}

#[test]
fn flat_events_of_the_original_proposal_are_blocks_too() {
    let lines = [
        r#"{"type":"thinking","content":"hm"}"#,
        r#"{"type":"content","content":"hello"}"#,
        r#"{"type":"tool_use","tool_name":"read_file","parameters":{"path":"a"},"tool_use_id":"t1"}"#,
        r#"{"type":"tool_result","tool_use_id":"t1","result":{"lines":3},"error":null}"#,
        r#"{"type":"tool_result","tool_use_id":"t2","result":null,"error":"no such file"}"#,
    ];
    let mut fold = Fold::new(None);
    let blocks: Vec<_> =
        lines.iter().flat_map(|line| fold.line(line.as_bytes())).map(|block| json!([block.kind.as_str(), block.content])).collect();
    assert_eq!(
        blocks,
        [
            json!(["thinking", { "text": "hm" }]),
            json!(["content", { "text": "hello" }]),
            json!(["tool_use", { "tool_name": "read_file", "parameters": { "path": "a" }, "tool_use_id": "t1" }]),
            json!(["tool_result", { "tool_use_id": "t1", "result": "{\"lines\":3}", "error": null }]),
            json!(["tool_result", { "tool_use_id": "t2", "result": "", "error": "no such file" }]),
        ]
    );
    assert!(fold.outcome(&Exit::default()).completed(), "these have no result of their own: the exit code decides");
    assert!(!fold.outcome(&Exit { status: 1, ..Exit::default() }).completed());
}

#[test]
fn an_event_that_is_repeated_makes_its_blocks_once() {
    let (_, journal) = captures().into_iter().find(|(name, _)| name == "parallel").unwrap();
    let lines: Vec<&[u8]> = journal.split(|&byte| byte == b'\n').collect();
    let (mut once, mut twice) = (Fold::new(None), Fold::new(None));
    let expected: Vec<_> = lines.iter().flat_map(|line| once.line(line)).collect();
    let doubled: Vec<_> = lines.iter().flat_map(|line| [twice.line(line), twice.line(line)].concat()).collect();
    assert_eq!((expected.len(), doubled), (8, expected));
}

#[test]
fn a_call_without_a_result_gets_one_when_the_turn_is_over() {
    let (_, journal) = captures().into_iter().find(|(name, _)| name == "sig-SIGKILL-tool").unwrap();
    let mut fold = Fold::new(None);
    let blocks: Vec<_> = journal.split(|&byte| byte == b'\n').flat_map(|line| fold.line(line)).collect();
    let call = blocks.iter().find(|block| block.kind.as_str() == "tool_use").unwrap();
    let ends = fold.dangling("the turn was cancelled");
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].kind.as_str(), &ends[0].content["tool_use_id"]), ("tool_result", &call.content["tool_use_id"]));
    assert_eq!(ends[0].content["error"], "the turn was cancelled");
}

proptest::proptest! {
    #[test]
    fn no_line_stops_the_parser(lines in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..80), 0..8)) {
        let mut fold = Fold::new(None);
        for line in &lines {
            fold.line(line);
        }
        fold.outcome(&Exit::default());
    }

    #[test]
    fn no_shape_of_event_stops_the_parser(kind in "assistant|user|result|system|content|tool_use|tool_result|x", key in "message|content|uuid|error|type", value in "null|1|\"t\"|\\[\\]|\\{\\}|\\[\\{\"type\":\"text\"\\}\\]|\\{\"content\":\\[\\{\"type\":\"tool_result\"\\}, 3\\]\\}") {
        let mut fold = Fold::new(None);
        fold.line(format!(r#"{{"type":"{kind}","{key}":{value}}}"#).as_bytes());
        fold.outcome(&Exit::default());
    }
}
