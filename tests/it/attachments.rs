//! Files that come with a message: in the agent's working directory before it starts, and images before its eyes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::store::{Enqueue, PoolChange};

use crate::commands::{said, turnmill};
use crate::harness::{Fleet, Running, until};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nnot much of an image";

/// Prints its message, then what is in the files.
const AGENT: &str = r#"read -r input; printf '{"type":"content","text":"%s"}\n' "$(printf %s "$input" | base64 -w0)"
for file in a.txt data/report.csv pic; do printf '{"type":"content","text":"%s"}\n' "$(base64 -w0 <"$file")"; done"#;

async fn decoded(all: &Running, turn: &str) -> Vec<Vec<u8>> {
    let blocks = all.fleet.blocks(turn).await;
    // It keeps no conversation, which is said.
    blocks
        .iter()
        .filter(|block| block[1]["kind"].is_null())
        .map(|block| BASE64.decode(block[1]["text"].as_str().unwrap()).unwrap())
        .collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_comes_with_a_message_is_in_the_workspace_and_images_are_seen(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    let agent = Some(["bash", "-c", AGENT].map(str::to_owned).to_vec());
    all.fleet.store.set_pool("default", &PoolChange { agent, ..PoolChange::default() }).await.unwrap();
    let attachments = json!([
        { "path": "a.txt", "text": "caf\u{e9}" },
        { "path": "data/report.csv", "base64": BASE64.encode("1,2\n"), "media_type": "text/CSV" },
        { "path": "pic", "base64": BASE64.encode(PNG) },
    ]);
    let turn = Enqueue {
        prompt: "look".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some("chat".to_owned()),
        attachments: Some(attachments),
        ..Enqueue::default()
    };
    let first = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    assert_eq!(all.fleet.ended(&first).await.error_message, None);
    let says = decoded(&all, &first).await;
    assert_eq!(says[1..], ["caf\u{e9}".as_bytes(), b"1,2\n", PNG]);
    let message: Value = serde_json::from_slice(&says[0]).unwrap();
    let parts = message["message"]["content"].as_array().unwrap();
    assert_eq!((parts.len(), &parts[0]), (3, &json!({ "type": "text", "text": "look" })));
    let list = "Files that came with this message, in your working directory:\n- a.txt (text/plain, 5 bytes)\n- data/report.csv (text/csv, 4 bytes)\n- pic (application/octet-stream, 28 bytes)";
    assert_eq!(parts[1]["text"], list);
    let source = json!({ "type": "base64", "media_type": "image/png", "data": BASE64.encode(PNG) });
    assert_eq!(parts[2], json!({ "type": "image", "source": source }));
    assert_eq!(all.fleet.store.artifacts(&first).await.unwrap().unwrap().rows.len(), 0, "they are no work of the turn");

    // Again: the same files, from the old turn. And in a new sandbox they are part of what was before.
    let again = all.fleet.store.retry(&first).await.unwrap().turn_id.unwrap();
    assert_eq!(all.fleet.ended(&again).await.error_message, None);
    let says = decoded(&all, &again).await;
    assert!(String::from_utf8_lossy(&says[0]).contains("image/png"));
    assert_eq!(says[3], PNG);
    let plain = all.fleet.enqueue_in("no files", Some("chat")).await.turn_id;
    assert_eq!(all.fleet.ended(&plain).await.error_message, None);
    let says = decoded(&all, &plain).await;
    assert!(!String::from_utf8_lossy(&says[0]).contains("came with"));
    assert_eq!(says[3], PNG);

    // From the command line.
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, content) in [("a.txt", &b"a"[..]), ("b=c", b"b"), ("x.png", PNG)] {
        std::fs::write(place(name), content).unwrap();
    }
    let (odd, png) = (format!("{}=data/report.csv", place("b=c")), format!("{}=pic", place("x.png")));
    let args = ["enqueue", "look", "--id", "cli", "--attach", &place("a.txt"), "--attach", &odd, "--attach", &png];
    let output = turnmill(&args).env("DATABASE_URL", &url).output().await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    all.fleet.ended("cli").await;
    assert_eq!(decoded(&all, "cli").await[1..], [&b"a"[..], b"b", PNG]);
    let output = turnmill(&["enqueue", "look", "--attach", &place("none")]).env("DATABASE_URL", &url).output().await.unwrap();
    assert!(output.status.code() == Some(1) && said(&output).contains("--attach takes FILE or FILE=PATH"), "{}", said(&output));
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_attachment_that_leads_out_of_the_workspace_fails_its_turn(pool: PgPool) {
    let all = Running::start(pool).await;
    let prepare = Some(Some("ln -s /tmp way".to_owned()));
    all.fleet.store.set_pool("default", &PoolChange { prepare, ..PoolChange::default() }).await.unwrap();
    let attachments = Some(json!([{ "path": "way/turnmill-attached", "text": "x" }]));
    let turn = Enqueue { prompt: "look".to_owned(), project_id: Some("p1".to_owned()), attachments, ..Enqueue::default() };
    let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    let ended = all.fleet.ended(&turn).await;
    assert_eq!((ended.error_code.as_deref(), all.agent_starts()), (Some("attachment_refused"), 0));
    assert!(ended.error_message.unwrap().contains("way/turnmill-attached leads out of the workspace"));
    assert!(!std::path::Path::new("/tmp/turnmill-attached").exists());
    all.stop().await;
}

/// Also where the first attempt's sandbox is lost.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_new_sandbox_of_a_turn_gets_its_attachments(pool: PgPool) {
    let all = Running::start(pool).await;
    let script = json!({ "steps": [{ "read": "a.txt" }, { "write": { "path": "a.txt", "text": "changed" } }, { "sleep_ms": 2000 }, { "read": "a.txt" }] });
    let attachments = Some(json!([{ "path": "a.txt", "text": "mine" }]));
    let turn = Enqueue { prompt: format!("/mock {script}"), project_id: Some("p1".to_owned()), attachments, ..Enqueue::default() };
    let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    all.fleet.has_blocks(&turn, 1).await;
    let sandbox = until("its sandbox", || async { all.e2b.client().list(&[]).await.ok()?.pop() }).await;
    all.e2b.vanish(&sandbox.id).await;
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);
    let said: Vec<_> = all.fleet.blocks(&turn).await.iter().map(|block| block[1]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(said, ["mine", "mine", "changed"]);
    all.stop().await;
}

