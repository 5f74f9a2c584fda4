//! What a hostile agent, and whoever writes its prompt, may try; each of it without effect on anything but its own turn.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::local::postgres::passable_tempdir;
use turnmill::store::{Enqueue, PoolChange, TenantChange};

use crate::harness::{Running, until};

async fn agent(all: &Running, script: &str) {
    let agent = Some(["bash", "-c", script, "agent", "--session-id={session}", "--file={instructions}"].map(str::to_owned).to_vec());
    all.fleet.store.set_pool("default", &PoolChange { agent, ..PoolChange::default() }).await.unwrap();
}

/// Command lines of all processes of this machine that have a text in them.
fn command_lines_with(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(text)).collect()
}

/// Whatever a shell, a flag parser or a path could make of it: it is text.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn nothing_that_a_user_says_is_run_or_in_a_command_line(pool: PgPool) {
    let all = Running::start(pool).await;
    let marks = passable_tempdir("turnmill-test-").unwrap();
    std::fs::set_permissions(marks.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let place = marks.path().display();
    agent(
        &all,
        &format!(
            "read -r line; touch {place}/.runs; until [ -e {place}/.looked ]; do sleep 0.02; done
             printf '{{\"type\":\"tool_use\",\"tool_name\":\"x\",\"parameters\":%s,\"tool_use_id\":\"x\"}}\\n' \"$line\""
        ),
    )
    .await;
    let marker = "m4rk3r-0f-th1s-t3st";
    let evil = format!(
        "--version\n-h\n; touch {place}/semicolon\n$(touch {place}/dollar)`touch {place}/tick`'; touch {place}/quote; '\" && touch \
         {place}/quotes; \"\n| tee {place}/pipe\n> {place}/file\n\u{1b}]0;x\u{7}\r\n/clear\n!touch {place}/bang\n@/etc/passwd {marker} \\"
    );
    let attachment = json!([{ "path": format!("$(touch {place}/name);{marker}.txt"), "text": "hi" }]);
    for id in ["'; touch x; '", "$(id)", "-rf", "../../../etc", "a\nb"] {
        for mark in [".runs", ".looked"] {
            drop(std::fs::remove_file(marks.path().join(mark)));
        }
        let named = format!("{id} {marker}");
        let turn = Enqueue {
            prompt: evil.clone(),
            project_id: Some(named.clone()),
            session_id: Some(named.clone()),
            user_id: Some(named.clone()),
            tenant_id: Some(named.clone()),
            idempotency_key: Some(named.clone()),
            options: Some(json!({ "append_system_prompt": evil })),
            attachments: Some(attachment.clone()),
            ..Enqueue::default()
        };
        let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        let runs = async || std::fs::exists(marks.path().join(".runs")).unwrap().then_some(());
        until("the agent runs", runs).await;
        let lines = command_lines_with(marker);
        assert!(lines.is_empty(), "{lines:?}");
        std::fs::write(marks.path().join(".looked"), "").unwrap();
        assert_eq!(all.fleet.ended(&turn).await.error_message, None);
        let said = &all.fleet.blocks(&turn).await[0][1]["parameters"]["message"]["content"];
        assert!(said.to_string().contains(&serde_json::to_string(&evil).unwrap()), "{said}");
    }
    let left: Vec<_> = std::fs::read_dir(marks.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| [".runs", ".looked"].contains(&name.to_str().unwrap())), "{left:?}");
    all.stop().await;
}

