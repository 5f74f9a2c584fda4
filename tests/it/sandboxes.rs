//! The E2B client against the local server, over the real wire.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use turnmill::e2b::ApiVersion::{V1, V2};
use turnmill::e2b::{Client, Command, CreateError, EntryKind, EnvdError, ProcessEvent, Sandbox, Signal};
use turnmill::local::e2b::Options;
use turnmill::local::postgres::passable_tempdir;
use turnmill::sandbox::{Launch, SandboxError};

use crate::harness::{LocalE2b, TURNMILL, client, until};

const SOON: Duration = Duration::from_secs(20);

fn request(nonce: &str, timeout: u64) -> Value {
    json!({ "templateID": "base", "timeout": timeout, "metadata": { "turnmill_fleet": "f1", "turnmill_nonce": nonce } })
}

async fn create(client: &Client, nonce: &str) -> Sandbox {
    client.create(V2, nonce, &request(nonce, 60), SOON).await.unwrap()
}

fn bash(script: &str) -> Command {
    Command { cmd: "/bin/bash".to_owned(), args: vec!["-c".to_owned(), script.to_owned()], user: "user".to_owned(), ..Command::default() }
}

async fn run(client: &Client, sandbox: &Sandbox, script: &str) -> (String, String, i32) {
    let output = client.envd(sandbox).run(&bash(script), SOON).await.unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap(), output.exit_code)
}

fn processes_named(mark: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))).count()
}

#[tokio::test]
async fn a_create_that_is_sent_again_makes_no_second_sandbox() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let first = create(&client, "n1").await;
    let again = create(&client, "n1").await;
    assert_eq!(first.id, again.id);
    let other_body = client.create(V2, "n1", &request("n1", 61), SOON).await.unwrap_err();
    assert!(matches!(other_body, CreateError::Config(_)), "{other_body}");
    client.kill(&first.id).await.unwrap();
    assert_eq!(create(&client, "n1").await.id, first.id, "not even when it is long gone");
    assert_eq!(client.list(&[]).await.unwrap().len(), 0);
    e2b.stop().await;
}

#[tokio::test]
async fn sandboxes_are_found_by_id_and_by_all_of_their_labels() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let mut ids = Vec::new();
    for nonce in ["n1", "n2", "n3"] {
        ids.push(create(&client, nonce).await.id);
    }
    let found = |labels: &'static [(&str, &str)]| {
        let client = client.clone();
        async move { client.list(labels).await.unwrap().len() }
    };
    assert_eq!(found(&[("turnmill_fleet", "f1")]).await, 3);
    assert_eq!(found(&[("turnmill_fleet", "f1"), ("turnmill_nonce", "n2")]).await, 1);
    assert_eq!(found(&[("turnmill_fleet", "f2")]).await, 0);
    assert!(client.get(&ids[0]).await.unwrap().is_some());
    client.kill(&ids[0]).await.unwrap();
    client.kill(&ids[0]).await.unwrap();
    assert!(client.get(&ids[0]).await.unwrap().is_none());
    assert!(!client.set_timeout(&ids[0], SOON).await.unwrap());
    e2b.stop().await;
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    for nth in 0..105 {
        create(&client, &format!("n{nth}")).await;
    }
    assert_eq!(client.list(&[("turnmill_fleet", "f1")]).await.unwrap().len(), 105);
    e2b.stop().await;
}

#[tokio::test]
async fn a_process_has_output_an_exit_code_and_only_the_environment_it_was_given() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    assert_eq!(run(&client, &sandbox, "echo out; echo err >&2; exit 3").await, ("out\n".to_owned(), "err\n".to_owned(), 3));
    assert_eq!(run(&client, &sandbox, "kill -9 $$").await.2, -1);
    let (environment, ..) = run(&client, &sandbox, "env").await;
    assert!(environment.contains("E2B_SANDBOX=true") && !environment.contains("CARGO_MANIFEST_DIR"), "{environment}");
    let missing = Command { cmd: "no-such-program".to_owned(), args: Vec::new(), ..bash("") };
    assert_eq!(client.envd(&sandbox).run(&missing, SOON).await.unwrap().exit_code, 127);
    let stranger = Command { user: "nobody-here".to_owned(), ..bash("true") };
    assert!(matches!(client.envd(&sandbox).run(&stranger, SOON).await.unwrap_err(), EnvdError::Unauthorized(_)));
    let nowhere = Command { cwd: Some("/nope".to_owned()), ..bash("true") };
    assert!(matches!(client.envd(&sandbox).run(&nowhere, SOON).await.unwrap_err(), EnvdError::Rejected(_)));
    e2b.stop().await;
}

