//! What an attempt is started with, as the supervisor wants it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::files::{FileRules, Parcel};
use crate::store::PoolHooks;

/// The hooks that pools have unless they have their own: they speak uspark, where the template has it.
const PREPARE: &str = include_str!("../../e2b/hooks/prepare");
const WATCH: &str = include_str!("../../e2b/hooks/watch");
const FINISH: &str = include_str!("../../e2b/hooks/finish");

/// How the agent's command is started.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment of the agent, secrets among it.
    pub environment: BTreeMap<String, String>,
    /// What runs around it.
    pub hooks: PoolHooks,
    /// Environment of the hooks, secrets among it.
    pub hook_environment: BTreeMap<String, String>,
    /// One line for its standard input.
    pub input: String,
    /// What the turn adds to the system prompt, for the file that `{instructions}` in `command` stands for; the project's
    /// CLAUDE.md is added there.
    pub instructions: Option<String>,
    /// For the file that `{servers}` in `command` stands for.
    pub servers: Option<String>,
    /// Whether the agent reads the project's settings itself, and so its CLAUDE.md.
    pub trusts_project: bool,
    /// Where it starts; `None` = its home.
    pub workdir: Option<String>,
    /// Most bytes of its journal.
    pub journal_max_bytes: u64,
    /// Where in its home it keeps the conversation, a pattern; `None`: nowhere.
    pub transcript: Option<String>,
    /// Most bytes of that.
    pub transcript_max_bytes: u64,
    /// The conversation to go on with, where the sandbox has none.
    pub restore: Option<Restore>,
    /// The conversation that the sandbox has is of no use.
    pub forget: bool,
    /// What is listed and kept of the files.
    pub files: FileRules,
    /// The files of the turns before, for a new sandbox.
    pub workspace: Option<Parcel>,
    /// The files that came with the message.
    pub attached: Option<Parcel>,
}

/// A conversation that is brought into a sandbox.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The agent's own file.
    pub conversation: Bytes,
    /// Where in its home it goes, a pattern.
    pub file: String,
}

impl Launch {
    /// As `run-turn start` wants them: whose each is, is in its name.
    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        let named = |owner: &'static str| move |(name, value): (&String, &String)| (format!("{owner}__{name}"), value.clone());
        let script = |own: &Option<String>, shipped: &str| own.clone().unwrap_or_else(|| shipped.to_owned());
        let hooks = &self.hooks;
        let agents = self.environment.iter().map(named("AGENT"));
        let theirs = self.hook_environment.iter().map(named("HOOK"));
        let ours = [
            ("PREPARE", script(&hooks.prepare, PREPARE)),
            ("PREPARE_LIMIT", hooks.prepare_timeout_s.to_string()),
            ("WATCH", script(&hooks.watch, WATCH)),
            ("FINISH", script(&hooks.finish, FINISH)),
            ("FINISH_LIMIT", hooks.finish_timeout_s.to_string()),
            ("FILES_POLICY", self.files.policy.clone()),
            ("FILES_EXCLUDE", self.files.exclude.join("\n")),
            ("FILES_MAX", self.files.archive_max_bytes.to_string()),
            ("FILES_EACH", self.files.each_max_bytes.to_string()),
        ];
        let trust = self.trusts_project.then(|| ("TURNMILL_TRUST_PROJECT".to_owned(), "1".to_owned()));
        agents.chain(theirs).chain(trust).chain(ours.map(|(name, value)| (format!("TURNMILL_{name}"), value))).collect()
    }
}
