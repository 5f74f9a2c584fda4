//! Claude Code's stream-json, as far as the stand-in speaks it.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::script::Step;

/// Characters of a piece: about a model's token.
const PIECE_CHARS: usize = 4;

/// What to do for a step.
#[derive(Debug)]
pub(super) enum Act {
    Say(Vec<Vec<u8>>),
    Sleep(Duration),
    Hang,
    Exit { code: u8, last: Vec<Vec<u8>> },
}

/// Makes events with uuids that follow from the message and their place.
#[derive(Debug)]
pub(super) struct Speech {
    message_uuid: String,
    count: u64,
    last: Vec<u8>,
    /// What this process has cost.
    spent_usd: f64,
}

/// A script without prices costs this in all.
const NEXT_TO_NOTHING_USD: f64 = 0.0001;

impl Speech {
    pub fn new(message_uuid: &str) -> Self {
        Self::going_on(message_uuid, 0)
    }

    /// Behind this many events.
    pub fn going_on(message_uuid: &str, count: u64) -> Self {
        Self { message_uuid: message_uuid.to_owned(), count, last: Vec::new(), spent_usd: 0.0 }
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.count
    }

    /// So much more was spent; whether that is more than it may be.
    pub fn spend(&mut self, usd: f64, most_usd: Option<f64>) -> bool {
        self.spent_usd += usd;
        most_usd.is_some_and(|most| self.spent_usd >= most)
    }

    /// What the real one says, between two calls of the model, when it has spent what it may.
    pub fn budget_spent(&mut self, most_usd: f64) -> Vec<u8> {
        let result = json!({
            "type": "result", "subtype": "error_max_budget_usd", "is_error": true, "terminal_reason": "budget_exhausted",
            "stop_reason": "tool_use", "errors": [format!("Reached maximum budget (${most_usd})")], "user_message_uuid": self.message_uuid,
        });
        self.priced(result)
    }

    /// A result, with what the process has cost.
    fn priced(&mut self, mut result: Value) -> Vec<u8> {
        let usd = if self.spent_usd > 0.0 { self.spent_usd } else { NEXT_TO_NOTHING_USD };
        let output = 10 * self.count;
        result["total_cost_usd"] = usd.into();
        result["usage"] = json!({ "input_tokens": 100, "output_tokens": output });
        result["model_usage_since_last_result"] = json!({ "mock": { "inputTokens": 100, "outputTokens": output, "costUSD": usd } });
        self.event(result)
    }

    /// What the real one says when it is to resume a conversation that isn't there.
    pub fn no_conversation(&mut self) -> Vec<Vec<u8>> {
        vec![self.event(json!({
            "type": "result", "subtype": "error_during_execution", "is_error": true,
            "errors": ["No conversation found with this session ID"], "total_cost_usd": 0, "usage": {},
        }))]
    }

    pub fn init(&mut self) -> Vec<u8> {
        self.event(json!({ "type": "system", "subtype": "init", "model": "mock", "tools": ["Bash", "Read", "Grep"], "claude_code_version": "turnmill-mock" }))
    }

    pub fn step(&mut self, step: &Step) -> Act {
        Act::Say(match step {
            Step::Thinking(text) => vec![self.assistant(&json!({ "type": "thinking", "thinking": text }))],
            Step::Text(text) => vec![self.assistant(&json!({ "type": "text", "text": text }))],
            // Only who runs as a process has a conversation.
            Step::Recall | Step::Read(_) | Step::Clock(_) => vec![self.assistant(&json!({ "type": "text", "text": "" }))],
            Step::Huge(bytes) => vec![self.assistant(&json!({ "type": "text", "text": "m".repeat(*bytes) }))],
            Step::Tool(tool) => {
                let id = format!("toolu_mock{:04}", self.count);
                let mut said = vec![self.assistant(&json!({ "type": "tool_use", "id": id, "name": tool.name, "input": tool.input }))];
                if let Some(result) = &tool.result {
                    let part = json!({ "type": "tool_result", "tool_use_id": id, "content": result, "is_error": tool.failed });
                    said.push(
                        self.event(json!({ "type": "user", "message": { "role": "user", "content": [part] }, "parent_tool_use_id": null })),
                    );
                }
                said
            }
            Step::ApiError(error) => return self.api_error(&error.error, error.status, &error.message),
            Step::Write(_) | Step::Delete(_) => Vec::new(),
            Step::Raw(line) => vec![format!("{line}\n").into_bytes()],
            Step::Torn(line) => vec![line.clone().into_bytes()],
            Step::InvalidUtf8 => {
                let line = self.assistant(&json!({ "type": "text", "text": "bytes: @@" }));
                vec![line.iter().map(|&byte| if byte == b'@' { 0xff } else { byte }).collect()]
            }
            Step::Repeat => vec![self.last.clone()],
            Step::SleepMs(time) => return Act::Sleep(Duration::from_millis(*time)),
            Step::Hang => return Act::Hang,
            Step::Exit(code) => return Act::Exit { code: *code, last: Vec::new() },
        })
    }

