//! Bytes → whole lines. A line that is longer than the limit is counted, not kept.

/// One whole line of a journal and where the next begins, relative to where the splitter began.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without its newline.
    Whole(Vec<u8>),
    /// Longer than the limit: this many bytes, without its newline.
    TooLong(u64),
}

/// Cuts a stream of bytes into lines, however it is chopped.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    partial: Vec<u8>,
    /// Bytes of the current line that were dropped because of the limit.
    dropped: u64,
    /// Bytes of all lines handed out, newlines included.
    consumed: u64,
}

impl Lines {
    /// For lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, partial: Vec::new(), dropped: 0, consumed: 0 }
    }

    /// Bytes of all lines handed out so far, newlines included: where a copy may resume.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Takes the next bytes and hands every line that they complete to `each`.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line, u64)) {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.partial);
            let length = line.len() as u64 + self.dropped;
            self.consumed += length + 1;
            let line = if self.dropped > 0 { Line::TooLong(length) } else { Line::Whole(line) };
            self.dropped = 0;
            each(line, self.consumed);
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.dropped > 0 || self.partial.len() + bytes.len() > self.limit {
            self.dropped += (self.partial.len() + bytes.len()) as u64;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Line, Lines};

    fn split(limit: usize, chunks: &[&[u8]]) -> Vec<(Line, u64)> {
        let (mut lines, mut out) = (Lines::new(limit), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |line, end| out.push((line, end)));
        }
        out
    }

    #[test]
    fn only_whole_lines_come_out_and_the_offset_stops_before_a_torn_one() {
        let mut lines = Lines::new(100);
        let mut seen = Vec::new();
        lines.push(b"one\ntw", |line, end| seen.push((line, end)));
        assert_eq!(seen, [(Line::Whole(b"one".to_vec()), 4)]);
        assert_eq!(lines.consumed(), 4);
    }

    #[test]
    fn a_line_over_the_limit_is_counted_and_the_next_is_whole() {
        assert_eq!(split(3, &[b"12", b"34", b"5\nabc\n"]), [(Line::TooLong(5), 6), (Line::Whole(b"abc".to_vec()), 10)]);
    }

    proptest! {
        #[test]
        fn chopping_changes_nothing(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300), cut in 0usize..300, limit in 1usize..20) {
            let cut = cut.min(bytes.len());
            prop_assert_eq!(split(limit, &[&bytes]), split(limit, &[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
