//! Changes of journals that leave them journals: whole lines, and values inside of them. What the fuzzer does by
//! itself mostly makes garbage of a line.

use serde_json::{Map, Value, json};

/// Keys and words that the parser looks for, among others that it doesn't.
const WORDS: &[&str] = &[
    "type",
    "subtype",
    "uuid",
    "message",
    "content",
    "text",
    "thinking",
    "tool_use",
    "tool_result",
    "tool_use_id",
    "tool_name",
    "parameters",
    "result",
    "error",
    "id",
    "name",
    "input",
    "is_error",
    "parent_tool_use_id",
    "supersedes",
    "retracted_message_uuids",
    "aborted",
    "citations",
    "local_command_source",
    "is_api_error_message",
    "model",
    "<synthetic>",
    "assistant",
    "user",
    "system",
    "success",
    "completed",
    "terminal_reason",
    "stop_reason",
    "refusal",
    "api_error",
    "api_error_status",
    "errors",
    "usage",
    "total_cost_usd",
    "model_usage_since_last_result",
    "costUSD",
    "user_message_uuid",
    "ours",
    "origin",
    "redacted_thinking",
    "server_tool_use",
    "mcp_tool_use",
    "web_search_tool_result",
    "web_search_tool_result_error",
    "api_retry",
    "authentication_failed",
    "rate_limit",
    "rate_limit_event",
    "rate_limit_info",
    "command_lifecycle",
    "state",
    "image",
    "u1",
    "t1",
];

/// Stands for what no Rust string can hold.
const SURROGATE: &str = "\u{e000}";

/// Small and repeatable: the fuzzer gives the seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % n.max(1)
    }

    fn word(&mut self) -> String {
        WORDS[self.below(WORDS.len())].to_owned()
    }

    fn value(&mut self) -> Value {
        match self.below(14) {
            0 => Value::Null,
            1 => json!(self.below(2) == 1),
            2 => json!(-1),
            3 => json!(1e300),
            4 => json!(429),
            5 => json!(""),
            6 => json!("a\0b"),
            7 => json!(format!("{SURROGATE}x")),
            8 => json!([self.word()]),
            9 => json!({ self.word(): self.word() }),
            10 => json!([{ "type": self.word(), self.word(): self.word() }]),
            11 => json!({ format!("k{SURROGATE}\0"): [1, [2]] }),
            _ => json!(self.word()),
        }
    }
}

/// The next journal to try, after the two bytes that are no part of it; `None` when there is nothing to change.
pub fn journal(bytes: &[u8], seed: u32) -> Option<Vec<u8>> {
    let mut dice = Dice(u64::from(seed));
    let mut lines: Vec<Vec<u8>> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..=dice.below(3) {
        let nth = dice.below(lines.len());
        match dice.below(8) {
            0 => lines.insert(nth, lines[nth].clone()),
            1 if lines.len() > 1 => drop(lines.remove(nth)),
            2 => {
                let other = dice.below(lines.len());
                lines.swap(nth, other);
            }
            3 => lines.insert(nth, event(&mut dice).to_string().into_bytes()),
            _ => {
                let mut value: Value = serde_json::from_slice(&lines[nth]).ok()?;
                change(&mut value, &mut dice);
                lines[nth] = value.to_string().into_bytes();
            }
        }
    }
    Some(String::from_utf8_lossy(&lines.join(&b'\n')).replace(SURROGATE, "\\ud83d").into_bytes())
}

fn event(dice: &mut Dice) -> Value {
    let part = json!({ "type": dice.word(), "text": dice.value(), "id": "t1", "tool_use_id": "t1", dice.word(): dice.value() });
    let kind = ["assistant", "user", "result", "system"][dice.below(4)];
    json!({ "type": kind, "uuid": format!("u{}", dice.below(3)), "message": { "content": [part] }, dice.word(): dice.value() })
}

/// Walks down at random and changes what it comes to.
fn change(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Array(all) if !all.is_empty() && dice.below(5) > 0 => {
            let nth = dice.below(all.len());
            change(&mut all[nth], dice);
        }
        Value::Object(all) if !all.is_empty() && dice.below(5) > 0 => {
            let nth = dice.below(all.len());
            if let Some((_, inner)) = all.iter_mut().nth(nth) {
                change(inner, dice);
            }
        }
        Value::Object(all) => change_keys(all, dice),
        Value::Array(all) => all.push(dice.value()),
        other => *other = dice.value(),
    }
}

fn change_keys(all: &mut Map<String, Value>, dice: &mut Dice) {
    let gone = all.keys().nth(dice.below(all.len())).cloned();
    match gone.filter(|_| dice.below(4) == 0) {
        Some(key) => drop(all.remove(&key)),
        None => drop(all.insert(dice.word(), dice.value())),
    }
}
