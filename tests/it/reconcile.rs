//! What E2B says against what the slots say; poison; silence.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use turnmill::e2b::ApiVersion;
use turnmill::store::Renewal;

use crate::end_to_end::mock;
use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, until, use_mock};

/// A sandbox that somebody has made under these labels.
pub async fn stray(e2b: &LocalE2b, nonce: &str, fleet: &str) -> String {
    let request = json!({ "templateID": "x", "timeout": 600, "metadata": { "turnmill_fleet": fleet, "turnmill_nonce": nonce, "turnmill_pool": "default" } });
    e2b.client().create(ApiVersion::V2, nonce, &request, Duration::from_secs(10)).await.unwrap().id
}

pub async fn lives(e2b: &LocalE2b, id: &str) -> bool {
    e2b.client().get(id).await.unwrap().is_some()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_of_this_fleet_that_no_slot_knows_is_killed_after_its_grace_paused_or_not(pool: PgPool) {
    let all = Running::with(pool, |config| {
        config.worker.reconcile = Duration::from_millis(100);
        config.worker.orphan_grace = Duration::from_millis(700);
    })
    .await;
    let us = all.fleet.store.fleet().await.unwrap().id;
    let busy = all.fleet.enqueue("/mock hang").await.turn_id;
    all.fleet.has_blocks(&busy, 2).await;
    let (orphan, paused, theirs) =
        (stray(&all.e2b, "n-1", &us).await, stray(&all.e2b, "n-2", &us).await, stray(&all.e2b, "n-3", "another-fleet").await);
    assert!(all.e2b.client().pause(&paused).await.unwrap());
    until("they are noticed", || async { (all.fleet.store.corrections(10).await.unwrap().len() == 2).then_some(()) }).await;
    assert!(lives(&all.e2b, &orphan).await && lives(&all.e2b, &paused).await, "not before their grace");
    until("both are gone", || async { (!lives(&all.e2b, &orphan).await && !lives(&all.e2b, &paused).await).then_some(()) }).await;
    until("it is on record", || async { all.fleet.store.corrections(10).await.unwrap().iter().all(|c| c.done_at.is_some()).then_some(()) })
        .await;
    assert!(lives(&all.e2b, &theirs).await, "another fleet's is none of our business");
    assert_eq!(all.fleet.turn(&busy).await.status, "in_progress", "nor is one that a slot holds");
    until("what E2B says is shown", || async { (all.fleet.store.pools().await.unwrap()[0].reported == Some(1)).then_some(()) }).await;
    all.e2b.client().kill(&theirs).await.unwrap();
    all.fleet.store.cancel(&busy, None).await.unwrap();
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_list_that_fails_decides_nothing_and_one_worker_reconciles_at_a_time(pool: PgPool) {
    let fleet = Fleet::new(pool);
    assert!(fleet.store.take_duty("reconcile", "a", Duration::from_secs(30)).await.unwrap());
    assert!(fleet.store.take_duty("reconcile", "a", Duration::from_secs(30)).await.unwrap(), "who has it keeps it");
    assert!(!fleet.store.take_duty("reconcile", "b", Duration::from_secs(30)).await.unwrap());
    fleet.sql("UPDATE turnmill.duties SET lease_until = clock_timestamp() WHERE name = $1", "reconcile").await;
    assert!(fleet.store.take_duty("reconcile", "b", Duration::from_secs(30)).await.unwrap());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_slot_that_is_held_for_nobody_comes_free_with_its_sandbox_gone(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.reconcile = Duration::from_millis(100)).await;
    let turn = all.fleet.enqueue("/mock hang").await.turn_id;
    all.fleet.has_blocks(&turn, 2).await;
    // As no statement of ours does it.
    all.fleet.sql("DELETE FROM turnmill.jobs WHERE turn_id = $1", &turn).await;
    all.fleet.no_slot_held().await;
    assert!(all.e2b.client().list(&[]).await.unwrap().is_empty());
    assert_eq!(all.fleet.store.corrections(10).await.unwrap()[0].kind, "leaked_slot");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn two_fleets_and_a_copy_of_one_s_database_touch_only_their_own_sandboxes(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let quick = |name: &str| {
        let mut config = config(&e2b.url);
        config.worker.reconcile = Duration::from_millis(100);
        config.worker.orphan_grace = Duration::from_millis(1);
        name.clone_into(&mut config.fleet);
        config
    };
    let original = RunningWorker::with(&fleet, quick("dev")).await;
    let turn = fleet.enqueue("/mock hang").await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    let sandbox = e2b.client().list(&[]).await.unwrap().remove(0);
    let refused = fleet.store.fork_fleet("staging").await.unwrap_err().to_string();
    assert!(refused.contains("1 workers run on this database; stop them first"), "{refused}");
    original.stop().await;

    // The copy gets an identity of its own, starts its turns over, and lets the original's sandbox be.
    fleet.store.fork_fleet("staging").await.unwrap();
    let copy = RunningWorker::with(&fleet, quick("staging")).await;
    until("the copy runs the turn in a sandbox of its own", || async { (e2b.client().list(&[]).await.unwrap().len() == 2).then_some(()) })
        .await;
    until("it has reconciled", || async { fleet.store.pools().await.unwrap()[0].reported.filter(|n| *n == 1) }).await;
    assert!(lives(&e2b, &sandbox.id).await, "the original's");
    fleet.store.cancel(&turn, None).await.unwrap();
    fleet.ended(&turn).await;
    fleet.no_slot_held().await;
    assert!(lives(&e2b, &sandbox.id).await, "still");
    copy.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_falls_silent_is_stopped_and_goes_on_but_not_while_its_tool_works(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.stop_grace = Duration::from_millis(500)).await;
    all.fleet.sql("UPDATE turnmill.pools SET idle_timeout_s = 1 WHERE name = $1", "default").await;
    let silent = all.fleet.enqueue(&mock(r#"{"steps": [{"text": "one"}, {"sleep_ms": 600000}, {"text": "two"}]}"#)).await.turn_id;
    let tool = r#"{"tool": {"name": "Bash", "input": {}}}"#;
    let works = all.fleet.enqueue(&mock(&format!(r#"{{"steps": [{tool}, {{"sleep_ms": 3000}}, {{"text": "done"}}]}}"#))).await.turn_id;
    let ended = all.fleet.ended(&silent).await;
    assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 2), "{:?}", ended.error_message);
    assert!(all.fleet.history(&silent).await[0]["detail"].as_str().unwrap().contains("said nothing"));
    assert_eq!(all.fleet.ended(&works).await.attempt, 1, "a tool may be silent");
    all.stop().await;
}

/// As if its last heartbeat had been a lease ago, just before it took what it has.
async fn dies(fleet: &Fleet, worker: &str) {
    let aged = "UPDATE turnmill.workers SET heartbeat_at = heartbeat_at - interval '31 seconds', lease_until = lease_until - interval '31 seconds' WHERE id = $1";
    fleet.sql(aged, worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_whose_taking_kills_workers_is_poisoned_but_hand_overs_and_outages_never_count(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("x").await.turn_id;
    for (nth, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let worker = fleet.worker(name).await;
        let job = worker.claim_one().await;
        assert_eq!((&job.turn_id, job.crashes), (&turn, i32::try_from(nth).unwrap()), "one more has died");
        dies(&fleet, name).await;
    }
    // One of them was only cut off, and is back; another handed over; a third lived long with the turn before it died.
    fleet.renew("a").await;
    // And died of something else, after it had let go of the turn.
    let earlier = "UPDATE turnmill.attempts SET taken_at = taken_at - interval '41 seconds', ended_at = ended_at - interval '40 seconds' WHERE worker_id = $1";
    fleet.sql(earlier, "a").await;
    let later = "UPDATE turnmill.workers SET heartbeat_at = clock_timestamp() - interval '35 seconds', lease_until = clock_timestamp() - interval '5 seconds' WHERE id = $1";
    fleet.sql(later, "a").await;
    fleet.store.release_worker("b").await.unwrap();
    fleet.sql("UPDATE turnmill.attempts SET taken_at = taken_at - interval '1 hour' WHERE worker_id = $1", "c").await;
    assert_eq!(fleet.worker("e").await.claim_one().await.crashes, 1);
    dies(&fleet, "e").await;

    let e2b = LocalE2b::start().await;
    let mut config = config(&e2b.url);
    config.retry.crashes_max = 2;
    let worker = RunningWorker::with(&fleet, config).await;
    let ended = fleet.ended(&turn).await;
    assert_eq!(ended.error_code.as_deref(), Some("poisoned"), "{:?}", ended.error_message);
    assert!(e2b.acts("create").await.is_empty(), "nothing was tried");
    worker.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_that_slept_through_the_fork_of_its_fleet_ends_and_touches_nothing(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let us = fleet.store.fleet().await.unwrap().id;
    fleet.worker("sleeper").await;
    fleet.let_lease_expire("sleeper").await;
    fleet.store.fork_fleet("staging").await.unwrap();
    assert_eq!(fleet.store.renew("sleeper", &us, Duration::from_secs(30)).await.unwrap(), Renewal::Refused);

    // The whole process: it was running when somebody forked by hand.
    let e2b = LocalE2b::start().await;
    let mut config = config(&e2b.url);
    "staging".clone_into(&mut config.fleet);
    let worker = RunningWorker::with(&fleet, config).await;
    until("it is there", || async { fleet.store.workers().await.unwrap().iter().any(|row| row.alive).then_some(()) }).await;
    fleet.sql("UPDATE turnmill.fleet SET id = $1", "fleet_other").await;
    worker.ended().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn turns_that_two_workers_died_with_are_taken_one_at_a_time(pool: PgPool) {
    let fleet = Fleet::new(pool);
    for _ in 0..3 {
        fleet.enqueue("x").await;
    }
    for name in ["a", "b"] {
        assert_eq!(fleet.worker(name).await.claim(5).await.len(), 3);
        dies(&fleet, name).await;
    }
    fleet.enqueue("innocent").await;
    let heir = fleet.worker("c").await;
    let taken = heir.claim(5).await;
    assert_eq!(taken.iter().filter(|job| job.crashes == 2).count(), 1, "one suspect");
    assert_eq!(taken.len(), 2, "and who has done nothing");
    assert_eq!(heir.claim(5).await.len(), 0, "not while the suspect is fresh");
    assert_eq!(fleet.worker("d").await.claim(5).await.len(), 1, "but another worker takes the next");
    fleet.sql("UPDATE turnmill.attempts SET taken_at = taken_at - interval '2 minutes' WHERE worker_id = $1", "c").await;
    assert_eq!(heir.claim(5).await.len(), 1, "it has lived with it for a while");
}
