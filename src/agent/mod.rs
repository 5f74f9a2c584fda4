//! What agents say: journal lines → blocks and an outcome. No I/O here, but for the stand-in agent in `mock`.
//!
//! Speaks the stream-json of Claude Code 2.1.330 and flat `thinking|content|tool_use|tool_result` events. What
//! it doesn't know never fails a turn.
//!
//! | file | part |
//! | --- | --- |
//! | `fold` | the state over all lines of one attempt |
//! | `blocks` | one event → its blocks |
//! | `seen` | what the lines say that bears on the outcome |
//! | `spent` | tokens and dollars |
//! | `preview` | what is not a block yet |
//! | `outcome` | how the attempt ended: by its result, its errors and its exit, none of which tells the truth alone |
//! | `codes` | why it failed, for programs |
//! | `text` | bytes → JSON that Postgres can store |
//! | `mock` | a program that speaks like Claude Code, from a script |

mod blocks;
mod codes;
mod fold;
pub mod mock;
mod outcome;
mod preview;
mod seen;
mod spent;
mod text;

pub use codes::{ErrorCode, Failure};
pub use fold::Fold;
pub use outcome::{Exit, Outcome, Verdict};
pub use preview::{Preview, Previews};
pub use spent::{ModelUse, Spent};
