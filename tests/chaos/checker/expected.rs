//! What a script makes of a turn: an interpreter of its own, written from what the agents print, not from the code
//! that reads it.

use serde_json::{Value, json};

/// One start of the agent: its blocks as `[type, content]`, and how it ended.
#[derive(Debug, Clone)]
pub struct Played {
    pub blocks: Vec<Value>,
    /// Calls that got no result.
    pub open: Vec<String>,
    pub end: End,
}

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Finished,
    /// With this error code; whether another attempt follows in the same sandbox.
    Failed {
        code: String,
        again: bool,
    },
    Hangs,
}

/// Stands for what an agent remembers, which is `memory`'s business.
pub const RECALLED: &str = "(what it remembers)";

/// The stand-in numbers its events; a resumed one leaves this many numbers out.
const LEFT_OUT: u64 = 8;

/// All starts in one sandbox, one after the other: a resumed agent goes on behind the step that failed.
pub fn play(script: &Value) -> Vec<Played> {
    let steps = script["steps"].as_array().cloned().unwrap_or_default();
    let foreign = script["foreign"] == true;
    let mut all = Vec::new();
    let (mut next_step, mut events) = (0, 0);
    loop {
        let mut played = Played { blocks: Vec::new(), open: Vec::new(), end: End::Finished };
        events += u64::from(!foreign);
        let mut failed_at = None;
        for (nth, step) in steps.iter().enumerate().skip(next_step) {
            let before = events;
            if let Some(end) = perform(step, &mut events, &mut played) {
                played.end = end;
                failed_at = Some((nth, before));
                break;
            }
        }
        if foreign {
            played.end = End::Failed { code: "agent_garbage".to_owned(), again: false };
        }
        let again = matches!(played.end, End::Failed { again: true, .. });
        all.push(played);
        let Some((nth, before)) = failed_at.filter(|_| again) else { return all };
        next_step = nth + 1;
        events = before + LEFT_OUT;
    }
}

/// `Some`: the agent ends here.
fn perform(step: &Value, events: &mut u64, played: &mut Played) -> Option<End> {
    let failed = |code: &str, again| Some(End::Failed { code: code.to_owned(), again });
    let mut say = |kind: &str, content: Value| {
        *events += 1;
        played.blocks.push(json!([kind, content]));
    };
    let (name, value) = match step.as_str() {
        Some(name) => (name, &Value::Null),
        None => step.as_object().and_then(|object| object.iter().next()).map(|(name, value)| (name.as_str(), value))?,
    };
    match name {
        "hang" => return Some(End::Hangs),
        "invalid_utf8" => say("content", json!({ "text": "bytes: \u{fffd}\u{fffd}" })),
        "text" => say("content", json!({ "text": value })),
        "recall" => say("content", json!({ "text": RECALLED })),
        "thinking" => say("thinking", json!({ "text": value })),
        "huge" => say("content", json!({ "text": "m".repeat(usize::try_from(value.as_u64()?).ok()?) })),
        "tool" => tool(value, events, played),
        "api_error" => {
            let code = value["error"].as_str().unwrap_or_default();
            return failed(code, !matches!(code, "authentication_failed" | "invalid_request"));
        }
        "exit" => {
            return match value.as_i64().unwrap_or_default() {
                129.. => failed("agent_killed", true),
                0 => failed("agent_interrupted", true),
                _ => failed("agent_crashed", true),
            };
        }
        // Nothing that a reader would see, or what he has seen.
        _ => {}
    }
    None
}

fn tool(value: &Value, events: &mut u64, played: &mut Played) {
    let id = format!("toolu_mock{events:04}");
    *events += 1;
    played.blocks.push(json!(["tool_use", { "tool_name": value["name"], "parameters": value["input"], "tool_use_id": id }]));
    if value["result"].is_null() {
        return played.open.push(id);
    }
    *events += 1;
    let error = if value["failed"] == true { value["result"].clone() } else { Value::Null };
    played.blocks.push(json!(["tool_result", { "tool_use_id": id, "result": value["result"], "error": error }]));
}