#[tokio::test]
async fn a_process_outlives_whoever_started_it() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    let mut events = client.envd(&sandbox).start(&bash("echo first; sleep 0.3; echo later > $HOME/done")).await.unwrap();
    assert!(matches!(events.next().await, Some(Ok(ProcessEvent::Started { .. }))));
    drop(events);
    until("it went on", || async { client.envd(&sandbox).download("/home/user/done", "user", 0..100, SOON).await.ok() }).await;
    e2b.stop().await;
}

#[tokio::test]
async fn files_go_up_whole_and_come_down_by_range() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    let envd = client.envd(&sandbox);
    let body: Bytes = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
    envd.upload("/var/deep/er/file.bin", "root", body.clone(), SOON).await.unwrap();
    let down = |range| {
        let envd = envd.clone();
        async move { envd.download("/var/deep/er/file.bin", "root", range, SOON).await.unwrap() }
    };
    assert_eq!(down(0..400_000).await, body);
    assert_eq!(down(7..1000).await, body.slice(7..1000));
    assert_eq!(down(399_990..500_000).await, body.slice(399_990..), "shorter where the file ends");
    assert_eq!(down(400_000..500_000).await, "", "nothing more is no error");
    assert!(matches!(envd.download("/nope", "root", 0..1, SOON).await.unwrap_err(), EnvdError::NotFound(_)));
    assert!(matches!(envd.upload("/../../escape", "root", body, SOON).await.unwrap_err(), EnvdError::Rejected(_)));
    e2b.stop().await;
}

#[tokio::test]
async fn a_sandbox_is_paused_woken_extended_measured_and_walled_in() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    let id = &sandbox.id;
    let state = async || client.get(id).await.unwrap().map(|info| (info.state, info.metadata["turnmill_nonce"].clone()));
    assert_eq!(state().await, Some(("running".to_owned(), "n1".to_owned())));
    assert!(client.pause(id).await.unwrap());
    assert!(client.pause(id).await.unwrap(), "it stays so");
    assert_eq!(state().await.unwrap().0, "paused");
    assert_eq!(client.list(&[]).await.unwrap()[0].state, "paused", "and is still found");
    assert_eq!(client.envd(&sandbox).is_healthy(SOON).await, Err(EnvdError::Gone), "the proxy says no more than that");
    for version in [V1, V2] {
        let woken = client.connect(version, id, SOON).await.unwrap().unwrap();
        assert_eq!(run(&client, &woken, "echo ok").await.0, "ok\n");
        assert!(client.pause(id).await.unwrap());
    }
    client.connect(V2, id, SOON).await.unwrap().unwrap();
    assert!(client.refresh(id, Duration::from_secs(1000)).await.unwrap());
    let far = client.get(id).await.unwrap().unwrap().end_at;
    assert!(client.refresh(id, SOON).await.unwrap());
    assert_eq!(client.get(id).await.unwrap().unwrap().end_at, far, "a refresh never shortens");
    assert!(client.set_network(id, &json!({ "allowOut": ["127.0.0.1"], "denyOut": ["0.0.0.0/0"] })).await.unwrap());
    assert!(client.metrics(id).await.unwrap().unwrap()[0].mem_total > 0);
    client.kill(id).await.unwrap();
    assert_eq!(client.connect(V2, id, SOON).await.unwrap().map(|s| s.id), None);
    assert!(!client.pause(id).await.unwrap() && !client.refresh(id, SOON).await.unwrap());
    assert!(!client.set_network(id, &json!({})).await.unwrap() && client.metrics(id).await.unwrap().is_none());
    e2b.stop().await;
}

