//! SIGKILL of a worker, of the sandboxes' server and of Postgres, at random moments of turns: the blocks are
//! those of the journal each time, and no agent is started twice.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sqlx::PgPool;
use tokio::process::{Child, Command};
use tokio::time::sleep;
use turnmill::local::postgres::{self, Postgres, passable_tempdir};
use turnmill::store::Store;

use crate::end_to_end::{STEADY, mock};
use crate::harness::{Fleet, LocalE2b, TURNMILL, agent_ledger, client, starts_in, until, use_mock};

/// Kills of each kind, with as many turns under way at different places: twenty moments.
const KILLS: usize = 4;
const TURNS: usize = 5;

/// About as long as a turn takes, start-up included.
const TURN_MS: u64 = 1500;

/// Our own worker as a process, with a short lease.
pub fn worker(fleet: &Fleet, e2b_url: &str) -> Child {
    let mut command = Command::new(TURNMILL);
    command.arg("worker").envs(fleet.environment()).env("E2B_API_URL", e2b_url).env("E2B_SANDBOX_URL", e2b_url).env("E2B_API_KEY", "local");
    // It is the test that kills them, soon after they have taken a turn or not.
    command.env("TURNMILL_RETRY__CRASHES_MAX", "1000");
    command.env("TURNMILL_WORKER__LEASE", "2s").env("TURNMILL_WORKER__HEARTBEAT", "300ms").env("TURNMILL_WORKER__POLL", "100ms");
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Enqueues turns at random moments, and strikes at another.
async fn strike_in_the_middle<F: Future<Output = ()>>(fleet: &Fleet, strike: impl FnOnce() -> F) -> Vec<String> {
    let enqueue = |_| async {
        sleep(Duration::from_millis(rand::random_range(0..TURN_MS))).await;
        // The database may be the one that is away.
        let turn =
            turnmill::store::Enqueue { prompt: mock(STEADY), project_id: Some("p1".to_owned()), ..turnmill::store::Enqueue::default() };
        until("it is enqueued", || async { fleet.store.enqueue(&turn).await.ok()?.turn_id }).await
    };
    let striking = async {
        sleep(Duration::from_millis(rand::random_range(TURN_MS / 2..TURN_MS * 3 / 2))).await;
        strike().await;
    };
    tokio::join!(futures::future::join_all((0..TURNS).map(enqueue)), striking).0
}

pub async fn all_is_as_if_nothing_had_happened(fleet: &Fleet, turns: &[String]) {
    for turn in turns {
        let ended = fleet.ended(turn).await;
        assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 1), "{:?} {:#?}", ended.error_message, fleet.history(turn).await);
        assert_eq!(fleet.blocks(turn).await, fleet.expected(turn, STEADY).await);
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn killed_workers_cost_a_pause_and_nothing_else(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    fleet.cap("default", 8).await;
    let mut workers = vec![worker(&fleet, &e2b.url), worker(&fleet, &e2b.url)];
    let mut all = Vec::new();
    for _ in 0..KILLS {
        let turns = strike_in_the_middle(&fleet, async || {
            // Whichever it is, the other is left; and a new one comes, as from any orchestrator.
            workers.swap_remove(rand::random_range(0..2)).kill().await.unwrap();
            workers.push(worker(&fleet, &e2b.url));
        })
        .await;
        all_is_as_if_nothing_had_happened(&fleet, &turns).await;
        all.extend(turns);
    }
    assert_eq!(starts_in(&e2b.agent_ledger()), all.len(), "one start of the agent each");
    let mut adoptions = 0;
    for turn in &all {
        adoptions += fleet.taken(turn).await.len() - 1;
    }
    assert!(adoptions > 0, "the kills hit something");
    fleet.no_slot_held().await;
    assert!(e2b.client().list(&[]).await.unwrap().is_empty());
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_that_slept_through_its_lease_wakes_up_to_no_harm(pool: PgPool) {
    use rustix::process::{Pid, Signal, kill_process};
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let sleeper = worker(&fleet, &e2b.url);
    let pid = Pid::from_raw(i32::try_from(sleeper.id().unwrap()).unwrap()).unwrap();
    // One in the middle of its answer, one that hangs for whoever has it.
    let turn = fleet.enqueue(&mock(STEADY)).await.turn_id;
    let hangs = fleet.enqueue("/mock hang").await.turn_id;
    fleet.has_blocks(&turn, 3).await;
    fleet.has_blocks(&hangs, 2).await;
    kill_process(pid, Signal::STOP).unwrap();

    let _heir = worker(&fleet, &e2b.url);
    until("the other has both", || async { (fleet.taken(&turn).await.len() == 2 && fleet.taken(&hangs).await.len() == 2).then_some(()) })
        .await;
    kill_process(pid, Signal::CONT).unwrap();
    all_is_as_if_nothing_had_happened(&fleet, &[turn]).await;
    until("the sleeper has its lease again", || async {
        fleet.store.workers().await.unwrap().iter().all(|worker| worker.alive).then_some(())
    })
    .await;
    assert_eq!(fleet.turn(&hangs).await.status, "in_progress", "the sleeper did not touch it");
    assert_eq!((fleet.taken(&hangs).await.len(), starts_in(&e2b.agent_ledger())), (2, 2));
    fleet.store.cancel(&hangs, None).await.unwrap();
    assert_eq!(fleet.ended(&hangs).await.status, "cancelled");
    fleet.no_slot_held().await;
    e2b.stop().await;
}

/// The local server as a process, on a fixed port.
fn local_server(dir: &Path, port: u16) -> Child {
    let mut command = Command::new(TURNMILL);
    command.args(["local", "--listen", &format!("127.0.0.1:{port}"), "--dir"]).arg(dir);
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_killed_sandbox_server_costs_a_pause_and_nothing_else(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let dir = passable_tempdir("turnmill-test-").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let e2b_url = format!("http://127.0.0.1:{port}");
    let ledger = agent_ledger(dir.path());
    use_mock(&fleet.store, &ledger).await;
    fleet.cap("default", 8).await;
    let mut server = local_server(dir.path(), port);
    let _worker = worker(&fleet, &e2b_url);
    let mut starts = 0;
    for _ in 0..KILLS {
        let turns = strike_in_the_middle(&fleet, async || {
            server.kill().await.unwrap();
            sleep(Duration::from_millis(rand::random_range(0..500))).await;
            server = local_server(dir.path(), port);
        })
        .await;
        all_is_as_if_nothing_had_happened(&fleet, &turns).await;
        starts += turns.len();
    }
    assert_eq!(starts_in(&ledger), starts, "one start of the agent each");
    fleet.no_slot_held().await;
    assert!(client(&e2b_url).list(&[]).await.unwrap().is_empty());
    server.kill().await.unwrap();
}

#[tokio::test]
async fn a_killed_postgres_costs_a_pause_and_nothing_else() {
    let home = passable_tempdir("turnmill-test-").unwrap();
    let mut postgres = Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await.unwrap();
    let store = Store::connect(&turnmill::store::Options::new(&postgres.url(), 8), turnmill::store::PATIENCE).await.unwrap();
    store.migrate().await.unwrap();
    let fleet = Fleet::of(store);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    fleet.cap("default", 8).await;
    let _worker = worker(&fleet, &e2b.url);
    let mut starts = 0;
    for _ in 0..KILLS {
        let turns = strike_in_the_middle(&fleet, async || {
            postgres.crash().await.unwrap();
            sleep(Duration::from_millis(rand::random_range(0..500))).await;
            postgres.recover().await.unwrap();
        })
        .await;
        all_is_as_if_nothing_had_happened(&fleet, &turns).await;
        starts += turns.len();
    }
    assert_eq!(starts_in(&e2b.agent_ledger()), starts, "one start of the agent each");
    fleet.no_slot_held().await;
    assert!(e2b.client().list(&[]).await.unwrap().is_empty());
    e2b.stop().await;
    postgres.stop().await.unwrap();
}
