//! *Tenants* and *Spend* of the dashboard: who is held by what, what was spent, and what is done about it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{By, FleetChange, PoolChange, SpendFilter, TenantChange};

use crate::harness::{Claimer, Fleet};
use crate::money::costing;
use crate::ops_acts::ann;
use crate::site::Site;
use crate::visitor::{Visitor, audit};

const SOME_TIME: Duration = Duration::from_secs(600);

/// Runs what there is to the end, at this price each; how many.
async fn work(fleet: &Fleet, worker: &Claimer, usd: f64) -> usize {
    let jobs = worker.claim(10).await;
    for job in &jobs {
        fleet.store.settle(job, &costing(usd), SOME_TIME).await.unwrap().unwrap();
        fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    }
    jobs.len()
}

async fn set(fleet: &Fleet, tenant: &str, running_max: Option<i32>, budget: Option<f64>) {
    let change = TenantChange { running_max: Some(running_max), budget_usd_per_day: Some(budget), ..TenantChange::default() };
    fleet.store.set_tenant(tenant, change).await.unwrap();
}

/// Of acme's budget more is spent than there is; globex has as many running turns as it may; initech waits for nothing.
async fn held(fleet: &Fleet) -> Claimer {
    let worker = fleet.worker("w").await;
    set(fleet, "acme", None, Some(1.0)).await;
    set(fleet, "globex", Some(1), Some(100.0)).await;
    set(fleet, "initech", Some(5), None).await;
    for tenant in ["acme", "initech"] {
        fleet.enqueue_for(tenant).await;
        assert_eq!(work(fleet, &worker, 1.25).await, 1);
    }
    fleet.enqueue_for("acme").await;
    fleet.enqueue_for("globex").await;
    assert_eq!(worker.claim(10).await.len(), 1, "globex's");
    fleet.enqueue_for("globex").await;
    fleet.enqueue_for("globex").await;
    worker
}

