//! An answer that was lost says nothing: what was asked for may have been done.

use serde_json::json;
use sqlx::PgPool;

use crate::harness::Running;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_refused_create_says_nothing_about_one_before_it_whose_answer_was_lost(pool: PgPool) {
    let all = Running::start(pool).await;
    let no_room = json!({ "on": "create", "times": 2, "status": 503, "error_code": "sandbox_capacity_unavailable", "message": "no room" });
    all.e2b.faults(json!([{ "on": "create", "lose_answer": true }, no_room])).await;
    let turn = all.fleet.enqueue("/mock noop").await;
    assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed");
    all.fleet.no_slot_held().await;
    assert_eq!(all.e2b.client().list(&[]).await.unwrap().len(), 0, "no slot is held, so no sandbox may live");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_start_whose_answer_was_lost_counts_as_an_attempt(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.silence_max = std::time::Duration::from_secs(2)).await;
    let silent = json!({ "on": "start", "times": 1000, "status": 502, "message": "The sandbox is running but port is not open" });
    all.e2b.faults(json!([{ "on": "start", "lose_answer": true }, silent])).await;
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    crate::harness::until("another create", || async { (all.e2b.acts("create").await.len() > 1).then_some(()) }).await;
    all.e2b.faults(json!([])).await;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!(ended.status, "completed");
    assert_eq!(all.agent_starts(), usize::try_from(ended.attempt).unwrap(), "the agent was started once per attempt");
    all.stop().await;
}
