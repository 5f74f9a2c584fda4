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

/// Those that went on in a conversation, told so by CLAUDE_CODE_RESUME_INTERRUPTED_TURN.
const RESUMED: [&str; 3] = ["final-retry", "rit-slow_tool-4-resume-interrupted", "uv-4-resume-interrupted"];

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
    let find = |kind: &str, key: &str| {
        journal.split(|&byte| byte == b'\n').find_map(|line| {
            let event: Value = serde_json::from_slice(line).ok()?;
            (event["type"] == kind).then(|| event[key].as_str().map(str::to_owned))?
        })
    };
    find("result", "user_message_uuid").or_else(|| find("command_lifecycle", "command_uuid"))
}

fn exit(name: &str) -> Exit {
    let status = STATUS.iter().find(|(capture, _)| *capture == name).map_or(0, |(_, status)| *status);
    Exit { status, ..Exit::default() }
}

#[test]
fn every_capture_gives_the_blocks_and_the_outcome_that_a_reader_would_expect() {
    for (name, journal) in captures() {
        let mut fold = Fold::new(message_uuid(&journal)).resumed(RESUMED.contains(&name.as_str()));
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
            shortened(json!({ "blocks": blocks, "verdict": verdict, "cost_usd": outcome.spent.cost_usd(), "open_calls": open }))
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

/// Readers have the blocks already; the marker says which no longer hold, by their distance.
#[test]
fn what_the_agent_takes_back_is_marked_once_and_can_be_found() {
    let (_, journal) = captures().into_iter().find(|(name, _)| name == "refusal").unwrap();
    let mut fold = Fold::new(None);
    let blocks: Vec<_> = journal.split(|&byte| byte == b'\n').flat_map(|line| fold.line(line)).collect();
    let markers: Vec<_> = blocks.iter().enumerate().filter(|(_, block)| block.content["kind"] == "retraction").collect();
    let [(nth, marker)] = markers[..] else { panic!("{blocks:?}") };
    let back = usize::try_from(marker.content["places_back"][0].as_u64().unwrap()).unwrap();
    assert_eq!(blocks[nth - back].source_uuid.as_deref(), Some("82a311ca-1e13-4ba0-b76b-b338457b4795"));
}

#[test]
fn a_retraction_names_all_blocks_of_the_events_and_none_twice() {
    let lines = [
        r#"{"type":"assistant","uuid":"u1","message":{"content":[{"type":"text","text":"a"},{"type":"thinking","thinking":"b"}]}}"#,
        r#"{"type":"assistant","uuid":"u2","message":{"content":[{"type":"text","text":"c"}]}}"#,
        r#"{"type":"system","subtype":"model_refusal_fallback","uuid":"s","retracted_message_uuids":["u1","a user's"]}"#,
        r#"{"type":"assistant","uuid":"u3","supersedes":["u1","u2"],"message":{"content":[{"type":"text","text":"d"}]}}"#,
        r#"{"type":"assistant","uuid":"u4","supersedes":["u1",7],"message":{"content":[{"type":"text","text":"e"}]}}"#,
    ];
    let mut fold = Fold::new(None);
    let said: Vec<_> = lines.iter().flat_map(|line| fold.line(line.as_bytes())).map(|block| block.content).collect();
    let marker = |back: &[u8]| json!({ "text": "", "kind": "retraction", "places_back": back });
    let text = |text: &str| json!({ "text": text });
    assert_eq!(said, [text("a"), text("b"), text("c"), marker(&[3, 2]), marker(&[2]), text("d"), text("e")]);
    assert_eq!(lines.iter().flat_map(|line| fold.line(line.as_bytes())).count(), 0, "repeated events say nothing new");
}

#[test]
fn a_call_that_is_taken_back_is_open_no_more() {
    let call = |event: &str, id: &str| {
        format!(
            r#"{{"type":"assistant","uuid":"{event}","message":{{"content":[{{"type":"tool_use","id":"{id}","name":"n","input":{{}}}}]}}}}"#
        )
    };
    let mut fold = Fold::new(None);
    for line in [call("u1", "t1"), call("u2", "t2"), r#"{"type":"system","uuid":"s","retracted_message_uuids":["u1"]}"#.to_owned()] {
        fold.line(line.as_bytes());
    }
    let open: Vec<_> = fold.dangling("lost").into_iter().map(|block| block.content["tool_use_id"].clone()).collect();
    assert_eq!(open, ["t2"]);
}

/// Each as the reference has it: what the captures don't happen to contain.
#[test]
fn every_kind_of_part_has_its_block() {
    let part = |kind: &str, part: Value| {
        let event = json!({ "type": kind, "uuid": "u", "parent_tool_use_id": "t0", "message": { "content": [part] } });
        let blocks = Fold::new(None).line(event.to_string().as_bytes());
        assert!(blocks.iter().all(|block| block.parent_tool_use_id.as_deref() == Some("t0")));
        blocks.into_iter().map(|block| json!([block.kind.as_str(), block.content])).next().unwrap_or_default()
    };
    let call = |id: &str, with: Value| {
        let mut content = json!({ "tool_name": "n", "parameters": {}, "tool_use_id": id });
        content.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        json!(["tool_use", content])
    };
    let tool = |kind: &str, input: Value| json!({ "type": kind, "id": "t", "name": "n", "input": input });
    assert_eq!(part("assistant", tool("tool_use", json!({}))), call("t", json!({})));
    assert_eq!(part("assistant", tool("tool_use", Value::Null)), call("t", json!({})));
    assert_eq!(part("assistant", tool("tool_use", json!("x"))), call("t", json!({ "parameters": { "input": "x" } })));
    assert_eq!(part("assistant", tool("server_tool_use", json!({}))), call("t", json!({ "server": true })));
    let mcp = json!({ "type": "mcp_tool_use", "id": "t", "name": "n", "input": {}, "server_name": "s" });
    assert_eq!(part("assistant", mcp), call("t", json!({ "server": true, "server_name": "s" })));
    let unknown = json!({ "type": "future_block_kind", "x": 1 });
    assert_eq!(part("assistant", unknown.clone()), json!(["content", { "text": "", "kind": "unknown", "block": unknown }]));
    assert_eq!(
        part("assistant", json!({ "type": "redacted_thinking", "data": "x" })),
        json!(["thinking", { "text": "", "redacted": true }])
    );
    let result = |content: Value, is_error: Value| {
        part("user", json!({ "type": "tool_result", "tool_use_id": "t", "content": content, "is_error": is_error }))
    };
    let said = |result: &str, error: Value| json!(["tool_result", { "tool_use_id": "t", "result": result, "error": error }]);
    assert_eq!(result(json!("a"), Value::Null), said("a", Value::Null));
    assert_eq!(result(json!("a"), json!(false)), said("a", Value::Null));
    assert_eq!(result(json!("a"), json!(true)), said("a", json!("a")));
    assert_eq!(result(Value::Null, Value::Null), said("", Value::Null));
    assert_eq!(part("user", json!({ "type": "text", "text": "a subagent's prompt" })), Value::Null);
    let alone = Fold::new(None).line(br#"{"type":"assistant","uuid":"u","message":{"content":"alone"}}"#);
    assert_eq!(alone[0].content, json!({ "text": "alone" }));
}

#[test]
fn an_answer_that_ended_well_but_is_cut_says_so() {
    let result = |stop: &str, error: bool| {
        let event = json!({ "type": "result", "uuid": "r", "subtype": "success", "is_error": error, "stop_reason": stop });
        Fold::new(None).line(event.to_string().as_bytes()).into_iter().map(|block| block.content["code"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(result("max_tokens", false), ["max_tokens"]);
    assert_eq!(result("pause_turn", false), ["pause_turn"]);
    assert!(result("end_turn", false).is_empty() && result("max_tokens", true).is_empty());
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
