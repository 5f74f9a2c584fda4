//! Acts on workers and pools through the dashboard; and that an act and its entry in the audit are there together or not at
//! all, whichever act it is and whatever goes wrong.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{Actor, PoolChange, Renewal, TenantChange};

use crate::end_to_end::mock;
use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, use_mock};
use crate::site::Site;
use crate::visitor::{Visitor, audit};

pub fn ann() -> Actor {
    Actor { name: "ann".to_owned(), token_id: None, reason: "to see".to_owned() }
}

/// Everything that an act could change.
async fn everything(fleet: &Fleet) -> Value {
    let all = "SELECT jsonb_build_object(
        'turns', (SELECT jsonb_agg(jsonb_build_array(id, status) ORDER BY id) FROM turnmill.turns),
        'pools', (SELECT jsonb_agg(to_jsonb(p) ORDER BY name) FROM turnmill.pools p),
        'slots', (SELECT jsonb_agg(jsonb_build_array(id, state, retire) ORDER BY id) FROM turnmill.slots),
        'workers', (SELECT jsonb_agg(jsonb_build_array(id, state, drain_at) ORDER BY id) FROM turnmill.workers),
        'cancels', (SELECT jsonb_agg(turn_id) FROM turnmill.cancel_requests),
        'kills', (SELECT jsonb_agg(sandbox_id) FROM turnmill.sandbox_kills),
        'tenants', (SELECT jsonb_agg(to_jsonb(t) ORDER BY id) FROM turnmill.tenants t),
        'fleet', (SELECT jsonb_agg(to_jsonb(f)) FROM turnmill.fleet f),
        'audit', (SELECT count(*) FROM turnmill.audit))";
    sqlx::query_scalar(all).fetch_one(&fleet.pool).await.unwrap()
}

