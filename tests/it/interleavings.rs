//! What happens to a turn at one moment from several sides, in every order of their steps: one of them wins, and the
//! session goes on.

use std::time::Duration;

use sqlx::PgPool;
use turnmill::store::{Answer, Claimed, Enqueue, Fenced, Renewal, Retry, Store};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Holding as _, PATIENCE, ending, renew};
use crate::races::{Call, Track, call, orders};

fn claim(worker: &'static str) -> Call {
    call(move |store| async move { told(store.claim(worker, 1).await.unwrap().pop().map(|job| job.turn_id)) })
}

fn told(turn: Option<String>) -> String {
    turn.unwrap_or_else(|| "nothing".to_owned())
}

fn cancel(turn: &str) -> Call {
    let turn = turn.to_owned();
    call(move |store| async move { store.cancel(&turn, None).await.unwrap() })
}

fn settle(job: &Claimed) -> Call {
    let job = job.clone();
    call(move |store| async move { heard(store.settle(&job, &ending(Ending::Completed), Duration::ZERO).await.unwrap().map(drop)) })
}

fn retry_later(job: &Claimed) -> Call {
    let job = job.clone();
    call(move |store| async move {
        let why = TurnError::new("x", "y");
        let retry = Retry { delay: Duration::ZERO, charged: true, restart: false, keep: false, spent: None, why: &why };
        heard(store.retry_later(&job, &retry, Duration::ZERO).await.unwrap())
    })
}

fn appends(job: &Claimed) -> Call {
    let append = job.append_of(0, 5, &["said"]);
    call(move |store| async move {
        match store.append(&[append]).await.unwrap()[0] {
            Answer::Done => "done".to_owned(),
            Answer::Locked => "locked".to_owned(),
            Answer::Fenced(_) => "fenced".to_owned(),
        }
    })
}

fn enqueue(session: &str, key: Option<&str>) -> Call {
    let turn = Enqueue {
        prompt: "raced".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some(session.to_owned()),
        idempotency_key: key.map(str::to_owned),
        ..Enqueue::default()
    };
    call(move |store| async move {
        let receipt = store.enqueue(&turn).await.unwrap();
        format!("{} {}", receipt.turn_id.unwrap(), if receipt.replayed { "again" } else { "new" })
    })
}

fn heard(answer: Result<(), Fenced>) -> String {
    if answer.is_ok() { "done" } else { "fenced" }.to_owned()
}

