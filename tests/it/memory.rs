//! The second message of a session knows the first, in whatever sandbox it is answered; and what is lost is said.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Running, RunningWorker, until};

pub const RECALL: &str = r#"/mock {"steps": [{"recall": null}]}"#;

pub async fn texts(all: &Running, turn: &str) -> Vec<Value> {
    all.fleet
        .blocks(turn)
        .await
        .into_iter()
        .map(|block| block[1]["kind"].as_str().map_or(block[1]["text"].clone(), |kind| json!(kind)))
        .collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_remembers_those_before_it_in_a_new_sandbox_and_under_another_worker(pool: PgPool) {
    let all = Running::start(pool).await;
    let first = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&first).await;
    let cancelled = all.fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    all.fleet.has_blocks(&cancelled, 2).await;
    all.fleet.store.cancel(&cancelled, None).await.unwrap();
    all.fleet.ended(&cancelled).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let all = Running { fleet, e2b, worker };
    let last = all.fleet.enqueue_in(RECALL, Some("chat")).await.turn_id;
    assert_eq!(all.fleet.ended(&last).await.error_message, None);
    assert_eq!(texts(&all, &last).await, ["/mock noop\n/mock hang"]);
    assert_eq!(all.e2b.acts("create").await.len(), 3, "each in a sandbox of its own");
    let other = all.fleet.enqueue_in(RECALL, Some("another chat")).await.turn_id;
    all.fleet.ended(&other).await;
    assert_eq!(texts(&all, &other).await, [""], "another session knows nothing of it");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_was_lost_is_said_once_before_the_answer(pool: PgPool) {
    let all = Running::start(pool).await;
    for spoil in [
        "DELETE FROM turnmill.transcripts WHERE session_id = $1",
        "UPDATE turnmill.transcripts SET data = substr(data, 1, 12) WHERE session_id = $1",
    ] {
        let chat = format!("chat {}", spoil.len());
        let first = all.fleet.enqueue_in("/mock noop", Some(&chat)).await.turn_id;
        all.fleet.ended(&first).await;
        all.fleet.sql(spoil, &chat).await;
        let second = all.fleet.enqueue_in(RECALL, Some(&chat)).await.turn_id;
        assert_eq!(all.fleet.ended(&second).await.error_message, None);
        assert_eq!(texts(&all, &second).await, ["context_lost", ""]);
        // What it said is remembered from now on.
        let third = all.fleet.enqueue_in(RECALL, Some(&chat)).await.turn_id;
        all.fleet.ended(&third).await;
        assert_eq!(texts(&all, &third).await, [RECALL]);
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_conversation_that_the_agent_does_not_take_is_begun_anew_and_that_is_said(pool: PgPool) {
    let all = Running::start(pool).await;
    let first = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&first).await;
    // Good gzip of nothing: the stand-in says that there is no such conversation, as the real one does.
    let empty = "UPDATE turnmill.transcripts SET data = '\\x1f8b08000000000000ff03000000000000000000' WHERE session_id = $1";
    all.fleet.sql(empty, "chat").await;
    let second = all.fleet.enqueue_in(RECALL, Some("chat")).await.turn_id;
    let ended = all.fleet.ended(&second).await;
    assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 2), "{:?}", ended.error_message);
    assert_eq!(texts(&all, &second).await, ["context_lost", ""]);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_that_vanishes_costs_the_turn_s_work_but_not_what_was_before(pool: PgPool) {
    let all = Running::start(pool).await;
    let first = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&first).await;
    let script = r#"/mock {"steps": [{"recall": null}, {"sleep_ms": 2000}, {"text": "end"}]}"#;
    let second = all.fleet.enqueue_in(script, Some("chat")).await.turn_id;
    all.fleet.has_blocks(&second, 1).await;
    let sandbox = until("its sandbox", || async { all.e2b.client().list(&[]).await.ok()?.pop() }).await;
    all.e2b.vanish(&sandbox.id).await;
    let ended = all.fleet.ended(&second).await;
    assert_eq!((ended.status.as_str(), ended.generation), ("completed", 2), "{:?}", ended.error_message);
    let read: Value =
        sqlx::query_scalar("SELECT blocks FROM turnmill.read_turn($1)").bind(&second).fetch_one(&all.fleet.pool).await.unwrap();
    assert_eq!((&read[0]["content"]["text"], &read[1]["content"]["text"]), (&json!("/mock noop"), &json!("end")), "from the turn's start");
    all.stop().await;
}

/// As on a full disk: the conversation is there, but no copy of it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_had_no_room_in_the_sandbox_is_said_to_be_lost_and_not_taken_for_none(pool: PgPool) {
    let all = Running::start(pool).await;
    let first = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&first).await;
    all.fleet.no_slot_held().await;
    let script = r#"/mock {"steps": [{"write": {"path": "made", "text": "1"}}, {"text": "here"}, {"sleep_ms": 1500}, {"text": "end"}]}"#;
    let second = all.fleet.enqueue_in(script, Some("chat")).await.turn_id;
    all.fleet.has_blocks(&second, 1).await;
    let sandbox = until("its sandbox", || async { all.e2b.client().list(&[]).await.ok()?.pop() }).await;
    let turn = format!("root/var/lib/turnmill/turn-{}/attempt-1", all.fleet.message_uuid(&second).await);
    for file in ["transcript", "now.new"] {
        std::os::unix::fs::symlink("/dev/full", all.e2b.dir.path().join(&sandbox.id).join(&turn).join(file)).unwrap();
    }
    let ended = all.fleet.ended(&second).await;
    assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 1), "{:?}", ended.error_message);
    let third = all.fleet.enqueue_in(RECALL, Some("chat")).await.turn_id;
    all.fleet.ended(&third).await;
    assert_eq!(texts(&all, &third).await, ["context_lost", "/mock noop"], "it goes on from what there is");
    let said = all.fleet.blocks(&third).await[0][1].clone();
    assert_eq!(said["lost"], json!(["conversation", "files"]), "{said}");
    let why = said["why"].as_str().unwrap();
    assert!(why.contains("the conversation was not saved after the turn before this one") && why.contains("disk may be full"), "{why}");
    let noted: Vec<String> = sqlx::query_scalar("SELECT turn_id FROM turnmill.transcripts WHERE turn_id = ANY($1) ORDER BY ordinal")
        .bind([&first, &second].map(String::clone))
        .fetch_all(&all.fleet.pool)
        .await
        .unwrap();
    assert_eq!(noted, [first], "of the second nothing is noted, and of the first nothing is deleted");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_conversation_is_asked_for_again_while_the_sandbox_does_not_answer(pool: PgPool) {
    let all = Running::start(pool).await;
    all.e2b.faults(json!([{ "on": "download", "status": 503, "times": 3 }])).await;
    let first = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    all.fleet.ended(&first).await;
    let failed = all.e2b.acts("fault").await.into_iter().filter(|act| act["detail"]["on"] == "download").count();
    let second = all.fleet.enqueue_in(RECALL, Some("chat")).await.turn_id;
    all.fleet.ended(&second).await;
    assert_eq!((texts(&all, &second).await, failed), (vec![json!("/mock noop")], 3));
    all.stop().await;
}
