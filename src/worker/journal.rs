//! A copy of the raw journal, compressed while it is read. Whoever takes a turn over reads it from its first byte, so the
//! copy is always from the beginning. It has every whole line as it was printed, but for secrets, which are masked before they
//! come here, and for the pieces of blocks: a secret that is cut in two by them can't be seen, and the block says the same.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Most bytes of a copy, compressed: of a journal that is larger the beginning is kept. Every turn of the process has one.
const KEPT_MAX: usize = 4 << 20;

/// What was read so far.
#[derive(Debug)]
pub(super) struct Copy {
    /// `None`: it is full, or finished.
    gzip: Option<GzEncoder<Vec<u8>>>,
    full: Vec<u8>,
    bytes: u64,
    whole: bool,
    max: usize,
}

/// A finished copy.
#[derive(Debug)]
pub(super) struct Copied {
    /// As gzip.
    pub data: Vec<u8>,
    /// Of all lines.
    pub bytes: u64,
    /// Whether `data` has them to the end.
    pub whole: bool,
}

impl Default for Copy {
    fn default() -> Self {
        Self::of_at_most(KEPT_MAX)
    }
}

impl Copy {
    fn of_at_most(max: usize) -> Self {
        Self { gzip: Some(GzEncoder::new(Vec::new(), Compression::fast())), full: Vec::new(), bytes: 0, whole: true, max }
    }

    /// The next line of the journal, without its newline.
    pub fn line(&mut self, line: &[u8]) {
        self.bytes += line.len() as u64 + 1;
        let Some(gzip) = &mut self.gzip else { return };
        // Into memory: it can't fail.
        drop(gzip.write_all(line).and_then(|()| gzip.write_all(b"\n")));
        if gzip.get_ref().len() > self.max {
            self.full = self.end();
            self.whole = false;
        }
    }

    /// A line of so many bytes that nobody has.
    pub fn too_long(&mut self, bytes: u64) {
        self.bytes += bytes + 1;
        self.whole = false;
    }

    /// All of it; nothing can be pushed any more.
    pub fn finish(mut self) -> Copied {
        let data = if self.gzip.is_some() { self.end() } else { std::mem::take(&mut self.full) };
        Copied { data, bytes: self.bytes, whole: self.whole }
    }

    fn end(&mut self) -> Vec<u8> {
        self.gzip.take().and_then(|gzip| gzip.finish().ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::Copy;

    fn unpacked(data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(data).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_copy_has_every_byte_or_says_that_it_has_not() {
        let lines: Vec<Vec<u8>> = (0..50).map(|_| (0..7_999).map(|_| rand::random()).collect()).collect();
        let noise: Vec<u8> = lines.iter().flat_map(|line| [line, b"\n".as_slice()].concat()).collect();
        let mut all = Copy::of_at_most(1 << 20);
        for line in &lines {
            all.line(line);
        }
        let all = all.finish();
        assert!(all.whole && all.bytes == 400_000 && unpacked(&all.data) == noise);
        let mut some = Copy::of_at_most(100_000);
        for line in &lines {
            some.line(line);
        }
        let some = some.finish();
        let kept = unpacked(&some.data);
        assert!(!some.whole && some.bytes == 400_000 && kept.len() >= 100_000 && noise.starts_with(&kept));
    }
}
