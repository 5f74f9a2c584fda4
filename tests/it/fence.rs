//! Who lost its turn changes nothing any more; who has it is never told so by mistake.

use std::time::Duration;

use sqlx::PgPool;
use turnmill::store::{Answer, Fenced, Renewal, Retry};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Fleet, Holding as _, append, ending};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_that_lost_its_lease_can_write_nothing(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("hi").await;
    let stale = fleet.worker("a").await.claim_one().await;
    assert_eq!(append(&fleet.store, stale.append_of(0, 10, &["one"])).await, Answer::Done);
    fleet.let_lease_expire("a").await;
    let current = fleet.worker("b").await.claim_one().await;
    assert_eq!((current.journal_offset, current.next_seq), (10, 1), "it goes on where the other stopped");

    let store = &fleet.store;
    assert!(matches!(append(store, stale.append_of(10, 20, &["two"])).await, Answer::Fenced(Some(p)) if p.epoch == current.epoch));
    assert_eq!(store.create_asked(&stale).await.unwrap(), Err(Fenced));
    assert_eq!(store.sandbox_ready(&stale, "i-mine").await.unwrap(), Err(Fenced));
    assert_eq!(store.agent_started(&stale).await.unwrap(), Err(Fenced));
    assert_eq!(store.hand_over(&stale).await.unwrap(), Err(Fenced));
    assert_eq!(store.settle(&stale, &ending(Ending::Completed), Duration::ZERO).await.unwrap(), Err(Fenced));
    let why = TurnError::new("x", "y");
    let retry = Retry { delay: Duration::ZERO, charged: true, restart: true, keep: false, spent: None, why: &why };
    assert_eq!(store.retry_later(&stale, &retry, Duration::ZERO).await.unwrap(), Err(Fenced));
    assert_eq!(store.slot_freed(stale.slot_id, stale.epoch).await.unwrap(), Err(Fenced));

    assert_eq!(append(store, current.append_of(10, 20, &["two"])).await, Answer::Done);
    store
        .settle(&current, &turnmill::store::Settle { journal_offset: 20, ..ending(Ending::Completed) }, Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(fleet.turn(&turn.turn_id).await.status, "completed");
    assert_eq!(fleet.blocks(&turn.turn_id).await.len(), 2);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_append_answers_done_locked_or_fenced_for_each_turn_by_itself(pool: PgPool) {
    let fleet = Fleet::new(pool);
    for _ in 0..3 {
        fleet.enqueue("x").await;
    }
    let jobs = fleet.worker("a").await.claim(3).await;
    let mut other = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM turnmill.jobs WHERE turn_id = $1 FOR UPDATE").bind(&jobs[1].turn_id).execute(&mut *other).await.unwrap();

    let appends = [jobs[0].append_of(0, 5, &["a", "b"]), jobs[1].append_of(0, 5, &["c"]), jobs[2].append_of(3, 5, &["d"])];
    let answers = fleet.store.append(&appends).await.unwrap();
    assert_eq!(answers[0], Answer::Done);
    assert_eq!(answers[1], Answer::Locked, "somebody has its row this moment: try again");
    assert!(matches!(answers[2], Answer::Fenced(Some(p)) if p.journal_offset == 0), "not where it believes to be");

    other.rollback().await.unwrap();
    assert_eq!(append(&fleet.store, appends[1].clone()).await, Answer::Done);
    assert_eq!(fleet.blocks(&jobs[0].turn_id).await.len(), 2);
    assert_eq!(fleet.blocks(&jobs[2].turn_id).await.len(), 0);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_append_whose_answer_was_lost_shows_where_it_stands_and_is_not_made_twice(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("hi").await;
    let job = fleet.worker("a").await.claim_one().await;
    let lost = job.append_of(0, 7, &["once"]);
    assert_eq!(append(&fleet.store, lost.clone()).await, Answer::Done);
    let again = append(&fleet.store, lost).await;
    assert!(matches!(again, Answer::Fenced(Some(p)) if (p.epoch, p.attempt, p.journal_offset) == (job.epoch, job.attempt, 7)), "{again:?}");
    assert_eq!(fleet.blocks(&turn.turn_id).await.len(), 1);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_has_ended_never_changes_again(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("hi").await;
    let job = fleet.worker("a").await.claim_one().await;
    fleet.store.settle(&job, &ending(Ending::Failed), Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(fleet.store.settle(&job, &ending(Ending::Completed), Duration::ZERO).await.unwrap(), Err(Fenced));
    assert!(matches!(append(&fleet.store, job.append_of(0, 5, &["late"])).await, Answer::Fenced(None)));
    let refused = fleet.refused("UPDATE turnmill.turns SET status = 'completed', error_code = NULL").await;
    assert!(refused.starts_with("TM409"), "{refused}");
    assert_eq!(fleet.turn(&turn.turn_id).await.error_code.as_deref(), Some("some_code"));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_renewal_that_came_too_late_says_so(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.worker("a").await;
    assert_eq!(fleet.renew("a").await, Renewal::Extended);
    fleet.let_lease_expire("a").await;
    assert_eq!(fleet.renew("a").await, Renewal::Anew, "others may have its turns");
    assert_eq!(fleet.renew("a").await, Renewal::Extended, "and it may begin anew");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn only_one_of_many_frees_a_slot(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue("x").await;
    let job = fleet.worker("a").await.claim_one().await;
    fleet.store.settle(&job, &ending(Ending::Completed), Duration::ZERO).await.unwrap().unwrap();
    let due = fleet.store.due_releases(10, Duration::from_secs(10)).await.unwrap();
    assert_eq!(due.len(), 1, "its own worker did not come to it");
    assert_eq!(fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap(), Err(Fenced), "that one is too late");
    assert_eq!(fleet.store.slot_freed(due[0].slot_id, due[0].epoch).await.unwrap(), Ok(()));
    assert_eq!(fleet.store.slots_held().await.unwrap(), 0);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_is_dropped_while_a_transaction_begins_takes_nobody_s_later_writes_with_him(pool: PgPool) {
    // One connection: whoever comes next gets the one that was given up.
    let one = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with((*pool.connect_options()).clone()).await.unwrap();
    let fleet = Fleet::new(one.clone());
    let job = {
        fleet.enqueue("hi").await;
        fleet.worker("a").await.claim_one().await
    };
    let ended = turnmill::store::Settle { journal_offset: 7, ..ending(Ending::Completed) };
    for steps in 0..8 {
        // Refused in the end, as its offset is wrong; but dropped before, a round trip later each time.
        let mut settling = Box::pin(fleet.store.settle(&job, &ended, Duration::ZERO));
        for _ in 0..steps {
            if futures::poll!(&mut settling).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(settling);
        // In a transaction of its own, a statement begins when its transaction does.
        let row = sqlx::Executor::fetch_one(&one, sqlx::raw_sql("SELECT now() = statement_timestamp()")).await.unwrap();
        assert!(sqlx::Row::get::<bool, _>(&row, 0), "dropped at step {steps} it left a transaction open");
    }
}
