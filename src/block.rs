//! stub
#![allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind { Thinking, Content, ToolUse, ToolResult }
impl BlockKind { pub fn as_str(self) -> &'static str { "content" } }
#[derive(Debug, Clone, PartialEq)]
pub struct Block { pub kind: BlockKind, pub content: serde_json::Value, pub parent_tool_use_id: Option<String>, pub source_uuid: Option<String> }
impl Block { pub fn error(_c: &str, _m: &str) -> Self { unimplemented!() } }
