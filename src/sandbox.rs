//! What a worker needs of a sandbox: the supervisor's verbs, its journal, and its life.
//!
//! Every act in the sandbox goes through `e2b/run-turn --epoch N VERB`, which refuses an epoch lower than
//! the highest that it has seen: a worker that lost its turn can't touch what its successor does.

mod launch;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde::Deserialize;

use crate::e2b::{self, ApiVersion, Command, Envd, EnvdError, ProcessEvent};
use crate::files::Parcel;

pub use launch::{Launch, Restore};

/// The supervisor as it is brought in: one file, whose last line starts it.
pub const SUPERVISOR: &str = concat!(include_str!("../e2b/files"), include_str!("../e2b/run-turn"));

/// Where the supervisor keeps its state; below `$TURNMILL_ROOT`, which only the local server sets.
const STATE: &str = "/var/lib/turnmill";

/// The supervisor's exit code where the template does not fit; a shell's are 126 and 127.
const UNFIT: i32 = 69;

/// How long a woken sandbox lives at least; who follows it extends it soon.
const WOKEN: Duration = Duration::from_secs(300);

/// Constant text: no byte of a prompt, an option or a name is ever part of a shell string.
const RUN: &str = r#"exec /bin/bash "${TURNMILL_ROOT:-}/var/lib/turnmill/in/$1/run-turn" --epoch "$@""#;

/// A running sandbox, under one worker's epoch.
#[derive(Debug, Clone)]
pub struct Sandbox {
    client: e2b::Client,
    envd: Envd,
    id: String,
    envd_version: Option<String>,
    turn: String,
    epoch: i64,
    attempt: i32,
    deadline: Duration,
}

/// What the supervisor says of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Probe {
    /// How far it is.
    pub state: AgentState,
    /// Bytes in the journal now.
    #[serde(default)]
    pub journal: u64,
    /// Its end, once it has one.
    #[serde(default)]
    pub exit: Option<AgentExit>,
    /// The end of what it printed on stderr.
    #[serde(default)]
    pub stderr_tail: String,
    /// No project was brought into the sandbox yet.
    #[serde(default)]
    pub fresh: bool,
}

/// The states of an attempt in its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Never started.
    None,
    /// Its supervisor watches it.
    Alive,
    /// The exit file is there: the journal is complete.
    Exited,
    /// Nobody watches it and nobody will write its exit file.
    Lost,
    /// We may not ask: somebody with a higher epoch has.
    Fenced,
}

/// The supervisor's exit file. The agent can't write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentExit {
    /// As a shell says it: 128 + n for a signal.
    pub status: i32,
    /// The journal's final size.
    pub journal_bytes: u64,
    /// Why the supervisor ended it or did not start it, if so.
    #[serde(default)]
    pub reason: Option<String>,
    /// What went wrong with the hook after it.
    #[serde(default)]
    pub finish: Option<String>,
    /// Bytes of the conversation that was kept; 0: there was none, if it could be looked for.
    #[serde(default)]
    pub transcript_bytes: u64,
    /// `false`: there is one, but no whole copy could be made. The supervisors of before do not say.
    #[serde(default = "supposed")]
    pub transcript_kept: bool,
    /// The agent itself was started.
    #[serde(default)]
    pub ran: bool,
    /// What is there of its files; `None`: the supervisor is from before it looked at them.
    #[serde(default)]
    pub files: Option<FilesExit>,
}

const fn supposed() -> bool {
    true
}

/// What an attempt's supervisor says of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct FilesExit {
    /// Entries that differ from what `prepare` has brought.
    pub changed: u64,
    /// Size of the list of the turn's changes.
    pub list_bytes: u64,
    /// Why that is missing or not whole.
    pub unlisted: Option<String>,
    /// What is in the archive: `all` that differs, or what the `turn` has made; `None`: there is none.
    pub archive: Option<String>,
    /// Its size.
    pub archive_bytes: u64,
    /// Why there is no archive of all, or not of all.
    pub unsaved: Option<String>,
    /// The hook `finish` has the files.
    pub carried: bool,
}

/// Signals that the supervisor passes on to the agent's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop what you do and say so.
    Int,
    /// End.
    Term,
    /// Now, with all that you started.
    Kill,
}

