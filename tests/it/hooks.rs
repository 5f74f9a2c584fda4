//! What runs in the sandbox around the agent: the project's files in before it, a watcher beside it, the files out
//! after it. The shipped hooks speak uspark; the CLI is a stub here, because it is on no registry.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;
use sqlx::PgPool;
use turnmill::config::Config;
use turnmill::keys::Environment;
use turnmill::store::PoolChange;

use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, until, use_mock};

/// Notes how it is called and with what, and keeps a "project" in a file.
const STUB: &str = r#"#!/bin/bash
log=DIR/uspark.log
echo "$1 $2 $3 token=$USPARK_TOKEN key=${ANTHROPIC_API_KEY:-none}" >>"$log"
case $1 in
  pull)
    [ ! -e DIR/refuse ] || { rm DIR/refuse; echo "network is unreachable" >&2; exit 1; }
    [ ! -e DIR/project ] || cp DIR/project project ;;
  watch-claude) wc -l >>DIR/watched ;;
  push) [ ! -e project ] || { rm -f DIR/project; cp project DIR/project; } ;;
esac
"#;

/// Looks at the project, changes it, and prints its own environment's names.
const AGENT: &str = r#"text="$(cat project 2>/dev/null || echo nothing); token=${USPARK_TOKEN:-none} key=${ANTHROPIC_API_KEY:-none} project=${PROJECT_ID:-none}"
echo changed >project; printf '{"type":"content","text":"%s"}\n' "$text""#;

/// The home holds the agent's own files: the project is apart from them.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_pool_says_where_agent_and_hooks_start(pool: PgPool) {
    let all = Running::start(pool).await;
    let agent = |script: &str| Some(["bash", "-c", script].map(str::to_owned).to_vec());
    let print = r#"printf '{"type":"content","text":"%s %s"}\n' "${PWD#"$HOME"}" "$(cat here)""#;
    let prepare = Some(Some("mkdir -p project/here; echo \"${PWD#\"$HOME\"}\" >project/here/here".to_owned()));
    for (workdir, agent, said) in
        [("/home/user/project/here", agent(print), "/project/here "), ("", agent(&print.replace("here", "project/here/here")), " ")]
    {
        let change = PoolChange { workdir: Some(workdir.to_owned()), agent, prepare: prepare.clone(), ..PoolChange::default() };
        all.fleet.store.set_pool("default", &change).await.unwrap();
        let turn = all.fleet.enqueue("x").await;
        assert_eq!(all.fleet.ended(&turn.turn_id).await.status, "completed");
        assert_eq!(all.fleet.blocks(&turn.turn_id).await, [json!(["content", { "text": said }])]);
    }
    all.stop().await;
}

struct Hooked {
    all: Running,
    stub: tempfile::TempDir,
}

impl Hooked {
    async fn start(pool: PgPool, variables: &[(&str, &str)]) -> Self {
        let stub = turnmill::local::postgres::passable_tempdir("turnmill-test-").unwrap();
        std::fs::set_permissions(stub.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let fleet = Fleet::new(pool);
        let e2b = LocalE2b::start().await;
        // First on every sandbox's PATH.
        let cli = e2b.dir.path().join("bin/uspark");
        std::fs::write(&cli, STUB.replace("DIR", stub.path().to_str().unwrap())).unwrap();
        std::fs::set_permissions(&cli, PermissionsExt::from_mode(0o755)).unwrap();
        use_mock(&fleet.store, &e2b.agent_ledger()).await;
        let agent = ["bash", "-c", AGENT].map(str::to_owned).to_vec();
        fleet.store.set_pool("default", &PoolChange { agent: Some(agent), ..PoolChange::default() }).await.unwrap();
        let variables: Vec<(String, String)> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let given = |name: &str| Some(variables.iter().find(|(known, _)| known == name)?.1.clone());
        let environment = Environment::read(&given, None).unwrap();
        let worker = RunningWorker::with_keys(&fleet, Config { environment, ..config(&e2b.url) }).await;
        let hooked = Self { all: Running { fleet, e2b, worker }, stub };
        // Each sandbox's user is another.
        hooked.write("uspark.log", "");
        hooked.write("watched", "");
        hooked
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.stub.path().join(name)).unwrap_or_default()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.stub.path().join(name), text).unwrap();
        std::fs::set_permissions(self.stub.path().join(name), PermissionsExt::from_mode(0o666)).unwrap();
    }
}

