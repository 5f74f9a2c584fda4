//! Raw journals: byte for byte what the agent printed, whoever read it, for as long as the pool keeps them.

use serde_json::json;
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::agent::mock;
use turnmill::store::PoolChange;

use crate::commands::{said, turnmill};
use crate::harness::{Running, RunningWorker, config};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_the_agent_printed_can_be_read_word_for_word_also_after_a_hand_over(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    // With lines that no block shows, and bytes that no text can hold.
    let script = json!({ "delay_ms": 300, "steps": [
        { "text": "one" }, "invalid_utf8", { "raw": "{\"type\":\"system\",\"subtype\":\"never_heard_of\"}" }, { "text": "two" }, { "text": "three" },
    ] })
    .to_string();
    let turn = all.fleet.enqueue(&format!("/mock {script}")).await.turn_id;
    all.fleet.has_blocks(&turn, 2).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let second = RunningWorker::with(&fleet, config(&e2b.url)).await;
    assert_eq!(fleet.ended(&turn).await.status, "completed");
    assert_eq!(fleet.taken(&turn).await, ["claimed", "adopted"]);
    let run = async |args: &[&str]| turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();
    let printed = run(&["journal", &turn]).await;
    let expected = mock::lines(&mock::Script::find(&script).unwrap(), &fleet.message_uuid(&turn).await).concat();
    assert!(printed.status.success() && printed.stdout == expected, "{}", said(&printed));
    assert!(said(&run(&["journal", &turn, "--attempt", "2"]).await).contains("there is one of: 1"));
    assert!(said(&run(&["journal", "nope"]).await).contains("no journal is kept of turn \"nope\""));

    // Its time is over.
    fleet.sql("UPDATE turnmill.journals SET forget_at = forget_at - interval '6 days' WHERE turn_id = $1", &turn).await;
    fleet.store.tidy().await.unwrap();
    assert_eq!(fleet.store.journals(&turn).await.unwrap(), [(1, i64::try_from(expected.len()).unwrap())]);
    fleet.sql("UPDATE turnmill.journals SET forget_at = forget_at - interval '2 days' WHERE turn_id = $1", &turn).await;
    fleet.store.tidy().await.unwrap();
    assert!(fleet.store.journals(&turn).await.unwrap().is_empty());
    second.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn each_attempt_has_its_own_also_one_that_failed_and_a_pool_may_keep_none(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 2).await;
    let turn = all.fleet.enqueue("/mock api-error").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.attempt, 2, "the second went on where the first had failed");
    let kept = all.fleet.store.journals(&turn).await.unwrap();
    assert_eq!(kept.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2]);
    all.fleet.store.set_pool("default", &PoolChange { journal_days: Some(0), ..PoolChange::default() }).await.unwrap();
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.status, "completed");
    assert!(all.fleet.store.journals(&turn).await.unwrap().is_empty());
    all.stop().await;
}