    /// What comes before a step's block when the words are printed one by one, as with --include-partial-messages.
    pub fn pieces(&self, step: &Step) -> Vec<Vec<u8>> {
        let (block, kind, text) = match step {
            Step::Thinking(text) => (json!({ "type": "thinking", "thinking": "" }), "thinking", text.clone()),
            Step::Text(text) => (json!({ "type": "text", "text": "" }), "text", text.clone()),
            Step::Tool(tool) => {
                (json!({ "type": "tool_use", "id": "toolu_mock", "name": tool.name, "input": {} }), "input_json", tool.input.to_string())
            }
            _ => return Vec::new(),
        };
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars.chunks(PIECE_CHARS).map(|piece| self.piece(kind, &piece.iter().collect::<String>()));
        self.opening(&block).into_iter().chain(pieces).collect()
    }

    /// A block begins.
    pub fn opening(&self, block: &Value) -> Vec<Vec<u8>> {
        let message = json!({ "id": self.message_id(), "role": "assistant", "content": [] });
        vec![
            self.partial(&json!({ "type": "message_start", "message": message })),
            self.partial(&json!({ "type": "content_block_start", "index": 0, "content_block": block })),
        ]
    }

    /// It goes on.
    pub fn piece(&self, kind: &str, text: &str) -> Vec<u8> {
        let key = if kind == "input_json" { "partial_json" } else { kind };
        self.partial(&json!({ "type": "content_block_delta", "index": 0, "delta": { "type": format!("{kind}_delta"), key: text } }))
    }

    /// Without a part in the numbers, and thereby the uuids, of events.
    fn partial(&self, event: &Value) -> Vec<u8> {
        let event = json!({ "type": "stream_event", "event": event, "parent_tool_use_id": null, "api_message_id": self.message_id() });
        format!("{event}\n").into_bytes()
    }

    fn message_id(&self) -> String {
        format!("msg_mock{:04}", self.count)
    }

    /// The good end.
    pub fn result(&mut self) -> Vec<u8> {
        let result = json!({
            "type": "result", "subtype": "success", "is_error": false, "terminal_reason": "completed", "stop_reason": "end_turn",
            "num_turns": 1, "result": "", "user_message_uuid": self.message_uuid,
        });
        self.priced(result)
    }

    /// What the real one says at SIGINT.
    pub fn interrupted(&mut self, message_uuid: &str) -> Vec<Vec<u8>> {
        let text = json!({ "type": "text", "text": "[Request interrupted by user]" });
        vec![
            self.event(json!({ "type": "user", "message": { "role": "user", "content": [text] }, "parent_tool_use_id": null })),
            self.priced(json!({
                "type": "result", "subtype": "error_during_execution", "is_error": true, "terminal_reason": "aborted_streaming",
                "stop_reason": null, "errors": ["Request was aborted."], "user_message_uuid": message_uuid,
            })),
        ]
    }

    fn api_error(&mut self, error: &str, status: u16, message: &str) -> Act {
        let retry =
            json!({ "type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 1, "error_status": status, "error": error });
        let words = json!({
            "type": "assistant", "error": error, "is_api_error_message": true, "api_error_status": status, "parent_tool_use_id": null,
            "message": { "role": "assistant", "model": "<synthetic>", "content": [{ "type": "text", "text": message }] },
        });
        let result = json!({
            "type": "result", "subtype": "success", "is_error": true, "terminal_reason": "api_error", "stop_reason": "stop_sequence",
            "api_error_status": status, "result": message, "total_cost_usd": self.spent_usd, "user_message_uuid": self.message_uuid,
            "model_usage_since_last_result": { "mock": { "inputTokens": 0, "outputTokens": 0, "costUSD": self.spent_usd } },
        });
        Act::Exit { code: 1, last: [retry, words, result].into_iter().map(|event| self.event(event)).collect() }
    }

    fn assistant(&mut self, part: &Value) -> Vec<u8> {
        let message = json!({ "id": self.message_id(), "role": "assistant", "model": "mock", "content": [part] });
        self.last = self.event(json!({ "type": "assistant", "message": message, "parent_tool_use_id": null }));
        self.last.clone()
    }

    fn event(&mut self, mut event: Value) -> Vec<u8> {
        let digest = Sha256::digest(format!("{}/{}", self.message_uuid, self.count));
        self.count += 1;
        let bytes = digest.first_chunk::<16>().copied().unwrap_or_default();
        event["uuid"] = uuid::Builder::from_random_bytes(bytes).into_uuid().to_string().into();
        format!("{event}\n").into_bytes()
    }
}
