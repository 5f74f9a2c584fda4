//! A turn's whole way, through a real worker, the wire, the supervisor and a real process.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::PoolChange;

use crate::harness::{PATIENCE, Running, RunningWorker, config, until};

/// About a second of blocks, a few milliseconds apart.
pub const STEADY: &str = r#"{"delay_ms": 20, "steps": [
  {"thinking": "a"}, {"text": "b"}, {"tool": {"name": "Bash", "input": {"command": "ls"}, "result": "c"}}, {"text": "d"}, {"thinking": "e"},
  {"text": "f"}, {"tool": {"name": "Read", "input": {}, "result": "g", "failed": true}}, {"text": "h"}, {"text": "i"}, {"text": "j"},
  {"text": "k"}, {"tool": {"name": "Bash", "input": {"command": "make"}, "result": "l"}}, {"text": "m"}, {"text": "n"}, {"text": "o"},
  {"text": "p"}, {"text": "q"}, {"text": "r"}, {"sleep_ms": 300}, {"text": "s"}, {"text": "t"}, {"text": "u"}, {"text": "v"}, {"text": "w"}]}"#;

/// The message that makes the stand-in play it.
pub fn mock(script: &str) -> String {
    format!("/mock {}", script.replace('\n', " "))
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_answer_comes_as_ordered_blocks_and_one_terminal_status(pool: PgPool) {
    let all = Running::start(pool).await;
    let turn = all.fleet.enqueue("hello").await;
    let ended = all.fleet.ended(&turn.turn_id).await;
    assert_eq!((ended.status.as_str(), ended.attempt, ended.generation, ended.error_code), ("completed", 1, 1, None));
    let blocks = all.fleet.blocks(&turn.turn_id).await;
    let text = |block: &Value| block[1]["text"].as_str().or(block[1]["result"].as_str()).map(str::to_owned);
    assert_eq!(
        blocks.iter().map(|block| block[0].as_str().unwrap()).collect::<Vec<_>>(),
        ["thinking", "content", "tool_use", "tool_result", "content"]
    );
    assert_eq!(text(&blocks[0]).as_deref(), Some("分析用户需求..."));
    assert_eq!(text(&blocks[3]).as_deref(), Some("File content..."));
    assert_eq!(ended.cost_usd, Some(0.0001));
    assert_eq!(all.agent_starts(), 1);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn blocks_are_there_while_the_agent_still_works(pool: PgPool) {
    let all = Running::start(pool).await;
    let turn = all.fleet.enqueue("/mock hang").await;
    all.fleet.has_blocks(&turn.turn_id, 2).await;
    assert_eq!(all.fleet.turn(&turn.turn_id).await.status, "in_progress");
    assert_eq!(all.fleet.store.cancel(&turn.turn_id, Some("enough")).await.unwrap(), "cancelling");
    let ended = all.fleet.ended(&turn.turn_id).await;
    assert_eq!((ended.status.as_str(), ended.error_message.as_deref()), ("cancelled", Some("enough")));
    let blocks = all.fleet.blocks(&turn.turn_id).await;
    assert_eq!(blocks[2][1]["kind"], "lost", "the call that never returned has an end: {blocks:?}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_ignores_its_signals_is_killed(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.stop_grace = Duration::from_millis(200)).await;
    let deaf = ["bash", "-c", "trap '' INT TERM; echo '{\"type\":\"content\",\"content\":\"deaf\"}'; while :; do sleep 1; done"];
    all.fleet
        .store
        .set_pool("default", &PoolChange { agent: Some(deaf.map(str::to_owned).to_vec()), ..PoolChange::default() })
        .await
        .unwrap();
    let turn = all.fleet.enqueue("x").await;
    all.fleet.has_blocks(&turn.turn_id, 1).await;
    all.fleet.store.cancel(&turn.turn_id, None).await.unwrap();
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "cancelled");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_whose_time_is_over_fails_and_keeps_what_was_said(pool: PgPool) {
    let all = Running::start(pool).await;
    all.fleet.store.set_pool("default", &PoolChange { turn_timeout_s: Some(2), ..PoolChange::default() }).await.unwrap();
    let turn = all.fleet.enqueue("/mock hang").await;
    let ended = all.fleet.ended(&turn.turn_id).await;
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("turn_timeout")));
    let blocks = all.fleet.blocks(&turn.turn_id).await;
    assert_eq!(blocks[0][1]["text"], "I will be right back.");
    assert_eq!(blocks.last().unwrap()[1]["code"], "turn_timeout", "clients that watch blocks only see the end");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_deploy_hands_a_running_turn_over_without_starting_it_again(pool: PgPool) {
    // A lease so long that nobody could wait for its end.
    let all = Running::with(pool, |config| config.worker.lease = PATIENCE * 10).await;
    let turn = all.fleet.enqueue(&mock(STEADY)).await;
    all.fleet.has_blocks(&turn.turn_id, 5).await;
    let next = RunningWorker::start(&all.fleet, &all.e2b.url).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;

    assert_eq!(fleet.ended(&turn.turn_id).await.status, "completed");
    assert_eq!(fleet.blocks(&turn.turn_id).await, fleet.expected(&turn.turn_id, STEADY).await);
    assert_eq!(fleet.taken(&turn.turn_id).await, ["claimed", "adopted"]);
    let all = Running { fleet, e2b, worker: next };
    assert_eq!(all.agent_starts(), 1);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_create_whose_answer_is_lost_makes_one_sandbox_and_a_refused_one_is_tried_again(pool: PgPool) {
    let all = Running::start(pool).await;
    all.e2b.faults(json!([{ "on": "create", "lose_answer": true }])).await;
    let first = all.fleet.enqueue("/mock noop").await;
    assert_eq!(all.fleet.ended(&first.turn_id).await.status, "completed");
    assert_eq!(all.e2b.acts("create").await.len(), 1);

    // More than one claim's own tries: it goes back into the queue.
    all.e2b
        .faults(json!([{ "on": "create", "times": 4, "status": 503, "error_code": "sandbox_capacity_unavailable", "message": "no room" }]))
        .await;
    let second = all.fleet.enqueue("/mock noop").await;
    assert_eq!(all.fleet.ended(&second.turn_id).await.status, "completed");
    assert_eq!(all.fleet.taken(&second.turn_id).await, ["claimed", "claimed"]);
    assert_eq!(all.agent_starts(), 2);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_create_whose_answer_is_lost_and_that_is_refused_when_asked_again_leaves_no_sandbox(pool: PgPool) {
    let all = Running::start(pool).await;
    let refused = json!({ "on": "create", "times": 2, "status": 503, "error_code": "sandbox_capacity_unavailable", "message": "no room" });
    // Made, unseen; and the other tries of this claim are definite refusals.
    all.e2b.faults(json!([{ "on": "create", "lose_answer": true }, refused])).await;
    let turn = all.fleet.enqueue("/mock noop").await;
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn start_ups_that_never_work_fail_the_turn_after_the_last_try_and_say_why(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.startup_tries = 2).await;
    all.e2b
        .faults(
            json!([{ "on": "create", "times": 100, "status": 503, "error_code": "sandbox_capacity_unavailable", "message": "no room" }]),
        )
        .await;
    let turn = all.fleet.enqueue("/mock noop").await;
    let ended = all.fleet.ended(&turn.turn_id).await;
    assert_eq!(ended.error_code.as_deref(), Some("sandbox_start_failed"));
    let message = ended.error_message.unwrap();
    assert!(message.contains("after 2 tries") && message.contains("no room"), "{message}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_refused_key_blocks_the_pool_and_its_turns_wait_until_it_heals(pool: PgPool) {
    let all = Running::start(pool).await;
    all.e2b.faults(json!([{ "on": "create", "status": 401, "message": "Invalid API key" }])).await;
    let turn = all.fleet.enqueue("/mock noop").await;
    let waits =
        until("the pool is blocked", || async { all.fleet.turn(&turn.turn_id).await.waits_for.filter(|why| why == "pool_blocked") }).await;
    assert_eq!(waits, "pool_blocked");
    all.fleet.sql("UPDATE turnmill.pools SET state_at = clock_timestamp() - interval '1 minute' WHERE name = $1", "default").await;
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed", "it failed for nobody");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_that_vanishes_starts_the_turn_over_once_and_then_fails_it(pool: PgPool) {
    let all = Running::start(pool).await;
    let (calm, doomed) = (all.fleet.enqueue("/mock hang").await, all.fleet.enqueue("/mock hang").await);
    for (turn, times) in [(&calm, 1), (&doomed, 2)] {
        for generation in 1..=times {
            until("it runs", || async {
                let reading = all.fleet.read(&turn.turn_id).await;
                (reading.blocks.iter().filter(|block| block.generation == generation).count() >= 2).then_some(())
            })
            .await;
            let found = all.e2b.acts("create").await;
            let newest = found.iter().rfind(|act| act["detail"]["metadata"]["turnmill_turn"] == turn.turn_id.as_str()).unwrap();
            reqwest::Client::new()
                .delete(format!("{}/_local/sandboxes/{}", all.e2b.url, newest["sandbox"].as_str().unwrap()))
                .send()
                .await
                .unwrap();
        }
    }
    let failed = all.fleet.ended(&doomed.turn_id).await;
    assert_eq!(failed.error_code.as_deref(), Some("sandbox_lost"));
    until("the other runs again", || async {
        let reading = all.fleet.read(&calm.turn_id).await;
        (reading.blocks.iter().filter(|block| block.generation == 2).count() >= 2).then_some(())
    })
    .await;
    let again = all.fleet.turn(&calm.turn_id).await;
    assert_eq!((again.status.as_str(), again.attempt, again.generation), ("in_progress", 2, 2));
    all.fleet.blocks(&calm.turn_id).await;
    all.fleet.store.cancel(&calm.turn_id, None).await.unwrap();
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_is_kept_alive_while_its_agent_works(pool: PgPool) {
    let all = Running::start(pool).await;
    all.fleet.sql("UPDATE turnmill.pools SET sandbox_timeout_s = 60 WHERE name = $1", "default").await;
    let turn = all.fleet.enqueue("/mock hang").await;
    all.fleet.has_blocks(&turn.turn_id, 2).await;
    let id = all.e2b.client().list(&[]).await.unwrap()[0].id.clone();
    assert!(all.e2b.client().set_timeout(&id, Duration::from_secs(2)).await.unwrap());
    // The worker's extension, which came first, is undone by ours; a new worker's comes after.
    let next = RunningWorker::with(&all.fleet, config(&all.e2b.url)).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fleet.turn(&turn.turn_id).await.status, "in_progress");
    fleet.store.cancel(&turn.turn_id, None).await.unwrap();
    fleet.ended(&turn.turn_id).await;
    Running { fleet, e2b, worker: next }.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn megabytes_pass_and_one_line_that_is_too_long_becomes_an_error_block(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.line_max_bytes = 5 << 20).await;
    let script = r#"{"steps": [{"huge": 3000000}, {"huge": 3000000}, {"huge": 6000000}, {"huge": 3000000}, {"text": "end"}]}"#;
    let turn = all.fleet.enqueue(&mock(script)).await;
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed");
    let blocks = all.fleet.blocks(&turn.turn_id).await;
    let sizes: Vec<_> = blocks.iter().map(|block| block[1]["text"].as_str().unwrap().len()).collect();
    assert_eq!((sizes[0], sizes[1], sizes[3]), (3_000_000, 3_000_000, 3_000_000));
    assert_eq!(blocks[2][1]["code"], "line_too_long");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn many_turns_at_once_stay_within_the_cap_and_all_end(pool: PgPool) {
    let all = Running::start(pool).await;
    let mut turns = Vec::new();
    for _ in 0..24 {
        turns.push(all.fleet.enqueue(r#"/mock {"delay_ms": 5, "steps": [{"text": "a"}, {"text": "b"}]}"#).await.turn_id);
    }
    for turn in &turns {
        assert_eq!(all.fleet.ended(turn).await.status, "completed");
        assert_eq!(all.fleet.blocks(turn).await.len(), 2);
    }
    let most = all.e2b.acts("create").await.iter().filter_map(|act| act["detail"]["live"].as_u64()).max();
    assert_eq!((most, all.agent_starts()), (Some(4), 24), "the cap is used, and never exceeded");
    all.stop().await;
}
