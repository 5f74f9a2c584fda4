//! Whoever is to be forgotten is: no table has a word of theirs, and nobody else misses one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::keys::{OwnKey, Vault};
use turnmill::store::{Actor, Bounds, Enqueue, Erasure, NewToken, PoolChange};

use crate::commands::{fails, said, turnmill};
use crate::harness::{Fleet, Running, ending};
use crate::masking::tables;
use crate::receiver::{Manner, Receiver};
use turnmill::turn::Ending;

/// In all that the user says, is called, and gets.
const WORD: &str = "quokka";

/// Says the word in every way, changes a file of that name, and fails with it.
const AGENT: &str = r#"
cat >/dev/null
echo quokka >quokka.txt
echo '{"type":"assistant","uuid":"00000000-0000-4000-8000-000000000001","message":{"id":"m1","role":"assistant","content":[{"type":"text","text":"a quokka"},{"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls quokka"}}]}}'
echo '{"type":"user","uuid":"00000000-0000-4000-8000-000000000002","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"quokka.txt"}]}}'
echo 'quokka: no line'
echo 'fatal: no quokka' >&2
exit 1
"#;

/// What a worker deletes soon after a turn, so that only a test without one has it.
const CLEANED_UP: [&str; 4] = ["cancel_requests", "preview_watches", "previews", "turn_secrets"];

/// Every table, and what an erasure does with it.
const FATES: [(&str, &str); 38] = [
    ("api_tokens", "deleted: those of its sessions"),
    ("artifacts", "deleted"),
    ("attachments", "deleted"),
    ("attempts", "deleted"),
    ("audit", "kept without ids and words"),
    ("blocks", "deleted"),
    ("cancel_requests", "deleted"),
    ("charges", "kept without ids"),
    ("corrections", "nobody's: sandboxes and slots"),
    ("duties", "nobody's"),
    ("failures", "kept without ids and words"),
    ("fleet", "nobody's"),
    ("fresh_charges", "kept without ids"),
    ("jobs", "refused while there is one"),
    ("journals", "deleted"),
    ("metrics_minute", "nobody's: numbers"),
    ("ops_visits", "operators'"),
    ("outbox", "deleted"),
    ("parked", "gone before: its sandbox is killed"),
    ("pool_states", "nobody's"),
    ("pools", "nobody's"),
    ("preview_watches", "deleted"),
    ("previews", "deleted"),
    ("sandbox_kills", "nobody's: sandboxes"),
    ("sessions", "deleted"),
    ("slots", "gone before: its sandbox is killed"),
    ("spend_days", "nobody's: sums by tenant"),
    ("spend_state", "nobody's"),
    ("tenant_logins", "a tenant's"),
    ("tenants", "a tenant's"),
    ("transcripts", "deleted"),
    ("turn_secrets", "deleted"),
    ("turns", "deleted"),
    ("user_keys", "deleted: the user's"),
    ("webhook_endpoints", "a tenant's"),
    ("workers", "nobody's"),
    ("workspaces", "deleted"),
    ("(none)", "a new table is none of these: say what becomes of it"),
];

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_every_table_it_is_said_what_becomes_of_it(pool: PgPool) {
    let there: Vec<String> = sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'turnmill' ORDER BY 1")
        .fetch_all(&pool)
        .await
        .unwrap();
    let said: Vec<&str> = FATES.iter().map(|(table, _)| *table).filter(|table| *table != "(none)").collect();
    assert_eq!(there, said);
}

async fn turn_of(fleet: &Fleet, user: &str, session: &str) -> String {
    let turn = Enqueue {
        prompt: format!("Where is the {user}?"),
        project_id: Some("zoo".to_owned()),
        session_id: Some(session.to_owned()),
        user_id: Some(user.to_owned()),
        tenant_id: Some("acme".to_owned()),
        attachments: Some(json!([{ "path": format!("{user}.csv"), "text": user }])),
        ..Enqueue::default()
    };
    let turn = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    fleet.ended(&turn).await;
    turn
}

