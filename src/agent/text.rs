//! Bytes → JSON that Postgres can store.
//!
//! Agents print lone surrogates and NUL as JSON escapes: serde refuses the former, `jsonb` both. Each becomes
//! U+FFFD, as does what is no UTF-8.

use serde_json::Value;

/// One line as JSON; `None` when it is none.
pub(super) fn parse(line: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(line);
    match storable(&text) {
        Some(mended) => serde_json::from_str(&mended).ok(),
        None => serde_json::from_str(&text).ok(),
    }
}

const REPLACEMENT: &str = "\\ufffd";

/// The text with every escape replaced that can't be stored; `None` when there is none, as almost always.
fn storable(text: &str) -> Option<String> {
    let mut mended: Option<String> = None;
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = text[at..].find('\\') {
        let start = at + found;
        let Some(unit) = escaped_unit(text, start) else {
            // Any other escape: skip the character after the backslash too, which may be one itself.
            at = (start + 2).min(text.len());
            while !text.is_char_boundary(at) {
                at += 1;
            }
            continue;
        };
        at = start + 6;
        let good = match unit {
            0 | 0xDC00..=0xDFFF => false,
            0xD800..=0xDBFF if matches!(escaped_unit(text, at), Some(0xDC00..=0xDFFF)) => {
                at += 6;
                true
            }
            0xD800..=0xDBFF => false,
            _ => true,
        };
        if !good {
            let mended = mended.get_or_insert_with(|| String::with_capacity(text.len()));
            mended.push_str(&text[kept..start]);
            mended.push_str(REPLACEMENT);
            kept = at;
        }
    }
    mended.map(|mut mended| {
        mended.push_str(&text[kept..]);
        mended
    })
}

/// The UTF-16 unit of a `\uXXXX` at this place.
fn escaped_unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.as_bytes().get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_postgres_refuses_becomes_the_replacement_character() {
        let read = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(read(r#""a\u0000b""#), json!("a\u{fffd}b"));
        assert_eq!(read(r#""lone \ud83d end""#), json!("lone \u{fffd} end"));
        assert_eq!(read(r#""low \ude00 end""#), json!("low \u{fffd} end"));
        assert_eq!(read(r#""two highs \ud83d\ud83d\ude00""#), json!("two highs \u{fffd}😀"));
        assert_eq!(read(r#""pair \ud83d\ude00""#), json!("pair 😀"));
        assert_eq!(read(r#""not an escape \\u0000""#), json!("not an escape \\u0000"));
        assert_eq!(read(r#""one \\\u0000""#), json!("one \\\u{fffd}"));
        assert_eq!(read(r#"{"k\u0000":1}"#), json!({ "k\u{fffd}": 1 }));
        assert_eq!(parse(b"\"\xff\xfe\""), Some(json!("\u{fffd}\u{fffd}")));
        assert_eq!(parse(b"no json"), None);
        assert_eq!(parse(b"\"torn \\ud8"), None);
    }

    proptest! {
        #[test]
        fn no_line_panics_and_no_result_holds_nul(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(value) = parse(&line) {
                prop_assert!(!value.to_string().contains("\\u0000"));
            }
        }

        #[test]
        fn any_text_survives(text in any::<String>()) {
            let expected = text.replace('\0', "\u{fffd}");
            prop_assert_eq!(parse(json!(text).to_string().as_bytes()), Some(json!(expected)));
        }

        #[test]
        fn any_mix_of_escapes_parses(parts in prop::collection::vec(prop_oneof![
            Just("\\ud83d"), Just("\\ude00"), Just("\\u0000"), Just("\\\\"), Just("\\\""), Just("u0000"), Just("\\n"), Just("é"), Just("\\u00e9"),
        ], 0..12)) {
            let line = format!("\"{}\"", parts.concat());
            prop_assert!(parse(line.as_bytes()).is_some(), "{}", line);
        }
    }
}
