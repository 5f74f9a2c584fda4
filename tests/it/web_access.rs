//! Who may ask the API for what: tokens, scopes, bounds; and servers without tokens.

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::config::Config;
use turnmill::store::Bounds;
use turnmill::web::Web;

use crate::commands::{said, turnmill};
use crate::harness::Fleet;
use crate::site::Site;

fn of_project(project: &str) -> Bounds {
    Bounds { project_id: Some(project.to_owned()), ..Bounds::default() }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_token_is_made_used_shown_and_revoked_and_its_secret_is_nowhere(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let site = Site::start(pool).await;
    let run = async |args: &[&str]| turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();
    let made = run(&["token", "create", "shop's server", "--project", "p1", "--expires", "90d"]).await;
    assert!(made.status.success(), "{}", said(&made));
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let id = String::from_utf8(made.stderr).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(token.starts_with("tmk_") && token.len() == 47, "{token}");
    assert!(said(&run(&["token"]).await).contains("shop's server: turns:read turns:write turns:cancel, project p1, never used, until "));

    let said_so = site.as_who(&token, "POST", "/v1/sessions/s1/turns", Some(json!({ "user_message": "hi" }))).await;
    assert_eq!((said_so.status.as_u16(), said_so.body["session_id"].as_str()), (202, Some("s1")), "{said_so:?}");
    let listed = said(&run(&["token", "list"]).await);
    assert!(listed.contains(&token[..12]) && !listed.contains(&token[..13]) && listed.contains(", used "), "{listed}");
    let stored: Vec<Value> = sqlx::query_scalar("SELECT to_jsonb(t) FROM turnmill.api_tokens t").fetch_all(&site.fleet.pool).await.unwrap();
    assert!(!format!("{stored:?}").contains(&token[12..]), "the secret is nowhere");

    let foreign = site.as_who(&token, "GET", "/v1/queue/stats", None).await;
    assert_eq!((foreign.status.as_u16(), foreign.problem()), (403, "insufficient_scope"));
    assert!(run(&["token", "revoke", &id]).await.status.success());
    let revoked = site.as_who(&token, "GET", "/v1/sessions", None).await;
    assert_eq!((revoked.status.as_u16(), revoked.problem()), (401, "revoked_token"));
    assert!(revoked.headers.contains_key("www-authenticate"));
    site.fleet.sql("UPDATE turnmill.api_tokens SET revoked_at = NULL, expires_at = clock_timestamp() WHERE id = $1", &id).await;
    assert_eq!(site.as_who(&token, "GET", "/v1/sessions", None).await.problem(), "expired_token");
    assert!(said(&run(&["token", "revoke", "nope"]).await).contains("there is no token \"nope\""));
    assert!(said(&run(&["token", "create", "x", "--scope", "all"]).await).contains("turns:read"));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn streams_of_a_revoked_token_end_within_seconds_and_others_go_on(pool: PgPool) {
    let site = Site::start(pool).await;
    let turn = site.say("s1", "hi").await;
    let token = site.token(&["turns:read"], of_project("p1")).await;
    let mut theirs = site.stream_as(&token, "/v1/sessions/s1/stream", None).await;
    let mut ours = site.stream("/v1/sessions/s1/stream", None).await;
    theirs.until("caught_up").await;
    ours.until("caught_up").await;
    site.fleet.sql("UPDATE turnmill.api_tokens SET revoked_at = clock_timestamp() WHERE name = $1", "a test").await;
    assert_eq!(theirs.until("reconnect").await.data["reason"], "token");
    assert_eq!(theirs.next().await, None);
    let again = site.as_who(&token, "GET", "/v1/sessions/s1/stream", None).await;
    assert_eq!((again.status.as_u16(), again.problem()), (401, "revoked_token"));
    site.as_who(&site.token, "POST", &format!("/v1/turns/{turn}/cancel"), None).await.ok();
    assert_eq!(ours.until("end").await.data["status"], "cancelled");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn without_a_good_token_nothing_is_told(pool: PgPool) {
    let site = Site::start(pool).await;
    site.say("s1", "hi").await;
    for (method, path) in every_operation() {
        let path = path
            .replace("{session_id}", "s1")
            .replace("{turn_id}", "t1")
            .replace("{endpoint_id}", "e1")
            .replace("{delivery_id}", "d1")
            .replace("{user_id}", "u1");
        let none = site.send(site.request(&method, &path)).await;
        let wrong = site.send(site.request(&method, &path).bearer_auth("tmk_wrong")).await;
        let basic = site.send(site.request(&method, &path).basic_auth("x", Some("y"))).await;
        if ["/healthz", "/readyz", "/openapi.json", "/docs"].contains(&path.as_str()) {
            assert_eq!(none.status, 200, "{path}");
        } else {
            assert_eq!((none.status.as_u16(), none.problem()), (401, "missing_token"), "{method} {path}");
            assert_eq!((wrong.status.as_u16(), wrong.problem()), (401, "invalid_token"), "{method} {path}");
            assert_eq!(basic.problem(), "invalid_token");
        }
    }
}

fn every_operation() -> Vec<(String, String)> {
    let document = turnmill::web::openapi();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"].iter().filter(|method| item.get(**method).is_some()) {
            all.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(all.len() > 15, "{all:?}");
    all
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn each_operation_wants_its_scope_and_what_is_foreign_looks_unknown(pool: PgPool) {
    let site = Site::start(pool).await;
    let turn = site.say("s1", "hi").await;
    let nothing = site.token(&["queue:read"], Bounds::default()).await;
    let endpoint =
        site.post("/v1/webhook-endpoints", json!({ "url": "https://app.example/", "project_id": "p1" })).await.ok()["endpoint_id"].clone();
    let endpoint = endpoint.as_str().unwrap();
    let delivery = site.fleet.store.send_test(endpoint).await.unwrap().unwrap();
    let scopes = ["turns:read", "turns:write", "turns:cancel", "usage:read", "webhooks:read", "webhooks:write"];
    let foreign = site.token(&scopes, of_project("p2")).await;
    let tenants = Bounds { tenant_id: Some("t2".to_owned()), ..of_project("p1") };
    let tenant = site.token(&scopes, tenants).await;
    let body = |method: &str, path: &str| match (method, path) {
        ("POST", path) if path.ends_with("/turns") => Some(json!({ "user_message": "hi" })),
        ("POST", "/v1/sessions") => Some(json!({ "id": "s1" })),
        ("PATCH", path) if path.starts_with("/v1/turns") => Some(json!({ "user_message": "other" })),
        ("PATCH", path) if path.starts_with("/v1/webhook") => Some(json!({ "state": "disabled" })),
        ("POST", "/v1/webhook-endpoints") => Some(json!({ "url": "https://app.example/" })),
        ("POST", path) if path.starts_with("/v1/webhook") && path.ends_with("}/replay") => Some(json!({ "since": "2026-01-01T00:00:00Z" })),
        ("PATCH", _) => Some(json!({ "on_busy": "reject" })),
        _ => None,
    };
    for (method, mut template) in every_operation() {
        if !template.starts_with("/v1") || template == "/v1/queue/stats" {
            continue;
        }
        if template.ends_with("/artifacts/content") {
            template.push_str("?path=x");
        }
        let named = template.replace("{session_id}", "s1").replace("{turn_id}", &turn);
        let there = named.replace("{endpoint_id}", endpoint).replace("{delivery_id}", &delivery);
        let body = body(&method, &template);
        let refused = site.as_who(&nothing, &method, &there, body.clone()).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (403, "insufficient_scope"), "{method} {there}");
        if !template.contains('{') && method == "GET" {
            let list = site.as_who(&foreign, &method, &there, None).await.ok();
            assert_eq!(list["data"], json!([]), "a list of what there is for it");
            continue;
        }
        if template == "/v1/webhook-endpoints" || template.starts_with("/v1/users/") {
            // It makes one of its own; a user's key it may have no say in (own_keys.rs).
            continue;
        }
        for stranger in [&foreign, &tenant] {
            let seen = site.as_who(stranger, &method, &there, body.clone()).await;
            let unknown = ["{session_id}", "{turn_id}", "{endpoint_id}", "{delivery_id}"]
                .iter()
                .fold(template.clone(), |path, id| path.replace(id, "nope"));
            assert_eq!((seen.status.as_u16(), seen.problem()), (404, "not_found"), "{method} {there}: {seen:?}");
            if method == "GET" || !template.contains("{session_id}") {
                let unknown = site.as_who(stranger, &method, &unknown, body.clone()).await;
                let same = |said: &crate::site::Said| (said.status, said.body["detail"].clone(), said.body["title"].clone());
                assert_eq!(same(&seen), same(&unknown), "{method} {template}");
            }
        }
    }
    assert_eq!(site.get(&format!("/v1/turns/{turn}")).await.ok()["status"], "pending", "and nothing was done to it");
    assert_eq!(site.get(&format!("/v1/webhook-endpoints/{endpoint}")).await.ok()["state"], "enabled", "nor to that");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_browser_s_token_reads_one_session_for_a_while_also_in_the_query(pool: PgPool) {
    let site = Site::start(pool).await;
    let (turn, other) = (site.say("s1", "hi").await, site.say("s2", "hi").await);
    let made = site.post("/v1/sessions/s1/tokens", json!({ "expires_in_s": 60 })).await;
    assert_eq!(made.status, 201);
    let token = made.body["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("tms_"));
    assert_eq!(site.post("/v1/sessions/s1/tokens", json!({ "expires_in_s": 86400 })).await.body["errors"][0]["pointer"], "/expires_in_s");
    assert_eq!(site.as_who(&site.token, "POST", "/v1/sessions/s1/tokens", None).await.status, 201, "the body may be left out");

    let in_query = |path: &str| site.request("GET", &format!("{path}?access_token={token}"));
    assert_eq!(site.send(in_query(&format!("/v1/turns/{turn}"))).await.ok()["id"], turn.as_str());
    assert_eq!(site.send(in_query(&format!("/v1/turns/{turn}/blocks"))).await.ok()["blocks"], json!([]));
    assert_eq!(site.send(in_query("/v1/sessions/s1")).await.status, 200);
    assert_eq!(site.send(in_query("/v1/sessions")).await.ok()["data"].as_array().unwrap().len(), 1);
    let mut events = site.stream_as(&token, "/v1/sessions/s1/stream", None).await;
    assert_eq!(events.until("status").await.data["turn_id"], turn.as_str());
    for path in [format!("/v1/turns/{other}"), "/v1/sessions/s2".to_owned(), "/v1/sessions/s2/stream".to_owned()] {
        assert_eq!(site.send(in_query(&path)).await.problem(), "not_found", "{path}");
    }
    let write = site.as_who(&token, "POST", "/v1/sessions/s1/turns", Some(json!({ "user_message": "x" }))).await;
    assert_eq!(write.problem(), "insufficient_scope");
    assert_eq!(site.as_who(&token, "POST", "/v1/sessions/s1/tokens", None).await.problem(), "insufficient_scope");
    let ours = site.request("GET", &format!("/v1/sessions?access_token={}", site.token));
    assert_eq!(site.send(ours).await.problem(), "invalid_token", "one that may do more is not for queries");

    // Its stream ends with it.
    let brief = site.post("/v1/sessions/s1/tokens", json!({ "expires_in_s": 1 })).await.ok();
    let mut events = site.stream_as(brief["token"].as_str().unwrap(), "/v1/sessions/s1/stream", None).await;
    assert_eq!(events.until("reconnect").await.data["reason"], "time");
    let late = site.as_who(brief["token"].as_str().unwrap(), "GET", "/v1/sessions/s1", None).await;
    assert_eq!(late.problem(), "expired_token");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_bound_token_makes_what_it_is_bound_to_and_goes_before_nobody(pool: PgPool) {
    let site = Site::start(pool).await;
    let bounds = Bounds { project_id: Some("p1".to_owned()), tenant_id: Some("t1".to_owned()), session_id: None };
    let bound = site.token(&["turns:read", "turns:write"], bounds).await;
    let made = site.as_who(&bound, "POST", "/v1/sessions", Some(json!({ "id": "s1" }))).await;
    assert_eq!((made.status.as_u16(), &made.body["project_id"], &made.body["tenant_id"]), (201, &json!("p1"), &json!("t1")));
    let enqueue = async |body: Value| site.as_who(&bound, "POST", "/v1/sessions/s1/turns", Some(body)).await;
    assert_eq!(enqueue(json!({ "user_message": "x" })).await.status, 202);
    let before = enqueue(json!({ "user_message": "x", "priority": 5 })).await;
    assert_eq!((before.status.as_u16(), &before.body["errors"][0]["pointer"]), (400, &json!("/priority")));
    let other = enqueue(json!({ "user_message": "x", "project_id": "p2", "tenant_id": "t2" })).await;
    assert_eq!(other.body["errors"].as_array().unwrap().len(), 2, "{other:?}");
    // Who has a project only has no tenant's money and keys.
    let of_project = site.token(&["turns:read", "turns:write"], of_project("p1")).await;
    for (path, body) in [
        ("/v1/sessions", json!({ "id": "s9", "tenant_id": "t2" })),
        ("/v1/sessions/s9/turns", json!({ "user_message": "x", "tenant_id": "t2" })),
    ] {
        let refused = site.as_who(&of_project, "POST", path, Some(body)).await;
        assert_eq!((refused.status.as_u16(), &refused.body["errors"][0]["pointer"]), (400, &json!("/tenant_id")), "{path}");
    }
    // One without a tenant is not this tenant's, and does not become it.
    site.say("s3", "hi").await;
    let taken = site.as_who(&bound, "POST", "/v1/sessions/s3/turns", Some(json!({ "user_message": "x" }))).await;
    assert_eq!(taken.problem(), "not_found");
    assert_eq!(site.get("/v1/sessions/s3").await.ok()["tenant_id"], Value::Null);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn without_tokens_it_serves_its_own_machine_only(pool: PgPool) {
    turnmill::tls::install();
    let fleet = Fleet::new(pool);
    let mut config = Config::load(None).unwrap();
    config.web.listen = "0.0.0.0:0".parse().unwrap();
    let refused = Web::bind(fleet.store.clone(), &config, true).await.unwrap_err().to_string();
    assert!(refused.contains("loopback only") && refused.contains("turnmill token create"), "{refused}");
    config.web.listen = "127.0.0.1:0".parse().unwrap();
    let web = Web::bind(fleet.store.clone(), &config, true).await.unwrap();
    let url = format!("http://{}", web.address().unwrap());
    let serving = tokio::spawn(web.run(tokio_util::sync::CancellationToken::new()));
    let client = reqwest::Client::new();
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(client.get(format!("{url}/v1/sessions"))).await, 200);
    assert_eq!(status(client.get(format!("{url}/v1/sessions")).header("host", "evil.example")).await, 403);
    assert_eq!(status(client.get(format!("{url}/v1/sessions")).header("origin", "https://evil.example")).await, 403);
    assert_eq!(status(client.get(format!("{url}/v1/sessions")).header("origin", "http://localhost:3000")).await, 200);
    serving.abort();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn pages_of_elsewhere_may_ask_only_if_the_configuration_says_so(pool: PgPool) {
    let closed = Site::start(pool.clone()).await;
    let open = Site::with(Fleet::new(pool), |config| config.cors_origins = "https://app.example, https://b.example".to_owned()).await;
    let ask = async |site: &Site, origin: &str| {
        let request = site.request("OPTIONS", "/v1/sessions").header("origin", origin);
        site.send(request.header("access-control-request-method", "POST").header("access-control-request-headers", "authorization")).await
    };
    assert!(!ask(&closed, "https://app.example").await.headers.contains_key("access-control-allow-origin"));
    let allowed = ask(&open, "https://app.example").await;
    assert_eq!((allowed.status.as_u16(), &allowed.headers["access-control-allow-origin"]), (200, &"https://app.example".parse().unwrap()));
    assert!(!ask(&open, "https://evil.example").await.headers.contains_key("access-control-allow-origin"));
    let request = open.request("GET", "/v1/sessions").header("origin", "https://b.example");
    assert_eq!(
        open.send(request).await.headers["access-control-allow-origin"],
        "https://b.example",
        "also on errors, so that pages can read them"
    );
    let mut bad = Config::load(None).unwrap().web;
    bad.cors_origins = "app.example".to_owned();
    assert!(turnmill::web::check(&bad).unwrap_err().to_string().contains("write origins like https://app.example"));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_chat_page_may_do_nothing_but_what_it_is_made_for_and_is_there_without_tokens_only(pool: PgPool) {
    let site = Site::open(Fleet::new(pool.clone()), |_| {}).await;
    for (path, media_type) in [
        ("/chat", "text/html; charset=utf-8"),
        ("/chat.css", "text/css; charset=utf-8"),
        ("/chat.js", "text/javascript; charset=utf-8"),
        ("/chat_turns.js", "text/javascript; charset=utf-8"),
        ("/chat.svg", "image/svg+xml"),
    ] {
        let answer = site.send(site.request("GET", path)).await;
        assert_eq!((answer.status.as_u16(), answer.headers["content-type"].to_str().unwrap()), (200, media_type), "{path}");
        let headers = ["x-content-type-options", "referrer-policy"].map(|name| answer.headers[name].to_str().unwrap());
        assert_eq!(headers, ["nosniff", "no-referrer"], "{path}");
        let policy = answer.headers["content-security-policy"].to_str().unwrap().to_owned();
        for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
    }
    let with_tokens = Site::start(pool).await;
    assert_eq!(with_tokens.get("/chat").await.problem(), "not_found");
}
