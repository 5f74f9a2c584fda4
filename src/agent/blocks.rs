//! One event → its blocks.

use serde_json::{Map, Value, json};

use crate::block::{Block, BlockKind};

/// What an event says, as far as readers care.
#[derive(Debug)]
pub(super) enum Said {
    /// Blocks, each with its place in the event.
    Blocks(Vec<(usize, Block)>),
    /// The model or its API failed; the CLI's own words.
    ApiError,
    /// Nothing for readers.
    Nothing,
}

/// The blocks of one event.
pub(super) fn of_event(event: &Value) -> Said {
    match event["type"].as_str() {
        Some("assistant") if is_api_error(event) => Said::ApiError,
        Some("assistant") => Said::Blocks(parts(event, of_assistant)),
        Some("user") => Said::Blocks(parts(event, of_user)),
        Some("result") => Said::Blocks(warning(event).into_iter().map(|block| (0, block)).collect()),
        Some("thinking" | "content" | "tool_use" | "tool_result") => Said::Blocks(vec![(0, flat(event))]),
        _ => Said::Nothing,
    }
}

fn is_api_error(event: &Value) -> bool {
    event["is_api_error_message"] == true || (event["message"]["model"] == "<synthetic>" && event["error"].is_string())
}

/// An answer that ended well and is not whole.
fn warning(result: &Value) -> Option<Block> {
    let why = match result["stop_reason"].as_str() {
        Some("max_tokens") => "the answer is cut: it was longer than the model may write",
        Some("pause_turn") => "the answer is cut: the model paused and was not asked to go on",
        _ => return None,
    };
    let content = json!({ "text": why, "kind": "warning", "code": result["stop_reason"] });
    let good = result["is_error"] != true;
    good.then(|| Block { source_uuid: result["uuid"].as_str().map(str::to_owned), ..Block::new(BlockKind::Content, content) })
}

fn parts(event: &Value, map: fn(&Value, &Value) -> Option<(BlockKind, Value)>) -> Vec<(usize, Block)> {
    let text = |key: &str| event[key].as_str().map(str::to_owned);
    let content = &event["message"]["content"];
    // A text alone stands for one part.
    let alone = content.as_str().map(|text| json!({ "type": "text", "text": text }));
    let parts = content.as_array().map_or(alone.as_slice(), Vec::as_slice);
    parts
        .iter()
        .enumerate()
        .filter_map(|(index, part)| {
            let (kind, content) = map(event, part)?;
            let block = Block { kind, content, parent_tool_use_id: text("parent_tool_use_id"), source_uuid: text("uuid") };
            Some((index, block))
        })
        .collect()
}

fn of_assistant(event: &Value, part: &Value) -> Option<(BlockKind, Value)> {
    let mut block = match part["type"].as_str()? {
        "text" => (BlockKind::Content, json!({ "text": text(&part["text"]) })),
        "thinking" => (BlockKind::Thinking, json!({ "text": text(&part["thinking"]) })),
        "redacted_thinking" => (BlockKind::Thinking, json!({ "text": "", "redacted": true })),
        "tool_use" => (BlockKind::ToolUse, tool_use(part)),
        "server_tool_use" => (BlockKind::ToolUse, with(tool_use(part), "server", true)),
        "mcp_tool_use" => (BlockKind::ToolUse, with(with(tool_use(part), "server", true), "server_name", text(&part["server_name"]))),
        kind if kind.ends_with("_tool_result") => (BlockKind::ToolResult, with(tool_result(part, server_error(part)), "server", true)),
        _ => (BlockKind::Content, json!({ "text": "", "kind": "unknown", "block": part })),
    };
    for (key, theirs) in [("citations", &part["citations"]), ("aborted", &event["aborted"])] {
        if !theirs.is_null() && block.0 == BlockKind::Content {
            block.1[key] = theirs.clone();
        }
    }
    if event["local_command_source"].is_string() {
        block.1["kind"] = "local_command".into();
    }
    Some(block)
}

/// Of what comes under the user's name only the tools' results are news: the rest is the prompt, a subagent's
/// prompt, or the CLI talking to the model.
fn of_user(_: &Value, part: &Value) -> Option<(BlockKind, Value)> {
    (part["type"] == "tool_result").then(|| (BlockKind::ToolResult, tool_result(part, part["is_error"] == true)))
}

fn flat(event: &Value) -> Block {
    let said = || text(if event["content"].is_null() { &event["text"] } else { &event["content"] });
    let content = match event["type"].as_str() {
        Some("tool_use") => {
            json!({ "tool_name": text(&event["tool_name"]), "parameters": object(&event["parameters"]), "tool_use_id": text(&event["tool_use_id"]) })
        }
        Some("tool_result") => {
            let error = if event["error"].is_null() { Value::Null } else { text(&event["error"]).into() };
            json!({ "tool_use_id": text(&event["tool_use_id"]), "result": text(&event["result"]), "error": error })
        }
        _ => json!({ "text": said() }),
    };
    let kind = match event["type"].as_str() {
        Some("thinking") => BlockKind::Thinking,
        Some("tool_use") => BlockKind::ToolUse,
        Some("tool_result") => BlockKind::ToolResult,
        _ => BlockKind::Content,
    };
    Block { source_uuid: event["uuid"].as_str().map(str::to_owned), ..Block::new(kind, content) }
}

fn tool_use(part: &Value) -> Value {
    json!({ "tool_name": text(&part["name"]), "parameters": object(&part["input"]), "tool_use_id": text(&part["id"]) })
}

fn tool_result(part: &Value, failed: bool) -> Value {
    let content = &part["content"];
    let result = match content {
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        other => text(other),
    };
    let error = if failed { Value::from(result.as_str()) } else { Value::Null };
    let block = json!({ "tool_use_id": text(&part["tool_use_id"]), "result": result, "error": error });
    // Images, search results and the like: a text can't hold them.
    match content {
        Value::String(_) | Value::Null => block,
        original => with(block, "original", original.clone()),
    }
}

fn server_error(part: &Value) -> bool {
    part["is_error"] == true || part["content"]["type"].as_str().is_some_and(|kind| kind.ends_with("_error"))
}

fn with(mut block: Value, key: &str, value: impl Into<Value>) -> Value {
    block[key] = value.into();
    block
}

/// A text as it is, nothing as an empty one, anything else as its JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Parameters are an object: what a model makes up beside that is kept in one.
fn object(value: &Value) -> Value {
    match value {
        Value::Object(_) => value.clone(),
        Value::Null => Value::Object(Map::new()),
        other => json!({ "input": other }),
    }
}