/// Why an act in a sandbox failed; the kind says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SandboxError {
    /// The sandbox does not exist any more.
    #[error("the sandbox is gone")]
    Gone,
    /// Another worker has the turn.
    #[error("fenced in the sandbox: another worker has this turn")]
    Fenced,
    /// No answer, or not now: try again.
    #[error("the sandbox can't be reached: {0}")]
    Unreachable(String),
    /// It lacks something that the supervisor needs, or was built for another version of it.
    #[error("the template does not fit this worker: {0}")]
    Unfit(String),
    /// No space left in it.
    #[error("the sandbox's disk is full: {0}")]
    DiskFull(String),
    /// It answered with something that trying again won't change.
    #[error("the sandbox refused: {0}")]
    Refused(String),
}

impl From<EnvdError> for SandboxError {
    fn from(error: EnvdError) -> Self {
        match error {
            EnvdError::Gone => Self::Gone,
            EnvdError::DiskFull(text) => Self::DiskFull(text),
            EnvdError::NotReady(_) | EnvdError::Unreachable(_) | EnvdError::DeadlineExceeded => Self::Unreachable(error.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl Sandbox {
    /// Over a sandbox that E2B says is running. `turn` tells apart the turns of a session that it may serve: letters,
    /// digits and hyphens.
    pub fn new(client: &e2b::Client, sandbox: &e2b::Sandbox, turn: &str, epoch: i64, attempt: i32, deadline: Duration) -> Self {
        Self {
            client: client.clone(),
            envd: client.envd(sandbox),
            id: sandbox.id.clone(),
            envd_version: sandbox.envd_version.clone(),
            turn: turn.to_owned(),
            epoch,
            attempt,
            deadline,
        }
    }

    /// E2B's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What E2B says that its daemon is.
    pub fn envd_version(&self) -> Option<&str> {
        self.envd_version.as_deref()
    }

    /// Brings the supervisor in, under this epoch's own directory: an older worker's upload can't replace it.
    pub async fn install(&self) -> Result<(), SandboxError> {
        self.upload("run-turn", Bytes::from_static(SUPERVISOR.as_bytes())).await
    }

    /// Starts the agent unless this attempt was started before, by whomever: then it only looks.
    pub async fn start(&self, launch: &Launch) -> Result<Probe, SandboxError> {
        self.upload("input.jsonl", Bytes::from(format!("{}\n", launch.input))).await?;
        if let Some(text) = &launch.instructions {
            self.upload("instructions", Bytes::from(text.clone())).await?;
        }
        if let Some(text) = &launch.servers {
            self.upload("servers.json", Bytes::from(text.clone())).await?;
        }
        let max = launch.journal_max_bytes.to_string();
        let input = format!("{STATE}/in/{}/input.jsonl", self.epoch);
        let mut args = vec!["--input", &input, "--journal-max", &max];
        if let Some(dir) = &launch.workdir {
            args.extend(["--cwd", dir]);
        }
        let (transcript_max, restore) = (launch.transcript_max_bytes.to_string(), format!("{STATE}/in/{}/transcript", self.epoch));
        if let Some(pattern) = &launch.transcript {
            args.extend(["--transcript", pattern, "--transcript-max", &transcript_max]);
            if launch.forget {
                args.push("--forget");
            } else if let Some(saved) = &launch.restore {
                self.upload("transcript", saved.conversation.clone()).await?;
                args.extend(["--restore", &restore, "--restore-as", &saved.file]);
            }
        }
        let (workspace, attached) = (format!("{STATE}/in/{}/workspace", self.epoch), format!("{STATE}/in/{}/attached", self.epoch));
        if self.bring("workspace", launch.workspace.as_ref()).await? {
            args.extend(["--workspace", &workspace]);
        }
        if self.bring("attached", launch.attached.as_ref()).await? {
            args.extend(["--attached", &attached]);
        }
        args.push("--");
        args.extend(launch.command.iter().map(String::as_str));
        self.verb("start", &args, launch.variables()).await
    }

    /// Asks how the attempt is.
    pub async fn probe(&self) -> Result<Probe, SandboxError> {
        self.verb("probe", &[], BTreeMap::new()).await
    }

    /// Signals the agent.
    pub async fn signal(&self, signal: Signal) -> Result<Probe, SandboxError> {
        let name = match signal {
            Signal::Int => "INT",
            Signal::Term => "TERM",
            Signal::Kill => "KILL",
        };
        self.verb("signal", &[name], BTreeMap::new()).await
    }

    /// Ends what the agent left running.
    pub async fn finish(&self) -> Result<Probe, SandboxError> {
        self.verb("finish", &[], BTreeMap::new()).await
    }

    /// The journal's bytes from `offset` on, live. Ends when the agent's supervisor has ended, or is cut at
    /// any time: then ask [`Self::probe`], and follow again from where you are.
    pub async fn follow(&self, offset: u64) -> Result<impl Stream<Item = Result<Bytes, SandboxError>> + Send + use<>, SandboxError> {
        let command = self.command("follow", &["--offset", &offset.to_string()], BTreeMap::new());
        let events = self.envd.start(&command).await?;
        Ok(events.filter_map(|event| async move {
            match event {
                Ok(ProcessEvent::Stdout(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(SandboxError::from(error))),
            }
        }))
    }

    /// Bytes `from..to` of the journal, or fewer when it is shorter.
    pub async fn read(&self, from: u64, to: u64) -> Result<Bytes, SandboxError> {
        self.download("journal.jsonl", from..to).await
    }

    /// Lets it live for `timeout` from now. `Gone` when E2B does not know it any more.
    pub async fn extend(&self, timeout: Duration) -> Result<(), SandboxError> {
        match self.client.set_timeout(&self.id, timeout).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SandboxError::Gone),
            Err(error) => Err(SandboxError::Unreachable(error.to_string())),
        }
    }

    /// Whether E2B still knows it, and lets it run; `Err` when it can't be asked. Absence in a list never counts.
    pub async fn exists(&self) -> Result<bool, SandboxError> {
        let gone_or = |error: e2b::ApiError| SandboxError::Unreachable(error.to_string());
        match self.client.get(&self.id).await.map_err(gone_or)? {
            // By somebody who took the last turn's end for this one's. Whoever has the turn lets it go on.
            Some(info) if info.state == "paused" => self.wake().await.map_err(gone_or),
            found => Ok(found.is_some()),
        }
    }

    async fn wake(&self) -> Result<bool, e2b::ApiError> {
        match self.client.connect(ApiVersion::V2, &self.id, WOKEN).await {
            Ok(Some(_)) => Ok(true),
            // A server without it says the same as one that does not know the sandbox.
            Ok(None) | Err(e2b::ApiError::Refused(_)) => Ok(self.client.connect(ApiVersion::V1, &self.id, WOKEN).await?.is_some()),
            Err(error) => Err(error),
        }
    }

    async fn bring(&self, name: &str, parcel: Option<&Parcel>) -> Result<bool, SandboxError> {
        let Some(parcel) = parcel else { return Ok(false) };
        if let Some(archive) = &parcel.archive {
            self.upload(name, archive.clone()).await?;
        }
        self.upload(&format!("{name}.plan"), parcel.plan.clone()).await?;
        Ok(true)
    }

    async fn upload(&self, name: &str, body: Bytes) -> Result<(), SandboxError> {
        let path = format!("{STATE}/in/{}/{name}", self.epoch);
        Ok(self.envd.upload(&path, "root", body, self.deadline).await?)
    }

    /// Bytes of a file that the supervisor has made in this attempt, or fewer when it is shorter.
    pub async fn download(&self, name: &str, range: Range<u64>) -> Result<Bytes, SandboxError> {
        let path = format!("{STATE}/turn-{}/attempt-{}/{name}", self.turn, self.attempt);
        Ok(self.envd.download(&path, "root", range, self.deadline).await?)
    }

    async fn verb(&self, verb: &str, args: &[&str], envs: BTreeMap<String, String>) -> Result<Probe, SandboxError> {
        let output = self.envd.run(&self.command(verb, args, envs), self.deadline).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let probe: Probe = serde_json::from_str(said.trim()).map_err(|_| {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            match output.exit_code {
                _ if why.contains("No space left on device") => SandboxError::DiskFull(why),
                UNFIT | 126 | 127 => SandboxError::Unfit(why),
                code => SandboxError::Refused(format!("run-turn {verb} exited with {code}: {why}")),
            }
        })?;
        if probe.state == AgentState::Fenced { Err(SandboxError::Fenced) } else { Ok(probe) }
    }

    fn command(&self, verb: &str, args: &[&str], envs: BTreeMap<String, String>) -> Command {
        let mut all = vec!["-c".to_owned(), RUN.to_owned(), "run-turn".to_owned(), self.epoch.to_string(), verb.to_owned()];
        all.extend(["--turn".to_owned(), self.turn.clone(), "--attempt".to_owned(), self.attempt.to_string()]);
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        Command { cmd: "/bin/bash".to_owned(), args: all, envs, user: "root".to_owned(), ..Command::default() }
    }
}