const BOTH: [(&str, &str); 2] = [("USPARK_TOKEN", "tok_12345"), ("ANTHROPIC_API_KEY", "sk-ant-12345")];

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn files_come_in_and_go_out_and_each_process_has_only_its_own_secrets(pool: PgPool) {
    let hooked = Hooked::start(pool, &BOTH).await;
    let fleet = &hooked.all.fleet;
    // An empty project is ready.
    let first = fleet.enqueue("x").await.turn_id;
    assert_eq!(fleet.ended(&first).await.error_message, None);
    assert_eq!(fleet.blocks(&first).await, [json!(["content", { "text": "nothing; token=none key=[masked] project=none" }])]);
    let second = fleet.enqueue("x").await.turn_id;
    assert_eq!(fleet.ended(&second).await.error_message, None);
    assert_eq!(fleet.blocks(&second).await, [json!(["content", { "text": "changed; token=none key=[masked] project=none" }])]);
    // Per turn, each once, with the project's token and without the model's key. The watcher runs beside.
    let mut calls: Vec<String> = hooked.read("uspark.log").lines().map(str::to_owned).collect();
    calls.sort();
    let call = |verb: &str| format!("{verb} --project-id p1 token=tok_12345 key=none");
    assert_eq!(calls, [call("pull"), call("pull"), call("push"), call("push"), call("watch-claude"), call("watch-claude")]);
    assert_eq!(hooked.read("watched"), "1\n1\n", "the whole journal");
    hooked.all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_hook_that_fails_has_its_own_code_and_is_tried_again_where_that_may_help(pool: PgPool) {
    let hooked = Hooked::start(pool, &BOTH[..1]).await;
    let fleet = &hooked.all.fleet;
    hooked.write("refuse", "");
    let flaky = fleet.enqueue("x").await.turn_id;
    let ended = fleet.ended(&flaky).await;
    assert_eq!((ended.status.as_str(), ended.attempt), ("completed", 2), "{:?}", ended.error_message);
    assert!(fleet.history(&flaky).await[0]["detail"].as_str().unwrap().contains("network is unreachable"));

    let own = |prepare: &str, finish: &str| PoolChange {
        prepare: Some(Some(prepare.to_owned())),
        finish: Some(Some(finish.to_owned())),
        watch: Some(Some("exit 1".to_owned())),
        ..PoolChange::default()
    };
    let cases = [
        (own("echo broken; exit 3", ""), "prepare_failed", "broken"),
        (own("echo no token; exit 78", ""), "prepare_config", "no token"),
        (own("", "echo disk full; exit 1"), "finish_failed", "disk full"),
        (own("", "exit 78"), "finish_config", "as it is configured"),
    ];
    for (change, code, words) in cases {
        fleet.store.set_pool("default", &change).await.unwrap();
        let turn = fleet.enqueue("x").await.turn_id;
        let ended = fleet.ended(&turn).await;
        assert_eq!(ended.error_code.as_deref(), Some(code), "{:?}", ended.error_message);
        assert!(ended.error_message.clone().unwrap().contains(words), "{:?}", ended.error_message);
    }
    fleet.store.set_pool("default", &own("sleep 100", "")).await.unwrap();
    fleet.sql("UPDATE turnmill.pools SET prepare_timeout_s = 1 WHERE name = $1", "default").await;
    let slow = fleet.enqueue("x").await.turn_id;
    assert_eq!(fleet.ended(&slow).await.error_code.as_deref(), Some("prepare_timeout"));
    hooked.all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn without_its_token_a_turn_says_what_is_missing_and_a_cancel_ends_a_hook(pool: PgPool) {
    let hooked = Hooked::start(pool, &[]).await;
    let fleet = &hooked.all.fleet;
    let turn = fleet.enqueue("x").await.turn_id;
    let ended = fleet.ended(&turn).await;
    assert_eq!(ended.error_code.as_deref(), Some("prepare_config"));
    assert!(ended.error_message.unwrap().contains("USPARK_TOKEN is not set: give it to the workers"));
    let started = hooked.stub.path().join("started");
    let endless = format!("touch {}; sleep 1000", started.display());
    fleet.store.set_pool("default", &PoolChange { prepare: Some(Some(endless)), ..PoolChange::default() }).await.unwrap();
    let turn = fleet.enqueue("x").await.turn_id;
    until("prepare runs", || async { started.exists().then_some(()) }).await;
    fleet.store.cancel(&turn, None).await.unwrap();
    assert_eq!(fleet.ended(&turn).await.status, "cancelled");
    assert_eq!(fleet.blocks(&turn).await.len(), 0, "the agent never ran");
    hooked.all.stop().await;
}

#[test]
fn the_shipped_hooks_do_nothing_without_a_uspark_cli() {
    // 10: it carries no files.
    for (hook, code) in [("prepare", 0), ("watch", 0), ("finish", 10)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2b/hooks").join(hook);
        let status = std::process::Command::new("/bin/bash").arg(path).env("PATH", "/nowhere").status();
        assert_eq!(status.unwrap().code(), Some(code), "{hook}");
    }
}
