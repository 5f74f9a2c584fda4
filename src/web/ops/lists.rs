//! What lists have in common: filters in the address, and pages that go on from a place.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

use super::super::position::{cursor, read_cursor};
use super::super::problem::Problem;
use super::look;

/// Between ids in a query; no id of ours has it.
pub const BETWEEN: char = '\u{1f}';

/// Longest query of ours: a page of very long ids does without refreshing.
pub const IDS_MAX_BYTES: usize = 6000;

/// What is in a field; `None`: nothing.
pub fn some(text: &str) -> Option<String> {
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Refuses what no filter can be.
pub fn checked(fields: &[&str]) -> Result<(), Problem> {
    if fields.iter().any(|text| text.contains('\0') || text.len() > 1024) {
        return Err(Problem::new("invalid_request", "A filter has at most 1024 bytes, and no NUL."));
    }
    Ok(())
}

/// A filter as a query again: fields that have something in them.
pub fn query_of(fields: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.trim().is_empty()) {
        let _ = write!(query, "{}{name}={}", if query.is_empty() { "" } else { "&" }, look::encoded(value.trim()));
    }
    query
}

/// A place in a list, for the address of the page that goes on from it. `list`: so that no other list's is taken for one.
pub fn place(list: &str, at: DateTime<Utc>, id: &str) -> String {
    cursor(&[list, &at.timestamp_micros().to_string(), id])
}

/// The same, read; empty: the beginning.
pub fn read_place(list: &str, text: &str) -> Result<Option<(DateTime<Utc>, String)>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || Problem::new("invalid_cursor", "The cursor is none of this list's.");
    let [at, id] = <[String; 2]>::try_from(read_cursor(text, &[list], 2)?).map_err(|_| bad())?;
    let at = at.parse().ok().and_then(DateTime::<Utc>::from_timestamp_micros).ok_or_else(bad)?;
    Ok(Some((at, id)))
}

/// How many are new, for people; they are counted up to a hundred.
pub fn newer_words(newer: i64) -> String {
    if newer >= 100 { "100+ new".to_owned() } else { format!("{newer} new") }
}
