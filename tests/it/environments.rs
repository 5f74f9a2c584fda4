//! Each process in a sandbox gets exactly what it needs: the agent the model's key, the hooks the project's token, nobody
//! anything else.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use sqlx::PgPool;
use turnmill::config::Config;
use turnmill::local::postgres::passable_tempdir;
use turnmill::store::PoolChange;

use crate::harness::{Fleet, LocalE2b, Running, RunningWorker, config, until, use_mock};
use crate::keys::environment;

/// Everything that a worker may know, each with a value that is nobody else's.
const ALL: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "sk-ant-the-model-s"),
    ("ANTHROPIC_BASE_URL", "https://gateway.example"),
    ("USPARK_TOKEN", "the-project-s-token"),
    ("TURNMILL_KEYS__MASTER", "the-master-key"),
];

/// What every process has of the sandbox itself.
const OF_THE_SANDBOX: [&str; 7] = ["E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID", "HOME", "LOGNAME", "PATH", "USER"];

/// What shells add, or pass on of the machine that the tests run on.
const OF_SHELLS: [&str; 6] = ["LANG", "LC_ALL", "OLDPWD", "PWD", "SHLVL", "_"];

fn seen(dir: &Path, who: &str) -> BTreeSet<String> {
    let bytes = std::fs::read(dir.join(who)).unwrap_or_else(|_| panic!("{who} did not run"));
    let all = String::from_utf8(bytes).unwrap();
    all.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0.to_owned())).collect()
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn each_process_in_a_sandbox_has_what_it_needs_and_nothing_else(pool: PgPool) {
    let dir = passable_tempdir("turnmill-test-").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let fleet = Fleet::new(pool);
    let e2b = LocalE2b::start().await;
    use_mock(&fleet.store, &e2b.agent_ledger()).await;
    let note = |who: &str| format!("cat /proc/$$/environ >{}/{who}", dir.path().display());
    let place = dir.path().display();
    // It also looks for the project's token in every process that it may look into, while the watcher beside it has that.
    let agent = format!(
        "{note}; until [ -s {place}/watch ]; do sleep 0.05; done
         for process in /proc/[0-9]*; do cat $process/environ 2>/dev/null; done | grep -ac the-project-s-token >{place}/found
         echo $PPID >{place}/supervisor-pid; until [ -e {place}/looked ]; do sleep 0.05; done
         echo '{{\"type\":\"content\",\"text\":\"x\"}}'",
        note = note("agent"),
    );
    let change = PoolChange {
        agent: Some(["bash", "-c", &agent].map(str::to_owned).to_vec()),
        agent_env: Some(json!({ "OF_THE_POOL": "1" })),
        prepare: Some(Some(note("prepare"))),
        watch: Some(Some(format!("{}; cat >/dev/null", note("watch")))),
        finish: Some(Some(note("finish"))),
        ..PoolChange::default()
    };
    fleet.store.set_pool("default", &change).await.unwrap();
    let worker = RunningWorker::with_keys(&fleet, Config { environment: environment(&ALL), ..config(&e2b.url) }).await;
    let all = Running { fleet, e2b, worker };
    let turn = all.fleet.enqueue("the-prompt").await.turn_id;
    let pid = until("the agent runs", || async {
        std::fs::read_to_string(dir.path().join("supervisor-pid")).ok().filter(|pid| pid.ends_with('\n'))
    })
    .await;
    let supervisor = std::fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
    std::fs::write(dir.path().join("supervisor"), supervisor).unwrap();
    std::fs::write(dir.path().join("looked"), "").unwrap();
    assert_eq!(all.fleet.ended(&turn).await.error_message, None);

    let of_hooks = ["PROJECT_ID", "USPARK_TOKEN"];
    let expected: [(&str, &[&str]); 5] = [
        ("prepare", &of_hooks),
        ("watch", &of_hooks),
        ("finish", &of_hooks),
        ("agent", &["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OF_THE_POOL"]),
        // Root's, whom nobody in the sandbox can look into. It hands to each what is in its name.
        (
            "supervisor",
            &[
                "AGENT__ANTHROPIC_API_KEY",
                "AGENT__ANTHROPIC_BASE_URL",
                "AGENT__OF_THE_POOL",
                "HOOK__PROJECT_ID",
                "HOOK__USPARK_TOKEN",
                "TURNMILL_AGENT_UID",
                "TURNMILL_FILES_EACH",
                "TURNMILL_FILES_EXCLUDE",
                "TURNMILL_FILES_MAX",
                "TURNMILL_FILES_POLICY",
                "TURNMILL_FINISH",
                "TURNMILL_FINISH_LIMIT",
                "TURNMILL_PREPARE",
                "TURNMILL_PREPARE_LIMIT",
                "TURNMILL_ROOT",
                "TURNMILL_WATCH",
            ],
        ),
    ];
    let is_root = rustix::process::geteuid().is_root();
    for (who, own) in expected {
        let has = seen(dir.path(), who);
        let has_of_its_own: Vec<&str> = has.iter().map(String::as_str).filter(|name| !OF_SHELLS.contains(name)).collect();
        let mut expected = [&OF_THE_SANDBOX, own].concat();
        // Without root's rights every sandbox has the same user.
        expected.retain(|name| is_root || *name != "TURNMILL_AGENT_UID");
        expected.sort_unstable();
        assert_eq!(has_of_its_own, expected, "{who}");
    }
    if is_root {
        assert_eq!(std::fs::read_to_string(dir.path().join("found")).unwrap(), "0\n", "the agent has found the project's token");
    }
    all.stop().await;
}

