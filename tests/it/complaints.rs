//! What the commands say to somebody who made a mistake, or means harm.

use sqlx::{ConnectOptions as _, PgPool};

use crate::commands::{said, turnmill};

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
