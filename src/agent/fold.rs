//! The state over all lines of one attempt, from byte 0.

use std::collections::HashSet;

use serde_json::Value;

use super::blocks::{self, Said};
use super::outcome::{self, Exit, Outcome, Seen};
use super::text;
use crate::block::{Block, BlockKind};

/// Turns an attempt's lines into blocks, one after the other, and their whole into an outcome. The same lines
/// give the same blocks, wherever a worker was cut off: it feeds them all again and drops what is committed.
#[derive(Debug, Clone)]
pub struct Fold {
    /// The uuid under which the agent was given its message.
    message_uuid: Option<String>,
    /// Event and place of every block so far: a resumed agent may repeat events.
    known: HashSet<(String, usize)>,
    /// Calls without a result so far, in order, each with its parent.
    open_calls: Vec<(String, Option<String>)>,
    seen: Seen,
}

impl Fold {
    /// For an attempt whose message had this uuid.
    pub fn new(message_uuid: Option<String>) -> Self {
        Self { message_uuid, known: HashSet::new(), open_calls: Vec::new(), seen: Seen::default() }
    }

    /// The blocks of the next line, given without its newline.
    pub fn line(&mut self, line: &[u8]) -> Vec<Block> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Vec::new();
        }
        let Some(event) = text::parse(line).filter(Value::is_object) else {
            self.seen.garbage(line);
            return Vec::new();
        };
        self.seen.event(&event);
        match blocks::of_event(&event) {
            Said::Blocks(blocks) => blocks.into_iter().filter_map(|(index, block)| self.fresh(index, block)).collect(),
            Said::ApiError => {
                self.seen.api_error(&event);
                Vec::new()
            }
            Said::Nothing => Vec::new(),
        }
    }

    /// The next line was too long to be read.
    pub fn oversized(&mut self, bytes: u64) -> Vec<Block> {
        vec![Block::error("line_too_long", &format!("the agent printed one line of {bytes} bytes, which is left out"))]
    }

    /// Whether a tool is at work.
    pub fn has_open_calls(&self) -> bool {
        !self.open_calls.is_empty()
    }

    /// An end for each call that has none, for a turn that is over.
    pub fn dangling(&self, why: &str) -> Vec<Block> {
        self.open_calls
            .iter()
            .map(|(id, parent)| {
                let content = serde_json::json!({ "tool_use_id": id, "result": "", "error": why, "kind": "lost" });
                Block { parent_tool_use_id: parent.clone(), ..Block::new(BlockKind::ToolResult, content) }
            })
            .collect()
    }

    /// How the attempt ended. Only when all of its lines were fed.
    pub fn outcome(&self, exit: &Exit) -> Outcome {
        outcome::decide(&self.seen, self.message_uuid.as_deref(), exit)
    }

    fn fresh(&mut self, index: usize, block: Block) -> Option<Block> {
        if let Some(uuid) = &block.source_uuid
            && !self.known.insert((uuid.clone(), index))
        {
            return None;
        }
        let call = block.content["tool_use_id"].as_str().unwrap_or_default();
        match block.kind {
            BlockKind::ToolUse => self.open_calls.push((call.to_owned(), block.parent_tool_use_id.clone())),
            BlockKind::ToolResult => self.open_calls.retain(|(id, _)| id != call),
            BlockKind::Thinking | BlockKind::Content => {}
        }
        Some(block)
    }
}
