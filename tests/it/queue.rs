//! Claim, adopt, promote: each turn is one worker's at a time, and turns of a session run in order.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::timeout;
use turnmill::store::{PoolChange, Taken};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Fleet, PATIENCE, settle_and_free};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn many_claimers_never_get_the_same_turn_nor_more_than_the_cap(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 12).await;
    for nth in 0..30 {
        fleet.enqueue(&format!("turn {nth}")).await;
    }
    fleet.worker("w").await;
    let claims = (0..8).map(|_| async { fleet.store.claim("w", 4).await.unwrap() });
    let claimed: Vec<_> = futures::future::join_all(claims).await.into_iter().flatten().collect();

    assert!(claimed.len() <= 12, "{} at a cap of 12", claimed.len());
    let again = fleet.store.claim("w", 30).await.unwrap();
    let all: Vec<_> = claimed.iter().chain(&again).collect();
    assert_eq!(all.len(), 12, "what one claim left, the next takes");
    assert_eq!(all.iter().map(|job| &job.turn_id).collect::<HashSet<_>>().len(), 12);
    assert_eq!(all.iter().map(|job| job.slot_id).collect::<HashSet<_>>().len(), 12);
    assert_eq!(all.iter().map(|job| job.epoch).collect::<HashSet<_>>().len(), 12);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_claim_takes_no_more_than_it_asked_for_and_the_oldest_first(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turns = [fleet.enqueue("1").await, fleet.enqueue("2").await, fleet.enqueue("3").await];
    let worker = fleet.worker("a").await;
    let claimed: Vec<_> = worker.claim(2).await.into_iter().map(|job| job.turn_id).collect();
    assert_eq!(claimed, [turns[0].turn_id.clone(), turns[1].turn_id.clone()]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_full_pool_and_a_paused_one_hide_nobody_else_s_work(pool: PgPool) {
    let fleet = Fleet::new(pool);
    for (name, cap) in [("full", 0), ("paused", 5), ("open", 5)] {
        fleet.cap(name, cap).await;
    }
    fleet.store.set_pool("paused", &PoolChange { state: Some("paused".to_owned()), ..PoolChange::default() }).await.unwrap();
    for pool in ["full", "paused", "open"] {
        for _ in 0..3 {
            let statement = "SELECT turnmill.enqueue_turn('x', project_id => 'p1', pool => $1)";
            fleet.sql(statement, pool).await;
        }
    }
    let claimed = fleet.worker("a").await.claim(5).await;
    assert_eq!(claimed.iter().map(|job| job.pool.as_str()).collect::<Vec<_>>(), ["open"; 3]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn turns_of_a_session_run_one_after_another_in_order(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let mut expected = Vec::new();
    for nth in 0..4 {
        expected.push(fleet.enqueue_in(&format!("turn {nth}"), Some("sess_1")).await.turn_id);
    }
    let worker = fleet.worker("a").await;
    let mut ran = Vec::new();
    for how in [Ending::Completed, Ending::Failed, Ending::Cancelled, Ending::Completed] {
        let job = worker.claim_one().await;
        assert!(worker.claim(10).await.is_empty(), "one at a time");
        settle_and_free(&fleet.store, &job, how).await;
        ran.push(job.turn_id);
    }
    assert_eq!(ran, expected);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn cancelling_the_waiting_and_the_ready_keeps_the_session_going(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let mut turns = Vec::new();
    for nth in 0..4 {
        turns.push(fleet.enqueue_in(&format!("turn {nth}"), Some("sess_1")).await.turn_id);
    }
    assert_eq!(fleet.store.cancel(&turns[1], Some("changed my mind")).await.unwrap(), "cancelled");
    assert_eq!(fleet.store.cancel(&turns[0], None).await.unwrap(), "cancelled");
    assert_eq!(fleet.store.cancel(&turns[0], None).await.unwrap(), "cancelled", "twice is once");

    let job = fleet.worker("a").await.claim_one().await;
    assert_eq!(job.turn_id, turns[2]);
    assert_eq!(fleet.store.cancel(&turns[2], None).await.unwrap(), "cancelling", "its worker has to stop the agent");
    let cancelled = fleet.turn(&turns[1]).await;
    assert_eq!((cancelled.status.as_str(), cancelled.error_message.as_deref()), ("cancelled", Some("changed my mind")));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn concurrent_enqueues_cancels_and_settles_never_leave_a_session_stuck(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    let enqueues = async {
        for nth in 0..40 {
            let turn = fleet.enqueue_in(&format!("turn {nth}"), Some("sess_1")).await;
            if nth % 5 == 0 {
                fleet.store.cancel(&turn.turn_id, None).await.unwrap();
            }
        }
    };
    let runs = async {
        let mut ordinals = Vec::new();
        loop {
            match worker.claim(1).await.pop() {
                Some(job) => {
                    settle_and_free(&fleet.store, &job, Ending::Completed).await;
                    ordinals.push(job.ordinal);
                }
                None if ordinals.last() == Some(&40) => return ordinals,
                None => fleet.store.tidy().await.unwrap(),
            }
        }
    };
    let ((), ordinals) =
        tokio::time::timeout(crate::harness::PATIENCE, async { tokio::join!(enqueues, runs) }).await.expect("the session goes on");
    assert!(ordinals.is_sorted(), "{ordinals:?}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_dead_worker_s_turn_is_adopted_with_its_slot_and_its_place(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue("hi").await;
    let before = fleet.worker("a").await.claim_one().await;
    fleet.store.sandbox_ready(&before, "i-sandbox").await.unwrap().unwrap();
    let heir = fleet.worker("b").await;
    assert!(heir.claim(1).await.is_empty(), "its lease holds");

    fleet.let_lease_expire("a").await;
    let after = heir.claim_one().await;
    assert_eq!((after.taken, &after.turn_id, after.slot_id), (Taken::Adopted, &before.turn_id, before.slot_id));
    assert_eq!((after.sandbox_id.as_deref(), after.attempt), (Some("i-sandbox"), before.attempt));
    assert_eq!((&after.nonce, &after.create_request), (&before.nonce, &before.create_request), "the identical create");
    assert!(after.epoch > before.epoch);
    assert!(heir.claim(1).await.is_empty(), "adopted once");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_that_goes_in_order_is_replaced_at_once(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue("hi").await;
    let job = fleet.worker("a").await.claim_one().await;
    fleet.store.release_worker("a").await.unwrap();
    assert_eq!(fleet.worker("b").await.claim_one().await.turn_id, job.turn_id);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_claim_whose_answer_was_lost_is_handed_over_by_its_own_worker(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("hi").await;
    let worker = fleet.worker("a").await;
    let known = worker.claim_one().await;
    fleet.enqueue("lost").await;
    let lost = worker.claim_one().await;
    assert_eq!(fleet.store.hand_over_strangers("a", &[known.epoch]).await.unwrap(), 1);
    let again = worker.claim_one().await;
    assert_eq!((&again.turn_id, again.taken), (&lost.turn_id, Taken::Adopted));
    assert_ne!(again.turn_id, turn.turn_id);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_failed_start_up_waits_its_time_keeps_its_session_and_frees_its_slot_only_when_the_sandbox_is_gone(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 1).await;
    let turn = fleet.enqueue("hi").await;
    let worker = fleet.worker("a").await;
    let job = worker.claim_one().await;
    let why = TurnError::new("sandbox_start_failed", "no sandbox yet");
    let retry =
        turnmill::store::Retry { delay: Duration::from_secs(60), charged: true, restart: false, keep: false, spent: None, why: &why };
    fleet.store.retry_later(&job, &retry, Duration::from_secs(30)).await.unwrap().unwrap();

    let waiting = fleet.turn(&turn.turn_id).await;
    assert_eq!((waiting.status.as_str(), waiting.waits_for.as_deref()), ("pending", Some("backoff")));
    assert!(worker.claim(1).await.is_empty());
    fleet.sql("UPDATE turnmill.jobs SET run_at = clock_timestamp() WHERE turn_id = $1", &turn.turn_id).await;
    assert!(worker.claim(1).await.is_empty(), "its only slot is not free yet");
    assert_eq!(fleet.turn(&turn.turn_id).await.waits_for.as_deref(), Some("no_slot"));
    fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    let again = worker.claim_one().await;
    assert_eq!((again.failures, again.attempt), (1, job.attempt), "a start-up is no attempt of the agent");
    assert_ne!(again.nonce, job.nonce, "a new create");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn lowering_the_cap_kills_nothing_and_starts_nothing_until_it_holds(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 3).await;
    for _ in 0..6 {
        fleet.enqueue("x").await;
    }
    let worker = fleet.worker("a").await;
    let jobs = worker.claim(10).await;
    assert_eq!(jobs.len(), 3);
    fleet.cap("default", 1).await;
    for (job, then) in jobs.iter().zip([0, 0, 1]) {
        assert!(worker.claim(10).await.is_empty());
        settle_and_free(&fleet.store, job, Ending::Completed).await;
        if then == 1 {
            assert_eq!(worker.claim(10).await.len(), 1, "one, from now on");
        }
    }
    fleet.cap("default", 4).await;
    assert_eq!(worker.claim(10).await.len(), 2, "what is left");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_listens_is_woken_by_the_first_turn_and_by_a_slot_that_comes_free(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 1).await;
    let worker = fleet.worker("a").await;
    let mut wake = fleet.store.listen().await.unwrap();
    fleet.enqueue("x").await;
    timeout(PATIENCE, wake.wait()).await.expect("woken").unwrap();
    let job = worker.claim_one().await;
    fleet.enqueue("y").await;
    timeout(PATIENCE, wake.wait()).await.expect("woken").unwrap();
    settle_and_free(&fleet.store, &job, Ending::Completed).await;
    timeout(PATIENCE, wake.wait()).await.expect("woken: there is room again").unwrap();
}