fn enqueue(attachments: &str) -> String {
    format!("SELECT turnmill.enqueue_turn('x', project_id => 'p1', attachments => '{attachments}')")
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_bad_attachment_is_refused_with_what_would_be_a_good_one(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.sql("UPDATE turnmill.fleet SET attachments_max_bytes = 10 WHERE $1 <> ''", "x").await;
    let of = |path: &str| json!([{ "path": path, "text": "" }]).to_string();
    let long = format!("{}/x", "d/".repeat(512));
    let cases = [
        (r#"{"path": "a"}"#.to_owned(), "attachments is not a JSON array | For example"),
        (
            format!("[{}]", vec![r#"{"path": "a", "text": ""}"#; 51].join(",")),
            "there are 51 attachments, more than the limit of 50 | Put them",
        ),
        (r#"["a"]"#.to_owned(), "attachment 1 is not a JSON object | Give {\"path\""),
        (r#"[{"path": "a", "text": "x"}, {"text": "x"}]"#.to_owned(), "attachment 2 has no path | Give a path below"),
        (r#"[{"path": 1, "text": "x"}]"#.to_owned(), "attachment 1 has a \"path\" that is not a text"),
        (r#"[{"path": "a", "content": "x"}]"#.to_owned(), "attachment 1 has a \"content\" that is not known"),
        (r#"[{"path": "a"}]"#.to_owned(), "attachment 1 has neither \"base64\" nor \"text\" | Give"),
        (r#"[{"path": "a", "text": "x", "base64": "eA=="}]"#.to_owned(), "attachment 1 has both \"base64\" and \"text\" | Give"),
        (r#"[{"path": "a", "base64": "e"}]"#.to_owned(), "attachment 1 is not base64: "),
        (r#"[{"path": "a", "base64": "e!=="}]"#.to_owned(), "attachment 1 is not base64: invalid symbol \"!\""),
        (r#"[{"path": "a", "text": "x", "media_type": "csv"}]"#.to_owned(), "attachment 1 has the media type \"csv\" | Give one as"),
        (r#"[{"path": "a", "text": "x", "media_type": "a/b\nc"}]"#.to_owned(), "attachment 1 has the media type"),
        (of(""), "attachment 1 has no path"),
        (of("/etc/passwd"), "attachment 1 has the path \"/etc/passwd\", from the root"),
        (of("a/../../b"), "with an empty part, \".\" or \"..\" in it"),
        (of(".."), "with an empty part"),
        (of("./a"), "with an empty part"),
        (of("a//b"), "with an empty part"),
        (of("a/"), "with an empty part"),
        (of("a\nb"), "has a path with a control character or a backslash"),
        (of("a\u{7f}b"), "has a path with a control character or a backslash"),
        (of("a\u{85}b"), "has a path with a control character or a backslash"),
        (of("a\\b"), "has a path with a control character or a backslash"),
        (of(&long), "has a path of 1026 bytes, more than 1024"),
        (of(&"\u{e9}".repeat(128)), "a name of more than 255 bytes"),
        (of(".claude/settings.json"), "where the agent keeps its own files"),
        (of(".claude.json"), "where the agent keeps its own files"),
        (r#"[{"path": "a", "text": "x"}, {"path": "a", "text": "y"}]"#.to_owned(), "two attachments are for the path \"a\" | Give each"),
        (r#"[{"path": "a/b", "text": "x"}, {"path": "a", "text": "y"}]"#.to_owned(), "two attachments are for the path \"a\" | Give each"),
        (
            r#"[{"path": "a", "text": "123456"}, {"path": "b", "base64": "MTIzNDU="}]"#.to_owned(),
            "the attachments have 11 bytes, more than the limit of 10 | Put large",
        ),
    ];
    for (attachments, words) in cases {
        let refused = fleet.refused(&enqueue(&attachments)).await;
        assert!(refused.starts_with("TM400 ") && refused.contains(words), "{attachments}\n got {refused}\n for {words}");
    }
    let refused = fleet.refused("SELECT turnmill.enqueue_turn('x', project_id => 'p1', attachments => NULL)").await;
    assert!(refused.starts_with("TM400 attachments is not a JSON array"), "{refused}");
    let left: i64 = sqlx::query_scalar("SELECT (SELECT count(*) FROM turnmill.turns) + (SELECT count(*) FROM turnmill.attachments)")
        .fetch_one(&fleet.pool)
        .await
        .unwrap();
    assert_eq!(left, 0, "nothing was half done");
    // Good, just so: ten bytes, odd names.
    let good = json!([{ "path": "...", "text": "12345" }, { "path": "a b/it''s-\u{1f600}.txt", "base64": "MTIz\nNDU=" }, { "path": "d/.claude", "text": "" }]);
    sqlx::raw_sql(sqlx::AssertSqlSafe(enqueue(&good.to_string()))).execute(&fleet.pool).await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn attachments_are_part_of_what_a_key_stands_for_and_without_any_all_is_as_it_was(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let keyed = |key: &str, attachments: Option<Value>| Enqueue {
        prompt: "hi".to_owned(),
        project_id: Some("p1".to_owned()),
        session_id: Some("s1".to_owned()),
        idempotency_key: Some(key.to_owned()),
        attachments,
        ..Enqueue::default()
    };
    let one = || Some(json!([{ "path": "a", "text": "x" }]));
    let first = fleet.store.enqueue(&keyed("k", one())).await.unwrap();
    let again = fleet.store.enqueue(&keyed("k", one())).await.unwrap();
    assert_eq!((again.turn_id, again.replayed), (first.turn_id, true));
    for other in [None, Some(json!([{ "path": "a", "text": "y" }]))] {
        let refused = fleet.store.enqueue(&keyed("k", other)).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("TM409"));
    }
    // A turn that was enqueued before there were attachments is found again.
    fleet.store.enqueue(&keyed("old", None)).await.unwrap();
    let hash: Vec<u8> =
        sqlx::query_scalar("SELECT body_hash FROM turnmill.turns WHERE idempotency_key = 'old'").fetch_one(&fleet.pool).await.unwrap();
    let body = r#"["hi", {}, "s1", null, null, 0, null, null]"#;
    assert_eq!(hash, <sha2::Sha256 as sha2::Digest>::digest(body).to_vec());
}
