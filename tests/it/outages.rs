//! Postgres away, connections cut, workers told to go: pauses, and nothing else.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;
use tokio::time::{sleep, timeout};
use turnmill::agent::mock::Script;
use turnmill::local::e2b::Options;
use turnmill::local::postgres::{self, Postgres, passable_tempdir};
use turnmill::store::{self, Store};

use crate::crash::{all_is_as_if_nothing_had_happened, worker};
use crate::end_to_end::{STEADY, mock};
use crate::harness::{Fleet, LocalE2b, PATIENCE, RunningWorker, config, starts_in, until, use_mock};

/// Of the worker processes that `crash::worker` starts.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_postgres_that_is_away_for_several_leases_costs_a_pause_and_nothing_else() {
    let home = passable_tempdir("turnmill-test-").unwrap();
    let mut postgres = Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await.unwrap();
    let fleet = Fleet::of(Store::connect(&store::Options::new(&postgres.url(), 8), store::PATIENCE).await.unwrap());
    fleet.store.migrate().await.unwrap();
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let workers = [worker(&fleet, &e2b.url), worker(&fleet, &e2b.url)];
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.push(fleet.enqueue(&mock(STEADY)).await.turn_id);
    }
    fleet.has_blocks(&turns[0], 3).await;
    postgres.crash().await.unwrap();
    // The outage itself: nothing to wait for, all are fenced by their own clocks meanwhile.
    sleep(LEASE * 3).await;
    postgres.recover().await.unwrap();
    all_is_as_if_nothing_had_happened(&fleet, &turns).await;
    assert_eq!(starts_in(&e2b.agent_ledger()), turns.len(), "one start of the agent each");
    fleet.no_slot_held().await;
    drop(workers);
    e2b.stop().await;
    postgres.stop().await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn terminated_backends_cost_a_pause_and_nothing_else(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let _workers = [worker(&fleet, &e2b.url), worker(&fleet, &e2b.url)];
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(fleet.enqueue(&mock(STEADY)).await.turn_id);
    }
    let terminate = async {
        loop {
            sleep(Duration::from_millis(300)).await;
            let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let _ = sqlx::query(all).execute(&fleet.pool).await;
        }
    };
    let ended = async {
        for turn in &turns {
            fleet.ended(turn).await;
        }
    };
    let ended = timeout(PATIENCE, async {
        tokio::select! { () = ended => {}, () = terminate => {} }
    });
    ended.await.expect("they end while all connections are cut three times a second");
    all_is_as_if_nothing_had_happened(&fleet, &turns).await;
    assert_eq!(starts_in(&e2b.agent_ledger()), turns.len());
    fleet.no_slot_held().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_told_to_go_hands_over_within_moments_and_told_twice_goes_at_once(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let mut first = worker(&fleet, &e2b.url);
    let turn = fleet.enqueue("/mock hang").await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    let signal = |child: &tokio::process::Child| {
        kill_process(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap(), Signal::TERM).unwrap();
    };
    let since = Instant::now();
    signal(&first);
    assert!(first.wait().await.unwrap().success());
    assert!(since.elapsed() < Duration::from_secs(5), "the turn hangs for ever, the worker does not: {:?}", since.elapsed());
    let row = fleet.store.workers().await.unwrap().remove(0);
    assert_eq!((row.state.as_str(), row.alive), ("gone", false), "its lease is given back");

    // With the database out of reach it can't hand over: the second signal ends it all the same.
    let mut second = worker(&fleet, &e2b.url);
    until("the other has it", || async { (fleet.taken(&turn).await.len() == 2).then_some(()) }).await;
    let mut lock = fleet.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE turnmill.workers IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    signal(&second);
    signal(&second);
    let status = timeout(Duration::from_secs(5), async {
        loop {
            // Two signals that come at once may be one to a process that is slow to look.
            if let Ok(ended) = timeout(Duration::from_millis(200), second.wait()).await {
                return ended.unwrap();
            }
            signal(&second);
        }
    });
    assert_eq!(status.await.unwrap().code(), Some(130));
    lock.rollback().await.unwrap();
    let third = worker(&fleet, &e2b.url);
    fleet.store.cancel(&turn, None).await.unwrap();
    assert_eq!(fleet.ended(&turn).await.status, "cancelled");
    fleet.no_slot_held().await;
    drop(third);
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_rolling_restart_over_hundreds_of_turns_costs_none_of_them_anything(pool: PgPool) {
    const TURNS: usize = 200;
    const SCRIPT: &str = r#"{"delay_ms": 400, "steps": [{"text": "1"}, {"text": "2"}, {"text": "3"}, {"text": "4"}, {"text": "5"}, {"text": "6"}, {"text": "7"}, {"text": "8"}]}"#;
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::with(Options { simulate: Some(Script::find(SCRIPT).unwrap()), ..Options::default() }).await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    fleet.cap("default", 300).await;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push(fleet.enqueue("x").await.turn_id);
    }
    // A lease that nobody could wait for: only a hand-over can move a turn.
    let mut config = config(&e2b.url);
    config.worker.turns_max = 300.try_into().unwrap();
    config.worker.lease = PATIENCE * 10;
    let mut old = Vec::new();
    for _ in 0..3 {
        old.push(RunningWorker::with(&fleet, config.clone()).await);
    }
    fleet.has_blocks(&turns[TURNS - 1], 1).await;
    let mut new = Vec::new();
    for worker in old {
        new.push(RunningWorker::with(&fleet, config.clone()).await);
        worker.stop().await;
    }
    let mut moved = 0;
    for turn in &turns {
        assert_eq!(fleet.ended(turn).await.error_message, None);
        assert_eq!(fleet.blocks(turn).await, fleet.expected(turn, SCRIPT).await);
        let history = fleet.history(turn).await;
        assert!(history.iter().rev().skip(1).all(|seam| seam["ended"] == "handed_over"), "{history:?}");
        moved += history.len() - 1;
    }
    assert!(moved >= TURNS, "{moved} hand-overs");
    fleet.no_slot_held().await;
    assert_eq!(e2b.acts("create").await.len(), TURNS);
    for worker in new {
        worker.stop().await;
    }
    e2b.stop().await;
}
