//! Takes secrets out of what is stored or shown: as they are, in base64 at any offset, and percent-encoded, also where line
//! breaks cut them in two.
//!
//! A secret is what an agent could print of what it was given. It may send it elsewhere in any other form: this keeps secrets out
//! of the database and the log, and is no wall.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};

/// What takes a secret's place.
pub const MASKED: &str = "[masked]";

/// Characters of the shortest secret that is masked: what is shorter is part of many words.
pub const SECRET_MIN: usize = 8;

/// From this length on anything may be a secret.
const NO_WORD: usize = 24;

/// Knows a set of secrets. Cheap to ask and to clone.
#[derive(Clone, Default)]
pub struct Mask {
    forms: Arc<[Vec<u8>]>,
    finder: Option<AhoCorasick>,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask of {} forms", self.forms.len())
    }
}

impl Mask {
    /// Of a secret with several lines each is one; what may be a word is none ([`is_maskable`]).
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let lines = secrets.into_iter().flat_map(|secret| secret.expose_secret().lines()).map(str::trim);
        let mut forms: Vec<Vec<u8>> = lines.filter(|line| is_maskable(line)).flat_map(forms).collect();
        forms.sort_unstable();
        forms.dedup();
        // Not the quickest kind, which takes megabytes for a key of Bedrock's; each running turn has two.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).kind(kind).build(&forms);
        // It fails for gigabytes of patterns only.
        Self { finder: finder.ok().filter(|_| !forms.is_empty()), forms: forms.into() }
    }

    /// Without its secrets.
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.find(bytes);
        if found.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut clean = Vec::with_capacity(bytes.len());
        replace(bytes, &found, &mut clean);
        Cow::Owned(clean)
    }

    /// The same of a text.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            // Whole texts are taken out of a text.
            Cow::Owned(clean) => Cow::Owned(String::from_utf8_lossy(&clean).into_owned()),
        }
    }

    /// For a text that comes in pieces.
    pub fn pieces(&self) -> Pieces {
        Pieces { mask: self.clone(), held: Vec::new() }
    }

    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let Some(finder) = &self.finder else { return Vec::new() };
        let whole = Unbroken::of(bytes);
        finder.find_iter(&*whole.bytes).map(|found| whole.place(found.start())..whole.place(found.end() - 1) + 1).collect()
    }

    /// Where the end may be the beginning of a secret.
    fn begun(&self, bytes: &[u8]) -> usize {
        // The first half of an escaped line break may be the end.
        let text = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == b'\\').count();
        let whole = Unbroken::of(&bytes[..text]);
        let longest = self.forms.iter().map(Vec::len).max().unwrap_or(0);
        let first = whole.bytes.len().saturating_sub(longest);
        let begins =
            |at: &usize| self.forms.iter().any(|form| form.len() > whole.bytes.len() - at && form.starts_with(&whole.bytes[*at..]));
        (first..whole.bytes.len()).find(begins).map_or(bytes.len(), |at| whole.place(at))
    }
}

/// The first `max_chars` of a text, without the word that would be cut: of half a secret nobody could tell that it is one.
pub fn shortened(text: &str, max_chars: usize) -> String {
    let Some((end, next)) = text.char_indices().nth(max_chars) else { return text.to_owned() };
    let kept = &text[..end];
    let whole = if next.is_whitespace() { kept } else { kept.rfind(char::is_whitespace).map_or("", |at| &kept[..at]) };
    format!("{} …", whole.trim_end())
}

/// Whether it can be told from a word: too short, or letters of one case only, it would be masked everywhere, also where it
/// means something.
pub fn is_maskable(secret: &str) -> bool {
    let has = |is: fn(&char) -> bool| secret.chars().any(|c| is(&c));
    let mixed = has(char::is_ascii_digit) || (has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase));
    secret.len() >= SECRET_MIN && (mixed || secret.len() >= NO_WORD)
}

/// Masks a text piece by piece: what may be the beginning of a secret is held back until more is known.
#[derive(Debug, Clone)]
pub struct Pieces {
    mask: Mask,
    held: Vec<u8>,
}

