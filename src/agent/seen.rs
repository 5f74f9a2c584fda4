//! What the lines of an attempt say that bears on how it ended.

use serde_json::Value;

/// What the lines said, as far as the outcome needs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// The agent was to go on in its conversation.
    pub resumed: bool,
    pub results: Vec<Value>,
    pub api_error: Option<Value>,
    /// What the CLI is trying again for: `error` of its last `api_retry`, if nothing has come since.
    pub retries_for: Option<String>,
    /// When the account's limit ends, in seconds since 1970.
    pub limit_resets: Option<i64>,
    /// The message that the CLI says is done.
    pub done: Option<String>,
    /// What the model or a tool said.
    pub spoken: u64,
    /// Events of stream-json.
    pub events: u64,
    /// Flat events, which have no result of their own.
    pub flat_events: u64,
    pub garbage: u64,
    pub first_garbage: String,
}

impl Seen {
    /// Whether it has said how it ended.
    pub fn has_result(&self) -> bool {
        !self.results.is_empty()
    }

    pub fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some("result") => {
                // Its text is in the blocks already, and may be megabytes.
                let mut result = event.clone();
                if let Some(text) = event["result"].as_str() {
                    result["result"] = start_of(text, 500).into();
                }
                self.results.push(result);
            }
            Some("thinking" | "content" | "tool_use" | "tool_result") => self.flat_events += 1,
            _ => {
                self.events += 1;
                self.sign(event);
            }
        }
    }

    /// What bears on the outcome without being one.
    fn sign(&mut self, event: &Value) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match (event["type"].as_str(), event["subtype"].as_str()) {
            (Some("assistant" | "user"), _) => {
                self.spoken += 1;
                self.retries_for = None;
            }
            (Some("system"), Some("api_retry")) => self.retries_for = text(&event["error"]),
            (Some("command_lifecycle"), _) if event["state"] == "completed" => self.done = text(&event["command_uuid"]),
            (Some("rate_limit_event"), _) => {
                let info = &event["rate_limit_info"];
                self.limit_resets = info["resetsAt"].as_i64().filter(|_| info["status"] == "rejected");
            }
            _ => {}
        }
    }

    pub fn api_error(&mut self, event: &Value) {
        // A subagent's is its caller's to deal with.
        if event["parent_tool_use_id"].is_null() {
            self.api_error = Some(event.clone());
        }
    }

    pub fn garbage(&mut self, line: &[u8]) {
        if self.garbage == 0 {
            self.first_garbage = start_of(&String::from_utf8_lossy(line).replace('\0', "\u{fffd}"), 200);
        }
        self.garbage += 1;
    }
}

fn start_of(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}
