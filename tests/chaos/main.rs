//! Chaos: real workers, a real Postgres, the local E2B server, and everything that can go wrong with them, from a seed.
//!
//! | file | part |
//! | --- | --- |
//! | `fleet` | the processes, and their end whatever happens |
//! | `scripts`, `load` | what the agents do; a web app that enqueues and cancels |
//! | `faults`, `strikes` | what goes wrong and when, from the seed; how it is done |
//! | `ledger` | what agents and sandboxes' server wrote down themselves |
//! | `evidence` | all that is known after the run: ledgers, database, the web app's own notes |
//! | `checker` | compares them. Shares no code with the product |
//! | `plant` | plants one lie for each check, which the checker must find |
//! | `figures` | what is said in the end |

#![allow(clippy::struct_field_names, clippy::maybe_infinite_iter, clippy::assigning_clones)]

mod checker;
mod evidence;
mod faults;
mod figures;
mod fleet;
mod ledger;
mod load;
mod plant;
mod scripts;
mod strikes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::time::timeout;

use evidence::Evidence;
use fleet::Fleet;
use load::Load;

/// Kill what can be killed, and check that nothing was lost.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// The same seed makes the same turns and the same faults; without it, a random one
    #[arg(long)]
    pub seed: Option<u64>,
    /// Turns to enqueue
    #[arg(long, default_value_t = 2000)]
    pub turns: usize,
    /// Faults to inject
    #[arg(long, default_value_t = 200)]
    pub faults: usize,
    /// Over how long both are spread
    #[arg(long, default_value_t = 240)]
    pub seconds: u64,
    /// Worker processes
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Only faults of these kinds
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only say what would go wrong, and when
    #[arg(long)]
    pub plan: bool,
    /// Copy the logs and ledgers there in the end
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// How long the last turns may take once nothing goes wrong any more.
const DRAIN_MAX: Duration = Duration::from_secs(150);

#[tokio::main]
async fn main() -> ExitCode {
    turnmill::tls::install();
    let mut args = Args::parse();
    args.seed = Some(args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())));
    tokio::select! {
        ended = run(&args) => match ended {
            Ok(good) => if good { ExitCode::SUCCESS } else { ExitCode::FAILURE },
            Err(error) => {
                eprintln!("error: {error:#}\nto repeat it: {}", repeat(&args));
                ExitCode::from(2)
            }
        },
        // Dropped with all its processes; the guardian ends the rest.
        () = interrupted() => ExitCode::from(130),
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}

fn repeat(args: &Args) -> String {
    let Args { seed, turns, faults, seconds, workers, only, .. } = args;
    let only = if only.is_empty() { String::new() } else { format!(" ONLY={}", only.join(",")) };
    format!("make chaos SEED={} TURNS={turns} FAULTS={faults} SPREAD={seconds} WORKERS={workers}{only}", seed.unwrap_or_default())
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    if args.plan {
        for fault in faults::plan(args) {
            println!("{:>8.3?} {} {:?}", fault.at, fault.kind, fault.what);
        }
        return Ok(true);
    }
    let since = Instant::now();
    eprintln!("chaos: {} turns, {} faults; to repeat it: {}", args.turns, args.faults, repeat(args));
    let fleet = Arc::new(Fleet::start(args.workers).await?);
    let load = Arc::new(Load::new(args, fleet.app().clone()));
    let plan = faults::plan(args);

    let watching = tokio::spawn(load.clone().watch_ended());
    let nursing = tokio::spawn(fleet::nurse(fleet.clone()));
    let injecting = tokio::spawn(strikes::run(plan, fleet.clone(), load.clone()));
    load.clone().run().await;
    let done = injecting.await?;
    eprintln!("chaos: {:.0?}: all is enqueued and nothing goes wrong any more; waiting for the last turns", since.elapsed());
    let drained = timeout(DRAIN_MAX, load.drained()).await.is_ok();
    let released = drained && timeout(DRAIN_MAX, load.released()).await.is_ok();
    let ran = since.elapsed();
    watching.abort();
    nursing.abort();
    drop(nursing.await);
    eprintln!("chaos: {ran:.0?}: {}", if released { "all turns have ended, all slots are free" } else { "something is left" });

    let evidence = Evidence::collect(&fleet, &load, done).await?;
    let differences = checker::check(&evidence);
    let lies = if differences.is_empty() { plant::all(&evidence) } else { plant::Seen::default() };
    for difference in differences.iter().take(20) {
        eprintln!("{}", figures::explain(difference, &evidence, &fleet));
    }
    for lie in &lies.missed {
        eprintln!("DIFFERENCE checker: it does not see this: {lie}");
    }
    let good = differences.is_empty() && lies.missed.is_empty();
    println!("{}", figures::all(args, &evidence, &differences, &lies, ran));
    eprintln!("chaos: {}; to repeat it: {}", if good { "nothing lost" } else { "SOMETHING IS WRONG" }, repeat(args));
    if let Some(keep) = &args.keep {
        fleet.copy_logs(keep)?;
    }
    drop(load);
    if let Some(fleet) = Arc::into_inner(fleet) {
        fleet.strike().await?;
    }
    Ok(good)
}