/// Who may write for the turn now: exactly one of them.
async fn holders(store: &Store, jobs: &[Claimed]) -> Vec<i64> {
    let mut holders = Vec::new();
    for job in jobs {
        if store.agent_started(job).await.unwrap().is_ok() {
            holders.push(job.epoch);
        }
    }
    holders
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_two_claims_one_gets_the_turn(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let turn = track.fleet.enqueue("hi").await.turn_id;
        track.fresh("a").await;
        track.fresh("b").await;
        let mut got = track.race(vec![claim("a"), claim("b")], &order).await;
        got.sort();
        assert_eq!(got, ["nothing", &turn], "{order:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_is_claimed_or_cancelled_and_never_both(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let turn = track.fleet.enqueue("hi").await;
        let session = track.fleet.turn(&turn.turn_id).await.session_id;
        track.fleet.enqueue_in("next", Some(&session)).await;
        track.fresh("a").await;
        let got = track.race(vec![claim("a"), cancel(&turn.turn_id)], &order).await;
        let status = track.status(&turn.turn_id).await;
        let claimed = got[0] == turn.turn_id;
        let expected = if claimed { ("cancelling", "in_progress") } else { ("cancelled", "cancelled") };
        assert_eq!((got[1].as_str(), status.as_str()), expected, "{order:?}: {got:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_settle_wins_over_a_cancel_and_the_next_turn_goes_on(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        let next = track.fleet.enqueue_in("next", Some(&job.session_id)).await.turn_id;
        let got = track.race(vec![settle(&job), cancel(&job.turn_id)], &order).await;
        assert_eq!(got[0], "done");
        assert!(["cancelling", "completed"].contains(&got[1].as_str()), "{order:?}: {got:?}");
        assert_eq!(track.status(&job.turn_id).await, "completed");
        track.fleet.store.tidy().await.unwrap();
        assert_eq!(track.fleet.turn(&next).await.waits_for, None, "{order:?}: it is ready");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_is_enqueued_while_the_last_one_settles_is_not_forgotten(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        let got = track.race(vec![settle(&job), enqueue(&job.session_id, None)], &order).await;
        assert_eq!(got[0], "done");
        track.fleet.store.tidy().await.unwrap();
        let next = got[1].split(' ').next().unwrap();
        assert_eq!(track.fleet.turn(next).await.waits_for, None, "{order:?}: it is ready");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_whose_lease_is_renewed_while_it_is_adopted_has_one_holder(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        track.fresh("b").await;
        track.fleet.let_lease_expire("a").await;
        let renew = call(|store| async move { format!("held: {}", renew(&store, "a", PATIENCE).await == Renewal::Extended) });
        let got = track.race(vec![renew, claim("b")], &order).await;
        assert_eq!(got[0], "held: false", "whoever has the turn, it must let go");
        let adopted = got[1] == job.turn_id;
        let epoch = track.fleet.store.position(&job.turn_id).await.unwrap().unwrap().epoch;
        assert_eq!(epoch > job.epoch, adopted, "{order:?}: {got:?}");
        let holders = holders(&track.fleet.store, &[job.clone(), Claimed { epoch, ..job.clone() }]).await;
        assert!(holders.iter().all(|holder| *holder == epoch) && !holders.is_empty(), "{order:?}: {holders:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_append_at_the_moment_of_a_take_over_is_before_it_or_not_at_all(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        track.fresh("b").await;
        track.fleet.let_lease_expire("a").await;
        let heir = call(|store| async move {
            let job = store.claim("b", 1).await.unwrap().pop();
            job.map_or_else(|| "nothing".to_owned(), |job| format!("{} {}", job.journal_offset, job.next_seq))
        });
        let got = track.race(vec![appends(&job), heir], &order).await;
        let blocks = track.fleet.blocks(&job.turn_id).await.len();
        let expected = if got[0] == "done" { ["5 1", "nothing"] } else { ["0 0", "nothing"] };
        assert!(expected.contains(&got[1].as_str()) && blocks == usize::from(got[0] == "done"), "{order:?}: {got:?}, {blocks} blocks");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_a_settle_and_a_take_over_one_is_too_late(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        track.fresh("b").await;
        track.fleet.let_lease_expire("a").await;
        let mut got = track.race(vec![settle(&job), claim("b")], &order).await;
        if got[0] == "fenced" {
            got[0] = "nothing".to_owned();
        }
        assert!(got == ["done", "nothing"] || got == ["nothing", &job.turn_id], "{order:?}: {got:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_cancel_catches_a_turn_on_its_way_back_into_the_queue(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        track.fleet.enqueue_in("next", Some(&job.session_id)).await;
        let got = track.race(vec![retry_later(&job), cancel(&job.turn_id)], &order).await;
        assert_eq!(got[0], "done");
        assert!(["cancelled", "cancelling"].contains(&got[1].as_str()), "{order:?}: {got:?}");
        track.fleet.store.tidy().await.unwrap();
        assert_eq!(track.status(&job.turn_id).await, "cancelled", "{order:?}: {got:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn two_enqueues_with_one_key_make_one_turn(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for (nth, order) in orders(2).into_iter().enumerate() {
        let (session, key) = (format!("sess_{nth}"), format!("key_{nth}"));
        let mut got = track.race(vec![enqueue(&session, Some(&key)), enqueue(&session, Some(&key))], &order).await;
        got.sort();
        let turn = got[0].split(' ').next().unwrap().to_owned();
        assert_eq!(got, [format!("{turn} again"), format!("{turn} new")], "{order:?}");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_many_releases_one_frees_the_slot(pool: PgPool) {
    let mut track = Track::new(pool, 2).await;
    for order in orders(2) {
        let job = track.running(None).await;
        track.fleet.store.settle(&job, &ending(Ending::Completed), Duration::ZERO).await.unwrap().unwrap();
        let own = job.clone();
        let free = call(move |store| async move { heard(store.slot_freed(own.slot_id, own.epoch).await.unwrap()) });
        let take = call(|store| async move { store.due_releases(1, PATIENCE).await.unwrap().len().to_string() });
        let got = track.race(vec![free, take], &order).await;
        assert!(got == ["done", "0"] || got == ["fenced", "1"], "{order:?}: {got:?}");
        assert_eq!(track.fleet.store.slots_held().await.unwrap(), i64::from(got[1] == "1"));
        if got[1] == "1" {
            track
                .fleet
                .sql("UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'releasing' AND pool = $1", "default")
                .await;
        }
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_settle_a_cancel_of_the_next_and_an_enqueue_leave_no_session_stuck(pool: PgPool) {
    let mut track = Track::new(pool, 3).await;
    for order in orders(3) {
        let job = track.running(None).await;
        let next = track.fleet.enqueue_in("next", Some(&job.session_id)).await.turn_id;
        let got = track.race(vec![settle(&job), cancel(&next), enqueue(&job.session_id, None)], &order).await;
        assert_eq!((got[0].as_str(), got[1].as_str()), ("done", "cancelled"), "{order:?}");
        let last = got[2].split(' ').next().unwrap();
        track.fleet.store.tidy().await.unwrap();
        assert_eq!(track.fleet.turn(last).await.waits_for, None, "{order:?}: it is ready");
        track.check(&format!("{order:?}")).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_claim_a_cancel_and_an_adoption_agree_on_who_has_the_turn(pool: PgPool) {
    let mut track = Track::new(pool, 3).await;
    for order in orders(3) {
        let job = track.running(None).await;
        track.fleet.store.hand_over(&job).await.unwrap().unwrap();
        track.fresh("b").await;
        let got = track.race(vec![claim("a"), claim("b"), cancel(&job.turn_id)], &order).await;
        let claims = got[..2].iter().filter(|turn| **turn == job.turn_id).count();
        assert_eq!((claims, got[2].as_str()), (1, "cancelling"), "{order:?}: {got:?}");
        track.check(&format!("{order:?}")).await;
    }
}