/// A fleet with something to do each act to: its path, its form.
async fn acts(site: &Site) -> Vec<(String, Vec<(&'static str, &'static str)>)> {
    let fleet = &site.fleet;
    for (name, state) in [("on", "active"), ("off", "paused"), ("down", "active")] {
        let change = PoolChange { cap: Some(2), state: Some(state.to_owned()), ..PoolChange::default() };
        fleet.store.set_pool(name, &change).await.unwrap();
    }
    fleet.store.block_pool("down", "401").await.unwrap();
    let ended = site.say("s0", "hi").await;
    fleet.store.cancel(&ended, None).await.unwrap();
    let running = site.say("s1", "hi").await;
    let worker = fleet.worker("w").await;
    let job = worker.claim_one().await;
    assert_eq!(job.turn_id, running);
    fleet.store.create_asked(&job).await.unwrap().unwrap();
    fleet.store.sandbox_ready(&job, "sbx-1").await.unwrap().unwrap();
    let waiting = site.say("s1", "more").await;
    fleet.store.set_tenant("acme", TenantChange { weight: Some(2.0), ..TenantChange::default() }).await.unwrap();
    vec![
        (format!("/ops/turns/{waiting}/cancel"), vec![]),
        (format!("/ops/turns/{running}/cancel"), vec![]),
        (format!("/ops/turns/{ended}/retry"), vec![]),
        ("/ops/sandboxes/sbx-1/kill".to_owned(), vec![]),
        ("/ops/workers/w/drain".to_owned(), vec![]),
        ("/ops/pools/on/pause".to_owned(), vec![]),
        ("/ops/pools/off/resume".to_owned(), vec![]),
        ("/ops/pools/down/unblock".to_owned(), vec![]),
        ("/ops/pools/on/set".to_owned(), vec![("cap", "7"), ("rate", "2.5"), ("warm", "5m"), ("paused", "7days")]),
        ("/ops/tenant/set".to_owned(), vec![("id", "acme"), ("weight", "3"), ("running_max", "4"), ("budget", "2.5")]),
        ("/ops/fleet/budget".to_owned(), vec![("budget", "100")]),
        ("/ops/fleet/stop".to_owned(), vec![]),
    ]
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_act_and_its_entry_are_there_together_or_not_at_all(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let acts = acts(&site).await;
    let operator = Visitor::operator(&site).await;
    let token = operator.form_token(&acts[0].0).await;
    let form = |more: &[(&'static str, &'static str)]| {
        let mut form = vec![("form_token", token.clone()), ("reason", "why not".to_owned())];
        form.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        form
    };
    let send = async |path: &str, form: Vec<(&'static str, String)>| {
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        operator.post(path, &form).await
    };
    let before = everything(fleet).await;
    // The entry can't be made: at once, or only when all is committed.
    for when in
        ["BEFORE INSERT ON turnmill.audit FOR EACH ROW", "AFTER INSERT ON turnmill.audit DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"]
    {
        let kind = if when.contains("DEFERRABLE") { "CONSTRAINT TRIGGER" } else { "TRIGGER" };
        let full = format!(
            "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no room''; END';
             CREATE {kind} no_room {when} EXECUTE FUNCTION full_disk()"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(full)).execute(&fleet.pool).await.unwrap();
        for (path, more) in &acts {
            let answer = send(path, form(more)).await;
            assert_eq!(answer.status(), 500, "{path}, {when}: {}", answer.text().await.unwrap());
            assert_eq!(everything(fleet).await, before, "{path} was done without its entry, {when}");
        }
        sqlx::raw_sql("DROP TRIGGER no_room ON turnmill.audit").execute(&fleet.pool).await.unwrap();
    }
    // The act is refused.
    let nothing: &[(&str, &str)] = &[];
    for (path, more, status) in [
        ("/ops/turns/nope/cancel".to_owned(), nothing, 404),
        ("/ops/turns/nope/retry".to_owned(), nothing, 404),
        (acts[0].0.replace("/cancel", "/retry"), nothing, 409),
        ("/ops/sandboxes/nope/kill".to_owned(), nothing, 404),
        ("/ops/workers/nope/drain".to_owned(), nothing, 404),
        ("/ops/pools/nope/pause".to_owned(), nothing, 404),
        ("/ops/pools/nope/set".to_owned(), &[("cap", "1")], 404),
        ("/ops/pools/on/explode".to_owned(), nothing, 404),
        ("/ops/pools/on/resume".to_owned(), nothing, 409),
        ("/ops/pools/on/unblock".to_owned(), nothing, 409),
        ("/ops/pools/off/pause".to_owned(), nothing, 409),
        ("/ops/pools/on/set".to_owned(), &[("cap", "2")], 409),
        ("/ops/pools/on/set".to_owned(), &[("cap", "-1")], 400),
        ("/ops/pools/on/set".to_owned(), &[("cap", "5"), ("warm", "2days")], 400),
        ("/ops/tenant/set".to_owned(), &[("id", "nobody"), ("weight", "3")], 404),
        ("/ops/tenant/set".to_owned(), &[("id", "acme"), ("weight", "2")], 409),
        ("/ops/tenant/set".to_owned(), &[("id", "acme"), ("weight", "3"), ("budget", "-1")], 400),
        ("/ops/fleet/resume".to_owned(), nothing, 409),
        ("/ops/fleet/budget".to_owned(), &[("budget", "none")], 409),
        ("/ops/fleet/budget".to_owned(), &[("budget", "x")], 400),
        ("/ops/fleet/explode".to_owned(), nothing, 404),
    ] {
        let answer = send(&path, form(more)).await;
        assert_eq!(answer.status(), status, "{path} {more:?}: {}", answer.text().await.unwrap());
        assert_eq!(everything(fleet).await, before, "{path} {more:?} was refused");
    }
    // And otherwise each is done, once, with its entry.
    for (nth, (path, more)) in acts.iter().enumerate() {
        let answer = send(path, form(more)).await;
        assert_eq!(answer.status(), 303, "{path}: {}", answer.text().await.unwrap());
        let entries = audit(fleet).await;
        assert_eq!(entries.len(), nth + 1, "{path}");
        assert_eq!((entries[0].2.as_str(), entries[0].3.as_str()), ("a test", "why not"));
    }
    let verbs: Vec<String> = audit(fleet).await.into_iter().rev().map(|entry| entry.0).collect();
    assert_eq!(verbs, ["cancel", "cancel", "retry", "kill", "drain", "pause", "resume", "unblock", "set", "set", "set", "stop"]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_many_turns_each_is_done_with_its_entry_or_not_at_all_and_only_by_who_may(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let mut turns = Vec::new();
    for nth in 0..3 {
        turns.push(site.say(&format!("s{nth}"), "hi").await);
    }
    let ids = turns.join("\u{1f}");
    let (viewer, operator) = (Visitor::with(&site, &["ops:read"]).await, Visitor::operator(&site).await);
    let ask = "/ops/bulk?act=cancel&status=pending";
    assert_eq!(viewer.get(ask).await.status(), 403);
    assert!(operator.page(ask).await.contains("This will cancel 3 turns: 3 at once, 0 that run"));
    let token = operator.form_token(ask).await;
    let form = |reason: &'static str| {
        [("form_token", token.clone()), ("act", "cancel".to_owned()), ("ids", ids.clone()), ("reason", reason.to_owned())]
    };
    let send = async |visitor: &Visitor<'_>, reason: &'static str, origin: &str| {
        let form = form(reason);
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        visitor.post_from("/ops/bulk", &form, Some(origin)).await
    };
    let before = everything(fleet).await;
    assert_eq!(send(&viewer, "why not", &site.url).await.status(), 403);
    assert_eq!(send(&operator, "why not", "https://evil.example").await.status(), 403);
    assert_eq!(send(&operator, " ", &site.url).await.status(), 400);
    assert_eq!(operator.post("/ops/bulk", &[("act", "cancel"), ("ids", &ids), ("reason", "no token")]).await.status(), 403);
    assert_eq!(everything(fleet).await, before, "it was refused");
    // The entry of one of them can't be made: that one is not done, the others are.
    let full = format!(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no room''; END';
         CREATE TRIGGER no_room BEFORE INSERT ON turnmill.audit FOR EACH ROW WHEN (NEW.subject = '{}') EXECUTE FUNCTION full_disk()",
        turns[1]
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(full)).execute(&fleet.pool).await.unwrap();
    let done = send(&operator, "runaway client", &site.url).await.text().await.unwrap();
    assert!(done.contains("2 cancelled") && done.contains("1 not done") && done.contains(&turns[1]), "{done}");
    let mut statuses = Vec::new();
    for turn in &turns {
        statuses.push(fleet.turn(turn).await.status);
    }
    assert_eq!(statuses, ["cancelled", "pending", "cancelled"]);
    sqlx::raw_sql("DROP TRIGGER no_room ON turnmill.audit").execute(&fleet.pool).await.unwrap();

    let picked = format!("/ops/bulk?act=retry&of=picked&pick={}&pick={}", turns[0], turns[2]);
    assert!(operator.page(&picked).await.contains("This will enqueue 2 turns again"));
    let again = [turns[0].as_str(), turns[2].as_str()].join("\u{1f}");
    let done = operator.act(&picked, &[("act", "retry"), ("ids", &again), ("reason", "it is mended")]).await.text().await.unwrap();
    assert!(done.contains("2 enqueued again"), "{done}");
    let mut entries = audit(fleet).await;
    entries.sort();
    let entry = |act: &str, turn: &str, why: &str| (act.to_owned(), turn.to_owned(), "a test".to_owned(), why.to_owned());
    let mut expected = vec![
        entry("cancel", &turns[0], "runaway client"),
        entry("cancel", &turns[2], "runaway client"),
        entry("retry", &turns[0], "it is mended"),
        entry("retry", &turns[2], "it is mended"),
    ];
    expected.sort();
    assert_eq!(entries, expected);
    let made: i64 =
        sqlx::query_scalar("SELECT count(*) FROM turnmill.turns WHERE retry_of IS NOT NULL").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(made, 2);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_may_only_look_sees_every_page_and_no_button(pool: PgPool) {
    let site = Site::start(pool).await;
    let acts = acts(&site).await;
    let (viewer, operator) = (Visitor::with(&site, &["ops:read"]).await, Visitor::operator(&site).await);
    let pages = [
        "/ops/sessions",
        "/ops/sessions/s1",
        "/ops/sandboxes",
        "/ops/workers",
        "/ops/pools",
        "/ops/pools/on",
        "/ops/pools/down",
        "/ops/tenants",
        "/ops/tenant?id=acme",
        "/ops/spend",
    ];
    let mut buttons = 0;
    for path in pages {
        let (seen, could) = (viewer.page(path).await, operator.page(path).await);
        assert!(!seen.contains("data-ask") && !seen.contains("/set\"") && !seen.contains("id=\"settings\""), "{path}: {seen}");
        buttons += could.matches("data-ask").count();
    }
    assert!(buttons >= 8, "{buttons}");
    for (path, more) in &acts {
        assert_eq!(viewer.get(path).await.status(), 403, "{path}");
        assert_eq!(viewer.post(path, more).await.status(), 403, "{path}");
    }
    assert!(audit(&site.fleet).await.is_empty());
    for path in pages {
        let response = Visitor::at(&site).get(path).await;
        assert_eq!(response.status(), 303, "{path}");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_is_asked_to_drain_once_while_it_is_alive_and_learns_of_it_with_its_heartbeat(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.worker("w").await;
    fleet.worker("lost").await;
    fleet.let_lease_expire("lost").await;
    let waits = fleet.enqueue("hi").await.turn_id;
    let store = &fleet.store;
    assert_eq!(fleet.read(&waits).await.waits_for.as_deref(), None, "it is about to start");
    assert_eq!(fleet.renew("w").await, Renewal::Extended);
    assert_eq!(store.drain_worker_by(&ann(), "w").await.unwrap(), 0);
    let row = store.workers().await.unwrap().into_iter().find(|row| row.id == "w").unwrap();
    assert_eq!((row.state.as_str(), row.alive, row.drain_at.is_some()), ("draining", true, true));
    assert_eq!(fleet.read(&waits).await.waits_for.as_deref(), Some("no_worker"));
    for worker in ["w", "lost"] {
        let refused = turnmill::store::refused(&store.drain_worker_by(&ann(), worker).await.unwrap_err()).unwrap();
        assert_eq!(refused.wrong, turnmill::store::Wrong::Conflict, "{}", refused.message);
    }
    assert_eq!(fleet.renew("w").await, Renewal::Drain);
    assert_eq!(fleet.renew("w").await, Renewal::Drain, "until it is gone");
    store.release_worker("w").await.unwrap();
    assert!(store.drain_worker_by(&ann(), "w").await.is_err());
    let entries = audit(&fleet).await;
    assert_eq!(entries, [("drain".into(), "w".into(), "ann".into(), "to see".into())]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_that_is_drained_ends_and_another_goes_on_at_the_same_byte(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let first = RunningWorker::with(&fleet, config(&e2b.url)).await;
    let steps: Vec<Value> = (0..40).map(|nth| json!({ "text": format!("step {nth}") })).collect();
    let turn = fleet.enqueue(&mock(&json!({ "delay_ms": 100, "steps": steps }).to_string())).await.turn_id;
    fleet.has_blocks(&turn, 3).await;
    let name = fleet.store.workers().await.unwrap().remove(0).id;
    let second = RunningWorker::with(&fleet, config(&e2b.url)).await;
    assert_eq!(fleet.store.drain_worker_by(&ann(), &name).await.unwrap(), 1);
    first.ended().await;
    let row = fleet.store.workers().await.unwrap().into_iter().find(|row| row.id == name).unwrap();
    assert_eq!((row.state.as_str(), row.released_at.is_some()), ("gone", true), "it ended in order");
    assert_eq!(fleet.ended(&turn).await.status, "completed");
    assert_eq!(fleet.taken(&turn).await, ["claimed", "adopted"]);
    let texts: Vec<Value> = fleet.blocks(&turn).await.iter().map(|block| block[1]["text"].clone()).collect();
    assert_eq!(texts, (0..40).map(|nth| json!(format!("step {nth}"))).collect::<Vec<_>>(), "no block is lost, none twice");
    let all = Running { fleet, e2b, worker: second };
    assert_eq!(all.agent_starts(), 1);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_pool_that_is_paused_starts_nothing_until_it_is_resumed_and_says_who_did_it(pool: PgPool) {
    let all = Running::start(pool).await;
    let site = Site::with(all.fleet.clone(), |_| {}).await;
    let operator = Visitor::operator(&site).await;
    let runs = all.fleet.enqueue("/mock hang").await.turn_id;
    all.fleet.has_blocks(&runs, 1).await;
    let asks = operator.page("/ops/pools/default/pause").await;
    assert!(asks.contains("1 that run go on to their ends; 0 that could start wait"), "{asks}");
    assert_eq!(operator.act("/ops/pools/default/pause", &[("reason", "E2B is ill")]).await.status(), 303);
    let waits = all.fleet.enqueue("/mock noop").await.turn_id;
    let page = operator.page("/ops/pools/default").await;
    assert!(page.contains("by a test: E2B is ill") && page.contains("pool paused"), "{page}");
    assert_eq!(all.fleet.turn(&runs).await.status, "in_progress");
    assert_eq!(all.fleet.turn(&waits).await.status, "pending");
    assert_eq!(operator.act("/ops/pools/default/resume", &[("reason", "well again")]).await.status(), 303);
    assert_eq!(all.fleet.ended(&waits).await.status, "completed");
    assert!(!operator.page("/ops/pools/default").await.contains("by a test: E2B is ill"), "the reason goes with the state");
    all.fleet.store.cancel(&runs, None).await.unwrap();
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn settings_say_what_they_would_change_and_write_nothing_else(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    fleet.cap("default", 3).await;
    let worker = fleet.worker("w").await;
    for session in ["a", "b"] {
        site.say(session, "hi").await;
        worker.claim_one().await;
    }
    let operator = Visitor::operator(&site).await;
    let page = operator.page("/ops/pools/default").await;
    assert!(page.contains("2 of 3") && page.contains("name=\"cap\" value=\"3\""), "{page}");
    let asks = operator.page("/ops/pools/default/set?cap=1&rate=2&burst=10&warm=0&paused=0").await;
    assert!(
        asks.contains("Cap: 3 → 1. 2 sandboxes are held now: none is killed") && asks.contains("no limit of ours → 2 a second"),
        "{asks}"
    );
    assert!(asks.contains("turnmill pool set default --cap 1 --create-rate 2<"), "{asks}");
    assert!(
        asks.contains("name=\"cap\"") && !asks.contains("name=\"burst\"") && !asks.contains("name=\"warm\""),
        "what is not touched is not sent"
    );
    // Somebody else changes another setting meanwhile.
    fleet.store.set_pool("default", &PoolChange { create_burst: Some(4), ..PoolChange::default() }).await.unwrap();
    let query = "/ops/pools/default/set?cap=1&rate=2&burst=10&warm=0&paused=0";
    assert_eq!(operator.act(query, &[("cap", "1"), ("rate", "2"), ("reason", "a smaller plan")]).await.status(), 303);
    let card = fleet.store.pool_cards(Some("default")).await.unwrap().remove(0);
    assert_eq!((card.cap, card.create_rate, card.create_burst, card.retiring), (1, Some(2.0), 4, 1));
    let entry = fleet.store.audit(Some(("pool", "default")), None, 1).await.unwrap().remove(0);
    assert_eq!(entry.detail, json!({ "cap": [3, 1], "create_rate": [null, 2.0] }));
    assert!(operator.page("/ops/pools/default/set?cap=1").await.contains("Nothing would change"));
    assert!(operator.page("/ops/pools/default/set?cap=40").await.contains("39 more sandboxes at once"));
    let kept = operator.page("/ops/pools/default/set?warm=90s&paused=1day").await;
    assert!(
        kept.contains("warm for 1m 30s, then paused for 1day (it was killed)") && kept.contains("--release warm:1m30s,pause:1day"),
        "{kept}"
    );
    let wrong = operator.get("/ops/pools/default/set?cap=lots").await;
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().await.unwrap().contains("Cap is a whole number from 0 to 10000, not “lots”"));
    let waits = fleet.enqueue("hi").await.turn_id;
    assert_eq!(fleet.read(&waits).await.waits_for.as_deref(), Some("no_slot"));
}
