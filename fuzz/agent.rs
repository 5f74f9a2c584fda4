//! The parser alone, without the stand-in agent beside it.

#[path = "../src/agent/blocks.rs"]
mod blocks;
#[path = "../src/agent/codes.rs"]
mod codes;
#[path = "../src/agent/fold.rs"]
mod fold;
#[path = "../src/agent/outcome.rs"]
mod outcome;
#[path = "../src/agent/preview.rs"]
mod preview;
#[path = "../src/agent/seen.rs"]
mod seen;
#[path = "../src/agent/spent.rs"]
mod spent;
#[path = "../src/agent/text.rs"]
mod text;

pub use fold::Fold;
pub use outcome::{Exit, Outcome, Verdict};