impl Pieces {
    /// Takes the next piece; what can be shown now.
    pub fn next(&mut self, piece: &str) -> String {
        self.held.extend_from_slice(piece.as_bytes());
        let begun = self.mask.begun(&self.held);
        let mut found = self.mask.find(&self.held);
        let to = found.iter().find(|one| one.end > begun).map_or(begun, |one| one.start.min(begun));
        found.retain(|one| one.end <= to);
        let mut clean = Vec::new();
        replace(&self.held[..to], &found, &mut clean);
        self.held.drain(..to);
        // Cut where a secret begins or the piece ends: between characters.
        String::from_utf8_lossy(&clean).into_owned()
    }
}

fn replace(bytes: &[u8], found: &[Range<usize>], clean: &mut Vec<u8>) {
    let mut from = 0;
    for one in found {
        clean.extend_from_slice(&bytes[from..one.start]);
        clean.extend_from_slice(MASKED.as_bytes());
        from = one.end;
    }
    clean.extend_from_slice(&bytes[from..]);
}

/// Every form of a secret that is looked for.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_owned(), percent(secret, true), percent(secret, false), secret.replace('/', "\\/")];
    // As it stands in JSON.
    forms.push(serde_json::Value::from(secret).to_string().trim_matches('"').to_owned());
    for before in 0..3 {
        let padded = [&[0; 2][..before], secret.as_bytes()].concat();
        // Six bits a character; those that the neighbours have a part of are not the secret's alone.
        let own = (before * 8).div_ceil(6)..padded.len() * 8 / 6;
        forms.extend([STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)].map(|text| text[own.clone()].to_owned()));
    }
    forms.into_iter().map(|form| Unbroken::of(form.as_bytes()).bytes.into_owned()).filter(|form| form.len() >= SECRET_MIN).collect()
}

/// Percent-encoded, all but what RFC 3986 calls unreserved.
fn percent(secret: &str, upper: bool) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    };
    secret.bytes().map(encode).collect()
}

/// A text without its line breaks, plain or escaped as in JSON however deep, and where each byte of it was.
struct Unbroken<'a> {
    bytes: Cow<'a, [u8]>,
    /// Where a run of bytes begins, here and there.
    runs: Vec<(usize, usize)>,
}

impl<'a> Unbroken<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let (mut kept, mut runs, mut from, mut at) = (Vec::new(), Vec::new(), 0, 0);
        while let Some(next) = bytes[at..].iter().position(|byte| matches!(byte, b'\n' | b'\r' | b'\\')) {
            let start = at + next;
            let end = break_at(bytes, start);
            if end > start {
                runs.push((kept.len(), from));
                kept.extend_from_slice(&bytes[from..start]);
                from = end;
            }
            at = end.max(start + 1);
        }
        if from == 0 {
            return Self { bytes: Cow::Borrowed(bytes), runs: vec![(0, 0)] };
        }
        runs.push((kept.len(), from));
        kept.extend_from_slice(&bytes[from..]);
        Self { bytes: Cow::Owned(kept), runs }
    }

    /// Where the byte was.
    fn place(&self, at: usize) -> usize {
        let (here, there) = self.runs[self.runs.partition_point(|(here, _)| *here <= at) - 1];
        there + at - here
    }
}

