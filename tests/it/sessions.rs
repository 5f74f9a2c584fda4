//! A message that comes while its session is busy: it waits, is not taken, or interrupts; and the receipt says which.

use serde_json::json;
use sqlx::PgPool;
use turnmill::store::{Enqueue, Receipt};
use turnmill::turn::Ending;

use crate::harness::{Fleet, Running, RunningWorker, ending, settle_and_free};

async fn say(fleet: &Fleet, on_busy: Option<&str>) -> Receipt {
    let turn = Enqueue {
        prompt: "/mock noop".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some("chat".to_owned()),
        on_busy: on_busy.map(str::to_owned),
        ..Enqueue::default()
    };
    fleet.store.enqueue(&turn).await.unwrap()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_receipt_says_what_becomes_of_a_turn_and_its_place(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let summary = |receipt: &Receipt| (receipt.disposition.clone(), receipt.queue_position, receipt.waits_for.clone());
    let busy = Some("session_busy".to_owned());
    assert_eq!(summary(&say(&fleet, None).await), ("started".to_owned(), 0, Some("no_worker".to_owned())));
    assert_eq!(summary(&say(&fleet, None).await), ("queued".to_owned(), 1, busy.clone()));
    assert_eq!(summary(&say(&fleet, Some("queue")).await), ("queued".to_owned(), 2, busy.clone()));
    let rejected = say(&fleet, Some("reject")).await;
    assert_eq!((rejected.turn_id.clone(), rejected.status.clone()), (None, None));
    assert_eq!(summary(&rejected), ("rejected".to_owned(), 3, busy));
    assert_eq!(fleet.store.turns(None, 10).await.unwrap().len(), 3, "nothing was written for it");

    fleet.sql("SELECT turnmill.set_session($1, 'reject')", "chat").await;
    assert_eq!(say(&fleet, None).await.disposition, "rejected", "the session's own rule");
    assert_eq!(say(&fleet, Some("queue")).await.queue_position, 3, "unless the enqueue says otherwise");
    let wrong = fleet.refused("SELECT turnmill.enqueue_turn('x', session_id => 'chat', on_busy => 'maybe')").await;
    assert!(wrong.starts_with("TM400") && wrong.contains("queue, reject or interrupt"), "{wrong}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_interrupt_cancels_the_running_turn_and_the_next_starts(pool: PgPool) {
    let all = Running::start(pool).await;
    let running = all.fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    all.fleet.has_blocks(&running, 2).await;
    let next = say(&all.fleet, Some("interrupt")).await;
    assert_eq!((next.disposition.as_str(), next.queue_position), ("interrupting", 1));
    let next = next.turn_id.unwrap();
    let cancelled = all.fleet.ended(&running).await;
    assert_eq!((cancelled.status.as_str(), cancelled.error_message), ("cancelled", Some(format!("interrupted by turn {next}"))));
    assert_eq!(all.fleet.ended(&next).await.status, "completed");
    assert!(all.fleet.blocks(&running).await.len() >= 2, "what was said is kept");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_interrupt_leaves_messages_alone_that_were_not_begun(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let (first, second) = (say(&fleet, None).await.turn_id.unwrap(), say(&fleet, None).await.turn_id.unwrap());
    assert_eq!(say(&fleet, Some("interrupt")).await.disposition, "queued");
    for turn in [first, second] {
        assert_eq!(fleet.turn(&turn).await.status, "pending");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_retry_is_a_new_turn_that_names_the_old_one(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let old = say(&fleet, None).await.turn_id.unwrap();
    let early = fleet.store.retry(&old).await.unwrap_err().to_string();
    assert!(early.contains("can't be retried yet"), "{early}");
    let job = fleet.worker("a").await.claim_one().await;
    settle_and_free(&fleet.store, &job, Ending::Failed).await;
    let made = fleet.store.retry(&old).await.unwrap();
    let (id, of): (String, String) =
        sqlx::query_as("SELECT id, retry_of FROM turnmill.turns WHERE retry_of IS NOT NULL AND prompt = '/mock noop'")
            .fetch_one(&fleet.pool)
            .await
            .unwrap();
    assert_eq!((Some(id), of, made.session_id.as_str()), (made.turn_id, old.clone(), "chat"));
    assert_eq!(fleet.turn(&old).await.status, "failed", "the old one stays as it is");
    let unknown = fleet.refused("SELECT turnmill.retry_turn('nope')").await;
    assert!(unknown.starts_with("TM404"), "{unknown}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_cancel_that_races_the_end_has_one_winner(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    for _ in 0..20 {
        let turn = fleet.enqueue("x").await.turn_id;
        let job = worker.claim_one().await;
        let completed = ending(Ending::Completed);
        let (settled, said) =
            tokio::join!(fleet.store.settle(&job, &completed, std::time::Duration::from_secs(30)), fleet.store.cancel(&turn, None));
        settled.unwrap().unwrap();
        assert!(["cancelling", "completed"].contains(&said.unwrap().as_str()));
        assert_eq!(fleet.turn(&turn).await.status, "completed");
        fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    }
    fleet.store.tidy().await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.cancel_requests").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(left, 0, "requests that came too late are dropped");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_next_turn_waits_until_the_cancelled_one_s_agent_is_known_to_have_ended(pool: PgPool) {
    let Running { fleet, e2b, worker } = Running::start(pool).await;
    let first = fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    let next = fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    fleet.has_blocks(&first, 2).await;
    worker.stop().await;
    fleet.store.cancel(&first, None).await.unwrap();
    // Whoever adopts it hears of the cancel while it still looks for the sandbox, which can't be killed at first either.
    e2b.faults(json!([{ "on": "get", "delay_ms": 2000 }, { "on": "kill", "times": 6, "status": 500, "message": "no" }])).await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    assert_eq!(fleet.ended(&first).await.status, "cancelled");
    assert_eq!(fleet.ended(&next).await.status, "completed");
    let ledger = std::fs::read_to_string(e2b.agent_ledger()).unwrap();
    let acts: Vec<_> = ledger.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["act"].clone()).collect();
    assert_eq!(acts, ["start", "end", "start", "end"]);
    Running { fleet, e2b, worker }.stop().await;
}
