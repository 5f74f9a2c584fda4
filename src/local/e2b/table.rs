//! The processes of one sandbox: who listens to them, what they are fed, how they ended.
//!
//! As in the real envd, a process runs on when its caller goes away, what it prints while nobody listens is
//! lost, a listener that stops reading holds it up, and its exit code is kept for 30 s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::envd::Refusal;
use super::spawn::Spawned;

/// How long an exit code is kept.
const EXIT_KEPT: Duration = Duration::from_secs(30);

/// Most bytes of one event.
const CHUNK: usize = 32 * 1024;

/// Events that may wait for a listener before the process is held up.
const QUEUE: usize = 16;

/// The processes of one sandbox, since this server started.
#[derive(Debug, Default, Clone)]
pub(super) struct Processes(Arc<Mutex<Vec<Arc<Process>>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct Process {
    pub pid: u32,
    tag: Option<String>,
    config: Value,
    listeners: Mutex<Listeners>,
    input: tokio::sync::Mutex<Input>,
}

/// How a process is fed.
#[derive(Debug)]
pub(super) enum Input {
    Closed,
    Pipe(ChildStdin),
    Terminal(pty_process::OwnedWritePty),
}

#[derive(Debug)]
enum Listeners {
    Running(Vec<mpsc::Sender<Value>>),
    Ended(Value),
}

/// Which process a call means.
#[derive(Debug, Deserialize)]
pub(super) struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

impl Selector {
    fn missing(&self) -> Refusal {
        let text = match (self.pid, &self.tag) {
            (Some(pid), _) => format!("process with pid {pid} not found"),
            (None, tag) => format!("process with tag {} not found", tag.as_deref().unwrap_or_default()),
        };
        Refusal::new("not_found", text)
    }
}

impl Processes {
    /// Takes up a process that was just started; the receiver hears it from its first byte on. `ended` gets its exit
    /// code, before any listener does.
    pub fn take_up(
        &self,
        spawned: Spawned,
        tag: Option<String>,
        ended: impl FnOnce(Option<i32>) + Send + 'static,
    ) -> (Arc<Process>, mpsc::Receiver<Value>) {
        let (sender, events) = mpsc::channel(QUEUE);
        let Spawned { child, output, input, config } = spawned;
        let process = Arc::new(Process {
            pid: child.id().unwrap_or(0),
            tag,
            config,
            listeners: Mutex::new(Listeners::Running(vec![sender])),
            input: tokio::sync::Mutex::new(input),
        });
        self.all().push(process.clone());
        let (processes, heard) = (self.clone(), process.clone());
        tokio::spawn(async move {
            heard.hear(output, child, ended).await;
            sleep(EXIT_KEPT).await;
            processes.all().retain(|other| !Arc::ptr_eq(other, &heard));
        });
        (process, events)
    }

    /// Running, or ended less than 30 s ago.
    pub fn find(&self, wanted: &Selector) -> Result<Arc<Process>, Refusal> {
        let matches = |process: &&Arc<Process>| match (wanted.pid, &wanted.tag) {
            (Some(pid), _) => process.pid == pid,
            (None, tag) => tag.is_some() && process.tag == *tag,
        };
        self.all().iter().rev().find(matches).cloned().ok_or_else(|| wanted.missing())
    }

    /// Running.
    pub fn find_running(&self, wanted: &Selector) -> Result<Arc<Process>, Refusal> {
        self.find(wanted).and_then(|process| if process.runs() { Ok(process) } else { Err(wanted.missing()) })
    }

    /// What `List` says.
    pub fn list(&self) -> Vec<Value> {
        let running = self.all().iter().filter(|process| process.runs()).cloned().collect::<Vec<_>>();
        running
            .iter()
            .map(|process| {
                let mut row = json!({ "config": process.config, "pid": process.pid });
                if let Some(tag) = &process.tag {
                    row["tag"] = tag.as_str().into();
                }
                row
            })
            .collect()
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Hears what comes from now on; how it ended, if it has.
    pub fn listen(&self) -> mpsc::Receiver<Value> {
        let (sender, events) = mpsc::channel(QUEUE);
        match &mut *self.listeners() {
            Listeners::Running(listeners) => listeners.push(sender),
            Listeners::Ended(end) => drop(sender.try_send(end.clone())),
        }
        events
    }

    /// Writes to its standard input or terminal.
    pub async fn feed(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let written = match &mut *self.input.lock().await {
            Input::Closed => return Err(Refusal::new("failed_precondition", "stdin is not enabled for this process")),
            Input::Pipe(pipe) => pipe.write_all(bytes).await,
            Input::Terminal(terminal) => terminal.write_all(bytes).await,
        };
        Ok(written?)
    }

    /// Ends its standard input; a terminal has no such thing.
    pub async fn close_input(&self) -> Result<(), Refusal> {
        let mut input = self.input.lock().await;
        match &*input {
            Input::Terminal(_) => Err(Refusal::new("failed_precondition", "a terminal's input can't be closed; send Ctrl-D")),
            Input::Closed | Input::Pipe(_) => {
                *input = Input::Closed;
                Ok(())
            }
        }
    }

    /// Tells its terminal its size.
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), Refusal> {
        match &*self.input.lock().await {
            Input::Terminal(terminal) => {
                terminal.resize(pty_process::Size::new(rows, cols)).map_err(|error| Refusal::new("internal", error.to_string()))
            }
            Input::Closed | Input::Pipe(_) => Err(Refusal::new("failed_precondition", "this process has no terminal")),
        }
    }

    /// Until it has ended and its pipes are closed, whoever listens.
    async fn hear(&self, output: super::spawn::Output, mut child: tokio::process::Child, ended: impl FnOnce(Option<i32>)) {
        match output {
            super::spawn::Output::Pipes(stdout, stderr) => {
                tokio::join!(self.pump(stdout, "stdout"), self.pump(stderr, "stderr"));
            }
            super::spawn::Output::Terminal(terminal) => self.pump(Some(terminal), "pty").await,
        }
        let exit = child.wait().await;
        ended(exit.as_ref().ok().and_then(std::process::ExitStatus::code));
        let end = match exit.map(|status| (status.code(), status)) {
            Ok((Some(0), _)) => json!({ "exited": true, "status": "exit status 0" }),
            Ok((Some(code), _)) => {
                let text = format!("exit status {code}");
                json!({ "exitCode": code, "exited": true, "status": text, "error": text })
            }
            Ok((None, status)) => json!({ "exitCode": -1, "status": status.to_string(), "error": status.to_string() }),
            Err(error) => json!({ "exitCode": -1, "status": error.to_string(), "error": error.to_string() }),
        };
        *self.input.lock().await = Input::Closed;
        let end = json!({ "event": { "end": end } });
        let before = std::mem::replace(&mut *self.listeners(), Listeners::Ended(end.clone()));
        if let Listeners::Running(listeners) = before {
            for listener in listeners {
                // Gone is gone.
                drop(listener.send(end.clone()).await);
            }
        }
    }

    async fn pump(&self, pipe: Option<impl AsyncRead + Unpin>, name: &str) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = vec![0; CHUNK];
        // A terminal whose last process has ended gives an error, not an end.
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            let listeners = match &*self.listeners() {
                Listeners::Running(listeners) => listeners.clone(),
                Listeners::Ended(_) => return,
            };
            if listeners.is_empty() {
                continue;
            }
            let event = json!({ "event": { "data": { name: BASE64.encode(&buffer[..n]) } } });
            for listener in listeners {
                if listener.send(event.clone()).await.is_err()
                    && let Listeners::Running(all) = &mut *self.listeners()
                {
                    all.retain(|other| !other.is_closed());
                }
            }
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has not ended.
    pub fn runs(&self) -> bool {
        matches!(*self.listeners(), Listeners::Running(_))
    }
}