/// All rows but those that change with time and work, as text.
async fn rows_of_others(pool: &PgPool, session: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (table, key) in [
        ("sessions", "id = $1"),
        ("turns", "session_id = $1"),
        ("transcripts", "session_id = $1"),
        ("workspaces", "session_id = $1"),
        ("ledger", "session_id = $1"),
        ("blocks", "turn_id IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
        ("attachments", "turn_id IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
        ("journals", "turn_id IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
        ("attempts", "turn_id IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
        ("outbox", "turn_id IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
        ("audit", "subject IN (SELECT id FROM turnmill.turns WHERE session_id = $1)"),
    ] {
        let query = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM turnmill.{table} t WHERE {key}");
        let text: String = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(session).fetch_one(pool).await.unwrap();
        assert_ne!(text, "", "{table} has something of the other one");
        all.insert(table.to_owned(), text);
    }
    all
}

/// What models have cost and how many turns ended, by tenant: from the charges themselves, and from the sums.
async fn all_usd(pool: &PgPool) -> Vec<String> {
    let mut all = Vec::new();
    for table in ["ledger", "spend"] {
        let query = format!(
            "SELECT concat_ws(' ', '{table}', tenant_id, sum(usd), sum(turns), sum(input_tokens)) FROM turnmill.{table}
             WHERE kind = 'model' GROUP BY tenant_id HAVING sum(usd) > 0 ORDER BY tenant_id"
        );
        let sums: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(pool).await.unwrap();
        assert_ne!(sums, [""; 0], "{table} has something that was paid");
        all.extend(sums);
    }
    all
}

fn counts(said: &str) -> BTreeMap<&str, &str> {
    said.lines()
        .filter_map(|line| line.trim().split_once(' '))
        .filter(|(count, _)| count.parse::<i64>().is_ok())
        .map(|(count, what)| (what, count))
        .collect()
}

/// A user with all that can be known of one: turns that went well and that failed, kept sandbox and files, keys, tokens, deliveries.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_user_is_erased_from_every_table_and_nobody_else_is(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let all = Running::with(pool, |config| config.retry.agent_tries = 1.try_into().unwrap()).await;
    let (fleet, store) = (&all.fleet, &all.fleet.store);
    let receiver = Receiver::start(Manner::Status(200)).await;
    fleet.endpoint(&receiver.url).await;
    let other = turn_of(fleet, "wombat", "their-session").await;
    let session = format!("{WORD}-session");
    let first = turn_of(fleet, WORD, &session).await;
    let agent = ["bash", "-c", AGENT].map(str::to_owned).to_vec();
    store.set_pool("default", &PoolChange { agent: Some(agent), release: Some((600, 0)), ..PoolChange::default() }).await.unwrap();
    let second = turn_of(fleet, WORD, &session).await;
    assert_eq!(fleet.turn(&second).await.status, "failed");
    let vault = Vault::new(&Vault::new_key("k1")).unwrap();
    for user in [WORD, "wombat"] {
        store.set_own_key(&OwnKey::seal(&vault, "acme", user, &"sk-ant-api03-0123456789".into()).unwrap()).await.unwrap();
    }
    let token = NewToken {
        hash: vec![7; 32],
        prefix: "tm".to_owned(),
        name: WORD.to_owned(),
        scopes: vec!["turns:read".to_owned()],
        session_id: Some(session.clone()),
        expires_in: Some(Duration::from_secs(600)),
        ..NewToken::default()
    };
    store.add_token(&token).await.unwrap();
    let actor = |reason: &str| Actor { name: "ann".to_owned(), token_id: None, reason: reason.to_owned() };
    store.cancel_by(&actor(&format!("{WORD} asked for it")), &first).await.unwrap();
    store.cancel_by(&actor("it took too long"), &second).await.unwrap();
    store.cancel_by(&actor("the wombat asked for it"), &other).await.unwrap();
    let fork = store.fork(&session, None, Some(&first)).await.unwrap();
    sqlx::query("UPDATE turnmill.sessions SET user_id = 'wombat' WHERE id = $1").bind(&fork).execute(&fleet.pool).await.unwrap();
    // A minute that is over is summed, with a sample of what failed in it; the worker had done that before.
    sqlx::raw_sql("DELETE FROM turnmill.metrics_minute").execute(&fleet.pool).await.unwrap();
    sqlx::raw_sql("UPDATE turnmill.attempts SET taken_at = taken_at - interval '2 minutes', ended_at = ended_at - interval '2 minutes'")
        .execute(&fleet.pool)
        .await
        .unwrap();
    store.close_minutes().await.unwrap();
    let (theirs, usd) = (rows_of_others(&fleet.pool, "their-session").await, all_usd(&fleet.pool).await);
    let before = tables(&fleet.pool).await;
    assert!(before["failures"].contains(WORD), "{}", before["failures"]);

    let erase = |more: &[&str]| {
        let mut command = turnmill(&["erase", "--user", WORD]);
        command.args(more).env("DATABASE_URL", &url);
        command
    };
    let dry = said(&erase(&[]).output().await.unwrap());
    let found = counts(&dry);
    for (table, fate) in FATES.into_iter().filter(|(_, fate)| fate.starts_with("deleted")) {
        assert!(CLEANED_UP.contains(&table) || found.contains_key(table), "{table} is {fate}, and the test has put something there: {dry}");
    }
    assert_eq!((found["turns"], found["user_keys"], found["api_tokens"], found["attachments"]), ("2", "1", "1", "2"), "{dry}");
    assert!(dry.contains("1 sandboxes, which workers kill") && dry.contains(&format!("{fork} was forked from it")), "{dry}");
    assert!(dry.contains("Nothing was erased; to do it, for good: --yes"), "{dry}");
    assert_eq!(fleet.turn(&first).await.status, "completed", "nothing was erased");

    fails(&mut erase(&["--yes"]), &[&fork, "and would lose them", "--with-unsaved-forks"]).await;
    let done = said(&erase(&["--yes", "--with-unsaved-forks"]).output().await.unwrap());
    assert!(done.contains("Erased, as erasure_"), "{done}");
    // The script of the pool's agent has the word too, but from the operator.
    for (table, text) in tables(&fleet.pool).await.into_iter().filter(|(table, _)| table != "pools") {
        let line = text.lines().find(|line| [WORD, &first, &second].iter().any(|word| line.contains(word)));
        assert_eq!(line, None, "{table}");
    }
    assert_eq!(rows_of_others(&fleet.pool, "their-session").await, theirs, "nobody else misses anything");
    let usd_now = all_usd(&fleet.pool).await;
    assert_eq!(usd_now, usd, "money adds up as before");
    let entry = store.audit(None, None, 10).await.unwrap().remove(0);
    assert_eq!((entry.act.as_str(), entry.kind.as_str(), &entry.detail["turns"]), ("erase", "user", &json!(2)), "{entry:?}");
    assert!(done.contains(&entry.subject));
    let again = said(&erase(&["--yes"]).output().await.unwrap());
    assert_eq!(again.trim(), "Nothing is there of it.", "{again}");
    all.stop().await;
}

/// What is queued or runs is not torn out of a worker's hands.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_session_with_a_turn_that_has_not_ended_is_erased_only_when_that_is_cancelled(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let ended = fleet.enqueue_in("hi", Some("s1")).await.turn_id;
    let worker = fleet.worker("w").await;
    let job = worker.claim_one().await;
    fleet.store.settle(&job, &ending(Ending::Completed), Duration::from_secs(30)).await.unwrap().unwrap();
    fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    let waits = fleet.enqueue_in("again", Some("s1")).await.turn_id;
    let erase = |more: &[&str]| {
        let mut command = turnmill(&["erase", "--session", "s1", "--wait", "1"]);
        command.args(more).env("DATABASE_URL", &url);
        command
    };
    fails(&mut erase(&["--yes"]), &["1 turns have not ended", &waits, "--cancel"]).await;
    let running = worker.claim_one().await;
    fails(&mut erase(&["--yes", "--cancel"]), &["1 turns have not ended yet", "What is left is still there"]).await;
    assert_eq!(fleet.turn(&ended).await.status, "completed");
    fleet.store.settle(&running, &ending(Ending::Cancelled), Duration::from_secs(30)).await.unwrap().unwrap();
    // Its sandbox is not known to be gone yet.
    fails(&mut erase(&["--yes"]), &["1 sandboxes are still there", "What is left is still there"]).await;
    fleet.store.slot_freed(running.slot_id, running.epoch).await.unwrap().unwrap();
    let done = said(&erase(&["--yes"]).output().await.unwrap());
    assert!(done.contains("Erased, as erasure_"), "{done}");
    assert_eq!(fleet.store.turn(&ended).await.unwrap().map(|turn| turn.id), None);
}

/// More turns than one transaction takes, and one that comes in between: it stays, and the next erasure takes it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_that_comes_meanwhile_is_not_erased_with_the_others(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let mut turns = Vec::new();
    for _ in 0..130 {
        turns.push(fleet.enqueue_in("hi", Some("s1")).await.turn_id);
    }
    for turn in &turns {
        fleet.store.cancel(turn, None).await.unwrap();
    }
    let late = fleet.enqueue_in("wait for me", Some("s1")).await.turn_id;
    assert_eq!(fleet.store.erase_session("s1", false).await.unwrap(), Erasure::Busy);
    let left: Vec<String> = sqlx::query_scalar("SELECT id FROM turnmill.turns").fetch_all(&fleet.pool).await.unwrap();
    assert_eq!(left, [late.as_str()]);
    fleet.store.cancel(&late, None).await.unwrap();
    assert_eq!(fleet.store.erase_session("s1", false).await.unwrap(), Erasure::Done);
    assert!(fleet.store.session("s1", &Bounds::default()).await.unwrap().is_none());
}

/// A turn that has ended, of a user of a tenant; no worker had it.
async fn cancelled(fleet: &Fleet, tenant: Option<&str>, user: &str, session: &str) -> String {
    let turn = Enqueue {
        prompt: "hi".to_owned(),
        project_id: Some("zoo".to_owned()),
        session_id: Some(session.to_owned()),
        user_id: Some(user.to_owned()),
        tenant_id: tenant.map(str::to_owned),
        ..Enqueue::default()
    };
    let turn = fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap();
    fleet.store.cancel(&turn, None).await.unwrap();
    turn
}

async fn sql(fleet: &Fleet, text: String) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&fleet.pool).await.unwrap();
}

