//! Where a reader stands, as the text that clients carry: `Last-Event-ID`, `?after=`, and cursors of lists.
//!
//! Of a turn: the `seq` of the last block, or `end`. Of a session: `ORDINAL:SEQ`, or `ORDINAL:end` after a turn that has
//! ended. Both only grow, whatever happens to the turn: `seq` is dense over all generations, and a session's turns run one
//! after another.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::DateTime;
use sha2::{Digest as _, Sha256};

use super::problem::Problem;

/// In a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InTurn {
    /// After this block; -1: before the first.
    After(i32),
    /// After its end.
    End,
}

/// In a session: what comes next is block `seq + 1` of this turn, or what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InSession {
    /// The turn.
    pub ordinal: i32,
    /// Its last block that was seen; -1: none.
    pub seq: i32,
}

impl InSession {
    /// Before everything.
    pub const START: Self = Self { ordinal: 1, seq: -1 };

    /// After a turn's end.
    pub fn past(ordinal: i32) -> Self {
        Self { ordinal: ordinal.saturating_add(1), seq: -1 }
    }
}

fn number(text: &str) -> Option<i32> {
    // No sign, no blanks: one position has one text.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text.parse().ok() }
}

fn bad(text: &str) -> Problem {
    let shown: String = text.chars().take(40).collect();
    Problem::new("invalid_position", format!("\"{shown}\" is no position of this stream."))
}

/// Reads a position in a turn.
pub fn in_turn(text: &str) -> Result<InTurn, Problem> {
    match text {
        "end" => Ok(InTurn::End),
        "-1" => Ok(InTurn::After(-1)),
        _ => number(text).map(InTurn::After).ok_or_else(|| bad(text)),
    }
}

/// Reads a position in a session.
pub fn in_session(text: &str) -> Result<InSession, Problem> {
    let read = || {
        let (ordinal, seq) = text.split_once(':')?;
        let ordinal = number(ordinal).filter(|&ordinal| ordinal >= 1)?;
        match seq {
            "end" => Some(InSession::past(ordinal)),
            "-1" => Some(InSession { ordinal, seq: -1 }),
            _ => Some(InSession { ordinal, seq: number(seq)? }),
        }
    };
    read().ok_or_else(|| bad(text))
}

/// A cursor: where a page ended, with a checksum, so that one that was cut or made up is told apart.
pub fn cursor(parts: &[&str]) -> String {
    let plain = serde_json::to_vec(parts).unwrap_or_default();
    let mut bytes = Sha256::digest(&plain)[..4].to_vec();
    bytes.extend(plain);
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// What a cursor says, for a list with this name and these filters.
pub fn read_cursor(text: &str, list: &[&str], rest: usize) -> Result<Vec<String>, Problem> {
    let bad = || Problem::new("invalid_cursor", "The cursor is none of this list's.");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    let (sum, plain) = bytes.split_at_checked(4).ok_or_else(bad)?;
    if Sha256::digest(plain)[..4] != *sum {
        return Err(bad());
    }
    let mut parts: Vec<String> = serde_json::from_slice(plain).map_err(|_| bad())?;
    if parts.len() != list.len() + rest || parts.iter().zip(list).any(|(part, wanted)| part != wanted) {
        return Err(bad());
    }
    Ok(parts.split_off(list.len()))
}

/// A time as cursors have it: exact to the microsecond, as Postgres'.
pub fn micros(time: DateTime<chrono::Utc>) -> String {
    time.timestamp_micros().to_string()
}

/// And back.
pub fn from_micros(text: &str) -> Result<DateTime<chrono::Utc>, Problem> {
    let time = text.parse().ok().and_then(DateTime::from_timestamp_micros);
    time.ok_or_else(|| Problem::new("invalid_cursor", "The cursor is none of this list's."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_one_text_and_all_else_is_refused() {
        assert_eq!(in_turn("17").unwrap(), InTurn::After(17));
        assert_eq!(in_turn("end").unwrap(), InTurn::End);
        assert_eq!(in_session("3:17").unwrap(), InSession { ordinal: 3, seq: 17 });
        assert_eq!(in_session("3:end").unwrap(), InSession { ordinal: 4, seq: -1 });
        assert!(in_session("3:17").unwrap() < in_session("3:end").unwrap());
        for bad in ["", " 1", "+1", "-2", "1.0", "99999999999", "x", "1:1", "١"] {
            assert!(in_turn(bad).is_err(), "{bad}");
        }
        for bad in ["", "3", "0:1", "-1:1", "3:", ":3", "3:-2", "3:x", "3:1:1", "99999999999:1", "3: 1"] {
            assert!(in_session(bad).is_err(), "{bad}");
        }
        assert_eq!(in_session("2147483647:end").unwrap().ordinal, i32::MAX, "no overflow");
    }

    #[test]
    fn a_cursor_is_refused_when_it_was_cut_changed_or_is_another_list_s() {
        let good = cursor(&["turns", "s1", "42"]);
        assert_eq!(read_cursor(&good, &["turns", "s1"], 1).unwrap(), ["42"]);
        for nth in 0..good.len() {
            assert!(read_cursor(&good[..nth], &["turns", "s1"], 1).is_err());
            let mut changed = good.clone().into_bytes();
            changed[nth] = if changed[nth] == b'A' { b'B' } else { b'A' };
            assert!(read_cursor(&String::from_utf8(changed).unwrap(), &["turns", "s1"], 1).is_err());
        }
        assert!(read_cursor(&good, &["turns", "s2"], 1).is_err());
        assert!(read_cursor("💥", &["turns", "s1"], 1).is_err());
    }
}
