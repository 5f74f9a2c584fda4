//! What the server does to requests that mean harm, or are only clumsy.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Fleet, PATIENCE};
use crate::site::Site;

async fn raw(site: &Site, request: &[u8]) -> (String, Duration) {
    let mut connection = TcpStream::connect(site.url.trim_start_matches("http://")).await.unwrap();
    // It may be cut off while it still writes.
    drop(connection.write_all(request).await);
    let since = Instant::now();
    let mut answer = Vec::new();
    drop(timeout(PATIENCE, connection.read_to_end(&mut answer)).await.expect("the server ends it"));
    (String::from_utf8_lossy(&answer).into_owned(), since.elapsed())
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn slow_and_endless_requests_are_cut(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |config| {
        config.arrival_max = Duration::from_secs(1);
        config.body_max_bytes = 10_000;
    })
    .await;
    let started = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
        site.token
    );
    for head in ["", "GET", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", &started] {
        let (_, took) = raw(&site, head.as_bytes()).await;
        assert!(took < Duration::from_secs(5), "{head:?}: {took:?}");
    }
    let (answer, took) = raw(&site, format!("{started}content-length: 100\r\n\r\n{{\"pro").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout") && took < Duration::from_secs(5), "{took:?} {answer}");
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(100_000));
    assert!(raw(&site, long.as_bytes()).await.0.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
    assert!(raw(&site, many.as_bytes()).await.0.starts_with("HTTP/1.1 431"));
    let large = site.post("/v1/sessions", json!({ "id": "x".repeat(10_000), "project_id": "p1" })).await;
    assert_eq!((large.status.as_u16(), large.problem()), (413, "body_too_large"));
    let query = site.get(&format!("/v1/sessions?cursor={}", "x".repeat(9000))).await;
    assert_eq!(query.problem(), "invalid_request");
    let deep = format!("{{\"project_id\": {}", "[".repeat(5000));
    let request = site.request("POST", "/v1/sessions").bearer_auth(&site.token).header("content-type", "application/json");
    assert_eq!(site.send(request.body(deep)).await.status, 400);

    // A connection between two requests is not kept for ever either; and the server is as well as before.
    let (answer, took) = raw(&site, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(site.get("/v1/sessions").await.status, 200);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_thousand_idle_connections_keep_nobody_out(pool: PgPool) {
    let site = Site::start(pool).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(site.url.trim_start_matches("http://")).await.unwrap());
    }
    let since = Instant::now();
    assert_eq!(site.get("/v1/sessions").await.status, 200);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    drop(idle);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn readers_are_counted_and_one_more_is_told_to_come_later(pool: PgPool) {
    let site = Site::with(Fleet::new(pool), |config| config.readers_max = 2).await;
    site.say("s1", "hi").await;
    let first = site.stream("/v1/sessions/s1/stream", None).await;
    let _second = site.stream("/v1/sessions/s1/stream", None).await;
    let third = site.get("/v1/sessions/s1/stream").await;
    assert_eq!((third.status.as_u16(), third.problem(), &third.headers["retry-after"]), (503, "too_many_readers", &"1".parse().unwrap()));
    drop(first);
    crate::harness::until("whoever goes makes room", || async {
        let response = site.request("GET", "/v1/sessions/s1/stream").bearer_auth(&site.token).send().await.unwrap();
        (response.status() == 200).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn paths_methods_and_ids_that_are_not_there_are_problems_like_all_others(pool: PgPool) {
    let site = Site::start(pool).await;
    for path in ["/", "/v1", "/v1/turns", "/v1/turns/", "/v1/turns/x/y", "/v2/sessions", "/v1/sessions/%00", "/v1/turns/%FF/blocks"] {
        let said = site.get(path).await;
        assert_eq!((said.status.as_u16(), said.problem()), (404, "not_found"), "{path}");
    }
    let long = site.get(&format!("/v1/turns/{}", "x".repeat(256))).await;
    assert_eq!(long.problem(), "not_found");
    let method = site.as_who(&site.token, "PUT", "/v1/sessions", None).await;
    assert_eq!((method.status.as_u16(), method.problem()), (405, "method_not_allowed"));
    assert!(method.headers["allow"].to_str().unwrap().contains("POST"));
    let own = site.send(site.request("GET", "/v1/nope").header("x-request-id", "my-id.1")).await;
    assert_eq!((own.problem(), &own.body["request_id"], &own.body["instance"]), ("not_found", &json!("my-id.1"), &json!("/v1/nope")));
    let evil = site.send(site.request("GET", "/v1/nope").header("x-request-id", "<b>")).await;
    assert!(evil.body["request_id"].as_str().unwrap().starts_with("req_"));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_document_is_served_as_json_and_as_a_page_that_needs_nothing_else(pool: PgPool) {
    let site = Site::start(pool).await;
    let document = site.send(site.request("GET", "/openapi.json")).await.ok();
    assert_eq!(document, turnmill::web::openapi());
    assert_eq!(document["openapi"], "3.1.0");
    let page = site.request("GET", "/docs").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = page.text().await.unwrap();
    for item in document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values()) {
        let id = item["operationId"].as_str().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id} is on the page");
        assert!(item["responses"].get("500").is_some() && item["summary"].is_string(), "{id}");
    }
    assert!(page.contains("id=\"session_busy\""), "what a problem's type points to is there");
    for from_elsewhere in ["src=\"http", "href=\"http", "url(http", "@import", "<script src"] {
        assert!(!page.contains(from_elsewhere), "nothing of it comes from elsewhere: {from_elsewhere}");
    }
}
