//! The dashboard over HTTP: who gets in, who may act, what the pages say. What it is like in a browser is tests/browser's.

use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use turnmill::store::{Below, Bounds, PoolChange, TurnFilter};
use turnmill::turn::Ending;

use crate::harness::{Fleet, until};
use crate::site::{Hand, Site};
use crate::visitor::{Visitor, audit};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn only_who_has_shown_a_token_with_the_scope_gets_in_and_revoking_it_ends_the_visit(pool: PgPool) {
    let site = Site::start(pool).await;
    let mut visitor = Visitor::at(&site);
    for path in ["/ops", "/ops/turns", "/ops/turns/x", "/ops/audit", "/ops/turns/x/export", "/ops/now", "/ops/bulk?act=cancel"] {
        let response = visitor.get(path).await;
        assert_eq!(response.status(), 303, "{path}");
        assert!(response.headers()["location"].to_str().unwrap().starts_with("/ops/enter"), "{path}");
    }
    let bound = site.token(&["ops:read"], Bounds { project_id: Some("p1".into()), ..Bounds::default() }).await;
    let api_only = site.token(&["turns:read", "turns:write"], Bounds::default()).await;
    for (token, says) in [("tmk_wrong", "not known"), (&*bound, "whole fleet"), (&*api_only, "ops:read")] {
        let refused = visitor.enter(token).await;
        assert_eq!(refused.status(), 403);
        let text = refused.text().await.unwrap();
        assert!(text.contains(says) && !text.contains(token), "{text}");
        assert!(visitor.cookie.is_empty());
    }

    let token = site.token(&["ops:read"], Bounds::default()).await;
    assert_eq!(visitor.enter(&token).await.status(), 303);
    assert!(visitor.page("/ops").await.contains("Nothing waits for room"));
    assert!(!visitor.cookie.contains(&token), "the browser does not keep the token");
    let known: Vec<Value> = sqlx::query_scalar("SELECT to_jsonb(v) FROM turnmill.ops_visits v").fetch_all(&site.fleet.pool).await.unwrap();
    assert!(!format!("{known:?}").contains(visitor.cookie.split('=').nth(1).unwrap()), "the cookie is not in the database");
    assert_eq!(site.fleet.store.revoke_token(&token[..12]).await.unwrap(), 1);
    assert_eq!(visitor.get("/ops").await.status(), 303);

    let mut again = Visitor::with(&site, &["ops:read"]).await;
    assert_eq!(again.post("/ops/leave", &[]).await.status(), 303);
    assert_eq!(again.get("/ops").await.status(), 303, "the cookie is worth nothing after that");
    again.cookie = "turnmill_ops=made-up".to_owned();
    assert_eq!(again.get("/ops").await.status(), 303);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_deed_needs_the_scope_a_reason_and_a_form_of_this_very_server_and_is_in_the_audit(pool: PgPool) {
    let site = Site::start(pool).await;
    let turn = site.say("s1", "hi").await;
    let cancel = format!("/ops/turns/{turn}/cancel");

    let viewer = Visitor::with(&site, &["ops:read"]).await;
    assert!(!viewer.page(&format!("/ops/turns/{turn}")).await.contains("/cancel"), "a button that can't be pressed is not there");
    assert_eq!(viewer.get(&cancel).await.status(), 403);
    let operator = Visitor::operator(&site).await;
    let token = operator.form_token(&cancel).await;
    let good = [("form_token", token.as_str()), ("reason", "it hangs")];
    assert_eq!(viewer.post(&cancel, &good).await.status(), 403, "another's form");

    for origin in [Some("https://evil.example"), Some("null")] {
        assert_eq!(operator.post_from(&cancel, &good, origin).await.status(), 403);
    }
    assert_eq!(operator.post(&cancel, &[("form_token", "wrong"), ("reason", "it hangs")]).await.status(), 403);
    assert_eq!(operator.post(&cancel, &[("reason", "it hangs")]).await.status(), 403);
    let long = "x".repeat(1001);
    for reason in ["", "  ", &long] {
        let refused = operator.post(&cancel, &[("form_token", token.as_str()), ("reason", reason)]).await;
        assert_eq!(refused.status(), 400);
        assert!(refused.text().await.unwrap().contains("Say why"));
    }
    assert_eq!(site.fleet.turn(&turn).await.status, "pending");
    assert!(audit(&site.fleet).await.is_empty());

    assert_eq!(operator.post(&cancel, &good).await.status(), 303);
    let turn_row = site.fleet.turn(&turn).await;
    assert_eq!((turn_row.status.as_str(), turn_row.error_message.as_deref()), ("cancelled", Some("cancelled by a test: it hangs")));
    assert_eq!(audit(&site.fleet).await, [("cancel".into(), turn.clone(), "a test".into(), "it hangs".into())]);
    assert!(operator.page(&format!("/ops/turns/{turn}")).await.contains("it hangs"));
    assert!(operator.page("/ops/audit").await.contains("it hangs"));

    let again = operator.act(&format!("/ops/turns/{turn}/retry"), &[("reason", "fixed")]).await;
    assert_eq!(again.status(), 303);
    let made = again.headers()["location"].to_str().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_ne!(made, turn);
    assert_eq!(site.fleet.turn(&made).await.status, "pending");
    let refused = operator.act(&format!("/ops/turns/{turn}/retry"), &[("reason", "x")]).await;
    assert_eq!(refused.status(), 303, "an ended turn may be run again as often as one likes");
    for statement in [
        "UPDATE turnmill.audit SET reason = 'x'",
        "UPDATE turnmill.audit SET subject = 'erased', reason = 'erased', detail = '{}', actor = 'x'",
        "DELETE FROM turnmill.audit",
    ] {
        assert!(site.fleet.refused(statement).await.starts_with("TM409 the audit is only ever added to"));
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn many_turns_are_cancelled_as_the_dry_run_said_and_no_other(pool: PgPool) {
    let site = Site::start(pool).await;
    let mut turns = Vec::new();
    for nth in 0..7 {
        turns.push(site.say(&format!("s{nth}"), "hi").await);
    }
    let worker = site.fleet.worker("w").await;
    Hand::of(&site.fleet, &worker).await.end(Ending::Completed).await;
    let operator = Visitor::operator(&site).await;
    let dry = operator.page("/ops/bulk?act=cancel&status=pending").await;
    assert!(dry.contains("This will cancel 6 turns: 6 at once, 0 that run"), "{dry}");
    let ids = dry.split("name=\"ids\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    // Comes after the dry run: it was not in what was agreed to.
    let late = site.say("s9", "hi").await;
    let done = operator.act("/ops/bulk?act=cancel&status=pending", &[("act", "cancel"), ("ids", &ids), ("reason", "runaway client")]).await;
    assert_eq!(done.status(), 200);
    assert!(done.text().await.unwrap().contains("6 cancelled"));
    assert_eq!(site.fleet.turn(&late).await.status, "pending");
    let mut cancelled = 0;
    for turn in &turns {
        cancelled += u32::from(site.fleet.turn(turn).await.status == "cancelled");
    }
    assert_eq!(cancelled, 6);
    assert_eq!(audit(&site.fleet).await.len(), 6, "an entry each");

    let picked = operator.page(&format!("/ops/bulk?act=retry&of=picked&pick={}&pick={late}", turns[1])).await;
    assert!(picked.contains("This will enqueue 1 turn again") && picked.contains("1 of those found is not concerned"), "{picked}");
    assert!(operator.page("/ops/bulk?act=retry&of=picked").await.contains("Nothing would change"));
    assert_eq!(operator.get("/ops/bulk?act=explode&status=pending").await.status(), 400);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn turns_are_found_by_each_filter_and_page_after_page(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    fleet.store.set_pool("small", &PoolChange { cap: Some(1), ..PoolChange::default() }).await.unwrap();
    let sql = "SELECT turnmill.enqueue_turn('hi', project_id => 'p1', session_id => 's' || n, turn_id => 'turn-' || n,
                 pool => CASE WHEN n % 10 = 0 THEN 'small' END, tenant_id => CASE WHEN n % 3 = 0 THEN 'acme' END)
               FROM generate_series(1, 120) n WHERE $1 = ''";
    fleet.sql(sql, "").await;
    let worker = fleet.worker("w").await;
    for how in [Ending::Failed, Ending::Completed, Ending::Failed] {
        Hand::of(fleet, &worker).await.end(how).await;
    }
    let count = async |filter: TurnFilter| {
        let (mut all, mut below): (Vec<String>, Below) = (Vec::new(), None);
        loop {
            let page = fleet.store.find_turns(&filter, &below, 25).await.unwrap();
            all.extend(page.turns.iter().map(|turn| turn.id.clone()));
            below = page.next;
            if below.is_none() {
                break;
            }
        }
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "none twice");
        all.len()
    };
    let of = |text: &str| Some(text.to_owned());
    assert_eq!(count(TurnFilter::default()).await, 120);
    assert_eq!(count(TurnFilter { status: of("failed"), ..TurnFilter::default() }).await, 2);
    assert_eq!(count(TurnFilter { status: of("completed"), ..TurnFilter::default() }).await, 1);
    assert_eq!(count(TurnFilter { status: of("pending"), ..TurnFilter::default() }).await, 117);
    assert_eq!(count(TurnFilter { error: of("some_code"), ..TurnFilter::default() }).await, 2);
    assert_eq!(count(TurnFilter { pool: of("small"), ..TurnFilter::default() }).await, 12);
    assert_eq!(count(TurnFilter { tenant: of("acme"), ..TurnFilter::default() }).await, 40);
    assert_eq!(count(TurnFilter { tenant: of("acme"), pool: of("small"), ..TurnFilter::default() }).await, 4);
    assert_eq!(count(TurnFilter { session: of("s7"), ..TurnFilter::default() }).await, 1);
    assert_eq!(count(TurnFilter { text: of("turn-11"), ..TurnFilter::default() }).await, 11, "how its id begins");
    assert_eq!(count(TurnFilter { text: of("s42"), ..TurnFilter::default() }).await, 1, "a session's id");
    assert_eq!(count(TurnFilter { text: of("n-77"), ..TurnFilter::default() }).await, 1, "somewhere in it");
    assert_eq!(count(TurnFilter { text: of("%"), ..TurnFilter::default() }).await, 0, "no pattern");
    fleet.store.set_pool("small", &PoolChange { state: of("paused"), ..PoolChange::default() }).await.unwrap();
    assert_eq!(count(TurnFilter { reason: of("pool_paused"), ..TurnFilter::default() }).await, 12);

    let operator = Visitor::operator(&site).await;
    let first = operator.page("/ops/turns?status=pending").await;
    assert_eq!(first.matches("<tr id=\"row-").count(), 50);
    let next = first
        .split("href=\"/ops/turns?status=pending&#38;below=")
        .nth(1)
        .or(first.split("below=").nth(1))
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let second = operator.page(&format!("/ops/turns?status=pending&below={next}")).await;
    assert_eq!(second.matches("<tr id=\"row-").count(), 50);
    assert_eq!(operator.get("/ops/turns?below=nonsense").await.status(), 400);
    // What is shown is shown anew in its place; what is new is counted.
    let again = first.split("hx-get=\"").nth(1).unwrap().split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&");
    site.say("new", "hi").await;
    let patched = operator.page(&again).await;
    assert_eq!(patched.matches("<tr id=\"row-").count(), 50);
    assert!(patched.contains("1 new"), "{patched}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_s_page_says_who_had_it_and_what_a_take_over_cost(pool: PgPool) {
    let site = Site::start(pool).await;
    let fleet = &site.fleet;
    let turn = site.say("s1", "Fix <b>it</b>").await;
    let a = fleet.worker("a").await;
    let mut hand = Hand::of(fleet, &a).await;
    hand.write(&["**bold** <script>alert(1)</script>", "two"]).await;
    fleet.let_lease_expire("a").await;
    let b = fleet.worker("b").await;
    let taken = b.claim_one().await;
    assert_eq!(taken.journal_offset, 1);
    let operator = Visitor::operator(&site).await;
    let page = operator.page(&format!("/ops/turns/{turn}")).await;
    assert!(page.contains("a was lost; b took over at byte 1 after"), "{page}");
    assert!(page.contains("with block 2: 0 blocks lost"), "{page}");
    assert!(
        page.contains("<strong>bold</strong>") && page.contains("&lt;script&gt;alert(1)") && page.contains("Fix &#60;b&#62;it"),
        "{page}"
    );

    let file = operator.get(&format!("/ops/turns/{turn}/export")).await;
    assert!(file.headers()["content-disposition"].to_str().unwrap().starts_with("attachment"));
    let file = file.text().await.unwrap();
    assert!(
        file.contains("0 blocks lost") && file.contains("&lt;script&gt;") && !file.contains("<script") && !file.contains("src="),
        "{file}"
    );
    assert!(file.contains("default-src 'none'"));
    fleet.store.save_journal(&taken, b"gzip of it", 48_211, true).await.unwrap().unwrap();
    assert!(operator.page(&format!("/ops/turns/{turn}")).await.contains("(48,211 bytes)"));
    let journal = operator.get(&format!("/ops/turns/{turn}/journal/1")).await;
    assert_eq!(journal.headers()["content-type"], "application/gzip");
    assert_eq!(journal.bytes().await.unwrap(), "gzip of it");
    assert_eq!(operator.get(&format!("/ops/turns/{turn}/journal/2")).await.status(), 404);
    let whole = operator.get(&format!("/ops/turns/{turn}/blocks/0")).await;
    assert_eq!(whole.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(whole.text().await.unwrap().contains("**bold**"));
    assert_eq!(operator.get("/ops/turns/nope").await.status(), 404);
    assert_eq!(operator.get("/ops/nope").await.status(), 404);
    assert_eq!(site.get("/nope").await.problem(), "not_found", "elsewhere it is a problem for programs");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_first_sentence_says_what_is_the_matter(pool: PgPool) {
    let site = Site::start(pool).await;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    let turn = site.say("s1", "hi").await;
    let now = viewer.page("/ops").await;
    assert!(now.contains("No worker is alive") && now.contains(&format!("/ops/turns/{turn}")) && now.contains("no worker free"), "{now}");
    let worker = site.fleet.worker("w").await;
    worker.claim_one().await;
    until("the page says so", || async {
        let now = viewer.page("/ops/now").await;
        (now.contains("All is well") && now.contains("c-sandbox\" href=\"/ops/turns/")).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_part_that_is_late_is_said_to_be_and_the_rest_of_the_page_is_there(pool: PgPool) {
    let site = Site::start(pool).await;
    let viewer = Visitor::with(&site, &["ops:read"]).await;
    site.say("s1", "hi").await;
    let mut holder = site.fleet.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE turnmill.failures IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    let now = viewer.page("/ops").await;
    assert!(now.contains("Not current: failures.") && now.contains("Not known: the database does not answer in time."), "{now}");
    assert!(now.contains("No worker is alive") && now.contains("id=\"board\""), "{now}");
    holder.rollback().await.unwrap();
    let now = viewer.page("/ops").await;
    assert!(!now.contains("Not current") && now.contains("None has been counted yet."), "{now}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_roll_up_counts_each_minute_once_and_keeps_failures_by_kind(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("w").await;
    for how in [Ending::Completed, Ending::Failed, Ending::Failed] {
        fleet.enqueue("hi").await;
        Hand::of(&fleet, &worker).await.end(how).await;
    }
    // Two minutes ago.
    for statement in [
        "ALTER TABLE turnmill.turns DISABLE TRIGGER ended_turns_are_final",
        "UPDATE turnmill.turns SET created_at = created_at - interval '2 minutes', started_at = started_at - interval '2 minutes', completed_at = completed_at - interval '2 minutes'",
        "UPDATE turnmill.attempts SET taken_at = taken_at - interval '2 minutes', ended_at = ended_at - interval '2 minutes'",
    ] {
        sqlx::raw_sql(statement).execute(&fleet.pool).await.unwrap();
    }
    let store = &fleet.store;
    let (sample, verdict) = turnmill::worker::sampler::look(store).await.unwrap();
    assert_eq!((sample.running, sample.workers, verdict.code), (0, 1, "idle"));
    store.note_sample(&sample).await.unwrap();
    assert!(store.close_minutes().await.unwrap() >= 4);
    store.close_minutes().await.unwrap();
    let minutes = store.minutes(30).await.unwrap();
    let sum = |of: fn(&turnmill::store::Minute) -> i32| minutes.iter().map(of).sum::<i32>();
    assert_eq!((sum(|m| m.enqueued), sum(|m| m.started), sum(|m| m.completed), sum(|m| m.failed)), (3, 3, 1, 2));
    assert_eq!((sum(|m| m.tries), sum(|m| m.tries_failed)), (3, 2));
    assert!(minutes.iter().filter(|m| m.started > 0).all(|m| m.wait_p95_s.is_some()));
    let failures = store.failures(10).await.unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(
        (failures[0].phase.as_str(), failures[0].code.as_str(), failures[0].tries, failures[0].turns, failures[0].last_hour),
        ("sandbox", "some_code", 2, 2, 2)
    );
    assert!(store.verdict_since("idle").await.unwrap().is_none(), "as far back as anybody knows");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn waits_are_grouped_as_wait_reason_says(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 1).await;
    let worker = fleet.worker("w").await;
    fleet.enqueue_in("one", Some("a")).await;
    worker.claim_one().await;
    fleet.enqueue_in("two", Some("a")).await;
    fleet.enqueue_in("three", Some("b")).await;
    fleet.sql("SELECT turnmill.enqueue_turn('x', project_id => 'p1', session_id => 'c', tenant_id => $1)", "full").await;
    fleet.sql("SELECT turnmill.set_tenant($1, running_max => 0)", "full").await;
    let mut grouped: Vec<(Option<String>, i64)> =
        fleet.store.waits().await.unwrap().into_iter().map(|wait| (wait.reason, wait.turns)).collect();
    let one_by_one: Vec<(Option<String>, i64)> =
        sqlx::query_as("SELECT turnmill.wait_reason(turn_id), count(*) FROM turnmill.jobs WHERE state <> 'leased' GROUP BY 1 ORDER BY 1")
            .fetch_all(&fleet.pool)
            .await
            .unwrap();
    grouped.sort();
    assert_eq!(grouped, one_by_one);
    assert_eq!(grouped.len(), 3, "{grouped:?}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn scripts_and_styles_are_what_was_vendored_and_are_kept_by_their_hash(pool: PgPool) {
    let site = Site::start(pool).await;
    let page = Visitor::at(&site).page("/ops/enter").await;
    let table = include_str!("../../src/web/ops/assets/VENDORED.md");
    let mut compared = 0;
    for path in page.split('"').filter(|text| text.starts_with("/ops/assets/")) {
        let response = Visitor::at(&site).get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        assert!(response.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        let bytes = response.bytes().await.unwrap();
        let hash = format!("{:x}", Sha256::digest(&bytes));
        compared += u32::from(table.contains(&hash));
    }
    assert_eq!(compared, 4, "all that is not ours");
    assert_eq!(Visitor::at(&site).get("/ops/assets/ops.css").await.status(), StatusCode::NOT_FOUND);
    assert!(!json!(turnmill::web::openapi()).to_string().contains("/ops"), "pages are not in the document");
}
