//! What somebody on call does to workers, sandboxes and pools, by hand and by keyboard, while turns run.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{Enqueue, TenantChange};

use crate::browser::{Browser, ENTER};
use crate::harness::{Fleet, Running, RunningWorker, config};
use crate::ops::OnCall;

/// A turn that says so many things, ten a second.
fn slow(steps: usize) -> String {
    let steps: Vec<Value> = (0..steps).map(|nth| json!({ "text": format!("step {nth}") })).collect();
    format!("/mock {}", json!({ "delay_ms": 100, "steps": steps }))
}

/// What it says in its newest generation.
async fn said(fleet: &Fleet, turn: &str) -> Vec<Value> {
    let blocks = fleet.read(turn).await.blocks;
    let newest = blocks.iter().map(|block| block.generation).max();
    blocks.into_iter().filter(|block| Some(block.generation) == newest).map(|block| block.content["text"].clone()).collect()
}

fn steps(count: usize) -> Vec<Value> {
    (0..count).map(|nth| json!(format!("step {nth}"))).collect()
}

/// Goes to a page of the bar by its key.
async fn go(browser: &Browser, key: char, path: &str) {
    browser.press(&['g', key]).await;
    browser.until(&format!("location.pathname === '{path}' && document.readyState === 'complete'")).await;
}

