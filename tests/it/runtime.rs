//! The worker's turns run under apalis' Monitor, over our own queue: what that must not cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turnmill::keys::Keyring;
use turnmill::turn::Ending;
use turnmill::worker::{Assignment, Worker, runtime};

use crate::harness::{Fleet, config, settle_and_free, until};

/// A worker with its lease, but without what it does for turns.
async fn worker(fleet: &Fleet, turns_max: u32) -> Worker {
    let mut config = config("http://127.0.0.1:1");
    config.worker.turns_max = turns_max.try_into().unwrap();
    let worker = Worker::register(fleet.store.clone(), Arc::new(config), Keyring::default(), &TaskTracker::new()).await.unwrap();
    worker.lease.begin();
    worker
}

async fn enqueue(fleet: &Fleet, count: usize) -> Vec<String> {
    let mut turns = Vec::new();
    for nth in 0..count {
        turns.push(fleet.enqueue(&format!("turn {nth}")).await.turn_id);
    }
    turns
}

async fn all_ended(fleet: &Fleet, turns: &[String]) {
    for turn in turns {
        assert_eq!(fleet.ended(turn).await.status, "completed");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn as_many_turns_run_at_once_as_are_allowed_and_never_more(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = worker(&fleet, 3).await;
    let turns = enqueue(&fleet, 9).await;
    let (running, most, together) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
    let (store, peak) = (fleet.store.clone(), most.clone());
    let stop = CancellationToken::new();
    let handler = move |assignment: Assignment| {
        let (running, most, together, store) = (running.clone(), most.clone(), together.clone(), store.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Passed only when three are here at the same time.
            together.wait().await;
            settle_and_free(&store, &assignment.job, Ending::Completed).await;
            running.fetch_sub(1, Ordering::SeqCst);
            // Whole until here: it holds the permit.
            drop(assignment);
        }
    };
    let all = async {
        all_ended(&fleet, &turns).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(runtime::run(&worker, stop.clone(), handler), all);
    ended.unwrap();
    assert_eq!(peak.load(Ordering::SeqCst), 3);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_panics_takes_no_other_with_it_and_is_taken_up_again(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = worker(&fleet, 2).await;
    let turns = enqueue(&fleet, 4).await;
    let (cursed, store) = (turns[1].clone(), fleet.store.clone());
    let panicked = Arc::new(AtomicUsize::new(0));
    let times = panicked.clone();
    let stop = CancellationToken::new();
    let handler = move |assignment: Assignment| {
        let (cursed, store, panicked) = (cursed.clone(), store.clone(), panicked.clone());
        async move {
            assert!(assignment.job.turn_id != cursed || panicked.fetch_add(1, Ordering::SeqCst) > 0, "on purpose");
            settle_and_free(&store, &assignment.job, Ending::Completed).await;
            drop(assignment);
        }
    };
    let all = async {
        all_ended(&fleet, &turns).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(runtime::run(&worker, stop.clone(), handler), all);
    ended.unwrap();
    assert_eq!(times.load(Ordering::SeqCst), 2, "once in vain, once for good");
    assert_eq!(fleet.taken(&turns[1]).await, ["claimed", "adopted"]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_stop_tells_running_turns_waits_for_them_and_takes_nothing_new(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = worker(&fleet, 2).await;
    let turns = enqueue(&fleet, 3).await;
    let stop = CancellationToken::new();
    let (entered, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (came, went) = (entered.clone(), left.clone());
    let handler = move |assignment: Assignment| {
        let (entered, left) = (entered.clone(), left.clone());
        async move {
            entered.fetch_add(1, Ordering::SeqCst);
            assignment.era.cancelled().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            left.fetch_add(1, Ordering::SeqCst);
            drop(assignment);
        }
    };
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { runtime::run(&worker, stop, handler).await }
    });
    until("two run", || async { (came.load(Ordering::SeqCst) == 2).then_some(()) }).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!((came.load(Ordering::SeqCst), went.load(Ordering::SeqCst)), (2, 2), "it returned when they had, and took no third");
    assert_eq!(fleet.turn(&turns[2]).await.status, "pending");
}