/// The end of the line break that begins at `start`, or `start`.
fn break_at(bytes: &[u8], start: usize) -> usize {
    if bytes[start] != b'\\' {
        return start + 1;
    }
    let end = start + bytes[start..].iter().take_while(|byte| **byte == b'\\').count();
    if matches!(bytes.get(end), Some(b'n' | b'r')) { end + 1 } else { start }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sk-ant-api03-aB3/xY+z9_Q==~tail";

    fn mask(secrets: &[&str]) -> Mask {
        let secrets: Vec<SecretString> = secrets.iter().map(|secret| SecretString::from(*secret)).collect();
        Mask::new(&secrets)
    }

    /// Nothing of the secret's middle is left, in any form that is looked for.
    fn is_clean(text: &str) -> bool {
        forms(KEY)
            .iter()
            .all(|form| !String::from_utf8_lossy(&Unbroken::of(text.as_bytes()).bytes).contains(&*String::from_utf8_lossy(form)))
    }

    #[test]
    fn every_form_is_masked_and_the_rest_is_left() {
        let mask = mask(&[KEY]);
        assert_eq!(mask.text(&format!("key={KEY}; done")), "key=[masked]; done");
        assert_eq!(mask.text("?key=sk-ant-api03-aB3%2FxY%2Bz9_Q%3D%3D~tail&x"), "?key=[masked]&x");
        assert_eq!(mask.text("?key=sk-ant-api03-aB3%2fxY%2bz9_Q%3d%3d~tail&x"), "?key=[masked]&x");
        assert_eq!(mask.text(r#"{"key":"sk-ant-api03-aB3\/xY+z9_Q==~tail"}"#), r#"{"key":"[masked]"}"#);
        assert!(matches!(mask.text("nothing here"), Cow::Borrowed(_)));
        assert!(!format!("{mask:?}").contains("ant"));
    }

    #[test]
    fn line_breaks_hide_nothing() {
        let mask = mask(&[KEY]);
        let (one, other) = KEY.split_at(11);
        for cut in ["\n", "\r\n", "\\n", "\\\\n", "\\r\\n"] {
            assert_eq!(mask.text(&format!("a{cut}b {one}{cut}{other} c{cut}d")), format!("a{cut}b [masked] c{cut}d"), "{cut:?}");
        }
        // As base64 of coreutils prints it.
        let text = STANDARD.encode(format!("ANTHROPIC_API_KEY={KEY}\nand a lot more of an environment, so that it has some lines"));
        let lines: Vec<&str> = text.as_bytes().chunks(20).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let shown = mask.text(&lines.join("\\n")).into_owned();
        assert!(shown.contains(MASKED) && is_clean(&shown), "{shown}");
        assert!(mask.text("a\nlone \\ back\\slash, and\\nothing").contains("lone \\ back\\slash"));
    }

    #[test]
    fn words_are_none_and_of_several_lines_each_is_one() {
        let mask = mask(&["sh0rt", "", "postgres", "tool_result", "first-line-0f-it\nsecond-line-0f-it"]);
        assert_eq!(mask.text("sh0rt postgres tool_result second-line-0f-it"), "sh0rt postgres tool_result [masked]");
        assert_eq!(Mask::default().text("x"), "x");
        assert_eq!(Mask::default().pieces().next("x"), "x");
    }

    #[test]
    fn where_one_secret_is_the_beginning_of_another_the_longer_is_masked_whole() {
        let mask = mask(&["Secret-one", "Secret-one-and-two"]);
        assert_eq!(mask.text("Secret-one-and-two Secret-one"), "[masked] [masked]");
        let mut pieces = mask.pieces();
        let shown: Vec<String> = ["a Secret-one", "-and", "-two", " b"].map(|piece| pieces.next(piece)).into();
        assert_eq!(shown, ["a ", "", "[masked]", " b"]);
    }

    proptest! {
        #[test]
        fn base64_at_any_offset(before in proptest::collection::vec(any::<u8>(), 0..8), after in proptest::collection::vec(any::<u8>(), 0..8)) {
            let data = [&*before, KEY.as_bytes(), &*after].concat();
            for text in [STANDARD.encode(&data), URL_SAFE.encode(&data)] {
                let shown = mask(&[KEY]).text(&text).into_owned();
                prop_assert!(shown.contains(MASKED) && is_clean(&shown), "{}", shown);
            }
        }

        /// However it is cut, nothing of a secret is shown before the rest is known, and all else is.
        #[test]
        fn pieces_say_what_the_whole_says(cuts in proptest::collection::vec(0usize..90, 0..12), broken in any::<bool>()) {
            let key = if broken { KEY.replace("api03", "api\\n03") } else { KEY.to_owned() };
            let text = format!("Die Schlüssel: {key}, {}, sk-ant-x.", STANDARD.encode(format!("k={KEY}")));
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut) && *cut < text.len()).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut pieces = mask(&[KEY]).pieces();
            let (mut shown, mut from) = (String::new(), 0);
            for cut in cuts {
                shown.push_str(&pieces.next(&text[from..cut]));
                prop_assert!(mask(&[KEY]).text(&text).starts_with(&shown), "{} of {}", shown, text);
                from = cut;
            }
            prop_assert_eq!(shown, mask(&[KEY]).text(&text));
        }
    }
}