/// Gives a reason in the dialog that is open, and sends it.
async fn because(browser: &Browser, reason: &str) {
    browser.until("document.querySelector('#dialog[open] #reason') === document.activeElement").await;
    browser.press(&reason.chars().chain([ENTER]).collect::<Vec<_>>()).await;
    browser.until("!document.querySelector('#dialog[open]') && document.readyState === 'complete'").await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_worker_is_drained_and_its_turn_goes_on_elsewhere_with_no_block_lost(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let OnCall { all: Running { fleet, e2b, worker: first }, site, browser } = on_call;
    let turn = fleet.enqueue(&slow(60)).await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    let drained = fleet.store.workers().await.unwrap().remove(0).id;
    let second = RunningWorker::with(&fleet, config(&e2b.url)).await;
    browser.open(&format!("{}/ops", site.url)).await;
    go(&browser, 'w', "/ops/workers").await;
    let row = format!("[id=\"worker-{drained}\"]");
    browser.until("document.querySelectorAll('a[href$=\"/drain\"]').length === 2").await;
    browser.click(&format!("{row} a[href$=\"/drain\"]")).await;
    browser.until("document.querySelector('#dialog[open]').innerText.includes('1 other worker adopts them')").await;
    because(&browser, "a new kernel").await;
    browser.until(&format!("document.querySelector('{row}').innerText.includes('drained, as asked here')")).await;
    first.ended().await;
    assert_eq!(fleet.ended(&turn).await.status, "completed");
    assert_eq!(said(&fleet, &turn).await, steps(60));
    assert_eq!(fleet.taken(&turn).await, ["claimed", "adopted"]);
    let on_call = OnCall { all: Running { fleet, e2b, worker: second }, site, browser };
    on_call.open(&format!("/ops/turns/{turn}")).await;
    on_call.browser.until("document.querySelector('.seams').innerText.includes('0 blocks lost')").await;
    on_call.all_is_well().await;
    assert_eq!(on_call.all.agent_starts(), 1);
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_is_killed_and_its_turn_is_seen_to_start_over_and_end(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let turn = fleet.enqueue(&slow(25)).await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    on_call.open("/ops").await;
    go(browser, 'b', "/ops/sandboxes").await;
    browser.until("document.querySelector('a[href$=\"/kill\"]')").await;
    browser.click("a[href$=\"/kill\"]").await;
    browser.until("document.querySelector('#dialog[open]').innerText.includes('It starts over in a new sandbox')").await;
    because(browser, "it burns the processor").await;
    on_call.open(&format!("/ops/turns/{turn}")).await;
    browser.until("document.querySelector('.over')?.innerText.includes('2')").await;
    browser.until("document.querySelector('#turn-title').innerText.includes('completed')").await;
    assert_eq!(said(fleet, &turn).await, steps(25));
    on_call.open("/ops/audit").await;
    browser.until("document.querySelector('main').innerText.includes('it burns the processor')").await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_pool_is_paused_its_turns_say_why_they_wait_and_it_is_resumed_smaller(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    on_call.open("/ops").await;
    go(browser, 'p', "/ops/pools").await;
    // By keyboard: to its row, into it, and to its button.
    browser.press(&['j']).await;
    browser.press(&[ENTER]).await;
    browser.until("location.pathname === '/ops/pools/default' && document.querySelector('a[href$=\"/pause\"]')").await;
    browser.value("document.querySelector('a[href$=\"/pause\"]').focus()").await;
    browser.press(&[ENTER]).await;
    because(browser, "E2B is ill").await;
    let waits = fleet.enqueue("/mock noop").await.turn_id;
    browser.until("document.querySelector('#pool').innerText.includes('E2B is ill')").await;
    browser.until("document.querySelector('#pool').innerText.includes('pool paused')").await;
    browser.click("section a[href*=\"reason=pool_paused\"]").await;
    browser.until(&format!("document.getElementById('row-{waits}').innerText.includes('pool paused')")).await;

    on_call.open("/ops/pools/default").await;
    browser.value("(document.getElementById('cap').value = '', document.getElementById('cap').focus())").await;
    browser.press(&['2', ENTER]).await;
    browser.until("document.querySelector('#ask-title')?.innerText === 'Change pool default?'").await;
    browser.until("document.querySelector('.ask').innerText.includes('Cap: 4 → 2.')").await;
    browser.value("document.getElementById('reason').focus()").await;
    browser.press(&"half of it".chars().chain([ENTER]).collect::<Vec<_>>()).await;
    browser.until("document.querySelector('#pool')?.innerText.includes('of 2')").await;
    browser.click("a[href$=\"/resume\"]").await;
    because(browser, "well again").await;
    assert_eq!(fleet.ended(&waits).await.status, "completed");
    browser.until("document.querySelector('#pool-title').innerText.includes('active')").await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_page_has_its_key_and_stands_closer_together_for_whoever_wants_that(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let browser = &on_call.browser;
    on_call.open("/ops").await;
    let pages = [
        ('t', "/ops/turns"),
        ('s', "/ops/sessions"),
        ('b', "/ops/sandboxes"),
        ('w', "/ops/workers"),
        ('p', "/ops/pools"),
        ('e', "/ops/tenants"),
        ('m', "/ops/spend"),
        ('a', "/ops/audit"),
        ('n', "/ops"),
    ];
    let tall = "document.querySelector('main').scrollHeight";
    let before = browser.value(tall).await.as_f64().unwrap();
    for (key, path) in pages {
        go(browser, key, path).await;
        assert_eq!(browser.texts("nav [aria-current=page]").await.len(), 1, "{path}");
    }
    browser.press(&['d']).await;
    browser.until("document.documentElement.dataset.density === 'compact'").await;
    browser.until("document.getElementById('density').getAttribute('aria-pressed') === 'true'").await;
    assert!(browser.value(tall).await.as_f64().unwrap() < before, "it is closer together");
    // Remembered, and there from the first moment: the server says it.
    on_call.open("/ops/workers").await;
    assert_eq!(browser.value("document.documentElement.dataset.density").await, "compact");
    assert_eq!(browser.axe().await, Vec::<String>::new(), "and no less accessible");
    browser.value("document.getElementById('density').focus()").await;
    browser.press(&[ENTER]).await;
    browser.until("!document.documentElement.dataset.density").await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_tenant_held_by_its_budget_is_found_and_raised_and_its_turn_goes_on(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let change = TenantChange { budget_usd_per_day: Some(Some(0.0)), ..TenantChange::default() };
    fleet.store.set_tenant("acme", change).await.unwrap();
    let turn = Enqueue {
        prompt: "/mock noop".to_owned(),
        project_id: Some("p1".to_owned()),
        tenant_id: Some("acme".to_owned()),
        ..Enqueue::default()
    };
    let held = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    // From what waits, to whose it is, to what holds it.
    on_call.open("/ops").await;
    browser.until("document.querySelector('a.more-of[href=\"/ops/tenants?show=budget\"]')").await;
    browser.click("a.more-of[href=\"/ops/tenants?show=budget\"]").await;
    browser.until("document.querySelector('#tenant-acme')?.innerText.includes('may spend nothing')").await;
    browser.press(&['j']).await;
    browser.press(&[ENTER]).await;
    browser
        .until("document.querySelector('#tenant-title')?.innerText.includes('budget spent') && document.readyState === 'complete'")
        .await;
    browser.value("(document.querySelector('#budget').value = '', document.querySelector('#budget').focus())").await;
    browser.press(&['2', '.', '5', ENTER]).await;
    browser.until("document.querySelector('.about')?.innerText.includes('$0.00 → $2.50') && document.readyState === 'complete'").await;
    assert_eq!(fleet.turn(&held).await.status, "pending", "nothing is done before it is agreed to");
    browser.value("document.querySelector('#reason').focus()").await;
    browser.press(&"they pay".chars().chain([ENTER]).collect::<Vec<_>>()).await;
    browser.until("location.pathname === '/ops/tenant' && document.querySelector('#tenant').innerText.includes('they pay')").await;
    assert_eq!(fleet.ended(&held).await.status, "completed");
    browser.until("document.querySelector('#tenant-title').innerText.includes('idle')").await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_fleet_is_stopped_what_runs_goes_on_and_it_is_resumed(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let runs = fleet.enqueue(&slow(30)).await.turn_id;
    fleet.has_blocks(&runs, 1).await;
    on_call.open("/ops").await;
    go(browser, 'm', "/ops/spend").await;
    browser.until("document.querySelector('.u-legend') && document.querySelector('a[href=\"/ops/fleet/stop\"]')").await;
    browser.click("a[href=\"/ops/fleet/stop\"]").await;
    browser.until("document.querySelector('#dialog[open]').innerText.includes('1 that run go on to their ends')").await;
    because(browser, "the key has leaked").await;
    browser.until("document.querySelector('#spend-title').innerText.includes('stopped')").await;
    let waits = fleet.enqueue("/mock noop").await.turn_id;
    assert_eq!(fleet.ended(&runs).await.status, "completed");
    assert_eq!(said(fleet, &runs).await, steps(30), "what ran went on");
    go(browser, 'n', "/ops").await;
    browser.until("document.querySelector('.sentence').innerText.includes('The fleet is stopped since')").await;
    browser.until("document.querySelector('.sentence').innerText.includes('the key has leaked. 1 turn waits.')").await;
    assert_eq!(fleet.turn(&waits).await.status, "pending");
    browser.click(".sentence a[href=\"/ops/spend\"]").await;
    browser.until("document.querySelector('a[href=\"/ops/fleet/resume\"]') && document.readyState === 'complete'").await;
    browser.click("a[href=\"/ops/fleet/resume\"]").await;
    because(browser, "a new key").await;
    assert_eq!(fleet.ended(&waits).await.status, "completed");
    browser.until("document.querySelector('#spend-title').innerText.includes('turns start')").await;
    let audit = fleet.store.audit(None, None, 10).await.unwrap();
    assert_eq!(audit.iter().map(|row| row.reason.as_str()).collect::<Vec<_>>(), ["a new key", "the key has leaked"]);
    on_call.all_is_well().await;
    on_call.stop().await;
}