async fn all(fleet: &Fleet, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(&fleet.pool).await.unwrap()
}

async fn erased(url: &str, args: &[&str]) -> String {
    let mut command = turnmill(&["erase"]);
    let output = command.args(args).env("DATABASE_URL", url).output().await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_workers_clean_up_is_erased_when_none_has(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let turn = cancelled(&fleet, None, WORD, "s1").await;
    sql(
        &fleet,
        format!(
            "INSERT INTO turnmill.cancel_requests (turn_id, reason) VALUES ('{turn}', 'quokka');
             INSERT INTO turnmill.preview_watches VALUES ('{turn}', now() + interval '1 hour');
             INSERT INTO turnmill.previews (turn_id, epoch, n, ordinal, generation, after_seq, open, text) VALUES ('{turn}', 1, 1, 1, 1, 0, '{{}}', 'quokka');
             INSERT INTO turnmill.turn_secrets VALUES ('{turn}', 1, 'quokka', 'k1');"
        ),
    )
    .await;
    let dry = erased(&url, &["--session", "s1"]).await;
    for table in CLEANED_UP {
        assert_eq!(counts(&dry).get(table), Some(&"1"), "{table}: {dry}");
    }
    erased(&url, &["--session", "s1", "--yes"]).await;
    for (table, text) in tables(&fleet.pool).await {
        assert!(![WORD, &turn].iter().any(|word| text.contains(word)), "{table}: {text}");
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn of_the_audit_only_entries_about_the_erased_are(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let turn = cancelled(&fleet, None, "u1", "default").await;
    let other = cancelled(&fleet, None, "u2", "s2").await;
    sql(
        &fleet,
        format!(
            r#"INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, from_offset, from_seq, sandbox_id)
               VALUES (1, '{turn}', 1, 1, 'w', 'claimed', 0, 0, 'sbx1');
             INSERT INTO turnmill.audit (actor, act, kind, subject, reason, detail) VALUES
               ('ann', 'set', 'pool', 'default', 'too many', '{{"turns_max": 42}}'),
               ('ann', 'cancel', 'turn', '{turn}', 'u1 asked', '{{"status": "cancelled"}}'),
               ('ann', 'retry', 'turn', '{other}', 'again', '{{"made": "{turn}"}}'),
               ('ann', 'kill', 'sandbox', 'sbx0', 'stuck', '{{"was": "slot", "turn": "{turn}"}}'),
               ('ann', 'kill', 'sandbox', 'sbx1', 'idle', '{{"was": "parked", "turn": null}}'),
               ('ann', 'kill', 'sandbox', 'sbx1', 'slow', '{{"was": "slot", "turn": "{other}"}}'),
               ('ann', 'show', 'session', 'default', 'why', '{{}}'),
               ('ann', 'cancel', 'turn', '{other}', 'default was in its way', '{{"status": "cancelled"}}');"#
        ),
    )
    .await;
    let done = erased(&url, &["--session", "default", "--yes"]).await;
    let entries = all(&fleet, "SELECT concat_ws(' ', id, kind, subject, reason) FROM turnmill.audit ORDER BY id").await;
    assert_eq!(
        entries[..8],
        [
            "1 pool default too many".to_owned(),
            "2 turn erased erased".to_owned(),
            "3 turn erased erased".to_owned(),
            "4 sandbox erased erased".to_owned(),
            "5 sandbox erased erased".to_owned(),
            "6 sandbox sbx1 slow".to_owned(),
            "7 session erased erased".to_owned(),
            format!("8 turn {other} default was in its way"),
        ]
    );
    assert!(done.contains("and stay: 8."), "{done}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_user_is_one_tenant_s_unless_all_are_meant(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let vault = Vault::new(&Vault::new_key("k1")).unwrap();
    for (tenant, session) in [(Some("acme"), "a1"), (Some("beta"), "b1"), (None, "n1")] {
        cancelled(&fleet, tenant, "u1", session).await;
        let key = OwnKey::seal(&vault, tenant.unwrap_or_default(), "u1", &"sk-ant-api03-0123456789".into()).unwrap();
        fleet.store.set_own_key(&key).await.unwrap();
    }
    let sessions = "SELECT id FROM turnmill.sessions ORDER BY id";
    let keys = "SELECT tenant_id FROM turnmill.user_keys ORDER BY 1";
    let mut command = turnmill(&["erase", "--user", "u1", "--yes"]);
    fails(command.env("DATABASE_URL", &url), &["3 tenants", "\"\" (none), acme, beta", "--all-tenants"]).await;
    erased(&url, &["--user", "u1", "--tenant", "", "--yes"]).await;
    assert_eq!((all(&fleet, sessions).await, all(&fleet, keys).await.join(" ")), (vec!["a1".into(), "b1".into()], "acme beta".into()));
    erased(&url, &["--user", "u1", "--tenant", "beta", "--yes"]).await;
    assert_eq!((all(&fleet, sessions).await, all(&fleet, keys).await), (vec!["a1".into()], vec!["acme".into()]));
    cancelled(&fleet, Some("beta"), "u1", "b2").await;
    erased(&url, &["--user", "u1", "--all-tenants", "--yes"]).await;
    assert_eq!((all(&fleet, sessions).await, all(&fleet, keys).await), (vec![], vec![]));
}

/// A session that is made while another one goes; and an erasure that breaks off.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn what_comes_meanwhile_is_erased_and_what_is_left_half_done_is_gone_on_with(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    cancelled(&fleet, None, "u1", "s1").await;
    cancelled(&fleet, None, "u1", "s2").await;
    let on_delete = |session: &str, what: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN OLD; END $$;
             CREATE OR REPLACE TRIGGER meanwhile BEFORE DELETE ON turnmill.sessions FOR EACH ROW WHEN (OLD.id = '{session}')
               EXECUTE FUNCTION meanwhile();"
        )
    };
    sql(&fleet, on_delete("s1", "RAISE EXCEPTION 'the plug was pulled'")).await;
    let mut command = turnmill(&["erase", "--user", "u1", "--yes"]);
    fails(command.env("DATABASE_URL", &url), &["the plug was pulled"]).await;
    assert_eq!(all(&fleet, "SELECT id FROM turnmill.sessions").await, ["s1"], "the newest goes first");
    assert_eq!(all(&fleet, "SELECT kind FROM turnmill.audit WHERE act = 'erase'").await, ["user"], "it is known that it was begun");
    let made = "INSERT INTO turnmill.sessions (id, project_id, user_id, pool) VALUES ('s3', 'zoo', 'u1', 'default')";
    sql(&fleet, on_delete("s1", made)).await;
    let done = erased(&url, &["--user", "u1", "--yes"]).await;
    assert!(done.contains("Erased, as erasure_"), "{done}");
    assert_eq!(all(&fleet, "SELECT id FROM turnmill.sessions").await, [""; 0]);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_fork_that_has_saved_nothing_yet_is_in_the_way(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let save = |turn: &str| {
        format!(
            "INSERT INTO turnmill.transcripts (turn_id, session_id, ordinal, data, bytes)
             SELECT id, session_id, ordinal, 'gzip', 4 FROM turnmill.turns WHERE id = '{turn}'"
        )
    };
    let first = cancelled(&fleet, None, "u1", "s1").await;
    sql(&fleet, save(&first)).await;
    // What it begins from was saved a turn earlier.
    cancelled(&fleet, None, "u1", "s1").await;
    let fork = fleet.store.fork("s1", None, None).await.unwrap();
    let mut command = turnmill(&["erase", "--session", "s1", "--yes"]);
    fails(command.env("DATABASE_URL", &url), &["1 forks have saved", &fork, "--with-unsaved-forks"]).await;
    assert_eq!(fleet.store.erase_session("s1", false).await.unwrap(), Erasure::Forked, "also when it is made meanwhile");
    assert_eq!(fleet.turn(&first).await.status, "cancelled");
    let own = cancelled(&fleet, None, "u1", &fork).await;
    sql(&fleet, save(&own)).await;
    let done = erased(&url, &["--session", "s1", "--yes"]).await;
    assert!(done.contains(&format!("{fork} was forked from it and stays")), "{done}");
    assert_eq!(all(&fleet, "SELECT id FROM turnmill.turns").await, [own]);
    // Together they go, the fork first.
    let again = fleet.store.fork(&fork, None, None).await.unwrap();
    erased(&url, &["--user", "u1", "--yes"]).await;
    assert!(fleet.store.session(&again, &Bounds::default()).await.unwrap().is_none());
}
