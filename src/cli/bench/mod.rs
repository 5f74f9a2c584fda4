//! `turnmill bench`: the queue's hot path, beside the least that Postgres could do for the same work; and what a
//! worker's end costs.
//!
//! The only place outside the store with SQL of its own: a bare table, claimed and deleted with as many
//! connections, as the measure for ours. Compare ratios of one run, never figures of two.

mod crowd;
mod pages;
mod pauses;
mod seed;
mod starts;
mod streams;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use futures::StreamExt as _;
use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::signals::stop_on_signal;
use super::{admin, paint};
use crate::config::Config;
use crate::keys::Keyring;
use crate::local::e2b;
use crate::local::postgres::{self, Postgres};
use crate::store::{self, Claimed, Enqueue, PoolChange, Settle, Store};
use crate::turn::Ending;
use crate::worker::{Assignment, Worker, runtime};

/// The stand-in says next to nothing.
const NO_OP: &str = "/mock noop";

/// Jobs of one claim of the bare table, as of ours.
const CLAIM_MAX: i64 = 100;

/// Measure the queue beside raw Postgres, and what a worker's end costs, in one run.
///
/// Starts a Postgres of its own, with fsync on, and the local sandboxes; DATABASE_URL is left alone. Compare the ratios: this machine's speed is in
/// both sides of each.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<BenchCommand>,
    /// Turns that do nothing, drained from a full queue
    #[arg(long, default_value_t = 3000)]
    turns: u32,
    /// Turns with a sandbox and the stand-in agent
    #[arg(long, default_value_t = 60)]
    whole_turns: u32,
    /// Turns enqueued one by one, for the time until a worker has them
    #[arg(long, default_value_t = 100)]
    latencies: u32,
    /// Turns at once
    #[arg(long, default_value_t = 50)]
    concurrency: u32,
    /// Waiting turns of another tenant
    #[arg(long, default_value_t = 10_000)]
    crowd: i32,
    /// Simulated turns that run while their worker is killed, or told to go
    #[arg(long, default_value_t = 100)]
    paused: u32,
    /// Sessions whose turns start in new, warm and woken sandboxes
    #[arg(long, default_value_t = 15)]
    sessions: u32,
    /// Readers of one web server
    #[arg(long, default_value_t = 5000)]
    readers: usize,
    /// Ended turns behind the dashboard's pages, with ten blocks each
    #[arg(long, default_value_t = 200_000)]
    history: u32,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Seed(seed::Seed),
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Drain and latency, beside raw Postgres
    Queue,
    /// A claim beside thousands of waiting turns, and under an idle snapshot
    Crowd,
    /// A turn's start in a new sandbox, a warm and a woken one
    Starts,
    /// From an agent's line to its reader's event, in both lanes; and thousands of readers of one web server
    Streams,
    /// What a killed worker and one told to go cost the turns that they ran
    Pauses,
    /// The dashboard's pages, with history
    Pages,
}

impl Bench {
    /// Runs it.
    pub async fn run(self, config: Config) -> anyhow::Result<ExitCode> {
        if let Some(BenchCommand::Seed(seed)) = self.what {
            return seed.run(&config).await.map(|()| ExitCode::SUCCESS);
        }
        let stop = stop_on_signal()?;
        let home = postgres::passable_tempdir("turnmill-bench-")?;
        let options = postgres::Options { durable: true, ..postgres::Options::default() };
        let server = Postgres::start(&home.path().join("postgres"), options).await?;
        let measured = Box::pin(stop.run_until_cancelled(self.measure(config, &server.url(), &home))).await;
        server.stop().await?;
        measured.unwrap_or(Ok(())).map(|()| ExitCode::SUCCESS)
    }

    async fn measure(&self, mut config: Config, url: &str, home: &tempfile::TempDir) -> anyhow::Result<()> {
        let store = Store::connect(&store::Options::new(url, self.concurrency.min(40) + 10), store::PATIENCE).await?;
        store.migrate().await?;
        let cap = i32::try_from(self.concurrency)?;
        store.set_pool("default", &PoolChange { cap: Some(cap), agent: Some(admin::mock_agent()), ..PoolChange::default() }).await?;
        config.worker.turns_max = self.concurrency.try_into()?;
        let wanted = |part| self.only.is_none_or(|only| only == part);
        if wanted(Part::Queue) {
            self.queue(&store, &config, url, home).await?;
        }
        if wanted(Part::Crowd) {
            crowd::measure(&store, self.crowd).await?;
        }
        if wanted(Part::Starts) {
            Box::pin(beside_worker(&store, config.clone(), home, starts::measure(&store, self.sessions))).await?;
        }
        if wanted(Part::Streams) {
            Box::pin(beside_worker(&store, config.clone(), home, streams::lanes(&store, url, home))).await?;
            Box::pin(streams::crowd(&store, self.readers, url, home)).await?;
        }
        if wanted(Part::Pauses) {
            pauses::measure(&store, self.paused, url, home).await?;
        }
        if wanted(Part::Pages) {
            pages::measure(&store, config.clone(), self.history).await?;
        }
        Ok(())
    }

