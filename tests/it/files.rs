//! What a turn does to files: readers can list and fetch it, the session's next turn finds it in whatever sandbox, and
//! what is lost is said.

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::files::Change;
use turnmill::sandbox::{Launch, Sandbox};
use turnmill::store::{Artifact, PoolChange, TurnFiles};

use crate::commands::{said, turnmill};
use crate::harness::{Running, RunningWorker, until};

fn play(steps: &[Value]) -> String {
    format!("/mock {}", json!({ "steps": steps }))
}

fn write(path: &str, text: &str) -> Value {
    json!({ "write": { "path": path, "text": text } })
}

fn read(path: &str) -> Value {
    json!({ "read": path })
}

/// Runs a turn of the session `chat` to its end.
async fn turn(all: &Running, steps: &[Value]) -> String {
    let turn = all.fleet.enqueue_in(&play(steps), Some("chat")).await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!(ended.status, "completed", "{:?}", ended.error_message);
    turn
}

/// What the answer says; of a block that is no word of the agent's, its kind.
async fn texts(all: &Running, turn: &str) -> Vec<String> {
    let text = |block: Value| block[1]["kind"].as_str().or(block[1]["text"].as_str()).unwrap_or_default().to_owned();
    all.fleet.blocks(turn).await.into_iter().map(text).collect()
}

async fn listed(all: &Running, turn: &str) -> Vec<String> {
    let found = all.fleet.store.artifacts(turn).await.unwrap().unwrap();
    found.rows.into_iter().map(|row| format!("{} {}{}", row.change, row.path, if row.kept { "" } else { " -" })).collect()
}

async fn set(all: &Running, change: PoolChange) {
    all.fleet.store.set_pool("default", &change).await.unwrap();
}

async fn kind(all: &Running, turn: &str) -> String {
    sqlx::query_scalar("SELECT kind FROM turnmill.workspaces WHERE turn_id = $1").bind(turn).fetch_one(&all.fleet.pool).await.unwrap()
}

