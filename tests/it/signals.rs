//! However a command is told to stop, and however impatiently: nothing is left behind, and who looks for it is told.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::{ConnectOptions as _, PgPool};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use turnmill::local::postgres::passable_tempdir;

use crate::commands::{fails, nothing_is_left, said, send, turnmill};
use crate::harness::Running;

fn here(place: &Path, args: &[&str]) -> Command {
    let mut command = turnmill(args);
    command.env("TMPDIR", place).env("XDG_RUNTIME_DIR", place);
    command
}

/// Starts it, and reads what it prints up to these words.
async fn start(mut command: Command, words: &str) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut text = String::new();
    while !text.contains(words) {
        text = format!("{text}{}\n", lines.next_line().await.unwrap().unwrap_or_else(|| panic!("{words:?} before it ends: {text}")));
    }
    // The rest is read and forgotten, so that it never waits for us.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, text)
}

/// A dev whose agent hangs in a tool.
async fn busy_dev(place: &Path) -> Child {
    let (dev, _) = start(here(place, &["dev", "--agent", "mock"]), "psql").await;
    let turn = here(place, &["enqueue", "/mock hang", "--watch"]);
    let (mut watching, _) = start(turn, "▸ Bash").await;
    watching.kill().await.unwrap();
    dev
}

#[tokio::test]
async fn a_closed_terminal_ends_dev_in_order() {
    let place = passable_tempdir("turnmill-test-").unwrap();
    let mut dev = busy_dev(place.path()).await;
    send(Signal::HUP, &dev);
    assert!(dev.wait().await.unwrap().success());
    nothing_is_left(place.path()).await;
}

#[tokio::test]
async fn a_second_ctrl_c_ends_dev_at_once_and_leaves_nothing_either() {
    let place = passable_tempdir("turnmill-test-").unwrap();
    let mut dev = busy_dev(place.path()).await;
    send(Signal::STOP, &dev);
    send(Signal::INT, &dev);
    send(Signal::TERM, &dev);
    let since = Instant::now();
    send(Signal::CONT, &dev);
    assert_eq!(dev.wait().await.unwrap().code(), Some(130));
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    nothing_is_left(place.path()).await;
}

#[tokio::test]
async fn a_second_ctrl_c_ends_the_demo_at_once_and_leaves_nothing_either() {
    let place = passable_tempdir("turnmill-test-").unwrap();
    let (mut demo, _) = start(here(place.path(), &["demo"]), "▸ Bash").await;
    send(Signal::STOP, &demo);
    send(Signal::INT, &demo);
    send(Signal::TERM, &demo);
    send(Signal::CONT, &demo);
    assert_eq!(demo.wait().await.unwrap().code(), Some(130));
    nothing_is_left(place.path()).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_interrupted_smoke_test_takes_its_turn_and_sandbox_with_it(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::start(pool).await;
    let mut smoke = turnmill(&["smoke", "--prompt", "/mock hang"]);
    smoke.env("DATABASE_URL", &url).env("E2B_API_KEY", "local").env("E2B_API_URL", &all.e2b.url).env("E2B_SANDBOX_URL", &all.e2b.url);
    let (mut smoke, _) = start(smoke, "▸ Bash").await;
    send(Signal::TERM, &smoke);
    assert_eq!(smoke.wait().await.unwrap().code(), Some(130));
    assert_eq!(all.e2b.client().list(&[]).await.unwrap().len(), 0, "its sandbox is gone before it ends");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.sessions").fetch_one(&all.fleet.pool).await.unwrap();
    assert_eq!(left, 0, "and so are its rows");
    all.stop().await;
}

#[tokio::test]
async fn the_first_dev_stays_the_one_that_is_found_and_a_dead_one_is_said_to_be() {
    let place = passable_tempdir("turnmill-test-").unwrap();
    let dev = || start(here(place.path(), &["dev", "--agent", "mock"]), "psql");
    let (mut first, told) = dev().await;
    assert!(!told.contains("export DATABASE_URL") && told.contains(&format!("{} enqueue", env!("CARGO_BIN_EXE_turnmill"))), "{told}");
    let (mut second, told) = dev().await;
    assert!(told.contains("export DATABASE_URL=postgres://"), "the second says how it is found: {told}");
    send(Signal::INT, &second);
    assert!(second.wait().await.unwrap().success());
    let found = here(place.path(), &["turns"]).output().await.unwrap();
    assert!(found.status.success(), "the first is still found: {}", said(&found));
    first.kill().await.unwrap();
    fails(&mut here(place.path(), &["turns"]), &["the `turnmill dev` that was here is gone", "start it again"]).await;
}

/// The seed's own way to give a key in development.
#[tokio::test]
async fn dev_finds_a_key_in_env_local_and_says_where_and_not_what() {
    let place = passable_tempdir("turnmill-test-").unwrap();
    let bin = place.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("claude"), "#!/bin/sh\n").unwrap();
    std::fs::write(place.path().join(".env.local"), "DATABASE_URL=postgres://127.0.0.1:1/theirs\nCLAUDE_API_KEY=sk-ant-of-the-app\n")
        .unwrap();
    let mut command = here(place.path(), &["dev"]);
    command.current_dir(place.path()).env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    for name in ["ANTHROPIC_API_KEY", "CLAUDE_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"] {
        command.env_remove(name);
    }
    let (mut dev, text) = start(command, "psql").await;
    assert!(text.contains("claude, with CLAUDE_API_KEY in .env.local") && !text.contains("sk-ant-of-the-app"), "{text}");
    send(Signal::TERM, &dev);
    assert!(dev.wait().await.unwrap().success());
    std::fs::remove_file(place.path().join(".env.local")).unwrap();
    std::fs::remove_dir_all(bin).unwrap();
    nothing_is_left(place.path()).await;
}
