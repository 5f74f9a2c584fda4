//! `turnmill demo`: a turn whose worker is killed in the middle, from nothing, in half a minute.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::children::{end, pid, spawn};
use super::note::Note;
use super::{admin, called, paint, signals, watch};
use crate::agent::{Fold, mock};
use crate::config::Config;
use crate::local::e2b;
use crate::local::postgres::{self, Postgres};
use crate::store::{self, BlockRow, Enqueue, PoolChange, Store};

/// What the stand-in agent works through; see `turnmill agent mock --help`.
const SCRIPT: &str = "long";

/// The worker is killed when this many blocks are there.
const KILL_AFTER_BLOCKS: usize = 12;

/// Short, so that nobody waits long: adoption comes after at most this.
const LEASE: &str = "3s";
const HEARTBEAT: &str = "500ms";

/// How long the last sandbox may take to go away after its turn.
const RELEASE_MAX: Duration = Duration::from_secs(10);

const PROMPT: &str = "Users are logged out too early. Find out why and fix it.";

/// Watch a turn survive kill -9 of its worker.
///
/// Starts a private Postgres, the local sandboxes and two workers, each a process of its own; enqueues a turn
/// by SQL, streams its blocks, kills the worker that has it, and checks what came out. Leaves nothing behind.
#[derive(Debug, Args)]
pub struct Demo {
    /// Stay up afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs it. Exit code 1 when anything was lost or doubled.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let stop = signals::listen()?;
        let home = postgres::passable_tempdir("turnmill-demo-")?;
        let mut stage = None;
        let played = tokio::select! {
            played = self.play(home.path(), &mut stage, &stop.in_order) => played,
            () = stop.now.cancelled() => {
                if let Some(stage) = stage.take() {
                    stage.clear().await?;
                }
                e2b::kill_everything_in(&sandboxes(home.path()));
                Ok(signals::STOPPED.into())
            }
        };
        match stage {
            Some(stage) => stage.postgres.stop().await.and(played),
            None => played,
        }
    }

    async fn play(&self, home: &Path, stage: &mut Option<Stage>, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
        let stage = stage.insert(Stage::set(home).await?);
        let show = async {
            let good = stage.show().await?;
            if self.keep {
                stage.invite()?;
                std::future::pending::<()>().await;
            }
            anyhow::Ok(good)
        };
        let shown = stop.run_until_cancelled(show).await;
        stage.strike().await?;
        match shown {
            Some(good) => Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

/// All processes of the demo.
struct Stage {
    home: PathBuf,
    postgres: Postgres,
    store: Store,
    e2b_url: String,
    local: Child,
    workers: Vec<Child>,
    config: Config,
    note: Option<Note>,
}

impl Stage {
    async fn set(home: &Path) -> anyhow::Result<Self> {
        anstream::println!("{}One turn, two workers, one kill -9.{}\n", paint::BOLD, paint::OFF);
        let postgres = Postgres::start(&home.join("postgres"), postgres::Options::default()).await?;
        let store = Store::connect(&store::Options::new(&postgres.url(), 4), store::PATIENCE).await?;
        store.migrate().await?;
        prepare_pool(&store, home).await?;
        anstream::println!("  postgres   {}", postgres.url());

        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let e2b_url = format!("http://{listen}");
        let local =
            spawn(&home.join("local.log"), &["local", "--listen", &listen, "--dir", &sandboxes(home).to_string_lossy()], &BTreeMap::new())?;
        anstream::println!("  sandboxes  {e2b_url}  (E2B's protocol over local processes, pid {})", pid(&local));

        let mut config = Config::load(None)?;
        config.e2b.api_url.clone_from(&e2b_url);
        config.e2b.sandbox_url.clone_from(&e2b_url);
        config.e2b.api_key = "local".into();
        let environment = BTreeMap::from([
            ("DATABASE_URL", postgres.url()),
            ("E2B_API_URL", e2b_url.clone()),
            ("E2B_SANDBOX_URL", e2b_url.clone()),
            ("E2B_API_KEY", "local".to_owned()),
            ("TURNMILL_WORKER__LEASE", LEASE.to_owned()),
            ("TURNMILL_WORKER__HEARTBEAT", HEARTBEAT.to_owned()),
        ]);
        wait_for(&e2b_url, &local).await.with_context(|| log_of(home, "local.log"))?;
        let mut workers = Vec::new();
        for name in ["worker-1.log", "worker-2.log"] {
            let worker = spawn(&home.join(name), &["worker"], &environment)?;
            anstream::println!("  worker     pid {}", pid(&worker));
            workers.push(worker);
        }
        Ok(Self { home: home.to_owned(), postgres, store, e2b_url, local, workers, config, note: None })
    }

    /// The play. `true` when all is as promised.
    async fn show(&mut self) -> anyhow::Result<bool> {
        let quoted = PROMPT.replace('\'', "''");
        anstream::println!(
            "\n  {}SELECT turn_id FROM turnmill.enqueue_turn('{quoted}', project_id => 'shop');{}\n",
            paint::DIM,
            paint::OFF
        );
        let turn = Enqueue { prompt: PROMPT.to_owned(), project_id: Some("shop".to_owned()), ..Enqueue::default() };
        let turn_id = self.store.enqueue(&turn).await?.turn_id.context("the turn was not taken")?;

        let mut blocks: Vec<BlockRow> = Vec::new();
        let mut killed: Option<Killed> = None;
        let mut adopted: Option<Adopted> = None;
        loop {
            let after = blocks.last().map_or(-1, |block| block.seq);
            let reading = self.store.read(&turn_id, after, 500).await?.context("the turn has disappeared")?;
            for block in reading.blocks {
                watch::print(&block);
                blocks.push(block);
            }
            if matches!(reading.status.as_str(), "completed" | "failed" | "cancelled") {
                anstream::println!("{}{}{}", paint::status(&reading.status), reading.status, paint::OFF);
                if let Some(message) = reading.error_message {
                    anstream::println!("{}", paint::safe(&message));
                }
                break;
            }
            match &killed {
                None if blocks.len() >= KILL_AFTER_BLOCKS => killed = Some(self.kill_the_holder(&turn_id).await?),
                Some(killed) if adopted.is_none() => adopted = self.adopted(&turn_id, killed).await?,
                _ => {}
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.sum_up(&blocks, killed.as_ref(), adopted.as_ref()).await
    }

    async fn kill_the_holder(&mut self, turn_id: &str) -> anyhow::Result<Killed> {
        let holder = self.store.seams(turn_id).await?.pop().context("nobody has the turn")?;
        let worker = self
            .workers
            .iter_mut()
            .find(|worker| holder.worker_id.contains(&format!("-{}-", pid(worker))))
            .with_context(|| format!("no process of ours is worker {}", holder.worker_id))?;
        let pid = pid(worker);
        worker.kill().await?;
        let since = Instant::now();
        let at = self.store.position(turn_id).await?.context("the turn has ended too early")?.journal_offset;
        anstream::println!(
            "{}✗ kill -9 {pid}: the worker that has the turn is dead, {at} bytes of the journal are in Postgres{}",
            paint::BAD,
            paint::OFF
        );
        Ok(Killed { since, at, epoch: holder.epoch })
    }

    async fn adopted(&self, turn_id: &str, killed: &Killed) -> anyhow::Result<Option<Adopted>> {
        let Some(seam) = self.store.seams(turn_id).await?.pop().filter(|seam| seam.epoch > killed.epoch) else { return Ok(None) };
        let after = killed.since.elapsed();
        anstream::println!(
            "{}✓ {} has adopted it after {:.1} s, at byte {}{}",
            paint::GOOD,
            seam.worker_id,
            after.as_secs_f64(),
            seam.from_offset,
            paint::OFF
        );
        Ok(Some(Adopted { after, worker: seam.worker_id, at: seam.from_offset }))
    }

    async fn sum_up(&self, blocks: &[BlockRow], killed: Option<&Killed>, adopted: Option<&Adopted>) -> anyhow::Result<bool> {
        let starts = self.agent_starts()?;
        let expected = expected_blocks(&starts)?;
        let (lost, doubled) = compare(&expected, blocks);
        let live = self.live_sandboxes().await?;
        let line = |good: bool, what: &str, text: String| {
            let (style, mark) = if good { (paint::GOOD, "✓") } else { (paint::BAD, "✗") };
            anstream::println!("  {style}{mark}{} {what:<22}{text}", paint::OFF);
            good
        };
        anstream::println!();
        let checks = [
            line(killed.is_some(), "killed at byte", killed.map_or("the turn was over before".to_owned(), |killed| killed.at.to_string())),
            line(
                adopted.is_some_and(|adopted| killed.is_some_and(|killed| killed.at <= adopted.at)),
                "adopted",
                adopted
                    .map_or("by nobody".to_owned(), |adopted| format!("by {} after {:.1} s", adopted.worker, adopted.after.as_secs_f64())),
            ),
            line(lost == 0 && doubled == 0, "blocks", format!("{}, {lost} lost, {doubled} doubled", blocks.len())),
            line(starts.len() == 1, "agent starts", starts.len().to_string()),
            line(live == 0, "live sandboxes left", live.to_string()),
        ];
        Ok(checks.iter().all(|&good| good))
    }

    /// A line for each start of the agent, by its own account.
    fn agent_starts(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(ledger(&self.home))?;
        let all = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(all.into_iter().filter(|act| act["act"] == "start").collect())
    }

    async fn live_sandboxes(&self) -> anyhow::Result<usize> {
        let client = crate::worker::client(&self.config)?;
        let fleet = self.store.fleet().await?.id;
        let since = Instant::now();
        loop {
            let live = client.list(&[("turnmill_fleet", &fleet)]).await?.len();
            if live == 0 || since.elapsed() > RELEASE_MAX {
                return Ok(live);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn invite(&mut self) -> anyhow::Result<()> {
        self.note = Note::leave(&self.postgres.url())?;
        let turnmill = called();
        let export = if self.note.is_some() { String::new() } else { format!("  export DATABASE_URL={}\n", self.postgres.url()) };
        anstream::println!(
            "\nStill up until Ctrl-C, with one worker. In another terminal:\n{export}  {turnmill} enqueue '/mock tools' --watch\n  {turnmill} turns\n  psql {}\n  curl {}/_local/ledger\n  tail -f {}/*.log",
            self.postgres.url(),
            self.e2b_url,
            self.home.display()
        );
        Ok(())
    }

    /// All but Postgres.
    async fn strike(&mut self) -> anyhow::Result<()> {
        drop(self.note.take());
        for child in &mut self.workers {
            end(child).await?;
        }
        // The server was told to keep its sandboxes when it ends; nobody needs them any more.
        let client = crate::worker::client(&self.config)?;
        for sandbox in client.list(&[]).await.unwrap_or_default() {
            client.kill(&sandbox.id).await?;
        }
        end(&mut self.local).await
    }

    /// All of it, at once.
    async fn clear(mut self) -> anyhow::Result<()> {
        for child in self.workers.iter_mut().chain([&mut self.local]) {
            child.kill().await?;
        }
        self.postgres.stop_now().await
    }
}

struct Killed {
    since: Instant,
    at: i64,
    epoch: i64,
}

struct Adopted {
    after: Duration,
    worker: String,
    at: i64,
}

async fn prepare_pool(store: &Store, home: &Path) -> anyhow::Result<()> {
    // Made here, for any user to write: in its sandbox the agent is not us.
    let ledger = ledger(home);
    let file = File::create(&ledger)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let agent_env = json!({ "TURNMILL_MOCK_SCRIPT": SCRIPT, "TURNMILL_MOCK_LEDGER": ledger });
    let change = PoolChange { cap: Some(4), agent: Some(admin::mock_agent()), agent_env: Some(agent_env), ..PoolChange::default() };
    store.set_pool("default", &change).await?;
    Ok(())
}

fn sandboxes(home: &Path) -> PathBuf {
    home.join("sandboxes")
}

fn ledger(home: &Path) -> PathBuf {
    home.join("agent-starts.jsonl")
}

/// The blocks that the script makes for this message, computed anew.
fn expected_blocks(starts: &[Value]) -> anyhow::Result<Vec<Value>> {
    let message = starts.first().and_then(|start| start["message_uuid"].as_str()).unwrap_or_default();
    let mut fold = Fold::new(Some(message.to_owned()));
    let lines = mock::lines(&mock::Script::find(SCRIPT)?, message);
    Ok(lines.iter().flat_map(|line| fold.line(line)).map(|block| json!([block.kind.as_str(), block.content])).collect())
}

/// How many of the expected are missing or out of place, and how many are too many.
fn compare(expected: &[Value], blocks: &[BlockRow]) -> (usize, usize) {
    let mut rest = expected.iter();
    let (mut matched, mut extra) = (0, 0);
    for block in blocks {
        let got = json!([block.kind, block.content]);
        if rest.clone().any(|wanted| *wanted == got) {
            matched += 1;
            rest.find(|wanted| **wanted == got);
        } else {
            extra += 1;
        }
    }
    (expected.len() - matched, extra)
}

async fn wait_for(url: &str, server: &Child) -> anyhow::Result<()> {
    crate::tls::install();
    let since = Instant::now();
    let client = reqwest::Client::new();
    while client.get(format!("{url}/health")).send().await.is_err() {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "the local server (pid {}) does not answer", pid(server));
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn log_of(home: &Path, name: &str) -> String {
    std::fs::read_to_string(home.join(name)).unwrap_or_default()
}