/// The row of a tenant.
fn row<'a>(page: &'a str, tenant: &str) -> &'a str {
    let of = page.split(&format!("<tr id=\"tenant-{tenant}\">")).nth(1).unwrap_or_else(|| panic!("{tenant} is not in {page}"));
    of.split("</tr>").next().unwrap()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_tenant_s_row_says_what_holds_it_since_when_and_what_it_has_spent(pool: PgPool) {
    let site = Site::start(pool).await;
    held(&site.fleet).await;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let page = viewer.page("/ops/tenants").await;
    let acme = row(&page, "acme");
    for says in ["✕</span>budget spent", "budget spent</a> 1", "<time ", "$1.25 of $1.00", "125 % spent", "meter class=\"share at-over\""]
    {
        assert!(acme.contains(says), "{says}: {acme}");
    }
    let globex = row(&page, "globex");
    for says in ["◷</span>tenant&#39;s limit", "reason=tenant_limit", "</a> 2", "1 of 1", "$0.00 of $100.00", "✓</span>0 % spent"] {
        assert!(globex.contains(says), "{says}: {globex}");
    }
    let initech = row(&page, "initech");
    assert!(
        initech.contains("○</span>idle") && initech.contains("nothing") && initech.contains("$1.25 <span class=\"dim\">no budget"),
        "{initech}"
    );
    let places: Vec<usize> = ["acme", "globex", "initech"].map(|tenant| page.find(&format!("tenant-{tenant}\"")).unwrap()).into();
    assert!(places.is_sorted(), "who waits longest is first");

    let shown = async |query: &str| {
        let page = viewer.page(&format!("/ops/tenants?{query}")).await;
        ["acme", "globex", "initech"].into_iter().filter(|tenant| page.contains(&format!("tenant-{tenant}\""))).collect::<Vec<_>>()
    };
    assert_eq!(shown("show=waiting").await, ["acme", "globex"]);
    assert_eq!(shown("show=budget").await, ["acme"]);
    assert_eq!(shown("show=tenant_limit").await, ["globex"]);
    assert_eq!(shown("q=e").await, ["acme", "globex", "initech"]);
    assert_eq!(shown("q=ite").await, ["initech"]);
    assert_eq!(shown("q=cme&show=tenant_limit").await, [""; 0]);
    assert!(viewer.page("/ops/tenants?q=nobody").await.contains("No tenant is like that."));
    for wrong in ["show=odd", "after=nonsense", "q=%00"] {
        assert_eq!(viewer.get(&format!("/ops/tenants?{wrong}")).await.status(), 400, "{wrong}");
    }

    let one = viewer.page("/ops/tenant?id=acme").await;
    for says in ["Spent is $1.25 of $1.00", "before midnight UTC", "waits since", "/ops/turns?tenant=acme", "id=\"days\""] {
        assert!(one.contains(says), "{says}: {one}");
    }
    assert!(viewer.page("/ops/tenant?id=globex").await.contains("1 of 1 run. The next starts when one of them ends"));
    for unknown in ["?id=nobody", "?id=", "", "?id=%00", &format!("?id={}", "x".repeat(300))] {
        assert_eq!(viewer.get(&format!("/ops/tenant{unknown}")).await.status(), 404, "{unknown}");
    }
    // What keeps a turn leads to whoever can let it go.
    let turns =
        site.fleet.store.find_turns(&turnmill::store::TurnFilter { status: Some("pending".into()), ..Default::default() }, &None, 9).await;
    for turn in turns.unwrap().turns {
        let href = format!("/ops/tenant?id={}", turn.tenant_id.unwrap());
        assert!(viewer.page(&format!("/ops/turns/{}", turn.id)).await.contains(&format!("href=\"{href}\">Its tenant")), "{href}");
        assert!(
            viewer.page(&format!("/ops/sessions/{}", turn.session_id)).await.contains(&format!("href=\"{href}\">Its tenant")),
            "{href}"
        );
    }
    let now = viewer.page("/ops/now").await;
    assert!(
        now.contains("/ops/tenants?show=budget\">Which tenants") && now.contains("/ops/tenants?show=tenant_limit\">Which tenants"),
        "{now}"
    );
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn tenants_are_walked_through_page_by_page_none_twice_whatever_is_known_of_them(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    // 80 have had a session, 60 have something set, 20 of them both.
    let sql = "SELECT turnmill.create_session('s' || n, project_id => 'p', user_id => NULL, tenant_id => 't-' || lpad(n::text, 3, '0'), pool => NULL)
               FROM generate_series(1, 80) n WHERE $1 = ''";
    fleet.sql(sql, "").await;
    fleet.sql("SELECT turnmill.set_tenant('t-' || lpad(n::text, 3, '0'), 2) FROM generate_series(61, 120) n WHERE $1 = ''", "").await;
    for tenant in ["t-050", "t-110"] {
        fleet.enqueue_for(tenant).await;
    }
    let store = &fleet.store;
    let (mut after, mut all, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = store.tenants_by_id(None, &after, &["t-050".to_owned()], 25).await.unwrap();
        all.extend(page.ids);
        pages += 1;
        assert!(!page.gave_up);
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!((all.len(), pages, all.is_sorted()), (119, 5, true), "all but one");
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 119);
    assert_eq!(store.tenants_by_id(Some("-00"), "", &[], 25).await.unwrap().ids.len(), 9);
    assert_eq!(store.tenants_by_id(Some("%"), "", &[], 25).await.unwrap().ids, [""; 0], "no pattern");

    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let (mut path, mut seen) = ("/ops/tenants".to_owned(), Vec::new());
    loop {
        let page = viewer.page(&path).await;
        seen.extend(page.split("<tr id=\"tenant-").skip(1).map(|row| row.split('"').next().unwrap().to_owned()));
        let Some(next) = page.split("after=").skip(2).find_map(|rest| rest.split('"').next()).filter(|next| !next.is_empty()) else {
            break;
        };
        path = format!("/ops/tenants?after={next}");
    }
    assert_eq!(seen[..2], ["t-050", "t-110"], "who waits is first");
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (120, 120), "and nowhere else");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn more_tenants_wait_than_come_first_and_none_of_them_looks_idle(pool: PgPool) {
    let site = Site::start(pool).await;
    for nth in 0..60 {
        site.fleet.enqueue_for(&format!("t-{nth:02}")).await;
    }
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let page = viewer.page("/ops/tenants").await;
    assert!(page.contains("/ops/tenant?id=t-59") && !page.contains("○ idle") && !page.contains(">idle<"), "{page}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_change_of_a_tenant_does_what_its_dry_run_said_and_undoes_nobody_else_s(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let worker = held(fleet).await;
    let operator = Visitor::operator(&site).await;
    assert_eq!(work(fleet, &worker, 1.0).await, 0, "both are held");
    let query = "/ops/tenant/set?id=acme&budget=3&running_max=&weight=2";
    let asks = operator.page(query).await;
    for says in ["$1.00 → $3.00. $1.25 are spent today: its turns that wait for the budget start again at once.", "Weight: 1 → 2."] {
        assert!(asks.contains(says), "{says}: {asks}");
    }
    assert!(asks.contains("turnmill tenant set --weight 2 --budget-usd-per-day 3 acme"), "{asks}");
    assert!(!asks.contains("name=\"running_max\""), "what is not touched is not sent");
    // Somebody else changes another setting meanwhile.
    fleet.store.set_tenant("acme", TenantChange { running_max: Some(Some(7)), ..TenantChange::default() }).await.unwrap();
    let form = [("id", "acme"), ("budget", "3"), ("weight", "2"), ("reason", "they paid")];
    assert_eq!(operator.act(query, &form).await.status(), 303);
    let card = fleet.store.tenant_cards(&["acme".to_owned()]).await.unwrap().remove(0);
    assert_eq!((card.budget_usd_per_day, card.weight, card.running_max), (Some(3.0), 2.0, Some(7)));
    let entry = fleet.store.audit(Some(("tenant", "acme")), None, 1).await.unwrap().remove(0);
    assert_eq!((entry.act.as_str(), entry.reason.as_str()), ("set", "they paid"));
    assert_eq!(entry.detail, json!({ "budget_usd_per_day": [1.0, 3.0], "weight": [1.0, 2.0] }));
    assert_eq!(work(fleet, &worker, 1.0).await, 1, "acme's goes on, globex' does not");
    let page = operator.page("/ops/tenant?id=acme").await;
    assert!(page.contains("they paid") && page.contains("$2.25 of $3.00"), "{page}");
    assert!(operator.page("/ops/audit").await.contains("/ops/tenant?id=acme"));

    // A page from before somebody else's change sends what it showed; it is taken for what was meant only where it was changed.
    fleet.store.set_tenant("acme", TenantChange { budget_usd_per_day: Some(Some(9.0)), ..TenantChange::default() }).await.unwrap();
    let stale = "/ops/tenant/set?id=acme&budget=3.00&was_budget=3.00&running_max=7&was_running_max=7&weight=5&was_weight=2";
    let asks = operator.page(stale).await;
    assert!(asks.contains("Weight: 2 → 5.") && !asks.contains("$9.00 → "), "{asks}");
    fleet.store.set_tenant("acme", TenantChange { budget_usd_per_day: Some(Some(3.0)), ..TenantChange::default() }).await.unwrap();

    assert_eq!(
        operator
            .act("/ops/tenant/set?id=globex&running_max=none", &[("id", "globex"), ("running_max", "none"), ("reason", "x")])
            .await
            .status(),
        303
    );
    assert_eq!(work(fleet, &worker, 1.0).await, 2);
    assert!(operator.page("/ops/tenant/set?id=acme&budget=3").await.contains("Nothing would change"));
    assert!(operator.page("/ops/tenant/set?id=acme&budget=2").await.contains("none of its turns starts before midnight UTC"));
    assert!(operator.page("/ops/tenant/set?id=acme&budget=0").await.contains("None of its turns starts any more, until it has one"));
    assert!(operator.page("/ops/tenant/set?id=globex&running_max=0").await.contains("none is stopped, and none starts any more"));
    for (query, says) in [
        ("budget=lots", "A day&#39;s budget is a number of dollars from 0 to 1000000, or nothing for no limit, not “lots”"),
        ("running_max=-1", "Most running turns is a whole number from 0"),
        ("weight=0", "Weight is a number above 0"),
    ] {
        let wrong = operator.get(&format!("/ops/tenant/set?id=acme&{query}")).await;
        assert_eq!(wrong.status(), 400, "{query}");
        let text = wrong.text().await.unwrap();
        assert!(text.contains(says), "{query}: {text}");
    }
    assert_eq!(operator.get("/ops/tenant/set?id=nobody&weight=2").await.status(), 404);
    // One of which nothing was set has a row from then on.
    fleet.enqueue_for("new").await;
    assert_eq!(
        operator.act("/ops/tenant/set?id=new&running_max=0", &[("id", "new"), ("running_max", "0"), ("reason", "x")]).await.status(),
        303
    );
    assert_eq!(work(fleet, &worker, 1.0).await, 0);
    assert!(operator.page("/ops/tenants?show=tenant_limit").await.contains("‖</span>may run none"));
    assert!(!fleet.store.change_tenant_by(&ann(), "new", TenantChange { weight: Some(1.0), ..TenantChange::default() }).await.unwrap());
    assert_eq!(audit(fleet).await.len(), 3, "what was refused or changed nothing has no entry");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_a_tenant_is_called_its_page_is_there_and_nothing_of_it_is_markup(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let corpus: BTreeMap<String, String> = serde_json::from_str(include_str!("../fixtures/hostile.json")).unwrap();
    let odd = ["..", ".", "a/b", "a b", "it's; DROP TABLE x", "a&id=b", "ünïcødé", "x\ny", "\u{202e}evil", "--weight", "%2e%2e", "?#"];
    let names: Vec<String> = corpus.into_values().filter(|name| name.chars().count() <= 255).chain(odd.map(str::to_owned)).collect();
    assert!(names.len() > 20);
    let operator = Visitor::operator(&site).await;
    let token = operator.form_token("/ops/fleet/stop").await;
    // Each of them would be an element of a page that takes it for one.
    let harmless = async |path: &str| {
        let response = operator.get(path).await;
        let (status, page) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{path}: {page}");
        for element in ["<script>", "<script src=http", "<img src=x", "<base", "<svg", "<iframe", "<form action=//", "<style", "<math"] {
            assert!(!page.contains(element), "{path} has {element}: {page}");
        }
        page
    };
    for name in &names {
        set(fleet, name, Some(2), Some(0.5)).await;
        let id = encoded(name);
        harmless(&format!("/ops/tenant?id={id}")).await;
        harmless(&format!("/ops/tenant/set?id={id}&budget=0.75")).await;
        let why = format!("for {name}");
        let form = [("id", name.as_str()), ("budget", "0.75"), ("reason", &why), ("form_token", &token)];
        assert_eq!(operator.post("/ops/tenant/set", &form).await.status(), 303, "{name}");
        let card = fleet.store.tenant_cards(std::slice::from_ref(name)).await.unwrap().remove(0);
        assert_eq!((card.id.as_str(), card.budget_usd_per_day, card.running_max), (name.as_str(), Some(0.75), Some(2)));
        let list = harmless(&format!("/ops/tenants?q={id}")).await;
        assert!(list.contains(&format!("href=\"/ops/tenant?id={id}\"")), "{name}: {list}");
    }
    for path in ["/ops/tenants", "/ops/audit", "/ops/spend"] {
        harmless(path).await;
    }
    assert_eq!(audit(fleet).await.len(), names.len().min(100));
}

/// As a form or a link has it.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn spend_is_what_usage_says_by_day_tenant_pool_and_model_and_no_more_than_a_page(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let worker = fleet.worker("w").await;
    for (tenant, usd) in [("acme", 2.0), ("acme", 1.0), ("globex", 0.5)] {
        fleet.enqueue_for(tenant).await;
        work(fleet, &worker, usd).await;
    }
    fleet.store.sum_charges().await.unwrap();
    // The same every day for a while, in another pool; 60 tenants, sandboxes too.
    let before = "INSERT INTO turnmill.spend_days SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date - d, 'small-' || lpad(t::text, 2, '0'), 'other', k.kind, k.model, k.turns, 1,
                    10, 5, 0, 0, 3600, 0.01 FROM generate_series(1, 100) d, generate_series(1, 60) t, (VALUES ('model', 'big', 1), ('sandbox', '', 0)) k (kind, model, turns) WHERE $1 = ''";
    fleet.sql(before, "").await;
    fleet.enqueue_for("globex").await;
    work(fleet, &worker, 0.25).await;
    let store = &fleet.store;
    let month = SpendFilter { days: 30, ..SpendFilter::default() };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    let days = store.spend_days(&month).await.unwrap();
    let usage = store.usage(By::Day, &turnmill::store::UsageFilter::default()).await.unwrap();
    assert_eq!((days.len(), days.windows(2).all(|two| two[0].day < two[1].day)), (30, true));
    for (day, used) in days.iter().zip(&usage) {
        assert_eq!((day.day.to_string(), day.turns, day.unpriced), (used.key.clone(), used.turns, used.unpriced));
        near(day.model_usd, used.model_usd);
        near(day.sandbox_usd, used.sandbox_usd);
    }
    near(days[29].usd(), 3.75);
    near(days.iter().map(turnmill::store::SpendDay::usd).sum(), 3.75 + 29.0 * 1.2);
    let sums = async |by, filter: &SpendFilter| -> Vec<(String, f64)> {
        store.spend_sums(by, filter, 3).await.unwrap().into_iter().map(|sum| (sum.key, (sum.usd * 1e6).round() / 1e6)).collect()
    };
    let of = |rows: &[(&str, f64)]| rows.iter().map(|(key, usd)| ((*key).to_owned(), *usd)).collect::<Vec<_>>();
    assert_eq!(sums(By::Tenant, &month).await, of(&[("acme", 3.0), ("globex", 0.75), ("small-01", 0.58)]));
    assert_eq!(sums(By::Pool, &month).await, of(&[("other", 34.8), ("default", 3.75)]));
    assert_eq!(sums(By::Model, &month).await, of(&[("", 17.4), ("big", 17.4), ("m", 3.75)]));
    let globex = SpendFilter { tenant: Some("globex".into()), ..month.clone() };
    assert_eq!(sums(By::Model, &globex).await, of(&[("m", 0.75), ("", 0.0)]));
    let other = SpendFilter { pool: Some("other".into()), days: 7, tenant: None };
    assert_eq!(sums(By::Pool, &other).await, of(&[("other", 7.2)]));

    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let page = viewer.page("/ops/spend").await;
    for says in
        ["$3.75 <span class=\"dim\">no budget", "$38.55 in the last 30 days", "12 others", "●</span>turns start", "attempts ended before"]
    {
        assert!(page.contains(says), "{says}: {page}");
    }
    assert_eq!(page.matches("<tr id=\"sum-").count(), 51, "fifty, and the others as one");
    assert_eq!(page.matches("data-x=\"").count(), 30);
    assert!(!page.contains("data-ask"), "who may only look has no button");
    let all = viewer.page("/ops/spend?by=pool&days=90&tenant=small-07").await;
    assert!(all.contains("$1.78 in the last 90 days") && all.matches("<tr id=\"sum-").count() == 1, "{all}");
    assert!(viewer.page("/ops/spend?pool=other&days=7").await.contains("$7.20 in the last 7 days"));
    assert!(viewer.page("/ops/spend?tenant=nobody").await.contains("Nothing was spent then."));
    for wrong in ["days=31", "by=turn", "tenant=%00"] {
        assert_eq!(viewer.get(&format!("/ops/spend?{wrong}")).await.status(), 400, "{wrong}");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_fleet_is_stopped_resumed_and_given_a_budget_with_a_reason_and_every_page_says_so(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let worker = fleet.worker("w").await;
    let runs = fleet.enqueue_for("acme").await;
    worker.claim_one().await;
    let waits = fleet.enqueue_for("globex").await;
    let operator = Visitor::operator(&site).await;
    assert!(operator.page("/ops/fleet/resume").await.contains("It is not stopped. Nothing would change."));
    let asks = operator.page("/ops/fleet/stop").await;
    assert!(asks.contains("1 that run go on to their ends") && asks.contains("1 that could start wait"), "{asks}");
    assert_eq!(operator.act("/ops/fleet/stop", &[("reason", "the <key> has leaked")]).await.status(), 303);
    assert_eq!(worker.claim(10).await.len(), 0);
    assert_eq!(
        (fleet.turn(&runs).await.status.as_str(), fleet.read(&waits).await.waits_for.as_deref()),
        ("in_progress", Some("fleet_stopped"))
    );
    let now = operator.page("/ops").await;
    let since = fleet.store.fleet_money().await.unwrap().stopped_at.unwrap().format("%Y-%m-%d %H:%M UTC");
    assert!(now.contains(&format!("The fleet is stopped since {since}: by a test: the &#60;key&#62; has leaked. 1 turn waits.")), "{now}");
    assert!(now.contains("v-degraded") && now.contains("href=\"/ops/spend\">See who, and resume it"), "{now}");
    let page = operator.page("/ops/spend").await;
    assert!(
        page.contains("■</span>stopped") && page.contains("/ops/fleet/resume\" data-ask") && !page.contains("/ops/fleet/stop\""),
        "{page}"
    );
    assert!(operator.page(&format!("/ops/turns/{waits}")).await.contains("href=\"/ops/spend\">The fleet</a>"));
    assert!(operator.page("/ops/tenant?id=globex").await.contains("Somebody has stopped the fleet."));
    assert!(operator.page("/ops/fleet/stop").await.contains("It is stopped already"));
    let again = fleet.store.change_fleet_by(&ann(), &FleetChange::Stop("twice".to_owned())).await.unwrap();
    assert!(!again, "whoever was first has said why");
    assert!(operator.page("/ops/fleet/resume").await.contains("It was stopped for this: “by a test: the"));
    assert_eq!(operator.act("/ops/fleet/resume", &[("reason", "a new key")]).await.status(), 303);
    assert!(!operator.page("/ops").await.contains("The fleet is stopped"), "no more, at once");

    let asks = operator.page("/ops/fleet/budget?budget=0").await;
    assert!(
        asks.contains("no limit → $0.00. No turn starts any more, until it is more.") && asks.contains("--budget-usd-per-day 0<"),
        "{asks}"
    );
    assert_eq!(operator.act("/ops/fleet/budget?budget=0", &[("budget", "0"), ("reason", "a trial")]).await.status(), 303);
    assert_eq!(worker.claim(10).await.len(), 0);
    let page = operator.page("/ops/spend").await;
    assert!(
        page.contains("The fleet&#39;s budget of this day is spent.") || page.contains("The fleet's budget of this day is spent."),
        "{page}"
    );
    assert_eq!(operator.act("/ops/fleet/budget?budget=", &[("budget", "none"), ("reason", "it was one")]).await.status(), 303);
    assert_eq!(worker.claim(10).await.len(), 1);
    for (path, status) in [("/ops/fleet/budget?budget=much", 400), ("/ops/fleet/explode", 404)] {
        assert_eq!(operator.get(path).await.status(), status, "{path}");
    }
    assert!(operator.page("/ops/fleet/budget?budget=").await.contains("Nothing would change"));
    let name = fleet.store.fleet().await.unwrap().name;
    let entries = fleet.store.audit(Some(("fleet", &name)), None, 9).await.unwrap();
    let shown: Vec<(&str, &str, &Value)> = entries.iter().rev().map(|row| (row.act.as_str(), row.reason.as_str(), &row.detail)).collect();
    let why = "by a test: the <key> has leaked";
    assert_eq!(
        shown,
        [
            ("stop", "the <key> has leaked", &json!({ "stopped": [null, why] })),
            ("resume", "a new key", &json!({ "stopped": [why, null] })),
            ("set", "a trial", &json!({ "budget_usd_per_day": [null, 0.0] })),
            ("set", "it was one", &json!({ "budget_usd_per_day": [0.0, null] })),
        ]
    );
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_hour_costs_its_models_and_the_sandboxes_that_run(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    assert!(viewer.page("/ops/spend").await.contains("Sandboxes of default cost nothing here"));
    fleet.store.set_pool("default", &PoolChange { sandbox_usd_per_hour: Some(Some(0.25)), ..PoolChange::default() }).await.unwrap();
    let worker = fleet.worker("w").await;
    for (nth, tenant) in ["a", "b", "c"].into_iter().enumerate() {
        fleet.enqueue_for(tenant).await;
        let job = worker.claim_one().await;
        // The third has none yet.
        if nth < 2 {
            fleet.store.create_asked(&job).await.unwrap().unwrap();
        }
    }
    let minute = "INSERT INTO turnmill.metrics_minute (minute, closed, cost_usd) SELECT date_trunc('minute', clock_timestamp()) - interval '2 minutes', true, 1.5 WHERE $1 = ''";
    fleet.sql(minute, "").await;
    crate::harness::until("the tile has both", || async {
        let now = viewer.page("/ops/now").await;
        now.contains("<dt>Cost per hour</dt><dd>$2.00<small>models $1.50, sandboxes $0.50</small>").then_some(())
    })
    .await;
    let page = viewer.page("/ops/spend").await;
    assert!(page.contains("<dt>Sandboxes, an hour</dt><dd>$0.50<small>2 run now</small>") && !page.contains("cost nothing here"), "{page}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_late_database_leaves_both_pages_there_and_says_so(pool: PgPool) {
    let site = Site::start(pool).await;
    held(&site.fleet).await;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let first = viewer.page("/ops/tenants").await;
    let mut holder = site.fleet.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE turnmill.spend_days IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let late = viewer.page("/ops/tenants").await;
    assert!(late.contains("The database does not answer in time. Shown is what it was"), "{late}");
    assert_eq!(row(&late, "acme"), row(&first, "acme"), "what it was");
    let never = viewer.page("/ops/tenants?q=acme").await;
    assert!(never.contains("The database does not answer in time.") && never.contains("Not known"), "{never}");
    let spend = viewer.page("/ops/spend").await;
    assert!(spend.contains("The database does not answer in time.") && spend.contains("Not known"), "{spend}");
    holder.rollback().await.unwrap();
    assert!(!viewer.page("/ops/tenants").await.contains("in time"));
    assert!(viewer.page("/ops/spend").await.contains("$2.50 in the last 30 days"));
}