#[tokio::test]
async fn a_process_is_listed_fed_heard_again_and_signalled() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let envd = client.envd(&create(&client, "n1").await);
    let cat = Command { cmd: "/bin/cat".to_owned(), args: Vec::new(), stdin: true, tag: Some("t1".to_owned()), ..bash("") };
    let mut first = envd.start(&cat).await.unwrap();
    let Some(Ok(ProcessEvent::Started { pid })) = first.next().await else { panic!("it starts") };
    drop(first);
    let listed = envd.processes(SOON).await.unwrap();
    assert_eq!((listed.len(), listed[0].pid, listed[0].tag.as_deref(), listed[0].config.cmd.as_str()), (1, pid, Some("t1"), "/bin/cat"));
    let mut again = envd.connect(pid).await.unwrap();
    assert_eq!(again.next().await, Some(Ok(ProcessEvent::Started { pid })));
    envd.send_input(pid, b"hello", SOON).await.unwrap();
    assert_eq!(again.next().await, Some(Ok(ProcessEvent::Stdout("hello".into()))));
    envd.close_stdin(pid, SOON).await.unwrap();
    assert_eq!(again.next().await, Some(Ok(ProcessEvent::Ended { exit_code: 0 })));
    assert_eq!(again.next().await, None);

    for signal in [Signal::Term, Signal::Kill] {
        let mut sleeper = envd.start(&bash("exec sleep 1000")).await.unwrap();
        let Some(Ok(ProcessEvent::Started { pid })) = sleeper.next().await else { panic!("it starts") };
        envd.signal(pid, signal, SOON).await.unwrap();
        assert_eq!(sleeper.next().await, Some(Ok(ProcessEvent::Ended { exit_code: -1 })));
    }
    assert!(matches!(envd.signal(999_999_999, Signal::Kill, SOON).await, Err(EnvdError::NotFound(_))));
    assert!(matches!(envd.connect(999_999_999).await.unwrap().next().await, Some(Err(EnvdError::NotFound(_)))));
    e2b.stop().await;
}

#[tokio::test]
async fn directories_are_made_listed_moved_and_removed() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let envd = client.envd(&create(&client, "n1").await);
    envd.make_dir("/home/user/a/b", "user", SOON).await.unwrap();
    envd.make_dir("/home/user/a/b", "user", SOON).await.unwrap();
    envd.upload("/home/user/a/b/c.txt", "user", "abc".into(), SOON).await.unwrap();
    let found = envd.list_dir("/home/user/a", 2, "user", SOON).await.unwrap();
    let names: Vec<_> = found.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.size)).collect();
    assert!(names.contains(&("c.txt", EntryKind::File, 3)) && found[0].kind == EntryKind::Directory, "{names:?}");
    envd.rename("/home/user/a/b/c.txt", "/home/user/a/d.txt", "user", SOON).await.unwrap();
    assert_eq!(envd.stat("/home/user/a/d.txt", "user", SOON).await.unwrap().unwrap().path, "/home/user/a/d.txt");
    assert_eq!(envd.stat("/home/user/a/b/c.txt", "user", SOON).await.unwrap(), None);
    envd.remove("/home/user/a", "user", SOON).await.unwrap();
    envd.remove("/home/user/a", "user", SOON).await.unwrap();
    assert_eq!(envd.stat("/home/user/a", "user", SOON).await.unwrap(), None);
    assert!(matches!(envd.list_dir("/home/user/a", 1, "user", SOON).await, Err(EnvdError::NotFound(_))));
    e2b.stop().await;
}

#[tokio::test]
async fn a_sandbox_s_own_token_is_needed_and_an_account_key() {
    let e2b = LocalE2b::with(Options { api_key: Some("local".to_owned()), ..Options::default() }).await;
    let client = e2b.client();
    let (one, two) = (create(&client, "n1").await, create(&client, "n2").await);
    let mut forged: Value = json!({ "sandboxID": one.id, "envdAccessToken": "wrong" });
    let wrong: Sandbox = serde_json::from_value(forged.take()).unwrap();
    assert!(matches!(client.envd(&wrong).run(&bash("true"), SOON).await.unwrap_err(), EnvdError::Unauthorized(_)));
    assert_eq!(run(&client, &two, "echo ok").await.0, "ok\n");

    let http = reqwest::Client::new();
    let refused = http.get(format!("{}/sandboxes/{}", e2b.url, one.id)).header("X-API-Key", "other").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    e2b.stop().await;
}

#[tokio::test]
async fn a_kill_leaves_no_process_whatever_it_did_to_hide() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    let mark = format!("99{}", rand::random_range(1_000_000..9_999_999));
    run(&client, &sandbox, &format!("setsid sleep {mark} >/dev/null 2>&1 & (trap '' TERM INT HUP; nohup sleep {mark} >/dev/null 2>&1 &) ; sleep {mark} >/dev/null 2>&1 &")).await;
    assert_eq!(processes_named(&mark), 3);
    let mut stream = client.envd(&sandbox).start(&bash("sleep 60")).await.unwrap();
    client.kill(&sandbox.id).await.unwrap();
    assert_eq!(processes_named(&mark), 0);
    let last = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(last, Some(Err(EnvdError::Unreachable(_)))), "a stream of a killed sandbox is cut, not ended: {last:?}");
    assert!(!e2b.dir.path().join(&sandbox.id).exists());
    e2b.stop().await;
}