/// What the agent has left behind may look into every process of its own user: also into those that bring its conversation and
/// its files.
#[test]
fn nothing_that_is_done_as_the_agent_s_user_has_a_secret_in_its_environment() {
    let sandbox = crate::supervisor::Box::new();
    let Some(uid) = sandbox.uid else { return };
    let tools = passable_tempdir("turnmill-test-").unwrap();
    let note = tools.path().join("notes");
    std::fs::write(&note, "").unwrap();
    std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o666)).unwrap();
    // Each says who runs it, and with which of the variables that are somebody's.
    for tool in ["timeout", "ls", "cat", "rm", "mkdir", "dirname", "find", "head", "tar", "xargs", "sha256sum"] {
        let wrapper = format!(
            "#!/bin/bash\n[ $UID != {uid} ] || {{ printf '{tool}'; compgen -v | grep -E '__|^TURNMILL' | tr '\\n' ' '; echo; }} >>{note}\n\
             exec \"$(PATH=${{PATH#*:}} type -P {tool})\" \"$@\"\n",
            note = note.display()
        );
        let at = tools.path().join(tool);
        std::fs::write(&at, wrapper).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::write(sandbox.root.path().join("saved.jsonl"), "{}\n").unwrap();
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    let start = |attempt, restore: &[&str]| {
        let args = ["--input", "/input.jsonl", "--journal-max", "1000000", "--transcript", "kept/*.jsonl", "--transcript-max", "1000"];
        let mut command =
            sandbox.command_of("t", attempt, 9, "start", &[&args[..], restore, &["--", "bash", "-c", "echo x >made"]].concat());
        command.env("PATH", &path).env("TURNMILL_FILES_POLICY", "snapshot").env("TURNMILL_FILES_MAX", "1000000");
        command.env("TURNMILL_FILES_EACH", "1000").env("AGENT__KEY", "sk").env("HOOK__TOKEN", "tok");
        assert!(command.output().unwrap().status.success());
        sandbox.wait_for_attempt(attempt, "exited");
    };
    start(1, &["--restore", "/saved.jsonl", "--restore-as", "kept/*.jsonl"]);
    start(2, &["--forget"]);
    let notes = std::fs::read_to_string(&note).unwrap();
    for tool in ["timeout", "ls", "cat", "rm", "mkdir", "find", "tar"] {
        assert!(notes.lines().any(|line| line.starts_with(tool)), "{tool} ran as the agent's user: {notes}");
    }
    assert!(!notes.contains("__") && !notes.contains("TURNMILL"), "{notes}");
}
