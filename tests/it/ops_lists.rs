//! What the dashboard lists: sessions, sandboxes, workers and pools, by each filter, page after page, and never by counting.

use std::collections::HashSet;

use sqlx::PgPool;
use turnmill::store::{Below, HeldFilter, PoolChange, SessionsWanted};
use turnmill::turn::Ending;

use crate::harness::{Fleet, settle_and_free, until};
use crate::site::Site;
use crate::visitor::Visitor;

/// A hundred sessions of two projects; one runs, one waits for its slot, one has had its turn.
async fn sessions(fleet: &Fleet) {
    fleet.store.set_pool("small", &PoolChange { cap: Some(1), ..PoolChange::default() }).await.unwrap();
    fleet.store.set_pool("none", &PoolChange { cap: Some(0), ..PoolChange::default() }).await.unwrap();
    let sql = "SELECT turnmill.create_session('sess-' || lpad(n::text, 3, '0'), project_id => 'p' || n % 2, user_id => NULL,
                 tenant_id => CASE WHEN n % 10 = 0 THEN 'acme' END, pool => CASE WHEN n % 20 = 0 THEN 'small' END)
               FROM generate_series(1, 100) n WHERE $1 = ''";
    fleet.sql(sql, "").await;
    let worker = fleet.worker("w").await;
    let say = async |session: &str, project: &str| {
        let turn = turnmill::store::Enqueue {
            prompt: "hi".to_owned(),
            project_id: Some(project.to_owned()),
            session_id: Some(session.to_owned()),
            ..turnmill::store::Enqueue::default()
        };
        fleet.store.enqueue(&turn).await.unwrap();
    };
    say("sess-007", "p1").await;
    settle_and_free(&fleet.store, &worker.claim_one().await, Ending::Completed).await;
    say("sess-020", "p0").await;
    worker.claim_one().await;
    say("sess-040", "p0").await;
    say("sess-020", "p0").await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn sessions_are_found_by_each_filter_and_page_after_page(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    sessions(fleet).await;
    let some = |text: &str| Some(text.to_owned());
    let find = async |wanted: SessionsWanted| {
        let (mut all, mut below): (Vec<String>, Below) = (Vec::new(), None);
        loop {
            let page = fleet.store.find_sessions(&wanted, &below, 30).await.unwrap();
            all.extend(page.sessions.iter().map(|session| session.id.clone()));
            below = page.next;
            if below.is_none() {
                break;
            }
        }
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "none twice");
        all
    };
    let any = SessionsWanted::default;
    assert_eq!(find(any()).await.len(), 100);
    assert_eq!(find(SessionsWanted { project: some("p1"), ..any() }).await.len(), 50);
    assert_eq!(find(SessionsWanted { tenant: some("acme"), ..any() }).await.len(), 10);
    assert_eq!(find(SessionsWanted { tenant: some("acme"), pool: some("small"), ..any() }).await.len(), 5);
    assert_eq!(find(SessionsWanted { state: some("running"), ..any() }).await, ["sess-020"]);
    assert_eq!(find(SessionsWanted { state: some("waiting"), ..any() }).await, ["sess-040"]);
    assert_eq!(find(SessionsWanted { state: some("running"), project: some("p1"), ..any() }).await, [""; 0]);
    assert_eq!(find(SessionsWanted { state: some("idle"), ..any() }).await.len(), 98);
    assert_eq!(find(SessionsWanted { text: some("sess-01"), ..any() }).await.len(), 10, "how its id begins");
    assert_eq!(find(SessionsWanted { text: some("-077"), ..any() }).await, ["sess-077"], "somewhere in it");
    assert_eq!(find(SessionsWanted { text: some("%"), ..any() }).await, [""; 0], "no pattern");

    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let first = viewer.page("/ops/sessions").await;
    assert_eq!(first.matches("<tr id=\"row-").count(), 50);
    let next = first.split("below=").nth(2).unwrap().split('"').next().unwrap();
    assert_eq!(viewer.page(&format!("/ops/sessions?below={next}")).await.matches("<tr id=\"row-").count(), 50);
    assert_eq!(viewer.get("/ops/sessions?below=nonsense").await.status(), 400);
    assert_eq!(viewer.get("/ops/turns?below=nonsense").await.status(), 400);
    assert_eq!(viewer.get(&format!("/ops/turns?below={next}")).await.status(), 400, "another list's");
    assert_eq!(viewer.get("/ops/sessions?state=odd").await.status(), 400);
    assert!(viewer.page("/ops/sessions?tenant=nobody").await.contains("No session is like that."));
    // What is shown is shown anew in its place; what is new is counted.
    let again = first.split("hx-get=\"").nth(1).unwrap().split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&");
    site.say("brand-new", "hi").await;
    let patched = viewer.page(&again).await;
    assert_eq!(patched.matches("<tr id=\"row-").count(), 50);
    assert!(patched.contains("1 new") && !patched.contains("brand-new"), "{patched}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_session_s_page_says_what_runs_what_waits_and_what_is_kept(pool: PgPool) {
    let site = Site::start(pool).await;
    sessions(&site.fleet).await;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let busy = viewer.page("/ops/sessions/sess-020").await;
    assert!(busy.contains("running · sandbox") && busy.contains("behind its session") && busy.contains("No sandbox is kept."), "{busy}");
    assert_eq!(busy.matches("<tr id=\"row-").count(), 2);
    let waiting = viewer.page("/ops/sessions/sess-040").await;
    assert!(waiting.contains("Every slot of the pool holds a sandbox"), "{waiting}");
    let idle = viewer.page("/ops/sessions/sess-007").await;
    assert!(idle.contains("idle") && idle.contains("nothing saved") && idle.contains("completed"), "{idle}");
    assert!(viewer.page("/ops/sessions/sess-001").await.contains("It has had none."));
    assert_eq!(viewer.get("/ops/sessions/nope").await.status(), 404);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn sandboxes_are_listed_with_what_is_wrong_first_and_those_that_are_nobody_s(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let worker = fleet.worker("w").await;
    for (session, sandbox) in [("a", "sbx-a"), ("b", "sbx-b")] {
        site.say(session, "hi").await;
        let job = worker.claim_one().await;
        fleet.store.create_asked(&job).await.unwrap().unwrap();
        fleet.store.sandbox_ready(&job, sandbox).await.unwrap().unwrap();
    }
    // As no statement of ours does it.
    fleet.sql("DELETE FROM turnmill.jobs WHERE session_id = $1", "b").await;
    fleet.store.notice_orphan("sbx-lost", "default", "running, no slot knows it").await.unwrap();
    let parked = "INSERT INTO turnmill.parked (sandbox_id, pool, session_id, holds, nonce, create_request, due_at)
                  SELECT 'parked-' || lpad(n::text, 3, '0'), 'default', 'old-' || n, 'turn', 'n' || n, '{}', clock_timestamp() + interval '1 day' + make_interval(secs => n / 7)
                  FROM generate_series(1, 230) n WHERE $1 = ''";
    fleet.sql(parked, "").await;
    let slots = fleet.store.held_slots(&HeldFilter::default(), 10).await.unwrap();
    assert_eq!(
        slots.iter().map(|slot| (slot.sandbox_id.as_deref().unwrap(), slot.leaked)).collect::<Vec<_>>(),
        [("sbx-b", true), ("sbx-a", false)]
    );
    let some = |text: &str| Some(text.to_owned());
    let found = async |filter: HeldFilter| fleet.store.held_slots(&filter, 10).await.unwrap().len();
    let any = HeldFilter::default;
    assert_eq!(found(HeldFilter { state: some("wrong"), ..any() }).await, 1);
    assert_eq!(found(HeldFilter { worker: some("w"), ..any() }).await, 1);
    assert_eq!(found(HeldFilter { pool: some("other"), ..any() }).await, 0);
    assert_eq!(found(HeldFilter { text: some("bx-a"), ..any() }).await, 1);
    let (mut after, mut all) = (None, HashSet::new());
    loop {
        let page = fleet.store.parked_sandboxes(&any(), &after, 50).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.due_at, last.sandbox_id.clone()));
        all.extend(page.into_iter().map(|one| one.sandbox_id));
    }
    assert_eq!(all.len(), 230, "page after page, also where many are due at once");

    let operator = Visitor::operator(&site).await;
    let page = operator.page("/ops/sandboxes").await;
    assert!(page.contains("no turn holds it") && page.contains("running, no slot knows it") && page.contains("within its grace"), "{page}");
    assert_eq!(page.matches("<tr id=\"parked-").count(), 100);
    let next = page.split("after=").nth(2).unwrap().split('"').next().unwrap();
    assert_eq!(operator.page(&format!("/ops/sandboxes?after={next}")).await.matches("<tr id=\"parked-").count(), 100);
    assert!(!operator.page("/ops/sandboxes?state=busy").await.contains("parked-"));
    assert_eq!(operator.get("/ops/sandboxes?state=odd").await.status(), 400);
    for (sandbox, says) in [
        ("sbx-a", "runs in it (phase prepare)"),
        ("sbx-b", "No turn runs in it: its slot leaks."),
        ("sbx-lost", "No slot knows it"),
        ("parked-001", "It is paused, and kept for session old-1"),
    ] {
        let asks = operator.page(&format!("/ops/sandboxes/{sandbox}/kill")).await;
        assert!(asks.contains(says) && asks.contains("A worker does it within seconds."), "{sandbox}: {asks}");
    }
    assert_eq!(operator.act("/ops/sandboxes/sbx-a/kill", &[("reason", "it burns")]).await.status(), 303);
    assert!(operator.page("/ops/sandboxes?q=sbx-a").await.contains("being killed, as somebody asked"));
    assert!(operator.page("/ops/sandboxes/sbx-a/kill").await.contains("Nothing would change"));
    fleet.let_lease_expire("w").await;
    assert!(operator.page("/ops/sandboxes/sbx-b/kill").await.contains("No worker is alive: it is done as soon as one is."));
    assert_eq!(operator.get("/ops/sandboxes/nope/kill").await.status(), 404);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn workers_and_pools_are_shown_as_they_are(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let operator = Visitor::operator(&site).await;
    assert!(operator.page("/ops/workers").await.contains("No worker is alive: turns wait."));
    let worker = fleet.worker("w").await;
    for session in ["a", "b"] {
        site.say(session, "hi").await;
        worker.claim_one().await;
    }
    fleet.worker("lost").await;
    fleet.let_lease_expire("lost").await;
    let asks = operator.page("/ops/workers/w/drain").await;
    assert!(asks.contains("hands its 2 turns over and exits with code 0") && asks.contains("No other worker is alive"), "{asks}");
    fleet.worker("other").await;
    let asks = operator.page("/ops/workers/w/drain").await;
    assert!(asks.contains("1 other worker adopts them"), "{asks}");
    assert!(operator.page("/ops/workers/lost/drain").await.contains("It is not alive"));
    // What is shown may be half a second old.
    until("the page has them", || async {
        let page = operator.page("/ops/worker-list").await;
        (page.contains("2 of 20 turns") && page.contains("✕</span>lost")).then_some(())
    })
    .await;
    assert_eq!(operator.act("/ops/workers/w/drain", &[("reason", "a new kernel")]).await.status(), 303);
    assert!(operator.page("/ops/workers").await.contains("◐</span>draining"), "at once");
    assert!(operator.page("/ops/workers/w/drain").await.contains("It drains already"));

    fleet.store.set_pool("small", &PoolChange { cap: Some(0), ..PoolChange::default() }).await.unwrap();
    fleet.sql("SELECT turnmill.enqueue_turn('x', project_id => 'p1', session_id => 'c', pool => $1)", "small").await;
    let pools = operator.page("/ops/pools").await;
    assert!(
        pools.contains("/ops/turns?reason=no_slot&#38;pool=small") || pools.contains("/ops/turns?reason=no_slot&amp;pool=small"),
        "{pools}"
    );
    let waits = fleet.store.waits_by_pool().await.unwrap();
    assert_eq!(waits.iter().map(|(pool, wait)| (pool.as_str(), wait.turns)).collect::<Vec<_>>(), [("small", 1)]);
    assert_eq!(operator.get("/ops/pools/nope").await.status(), 404);
    fleet.store.block_pool("default", "401: the key is not valid").await.unwrap();
    let page = operator.page("/ops/pools/default").await;
    assert!(page.contains("401: the key is not valid") && page.contains("/ops/pools/default/unblock"), "{page}");
    assert!(operator.page("/ops/pools/default/unblock").await.contains("E2B refused our key: “401: the key is not valid”"));
    assert_eq!(operator.act("/ops/pools/default/unblock", &[("reason", "a new key")]).await.status(), 303);
    assert!(!operator.page("/ops/pools/default").await.contains("401"));
}
