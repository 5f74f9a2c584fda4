//! The dashboard, as somebody on call uses it, with a live fleet behind it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{FleetChange, HeldFilter, PoolChange, TenantChange};

use crate::browser::{Browser, ENTER};
use crate::harness::Running;
use crate::site::Site;

/// A fleet and somebody who looks at it.
pub struct OnCall {
    pub all: Running,
    pub site: Site,
    pub browser: Browser,
}

impl OnCall {
    pub async fn start(pool: PgPool) -> Self {
        let all = Running::start(pool).await;
        let (site, browser) = tokio::join!(Site::open(all.fleet.clone(), |_| {}), Browser::start());
        browser.client.set_window_size(1280, 900).await.unwrap();
        Self { all, site, browser }
    }

    pub async fn open(&self, path: &str) {
        self.browser.open(&format!("{}{path}", self.site.url)).await;
    }

    /// The page has said nothing of an error, and nothing of it was refused by its policy.
    pub async fn all_is_well(&self) {
        assert_eq!(self.browser.blocked().await, Vec::<String>::new());
        assert_eq!(self.browser.complaints().await, Vec::<String>::new());
    }

    pub async fn stop(self) {
        self.browser.close().await;
        self.all.stop().await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_stuck_turn_is_found_understood_and_cancelled_and_the_next_one_goes_on(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let stuck = fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    let behind = fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    fleet.has_blocks(&stuck, 1).await;

    on_call.open("/ops").await;
    // It refreshes itself: what waits and why, and a cell of the board that is the turn.
    browser.until("document.querySelector('#board a.c-agent')").await;
    browser.until("document.querySelector('.side').innerText.includes('behind its session')").await;
    on_call.all_is_well().await;
    browser.click("#board a.c-agent").await;
    browser.until("document.querySelector('#turn-title')?.innerText.includes('running')").await;
    assert_eq!(browser.texts(".head-row .id").await.concat(), stuck);
    browser.until("document.querySelectorAll('#said .b').length >= 1").await;

    browser.click("a.danger").await;
    browser.until("document.querySelector('#dialog[open] #reason') === document.activeElement").await;
    let reason: Vec<char> = "it hangs in its tool".chars().chain([ENTER]).collect();
    browser.press(&reason).await;
    browser.until("document.querySelector('#turn-title')?.innerText.includes('cancelled')").await;
    assert_eq!(fleet.ended(&stuck).await.status, "cancelled");
    let audit = fleet.store.audit(None, None, 10).await.unwrap();
    assert_eq!((audit.len(), audit[0].reason.as_str(), audit[0].subject.as_str()), (1, "it hangs in its tool", stuck.as_str()));
    assert_eq!(fleet.ended(&behind).await.status, "completed");
    on_call.open("/ops/audit").await;
    browser.until("document.querySelector('main').innerText.includes('it hangs in its tool')").await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_transcript_grows_while_it_is_read_and_a_list_is_patched_in_its_place(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let steps: Vec<Value> = (0..12).map(|nth| json!({ "text": format!("step {nth}") })).collect();
    let turn = fleet.enqueue(&format!("/mock {}", json!({ "delay_ms": 300, "steps": steps }))).await.turn_id;
    fleet.has_blocks(&turn, 2).await;
    on_call.open(&format!("/ops/turns/{turn}")).await;
    browser.until("document.querySelectorAll('#said .b').length >= 4").await;
    browser.until("document.querySelector('#said-state').textContent === 'That was all.'").await;
    let shown = browser.texts("#said .b .text p").await;
    assert_eq!(shown, (0..12).map(|nth| format!("step {nth}")).collect::<Vec<_>>(), "each once, in order");
    browser.until("document.querySelector('#turn-title').innerText.includes('completed')").await;

    on_call.open("/ops/turns").await;
    browser.until(&format!("document.getElementById('row-{turn}')")).await;
    let later = fleet.enqueue("/mock noop").await.turn_id;
    browser.until("document.querySelector('.pill')?.textContent.includes('1 new')").await;
    assert_eq!(browser.value(&format!("document.getElementById('row-{later}')")).await, Value::Null, "nothing is pushed in between");
    browser.click(".pill").await;
    browser.until(&format!("document.getElementById('row-{later}')")).await;
    on_call.all_is_well().await;
    on_call.stop().await;
}

/// What is wider than the window, and makes the page so; what scrolls in a place of its own does not.
const WIDER: &str = "return document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest('.scroll *, nav *'))
    .map((one) => one.outerHTML.slice(0, 200)).concat(document.documentElement.scrollWidth)";

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_page_is_for_everybody_in_both_themes(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let done = fleet.enqueue("/mock tools").await.turn_id;
    fleet.ended(&done).await;
    let hangs = fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    let behind = fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    fleet.has_blocks(&hangs, 1).await;
    fleet.store.close_minutes().await.unwrap();
    fleet.store.notice_orphan("sbx-lost", "default", "running, no slot knows it").await.unwrap();
    let actor = turnmill::store::Actor { name: "ann".to_owned(), token_id: None, reason: "a trial".to_owned() };
    fleet.store.set_pool("ill", &PoolChange { cap: Some(2), ..PoolChange::default() }).await.unwrap();
    fleet.store.change_pool_by(&actor, "ill", "set", &["active"], &PoolChange { cap: Some(3), ..PoolChange::default() }).await.unwrap();
    fleet.store.block_pool("ill", "401: the key is not valid").await.unwrap();
    let tenant = TenantChange { running_max: Some(Some(2)), budget_usd_per_day: Some(Some(0.0)), ..TenantChange::default() };
    fleet.store.set_tenant("acme", tenant).await.unwrap();
    fleet.store.change_tenant_by(&actor, &"long-".repeat(50), tenant).await.unwrap();
    let held = "SELECT turnmill.enqueue_turn('hi', project_id => 'p1', session_id => 'held', tenant_id => 'acme') WHERE $1 = ''";
    fleet.sql(held, "").await;
    fleet.store.change_fleet_by(&actor, &FleetChange::Budget(Some(1000.0))).await.unwrap();
    fleet.store.sum_charges().await.unwrap();
    let worker = fleet.store.workers().await.unwrap().remove(0).id;
    let sandbox = fleet.store.held_slots(&HeldFilter::default(), 1).await.unwrap().remove(0).sandbox_id.unwrap();
    let pages = [
        ("now", "/ops".to_owned()),
        ("turns", "/ops/turns".to_owned()),
        ("turn", format!("/ops/turns/{done}")),
        ("running", format!("/ops/turns/{hangs}")),
        ("cancel", format!("/ops/turns/{hangs}/cancel")),
        ("bulk", "/ops/bulk?act=cancel&status=in_progress".to_owned()),
        ("sessions", "/ops/sessions".to_owned()),
        ("session", "/ops/sessions/chat".to_owned()),
        ("sandboxes", "/ops/sandboxes".to_owned()),
        ("kill", format!("/ops/sandboxes/{sandbox}/kill")),
        ("workers", "/ops/workers".to_owned()),
        ("drain", format!("/ops/workers/{worker}/drain")),
        ("pools", "/ops/pools".to_owned()),
        ("pool", "/ops/pools/ill".to_owned()),
        ("set", "/ops/pools/ill/set?cap=1&rate=2".to_owned()),
        ("tenants", "/ops/tenants".to_owned()),
        ("tenant", "/ops/tenant?id=acme".to_owned()),
        ("tenant-set", "/ops/tenant/set?id=acme&budget=3&weight=2".to_owned()),
        ("no-tenants", "/ops/tenants?q=nobody".to_owned()),
        ("spend", "/ops/spend".to_owned()),
        ("spend-model", "/ops/spend?by=model&days=7&tenant=acme".to_owned()),
        ("stop", "/ops/fleet/stop".to_owned()),
        ("audit", "/ops/audit".to_owned()),
        ("missing", "/ops/turns/nope".to_owned()),
        ("none", "/ops/sessions?tenant=nobody".to_owned()),
        ("no-sandboxes", "/ops/sandboxes?q=nothing".to_owned()),
    ];
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for (name, path) in &pages {
            on_call.open(path).await;
            browser.until("document.readyState === 'complete'").await;
            browser.run("for (const one of document.querySelectorAll('details')) one.open = true", Value::Null).await;
            browser.screenshot(&format!("ops-{name}-{scheme}")).await;
            assert_eq!(browser.axe().await, Vec::<String>::new(), "{path} in {scheme}");
            on_call.all_is_well().await;
        }
    }
    // Nothing is wider than what it is looked at with, from a small telephone to a wall.
    for (width, height) in [(360, 800), (1280, 900), (3840, 2160)] {
        browser.size(width, height).await;
        for (name, path) in &pages {
            on_call.open(path).await;
            assert_eq!(browser.run(WIDER, Value::Null).await, json!([]), "{path} at {width}");
            browser.screenshot(&format!("ops-{name}-{width}")).await;
        }
    }
    fleet.store.cancel(&hangs, None).await.unwrap();
    fleet.ended(&behind).await;
    on_call.stop().await;
}

/// Elements that markdown and the page itself make.
const ELEMENTS: &str = "div article a span details summary p button pre code em strong del u ul ol li h1 h2 h3 h4 h5 h6 hr br table thead tbody tr th td \
                        blockquote mark";
const ATTRIBUTES: &str = "id class href title open rel target type start hx-get hx-target hx-swap";

const STRANGERS: &str = "const [elements, attributes] = arguments[0].map((words) => new Set(words.split(' ')));
    return [...document.querySelectorAll('#said *')].filter((one) => !elements.has(one.localName)
        || [...one.attributes].some(({ name }) => !attributes.has(name) && !name.startsWith('data-'))
        || (one.localName === 'a' && !/^(https?:|mailto:|file:.*#b-)/.test(one.href)))
      .map((one) => one.outerHTML.slice(0, 200))";

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_an_agent_says_does_nothing_in_the_dashboard_nor_in_an_exported_file(pool: PgPool) {
    let on_call = OnCall::start(pool).await;
    let (fleet, browser) = (&on_call.all.fleet, &on_call.browser);
    let corpus: BTreeMap<String, String> = serde_json::from_str(include_str!("../fixtures/hostile.json")).unwrap();
    let mut steps = Vec::new();
    for (name, text) in &corpus {
        let call = |failed: bool| json!({ "name": text, "input": { "text": text, text.clone(): name }, "result": text, "failed": failed });
        steps.extend([json!({ "thinking": text }), json!({ "text": text }), json!({ "tool": call(false) }), json!({ "tool": call(true) })]);
    }
    let script = on_call.all.e2b.dir.path().join("hostile-script.json");
    std::fs::write(&script, json!({ "steps": steps }).to_string()).unwrap();
    let turn = fleet.enqueue(&format!("/mock {}", script.display())).await.turn_id;
    assert_eq!(fleet.ended(&turn).await.status, "completed");
    on_call.open(&format!("/ops/turns/{turn}")).await;
    browser.until("document.querySelectorAll('#said .b').length > 100").await;
    while browser.value("document.querySelector('.earlier') !== null").await == true {
        let before = browser.value("document.querySelectorAll('#said .b').length").await;
        browser.run("document.querySelector('.earlier').click()", Value::Null).await;
        browser.until(&format!("document.querySelectorAll('#said .b').length > {before}")).await;
    }
    nothing_happened(&on_call).await;
    // A tool's words are there letter by letter.
    let shown = browser.texts("#said .b-result pre").await;
    for (name, text) in &corpus {
        assert!(shown.contains(text), "{name}: {text:?}");
    }
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true", Value::Null).await;
    nothing_happened(&on_call).await;

    let file = reqwest::get(format!("{}/ops/turns/{turn}/export", on_call.site.url)).await.unwrap().bytes().await.unwrap();
    let path = on_call.all.e2b.dir.path().join("turn.html");
    std::fs::write(&path, file).unwrap();
    browser.requests().await;
    browser.open(&format!("file://{}", path.display())).await;
    nothing_happened(&on_call).await;
    for (name, text) in &corpus {
        assert!(browser.texts("#said .b-result pre").await.contains(text), "{name}: {text:?}");
    }
    on_call.stop().await;
}

async fn nothing_happened(on_call: &OnCall) {
    let browser = &on_call.browser;
    browser.client.get_alert_text().await.expect_err("no dialog is open");
    assert_eq!(browser.value("typeof window.__pwned").await, "undefined");
    assert_eq!(browser.run(STRANGERS, json!([ELEMENTS, ATTRIBUTES])).await, json!([]));
    assert_eq!(browser.client.windows().await.unwrap().len(), 1);
    let ours = |url: &String| url.starts_with(&format!("{}/ops", on_call.site.url)) || url.starts_with("file:///") || url == "about:blank";
    let elsewhere: Vec<String> = browser.requests().await.into_iter().filter(|url| !ours(url)).collect();
    assert_eq!(elsewhere, Vec::<String>::new());
    assert_eq!(browser.blocked().await, Vec::<String>::new(), "nothing had to be stopped");
}
