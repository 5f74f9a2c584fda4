//! Thousands of sandboxes without a process: the same protocol, so the same blocks.

use futures::StreamExt as _;
use serde_json::json;
use sqlx::PgPool;
use turnmill::agent::mock::Script;
use turnmill::local::e2b::Options;

use crate::harness::{Fleet, LocalE2b, RunningWorker, config, use_mock};

const SCRIPT: &str = r#"{"delay_ms": 100, "steps": [{"text": "1"}, {"tool": {"name": "Bash", "result": "2"}}, {"text": "3"}]}"#;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn hundreds_of_simulated_turns_run_at_once_as_real_ones_do(pool: PgPool) {
    const TURNS: usize = 300;
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::with(Options { simulate: Some(Script::find(SCRIPT).unwrap()), ..Options::default() }).await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    fleet.cap("default", 300).await;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push(fleet.enqueue("x").await.turn_id);
    }
    let mut config = config(&e2b.url);
    config.worker.turns_max = 300.try_into().unwrap();
    let worker = RunningWorker::with(&fleet, config).await;
    for turn in &turns {
        assert_eq!(fleet.ended(turn).await.error_message, None);
    }
    assert_eq!(fleet.blocks(&turns[7]).await, fleet.expected(&turns[7], SCRIPT).await);
    fleet.no_slot_held().await;
    assert_eq!(e2b.acts("kill").await.len(), TURNS);
    worker.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_simulated_agent_fails_hangs_and_is_stopped_like_a_real_one(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::with(Options { simulate: Some(Script::find("noop").unwrap()), ..Options::default() }).await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let mut config = config(&e2b.url);
    config.retry.agent_tries = 1;
    let worker = RunningWorker::with(&fleet, config).await;
    let (crash, hang) = (fleet.enqueue("/mock crash").await.turn_id, fleet.enqueue("/mock hang").await.turn_id);
    assert_eq!(fleet.ended(&crash).await.error_code.as_deref(), Some("agent_killed"));
    fleet.has_blocks(&hang, 2).await;
    // Its worker goes away, and another one comes: the script plays on.
    worker.stop().await;
    let second = RunningWorker::start(&fleet, &e2b.url).await;
    fleet.store.cancel(&hang, None).await.unwrap();
    assert_eq!(fleet.ended(&hang).await.status, "cancelled");
    assert_eq!(fleet.taken(&hang).await, ["claimed", "adopted"]);
    fleet.no_slot_held().await;
    second.stop().await;
    e2b.stop().await;
}

#[tokio::test]
async fn thousands_of_simulated_sandboxes_are_made_found_and_gone() {
    let e2b = LocalE2b::with(Options { simulate: Some(Script::find("noop").unwrap()), ..Options::default() }).await;
    let client = e2b.client();
    let create = |nth: usize| {
        let (client, request) = (client.clone(), json!({ "templateID": "t", "timeout": 60, "metadata": { "n": (nth % 2).to_string() } }));
        async move { client.create(turnmill::e2b::ApiVersion::V2, &nth.to_string(), &request, crate::harness::PATIENCE).await.unwrap() }
    };
    let made = futures::stream::iter((0..3000).map(create)).buffer_unordered(50).count().await;
    assert_eq!((made, client.list(&[("n", "1")]).await.unwrap().len()), (3000, 1500));
    e2b.stop().await;
}