    async fn queue(&self, store: &Store, config: &Config, url: &str, home: &tempfile::TempDir) -> anyhow::Result<()> {
        anstream::println!("{}{} no-op turns, {} at once, fsync on{}", paint::BOLD, self.turns, self.concurrency, paint::OFF);
        let raw = self.drain_raw(store.pool()).await?;
        let ours = self.drain(store, config).await?;
        anstream::println!("  bare table, claim and delete   {raw:>8.0} jobs/s");
        anstream::println!("  queue: claim, settle, release  {ours:>8.0} turns/s  {:.2} of bare", ours / raw);

        anstream::println!("{}Enqueue to claim, {} times{}", paint::BOLD, self.latencies, paint::OFF);
        let raw = self.latency_raw(url, store.pool()).await?;
        let (ours, whole) = Box::pin(beside_worker(store, config.clone(), home, self.with_sandboxes(store))).await?;
        anstream::println!("  bare LISTEN and UPDATE         p50 {:>6.2} ms  p99 {:>6.2} ms", raw.0, raw.1);
        anstream::println!(
            "  turnmill                       p50 {:>6.2} ms  p99 {:>6.2} ms  {:.1} times bare",
            ours.0,
            ours.1,
            ours.0 / raw.0
        );

        anstream::println!("{}{} turns with a local sandbox and the stand-in agent{}", paint::BOLD, self.whole_turns, paint::OFF);
        anstream::println!("  create, start, follow, kill    {whole:>8.1} turns/s");
        Ok(())
    }

    /// Turns per second through claim, runtime and settle, without sandboxes.
    async fn drain(&self, store: &Store, config: &Config) -> anyhow::Result<f64> {
        enqueue(store, self.turns, NO_OP).await?;
        let worker = Worker::register(store.clone(), Arc::new(config.clone()), Keyring::default(), &TaskTracker::new()).await?;
        let leased = TaskTracker::new();
        let stop = CancellationToken::new();
        leased.spawn(worker.clone().keep_lease(stop.clone()));
        let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
        let since = Instant::now();
        let handled = store.clone();
        let handler = move |assignment: Assignment| {
            let (store, done) = (handled.clone(), done.clone());
            async move {
                // A failure shows as a drain that never ends.
                if no_op(&store, &assignment.job).await.is_ok() {
                    let _ = done.send(());
                }
                drop(assignment);
            }
        };
        let count = async {
            for _ in 0..self.turns {
                finished.recv().await;
            }
            let taken = since.elapsed();
            stop.cancel();
            taken
        };
        let (ended, taken) = tokio::join!(runtime::run(&worker, stop.clone(), handler), count);
        ended?;
        leased.close();
        leased.wait().await;
        store.release_worker(&worker.id).await?;
        Ok(f64::from(self.turns) / taken.as_secs_f64())
    }

    async fn drain_raw(&self, pool: &PgPool) -> anyhow::Result<f64> {
        sqlx::raw_sql("CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, taken boolean NOT NULL DEFAULT false)")
            .execute(pool)
            .await?;
        sqlx::query("INSERT INTO bare (taken) SELECT false FROM generate_series(1, $1)").bind(i64::from(self.turns)).execute(pool).await?;
        let since = Instant::now();
        let claims = futures::stream::unfold((), |()| async {
            let picked =
                "WITH picked AS MATERIALIZED (SELECT id FROM bare WHERE NOT taken ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
                          UPDATE bare SET taken = true FROM picked WHERE bare.id = picked.id RETURNING bare.id";
            let ids: Vec<i64> = sqlx::query_scalar(picked).bind(CLAIM_MAX).fetch_all(pool).await.ok()?;
            (!ids.is_empty()).then_some((futures::stream::iter(ids), ()))
        });
        claims
            .flatten()
            .for_each_concurrent(self.concurrency as usize, |id| async move {
                drop(sqlx::query("DELETE FROM bare WHERE id = $1").bind(id).execute(pool).await);
            })
            .await;
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM bare").fetch_one(pool).await?;
        anyhow::ensure!(left == 0, "{left} rows of the bare table were not deleted");
        Ok(f64::from(self.turns) / since.elapsed().as_secs_f64())
    }

