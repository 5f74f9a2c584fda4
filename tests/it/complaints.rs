//! What the commands say to somebody who made a mistake, or means harm.

use sqlx::{ConnectOptions as _, PgPool};
use tokio::io::AsyncWriteExt as _;

use crate::commands::{fails, said, turnmill};
use crate::harness::Running;
use crate::retries::shaky;

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_postgres_refuses_is_said_once_with_its_hint(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let output = turnmill(&["enqueue", ""]).env("DATABASE_URL", &url).output().await.unwrap();
    assert_eq!(said(&output), "error: the prompt is empty\n  Give the user's message as prompt => '…'.\n");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn nothing_that_somebody_else_named_steers_the_terminal(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();

    let evil = "x\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}2J\u{202e}\n1";
    // As on a terminal: our own colours stay, and with them whatever else looks like one.
    let run = async |args: &[&str]| said(&turnmill(args).env("DATABASE_URL", &url).env("CLICOLOR_FORCE", "1").output().await.unwrap());
    let shown = [
        run(&["enqueue", evil, "--id", evil, "--session", evil, "--tenant", evil, "--project", evil]).await,
        run(&["enqueue", evil, "--session", evil, "--project", "another"]).await,
        run(&["enqueue", "hi", "--session", evil, "--on-busy", "reject"]).await,
        run(&["enqueue", "hi", "--on-busy", evil]).await,
        run(&["enqueue", "hi", "--option", evil]).await,
        run(&["turns"]).await,
        run(&["turns", "--json"]).await,
        run(&["cancel", evil, "--reason", evil]).await,
        run(&["watch", evil]).await,
        run(&["watch", evil, "--json"]).await,
        run(&["retry", evil]).await,
        run(&["watch", &format!("{evil}2")]).await,
        run(&["tenant", "set", evil, "--weight", "2"]).await,
        run(&["pool", "set", "default", "--template", evil, "--agent", evil]).await,
        run(&["pool", "set", evil]).await,
        run(&["fleet", "fork", evil]).await,
        run(&["doctor"]).await,
    ];
    for text in shown {
        assert!(!text.is_empty() && !text.contains(['\u{7}', '\u{9b}', '\u{202e}']), "{text:?}");
        assert!(!text.contains("\u{1b}]") && !text.contains("\u{1b}[2J"), "{text:?}");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_bad_argument_is_refused_with_what_would_be_a_good_one(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    // What everybody's SQL refuses, and what the command line itself does.
    let refused: [(&[&str], i32, &str); 15] = [
        (&["enqueue", "hi", "--id", ""], 1, "turn_id is empty\n  Give a text of 1 to 255 characters."),
        (&["enqueue", "hi", "--session", ""], 1, "session_id is empty"),
        (&["enqueue", "hi", "--key", ""], 1, "idempotency_key is empty"),
        (&["enqueue", "hi", "--project", ""], 1, "project_id is empty"),
        (&["enqueue", "hi", "--option", "max_turns=many"], 1, "option \"max_turns\" is \"many\"\n  Give a whole number"),
        (&["tenant", "set", ""], 1, "the tenant's id is empty"),
        (&["pool", "set", "Big Pool"], 2, "give up to 63 of a-z"),
        (&["pool", "set", "big", "--agent", " "], 2, "give a program and its arguments"),
        (&["pool", "set", "big", "--workdir", "src"], 2, "give a path from the root"),
        (&["pool", "set", "big", "--mcp-servers", "no-such-file"], 2, "give a file, or \"none\""),
        (&["pool", "set", "big", "--mcp-servers", "Cargo.toml"], 2, "it is no JSON"),
        (&["pool", "set", "big", "--mcp-servers", "examples/nextjs/package.json"], 2, "{\"mcpServers\": {\"NAME\""),
        (&["pool", "set", "big", "--template", ""], 2, "a value is required"),
        (&["fleet", "fork", "-x"], 2, "unexpected argument"),
        (&["fleet", "fork", "Prod"], 2, "give up to 63 of a-z"),
    ];
    for (args, code, words) in refused {
        let output = turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{args:?}: {}", said(&output));
    }
    let made: i64 = sqlx::query_scalar("SELECT (SELECT count(*) FROM turnmill.sessions) + (SELECT count(*) FROM turnmill.pools) - 1")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(made, 0, "nothing was half done");
}

#[sqlx::test(migrations = false)]
async fn a_wrong_database_is_told_apart_at_once(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    for args in [&["turns"][..], &["enqueue", "hi"], &["cancel", "t"], &["watch", "t"], &["pool"], &["fleet"], &["tenant"], &["smoke"]] {
        fails(turnmill(args).env("DATABASE_URL", &url), &["schema is not there", "run: turnmill migrate"]).await;
    }
    for url in ["mysql://root@127.0.0.1/shop", "http://127.0.0.1:5432/shop"] {
        fails(turnmill(&["turns"]).env("DATABASE_URL", url), &["DATABASE_URL is not a Postgres URL"]).await;
    }
    // Somebody who hears us out, and answers in another language.
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = web.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut guest, _)) = web.accept().await {
            drop(guest.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    let since = std::time::Instant::now();
    let elsewhere = [(place.port(), "unexpected response from SSLRequest"), (1, "Connection refused")];
    for (port, why) in elsewhere {
        let url = format!("postgres://u@127.0.0.1:{port}/shop");
        fails(turnmill(&["turns"]).env("DATABASE_URL", url), &["can't reach Postgres at 127.0.0.1", why]).await;
    }
    let nobody = format!("postgres://postgres@{}:{}/nope", pool.connect_options().get_host(), pool.connect_options().get_port());
    fails(turnmill(&["turns"]).env("DATABASE_URL", nobody), &["database \"nope\" does not exist"]).await;
    assert!(since.elapsed() < std::time::Duration::from_secs(5), "{:?}", since.elapsed());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_watches_a_turn_hears_of_each_failure_once(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::with(pool, |config| config.retry.agent_delay = std::time::Duration::from_millis(500)).await;
    let watch = async |prompt: &str| said(&turnmill(&["enqueue", prompt, "--watch"]).env("DATABASE_URL", &url).output().await.unwrap());
    let shaky = watch(&shaky()).await;
    assert_eq!(shaky.matches("; it is tried again").count(), 2, "{shaky}");
    assert!(shaky.contains("\ncompleted\n"), "{shaky}");
    let failed = watch("/mock garbage").await;
    assert!(failed.contains("! ") && failed.contains("\nfailed: agent_garbage\n"), "{failed}");
    assert_eq!(failed.matches("Welcome to some other program").count(), 1, "the message is not repeated: {failed}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn receipts_and_lists_say_what_is_so(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let run = async |args: &[&str]| said(&turnmill(args).env("DATABASE_URL", &url).output().await.unwrap());
    assert!(run(&["pool", "set", "big", "--cap", "3"]).await.starts_with("Made pool big.\n"));
    assert!(run(&["pool", "set", "big", "--pause"]).await.starts_with("Changed pool big.\n"));

    let held_up = ["enqueue", "hi", "--pool", "big", "--id", "t1", "--session", "s1", "--key", "k1"];
    assert_eq!(run(&held_up).await, "t1  queued, waits: pool_paused, session s1\n");
    assert_eq!(run(&held_up).await, "t1  again: it is pending already, waits: pool_paused, session s1\n");
    let behind = run(&["enqueue", "hi", "--id", "a-longer-id", "--session", "s1"]).await;
    assert_eq!(behind, "a-longer-id  queued, 1 before it, waits: session_busy, session s1\n");
    run(&["cancel", "a-longer-id"]).await;

    let listed = run(&["turns"]).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(
        lines[0].starts_with("a-longer-id  cancelled            ") && lines[1].starts_with("t1           pending pool_paused  "),
        "{listed}"
    );
    assert_eq!(lines[0].find(" UTC  hi"), lines[1].find(" UTC  hi"), "the columns line up: {listed}");
    assert!(lines.iter().all(|line| line.contains(" UTC  hi")), "{listed}");
}
