//! Turns and sessions over HTTP: the same as by SQL, and what is wrong is said with its place.

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::turn::Ending;

use crate::harness::until;
use crate::site::{Hand, Site};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_message_is_committed_with_a_receipt_and_the_session_on_the_way(pool: PgPool) {
    let site = Site::start(pool).await;
    let path = "/v1/sessions/chat 7%2F%C3%BC/turns";
    let first = site.post(path, json!({ "user_message": "hi", "project_id": "p1", "user_id": "u1", "options": { "max_turns": 3 } })).await;
    assert_eq!(first.status, 202, "{first:?}");
    let turn = first.body["turn_id"].as_str().unwrap().to_owned();
    assert_eq!(
        first.body,
        json!({ "turn_id": turn, "session_id": "chat 7/ü", "status": "pending", "disposition": "started", "queue_position": 0,
                "wait_reason": "no_worker", "replayed": false })
    );
    assert_eq!(first.headers["location"], format!("/v1/turns/{turn}"));
    let second = site.post(path, json!({ "user_message": "and" })).await.ok();
    assert_eq!((second["disposition"].as_str(), second["queue_position"].as_i64()), (Some("queued"), Some(1)));

    let read = site.get(&format!("/v1/turns/{turn}")).await.ok();
    assert_eq!((&read["user_message"], &read["options"], &read["ordinal"]), (&json!("hi"), &json!({ "max_turns": 3 }), &json!(1)));
    let with =
        json!({ "user_message": "see", "attachments": [{ "path": "data/a.txt", "text": "hi" }, { "path": "b.bin", "base64": "AAEC" }] });
    let third = site.post(path, with).await.ok();
    let files: Vec<(String, Vec<u8>)> = sqlx::query_as("SELECT path, content FROM turnmill.attachments WHERE turn_id = $1 ORDER BY n")
        .bind(third["turn_id"].as_str())
        .fetch_all(&site.fleet.pool)
        .await
        .unwrap();
    assert_eq!(files, [("data/a.txt".to_owned(), b"hi".to_vec()), ("b.bin".to_owned(), vec![0, 1, 2])]);
    let session = site.get("/v1/sessions/chat%207%2F%C3%BC").await.ok();
    assert_eq!((&session["user_id"], &session["unfinished"], &session["current_turn_id"]), (&json!("u1"), &json!(3), &json!(turn)));
    let reject = site.post(path, json!({ "user_message": "now", "on_busy": "reject" })).await;
    assert_eq!((reject.status.as_u16(), reject.problem()), (409, "session_busy"));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_repeated_request_with_its_key_is_the_same_turn_and_with_another_body_refused(pool: PgPool) {
    let site = Site::start(pool).await;
    let send = async |session: &str, key: &str, message: &str| {
        let request =
            site.request("POST", &format!("/v1/sessions/{session}/turns")).bearer_auth(&site.token).header("idempotency-key", key);
        site.send(request.json(&json!({ "user_message": message, "project_id": "p1", "tenant_id": "t1", "pool": "default" }))).await
    };
    let first = send("s1", "k1", "hi").await;
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = send("s1", "k1", "hi").await;
    assert_eq!((again.status.as_u16(), &again.headers["idempotency-replayed"]), (202, &"true".parse().unwrap()));
    assert_eq!((&again.body["turn_id"], &again.body["replayed"]), (&first.body["turn_id"], &json!(true)));
    for other in [send("s1", "k1", "ho").await, send("s2", "k1", "hi").await] {
        assert_eq!((other.status.as_u16(), other.problem()), (422, "idempotency_key_reused"));
        assert!(!other.body["detail"].as_str().unwrap().contains("turn_"), "it names no turn, which may be another's");
    }
    assert_eq!(site.get("/v1/sessions/s2").await.problem(), "not_found", "nothing was half done");
    let many: Vec<_> = (0..12).map(|_| send("s3", "k3", "hi")).collect();
    let racing = futures::future::join_all(many).await;
    assert!(racing.iter().all(|said| said.body["turn_id"] == racing[0].body["turn_id"]), "{racing:?}");
    assert_eq!(racing.iter().filter(|said| said.body["replayed"] == false).count(), 1);
    assert_eq!(send("s1", &"k".repeat(256), "hi").await.body["errors"][0]["parameter"], "Idempotency-Key");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_is_wrong_with_a_body_is_said_with_a_pointer(pool: PgPool) {
    let site = Site::start(pool).await;
    let enqueue = async |body: Value| site.post("/v1/sessions/s1/turns", body).await;
    let cases = [
        (json!({}), ""),
        (json!(["x"]), ""),
        (json!({ "user_message": "x", "project_id": "p1", "attachments": [["a", "b"]] }), "/attachments/0"),
        (json!({ "user_message": 5 }), "/user_message"),
        (json!({ "user_message": " \n" , "project_id": "p1"}), "/user_message"),
        (json!({ "user_message": "a\u{0}b", "project_id": "p1" }), "/user_message"),
        (json!({ "user_message": "x".repeat(1_100_000), "project_id": "p1" }), "/user_message"),
        (json!({ "user_message": "x", "project_id": "" }), "/project_id"),
        (json!({ "user_message": "x", "project_id": "p".repeat(256) }), "/project_id"),
        (json!({ "user_message": "x" }), ""),
        (json!({ "user_message": "x", "project_id": "p1", "pool": "nope" }), "/pool"),
        (json!({ "user_message": "x", "project_id": "p1", "on_busy": "perhaps" }), "/on_busy"),
        (json!({ "user_message": "x", "project_id": "p1", "priority": 1e9 }), "/priority"),
        (json!({ "user_message": "x", "project_id": "p1", "mood": "good" }), "/mood"),
        (json!({ "user_message": "x", "project_id": "p1", "attachments": [{ "path": "a" }] }), "/attachments/0"),
        (json!({ "user_message": "x", "project_id": "p1", "attachments": [{ "path": "a", "text": "\u{0}" }] }), "/attachments/0/text"),
        (
            json!({ "user_message": "x", "project_id": "p1", "attachments": [{ "path": "ok", "text": "" }, { "path": "../a", "text": "" }] }),
            "/attachments/1",
        ),
        (json!({ "user_message": "x", "project_id": "p1", "attachments": [{ "path": "a", "base64": "?" }] }), "/attachments/0"),
        (json!({ "user_message": "x", "project_id": "p1", "options": [] }), "/options"),
        (json!({ "user_message": "x", "project_id": "p1", "options": { "shell/x": "y" } }), "/options/shell~1x"),
        (json!({ "user_message": "x", "project_id": "p1", "options": { "model": {} } }), "/options/model"),
        (json!({ "user_message": "x", "project_id": "p1", "options": { "model": "a\u{0}" } }), "/options/model"),
        (json!({ "user_message": "x", "project_id": "p1", "options": { "max_turns": "many" } }), "/options/max_turns"),
    ];
    for (body, pointer) in cases {
        let shown = body.to_string().chars().take(80).collect::<String>();
        let refused = enqueue(body).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (400, "invalid_request"), "{shown}: {refused:?}");
        if !pointer.is_empty() {
            assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{shown}: {refused:?}");
        }
    }
    let both = enqueue(json!({ "user_message": "", "project_id": "", "options": { "model": [] } })).await;
    assert_eq!(both.body["errors"].as_array().unwrap().len(), 3, "all at once");
    let raw = async |kind: &str, body: &'static str| {
        let request = site.request("POST", "/v1/sessions/s1/turns").bearer_auth(&site.token).header("content-type", kind);
        site.send(request.body(body)).await
    };
    for bad in ["", "{", "{\"user_message\": \"x\"} x", "\u{feff}{}", "nul", "{\"user_message\": \"\\ud800\"}"] {
        assert_eq!(raw("application/json", bad).await.problem(), "malformed_json", "{bad}");
    }
    assert_eq!(raw("text/plain", "{}").await.problem(), "unsupported_media_type");
    assert_eq!(site.get("/v1/sessions/s1").await.problem(), "not_found", "nothing was half done");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn lists_go_on_where_they_ended_and_take_no_made_up_cursor(pool: PgPool) {
    let site = Site::start(pool).await;
    for nth in 0..7 {
        site.say(&format!("s{nth}"), "hi").await;
        site.say("s0", &format!("message {nth}")).await;
    }
    for path in ["/v1/sessions?limit=3", "/v1/sessions/s0/turns?limit=3", "/v1/sessions?limit=2&project_id=p1"] {
        let (mut ids, mut next) = (Vec::new(), None::<String>);
        loop {
            let cursor = next.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let page = site.get(&format!("{path}{cursor}")).await.ok();
            ids.extend(page["data"].as_array().unwrap().iter().map(|item| item["id"].clone()));
            // What is new comes before the first page: it moves nothing.
            site.say(&format!("new-{}", ids.len()), "hi").await;
            next = page["next_cursor"].as_str().map(str::to_owned);
            if next.is_none() {
                break;
            }
        }
        let of_before = ids.iter().filter(|id| !id.as_str().unwrap().starts_with("new-")).count();
        assert_eq!(of_before, if path.contains("/turns") { 8 } else { 7 }, "{path}: {ids:?}");
        assert_eq!(ids.iter().map(Value::to_string).collect::<std::collections::HashSet<_>>().len(), ids.len(), "none twice");
    }
    let cursor = site.get("/v1/sessions?limit=3").await.ok()["next_cursor"].as_str().unwrap().to_owned();
    for bad in [&cursor[1..], "x", "AAAAAA", "%00"] {
        assert_eq!(site.get(&format!("/v1/sessions?cursor={bad}")).await.problem(), "invalid_cursor", "{bad}");
    }
    let elsewhere = site.get(&format!("/v1/sessions/s0/turns?cursor={cursor}")).await;
    assert_eq!(elsewhere.problem(), "invalid_cursor", "it is another list's");
    for bad in ["limit=0", "limit=201", "limit=x", "limit=", "limit=1&limit=2", "nope=1", "project_id=", "project_id=%00"] {
        let refused = site.get(&format!("/v1/sessions?{bad}")).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (400, "invalid_request"), "{bad}");
        assert!(refused.body["errors"][0]["parameter"].is_string(), "{bad}: {refused:?}");
    }
    for bad in ["after=x", "after=-2", "wait=61", "wait=-1", "limit=501"] {
        assert_eq!(site.get(&format!("/v1/turns/x/blocks?{bad}")).await.problem(), "invalid_request", "{bad}");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_waits_can_be_edited_and_withdrawn_and_one_that_runs_cannot(pool: PgPool) {
    let site = Site::start(pool).await;
    let (first, second) = (site.say("s1", "hi").await, site.say("s1", "and").await);
    let edit = async |turn: &str, body: Value| site.as_who(&site.token, "PATCH", &format!("/v1/turns/{turn}"), Some(body)).await;
    let edited = edit(&first, json!({ "user_message": "other", "options": { "model": "m" } })).await.ok();
    assert_eq!((&edited["user_message"], &edited["options"]["model"]), (&json!("other"), &json!("m")));
    assert_eq!(edit(&first, json!({ "user_message": "" })).await.body["errors"][0]["pointer"], "/user_message");
    assert_eq!(edit(&first, json!({ "options": { "nope": "x" } })).await.body["errors"][0]["pointer"], "/options/nope");

    let worker = site.fleet.worker("a").await;
    let hand = Hand::of(&site.fleet, &worker).await;
    assert_eq!(hand.job.prompt, "other", "the worker gets what was written last");
    for refused in [
        edit(&first, json!({ "user_message": "late" })).await,
        site.as_who(&site.token, "DELETE", &format!("/v1/turns/{first}"), None).await,
    ] {
        assert_eq!((refused.status.as_u16(), refused.problem()), (409, "turn_started"));
    }
    for _ in 0..2 {
        let withdrawn = site.as_who(&site.token, "DELETE", &format!("/v1/turns/{second}"), None).await.ok();
        assert_eq!((&withdrawn["status"], &withdrawn["started_at"]), (&json!("cancelled"), &Value::Null));
    }
    assert_eq!(edit(&second, json!({ "user_message": "late" })).await.problem(), "turn_ended");
    let retry = async |turn: &str| site.as_who(&site.token, "POST", &format!("/v1/turns/{turn}/retry"), None).await;
    assert_eq!(retry(&first).await.problem(), "turn_unfinished");

    let cancel = async |path: &str, body: Option<Value>| site.as_who(&site.token, "POST", path, body).await.ok();
    assert_eq!(cancel("/v1/sessions/s1/interrupt", None).await, json!({ "turn_id": first, "status": "cancelling" }));
    assert_eq!(cancel(&format!("/v1/turns/{first}/cancel"), Some(json!({ "reason": "no" }))).await["status"], "cancelling");
    hand.end(Ending::Failed).await;
    assert_eq!(cancel(&format!("/v1/turns/{first}/cancel"), None).await["status"], "failed", "it has ended: no error");
    assert_eq!(cancel("/v1/sessions/s1/interrupt", Some(json!({}))).await, json!({ "turn_id": null, "status": null }));
    let again = retry(&first).await;
    assert_eq!(again.status, 202);
    let again = site.get(again.headers["location"].to_str().unwrap()).await.ok();
    assert_eq!((&again["retry_of"], &again["user_message"]), (&json!(first), &json!("other")));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_edit_and_a_claim_never_both_win(pool: PgPool) {
    let site = Site::start(pool).await;
    let worker = site.fleet.worker("a").await;
    site.fleet.cap("default", 100).await;
    for nth in 0..20 {
        let turn = site.say(&format!("s{nth}"), "before").await;
        let path = format!("/v1/turns/{turn}");
        let edit = site.as_who(&site.token, "PATCH", &path, Some(json!({ "user_message": "after" })));
        let (edited, claimed) = tokio::join!(edit, worker.claim(1));
        let claimed = if claimed.is_empty() { worker.claim_one().await } else { claimed.into_iter().next().unwrap() };
        let said = if edited.status.is_success() { "after" } else { "before" };
        assert_eq!(claimed.prompt, said, "{edited:?}");
        assert_eq!(site.get(&path).await.ok()["user_message"], said);
        crate::harness::settle_and_free(&site.fleet.store, &claimed, Ending::Completed).await;
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_session_can_be_made_before_its_first_turn_and_changed(pool: PgPool) {
    let site = Site::start(pool).await;
    let body = json!({ "id": "s1", "project_id": "p1", "on_busy": "reject" });
    let made = site.post("/v1/sessions", body.clone()).await;
    assert_eq!((made.status.as_u16(), made.headers["location"].to_str().unwrap()), (201, "/v1/sessions/s1"));
    assert_eq!(site.post("/v1/sessions", body).await.status, 200, "making it again is harmless");
    for other in [json!({ "id": "s1", "project_id": "p2" }), json!({ "id": "s1", "project_id": "p1", "on_busy": "queue" })] {
        assert_eq!(site.post("/v1/sessions", other).await.problem(), "conflict");
    }
    let nameless = site.post("/v1/sessions", json!({ "project_id": "p1" })).await;
    assert!(nameless.body["id"].as_str().unwrap().starts_with("sess_"));
    assert_eq!(site.post("/v1/sessions", json!({})).await.body["errors"][0]["pointer"], "/project_id");
    assert_eq!(site.post("/v1/sessions", json!({ "project_id": "p1", "pool": "nope" })).await.body["errors"][0]["pointer"], "/pool");
    site.say("s1", "hi").await;
    let busy = site.post("/v1/sessions/s1/turns", json!({ "user_message": "x" })).await;
    assert_eq!(busy.problem(), "session_busy");
    let changed = site.as_who(&site.token, "PATCH", "/v1/sessions/s1", Some(json!({ "on_busy": "queue" }))).await.ok();
    assert_eq!(changed["on_busy"], "queue");
    assert_eq!(site.post("/v1/sessions/s1/turns", json!({ "user_message": "x" })).await.status, 202);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_queue_is_told_without_counting_history(pool: PgPool) {
    let site = Site::start(pool).await;
    let empty = site.get("/v1/queue/stats").await.ok();
    assert_eq!((&empty["depth"], &empty["oldest_ready_at"], &empty["workers"]), (&json!(0), &Value::Null, &json!(0)));
    site.fleet.cap("default", 1).await;
    for session in ["s1", "s1", "s2"] {
        site.say(session, "hi").await;
    }
    let worker = site.fleet.worker("a").await;
    worker.claim_one().await;
    let stats = until("the numbers are a second old at most", || async {
        let stats = site.get("/v1/queue/stats").await.ok();
        (stats["running"] == 1).then_some(stats)
    })
    .await;
    assert_eq!((&stats["depth"], &stats["ready"], &stats["waiting"], &stats["workers"]), (&json!(2), &json!(1), &json!(1), &json!(1)));
    assert_eq!((&stats["pools"][0]["name"], &stats["pools"][0]["held"]), (&json!("default"), &json!(1)));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_a_turn_has_made_is_listed_and_fetched_as_bytes_to_be_saved(pool: PgPool) {
    let site = Site::start(pool).await;
    let turn = site.fleet.enqueue("x").await.turn_id;
    let path = format!("/v1/turns/{turn}/artifacts");
    assert_eq!(site.get(&path).await.ok(), json!({ "data": [], "unlisted": null }), "it has not ended");
    let made = "INSERT INTO turnmill.artifacts (turn_id, n, path, change, bytes, sha256, content)
                VALUES ($1, 0, 'a/b & c.html', 'created', 8, decode(repeat('00', 32), 'hex'), '<script>'::bytea), ($1, 1, 'huge', 'modified', 9, NULL, NULL),
                       ($1, 2, 'old', 'deleted', NULL, NULL, NULL)";
    site.fleet.sql(made, &turn).await;
    let listed = site.get(&path).await.ok();
    assert_eq!(
        listed["data"][0],
        json!({ "path": "a/b & c.html", "change": "created", "bytes": 8, "sha256": "00".repeat(32), "kept": true })
    );
    assert_eq!((&listed["data"][1]["kept"], &listed["data"][2]["change"]), (&json!(false), &json!("deleted")));
    let get = async |file: &str| {
        let file = file.replace('&', "%26").replace(' ', "+").replace('/', "%2F");
        site.request("GET", &format!("{path}/content?path={file}")).bearer_auth(&site.token).send().await.unwrap()
    };
    let read = get("a/b & c.html").await;
    let header = |name: &str| read.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        ["content-type", "content-disposition", "x-content-type-options"].map(header),
        ["application/octet-stream", "attachment", "nosniff"]
    );
    assert_eq!(read.bytes().await.unwrap(), "<script>");
    for file in ["huge", "old", "nope"] {
        assert_eq!(get(file).await.status(), 404, "{file}");
    }
    assert_eq!(get("").await.status(), 400);
    assert_eq!(site.get("/v1/turns/nope/artifacts").await.problem(), "not_found");
}
