//! `turnmill erase`: forgets a user or a session.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tokio::time::{Instant, sleep};

use super::{paint, store};
use crate::config::Config;
use crate::store::{Actor, Store, Traces, Whose};

/// Sessions whose sandboxes are looked for at once.
const SESSIONS: usize = 500;

/// Between two looks at what workers were asked to do.
const LOOK: Duration = Duration::from_millis(200);

/// Erase a user or a session from every table. Without --yes it only says what there is.
///
/// Messages, answers, files, conversations, journals and keys are deleted; what they have cost stays, without saying whose it was.
/// The audit gets an entry with an id of the erasure and numbers, and nothing that tells who it was.
#[derive(Debug, Args)]
pub struct Erase {
    #[command(flatten)]
    who: Who,
    /// With --user: only that project's sessions; then the user's keys stay
    #[arg(long, value_name = "ID", requires = "user", value_parser = NonEmptyStringValueParser::new())]
    project: Option<String>,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Cancel what is queued and what runs first; without it nothing is erased while something does
    #[arg(long, requires = "yes")]
    cancel: bool,
    /// Seconds to wait for turns to end and for workers to kill sandboxes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// The user, as sessions name them
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// The session
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    session: Option<String>,
}

impl Erase {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        let whose = match (self.who.user, self.who.session) {
            (Some(id), _) => Whose::User { id, project: self.project },
            (None, session) => Whose::Session(session.unwrap_or_default()),
        };
        let traces = store.traces(&whose).await?;
        if traces.are_none() {
            anstream::println!("Nothing is there of it.");
            return Ok(ExitCode::SUCCESS);
        }
        list(&traces);
        if !self.yes {
            anstream::println!("Nothing was erased; to do it, for good: --yes");
            return Ok(ExitCode::SUCCESS);
        }
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        if !traces.live.is_empty() {
            anyhow::ensure!(
                self.cancel,
                "{} turns have not ended ({}); cancel them first, or all at once: --cancel",
                traces.live.len(),
                paint::line(traces.live.first().map_or("", String::as_str))
            );
            cancel(&store, &whose, &traces, deadline).await?;
        }
        no_sandboxes(&store, &traces.sessions, deadline).await?;
        for session in &traces.sessions {
            anyhow::ensure!(
                store.erase_session(session).await?,
                "a turn was enqueued into session {} meanwhile; stop whoever does, and erase again: what is left is still there",
                paint::line(session)
            );
        }
        let actor = Actor { name: "turnmill erase".to_owned(), token_id: None, reason: "somebody asked to be forgotten".to_owned() };
        let erasure = store.end_erasure(&whose, &actor, &traces).await?;
        anstream::println!("Erased, as {erasure} in the audit. Backups and logs of yours may have it still.");
        Ok(ExitCode::SUCCESS)
    }
}

fn list(traces: &Traces) {
    for (table, count) in &traces.rows {
        anstream::println!("{count:>8} {table}");
    }
    if traces.sandboxes > 0 {
        anstream::println!("{:>8} sandboxes, which workers kill", traces.sandboxes);
    }
    if !traces.live.is_empty() {
        anstream::println!("{:>8} turns that have not ended", traces.live.len());
    }
    for fork in &traces.forks {
        anstream::println!("  {} was forked from it and stays, with what it has of the conversation", paint::line(fork));
    }
}

/// Cancels what has not ended, and waits until it has.
async fn cancel(store: &Store, whose: &Whose, traces: &Traces, deadline: Instant) -> anyhow::Result<()> {
    for turn in &traces.live {
        store.cancel(turn, None).await?;
    }
    loop {
        let live = store.traces(whose).await?.live;
        let Some(first) = live.first() else { return Ok(()) };
        anyhow::ensure!(
            Instant::now() < deadline,
            "{} turns have not ended yet, as {}; a worker must be alive to end them. Nothing was erased; erase again later",
            live.len(),
            paint::line(first)
        );
        sleep(LOOK).await;
    }
}

/// Has every sandbox killed, and waits until none is left: what they cost is booked when they go.
async fn no_sandboxes(store: &Store, sessions: &[String], deadline: Instant) -> anyhow::Result<()> {
    for some in sessions.chunks(SESSIONS) {
        loop {
            let left = store.kill_sandboxes_of(some).await?;
            if left == 0 {
                break;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{left} sandboxes are still there; a worker must be alive to kill them. Nothing was erased; erase again later"
            );
            sleep(LOOK).await;
        }
    }
    Ok(())
}
