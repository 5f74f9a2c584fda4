//! The command line as its users meet it: what it says when something is wrong, and that it leaves nothing behind.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Fleet, LocalE2b, Running, TURNMILL, until, use_mock};

pub fn turnmill(args: &[&str]) -> Command {
    let mut command = Command::new(TURNMILL);
    command.args(args).env_remove("DATABASE_URL").env("XDG_RUNTIME_DIR", "/nonexistent").kill_on_drop(true).stdin(Stdio::null());
    command
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub async fn fails(command: &mut Command, expected: &[&str]) {
    let output = command.output().await.unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in expected {
        assert!(said.contains(words), "expected {words:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

pub fn send(signal: Signal, child: &Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[sqlx::test(migrations = false)]
async fn what_is_wrong_with_the_database_is_said_with_what_to_do(pool: PgPool) {
    fails(&mut turnmill(&["turns"]), &["no database: set DATABASE_URL, or start one with everything else: turnmill dev"]).await;
    fails(turnmill(&["turns"]).env("DATABASE_URL", "not a url"), &["DATABASE_URL is not a Postgres URL; it looks like postgres://"]).await;
    fails(
        turnmill(&["turns"]).env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/shop"),
        &["can't reach Postgres at 127.0.0.1:1/shop; check DATABASE_URL"],
    )
    .await;
    fails(&mut turnmill(&["worker"]), &["DATABASE_URL is not set"]).await;

    let url = pool.connect_options().to_url_lossy().to_string();
    let mut worker = turnmill(&["worker"]);
    worker.env("DATABASE_URL", &url);
    fails(&mut worker, &["E2B_API_KEY is not set"]).await;
    worker.env("E2B_API_KEY", "k");
    fails(&mut worker, &["the database's schema is not there", "run: turnmill migrate"]).await;
    let migrated = turnmill(&["migrate"]).env("DATABASE_URL", &url).output().await.unwrap();
    assert!(migrated.status.success(), "{}", said(&migrated));
    fails(worker.env("TURNMILL_FLEET", "production"), &["\"dev\"", "\"production\"", "turnmill fleet fork"]).await;
}

#[tokio::test]
async fn unknown_settings_are_errors_not_silence() {
    fails(turnmill(&["turns"]).env("TURNMILL_WORKER__LAESE", "10s"), &["TURNMILL_WORKER__LAESE names no configuration key"]).await;
    fails(
        turnmill(&["turns"]).env("TURNMILL_WORKER_LEASE", "10s"),
        &["TURNMILL_WORKER_LEASE names no configuration key", "TURNMILL_WORKER__LEASE"],
    )
    .await;
    fails(turnmill(&["turns"]).env("TURNMILL_WORKER_SERVICE_HOST", "10.0.0.1").env("TURNMILL_MOCK_SCRIPT", "tools"), &["no database"])
        .await;
    for (name, url) in
        [("E2B_API_URL", "localhost:3000"), ("E2B_API_URL", "api.e2b.app"), ("E2B_SANDBOX_URL", "ftp://{sandbox_id}.e2b.app")]
    {
        fails(turnmill(&["turns"]).env(name, url), &[name, url, "no http:// or https:// URL; write it like https://"]).await;
    }
    fails(turnmill(&["turns"]).env("E2B_SANDBOX_URL", "http://{port}-{sandbox_id}.local:3000"), &["no database"]).await;
    fails(turnmill(&["turns"]).env("TURNMILL_WORKER__LEASE", "fast"), &["lease"]).await;
    fails(turnmill(&["turns"]).env("TURNMILL_WORKER__HEARTBEAT", "9s"), &["less than half of worker.lease"]).await;
    fails(&mut turnmill(&["local", "--listen", "0.0.0.0:0"]), &["loopback only"]).await;
}

#[tokio::test]
async fn every_command_has_a_help_that_says_what_it_is_for() {
    let top = said(&turnmill(&["--help"]).output().await.unwrap());
    assert!(top.contains("turnmill dev") && top.contains("enqueue_turn"), "{top}");
    for command in
        ["dev", "enqueue", "watch", "turns", "cancel", "worker", "local", "migrate", "pool", "fleet", "doctor", "agent", "demo", "bench"]
    {
        let output = turnmill(&[command, "--help"]).output().await.unwrap();
        assert!(output.status.success() && said(&output).lines().next().unwrap().len() > 10, "{command}: {}", said(&output));
        assert!(top.contains(&format!("  {command} ")), "{command} is in the top help");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_is_enqueued_watched_listed_and_cancelled(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    let run = async |args: &[&str]| turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();

    let watched = run(&["enqueue", "/mock tools", "--session", "s1", "--key", "k1", "--watch"]).await;
    let text = said(&watched);
    assert!(watched.status.success() && text.contains("▸ Bash") && text.ends_with("completed\n"), "{text}");
    let receipt = run(&["enqueue", "/mock tools", "--session", "s1", "--key", "k1", "--json"]).await;
    let receipt: Value = serde_json::from_slice(&receipt.stdout).unwrap();
    assert_eq!(receipt["replayed"], true);
    let id = receipt["turn_id"].as_str().unwrap();
    let json = run(&["watch", id, "--json"]).await;
    let lines: Vec<Value> = String::from_utf8(json.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[1]["type"].as_str(), lines.last().unwrap()["status"].as_str()), (Some("tool_use"), Some("completed")));
    let listed = said(&run(&["turns", "--status", "completed"]).await);
    assert!(listed.contains(id) && listed.contains("/mock tools"), "{listed}");

    let hostile = said(&run(&["enqueue", "/mock hostile", "--watch"]).await);
    assert!(!hostile.contains('\u{1b}') && !hostile.contains('\u{202e}'), "nothing of it steers the terminal");

    let hang: Value = serde_json::from_slice(&run(&["enqueue", "/mock hang", "--json"]).await.stdout).unwrap();
    let hang = hang["turn_id"].as_str().unwrap();
    all.fleet.has_blocks(hang, 2).await;
    assert!(said(&run(&["cancel", hang, "--reason", "no more"]).await).contains("cancelling"));
    let ended = run(&["watch", hang]).await;
    assert_eq!((ended.status.code(), said(&ended).contains("cancelled: cancelled: no more")), (Some(1), true), "{}", said(&ended));

    fails(turnmill(&["watch", "nope"]).env("DATABASE_URL", &url), &["there is no turn \"nope\""]).await;
    fails(turnmill(&["enqueue", "x", "--pool", "nope"]).env("DATABASE_URL", &url), &["there is no pool \"nope\"", "turnmill pool set"])
        .await;
    fails(turnmill(&["enqueue", ""]).env("DATABASE_URL", &url), &["the prompt is empty"]).await;
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_doctor_finds_what_is_wrong_and_what_is_not(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    let mut doctor = turnmill(&["doctor"]);
    // By the name that the seed has for it.
    doctor
        .env("DATABASE_URL", &url)
        .env("E2B_API_TOKEN", "e2b_0000")
        .env("CLAUDE_API_KEY", "sk-ant-of-the-doctor")
        .env("E2B_API_URL", &all.e2b.url);
    let healthy = doctor.output().await.unwrap();
    assert!(healthy.status.success(), "{}", said(&healthy));
    for words in ["1 alive", "E2B_API_KEY, from E2B_API_TOKEN", "ANTHROPIC_API_KEY, from CLAUDE_API_KEY", "every turn's: ANTHROPIC_API_KEY"]
    {
        assert!(said(&healthy).contains(words), "{}", said(&healthy));
    }
    assert!(!said(&healthy).contains("sk-ant-of") && !said(&healthy).contains("e2b_0000"), "{}", said(&healthy));
    fails(
        turnmill(&["doctor"]).env("E2B_API_TOKEN", "e2b_0000").env("E2B_API_KEY", "e2b_1111"),
        &["E2B_API_KEY and E2B_API_TOKEN have different values"],
    )
    .await;
    fails(turnmill(&["doctor"]).env("CLAUDE_API_KEY", "changeme"), &["CLAUDE_API_KEY is a word that anybody would try"]).await;
    let sick = doctor.env("E2B_API_URL", "http://127.0.0.1:1").output().await.unwrap();
    assert!(!sick.status.success() && said(&sick).contains("check E2B_API_KEY, E2B_API_URL"), "{}", said(&sick));
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn smoke_runs_one_turn_checks_it_and_leaves_nothing(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let smoke = async |args: &[&str]| {
        let mut command = turnmill(&["smoke"]);
        command.args(args).env("DATABASE_URL", &url).env("E2B_API_KEY", "local");
        command.env("E2B_API_URL", &e2b.url).env("E2B_SANDBOX_URL", &e2b.url).output().await.unwrap()
    };
    let good = smoke(&["--prompt", "/mock tools"]).await;
    assert!(good.status.success(), "{}", said(&good));
    for words in ["no worker is running", "it is one turn", "8 blocks in order, 3 calls", "1 sandbox, and it is gone", "cleaned up"] {
        assert!(said(&good).contains(words), "{words}: {}", said(&good));
    }
    let bad = smoke(&["--prompt", "/mock garbage"]).await;
    assert!(!bad.status.success() && said(&bad).contains("it failed: agent_garbage"), "{}", said(&bad));
    let slow = smoke(&["--prompt", "/mock hang", "--timeout", "1"]).await;
    assert!(
        !slow.status.success() && said(&slow).contains("in_progress after 1 s") && said(&slow).contains("cleaned up"),
        "{}",
        said(&slow)
    );
    let nowhere = smoke(&["--pool", "nope"]).await;
    assert!(!nowhere.status.success() && said(&nowhere).contains("turnmill pool set nope"), "{}", said(&nowhere));
    for table in ["sessions", "turns", "blocks", "jobs", "attempts"] {
        let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM turnmill.{table}"));
        let left: i64 = sqlx::query_scalar(query).fetch_one(&fleet.pool).await.unwrap();
        assert_eq!(left, 0, "{table}");
    }
    fleet.no_slot_held().await;
    e2b.stop().await;
}

#[tokio::test]
async fn the_stand_in_agent_stops_at_sigint_as_the_real_one_does() {
    let mut agent = turnmill(&["agent", "mock", "--script=hang", "--verbose"]);
    let mut agent = agent.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let message = json!({ "type": "user", "uuid": "u1", "message": { "role": "user", "content": [{ "type": "text", "text": "hi" }] } });
    let mut stdin = agent.stdin.take().unwrap();
    stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    drop(stdin);
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    // init, text, tool_use: now it hangs.
    for _ in 0..3 {
        lines.next_line().await.unwrap().unwrap();
    }
    send(Signal::INT, &agent);
    let mut last = Value::Null;
    while let Some(line) = lines.next_line().await.unwrap() {
        last = serde_json::from_str(&line).unwrap();
    }
    assert_eq!(
        (last["type"].as_str(), last["terminal_reason"].as_str(), last["user_message_uuid"].as_str()),
        (Some("result"), Some("aborted_streaming"), Some("u1"))
    );
    assert!(agent.wait().await.unwrap().success(), "exit code 0, as the real one");
}

/// Everything that a command made in its temporary directory, and every process that has it in its environment.
pub async fn nothing_is_left(place: &Path) {
    let mark = format!("TMPDIR={}", place.display());
    until("no process is left", || async {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let left = processes.filter(|entry| {
            std::fs::read(entry.path().join("environ"))
                .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes()))
        });
        (left.count() == 0).then_some(())
    })
    .await;
    let files: Vec<_> = std::fs::read_dir(place).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(files.is_empty(), "{files:?}");
}

#[tokio::test]
async fn dev_needs_nothing_set_up_and_ctrl_c_leaves_nothing_behind() {
    turnmill::tls::install();
    let place = turnmill::local::postgres::passable_tempdir("turnmill-test-").unwrap();
    let here = |args: &[&str]| {
        let mut command = turnmill(args);
        command.env("TMPDIR", place.path()).env("XDG_RUNTIME_DIR", place.path());
        command
    };
    let mut dev = here(&["dev", "--agent", "mock"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    let mut web = String::new();
    loop {
        let line = lines.next_line().await.unwrap().expect("it starts");
        if let Some(address) = line.trim().strip_prefix("web") {
            web = address.split("/chat").next().unwrap().trim().to_owned();
        }
        if line.contains("In another terminal") {
            break;
        }
    }
    let page = async |path: &str| reqwest::get(format!("{web}{path}")).await.unwrap().text().await.unwrap();
    assert!(
        page("/chat").await.contains("/chat.js")
            && page("/chat.js").await.contains("EventSource")
            && page("/docs").await.contains("Turnmill API")
    );
    let answer = here(&["enqueue", "/mock tools", "--watch"]).output().await.unwrap();
    assert!(answer.status.success(), "another terminal finds it by itself: {}", said(&answer));
    // With a turn under way.
    here(&["enqueue", "/mock hang"]).output().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    send(Signal::INT, &dev);
    assert!(dev.wait().await.unwrap().success());
    nothing_is_left(place.path()).await;
}

#[tokio::test]
async fn the_demo_keeps_what_it_promises_and_leaves_nothing_behind() {
    let place = turnmill::local::postgres::passable_tempdir("turnmill-test-").unwrap();
    let demo = turnmill(&["demo"]).env("TMPDIR", place.path()).output().await.unwrap();
    let text = said(&demo);
    assert!(demo.status.success(), "{text}");
    for words in [
        "✗ kill -9",
        "✓ killed at byte",
        "✓ adopted               by",
        "51, 0 lost, 0 doubled",
        "✓ agent starts          1",
        "✓ live sandboxes left   0",
    ] {
        assert!(text.contains(words), "expected {words:?} in: {text}");
    }
    nothing_is_left(place.path()).await;
}
