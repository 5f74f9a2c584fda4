//! What the stand-in remembers of a conversation, in its home, as the real one keeps its transcripts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How far one conversation is. Without a session id, or a home that can be written, nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: Option<PathBuf>,
    progress: Progress,
    lost: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Steps of the script that were begun.
    steps: usize,
    /// Events that were printed before the last of them: their uuids are used up.
    events: u64,
}

/// A failing step prints a handful of events more than were noted.
const EVENTS_OF_A_STEP: u64 = 8;

impl Memory {
    /// By `--session-id=ID`, which must be new, or `--resume=ID`.
    pub fn open(args: &[String]) -> anyhow::Result<Self> {
        let of = |flag: &str| args.iter().find_map(|arg| arg.strip_prefix(flag));
        let (Some(id), Some(home)) = (of("--resume=").or_else(|| of("--session-id=")), std::env::var_os("HOME")) else {
            return Ok(Self::default());
        };
        let file = PathBuf::from(home).join(".turnmill-mock").join(id);
        let known = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        anyhow::ensure!(of("--resume=").is_some() || known.is_none(), "Error: Session ID {id} is already in use.");
        let lost = of("--resume=").is_some() && known.is_none();
        Ok(Self { file: Some(file), progress: known.unwrap_or_default(), lost })
    }

    /// It was to resume what isn't there.
    pub const fn lost(&self) -> bool {
        self.lost
    }

    /// Steps not to do again.
    pub const fn steps(&self) -> usize {
        self.progress.steps
    }

    /// Events whose uuids are used up.
    pub const fn events(&self) -> u64 {
        if self.progress.steps == 0 { 0 } else { self.progress.events + EVENTS_OF_A_STEP }
    }

    /// A step begins.
    pub fn note(&mut self, steps: usize, events: u64) {
        self.progress = Progress { steps, events };
        let Some(file) = &self.file else { return };
        // Like the real one: where it can't write, it goes on without.
        if let Some(dir) = file.parent() {
            drop(std::fs::create_dir_all(dir));
        }
        if let Ok(text) = serde_json::to_vec(&self.progress) {
            drop(std::fs::write(file, text));
        }
    }
}