#[tokio::test]
async fn a_template_that_does_not_fit_is_told_apart_from_one_that_fails() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let made = create(&client, "n1").await;
    client.envd(&made).upload("/etc/turnmill-template", "root", Bytes::from("2\n"), SOON).await.unwrap();
    let sandbox = turnmill::sandbox::Sandbox::new(&client, &made, "t", 1, 1, SOON);
    sandbox.install().await.unwrap();
    let launch = Launch { command: vec!["true".to_owned()], ..Launch::default() };
    let refused = sandbox.start(&launch).await.unwrap_err();
    assert!(matches!(&refused, SandboxError::Unfit(why) if why.contains("the template's format is 2")), "{refused:?}");
    e2b.stop().await;
}

#[tokio::test]
async fn a_deadline_kills_unless_it_is_moved() {
    let e2b = LocalE2b::start().await;
    let client = e2b.client();
    let short = client.create(V2, "n1", &request("n1", 1), SOON).await.unwrap();
    let moved = client.create(V2, "n2", &request("n2", 1), SOON).await.unwrap();
    assert!(client.set_timeout(&moved.id, Duration::from_secs(60)).await.unwrap());
    until("its time is over", || async { client.get(&short.id).await.unwrap().is_none().then_some(()) }).await;
    assert_eq!(client.envd(&short).run(&bash("true"), SOON).await.unwrap_err(), EnvdError::Gone);
    assert!(client.get(&moved.id).await.unwrap().is_some());
    let killed = until("it is in the ledger", || async { e2b.acts("kill").await.pop() }).await;
    assert_eq!(killed["detail"]["why"], "timeout");
    e2b.stop().await;
}

#[tokio::test]
async fn the_account_s_limit_and_faults_on_demand_come_as_e2b_says_them() {
    let e2b = LocalE2b::with(Options { concurrency: Some(1), ..Options::default() }).await;
    let client = e2b.client();
    let sandbox = create(&client, "n1").await;
    let full = client.create(V2, "n2", &request("n2", 60), SOON).await.unwrap_err();
    assert!(matches!(full, CreateError::AtCapacity { cap: Some(1), .. }), "{full}");
    client.kill(&sandbox.id).await.unwrap();

    e2b.faults(json!([
        { "on": "create", "status": 429, "message": "Rate limit exceeded", "retry_after": 3 },
        { "on": "create", "status": 503, "error_code": "sandbox_capacity_unavailable" },
        { "on": "create", "lose_answer": true },
    ]))
    .await;
    let create = async || client.create(V2, "n3", &request("n3", 60), SOON).await;
    assert!(matches!(create().await, Err(CreateError::RetryAfter(wait, _)) if wait == Duration::from_secs(3)));
    assert!(matches!(create().await, Err(CreateError::Retry(_))));
    assert!(matches!(create().await, Err(CreateError::Unknown(_))), "made, but nobody was told");
    let found = create().await.unwrap();
    assert_eq!(client.list(&[("turnmill_nonce", "n3")]).await.unwrap()[0].id, found.id);
    e2b.stop().await;
}

#[tokio::test]
async fn sandboxes_and_their_processes_outlive_a_server_that_is_killed() {
    let dir = passable_tempdir("turnmill-test-").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let serve = || {
        let mut command = tokio::process::Command::new(TURNMILL);
        command.args(["local", "--listen", &format!("127.0.0.1:{port}"), "--dir"]).arg(dir.path());
        command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let client = client(&url);
    let up = || async { client.list(&[]).await.ok() };

    let mut first = serve();
    until("the server is up", up).await;
    let sandbox = create(&client, "n1").await;
    run(&client, &sandbox, "(sleep 0.5; echo survived > $HOME/note) >/dev/null 2>&1 &").await;
    first.kill().await.unwrap();
    let mut second = serve();
    until("the server is back", up).await;

    assert_eq!(create(&client, "n1").await.id, sandbox.id, "it knows the key");
    let note = until("the process went on", || async {
        client.envd(&sandbox).download("/home/user/note", "user", 0..100, SOON).await.ok().filter(|note| !note.is_empty())
    })
    .await;
    assert_eq!(note, "survived\n");
    client.kill(&sandbox.id).await.unwrap();
    second.kill().await.unwrap();
}
