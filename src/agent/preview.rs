//! What the model is in the middle of saying: the text so far of each block that is not out yet, from Claude Code's
//! partial messages.
//!
//! ```text
//! message_start   content_block_start   content_block_delta …   assistant: the block is out   content_block_stop   message_stop
//!                 └────────────── a preview ──────────────────┘
//! ```
//!
//! A call that fails in the middle is tried anew, and what it had said is withdrawn.

use serde_json::Value;

use crate::block::BlockKind;

/// Most bytes of one preview; what comes after is seen with the block.
const TEXT_MAX: usize = 64 << 10;

/// Most at once: the agent's own and those of its subagents.
const PREVIEWS_MAX: usize = 16;

/// All previews of one attempt that go on.
#[derive(Debug, Clone, Default)]
pub struct Previews {
    growing: Vec<Preview>,
    begun: i32,
}

/// The beginning of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// Which of the attempt's previews it is, from 1.
    pub nth: i32,
    /// What the block will be.
    pub kind: BlockKind,
    /// Of a call; `text` is then the beginning of the JSON of its parameters.
    pub tool_name: Option<String>,
    /// The subagent's call.
    pub parent_tool_use_id: Option<String>,
    /// It only grows.
    pub text: String,
    /// As long as it may become: the rest is seen with the block.
    pub full: bool,
}

impl Previews {
    /// Those that go on, the oldest first.
    pub fn growing(&self) -> &[Preview] {
        &self.growing
    }

    /// Takes note of the attempt's next event.
    pub(super) fn event(&mut self, event: &Value) {
        let parent = event["parent_tool_use_id"].as_str();
        match event["type"].as_str() {
            Some("stream_event") => self.piece(event, parent),
            Some("assistant") => self.over(parent),
            Some("result") => self.growing.clear(),
            Some("system") if event["subtype"] == "api_retry" => self.growing.clear(),
            _ => {}
        }
    }

    fn piece(&mut self, event: &Value, parent: Option<&str>) {
        if event["abandoned_blocks"].is_object() {
            self.over(parent);
        }
        let event = &event["event"];
        match event["type"].as_str() {
            Some("content_block_start") => {
                self.over(parent);
                self.begin(&event["content_block"], parent);
            }
            Some("content_block_delta") => {
                let delta = &event["delta"];
                let text = [&delta["text"], &delta["thinking"], &delta["partial_json"]].into_iter().find_map(Value::as_str);
                let growing = self.growing.iter_mut().find(|preview| preview.parent_tool_use_id.as_deref() == parent);
                if let (Some(preview), Some(text)) = (growing, text)
                    && !preview.full
                {
                    preview.full = preview.text.len() + text.len() > TEXT_MAX;
                    if !preview.full {
                        preview.text.push_str(text);
                    }
                }
            }
            Some("message_start" | "message_stop") => self.over(parent),
            _ => {}
        }
    }

    fn begin(&mut self, block: &Value, parent: Option<&str>) {
        let (kind, text) = match block["type"].as_str() {
            Some("thinking") => (BlockKind::Thinking, &block["thinking"]),
            Some("text") => (BlockKind::Content, &block["text"]),
            Some("tool_use" | "server_tool_use" | "mcp_tool_use") => (BlockKind::ToolUse, &Value::Null),
            _ => return,
        };
        if self.growing.len() == PREVIEWS_MAX {
            return;
        }
        self.begun += 1;
        self.growing.push(Preview {
            nth: self.begun,
            kind,
            tool_name: block["name"].as_str().map(str::to_owned),
            parent_tool_use_id: parent.map(str::to_owned),
            text: text.as_str().filter(|text| text.len() <= TEXT_MAX).unwrap_or_default().to_owned(),
            full: false,
        });
    }

    fn over(&mut self, parent: Option<&str>) {
        self.growing.retain(|preview| preview.parent_tool_use_id.as_deref() != parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Fold;

    /// After each line: `nth type text` of what goes on.
    fn seen(lines: &str) -> Vec<String> {
        let mut fold = Fold::new(None).with_previews();
        let mut seen: Vec<String> = Vec::new();
        for line in lines.lines() {
            let blocks = fold.line(line.as_bytes());
            seen.extend(blocks.iter().map(|block| format!("= {}", block.kind.as_str())));
            let now: Vec<_> = fold
                .previews()
                .unwrap()
                .growing()
                .iter()
                .map(|p| format!("{} {} {}{}", p.nth, p.kind.as_str(), p.tool_name.as_deref().unwrap_or(""), p.text))
                .collect();
            let now = now.join(" | ");
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
        seen
    }

    #[test]
    fn a_preview_grows_until_its_block_is_out() {
        let seen = seen(include_str!("../../tests/fixtures/captures/partial-tools.jsonl"));
        insta::assert_snapshot!(seen[..24].join("\n"));
        assert_eq!(seen.last().unwrap(), "", "in the end nothing goes on");
    }

    #[test]
    fn a_cut_call_takes_back_what_it_had_said() {
        insta::assert_snapshot!(seen(include_str!("../../tests/fixtures/captures/err-cut_once-partial.jsonl")).join("\n"));
    }

    #[test]
    fn subagents_speak_at_the_same_time() {
        let event = |parent: &str, event: &str| format!(r#"{{"type":"stream_event","event":{event},"parent_tool_use_id":{parent}}}"#);
        let text = |parent: &str, text: &str| {
            event(parent, &format!(r#"{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"{text}"}}}}"#))
        };
        let start = r#"{"type":"content_block_start","content_block":{"type":"text","text":""}}"#;
        let mut previews = Previews::default();
        for line in [event("null", start), event("\"a\"", start), text("\"a\"", "sub"), text("null", "main"), text("\"a\"", "agent")] {
            previews.event(&serde_json::from_str(&line).unwrap());
        }
        let texts = |previews: &Previews| previews.growing().iter().map(|p| p.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&previews), ["main", "subagent"]);
        previews.event(&serde_json::json!({ "type": "assistant", "parent_tool_use_id": "a" }));
        assert_eq!(texts(&previews), ["main"]);
        for _ in 0..10 {
            previews.event(&serde_json::from_str(&text("null", &"x".repeat(10_000))).unwrap());
        }
        previews.event(&serde_json::from_str(&text("null", "end")).unwrap());
        assert_eq!(previews.growing()[0].text.len(), 4 + 60_000, "no longer than that, and without a gap");
    }
}
