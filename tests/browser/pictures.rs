//! The pictures in docs/ops: a fleet with something of everything, made to be looked at. Does nothing unless it is told where
//! to put them (`scripts/pictures` does).

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use turnmill::e2b::ApiVersion;
use turnmill::store::{Actor, FleetChange, PoolChange, TenantChange};

use crate::browser::Browser;
use crate::harness::{Fleet, LocalE2b, RunningWorker, config, until, use_mock};
use crate::site::Site;

/// Somebody who has done something.
fn who(name: &str, reason: &str) -> Actor {
    Actor { name: name.to_owned(), token_id: None, reason: reason.to_owned() }
}

/// What people ask, and what agents do about it.
const TASKS: [(&str, &str, &str); 8] = [
    ("chat-hanna", "acme", "Fix the login bug that logs people out at midnight, and say why it was so."),
    ("chat-7f31", "acme", "Make the export twice as fast; measure before and after."),
    ("design-review", "globex", "Look through the pull request and tell me what worries you."),
    ("chat-omar", "globex", "The nightly job fails on Sundays only. Find out why."),
    ("migration-42", "initech", "Write the migration to split the address column."),
    ("chat-lena", "initech", "Write a test for each branch of the retry policy."),
    ("docs-1", "umbrella", "Bring the README up to date with what the code does."),
    ("chat-9aa0", "acme", "Which of our dependencies nobody keeps any more?"),
];

async fn say(fleet: &Fleet, nth: usize, script: &str) -> String {
    let (session, tenant, _) = TASKS[nth % TASKS.len()];
    let turn = turnmill::store::Enqueue {
        prompt: format!("/mock {script}"),
        project_id: Some(["web", "api"][nth % 2].to_owned()),
        session_id: Some(session.to_owned()),
        tenant_id: Some(tenant.to_owned()),
        user_id: Some(["hanna", "omar", "lena"][nth % 3].to_owned()),
        ..turnmill::store::Enqueue::default()
    };
    fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap()
}

