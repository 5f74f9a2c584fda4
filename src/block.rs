//! Blocks: the pieces of an answer that readers see. No I/O in this module.

use serde_json::{Value, json};

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `{text}`
    Thinking,
    /// `{text}`; with a `kind` it is no word of the agent's: `error`, `warning`, `retraction` …
    Content,
    /// `{tool_name, parameters, tool_use_id}`
    ToolUse,
    /// `{tool_use_id, result, error}`: `result` is always a text, `error` a text or null.
    ToolResult,
}

impl BlockKind {
    /// As in `blocks.type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thinking => "thinking",
            Self::Content => "content",
            Self::ToolUse => "tool_use",
            Self::ToolResult => "tool_result",
        }
    }
}

/// A block before it has a place in its turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// A JSON object with the keys of its kind; may have more.
    pub content: Value,
    /// The `tool_use` whose subagent said it.
    pub parent_tool_use_id: Option<String>,
    /// The uuid of the agent's event that it came from.
    pub source_uuid: Option<String>,
}

impl Block {
    /// Of the turn itself, not of an event.
    pub fn new(kind: BlockKind, content: Value) -> Self {
        Self { kind, content, parent_tool_use_id: None, source_uuid: None }
    }

    /// The end of a call that never got a result.
    pub fn lost_call(tool_use_id: &str, parent_tool_use_id: Option<String>, why: &str) -> Self {
        let content = json!({ "tool_use_id": tool_use_id, "result": "", "error": why, "kind": "lost" });
        Self { parent_tool_use_id, ..Self::new(BlockKind::ToolResult, content) }
    }

    /// What could not be restored of the turns before, said before the answer.
    pub fn context_lost(lost: &[&str], why: &str) -> Self {
        let text = format!("I don't remember all of what was before: {why}");
        Self::new(BlockKind::Content, json!({ "text": text, "kind": "context_lost", "lost": lost, "why": why }))
    }

    /// What went wrong, for clients that only watch blocks.
    pub fn error(code: &str, message: &str) -> Self {
        Self::new(BlockKind::Content, json!({ "text": message, "kind": "error", "code": code }))
    }
}