    /// Milliseconds from an INSERT to the UPDATE of who listens, by the database's clock: median and 99th of a hundred.
    async fn latency_raw(&self, url: &str, pool: &PgPool) -> anyhow::Result<(f64, f64)> {
        sqlx::raw_sql("CREATE TABLE pinged (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), taken_at timestamptz)")
            .execute(pool)
            .await?;
        let mut listener = sqlx::postgres::PgListener::connect(url).await?;
        listener.listen("pinged").await?;
        for id in 0..i64::from(self.latencies) {
            let ping = "WITH new AS (INSERT INTO pinged (id) VALUES ($1)) SELECT pg_notify('pinged', '')";
            let hear = async {
                listener.recv().await?;
                sqlx::query("UPDATE pinged SET taken_at = clock_timestamp() WHERE taken_at IS NULL").execute(pool).await
            };
            let (pinged, heard) = tokio::join!(sqlx::query(ping).bind(id).execute(pool), hear);
            pinged.and(heard)?;
        }
        percentiles(pool, "SELECT extract(epoch FROM taken_at - at)::float8 * 1000 FROM pinged").await
    }

    /// A whole worker: the time from enqueue to claim, and turns per second.
    async fn with_sandboxes(&self, store: &Store) -> anyhow::Result<((f64, f64), f64)> {
        let since = Instant::now();
        let drained = enqueue(store, self.whole_turns, NO_OP).await?;
        wait_for(store, &drained).await?;
        let whole = f64::from(self.whole_turns) / since.elapsed().as_secs_f64();

        for _ in 0..self.latencies {
            let one = enqueue(store, 1, NO_OP).await?;
            // To its end, so that no other turn's processes are in the way of the next.
            wait_for(store, &one).await?;
        }
        let claimed = "SELECT extract(epoch FROM a.taken_at - t.created_at)::float8 * 1000
                       FROM turnmill.attempts a JOIN turnmill.turns t ON t.id = a.turn_id
                       ORDER BY t.created_at DESC LIMIT (SELECT count(*) FROM pinged)";
        Ok((percentiles(store.pool(), claimed).await?, whole))
    }
}

/// Measures while a whole worker runs, with local sandboxes.
async fn beside_worker<T>(
    store: &Store,
    mut config: Config,
    home: &tempfile::TempDir,
    measure: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let (server, sandboxes_stop) = (TaskTracker::new(), CancellationToken::new());
    let (ready, address) = oneshot::channel();
    let options = e2b::Options { dir: home.path().join("sandboxes"), ..e2b::Options::default() };
    let serving = server.spawn(e2b::serve(options, sandboxes_stop.clone(), ready));
    let address = address.await?;
    config.e2b.api_url = format!("http://{address}");
    config.e2b.sandbox_url = format!("http://{address}");
    config.e2b.api_key = "local".into();
    let worker = Worker::register(store.clone(), Arc::new(config), Keyring::default(), &TaskTracker::new()).await?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    let measured = measure.await;
    stop.cancel();
    running.await??;
    sandboxes_stop.cancel();
    serving.await??;
    measured
}

/// Each in a session of its own.
async fn enqueue(store: &Store, count: u32, prompt: &str) -> anyhow::Result<Vec<String>> {
    let turn = Enqueue { prompt: prompt.to_owned(), project_id: Some("bench".to_owned()), ..Enqueue::default() };
    let mut turns = Vec::new();
    for _ in 0..count {
        turns.push(store.enqueue(&turn).await?.turn_id.context("the turn was not taken")?);
    }
    Ok(turns)
}

async fn wait_for(store: &Store, turns: &[String]) -> anyhow::Result<()> {
    for turn in turns {
        while store.turn(turn).await?.is_some_and(|turn| turn.completed_at.is_none()) {
            sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

async fn no_op(store: &Store, job: &Claimed) -> anyhow::Result<()> {
    store.settle(job, &settle_at(0), Duration::from_secs(30)).await??;
    store.slot_freed(job.slot_id, job.epoch).await??;
    Ok(())
}

/// A good end behind this many bytes of the journal.
fn settle_at(journal_offset: i64) -> Settle {
    Settle { ending: Ending::Completed, blocks: Vec::new(), journal_offset, error: None, spent: None, keep: false }
}

async fn percentiles(pool: &PgPool, statement: &'static str) -> anyhow::Result<(f64, f64)> {
    of(sqlx::query_scalar(statement).fetch_all(pool).await?)
}

/// Median and 99th of a hundred.
fn of(mut times: Vec<f64>) -> anyhow::Result<(f64, f64)> {
    times.sort_by(f64::total_cmp);
    anyhow::ensure!(!times.is_empty(), "nothing was measured");
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}