/// Something of everything; the last worker is the one that stays.
async fn scene(fleet: &Fleet, e2b: &LocalE2b) -> (Vec<RunningWorker>, String, String) {
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let kept = PoolChange {
        cap: Some(12),
        create_rate: Some(Some(5.0)),
        release: Some((600, 604_800)),
        sandbox_max_s: Some(86_400),
        turn_timeout_s: Some(3600),
        ..PoolChange::default()
    };
    fleet.store.set_pool("default", &kept).await.unwrap();
    fleet.store.set_pool("gpu", &PoolChange { cap: Some(4), ..PoolChange::default() }).await.unwrap();
    fleet.store.set_pool("trial", &PoolChange { cap: Some(2), ..PoolChange::default() }).await.unwrap();
    let paused = PoolChange { release: Some((0, 604_800)), ..kept.clone() };
    let start = async |turns: u32| {
        let mut config = config(&e2b.url);
        config.worker.turns_max = turns.try_into().unwrap();
        config.worker.reconcile = Duration::from_secs(1);
        RunningWorker::with(fleet, config).await
    };
    let mut workers = vec![start(4).await];
    for nth in (0..TASKS.len()).rev() {
        // The first of these are paused after their turn.
        fleet.store.set_pool("default", if nth > 5 { &paused } else { &kept }).await.unwrap();
        let ended = say(fleet, nth, if nth == 3 { "api-error" } else { "tools" }).await;
        fleet.ended(&ended).await;
    }
    let steps: Vec<_> = (0..20).map(|nth| json!({ "thinking": format!("Step {nth}.") })).collect();
    let busy =
        json!({ "delay_ms": 400, "steps": steps.into_iter().chain([json!({ "sleep_ms": 600_000 })]).collect::<Vec<_>>() }).to_string();
    for nth in 0..5 {
        // The first worker has two of them, to be taken over.
        if nth == 2 {
            workers.extend([start(8).await, start(6).await]);
        }
        let running = say(fleet, nth, &busy).await;
        fleet.has_blocks(&running, 1).await;
    }
    say(fleet, 0, "noop").await;
    say(fleet, 0, "noop").await;
    let by_hand = PoolChange {
        state: Some("paused".into()),
        state_reason: Some("by hanna: E2B's GPU region is down".into()),
        ..PoolChange::default()
    };
    fleet.store.change_pool_by(&who("hanna", "E2B's GPU region is down"), "gpu", "pause", &["active"], &by_hand).await.unwrap();
    for nth in 0..3 {
        let sql = "SELECT turnmill.enqueue_turn('Train the small model again', project_id => 'ml', session_id => 'gpu-' || $1, tenant_id => 'acme', pool => 'gpu')";
        fleet.sql(sql, &nth.to_string()).await;
    }
    fleet.store.block_pool("trial", "E2B answered 401: the API key is not valid").await.unwrap();
    let us = fleet.store.fleet().await.unwrap().id;
    let labels = json!({ "turnmill_fleet": us, "turnmill_nonce": "n-1", "turnmill_pool": "default", "turnmill_turn": "turn_0199c0de" });
    let request = json!({ "templateID": "x", "timeout": 600, "metadata": labels });
    e2b.client().create(ApiVersion::V2, "n-1", &request, Duration::from_secs(10)).await.unwrap();
    until("it is noticed", || async { fleet.store.orphans(1).await.unwrap().pop() }).await;
    fleet
        .store
        .change_pool_by(
            &who("omar", "the new plan allows it"),
            "default",
            "set",
            &["active"],
            &PoolChange { cap: Some(16), ..PoolChange::default() },
        )
        .await
        .unwrap();
    let gone = fleet.store.workers().await.unwrap().pop().unwrap().id;
    fleet.store.drain_worker_by(&who("lena", "its host gets a new kernel"), &gone).await.unwrap();
    workers.remove(0).ended().await;
    let first = fleet
        .store
        .find_turns(&turnmill::store::TurnFilter { status: Some("in_progress".into()), ..Default::default() }, &None, 9)
        .await
        .unwrap();
    fleet.store.cancel_by(&who("hanna", "it goes round in circles"), &first.turns[1].id).await.unwrap();
    let taken_over = until("a turn was taken over", || async {
        let sql = "SELECT turn_id FROM turnmill.attempts WHERE taken = 'adopted' LIMIT 1";
        sqlx::query_scalar::<_, String>(sql).fetch_optional(&fleet.pool).await.unwrap()
    })
    .await;
    let sandbox = "SELECT sandbox_id FROM turnmill.slots WHERE turn_id = $1";
    let sandbox: Option<String> = sqlx::query_scalar(sandbox).bind(&taken_over).fetch_optional(&fleet.pool).await.unwrap();
    (workers, taken_over, sandbox.unwrap_or_default())
}

