//! `turnmill smoke`: one real turn through everything, checked, and cleaned up.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{complain, paint, signals, store, watch};
use crate::config::Config;
use crate::store::{BlockRow, Enqueue, Store, TurnRow};

/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// How long a sandbox may take to be gone after its turn has ended.
const RELEASE_MAX: Duration = Duration::from_secs(90);

/// Run one real turn in a pool and check all that it leaves; exit code 0 only when everything is as it should be.
#[derive(Debug, Args)]
pub struct Smoke {
    /// The pool to try
    #[arg(long, default_value = "default")]
    pool: String,
    /// The message
    #[arg(long, default_value = "Run `echo turnmill` in your shell, then answer with the one word that it printed.")]
    prompt: String,
    /// Seconds that the turn may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Keep the project, its session and its turn
    #[arg(long)]
    keep: bool,
}

impl Smoke {
    /// Runs it.
    pub async fn run(self, config: Config) -> anyhow::Result<ExitCode> {
        let store = store(&config).await?;
        store.check_schema().await?;
        anyhow::ensure!(
            store.pools().await?.iter().any(|pool| pool.name == self.pool),
            "there is no pool \"{}\"; make it: turnmill pool set {} --cap 1",
            self.pool,
            self.pool
        );
        let e2b = crate::worker::client(&config)?;
        let interrupted = signals::stop_on_signal()?;
        let stop = CancellationToken::new();
        let background = TaskTracker::new();
        if store.workers().await?.iter().any(|worker| worker.alive) {
            good("a worker of the fleet takes it");
        } else {
            let keyring = super::keyring(&config)?;
            let worker = crate::worker::Worker::register(store.clone(), Arc::new(config), keyring, &background).await?;
            background.spawn(worker.run(stop.clone()));
            good("no worker is running, so one runs here");
        }
        let tried = self.one_turn(&store, &e2b, &interrupted).await;
        stop.cancel();
        background.close();
        background.wait().await;
        match tried {
            Ok(()) if interrupted.is_cancelled() => Ok(signals::STOPPED.into()),
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                anstream::println!("{}✗{} {}", paint::BAD, paint::OFF, complain::text(&error));
                Ok(ExitCode::FAILURE)
            }
        }
    }

    async fn one_turn(&self, store: &Store, e2b: &crate::e2b::Client, interrupted: &CancellationToken) -> anyhow::Result<()> {
        let name = format!("smoke-{:08x}", rand::random::<u32>());
        let turn = Enqueue {
            prompt: self.prompt.clone(),
            project_id: Some(name.clone()),
            session_id: Some(name.clone()),
            idempotency_key: Some(name.clone()),
            pool: Some(self.pool.clone()),
            ..Enqueue::default()
        };
        let receipt = store.enqueue(&turn).await?;
        let id = receipt.turn_id.as_deref().context("the turn was not taken")?;
        good(&format!("project and session {name}, turn {id}"));
        let again = store.enqueue(&turn).await?;
        anyhow::ensure!(again.replayed && again.turn_id == receipt.turn_id, "a repeated enqueue made another turn: {:?}", again.turn_id);
        good("enqueued twice, it is one turn");
        let checked = interrupted.run_until_cancelled(async {
            let (turn, blocks) = self.end_of(store, id).await?;
            self.check(store, e2b, &turn, &blocks).await
        });
        let checked = checked.await.unwrap_or(Ok(()));
        if interrupted.is_cancelled() {
            anstream::println!("{}•{} interrupted; the turn is cancelled, and its sandbox waited for", paint::WARN, paint::OFF);
        }
        if !self.keep || interrupted.is_cancelled() {
            self.clear_away(store, id, &name).await?;
        }
        checked
    }

    /// Its sandbox first: without the rows nobody would know whose it is.
    async fn clear_away(&self, store: &Store, id: &str, session: &str) -> anyhow::Result<()> {
        store.cancel(id, Some("the smoke test is over")).await?;
        let ended = || async { Ok(store.turn(id).await?.is_none_or(|turn| turn.completed_at.is_some()).then_some(())) };
        until(RELEASE_MAX, ended).await?.context("the turn does not end; a worker of the fleet will see to it")?;
        let free = || async { Ok((store.slots_held_by(session).await? == 0).then_some(())) };
        until(RELEASE_MAX, free).await?.context("its sandbox still lives; a worker of the fleet will see to it")?;
        if !self.keep {
            until(RELEASE_MAX, || async { Ok(store.forget_session(session).await?.then_some(())) })
                .await?
                .context("its rows could not be removed")?;
        }
        good("cleaned up");
        Ok(())
    }

    /// Shows the blocks while they come.
    async fn end_of(&self, store: &Store, id: &str) -> anyhow::Result<(TurnRow, Vec<BlockRow>)> {
        let since = Instant::now();
        let mut blocks: Vec<BlockRow> = Vec::new();
        let mut waits_for = None;
        loop {
            let after = blocks.last().map_or(-1, |block| block.seq);
            let reading = store.read(id, after, 1000).await?.context("the turn has vanished")?;
            reading.blocks.iter().for_each(watch::print);
            let news = !reading.blocks.is_empty();
            blocks.extend(reading.blocks);
            waits_for = reading.waits_for.or(waits_for);
            if !news && matches!(reading.status.as_str(), "completed" | "failed" | "cancelled") {
                return Ok((store.turn(id).await?.context("the turn has vanished")?, blocks));
            }
            anyhow::ensure!(
                since.elapsed() < Duration::from_secs(self.timeout),
                "it is {} after {} s{}; turnmill doctor says what is missing",
                reading.status,
                self.timeout,
                waits_for.map(|why| format!(", last waiting for: {why}")).unwrap_or_default()
            );
            sleep(POLL).await;
        }
    }

    async fn check(&self, store: &Store, e2b: &crate::e2b::Client, turn: &TurnRow, blocks: &[BlockRow]) -> anyhow::Result<()> {
        anyhow::ensure!(
            turn.status == "completed",
            "it {}: {}: {}",
            turn.status,
            turn.error_code.as_deref().unwrap_or("no code"),
            paint::safe(turn.error_message.as_deref().unwrap_or("no message"))
        );
        good(&format!("completed, attempt {}, {:.4} dollars", turn.attempt, turn.cost_usd.unwrap_or(0.0)));
        anyhow::ensure!(turn.started_at.is_some() && turn.completed_at.is_some(), "it has no times");
        anyhow::ensure!(blocks.iter().enumerate().all(|(nth, block)| usize::try_from(block.seq) == Ok(nth)), "seq has gaps");
        let text = |block: &BlockRow| block.content["text"].as_str().is_some_and(|text| !text.trim().is_empty());
        anyhow::ensure!(blocks.iter().any(|block| block.kind == "content" && text(block)), "there is no text in the answer");
        let ids = |kind: &str| {
            let mut ids: Vec<_> = blocks.iter().filter(|b| b.kind == kind).map(|b| b.content["tool_use_id"].to_string()).collect();
            ids.sort();
            ids
        };
        anyhow::ensure!(
            ids("tool_use") == ids("tool_result"),
            "calls and results don't match: {:?}, {:?}",
            ids("tool_use"),
            ids("tool_result")
        );
        good(&format!("{} blocks in order, {} calls with their results", blocks.len(), ids("tool_use").len()));
        let sandboxes = store.sandboxes_of(&turn.id).await?;
        for sandbox in &sandboxes {
            let gone = until(RELEASE_MAX, || async { Ok(e2b.get(sandbox).await?.is_none().then_some(())) }).await?;
            anyhow::ensure!(gone.is_some(), "sandbox {sandbox} still lives");
        }
        good(&format!("{} sandbox, and it is gone", sandboxes.len()));
        Ok(())
    }
}

fn good(text: &str) {
    anstream::println!("{}✓{} {}", paint::GOOD, paint::OFF, paint::safe(text));
}

async fn until<T, F: Future<Output = anyhow::Result<Option<T>>>>(max: Duration, look: impl Fn() -> F) -> anyhow::Result<Option<T>> {
    let since = Instant::now();
    loop {
        let found = look().await?;
        if found.is_some() || since.elapsed() > max {
            return Ok(found);
        }
        sleep(POLL).await;
    }
}
