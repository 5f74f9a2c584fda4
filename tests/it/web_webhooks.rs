//! Webhooks over HTTP and by command: endpoints, their secrets, what they were told.

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::store::Bounds;

use crate::commands::{said, turnmill};
use crate::harness::until;
use crate::receiver::{Manner, Receiver, RunningCourier, config};
use crate::site::Site;

const ENDPOINTS: &str = "/v1/webhook-endpoints";

async fn make(site: &Site, url: &str) -> (String, String) {
    let made = site.post(ENDPOINTS, json!({ "url": url })).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.headers["cache-control"], "no-store");
    let id = made.body["endpoint_id"].as_str().unwrap().to_owned();
    assert_eq!(made.headers["location"].to_str().unwrap(), format!("{ENDPOINTS}/{id}"));
    (id, made.body["secret"].as_str().unwrap().to_owned())
}

async fn ended(site: &Site, delivery: &str) -> Value {
    until("the delivery ends", || async {
        Some(site.get(&format!("/v1/webhook-deliveries/{delivery}")).await.ok()).filter(|delivery| delivery["state"] != "pending")
    })
    .await
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_endpoint_is_made_tested_changed_and_deleted_and_its_secret_is_told_once(pool: PgPool) {
    let (site, receiver) = (Site::start(pool).await, Receiver::start(Manner::Status(200)).await);
    let (id, secret) = make(&site, &receiver.url).await;
    let at = format!("{ENDPOINTS}/{id}");
    let read = site.get(&at).await.ok();
    assert_eq!((&read["url"], &read["state"], &read["secret_sealed"]), (&json!(receiver.url), &json!("enabled"), &json!(false)));
    assert_eq!(read["events"], json!(["turn.cancelled", "turn.completed", "turn.failed"]));
    let listed = site.get(ENDPOINTS).await.ok();
    assert!(listed["data"][0] == read && !listed.to_string().contains(&secret[6..]), "{listed}");

    let courier = RunningCourier::start(&site.fleet, &config());
    let test = site.post(&format!("{at}/test"), json!({})).await;
    assert_eq!((test.status.as_u16(), &test.body["type"]), (202, &json!("webhook.test")));
    let delivery = test.body["id"].as_str().unwrap();
    assert_eq!(ended(&site, delivery).await["state"], "delivered");
    let got = receiver.has_got(1).await.remove(0);
    assert!(got.id() == delivery && got.verifies_with(&secret) && got.json()["data"]["endpoint_id"] == id.as_str());
    receiver.answers(Manner::Status(500));
    let test = site.post(&format!("{at}/test"), json!({})).await.ok();
    let failed = ended(&site, test["id"].as_str().unwrap()).await;
    assert_eq!((&failed["state"], &failed["attempts"], &failed["next_at"]), (&json!("failed"), &json!(1), &Value::Null), "tried once");

    receiver.answers(Manner::Status(200));
    let rotated = site.post(&format!("{at}/rotate"), json!({ "keep_old_s": 60 })).await.ok();
    assert!(rotated["secret"] != secret.as_str() && rotated["old_secret_until"].is_string(), "{rotated}");
    let again = site.post(&format!("/v1/webhook-deliveries/{delivery}/replay"), json!({})).await;
    assert_eq!(again.status, 202);
    let got = receiver.has_got(3).await.remove(2);
    assert!(got.id() == delivery && got.verifies_with(&secret) && got.verifies_with(rotated["secret"].as_str().unwrap()));
    courier.stop().await;

    let patch = async |body: Value| site.as_who(&site.token, "PATCH", &at, Some(body)).await;
    let changed = patch(json!({ "description": "ours", "events": ["turn.failed", "turn.failed"], "state": "disabled" })).await.ok();
    assert_eq!((&changed["description"], &changed["disabled_reason"]), (&json!("ours"), &json!("by hand, over the API")));
    for refused in [
        site.post(&format!("{at}/test"), json!({})).await,
        site.post(&format!("{at}/replay"), json!({ "since": "2026-01-01T00:00:00Z" })).await,
        site.post(&format!("/v1/webhook-deliveries/{delivery}/replay"), json!({})).await,
    ] {
        assert_eq!((refused.status.as_u16(), refused.problem()), (409, "endpoint_disabled"));
    }
    assert_eq!(patch(json!({ "state": "enabled" })).await.ok()["disabled_reason"], Value::Null);
    assert_eq!(site.as_who(&site.token, "DELETE", &at, None).await.status, 204);
    assert_eq!(site.get(&at).await.problem(), "not_found");
    assert_eq!(site.get(&format!("/v1/webhook-deliveries/{delivery}")).await.problem(), "not_found");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn deliveries_are_listed_page_by_page_and_replayed_since_a_time(pool: PgPool) {
    let (site, receiver) = (Site::start(pool).await, Receiver::start(Manner::Status(200)).await);
    let (id, _) = make(&site, &receiver.url).await;
    site.fleet.turns_end(5).await;
    let fails = "UPDATE turnmill.outbox SET state = 'failed', last_error = 'x', ended_at = clock_timestamp() WHERE endpoint_id = $1";
    site.fleet.sql(fails, &id).await;
    let (mut ids, mut path) = (Vec::new(), format!("{ENDPOINTS}/{id}/deliveries?state=failed&limit=2"));
    loop {
        let page = site.get(&path).await.ok();
        ids.extend(page["data"].as_array().unwrap().iter().map(|delivery| delivery["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("{ENDPOINTS}/{id}/deliveries?state=failed&limit=2&cursor={next}");
    }
    assert!(ids.len() == 5 && ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    let other = site.get(&path.replace("state=failed", "state=pending")).await;
    assert_eq!(other.problem(), "invalid_cursor", "of another list");
    assert_eq!(site.get(&format!("{ENDPOINTS}/{id}/deliveries?state=pending")).await.ok()["data"], json!([]));

    site.fleet.sql("UPDATE turnmill.outbox SET created_at = created_at - interval '2 days' WHERE id = $1", &ids[4]).await;
    let since = site.get(&format!("/v1/webhook-deliveries/{}", ids[3])).await.ok()["created_at"].clone();
    let replayed = site.post(&format!("{ENDPOINTS}/{id}/replay"), json!({ "since": since })).await.ok();
    assert_eq!(replayed, json!({ "replayed": 4, "more": false }));
    let courier = RunningCourier::start(&site.fleet, &config());
    receiver.has_got(4).await;
    courier.stop().await;
    assert_eq!(site.get(&format!("{ENDPOINTS}/{id}/deliveries?state=failed")).await.ok()["data"][0]["id"], ids[4].as_str());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_bound_token_makes_and_sees_endpoints_of_its_own_only(pool: PgPool) {
    let site = Site::start(pool).await;
    let scopes = ["webhooks:read", "webhooks:write"];
    let bounds = Bounds { project_id: Some("p1".to_owned()), tenant_id: Some("t1".to_owned()), session_id: None };
    let bound = site.token(&scopes, bounds).await;
    let of_project = site.token(&scopes, Bounds { project_id: Some("p1".to_owned()), ..Bounds::default() }).await;
    let url = "https://app.example/hooks";
    let (everyones, _) = make(&site, url).await;
    let made = site.as_who(&bound, "POST", ENDPOINTS, Some(json!({ "url": url }))).await.ok();
    let own = format!("{ENDPOINTS}/{}", made["endpoint_id"].as_str().unwrap());
    let read = site.as_who(&bound, "GET", &own, None).await.ok();
    assert_eq!((&read["project_id"], &read["tenant_id"]), (&json!("p1"), &json!("t1")), "it is bound as the token is");
    let other = site.as_who(&bound, "POST", ENDPOINTS, Some(json!({ "url": url, "project_id": "p2", "tenant_id": "t2" }))).await;
    assert_eq!(other.body["errors"].as_array().unwrap().len(), 2, "{other:?}");
    for (token, count) in [(&bound, 1), (&of_project, 1), (&site.token, 2)] {
        assert_eq!(site.as_who(token, "GET", ENDPOINTS, None).await.ok()["data"].as_array().unwrap().len(), count);
    }
    assert_eq!(site.as_who(&of_project, "GET", &format!("{ENDPOINTS}/{everyones}"), None).await.problem(), "not_found");
    site.say("s1", "hi").await;
    let browser = site.post("/v1/sessions/s1/tokens", json!({})).await.ok();
    let browser = browser["token"].as_str().unwrap();
    assert_eq!(site.as_who(browser, "GET", ENDPOINTS, None).await.problem(), "insufficient_scope");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_is_wrong_with_an_endpoint_is_said_with_its_place(pool: PgPool) {
    let site = Site::start(pool).await;
    let (id, _) = make(&site, "https://app.example/hooks").await;
    for (body, pointer) in [
        (json!({ "url": "http://10.0.0.1/" }), "/url"),
        (json!({ "url": "https://[fd00::1]/" }), "/url"),
        (json!({ "url": "app.example" }), "/url"),
        (json!({ "url": "https://x.example", "events": [] }), "/events"),
        (json!({ "url": "https://x.example", "events": ["turn.started"] }), "/events/0"),
        (json!({ "url": "https://x.example", "description": "x".repeat(256) }), "/description"),
        (json!({ "url": "https://x.example", "project_id": "" }), "/project_id"),
    ] {
        let refused = site.post(ENDPOINTS, body.clone()).await;
        assert_eq!((refused.problem(), &refused.body["errors"][0]["pointer"]), ("invalid_request", &json!(pointer)), "{body}: {refused:?}");
    }
    let refused = site.as_who(&site.token, "PATCH", &format!("{ENDPOINTS}/{id}"), Some(json!({ "url": "ftp://x" }))).await;
    assert_eq!(refused.body["errors"][0]["pointer"], "/url");
    let most = config().webhooks.endpoints_max;
    for _ in 1..most {
        make(&site, "https://app.example/hooks").await;
    }
    let many = site.post(ENDPOINTS, json!({ "url": "https://app.example/hooks" })).await;
    assert_eq!((many.status.as_u16(), many.problem()), (409, "too_many_endpoints"));
    let other = site.post(ENDPOINTS, json!({ "url": "https://app.example/hooks", "project_id": "p1" })).await;
    assert_eq!(other.status, 201, "of other bounds there is room");
    for nth in 1..most {
        let body = json!({ "url": "https://app.example/hooks", "project_id": "p1", "tenant_id": format!("t{nth}") });
        site.post(ENDPOINTS, body).await.ok();
    }
    let more = site.post(ENDPOINTS, json!({ "url": "https://app.example/hooks", "project_id": "p1", "tenant_id": "another" })).await;
    assert_eq!((more.status.as_u16(), more.problem()), (409, "too_many_endpoints"), "a project's are counted over its tenants");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_command_does_the_same(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = crate::harness::Fleet::new(pool);
    let receiver = Receiver::start(Manner::Status(200)).await;
    let run = async |args: &[&str]| {
        let mut command = turnmill(&[&["webhook"], args].concat());
        command.env("DATABASE_URL", &url).env("TURNMILL_WEBHOOKS__ALLOW_NETWORKS", "127.0.0.0/8").output().await.unwrap()
    };
    let made =
        run(&["create", &receiver.url, "--description", "the shop", "--project", "p1", "--event", "turn.completed,turn.failed"]).await;
    let secret = String::from_utf8(made.stdout.clone()).unwrap().trim().to_owned();
    assert!(secret.starts_with("whsec_") && said(&made).contains("not sealed in the database"), "{}", said(&made));
    let id = String::from_utf8(made.stderr).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(said(&run(&[]).await).contains(&format!("{id}  {}  turn.completed turn.failed, project p1  enabled", receiver.url)));

    let courier = RunningCourier::start(&fleet, &config());
    let tested = run(&["test", &id]).await;
    assert!(tested.status.success() && said(&tested).contains("delivered  webhook.test"), "{}", said(&tested));
    receiver.answers(Manner::Status(503));
    let tested = run(&["test", &id]).await;
    assert!(
        tested.status.code() == Some(1) && said(&tested).contains("failed  webhook.test  -  tries 1: it answered 503"),
        "{}",
        said(&tested)
    );
    assert!(said(&run(&["list"]).await).contains("failing: 1 in a row, the last: it answered 503"));
    let deliveries = said(&run(&["deliveries", &id, "--state", "failed"]).await);
    let delivery = deliveries.split_whitespace().next().unwrap().to_owned();
    assert!(delivery.starts_with("msg_") && deliveries.lines().count() == 1, "{deliveries}");
    receiver.answers(Manner::Status(200));
    assert!(said(&run(&["replay", &delivery]).await).contains("It is due again."));
    let got = receiver.has_got(3).await.remove(2);
    assert!(got.id() == delivery && got.verifies_with(&secret));
    courier.stop().await;

    let rotated = run(&["rotate", &id, "--keep-old", "2h"]).await;
    assert!(said(&rotated).contains("The old one signs as well until") && said(&rotated).contains("whsec_"), "{}", said(&rotated));
    assert!(run(&["disable", &id, "--reason", "it moves"]).await.status.success());
    let shown = said(&run(&["show", &id]).await);
    assert!(shown.contains("disabled: it moves (since ") && shown.contains("not sealed, the old one signs until"), "{shown}");
    assert!(said(&run(&["test", &id]).await).contains(&format!("enable it with: turnmill webhook enable {id}")));
    assert!(said(&run(&["replay", &id, "--since", "2d"]).await).contains("enable it first"));
    assert!(run(&["enable", &id]).await.status.success());
    assert!(said(&run(&["replay", &id, "--since", "2d"]).await).contains("0 deliveries are due again."));
    assert!(run(&["delete", &id]).await.status.success());
    for args in [["show", &id], ["delete", &id], ["rotate", &id], ["deliveries", &id], ["enable", &id]] {
        assert!(said(&run(&args).await).contains("list endpoints with: turnmill webhook list"), "{args:?}");
    }
    assert!(said(&run(&["replay", "msg_x"]).await).contains("there is no delivery \"msg_x\""));
    let refused = run(&["create", "http://10.0.0.1/"]).await;
    assert!(said(&refused).contains("error: the URL can't be asked: 10.0.0.1 is in no public network"), "{}", said(&refused));
}