/// A month of money: four tenants in two pools, with two models and sandboxes; what is set of them; and one whose budget is spent.
async fn money(fleet: &Fleet) {
    let days = "INSERT INTO turnmill.spend_days
                SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date - d, t.id, p.name, k.kind, k.model, ceil(n * k.turns), 0, n * k.read, n * k.wrote, n * k.read * 6, n * k.wrote * 2,
                  n * k.seconds, round((n * k.usd)::numeric, 4)
                FROM generate_series(0, 29) d, (VALUES ('acme', 9), ('globex', 5), ('initech', 3), ('umbrella', 1.2), ('', 0.4)) t (id, size),
                  (VALUES ('default', 1.0), ('gpu', 0.3)) p (name, size),
                  LATERAL (SELECT t.size * p.size * (6 + 3 * sin(d * 1.3 + length(t.id)) + (29 - d) / 6.0) * CASE WHEN d = 0 THEN 0.4 WHEN d % 7 IN (2, 3) THEN 0.3 ELSE 1 END AS n) c,
                  (VALUES ('model', 'claude-sonnet-4-5', 1, 1800, 420, 0, 0.062), ('model', 'claude-haiku-4-5', 0, 2600, 260, 0, 0.006),
                          ('sandbox', '', 0, 0, 0, 190, 0.009)) k (kind, model, turns, read, wrote, seconds, usd)
                WHERE $1 = '' ON CONFLICT DO NOTHING";
    fleet.sql(days, "").await;
    let today = "UPDATE turnmill.spend_state SET day = d.day, usd = d.usd FROM (SELECT day, sum(usd) AS usd FROM turnmill.spend_days GROUP BY day ORDER BY day DESC LIMIT 1) d
                 WHERE $1 = ''";
    fleet.sql(today, "").await;
    for (pool, usd) in [("default", 0.17), ("gpu", 1.9), ("trial", 0.17)] {
        fleet.store.set_pool(pool, &PoolChange { sandbox_usd_per_hour: Some(Some(usd)), ..PoolChange::default() }).await.unwrap();
    }
    let settings: [(&str, f64, Option<i32>, Option<f64>); 4] = [
        ("acme", 2.0, Some(8), Some(6.0)),
        ("globex", 1.0, Some(4), Some(2.2)),
        ("initech", 1.0, Some(1), None),
        ("umbrella", 0.5, None, Some(0.6)),
    ];
    for (tenant, weight, most, budget) in settings {
        let change = TenantChange { weight: Some(weight), running_max: Some(most), budget_usd_per_day: Some(budget) };
        fleet.store.change_tenant_by(&who("lena", "as agreed with sales"), tenant, change).await.unwrap();
    }
    fleet.store.change_fleet_by(&who("hanna", "what the board allows"), &FleetChange::Budget(Some(12.0))).await.unwrap();
    for (nth, tenant) in [(1, "umbrella"), (2, "umbrella"), (3, "umbrella"), (4, "initech"), (5, "initech")] {
        let turn = turnmill::store::Enqueue {
            prompt: "Bring the changelog up to date.".to_owned(),
            project_id: Some("web".to_owned()),
            session_id: Some(format!("{tenant}-{nth}")),
            tenant_id: Some(tenant.to_owned()),
            ..turnmill::store::Enqueue::default()
        };
        fleet.store.enqueue(&turn).await.unwrap();
    }
    let since = "UPDATE turnmill.jobs SET queued_at = queued_at - interval '47 minutes' WHERE tenant_id = $1 AND state = 'ready'";
    fleet.sql(since, "umbrella").await;
}

/// The minutes of the last two hours, as a sampler would have left them; and messages that are worth reading.
async fn history(fleet: &Fleet) {
    let minutes = "INSERT INTO turnmill.metrics_minute (minute, closed, enqueued, started, completed, failed, tries, tries_failed, failures, cost_usd, wait_p50_s, wait_p95_s,
                     ready, waiting, running, cap, held, reported, workers, turns_max, reasons, verdict)
                   SELECT m, true, n, n, n - n / 25, n / 25, n, n / 25, jsonb_build_object('agent api_error', n / 25), n * 0.0421, 0.4, 0.8 + n / 9.0, greatest(n - 14, 0), 2, n, 16, n + 1, n + 1, 3, 18, '{}', 'working'
                   FROM (SELECT m, (9 + 8 * sin(extract(epoch FROM m) / 1375))::integer AS n
                         FROM generate_series(date_trunc('minute', clock_timestamp()) - interval '2 hours', date_trunc('minute', clock_timestamp()) - interval '1 minute', interval '1 minute') m) s
                   WHERE $1 = '' ON CONFLICT (minute) DO NOTHING";
    fleet.sql(minutes, "").await;
    let failures = "INSERT INTO turnmill.failures (phase, code, first_at, last_at, tries, turns, last_turn_id, last_message)
                    SELECT f.phase, f.code, clock_timestamp() - f.first, clock_timestamp() - interval '9 minutes', f.tries, f.turns, t.id, f.words
                    FROM (SELECT id FROM turnmill.turns ORDER BY created_at LIMIT 1) t, (VALUES
                      ('agent', 'api_error', interval '3 days', 1204, 31, 'The model API is overloaded (529); tried 4 times.'),
                      ('sandbox', 'sandbox_unavailable', interval '45 minutes', 17, 0, 'E2B answered 503 to a create.')) f (phase, code, first, tries, turns, words)
                    WHERE $1 = '' ON CONFLICT DO NOTHING";
    fleet.sql(failures, "").await;
    sqlx::raw_sql("ALTER TABLE turnmill.turns DISABLE TRIGGER ended_turns_are_final").execute(&fleet.pool).await.unwrap();
    for (nth, (session, _, words)) in TASKS.iter().enumerate() {
        sqlx::query("UPDATE turnmill.turns SET prompt = $2 WHERE session_id = $1")
            .bind(session)
            .bind(words)
            .execute(&fleet.pool)
            .await
            .unwrap();
        let spread = "UPDATE turnmill.sessions SET created_at = created_at - make_interval(hours => $2) WHERE id = $1";
        sqlx::query(spread).bind(session).bind(i32::try_from(nth * 5).unwrap()).execute(&fleet.pool).await.unwrap();
    }
}

