//! An agent that failed goes on where it was.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Running, RunningWorker, starts_in, until};

/// Fails twice, once in the middle of a call.
const SHAKY: &str = r#"/mock {"steps": [{"text": "one"}, {"tool": {"name": "Bash", "input": {}, "result": "done once"}},
    {"api_error": {"error": "overloaded", "status": 529, "message": "API Error: 529 Overloaded"}},
    {"tool": {"name": "Bash", "input": {}}}, {"exit": 137}, {"text": "two"}]}"#;

pub fn shaky() -> String {
    SHAKY.replace('\n', " ")
}

fn in_short(blocks: &[Value]) -> Vec<String> {
    blocks.iter().map(|block| format!("{} {}", block[0], block[1]["text"].as_str().or(block[1]["error"].as_str()).unwrap_or("-"))).collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_failed_goes_on_in_its_sandbox_and_does_nothing_twice(pool: PgPool) {
    let all = Running::start(pool).await;
    let turn = all.fleet.enqueue(&shaky()).await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.error_code, ended.attempt), ("completed", None, 3));
    assert_eq!(
        in_short(&all.fleet.blocks(&turn).await),
        [
            r#""content" one"#,
            r#""tool_use" -"#,
            r#""tool_result" -"#,
            r#""tool_use" -"#,
            r#""tool_result" the agent failed before this call returned"#,
            r#""content" two"#
        ]
    );
    assert_eq!(all.fleet.taken(&turn).await, ["claimed", "resumed", "resumed"]);
    assert_eq!((all.agent_starts(), all.e2b.acts("create").await.len()), (3, 1));
    let history = all.fleet.history(&turn).await;
    assert_eq!(history[0]["ended"], "retry");
    assert!(history[0]["detail"].as_str().unwrap().contains("529 Overloaded"), "{history:?}");
    // Both attempts that ended with a result.
    let usage: Value = sqlx::query_scalar("SELECT usage FROM turnmill.turns").fetch_one(&all.fleet.pool).await.unwrap();
    assert!(usage["input_tokens"].as_i64().unwrap() >= 100, "{usage}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_fails_again_and_again_fails_its_turn_with_the_last_error(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 3).await;
    let error = r#"{"api_error": {"error": "server_error", "status": 500, "message": "API Error: 500"}}"#;
    let turn = all.fleet.enqueue(&format!(r#"/mock {{"steps": [{error}, {error}, {error}, {{"text": "never"}}]}}"#)).await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.error_code.as_deref(), ended.attempt), (Some("server_error"), 3));
    assert_eq!(all.fleet.blocks(&turn).await.len(), 1, "the error's");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn between_two_attempts_a_turn_can_be_cancelled(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_delay = Duration::from_secs(60)).await;
    let turn = all.fleet.enqueue(&shaky()).await.turn_id;
    until("the second attempt is due", || async { (all.fleet.taken(&turn).await.len() == 2).then_some(()) }).await;
    all.fleet.store.cancel(&turn, Some("enough")).await.unwrap();
    assert_eq!(all.fleet.ended(&turn).await.status, "cancelled");
    assert_eq!(all.agent_starts(), 1);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_adopts_a_turn_between_two_attempts_starts_the_next(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_delay = Duration::from_secs(60)).await;
    let turn = all.fleet.enqueue(&shaky()).await.turn_id;
    until("the second attempt is due", || async { (all.fleet.taken(&turn).await.len() == 2).then_some(()) }).await;
    let second = RunningWorker::start(&all.fleet, &all.e2b.url).await;
    all.worker.stop().await;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 3));
    assert_eq!(all.fleet.taken(&turn).await, ["claimed", "resumed", "adopted", "resumed"]);
    assert_eq!(starts_in(&all.e2b.agent_ledger()), 3);
    all.fleet.no_slot_held().await;
    second.stop().await;
    all.e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_adopts_a_cancelled_turn_ends_its_open_calls_though_he_never_read_its_journal(pool: PgPool) {
    let Running { fleet, e2b, worker } = Running::start(pool).await;
    let turn = fleet.enqueue("/mock hang").await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    worker.stop().await;
    fleet.store.cancel(&turn, None).await.unwrap();
    // With all that could be read.
    let sandbox = e2b.client().list(&[]).await.unwrap().remove(0);
    e2b.vanish(&sandbox.id).await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let ended = fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.generation), ("cancelled", 1), "what was said stays");
    let blocks = fleet.blocks(&turn).await;
    assert_eq!((blocks.len(), &blocks[2][1]["kind"], &blocks[2][1]["tool_use_id"]), (3, &json!("lost"), &blocks[1][1]["tool_use_id"]));
    Running { fleet, e2b, worker }.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_was_stopped_for_a_cancel_has_not_failed_whoever_finds_it(pool: PgPool) {
    let Running { fleet, e2b, worker } = Running::start(pool).await;
    let turn = fleet.enqueue("/mock hang").await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    // Its worker has stopped the agent, and is gone before it could say so.
    worker.stop().await;
    fleet.store.cancel(&turn, Some("enough")).await.unwrap();
    let acts = std::fs::read_to_string(e2b.agent_ledger()).unwrap();
    let start: Value = serde_json::from_str(acts.lines().next().unwrap()).unwrap();
    let agent = rustix::process::Pid::from_raw(i32::try_from(start["pid"].as_i64().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(agent, rustix::process::Signal::INT).unwrap();
    until("it has ended", || async { std::fs::read_to_string(e2b.agent_ledger()).unwrap().contains(r#""act":"end""#).then_some(()) }).await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let ended = fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), ended.error_message.as_deref(), ended.attempt), ("cancelled", Some("enough"), 1));
    assert_eq!(fleet.taken(&turn).await, ["claimed", "adopted"], "no further attempt");
    Running { fleet, e2b, worker }.stop().await;
}
