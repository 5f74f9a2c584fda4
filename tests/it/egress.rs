//! The agent's key outside of its sandbox, and what may be reached from there: as E2B is told it.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::config::Config;
use turnmill::store::PoolChange;

use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, until, use_mock};
use crate::keys::environment;

const KEY: &str = "sk-ant-kept-outside";

/// Says which key it has; runs until it may end.
const AGENT: &str = r#"printf '{"type":"content","text":"%s"}\n' "${ANTHROPIC_API_KEY:-none}"; until [ -e "$GO" ]; do sleep 0.05; done"#;

async fn start(pool: PgPool, change: PoolChange) -> Running {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let go = e2b.dir.path().join("go");
    std::fs::write(&go, "").unwrap();
    let agent = Some(["bash", "-c", AGENT].map(str::to_owned).to_vec());
    let agent_env = Some(json!({ "GO": go }));
    fleet.store.set_pool("default", &PoolChange { agent, agent_env, ..change }).await.unwrap();
    let worker = worker(&fleet, &e2b, KEY).await;
    Running { fleet, e2b, worker }
}

async fn worker(fleet: &Fleet, e2b: &LocalE2b, key: &str) -> RunningWorker {
    let environment = environment(&[("ANTHROPIC_API_KEY", key)]);
    RunningWorker::with_keys(fleet, Config { environment, ..config(&e2b.url) }).await
}

/// What a sandbox's network is now, by E2B's own answer.
async fn network(e2b: &LocalE2b, sandbox: &str) -> Value {
    let asked = reqwest::Client::new().get(format!("{}/sandboxes/{sandbox}", e2b.url)).header("X-API-Key", "local").send();
    asked.await.unwrap().json::<Value>().await.unwrap()["network"].clone()
}

