//! What the stand-in remembers of a conversation: a file in its home, where the real one keeps its transcripts, with a
//! line for each message.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One conversation. Without a session id, or a home that can be written, nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: Option<PathBuf>,
    /// The last is the message that is being answered.
    messages: Vec<Progress>,
    lost: bool,
}

/// How far the answer to one message is.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    uuid: String,
    prompt: String,
    /// Steps of the script that were begun.
    steps: usize,
    /// Events that were printed before the last of them: their uuids are used up.
    events: u64,
}

/// A failing step prints a handful of events more than were noted.
const EVENTS_OF_A_STEP: u64 = 8;

impl Memory {
    /// By `--session-id=ID`, which must be new, or `--resume=ID`; with both and `--fork-session` from the one into the other.
    pub fn open(args: &[String], uuid: &str, prompt: &str) -> anyhow::Result<Self> {
        let of = |flag: &str| args.iter().find_map(|arg| arg.strip_prefix(flag));
        let message = || Progress { uuid: uuid.to_owned(), prompt: prompt.to_owned(), ..Progress::default() };
        let forks = args.iter().any(|arg| arg == "--fork-session");
        let (from, into) = (of("--resume=").or_else(|| of("--session-id=")), of("--session-id=").filter(|_| forks));
        let (Some(id), Some(home)) = (from, std::env::var_os("HOME")) else {
            return Ok(Self { messages: vec![message()], ..Self::default() });
        };
        let projects = PathBuf::from(home).join(".claude/projects");
        let name = format!("{id}.jsonl");
        // A restored one may be under another project than ours.
        let found = std::fs::read_dir(&projects)
            .ok()
            .into_iter()
            .flatten()
            .flatten()
            .map(|project| project.path().join(&name))
            .find(|path| path.exists());
        let resumes = of("--resume=").is_some();
        anyhow::ensure!(resumes || found.is_none(), "Error: Session ID {id} is already in use.");
        let text = found.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        // A torn last line costs that line, as with the real one.
        let mut messages: Vec<Progress> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lost = resumes && messages.is_empty();
        if messages.last().is_none_or(|last| last.uuid != uuid) {
            messages.push(message());
        }
        let file = match into {
            Some(id) => projects.join("mock").join(format!("{id}.jsonl")),
            None => found.unwrap_or_else(|| projects.join("mock").join(name)),
        };
        let mut memory = Self { file: Some(file), messages, lost };
        if !lost {
            memory.write();
        }
        Ok(memory)
    }

    /// It was to resume what isn't there.
    pub const fn lost(&self) -> bool {
        self.lost
    }

    /// Steps not to do again.
    pub fn steps(&self) -> usize {
        self.messages.last().map_or(0, |message| message.steps)
    }

    /// Events whose uuids are used up.
    pub fn events(&self) -> u64 {
        self.messages.last().filter(|message| message.steps > 0).map_or(0, |message| message.events + EVENTS_OF_A_STEP)
    }

    /// The messages before this one, a line each.
    pub fn earlier(&self) -> String {
        let earlier = self.messages.iter().rev().skip(1).rev();
        earlier.map(|message| message.prompt.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// A step begins.
    pub fn note(&mut self, steps: usize, events: u64) {
        if let Some(message) = self.messages.last_mut() {
            (message.steps, message.events) = (steps, events);
        }
        self.write();
    }

    /// Like the real one: where it can't write, it goes on without.
    fn write(&mut self) {
        let Some(file) = &self.file else { return };
        if let Some(dir) = file.parent() {
            drop(std::fs::create_dir_all(dir));
        }
        let lines: String = self.messages.iter().filter_map(|message| Some(serde_json::to_string(message).ok()? + "\n")).collect();
        drop(std::fs::write(file, lines));
    }
}
