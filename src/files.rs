//! What a turn has to do with files: lists and archives as `e2b/files` makes and takes them. No I/O in this module.

use std::collections::HashSet;
use std::io::{self, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::EntryType;

/// The largest image that the model's API takes: 5 MiB of base64.
const IMAGE_MAX_BYTES: usize = 5 * 1024 * 1024 / 4 * 3;

/// What the supervisor is to do about the files of a pool's turns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileRules {
    /// auto, snapshot, hooks, none, or empty: it does not look at them.
    pub policy: String,
    /// Patterns of what is neither listed nor kept.
    pub exclude: Vec<String>,
    /// Most bytes of an archive.
    pub archive_max_bytes: i64,
    /// Most bytes of a file that is kept for readers.
    pub each_max_bytes: i64,
}

/// What the supervisor brings into a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parcel {
    /// tar.gz; `None`: something is only to go.
    pub archive: Option<Bytes>,
    /// `-PATH` is to go, `+PATH` comes; each ended by NUL.
    pub plan: Bytes,
}

impl Parcel {
    /// A saved state, whose members are these; `gone` ended by NUL each.
    pub fn of_state(archive: Option<Bytes>, members: &[Vec<u8>], gone: &[u8]) -> Self {
        let gone: Vec<Vec<u8>> = gone.split(|&byte| byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect();
        Self { archive, plan: plan(&gone, members) }
    }

    /// The files of a message.
    pub fn of_attachments(attachments: &[Attachment]) -> io::Result<Self> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for attachment in attachments {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(attachment.content.len() as u64);
            archive.append_data(&mut header, &attachment.path, attachment.content.as_slice())?;
        }
        let paths: Vec<Vec<u8>> = attachments.iter().map(|attachment| attachment.path.clone().into_bytes()).collect();
        Ok(Self { archive: Some(archive.into_inner()?.finish()?.into()), plan: plan(&[], &paths) })
    }
}

fn plan(gone: &[Vec<u8>], comes: &[Vec<u8>]) -> Bytes {
    let step = |sign: u8| move |path: &Vec<u8>| [&[sign], path.as_slice(), &[0]].concat();
    gone.iter().map(step(b'-')).chain(comes.iter().map(step(b'+'))).flatten().collect::<Vec<u8>>().into()
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It was there.
    Modified,
    /// It is no more.
    Deleted,
}

impl Change {
    /// As in `artifacts.change`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
        }
    }
}

/// A file that a turn has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// From the workspace, byte for byte.
    pub path: Vec<u8>,
    /// What became of it.
    pub change: Change,
    /// Its size.
    pub bytes: u64,
    /// Of its content, where it was read.
    pub sha256: Option<Vec<u8>>,
}

/// The supervisor's list of changes: those of the turn, by path, and what is gone since `prepare`.
pub fn changes(list: &[u8]) -> (Vec<Listed>, Vec<Vec<u8>>) {
    let (mut listed, mut gone) = (Vec::new(), Vec::new());
    for record in list.split(|&byte| byte == 0) {
        let mut fields = record.splitn(4, |&byte| byte == b' ');
        let (Some(change), Some(size), Some(hash), Some(path)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let change = match change {
            b"created" => Change::Created,
            b"modified" => Change::Modified,
            b"deleted" => Change::Deleted,
            _ => {
                gone.push(path.to_vec());
                continue;
            }
        };
        let bytes = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok()).unwrap_or(0);
        listed.push(Listed { path: path.to_vec(), change, bytes, sha256: unhex(hash) });
    }
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    (listed, gone)
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    (text.len() == 64).then(|| text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect())?
}

/// A path as text: what is no UTF-8 is written `\xHH`.
pub fn readable(path: &[u8]) -> String {
    path.utf8_chunks()
        .flat_map(|chunk| {
            let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
            std::iter::once(chunk.valid().to_owned()).chain(invalid)
        })
        .collect()
}

/// Why an archive is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum Damaged {
    /// It is not whole, or no archive.
    #[error("it can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It holds what we never put into one.
    #[error("it holds {0}")]
    Strange(String),
}

/// Looks through a whole archive: its members' paths. `take` gets each file of at most `each_max` bytes.
pub fn inspect(gzip: &[u8], unpacked_max: u64, each_max: u64, mut take: impl FnMut(&[u8], Vec<u8>)) -> Result<Vec<Vec<u8>>, Damaged> {
    let strange = |what: &str, path: &[u8]| Damaged::Strange(format!("{what} ({})", readable(path)));
    let mut archive = tar::Archive::new(GzDecoder::new(gzip).take(unpacked_max));
    let (mut paths, mut links) = (Vec::new(), HashSet::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().strip_suffix(b"/").map_or_else(|| entry.path_bytes().into_owned(), <[u8]>::to_vec);
        if path.split(|&byte| byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) || path.contains(&0) {
            return Err(strange("a path that leads elsewhere", &path));
        }
        match entry.header().entry_type() {
            EntryType::Regular if entry.size() <= each_max => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                take(&path, content);
            }
            EntryType::Regular | EntryType::Directory => {}
            EntryType::Symlink => drop(links.insert(path.clone())),
            _ => return Err(strange("neither a file, a directory nor a link", &path)),
        }
        paths.push(path);
    }
    // To the end, where its checksum is.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    if rest.limit() == 0 {
        return Err(Damaged::Strange(format!("more than {unpacked_max} bytes")));
    }
    let through_link = |path: &&Vec<u8>| (1..path.len()).any(|end| path[end] == b'/' && links.contains(&path[..end]));
    match paths.iter().find(through_link) {
        Some(path) => Err(strange("a path through a link", path)),
        None => Ok(paths),
    }
}

/// A file that came with a turn's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// From the workspace.
    pub path: String,
    /// As its sender says.
    pub media_type: Option<String>,
    /// All of it.
    pub content: Vec<u8>,
}

impl Attachment {
    /// Its type: as its sender says, or by its name.
    fn kind(&self) -> String {
        let named = || mime_guess::from_path(&self.path).first_raw().unwrap_or("application/octet-stream").to_owned();
        self.media_type.clone().unwrap_or_else(named)
    }

    /// What the model takes as an image, by its first bytes, whatever it is called.
    fn image(&self) -> Option<&'static str> {
        if self.content.len() > IMAGE_MAX_BYTES {
            return None;
        }
        match self.content.as_slice() {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
            [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
            _ => None,
        }
    }
}

/// The parts of the agent's message: the prompt, what is attached, and the images themselves.
pub fn message(prompt: &str, attachments: &[Attachment]) -> Vec<Value> {
    let mut parts = vec![json!({ "type": "text", "text": prompt })];
    if attachments.is_empty() {
        return parts;
    }
    let line = |file: &Attachment| format!("\n- {} ({}, {} bytes)", file.path, file.kind(), file.content.len());
    let lines: String = attachments.iter().map(line).collect();
    parts.push(json!({ "type": "text", "text": format!("Files that came with this message, in your working directory:{lines}") }));
    parts.extend(attachments.iter().filter_map(|file| {
        let source = json!({ "type": "base64", "media_type": file.image()?, "data": BASE64.encode(&file.content) });
        Some(json!({ "type": "image", "source": source }))
    }));
    parts
}

/// As what a workspace is sealed.
pub fn seal_of_workspace(turn_id: &str) -> String {
    format!("workspace/{turn_id}")
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
