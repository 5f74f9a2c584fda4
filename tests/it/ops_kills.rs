//! A sandbox that somebody wants gone is killed by workers, whatever is in it, and whoever needed it goes on as with any that
//! vanishes.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{PoolChange, Wrong, refused};

use crate::end_to_end::mock;
use crate::harness::{Fleet, Running, RunningWorker, until};
use crate::memory::RECALL;
use crate::ops_acts::ann;
use crate::reconcile::{lives, stray};
use crate::visitor::audit;

/// No sandbox's end is asked for any more.
async fn all_done(fleet: &Fleet) {
    until("every kill is done", || async {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.sandbox_kills").fetch_one(&fleet.pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
}

async fn keep(fleet: &Fleet, warm_s: i32, paused_s: i32) {
    let change =
        PoolChange { release: Some((warm_s, paused_s)), sandbox_max_s: Some(86_400), turn_timeout_s: Some(600), ..PoolChange::default() };
    fleet.store.set_pool("default", &change).await.unwrap();
}

/// The sandbox in a slot, or beside them.
async fn sandbox(fleet: &Fleet) -> String {
    let any = "SELECT sandbox_id FROM turnmill.slots WHERE sandbox_id IS NOT NULL UNION ALL SELECT sandbox_id FROM turnmill.parked LIMIT 1";
    until("there is a sandbox", || async { sqlx::query_scalar(any).fetch_optional(&fleet.pool).await.unwrap() }).await
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_whose_sandbox_is_killed_starts_over_and_fails_when_that_happens_again(pool: PgPool) {
    let all = Running::start(pool).await;
    let steps: Vec<Value> = (0..30).map(|nth| json!({ "text": format!("step {nth}") })).collect();
    let slow = mock(&json!({ "delay_ms": 100, "steps": steps }).to_string());
    let turn = all.fleet.enqueue(&slow).await.turn_id;
    all.fleet.has_blocks(&turn, 2).await;
    let first = sandbox(&all.fleet).await;
    let place = all.fleet.store.sandbox_place(&first).await.unwrap().unwrap();
    assert_eq!((place.place.as_str(), place.turn_id.as_deref(), place.sandboxes_lost), ("busy", Some(turn.as_str()), Some(0)));
    assert_eq!(all.fleet.store.kill_sandbox_by(&ann(), &first).await.unwrap(), "busy");
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.generation), ("completed", 2), "{:?}", ended.error_message);
    let newest: Vec<Value> =
        all.fleet.read(&turn).await.blocks.into_iter().filter(|b| b.generation == 2).map(|b| b.content["text"].clone()).collect();
    assert_eq!(newest, (0..30).map(|nth| json!(format!("step {nth}"))).collect::<Vec<_>>());
    all_done(&all.fleet).await;
    assert!(!lives(&all.e2b, &first).await);

    let unlucky = all.fleet.enqueue("/mock hang").await.turn_id;
    for lost in 0..2 {
        let held = until("it has a sandbox and has said something", || async {
            let held = sandbox(&all.fleet).await;
            let place = all.fleet.store.sandbox_place(&held).await.unwrap()?;
            let said = all.fleet.read(&unlucky).await.blocks.iter().any(|block| block.generation == lost + 1);
            (said && place.sandboxes_lost == Some(lost)).then_some(held)
        })
        .await;
        all.fleet.store.kill_sandbox_by(&ann(), &held).await.unwrap();
        all_done(&all.fleet).await;
    }
    let ended = all.fleet.ended(&unlucky).await;
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("sandbox_lost")));
    assert_eq!(audit(&all.fleet).await.len(), 3);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_kept_sandbox_that_is_killed_costs_its_session_nothing_that_was_saved(pool: PgPool) {
    let all = Running::start(pool).await;
    for (warm, paused, place) in [(600, 0, "warm"), (0, 600, "parked")] {
        keep(&all.fleet, warm, paused).await;
        let turn = all.fleet.enqueue_in("/mock noop", Some(place)).await.turn_id;
        all.fleet.ended(&turn).await;
        let kept = until("it is kept", || async {
            let kept = sandbox(&all.fleet).await;
            let found = all.fleet.store.sandbox_place(&kept).await.unwrap()?;
            (found.place == place && found.session_id.as_deref() == Some(place)).then_some(kept)
        })
        .await;
        assert_eq!(all.fleet.store.kill_sandbox_by(&ann(), &kept).await.unwrap(), place);
        until("it is gone", || async { (!lives(&all.e2b, &kept).await).then_some(()) }).await;
        all_done(&all.fleet).await;
        all.fleet.no_slot_held().await;
        until("it is struck off", || async { (all.fleet.store.parked().await.unwrap() == 0).then_some(()) }).await;
        keep(&all.fleet, 0, 0).await;
        let next = all.fleet.enqueue_in(RECALL, Some(place)).await.turn_id;
        assert_eq!(all.fleet.ended(&next).await.status, "completed");
        assert_eq!(all.fleet.blocks(&next).await[0][1]["text"], "/mock noop", "the conversation goes on in a new sandbox");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_orphan_is_killed_before_its_grace_is_over_and_only_one_that_was_found(pool: PgPool) {
    let all = Running::with(pool, |config| {
        config.worker.reconcile = Duration::from_millis(100);
        config.worker.orphan_grace = Duration::from_secs(3600);
    })
    .await;
    let us = all.fleet.store.fleet().await.unwrap().id;
    let (orphan, theirs) = (stray(&all.e2b, "n-1", &us).await, stray(&all.e2b, "n-2", "another-fleet").await);
    until("it is noticed", || async { all.fleet.store.orphans(10).await.unwrap().pop() }).await;
    let unknown = all.fleet.store.kill_sandbox_by(&ann(), &theirs).await.unwrap_err();
    assert_eq!(refused(&unknown).unwrap().wrong, Wrong::Unknown, "another fleet's");
    assert_eq!(all.fleet.store.kill_sandbox_by(&ann(), &orphan).await.unwrap(), "orphan");
    until("it is gone, and on record", || async {
        let gone = !lives(&all.e2b, &orphan).await;
        (gone && all.fleet.store.corrections(10).await.unwrap().iter().all(|c| c.done_at.is_some())).then_some(())
    })
    .await;
    assert!(lives(&all.e2b, &theirs).await);
    all_done(&all.fleet).await;
    all.e2b.client().kill(&theirs).await.unwrap();
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_kill_outlives_whoever_has_taken_it_and_waits_for_a_worker(pool: PgPool) {
    let all = Running::start(pool).await;
    keep(&all.fleet, 600, 0).await;
    let turn = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&turn).await;
    let kept = sandbox(&all.fleet).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let store = &fleet.store;
    assert_eq!(store.kill_sandbox_by(&ann(), &kept).await.unwrap(), "warm");
    let again = refused(&store.kill_sandbox_by(&ann(), &kept).await.unwrap_err()).unwrap();
    assert_eq!(again.wrong, Wrong::Conflict, "{}", again.message);
    // One takes it, and dies.
    let hold = Duration::from_secs(60);
    assert_eq!(store.due_kills(10, hold).await.unwrap(), [kept.as_str()]);
    assert!(store.due_kills(10, hold).await.unwrap().is_empty(), "one does it at a time");
    assert_eq!(store.sandbox_place(&kept).await.unwrap().unwrap().place, "releasing", "no turn takes it any more");
    let next = fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    fleet.sql("UPDATE turnmill.sandbox_kills SET due_at = clock_timestamp() WHERE sandbox_id = $1", &kept).await;
    assert!(lives(&e2b, &kept).await, "nobody was there to do it");
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    all_done(&fleet).await;
    assert!(!lives(&e2b, &kept).await);
    keep(&fleet, 0, 0).await;
    assert_eq!(fleet.ended(&next).await.status, "completed");
    sqlx::raw_sql("UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'warm'").execute(&fleet.pool).await.unwrap();
    Running { fleet, e2b, worker }.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_copy_of_the_database_kills_nothing_that_was_asked_of_its_original(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("w").await;
    fleet.enqueue("hi").await;
    let job = worker.claim_one().await;
    fleet.store.create_asked(&job).await.unwrap().unwrap();
    fleet.store.sandbox_ready(&job, "sbx-1").await.unwrap().unwrap();
    fleet.store.kill_sandbox_by(&ann(), "sbx-1").await.unwrap();
    fleet.let_lease_expire("w").await;
    fleet.store.fork_fleet("staging").await.unwrap();
    assert!(fleet.store.due_kills(10, Duration::ZERO).await.unwrap().is_empty());
}
