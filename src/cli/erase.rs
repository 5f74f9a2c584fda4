//! `turnmill erase`: forgets a user or a session.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tokio::time::{Instant, sleep};

use super::{paint, store};
use crate::config::Config;
use crate::store::{Actor, Erasure, Store, Traces, Whose};

/// Sessions whose sandboxes are looked for at once.
const SESSIONS: usize = 500;

/// Between two looks at what workers were asked to do.
const LOOK: Duration = Duration::from_millis(200);

/// Times that what there is of somebody is looked for: sessions may be made meanwhile.
const ROUNDS: usize = 10;

/// Entries of the audit that are named.
const NAMED: usize = 20;

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
    #[command(flatten)]
    of: Of,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Cancel what is queued and what runs first; without it nothing is erased while something does
    #[arg(long, requires = "yes")]
    cancel: bool,
    /// Also if forks that stay have saved no conversation or files of their own yet, and lose them
    #[arg(long, requires = "yes")]
    with_unsaved_forks: bool,
    /// Seconds to wait for turns to end and for workers to kill sandboxes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

#[derive(Debug, Args)]
struct Of {
    /// With --user: only that tenant's sessions and keys; empty: those without one. Two tenants' users may have the same id
    #[arg(long, value_name = "ID", requires = "user", conflicts_with = "all_tenants")]
    tenant: Option<String>,
    /// With --user: whoever is called so, in every tenant
    #[arg(long, requires = "user")]
    all_tenants: bool,
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
        let whose = self.whose(&store).await?;
        let mut ids = vec![match &whose {
            Whose::Session(id) | Whose::User { id, .. } => id.clone(),
        }];
        let mut erasure = None;
        for _ in 0..ROUNDS {
            let traces = store.traces(&whose).await?;
            if traces.are_none() {
                match erasure {
                    None => anstream::println!("Nothing is there of it."),
                    Some(id) => anstream::println!("Erased, as {id} in the audit. Backups and logs of yours may have it still."),
                }
                mentions(&store.audit_mentions(&ids).await?);
                return Ok(ExitCode::SUCCESS);
            }
            if erasure.is_none() {
                list(&traces);
            }
            if !self.yes {
                anstream::println!("Nothing was erased; to do it, for good: --yes");
                return Ok(ExitCode::SUCCESS);
            }
            self.prepare(&store, &traces).await?;
            if erasure.is_none() {
                let reason = "somebody asked to be forgotten".to_owned();
                let actor = Actor { name: "turnmill erase".to_owned(), token_id: None, reason };
                erasure = Some(store.begin_erasure(&whose, &actor, &traces).await?);
            }
            for session in &traces.sessions {
                match store.erase_session(session, self.with_unsaved_forks).await? {
                    Erasure::Done => {}
                    // One that was made meanwhile: whose it is says the next look.
                    Erasure::Forked => break,
                    Erasure::Busy => anyhow::bail!(
                        "a turn was enqueued into session {} meanwhile; stop whoever does, and erase again: what is left is still there",
                        paint::line(session)
                    ),
                }
            }
            store.erase_keys(&whose).await?;
            ids.extend(traces.sessions);
        }
        anyhow::bail!("there are sessions of theirs again and again; stop whoever makes them, and erase again: what is left is still there")
    }

    /// Who it is: a user of one tenant, unless of all.
    async fn whose(&self, store: &Store) -> anyhow::Result<Whose> {
        let Some(id) = self.who.user.clone() else { return Ok(Whose::Session(self.who.session.clone().unwrap_or_default())) };
        let (project, tenant) = (self.project.clone(), self.of.tenant.clone());
        let mut whose = Whose::User { id: id.clone(), project: project.clone(), tenant };
        if self.of.tenant.is_none() && !self.of.all_tenants {
            let tenants = store.tenants_of(&whose).await?;
            anyhow::ensure!(
                tenants.len() < 2,
                "there are users of that id in {} tenants: {}; say whose is meant with --tenant, or --all-tenants",
                tenants.len(),
                tenants.iter().map(|id| if id.is_empty() { "\"\" (none)".into() } else { paint::line(id) }).collect::<Vec<_>>().join(", ")
            );
            // Whoever comes to be called so elsewhere meanwhile is somebody else.
            whose = Whose::User { id, project, tenant: tenants.into_iter().next() };
        }
        Ok(whose)
    }

    /// Ends what runs, if that is wanted, and refuses what is not to be erased.
    async fn prepare(&self, store: &Store, traces: &Traces) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        if let Some(fork) = traces.unsaved_forks.first() {
            anyhow::ensure!(
                self.with_unsaved_forks,
                "{} forks have saved no conversation or files of their own yet, as {}, and would lose them; let a turn of each end, \
                 or erase them first, or let them lose it: --with-unsaved-forks",
                traces.unsaved_forks.len(),
                paint::line(fork)
            );
        }
        if !traces.live.is_empty() {
            anyhow::ensure!(
                self.cancel,
                "{} turns have not ended ({}); cancel them first, or all at once: --cancel",
                traces.live.len(),
                paint::line(traces.live.first().map_or("", String::as_str))
            );
            cancel(store, traces, deadline).await?;
        }
        no_sandboxes(store, &traces.sessions, deadline).await
    }
}

fn mentions(entries: &[i64]) {
    if entries.is_empty() {
        return;
    }
    let named: Vec<String> = entries.iter().take(NAMED).map(i64::to_string).collect();
    let more = if entries.len() > NAMED { " and more" } else { "" };
    anstream::println!(
        "Entries of the audit have such an id in what they say about something else, and stay: {}{more}. \
         Read them; docs/roles.md says how to erase one.",
        named.join(", ")
    );
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
    for fork in &traces.unsaved_forks {
        anstream::println!("  {} has saved no conversation or files of its own yet, and would lose them", paint::line(fork));
    }
}

/// Cancels what has not ended, and waits until it has.
async fn cancel(store: &Store, traces: &Traces, deadline: Instant) -> anyhow::Result<()> {
    for turn in &traces.live {
        store.cancel(turn, None).await?;
    }
    loop {
        let live = store.live_turns(&traces.sessions).await?;
        let Some(first) = live.first() else { return Ok(()) };
        anyhow::ensure!(
            Instant::now() < deadline,
            "{} turns have not ended yet, as {}; a worker must be alive to end them. What is left is still there; erase again later",
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
                "{left} sandboxes are still there; a worker must be alive to kill them. What is left is still there; erase again later"
            );
            sleep(LOOK).await;
        }
    }
    Ok(())
}
