//! How a process of a sandbox is started: as whom, where, with what environment, on pipes or on a terminal.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use pty_process::{OwnedReadPty, Size};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStderr, ChildStdout};

use super::envd::Refusal;
use super::files;
use super::sandboxes::Sandbox;
use super::table::Input;

/// What `Start` asks for.
#[derive(Debug, Deserialize)]
pub(super) struct StartRequest {
    pub process: ProcessConfig,
    pub tag: Option<String>,
    pty: Option<Terminal>,
    /// Absent means a pipe, as in the real one.
    stdin: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ProcessConfig {
    cmd: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Terminal {
    size: TerminalSize,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct TerminalSize {
    pub cols: u16,
    pub rows: u16,
}

/// A process that was just started.
#[derive(Debug)]
pub(super) struct Spawned {
    pub child: Child,
    pub output: Output,
    pub input: Input,
    /// As `List` shows it.
    pub config: Value,
}

/// Where it prints to.
#[derive(Debug)]
pub(super) enum Output {
    Pipes(Option<ChildStdout>, Option<ChildStderr>),
    Terminal(OwnedReadPty),
}

/// Starts it as the request's user.
pub(super) fn spawn(sandbox: &Sandbox, request: &StartRequest, user: &str) -> Result<Spawned, Refusal> {
    let (home, uid) = match user {
        "root" => (sandbox.root.join("root"), None),
        "user" => (sandbox.root.join("home/user"), sandbox.record.uid),
        _ => return Err(Refusal::new("unauthenticated", format!("invalid username: '{user}'"))),
    };
    let config = &request.process;
    let cwd = match &config.cwd {
        Some(cwd) => files::place(sandbox, cwd, Some(user))
            .filter(|place| place.is_dir())
            .ok_or_else(|| Refusal::new("invalid_argument", format!("cwd '{cwd}' does not exist")))?,
        None => home.clone(),
    };
    let described = json!({ "cmd": config.cmd, "args": config.args, "envs": config.envs, "cwd": config.cwd });
    // Through a shell, as the real one: a missing program is an exit code of a process that ran.
    let mut words: Vec<OsString> = ["-c", r#"exec "$@""#, "sh"].map(OsString::from).to_vec();
    words.push((&config.cmd).into());
    words.extend(config.args.iter().map(OsString::from));
    let mut environment: BTreeMap<OsString, OsString> = BTreeMap::new();
    let mut set = |name: &str, value: OsString| environment.insert(name.into(), value);
    set("PATH", (&sandbox.path).into());
    set("HOME", home.into());
    set("USER", user.into());
    set("LOGNAME", user.into());
    if request.pty.is_some() {
        set("TERM", "xterm-256color".into());
    }
    for (name, value) in &sandbox.record.env_vars {
        set(name, value.into());
    }
    set("E2B_SANDBOX", "true".into());
    set("E2B_TEMPLATE_ID", (&sandbox.record.template).into());
    for (name, value) in &config.envs {
        set(name, value.into());
    }
    // Last: by this its processes are found when it is killed.
    set("E2B_SANDBOX_ID", (&sandbox.record.id).into());
    set("TURNMILL_ROOT", (&sandbox.root).into());
    if let Some(uid) = sandbox.record.uid {
        set("TURNMILL_AGENT_UID", uid.to_string().into());
    }
    match request.pty {
        Some(Terminal { size }) => on_terminal(words, environment, cwd, uid, size, described),
        None => on_pipes(words, environment, cwd, uid, request.stdin != Some(false), described),
    }
}

fn on_pipes(
    words: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    cwd: std::path::PathBuf,
    uid: Option<u32>,
    stdin: bool,
    config: Value,
) -> Result<Spawned, Refusal> {
    let mut command = std::process::Command::new("/bin/sh");
    command.args(words).current_dir(cwd).env_clear().envs(environment).process_group(0);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.stdin(if stdin { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command).spawn()?;
    let output = Output::Pipes(child.stdout.take(), child.stderr.take());
    let input = child.stdin.take().map_or(Input::Closed, Input::Pipe);
    Ok(Spawned { child, output, input, config })
}

fn on_terminal(
    words: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    cwd: std::path::PathBuf,
    uid: Option<u32>,
    size: TerminalSize,
    config: Value,
) -> Result<Spawned, Refusal> {
    let failed = |error: pty_process::Error| Refusal::new("internal", error.to_string());
    let (terminal, inside) = pty_process::open().map_err(failed)?;
    terminal.resize(Size::new(size.rows, size.cols)).map_err(failed)?;
    let mut command = pty_process::Command::new("/bin/sh").args(words).current_dir(cwd).env_clear().envs(environment);
    if let Some(uid) = uid {
        command = command.uid(uid).gid(uid);
    }
    let child = command.spawn(inside).map_err(failed)?;
    let (read, write) = terminal.into_split();
    Ok(Spawned { child, output: Output::Terminal(read), input: Input::Terminal(write), config })
}