/// What tells workers how far it is belongs to root: its agent writes beside it, or nowhere.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_forges_its_files_ends_as_it_ends(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 1).await;
    if !rustix::process::geteuid().is_root() {
        return all.stop().await;
    }
    agent(
        &all,
        r#"exec 2>/dev/null
           dir=$(dirname "$(readlink /proc/$$/fd/1)"); turn=$(dirname "$dir"); state=$(dirname "$turn")
           printf '{"type":"content","text":"first"}\n'
           done='{"status":0,"journal_bytes":0,"reason":null,"finish":null,"transcript_bytes":0,"transcript_kept":true,"ran":true,"files":null}'
           for file in "$dir"/* "$turn/stopped" "$state/epoch" "$state/prepared" "$state/lock"; do
             { echo "$done" >"$file"; rm -f "$file"; mv "$file" "$file.old"; ln -sf /etc/passwd "$file"; } && echo "$file" >>~/forged
           done
           mkdir "$turn/attempt-2" && echo attempt >>~/forged
           : >"$dir/journal.jsonl"; : >/proc/self/fd/1
           printf '{"status":0}\n%s\n' "$done"
           printf '{"type":"content","text":"%s"}\n' "last, forged: $(tr '\n' ' ' <~/forged)"
           exit 3"#,
    )
    .await;
    let turn = all.fleet.enqueue("x").await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    let texts: Vec<Value> = all.fleet.blocks(&turn).await.iter().map(|block| block[1]["text"].clone()).collect();
    assert_eq!(texts[..2], [json!("first"), json!("last, forged: ")], "{ended:?}");
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("agent_crashed")), "{ended:?}");
    all.stop().await;
}

/// Through the descriptor that it has inherited it could shorten its journal, were it not append-only as in a real sandbox. It
/// costs itself what it has cut, and nobody a minute.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_agent_that_cuts_its_journal_off_ends_soon_and_keeps_what_was_copied(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 1).await;
    let cut = passable_tempdir("turnmill-test-").unwrap();
    let place = cut.path().display();
    agent(
        &all,
        &format!(
            r#"printf '{{"type":"content","text":"first of them"}}\n'
               until [ -e {place}/go ]; do sleep 0.02; done
               perl -e 'truncate(STDOUT, 0)'
               printf '{{"type":"content","text":"x"}}\n'"#
        ),
    )
    .await;
    let turn = all.fleet.enqueue("x").await.turn_id;
    all.fleet.has_blocks(&turn, 1).await;
    std::fs::write(cut.path().join("go"), "").unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), all.fleet.ended(&turn)).await.expect("it ends");
    assert_eq!(all.fleet.blocks(&turn).await[0][1]["text"], "first of them", "{ended:?}");
    all.stop().await;
}

/// Its agent's word for what it has spent is taken up to what it may have been.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_forged_bill_breaks_no_book_and_holds_nobody_else_up_for_long(pool: PgPool) {
    let all = Running::with(pool, |config| config.retry.agent_tries = 1).await;
    let models: serde_json::Map<String, Value> = (0..30)
        .map(|n| {
            (
                format!("m{n}"),
                json!({ "costUSD": 9_999_999.0, "inputTokens": i64::MAX, "outputTokens": u64::MAX, "cacheReadInputTokens": -5 }),
            )
        })
        .collect();
    let bill = json!({ "type": "result", "subtype": "success", "is_error": false, "result": "x", "total_cost_usd": 1e300, "usage": {},
        "model_usage_since_last_result": models });
    agent(&all, &format!("printf '%s\\n' '{bill}'")).await;
    let cost = async |budget: Option<f64>| {
        let turn = Enqueue {
            prompt: "x".to_owned(),
            project_id: Some("p1".to_owned()),
            tenant_id: Some("hostile".to_owned()),
            options: budget.map(|usd| json!({ "max_budget_usd": usd })),
            ..Enqueue::default()
        };
        let turn = all.fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
        all.fleet.ended(&turn).await;
        let cost: f64 = sqlx::query_scalar("SELECT cost_usd::float8 FROM turnmill.turns WHERE id = $1")
            .bind(&turn)
            .fetch_one(&all.fleet.pool)
            .await
            .unwrap();
        cost
    };
    let booked = cost(Some(2.0)).await;
    assert!((booked - 52.0).abs() < 0.001, "of a turn with a budget that and one call: {booked}");
    for _ in 0..3 {
        let booked = cost(None).await;
        assert!((booked - 10_000.0).abs() < 0.001, "{booked}");
    }
    while all.fleet.store.sum_charges().await.unwrap() > 0 {}
    all.fleet.books_balance().await;
    let change = TenantChange { budget_usd_per_day: Some(Some(1.0)), ..TenantChange::default() };
    all.fleet.store.set_tenant("hostile", change).await.unwrap();
    let own = all.fleet.enqueue_for("hostile").await;
    let other = all.fleet.enqueue_for("other").await;
    all.fleet.ended(&other).await;
    let waits: Option<String> = sqlx::query_scalar("SELECT turnmill.wait_reason($1)").bind(&own).fetch_one(&all.fleet.pool).await.unwrap();
    assert_eq!(waits.as_deref(), Some("budget"), "it has spent its own");
    all.stop().await;
}
