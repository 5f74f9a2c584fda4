//! The state over all lines of one attempt, from byte 0.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::blocks::{self, Said};
use super::outcome::{self, Exit, Outcome};
use super::preview::Previews;
use super::seen::Seen;
use super::text;
use crate::block::{Block, BlockKind};

/// Turns an attempt's lines into blocks, one after the other, and their whole into an outcome. The same lines
/// give the same blocks, wherever a worker was cut off: it feeds them all again and drops what is committed.
#[derive(Debug, Clone)]
pub struct Fold {
    /// The uuid under which the agent was given its message.
    message_uuid: Option<String>,
    /// Per event its blocks. A resumed agent may repeat events.
    known: HashMap<String, Vec<Known>>,
    /// Blocks so far.
    said: usize,
    /// Events that the agent has taken back.
    retracted: HashSet<String>,
    /// Calls without a result so far, in order, each with its parent.
    open_calls: Vec<(String, Option<String>)>,
    seen: Seen,
    /// Where somebody may watch.
    previews: Option<Previews>,
    /// The last line was a piece of a block.
    piece: bool,
}

/// A block that is out.
#[derive(Debug, Clone)]
struct Known {
    /// Its place in its event.
    index: usize,
    /// Which of all blocks it is.
    nth: usize,
    /// The call that it is.
    call: Option<String>,
}

impl Fold {
    /// For an attempt whose message had this uuid.
    pub fn new(message_uuid: Option<String>) -> Self {
        Self {
            message_uuid,
            known: HashMap::new(),
            said: 0,
            retracted: HashSet::new(),
            open_calls: Vec::new(),
            seen: Seen::default(),
            previews: None,
            piece: false,
        }
    }

    /// Takes note also of what is not a block yet.
    #[must_use]
    pub fn with_previews(mut self) -> Self {
        self.previews = Some(Previews::default());
        self
    }

    /// What is not a block yet, if it is taken note of.
    pub fn previews(&self) -> Option<&Previews> {
        self.previews.as_ref()
    }

    /// The agent was told to go on in its conversation: saying nothing, it may have ended before.
    #[must_use]
    pub fn resumed(mut self, resumed: bool) -> Self {
        self.seen.resumed = resumed;
        self
    }

    /// The blocks of the next line, given without its newline.
    pub fn line(&mut self, line: &[u8]) -> Vec<Block> {
        self.piece = false;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Vec::new();
        }
        let Some(event) = text::parse(line).filter(Value::is_object) else {
            self.seen.garbage(line);
            return Vec::new();
        };
        self.piece = event["type"] == "stream_event";
        self.seen.event(&event);
        if let Some(previews) = &mut self.previews {
            previews.event(&event);
        }
        let mut said: Vec<Block> = self.retraction(&event).into_iter().collect();
        match blocks::of_event(&event) {
            Said::Blocks(blocks) => said.extend(blocks.into_iter().filter_map(|(index, block)| self.fresh(index, block))),
            Said::ApiError => self.seen.api_error(&event),
            Said::Nothing => {}
        }
        said
    }

    /// Whether the last line was only a piece of a block that comes whole.
    pub fn was_piece(&self) -> bool {
        self.piece
    }

    /// The next line was too long to be read.
    pub fn oversized(&mut self, bytes: u64) -> Vec<Block> {
        self.said += 1;
        vec![Block::error("line_too_long", &format!("the agent printed one line of {bytes} bytes, which is left out"))]
    }

    /// Whether nothing need be heard of it: a tool is at work, or it has given its result and its files are saved.
    pub fn may_be_silent(&self) -> bool {
        !self.open_calls.is_empty() || self.seen.has_result()
    }

    /// An end for each call that has none, for a turn that is over.
    pub fn dangling(&self, why: &str) -> Vec<Block> {
        self.open_calls.iter().map(|(id, parent)| Block::lost_call(id, parent.clone(), why)).collect()
    }

    /// How the attempt ended. Only when all of its lines were fed.
    pub fn outcome(&self, exit: &Exit) -> Outcome {
        outcome::decide(&self.seen, self.message_uuid.as_deref(), exit)
    }

    /// A marker, where an event takes back others whose blocks are out already: readers have them, and they can't
    /// change. It says how many places before it they stand.
    fn retraction(&mut self, event: &Value) -> Option<Block> {
        let named = [&event["supersedes"], &event["retracted_message_uuids"]];
        let named = named.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        let mut back = Vec::new();
        for uuid in named {
            if let Some(blocks) = self.known.get(uuid)
                && self.retracted.insert(uuid.to_owned())
            {
                back.extend(blocks.iter().map(|known| self.said - known.nth));
                // Nobody will answer it.
                self.open_calls.retain(|(id, _)| blocks.iter().all(|known| known.call.as_ref() != Some(id)));
            }
        }
        if back.is_empty() {
            return None;
        }
        self.said += 1;
        let content = json!({ "text": "", "kind": "retraction", "places_back": back });
        let parent_tool_use_id = event["parent_tool_use_id"].as_str().map(str::to_owned);
        Some(Block { parent_tool_use_id, ..Block::new(BlockKind::Content, content) })
    }

    fn fresh(&mut self, index: usize, block: Block) -> Option<Block> {
        if let Some(uuid) = &block.source_uuid {
            let blocks = self.known.entry(uuid.clone()).or_default();
            if blocks.iter().any(|known| known.index == index) {
                return None;
            }
            let call = block.content["tool_use_id"].as_str().filter(|_| block.kind == BlockKind::ToolUse);
            blocks.push(Known { index, nth: self.said, call: call.map(str::to_owned) });
        }
        self.said += 1;
        let call = block.content["tool_use_id"].as_str().unwrap_or_default();
        match block.kind {
            BlockKind::ToolUse => self.open_calls.push((call.to_owned(), block.parent_tool_use_id.clone())),
            BlockKind::ToolResult => self.open_calls.retain(|(id, _)| id != call),
            BlockKind::Thinking | BlockKind::Content => {}
        }
        Some(block)
    }
}
