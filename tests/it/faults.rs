//! What goes wrong between a worker and E2B, each with what users see of it and what to do.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::local::e2b::Options;
use turnmill::store::PoolChange;

use crate::harness::{Fleet, LocalE2b, PATIENCE, Running, RunningWorker, config, until, use_mock};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_the_address_answers_the_turn_says_what_it_was_and_what_to_do(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.startup_tries = 1).await;
    let old_envd = json!({ "on": "create", "patch": { "envdVersion": "0.1.5" } });
    let cases = [
        (vec![json!({ "on": "create", "status": 404, "message": "template 'x' not found" })], "template_not_found", "--template"),
        (vec![json!({ "on": "create", "status": 404, "message": "page not found" })], "template_not_found", "--api-version v1"),
        (vec![json!({ "on": "create", "status": 400, "message": "Timeout cannot be greater than 1 hours" })], "sandbox_config", "1 hours"),
        (vec![json!({ "on": "create", "status": 503, "should_retry": false, "message": "no" })], "sandbox_config", "503: no"),
        (vec![old_envd, json!({ "on": "upload", "status": 404 })], "envd_too_old", "0.1.5"),
        (vec![json!({ "on": "upload", "status": 507, "message": "not enough disk space" })], "sandbox_disk_full", "more disk"),
    ];
    for (faults, code, words) in cases {
        all.e2b.faults(json!(faults)).await;
        let turn = all.fleet.enqueue("/mock noop").await.turn_id;
        let ended = all.fleet.ended(&turn).await;
        assert_eq!(ended.error_code.as_deref(), Some(code), "{:?}", ended.error_message);
        assert!(ended.error_message.clone().unwrap().contains(words), "{code}: {:?}", ended.error_message);
    }
    assert_eq!(all.agent_starts(), 0);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_address_that_is_not_e2b_s_blocks_the_pool_and_costs_no_turn(pool: PgPool) {
    let all = Running::start(pool).await;
    let wrong = "UPDATE turnmill.pools SET state_at = clock_timestamp() - interval '1 minute' WHERE name = $1";
    let cases = [
        (json!({ "status": 200, "html": true }), "e2b_not_an_api", "check E2B_API_URL"),
        (json!({ "status": 404, "html": true }), "e2b_not_an_api", "check E2B_API_URL"),
        (json!({ "status": 302, "location": "https://elsewhere/" }), "e2b_redirect", "https://elsewhere/"),
    ];
    for (answer, code, words) in cases {
        let mut create = answer.clone();
        create["on"] = "create".into();
        all.e2b.faults(json!([create, { "on": "list", "status": 503, "message": "still not there" }])).await;
        let turn = all.fleet.enqueue("/mock noop").await.turn_id;
        let reason = async || Some(all.fleet.store.pools().await.ok()?.remove(0)).filter(|pool| pool.state == "blocked")?.state_reason;
        let why = until("the pool is blocked", reason).await;
        assert!(why.contains(words), "{why}");
        let waiting = until("it waits", || async { Some(all.fleet.turn(&turn).await).filter(|turn| turn.status == "pending") }).await;
        assert_eq!((waiting.error_code.as_deref(), waiting.waits_for.as_deref()), (Some(code), Some("pool_blocked")));
        // The probe is answered otherwise, which is shown; then as it should be.
        all.fleet.sql(wrong, "default").await;
        until("the news is told", async || reason().await.filter(|why| why.contains("still not there"))).await;
        all.fleet.sql(wrong, "default").await;
        assert_eq!(all.fleet.ended(&turn).await.status, "completed");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_address_where_nobody_listens_is_named(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let mut config = config("http://127.0.0.1:1");
    config.retry.startup_tries = 2;
    let worker = RunningWorker::with(&fleet, config).await;
    let turn = fleet.enqueue("x").await.turn_id;
    let ended = fleet.ended(&turn).await;
    assert_eq!(ended.error_code.as_deref(), Some("e2b_unreachable"));
    let message = ended.error_message.unwrap();
    assert!(message.contains("after 2 tries") && message.contains("127.0.0.1:1") && message.contains("check E2B_DOMAIN"), "{message}");
    worker.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_wrong_key_blocks_the_pool_and_the_turn_waits(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::with(Options { api_key: Some("another".to_owned()), ..Options::default() }).await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let turn = fleet.enqueue("x").await.turn_id;
    until("the pool is blocked", || async { (fleet.store.pools().await.ok()?[0].state == "blocked").then_some(()) }).await;
    let pool = fleet.store.pools().await.unwrap().remove(0);
    assert!(pool.state_reason.unwrap().contains("401"));
    let why = async || sqlx::query_scalar::<_, Option<String>>("SELECT turnmill.wait_reason($1)").bind(&turn).fetch_one(&fleet.pool).await;
    until("the turn waits", || async { (why().await.ok()?.as_deref() == Some("pool_blocked")).then_some(()) }).await;
    assert_eq!(fleet.turn(&turn).await.error_code.as_deref(), Some("e2b_unauthorized"));
    worker.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_that_dies_between_two_calls_costs_another_sandbox(pool: PgPool) {
    let all = Running::start(pool).await;
    all.e2b.faults(json!([{ "on": "upload", "delay_ms": 1000 }])).await;
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    let created = until("it is created", || async { all.e2b.acts("create").await.pop() }).await;
    all.e2b.vanish(created["sandbox"].as_str().unwrap()).await;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.status.as_str(), all.agent_starts()), ("completed", 1), "{:?}", ended.error_message);
    assert_eq!(all.e2b.acts("create").await.len(), 2);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn cut_and_silent_streams_and_a_failing_data_plane_lose_no_block(pool: PgPool) {
    let all = Running::start(pool).await;
    let script = r#"{"delay_ms": 50, "steps": [{"text": "1"}, {"text": "2"}, {"text": "3"}, {"text": "4"}, {"text": "5"}, {"text": "6"}]}"#;
    let faults = json!([
        { "on": "stream", "cut_after_ms": 20, "times": 6 },
        { "on": "start", "status": 502, "message": "The sandbox is running but port is not open" },
        { "on": "upload", "status": 503 },
        { "on": "download", "status": 500 },
    ]);
    all.e2b.faults(faults).await;
    let turn = all.fleet.enqueue(&format!("/mock {script}")).await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    assert_eq!(all.fleet.blocks(&turn).await, all.fleet.expected(&turn, script).await);
    assert_eq!(all.agent_starts(), 1);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_stream_that_falls_silent_is_opened_anew(pool: PgPool) {
    let all = Running::with(pool, |config| config.e2b.keepalive = std::time::Duration::from_secs(1)).await;
    all.e2b.faults(json!([{ "on": "stream", "times": 4 }, { "on": "stream", "stall_after_ms": 100 }])).await;
    let script = r#"{"delay_ms": 200, "steps": [{"text": "1"}, {"text": "2"}, {"text": "3"}]}"#;
    let turn = all.fleet.enqueue(&format!("/mock {script}")).await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    assert_eq!(all.fleet.blocks(&turn).await, all.fleet.expected(&turn, script).await);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn servers_that_leave_things_out_or_know_only_v1_serve_as_well(pool: PgPool) {
    let all = Running::start(pool).await;
    let patch = json!({ "clientID": null, "envdVersion": null, "domain": null, "somethingNew": { "x": 1 } });
    all.e2b.faults(json!([{ "on": "create", "patch": patch }, { "on": "get", "patch": patch }])).await;
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.status, "completed");

    let v1 = PoolChange { api_version: Some("v1".to_owned()), ..PoolChange::default() };
    all.fleet.store.set_pool("default", &v1).await.unwrap();
    // Made, but nobody was told: on v1 a second call would make a second one.
    all.e2b.faults(json!([{ "on": "create", "lose_answer": true }])).await;
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.status, "completed");
    let keyed: Vec<Value> = all.e2b.acts("create").await.into_iter().map(|act| act["detail"]["keyed"].clone()).collect();
    assert_eq!(keyed, [json!(true), json!(false), json!(false)], "one that was lost and killed, and another");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_adopter_of_a_v1_create_asks_for_no_second_sandbox(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let v1 = PoolChange { api_version: Some("v1".to_owned()), ..PoolChange::default() };
    fleet.store.set_pool("default", &v1).await.unwrap();
    e2b.faults(json!([{ "on": "create", "delay_ms": 3000 }])).await;
    let first = RunningWorker::start(&fleet, &e2b.url).await;
    let turn = fleet.enqueue("/mock noop").await.turn_id;
    let nonce = async || -> Option<String> {
        let asked = sqlx::query_scalar("SELECT nonce FROM turnmill.slots WHERE asked_at IS NOT NULL AND turn_id IS NOT NULL");
        asked.fetch_optional(&fleet.pool).await.ok()?
    };
    let before = until("it is being created", nonce).await;
    first.stop().await;
    let second = RunningWorker::start(&fleet, &e2b.url).await;
    assert_eq!(fleet.ended(&turn).await.status, "completed");
    let created = e2b.acts("create").await;
    assert!(created.iter().all(|act| act["detail"]["metadata"]["turnmill_nonce"] != before), "{created:?}");
    second.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_account_with_less_room_than_our_cap_is_found_out_and_charged_to_no_turn(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::with(Options { concurrency: Some(2), ..Options::default() }).await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let mut config = config(&e2b.url);
    config.retry.startup_tries = 1;
    let worker = RunningWorker::with(&fleet, config).await;
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(fleet.enqueue(r#"/mock {"delay_ms": 300, "steps": [{"text": "a"}, {"text": "b"}]}"#).await.turn_id);
    }
    for turn in &turns {
        let ended = fleet.ended(turn).await;
        assert_eq!(ended.error_message, None, "one failed start-up would have been one too many");
    }
    assert_eq!(fleet.store.pools().await.unwrap()[0].account_cap, Some(2));
    fleet.no_slot_held().await;
    worker.stop().await;
    e2b.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn e2b_s_rate_limit_is_waited_for_by_the_whole_pool(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.startup_tries = 1).await;
    let limited = json!([{ "on": "create", "times": 2, "status": 429, "message": "Rate limit exceeded", "retry_after": 1 }]);
    all.e2b.faults(limited).await;
    let (first, second) = (all.fleet.enqueue("/mock noop").await.turn_id, all.fleet.enqueue("/mock noop").await.turn_id);
    let why = until("it waits for the rate", || async { all.fleet.turn(&first).await.waits_for }).await;
    assert_eq!(why, "create_rate");
    for turn in [first, second] {
        assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_slot_that_comes_free_is_taken_at_once_not_at_the_next_poll(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.poll = PATIENCE * 10).await;
    all.fleet.cap("default", 1).await;
    // Long enough that whoever polls has given up looking often.
    for _ in 0..2 {
        all.fleet.enqueue(r#"/mock {"steps": [{"sleep_ms": 3000}, {"text": "x"}]}"#).await;
    }
    let created =
        until("both have had their sandbox", || async { Some(all.e2b.acts("create").await).filter(|acts| acts.len() == 2) }).await;
    let killed = &all.e2b.acts("kill").await[0];
    let gap = created[1]["at_ms"].as_i64().unwrap() - killed["at_ms"].as_i64().unwrap();
    assert!((0..1000).contains(&gap), "{gap} ms from the kill of one to the create of the next");
    all.fleet.no_slot_held().await;
    all.stop().await;
}