async fn sandbox_of(fleet: &Fleet, turn: &str) -> String {
    let asked = sqlx::query_scalar("SELECT sandbox_id FROM turnmill.slots WHERE turn_id = $1 AND sandbox_id IS NOT NULL").bind(turn);
    asked.fetch_one(&fleet.pool).await.unwrap()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_key_is_added_outside_and_neither_sandbox_nor_database_nor_ledger_has_it(pool: PgPool) {
    let allow = Some(Some(vec!["pypi.org".to_owned()]));
    let all = start(pool, PoolChange { inject_key: Some(true), egress_allow: allow, ..PoolChange::default() }).await;
    std::fs::remove_file(all.e2b.dir.path().join("go")).unwrap();
    let turn = all.fleet.enqueue("x").await.turn_id;
    all.fleet.has_blocks(&turn, 1).await;
    assert_eq!(all.fleet.blocks(&turn).await, [json!(["content", { "text": "sk-ant-added-outside-of-this-sandbox" }])]);
    let sandbox = sandbox_of(&all.fleet, &turn).await;
    let expected = json!({
        "allowOut": ["api.anthropic.com", "pypi.org"],
        "denyOut": ["0.0.0.0/0"],
        "rules": { "api.anthropic.com": [{ "transform": { "headers": { "x-api-key": KEY } } }] },
    });
    assert_eq!(network(&all.e2b, &sandbox).await, expected);
    let request: Value = sqlx::query_scalar("SELECT create_request FROM turnmill.slots WHERE turn_id = $1")
        .bind(&turn)
        .fetch_one(&all.fleet.pool)
        .await
        .unwrap();
    assert_eq!(request["network"], json!({ "allowOut": ["pypi.org"], "denyOut": ["0.0.0.0/0"] }), "limited from the first moment");
    let acts = all.e2b.acts("network").await;
    assert_eq!(acts.len(), 1, "before the agent, once");
    assert!(!json!([all.e2b.acts("create").await, acts]).to_string().contains(KEY) && !request.to_string().contains(KEY));

    // Whoever adopts a turn whose agent runs leaves alone what that has; his own key is for the next.
    all.worker.stop().await;
    let worker = worker(&all.fleet, &all.e2b, "sk-ant-the-next-one").await;
    until("the adopter follows the agent", || async {
        let history = all.fleet.history(&turn).await;
        history.get(1).is_some_and(|attempt| !attempt["agent_at"].is_null()).then_some(())
    })
    .await;
    assert_eq!(network(&all.e2b, &sandbox).await, expected);
    std::fs::write(all.e2b.dir.path().join("go"), "").unwrap();
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    Running { worker, ..all }.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_kept_sandbox_gets_the_key_of_its_next_turn_and_loses_it_when_the_pool_says_so(pool: PgPool) {
    let all = start(pool, PoolChange { inject_key: Some(true), release: Some((300, 0)), ..PoolChange::default() }).await;
    let first = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
    assert_eq!(all.fleet.ended(&first).await.error_message, None);
    let kept: String = until("the sandbox is kept", || async {
        let asked = sqlx::query_scalar("SELECT sandbox_id FROM turnmill.slots WHERE state = 'warm'");
        asked.fetch_optional(&all.fleet.pool).await.unwrap()
    })
    .await;
    let rule =
        async |e2b: &LocalE2b| network(e2b, &kept).await["rules"]["api.anthropic.com"][0]["transform"]["headers"]["x-api-key"].clone();
    assert_eq!(rule(&all.e2b).await, KEY);
    all.worker.stop().await;
    let worker = worker(&all.fleet, &all.e2b, "sk-ant-the-next-one").await;
    let second = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
    assert_eq!(all.fleet.ended(&second).await.error_message, None);
    assert_eq!(rule(&all.e2b).await, "sk-ant-the-next-one");
    all.fleet.store.set_pool("default", &PoolChange { inject_key: Some(false), ..PoolChange::default() }).await.unwrap();
    let third = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
    assert_eq!(all.fleet.ended(&third).await.error_message, None);
    assert_eq!(all.fleet.blocks(&third).await[0][1]["text"], "sk-ant-the-next-one", "in the sandbox again");
    assert_eq!(network(&all.e2b, &kept).await, json!({}));
    // The same where the sandbox was made before the pool said anything.
    for inject_key in [true, false] {
        let change = PoolChange { inject_key: Some(inject_key), ..PoolChange::default() };
        all.fleet.store.set_pool("default", &change).await.unwrap();
        sqlx::query("UPDATE turnmill.slots SET create_request = create_request - 'network' WHERE $1")
            .bind(inject_key)
            .execute(&all.fleet.pool)
            .await
            .unwrap();
        let turn = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
        assert_eq!(all.fleet.ended(&turn).await.error_message, None);
        assert_eq!(network(&all.e2b, &kept).await == json!({}), !inject_key);
    }
    all.fleet.store.set_pool("default", &PoolChange { release: Some((0, 0)), ..PoolChange::default() }).await.unwrap();
    let last = all.fleet.enqueue_in("x", Some("s1")).await.turn_id;
    assert_eq!(all.fleet.ended(&last).await.error_message, None);
    Running { worker, ..all }.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_never_starts_in_a_sandbox_whose_limits_could_not_be_set(pool: PgPool) {
    let all = start(pool, PoolChange { inject_key: Some(true), ..PoolChange::default() }).await;
    // What a server says may repeat what it was sent.
    all.e2b.faults(json!([{ "on": "network", "times": 1, "status": 400, "message": format!("bad header value {KEY}") }])).await;
    let turn = all.fleet.enqueue("x").await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!(ended.error_code.as_deref(), Some("sandbox_config"));
    let message = ended.error_message.unwrap();
    assert!(message.contains("what its sandbox may reach can't be set") && message.contains("***") && !message.contains(KEY), "{message}");
    assert_eq!(all.fleet.blocks(&turn).await.len(), 1, "only the error");
    // A hiccup is waited out.
    all.e2b.faults(json!([{ "on": "network", "times": 3, "status": 503, "message": "not now" }])).await;
    let turn = all.fleet.enqueue("x").await.turn_id;
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    // A server that has no such thing says 404, and the sandbox is there.
    all.e2b.faults(json!([{ "on": "network", "times": 1, "status": 404, "message": "404 page not found" }])).await;
    let turn = all.fleet.enqueue("x").await.turn_id;
    let message = all.fleet.ended(&turn).await.error_message.unwrap();
    assert!(message.contains("--inject-key off --egress-allow all"), "{message}");
    all.stop().await;
}
