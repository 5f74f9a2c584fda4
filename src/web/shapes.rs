//! What several resources share.

use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// In the list's order.
    pub data: Vec<T>,
    /// To be given as `cursor` for the next page; null: this was the last.
    pub next_cursor: Option<String>,
}

/// What becomes of a turn that comes while another of its session is unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It waits for its turn.
    Queue,
    /// It is not taken.
    Reject,
    /// What runs is cancelled for it.
    Interrupt,
}

impl OnBusy {
    /// As SQL has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reject => "reject",
            Self::Interrupt => "interrupt",
        }
    }
}

/// A path with an id as its last step, whatever is in it.
pub fn location(path: &str, id: &str) -> Result<HeaderValue, Problem> {
    use std::fmt::Write as _;
    let mut at = path.to_owned();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            at.push(char::from(byte));
        } else {
            let _ = write!(at, "%{byte:02X}");
        }
    }
    HeaderValue::from_str(&at).map_err(|_| Problem::new("internal", "The location can't be written."))
}