const MISSING: &str = "No such file or directory (os error 2)";

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_finds_the_files_of_those_before_it_in_a_new_sandbox(pool: PgPool) {
    let all = Running::start(pool).await;
    let prepare = Some(Some("echo brought >project; echo brought >doomed".to_owned()));
    set(&all, PoolChange { prepare, ..PoolChange::default() }).await;
    let first = turn(&all, &[write("src/a.txt", "one"), write("project", "changed"), json!({ "delete": "doomed" })]).await;
    assert_eq!(listed(&all, &first).await, ["deleted doomed -", "modified project", "created src/a.txt"]);
    let second = turn(&all, &[read("src/a.txt"), read("project"), read("doomed"), write("src/a.txt", "two"), write("b", "")]).await;
    assert_eq!(texts(&all, &second).await, ["one", "changed", MISSING], "nothing is lost, so nothing is said");
    assert_eq!(listed(&all, &second).await, ["created b", "modified src/a.txt"], "what was restored is no work of this turn");
    let third = turn(&all, &[read("src/a.txt"), read("doomed")]).await;
    assert_eq!(texts(&all, &third).await, ["two", MISSING]);
    assert_eq!((listed(&all, &third).await.len(), kind(&all, &third).await.as_str()), (0, "saved"));
    assert_eq!(all.e2b.acts("create").await.len(), 3, "each in a sandbox of its own");
    let other = all.fleet.enqueue_in(&play(&[read("src/a.txt")]), Some("another chat")).await.turn_id;
    all.fleet.ended(&other).await;
    assert_eq!(texts(&all, &other).await, [MISSING]);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn artifacts_are_listed_and_fetched_by_sql_and_from_the_command_line(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    set(&all, PoolChange { artifact_max_bytes: Some(10), ..PoolChange::default() }).await;
    let made = turn(&all, &[write("out/report.txt", "4 bytes\u{1f600}"), write("large", "more than ten")]).await;
    let rows: Value = sqlx::query_scalar("SELECT jsonb_agg(to_jsonb(a) - 'turn_id' ORDER BY n) FROM turnmill.artifacts a")
        .fetch_one(&all.fleet.pool)
        .await
        .unwrap();
    let hash = "\\x".to_owned() + &hex(b"more than ten");
    assert_eq!(rows[0], json!({ "n": 0, "path": "large", "change": "created", "bytes": 13, "sha256": hash, "content": null }));
    assert_eq!((&rows[1]["path"], &rows[1]["bytes"]), (&json!("out/report.txt"), &json!(11)));
    // Of 11 bytes none are kept; of 10 all.
    set(&all, PoolChange { artifact_max_bytes: Some(11), ..PoolChange::default() }).await;
    let second = turn(&all, &[write("out/report.txt", "4 bytes\u{1f601}"), json!({ "delete": "large" })]).await;
    assert_eq!(all.fleet.store.artifact(&second, "out/report.txt").await.unwrap(), "4 bytes\u{1f601}".as_bytes());
    for (turn, path, words) in [
        ("nope", "x", "TM404 there is no turn \"nope\" | List turns"),
        (&made, "x", "has no artifact \"x\" | Its files are listed in turnmill.artifacts"),
        (&made, "large", "was not kept | It has 13 bytes. Files are kept up to the pool's artifact_max_bytes"),
        (&second, "large", "deleted \"large\" | An earlier turn"),
    ] {
        let refused = all.fleet.refused(&format!("SELECT turnmill.artifact('{turn}', '{path}')")).await;
        assert!(refused.starts_with("TM404") && refused.contains(words), "{refused}");
    }
    let run = async |args: &[&str]| turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();
    let list = said(&run(&["artifacts", &second]).await);
    assert_eq!(list, "deleted    -  large\nmodified  11  out/report.txt\n");
    assert!(said(&run(&["artifacts", &made]).await).contains("created   13  large  (not kept)"));
    let json = run(&["artifacts", &second, "--json"]).await;
    let last: Value = serde_json::from_slice(json.stdout.split(|&byte| byte == b'\n').nth(1).unwrap()).unwrap();
    assert_eq!(
        (&last["path"], &last["kept"], &last["sha256"]),
        (&json!("out/report.txt"), &json!(true), &json!(hex("4 bytes\u{1f601}".as_bytes())))
    );
    assert_eq!(run(&["artifacts", &second, "out/report.txt"]).await.stdout, "4 bytes\u{1f601}".as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fetched");
    assert!(run(&["artifacts", &second, "out/report.txt", "-o", file.to_str().unwrap()]).await.status.success());
    assert_eq!(std::fs::read(file).unwrap(), "4 bytes\u{1f601}".as_bytes());
    for (args, words) in [(&["artifacts", "nope"][..], "there is no turn \"nope\""), (&["artifacts", &made, "large"], "artifact_max_bytes")]
    {
        let output = run(args).await;
        assert!(output.status.code() == Some(1) && said(&output).contains(words), "{}", said(&output));
    }
    all.stop().await;
}

fn hex(content: &[u8]) -> String {
    format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(content))
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_failed_and_cancelled_turns_have_made_is_there_and_all_attempts_count(pool: PgPool) {
    let all = Running::start(pool).await;
    let error = |error: &str, status: u16| json!({ "api_error": { "error": error, "status": status, "message": "on demand" } });
    let failing = play(&[write("failed", "1"), error("invalid_request", 400)]);
    let failed = all.fleet.enqueue_in(&failing, Some("chat")).await.turn_id;
    assert_eq!(all.fleet.ended(&failed).await.status, "failed");
    assert_eq!(listed(&all, &failed).await, ["created failed"]);
    let cancelled =
        all.fleet.enqueue_in(&play(&[write("cancelled", "2"), json!({ "text": "now" }), json!("hang")]), Some("chat")).await.turn_id;
    all.fleet.has_blocks(&cancelled, 1).await;
    all.fleet.store.cancel(&cancelled, None).await.unwrap();
    assert_eq!(all.fleet.ended(&cancelled).await.status, "cancelled");
    assert_eq!(listed(&all, &cancelled).await, ["created cancelled"]);
    let shaky = turn(&all, &[write("before", "3"), error("overloaded", 529), read("before"), write("after", "4")]).await;
    assert_eq!(all.fleet.turn(&shaky).await.attempt, 2);
    assert_eq!(listed(&all, &shaky).await, ["created after", "created before"]);
    let last = turn(&all, &["failed", "cancelled", "before", "after"].map(read)).await;
    assert_eq!(texts(&all, &last).await, ["1", "2", "3", "4"]);
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn files_that_cannot_be_restored_are_said_to_be_lost_with_the_reason(pool: PgPool) {
    let all = Running::start(pool).await;
    let noise: String = (0..400).map(|n: u32| char::from_u32(0x4e00 + n * 37 % 5000).unwrap()).collect();
    let limits =
        |policy: &str, max| PoolChange { workspace: Some(policy.to_owned()), workspace_max_bytes: Some(max), ..PoolChange::default() };
    let cases = [
        (limits("none", 1 << 20), "SELECT $1", vec!["files"], "the pool keeps none"),
        (limits("hooks", 1 << 20), "SELECT $1", vec!["files"], "the hook finish has carried none"),
        (limits("auto", 300), "SELECT $1", vec!["files"], "larger than the pool's workspace_max_bytes of 300"),
        (
            limits("auto", 1 << 20),
            "UPDATE turnmill.workspaces SET data = substr(data, 1, 100) WHERE session_id = $1",
            vec!["files"],
            "the saved files of turn 1 can't be restored",
        ),
        (limits("auto", 1 << 20), "DELETE FROM turnmill.workspaces WHERE session_id = $1", vec!["files"], "its sandbox was lost before"),
        (
            limits("auto", 1 << 20),
            "WITH gone AS (DELETE FROM turnmill.workspaces WHERE session_id = $1) DELETE FROM turnmill.transcripts WHERE session_id = $1",
            vec!["conversation", "files"],
            "the conversation was not saved after the turn before this one; the files of turn 1 were not saved: its sandbox was lost before",
        ),
    ];
    for (nth, (change, spoil, lost, why)) in cases.into_iter().enumerate() {
        set(&all, change).await;
        let chat = format!("chat {nth}");
        let first = all.fleet.enqueue_in(&play(&[write("made", &noise)]), Some(&chat)).await.turn_id;
        all.fleet.ended(&first).await;
        assert_eq!(texts(&all, &first).await.len(), 0, "nothing is before it");
        assert!(listed(&all, &first).await[0].starts_with("created made"), "{why}");
        all.fleet.sql(spoil, &chat).await;
        let second = all.fleet.enqueue_in(&play(&[read("made")]), Some(&chat)).await.turn_id;
        assert_eq!(all.fleet.ended(&second).await.error_message, None);
        let blocks = all.fleet.blocks(&second).await;
        assert_eq!((blocks.len(), &blocks[0][1]["lost"]), (2, &json!(lost)), "{blocks:?}");
        assert!(blocks[0][1]["why"].as_str().unwrap().contains(why), "{}", blocks[0][1]["why"]);
        assert_eq!(blocks[1][1]["text"], MISSING);
        // It has left nothing behind, so nothing more is lost, whatever the pool keeps.
        let third = all.fleet.enqueue_in(&play(&[json!({ "text": "hi" })]), Some(&chat)).await.turn_id;
        all.fleet.ended(&third).await;
        assert_eq!((texts(&all, &third).await, kind(&all, &second).await.as_str()), (vec!["hi".to_owned()], "empty"), "{why}");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_that_vanishes_takes_only_its_own_turn_s_files(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.sandboxes_lost_max = 1).await;
    turn(&all, &[write("kept", "1")]).await;
    let script = play(&[read("kept"), read("half"), write("half", "2"), json!({ "text": "go" }), json!("hang")]);
    let vanishing = all.fleet.enqueue_in(&script, Some("chat")).await.turn_id;
    for generation in 1..=2 {
        all.fleet.has_blocks(&vanishing, generation * 3).await;
        let sandbox = until("its sandbox", || async { all.e2b.client().list(&[]).await.ok()?.pop() }).await;
        all.e2b.vanish(&sandbox.id).await;
    }
    assert_eq!(all.fleet.ended(&vanishing).await.error_code.as_deref(), Some("sandbox_lost"));
    let said = texts(&all, &vanishing).await;
    assert_eq!(said[..6], ["1", MISSING, "go", "1", MISSING, "go"], "each time from the turn's start");
    let next = turn(&all, &[read("kept"), read("half")]).await;
    let blocks = all.fleet.blocks(&next).await;
    assert_eq!((&blocks[1][1]["text"], &blocks[2][1]["text"]), (&json!("1"), &json!(MISSING)));
    let why = blocks[0][1]["why"].as_str().unwrap();
    assert!(why.ends_with("the files of turn 2 were not saved: its sandbox was lost before, or they were forgotten since; they are as they were after turn 1"), "{why}");
    all.stop().await;
}

/// What its first attempt had saved is not what its second one has left.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_sandbox_that_vanishes_in_a_second_attempt_leaves_no_older_state_behind(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.sandboxes_lost_max = 0).await;
    let error = json!({ "api_error": { "error": "overloaded", "status": 529, "message": "on demand" } });
    let script = play(&[write("first", "1"), error, write("first", "2"), json!({ "text": "go" }), json!("hang")]);
    let turn = all.fleet.enqueue_in(&script, Some("chat")).await.turn_id;
    let said = || async { all.fleet.blocks(&turn).await.iter().any(|block| block[1]["text"] == "go").then_some(()) };
    until("its second attempt", said).await;
    let sandbox = until("its sandbox", || async { all.e2b.client().list(&[]).await.ok()?.pop() }).await;
    all.e2b.vanish(&sandbox.id).await;
    assert_eq!(all.fleet.ended(&turn).await.error_code.as_deref(), Some("sandbox_lost"));
    assert_eq!(listed(&all, &turn).await.len(), 0);
    let next = all.fleet.enqueue_in(&play(&[read("first")]), Some("chat")).await.turn_id;
    all.fleet.ended(&next).await;
    assert_eq!(all.fleet.blocks(&next).await[0][1]["lost"], json!(["conversation", "files"]));
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn files_that_the_hooks_carry_are_not_saved_twice(pool: PgPool) {
    let all = Running::start(pool).await;
    let hooks = |finish: &str| PoolChange {
        prepare: Some(Some("echo brought >project".to_owned())),
        finish: Some(Some(finish.to_owned())),
        ..PoolChange::default()
    };
    set(&all, hooks("true")).await;
    let carried = turn(&all, &[write("made", "1")]).await;
    assert_eq!((kind(&all, &carried).await.as_str(), listed(&all, &carried).await), ("carried", vec!["created made".to_owned()]));
    let next = turn(&all, &[read("made"), read("project"), write("more", "2")]).await;
    assert_eq!(texts(&all, &next).await, [MISSING, "brought\n"], "what prepare brings, and no complaint");
    set(&all, hooks("exit 10")).await;
    let saved = turn(&all, &[write("made", "1")]).await;
    assert_eq!(kind(&all, &saved).await, "saved");
    // What can't be prepared has changed nothing.
    set(&all, PoolChange { prepare: Some(Some("exit 78".to_owned())), ..PoolChange::default() }).await;
    let broken = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    assert_eq!(all.fleet.ended(&broken).await.error_code.as_deref(), Some("prepare_config"));
    assert_eq!(kind(&all, &broken).await, "unchanged");
    set(&all, hooks("exit 10")).await;
    let last = turn(&all, &[read("made")]).await;
    assert_eq!(texts(&all, &last).await.last().unwrap(), "1");
    all.stop().await;
}

/// A project that has changed meanwhile, so that the files from before have no place in it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn files_that_cannot_be_unpacked_fail_the_turn_before_its_agent_starts(pool: PgPool) {
    let all = Running::start(pool).await;
    let prepare = Some(Some("mkdir data".to_owned()));
    set(&all, PoolChange { prepare, ..PoolChange::default() }).await;
    turn(&all, &[write("data/made", "1")]).await;
    let prepare = Some(Some("ln -s /tmp data".to_owned()));
    set(&all, PoolChange { prepare, ..PoolChange::default() }).await;
    let starts = all.agent_starts();
    let second = all.fleet.enqueue_in("/mock noop", Some("chat")).await.turn_id;
    let ended = all.fleet.ended(&second).await;
    assert_eq!((ended.error_code.as_deref(), ended.attempt), (Some("workspace_failed"), 1));
    assert!(ended.error_message.clone().unwrap().contains("data/made leads out of the workspace"), "{:?}", ended.error_message);
    assert_eq!(all.agent_starts(), starts);
    set(&all, PoolChange { workspace: Some("none".to_owned()), ..PoolChange::default() }).await;
    let third = turn(&all, &[json!({ "text": "on" })]).await;
    assert_eq!(texts(&all, &third).await, ["context_lost", "on"], "it goes on without them");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_adopts_a_new_sandbox_brings_the_files_and_a_stale_worker_saves_none(pool: PgPool) {
    let all = Running::start(pool).await;
    turn(&all, &[write("made", "1")]).await;
    all.fleet.no_slot_held().await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let second = fleet.enqueue_in(&play(&[read("made")]), Some("chat")).await.turn_id;
    // Lost between the create and the start.
    let job = fleet.worker("a").await.claim_one().await;
    let sandbox =
        e2b.client().create(turnmill::e2b::ApiVersion::V2, &job.nonce, &job.create_request, std::time::Duration::from_secs(30)).await;
    let sandbox = sandbox.unwrap();
    fleet.store.sandbox_ready(&job, &sandbox.id).await.unwrap().unwrap();
    let supervisor = Sandbox::new(&e2b.client(), &sandbox, &job.message_uuid, job.epoch, job.attempt, std::time::Duration::from_secs(30));
    supervisor.install().await.unwrap();
    assert!(supervisor.probe().await.unwrap().fresh);
    fleet.let_lease_expire("a").await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let all = Running { fleet, e2b, worker };
    assert_eq!(all.fleet.ended(&second).await.error_message, None);
    assert_eq!(texts(&all, &second).await, ["1"]);
    let forged = Artifact { path: "forged".to_owned(), change: Change::Created, bytes: Some(1), sha256: None, content: None };
    let kept = TurnFiles { kind: "empty", artifacts: vec![forged], ..TurnFiles::default() };
    assert!(all.fleet.store.save_files(&job, &kept).await.unwrap().is_err());
    assert_eq!((listed(&all, &second).await.len(), kind(&all, &second).await.as_str()), (0, "saved"));
    assert!(supervisor.start(&Launch::default()).await.is_err(), "nor in the sandbox");
    all.stop().await;
}