/// As high as it needs to be.
async fn fit(browser: &Browser, width: u32) {
    browser.size(width, 600).await;
    let high = browser.value("Math.min(document.documentElement.scrollHeight, 1400)").await.as_u64().unwrap();
    browser.size(width, u32::try_from(high).unwrap()).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn pictures_of_every_page_in_both_themes(pool: PgPool) {
    if std::env::var("TURNMILL_TEST_PICTURES").is_err() {
        return;
    }
    let (fleet, e2b) = (Fleet::new(pool), LocalE2b::start().await);
    let (site, browser) = tokio::join!(Site::open(fleet.clone(), |_| {}), Browser::start());
    let (workers, turn, sandbox) = scene(&fleet, &e2b).await;
    history(&fleet).await;
    money(&fleet).await;
    let pages = [
        ("now", "/ops".to_owned(), None),
        ("turns", "/ops/turns".to_owned(), None),
        ("turn", format!("/ops/turns/{turn}"), None),
        ("sessions", "/ops/sessions".to_owned(), None),
        ("session", "/ops/sessions/chat-7f31".to_owned(), None),
        ("sandboxes", "/ops/sandboxes".to_owned(), None),
        ("kill", "/ops/sandboxes".to_owned(), Some(format!("a[href=\"/ops/sandboxes/{sandbox}/kill\"]"))),
        ("workers", "/ops/workers".to_owned(), None),
        ("pools", "/ops/pools".to_owned(), None),
        ("pool", "/ops/pools/gpu".to_owned(), None),
        ("tenants", "/ops/tenants".to_owned(), None),
        ("tenant", "/ops/tenant?id=umbrella".to_owned(), None),
        ("spend", "/ops/spend".to_owned(), None),
        ("audit", "/ops/audit".to_owned(), None),
    ];
    browser.hide_scrollbars().await;
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for (name, path, click) in &pages {
            browser.open(&format!("{}{path}", site.url)).await;
            browser.until("document.readyState === 'complete'").await;
            fit(&browser, 1280).await;
            browser.reload().await;
            browser.until("document.readyState === 'complete'").await;
            if let Some(link) = click {
                browser.click(link).await;
                browser.until("document.querySelector('#dialog[open] #reason')").await;
                browser.value("document.querySelector('#dialog details').open = true").await;
            }
            browser.value("(scrollTo(0, 0), document.activeElement.blur?.())").await;
            browser.screenshot(&format!("{name}-{scheme}")).await;
        }
    }
    browser.close().await;
    for worker in workers {
        worker.stop().await;
    }
    drop(e2b);
}
