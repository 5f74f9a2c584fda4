//! The second turn knows what the first said and finds the file that it made: in the same sandbox, warm or woken, and in
//! another one, under another fleet, from another database.

use std::process::Stdio;

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};
use tokio::process::Command;
use turnmill::store::{self, PoolChange, Store};

use super::harness::{Fleet, LocalE2b, RunningWorker, config, until};
use super::{Claude, api::Answer::Say, api::Part::Text, bash};

/// What the first turn does, and the second must find.
async fn first(claude: &Claude, session: &str, release: (i32, i32)) {
    let change = PoolChange { release: Some(release), sandbox_max_s: Some(86_400), ..PoolChange::default() };
    claude.fleet.store.set_pool("default", &change).await.unwrap();
    let answers = vec![Say(vec![bash("toolu_01", "echo 'the colour is green' > note.txt")]), Say(vec![Text("I made a note.")])];
    let turn = claude.enqueue_in(session, &format!("{session} one"), answers).await;
    claude.completed(&turn).await;
}

async fn second_remembers(claude: &Claude, session: &str) {
    let answers = vec![Say(vec![bash("toolu_02", "cat note.txt")]), Say(vec![Text("Green.")])];
    let two = format!("{session} two");
    let turn = claude.enqueue_in(session, &two, answers).await;
    let blocks = claude.completed(&turn).await;
    assert_eq!(
        blocks,
        [
            json!(["tool_use", "toolu_02", "Bash", "cat note.txt"]),
            json!(["tool_result", "toolu_02", "the colour is green", null]),
            json!(["content", "Green."])
        ]
    );
    let sent = claude.api.requests(&two)[0]["messages"].to_string();
    for said in [&*format!("[script {session} one]"), "toolu_01", "I made a note.", &format!("[script {two}]")] {
        assert!(sent.contains(said), "{said} is missing in {sent}");
    }
}

/// Where each turn found its sandbox.
async fn found(fleet: &Fleet) -> Vec<String> {
    let rows = sqlx::query_scalar("SELECT sandbox FROM turnmill.attempts WHERE sandbox IS NOT NULL ORDER BY epoch");
    rows.fetch_all(&fleet.pool).await.unwrap()
}

async fn nothing_kept(fleet: &Fleet) {
    let over =
        "UPDATE turnmill.pools SET warm_s = 0, paused_s = 0; UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'warm';
         UPDATE turnmill.parked SET due_at = clock_timestamp()";
    sqlx::raw_sql(over).execute(&fleet.pool).await.unwrap();
    until("nothing is parked", || async { (fleet.store.parked().await.unwrap() == 0).then_some(()) }).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_warm_sandbox_and_a_woken_one_go_on_where_they_were(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    first(&claude, "chat", (600, 0)).await;
    second_remembers(&claude, "chat").await;
    assert_eq!(found(&claude.fleet).await, ["new", "warm"]);
    nothing_kept(&claude.fleet).await;
    claude.fleet.no_slot_held().await;

    first(&claude, "woken", (0, 600)).await;
    until("it is paused", || async { (claude.fleet.store.parked().await.unwrap() == 1).then_some(()) }).await;
    second_remembers(&claude, "woken").await;
    assert_eq!(found(&claude.fleet).await, ["new", "warm", "new", "paused"]);
    nothing_kept(&claude.fleet).await;
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn another_sandbox_of_another_server_under_another_worker_goes_on_where_the_first_was(pool: PgPool) {
    let mut claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    first(&claude, "chat", (600, 0)).await;
    worker.stop().await;
    claude.e2b.stop().await;
    claude.e2b = LocalE2b::start().await;
    let worker = claude.worker().await;
    second_remembers(&claude, "chat").await;
    assert_eq!(found(&claude.fleet).await, ["new", "warm", "new"], "the warm one is gone with its server");
    nothing_kept(&claude.fleet).await;
    claude.stop(worker).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_dump_of_the_database_restored_elsewhere_goes_on_where_it_was(pool: PgPool) {
    let mut from = pool.connect_options().to_url_lossy();
    // Of sqlx's own parameters other programs know nothing.
    from.set_query(None);
    let from = from.to_string();
    let mut claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    first(&claude, "chat", (0, 0)).await;
    claude.fleet.no_slot_held().await;
    worker.stop().await;

    let copy = format!("copy_{:08x}", rand::random::<u32>());
    let (server, _) = from.rsplit_once('/').unwrap();
    let to = format!("{server}/{copy}");
    let mut admin = sqlx::PgConnection::connect(&from).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {copy}"))).execute(&mut admin).await.unwrap();
    let bin = turnmill::local::postgres::find_bin().unwrap();
    let dump = Command::new(bin.join("pg_dump")).arg(&from).output().await.unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut psql = Command::new(bin.join("psql"));
    let mut restore = psql.args(["-q", "-v", "ON_ERROR_STOP=1", &to]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut restore.stdin.take().unwrap(), &dump.stdout).await.unwrap();
    assert!(restore.wait().await.unwrap().success());

    claude.fleet = Fleet::of(Store::lazy(&store::Options::new(&to, 10)).unwrap());
    claude.fleet.store.fork_fleet("copy").await.unwrap();
    let mut config = config(&claude.e2b.url);
    config.fleet = "copy".to_owned();
    let worker = RunningWorker::with(&claude.fleet, config).await;
    second_remembers(&claude, "chat").await;
    claude.fleet.no_slot_held().await;
    worker.stop().await;
    claude.e2b.stop().await;
    claude.fleet.pool.close().await;
    drop(claude.fleet);
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {copy} WITH (FORCE)"))).execute(&mut admin).await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_fork_and_a_retry_begin_where_they_should(pool: PgPool) {
    let claude = Claude::start(pool).await;
    let worker = claude.worker().await;
    first(&claude, "chat", (0, 0)).await;
    let second = claude.enqueue_in("chat", "two", vec![Say(vec![Text("I am the second.")])]).await;
    claude.completed(&second).await;
    let sent_in = |script: &'static str| claude.api.requests(script).last().unwrap()["messages"].to_string();

    claude.fleet.store.fork("chat", Some("fork"), None).await.unwrap();
    let forked = claude.enqueue_in("fork", "forked", vec![Say(vec![Text("Mine.")])]).await;
    claude.completed(&forked).await;
    let sent = sent_in("forked");
    assert!(sent.contains("I made a note.") && sent.contains("I am the second."), "{sent}");
    let own = claude.enqueue_in("fork", "own", vec![Say(vec![Text("Still mine.")])]).await;
    claude.completed(&own).await;
    assert!(sent_in("own").contains("Mine.") && sent_in("own").contains("I made a note."));

    claude.api.script("two", vec![Say(vec![Text("I am another second.")])]);
    let again = claude.fleet.store.retry(&second).await.unwrap().turn_id.unwrap();
    claude.completed(&again).await;
    let third = claude.enqueue_in("chat", "three", vec![Say(vec![Text("Third.")])]).await;
    claude.completed(&third).await;
    let sent: Value = sent_in("three").into();
    let sent = sent.as_str().unwrap();
    assert!(sent.contains("I made a note.") && sent.contains("I am another second."), "{sent}");
    assert!(!sent.contains("I am the second.") && !sent.contains("Mine."), "{sent}");
    claude.stop(worker).await;
}
