//! SQL is an interface: what enqueue, cancel and `wait_reason` do inside the caller's own transaction, and how
//! they refuse.

use sqlx::{Connection as _, PgPool, Row as _};
use turnmill::store::{Enqueue, PoolChange, Retry};
use turnmill::turn::Ending;

use crate::harness::{Fleet, Holding as _, append, ending, settle_and_free};

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_is_enqueued_by_the_caller_s_own_transaction_or_not_at_all(pool: PgPool) {
    let fleet = Fleet::new(pool);
    sqlx::raw_sql("CREATE TABLE messages (id text PRIMARY KEY)").execute(&fleet.pool).await.unwrap();
    for (id, commits) in [("m1", false), ("m2", true)] {
        let mut tx = fleet.pool.begin().await.unwrap();
        sqlx::query("INSERT INTO messages VALUES ($1)").bind(id).execute(&mut *tx).await.unwrap();
        let row = sqlx::query("SELECT * FROM turnmill.enqueue_turn('hi', project_id => 'p1', session_id => 's1', turn_id => $1)")
            .bind(format!("turn_{id}"))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>("turn_id"), format!("turn_{id}"), "ids may be given");
        assert_eq!(row.get::<String, _>("status"), "pending");
        if commits { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
    }
    assert!(fleet.store.turn("turn_m1").await.unwrap().is_none());
    let turn = fleet.turn("turn_m2").await;
    assert_eq!((turn.session_id.as_str(), turn.ordinal), ("s1", 1), "no gap where one was rolled back");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_same_key_and_body_is_the_same_turn_and_another_body_is_an_error(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = |prompt: &str, project: &str| Enqueue {
        prompt: prompt.to_owned(),
        project_id: Some(project.to_owned()),
        idempotency_key: Some("key-1".to_owned()),
        ..Enqueue::default()
    };
    let first = fleet.store.enqueue(&turn("hi", "p1")).await.unwrap();
    let again = fleet.store.enqueue(&turn("hi", "p1")).await.unwrap();
    assert_eq!((&again.turn_id, again.replayed), (&first.turn_id, true));
    let elsewhere = fleet.store.enqueue(&turn("hi", "p2")).await.unwrap();
    assert_ne!(elsewhere.turn_id, first.turn_id, "keys are a project's own");
    let refused = fleet.refused("SELECT turnmill.enqueue_turn('other', project_id => 'p1', idempotency_key => 'key-1')").await;
    assert!(refused.starts_with("TM409") && refused.contains("another body") && refused.contains("Use a new key"), "{refused}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn racing_enqueues_with_one_key_make_one_turn(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn =
        Enqueue { prompt: "hi".to_owned(), project_id: Some("p1".to_owned()), idempotency_key: Some("k".to_owned()), ..Enqueue::default() };
    let receipts = futures::future::join_all((0..8).map(|_| fleet.store.enqueue(&turn))).await;
    let receipts: Vec<_> = receipts.into_iter().map(Result::unwrap).collect();
    assert!(receipts.iter().all(|receipt| receipt.turn_id == receipts[0].turn_id));
    assert_eq!(receipts.iter().filter(|receipt| !receipt.replayed).count(), 1);
    let sessions: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.sessions").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(sessions, 1, "nothing half done");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn bad_input_is_refused_with_what_to_do_and_leaves_nothing(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue_in("hi", Some("sess_1")).await;
    let cases: [(&str, &str); 12] = [
        (
            "SELECT turnmill.enqueue_turn('x', project_id => 'p1', pool => 'nope')",
            "TM404 there is no pool \"nope\" | Pools are: default. Make one with: turnmill pool set",
        ),
        (
            "SELECT turnmill.enqueue_turn('x', project_id => 'p2', session_id => 'sess_1')",
            "TM409 session \"sess_1\" belongs to another project |",
        ),
        ("SELECT turnmill.enqueue_turn('', project_id => 'p1')", "TM400 the prompt is empty |"),
        ("SELECT turnmill.enqueue_turn(E' \\n\\t', project_id => 'p1')", "TM400 the prompt is empty |"),
        ("SELECT turnmill.enqueue_turn(NULL, project_id => 'p1')", "TM400 the prompt is empty |"),
        (
            "SELECT turnmill.enqueue_turn(repeat('x', 1048577), project_id => 'p1')",
            "TM400 the prompt has 1048577 bytes, more than the limit of 1048576 |",
        ),
        ("SELECT turnmill.enqueue_turn('x')", "TM400 session \"(new)\" does not exist | To start a new session say which project"),
        ("SELECT turnmill.enqueue_turn('x', session_id => 'nope')", "TM400 session \"nope\" does not exist |"),
        (
            "SELECT turnmill.enqueue_turn('x', project_id => 'p1', options => '{\"rm\": \"-rf\"}')",
            "TM400 option \"rm\" is not allowed in pool \"default\" | Allowed are: model",
        ),
        (
            "SELECT turnmill.enqueue_turn('x', project_id => 'p1', options => '{\"model\": [1]}')",
            "TM400 option \"model\" is neither a text nor a number",
        ),
        ("SELECT turnmill.enqueue_turn('x', project_id => 'p1', options => '[]')", "TM400 options is not a JSON object |"),
        ("SELECT turnmill.cancel_turn('nope')", "TM404 there is no turn \"nope\" |"),
    ];
    for (statement, expected) in cases {
        let refused = fleet.refused(statement).await;
        assert!(refused.starts_with(expected), "{statement}\n got {refused}");
    }
    for statement in ["SELECT turnmill.enqueue_turn('x', project_id => 'p1', turn_id => 't1')"] {
        sqlx::raw_sql(statement).execute(&fleet.pool).await.unwrap();
        let refused = fleet.refused(statement).await;
        assert!(refused.starts_with("TM409 there is already a turn \"t1\" |"), "{refused}");
    }
    let (turns, sessions): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM turnmill.turns), (SELECT count(*) FROM turnmill.sessions)")
            .fetch_one(&fleet.pool)
            .await
            .unwrap();
    assert_eq!((turns, sessions), (2, 2), "the two good ones");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn no_bad_argument_gets_as_far_as_a_constraint(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue_in("hi", Some("sess_1")).await;
    let enqueues = [
        ("project_id => ''", "project_id is empty | Give a text of 1 to 255 characters"),
        ("project_id => repeat('p', 256)", "project_id has 256 characters, more than the limit of 255 | Give"),
        ("project_id => 'p1', session_id => ''", "session_id is empty | Give"),
        ("project_id => 'p1', session_id => repeat('s', 256)", "session_id has 256 characters"),
        ("project_id => 'p1', turn_id => ''", "turn_id is empty | Give"),
        ("project_id => 'p1', turn_id => repeat('t', 256)", "turn_id has 256 characters"),
        ("project_id => 'p1', idempotency_key => ''", "idempotency_key is empty | Give"),
        ("session_id => 'sess_1', idempotency_key => repeat('k', 256)", "idempotency_key has 256 characters"),
        ("session_id => 'sess_1', tenant_id => ''", "tenant_id is empty | Give"),
        ("project_id => 'p1', tenant_id => repeat('t', 256)", "tenant_id has 256 characters"),
        ("project_id => 'p1', options => NULL", "options is not a JSON object | For example"),
        ("project_id => 'p1', options => 'null'", "options is not a JSON object | For example"),
        ("project_id => 'p1', priority => NULL", "priority is null | Give a whole number"),
        ("project_id => 'p1', on_busy => ''", "on_busy is \"\" | It is queue"),
        ("project_id => 'p1', options => '{\"model\": true}'", "option \"model\" is neither a text nor a number | Give it as {\"model\""),
        ("project_id => 'p1', options => '{\"max_turns\": \"abc\"}'", "option \"max_turns\" is \"abc\" | Give a whole number"),
        ("project_id => 'p1', options => '{\"max_turns\": 1.5}'", "option \"max_turns\" is \"1.5\" | Give a whole number"),
        ("project_id => 'p1', options => '{\"max_budget_usd\": \"-1\"}'", "option \"max_budget_usd\" is \"-1\" | Give a number"),
    ];
    let enqueues = enqueues.map(|(arguments, expected)| (format!("SELECT turnmill.enqueue_turn('x', {arguments})"), expected));
    let others = [
        ("SELECT turnmill.set_session('sess_1', 'bad')", "on_busy is \"bad\" | It is queue, reject or interrupt."),
        ("SELECT turnmill.set_session('sess_1', NULL)", "on_busy is null | It is"),
        ("SELECT turnmill.set_tenant('')", "the tenant's id is empty | Give"),
        ("SELECT turnmill.set_tenant(NULL)", "the tenant's id is null | Give"),
        ("SELECT turnmill.set_tenant('t', weight => 0)", "weight is 0 | Give a number above 0"),
        ("SELECT turnmill.set_tenant('t', weight => 'NaN')", "weight is NaN | Give"),
        ("SELECT turnmill.set_tenant('t', running_max => -1)", "running_max is -1 | Give a whole number from 0"),
    ];
    for (statement, expected) in enqueues.into_iter().chain(others.map(|(statement, expected)| (statement.to_owned(), expected))) {
        let refused = fleet.refused(&statement).await;
        assert!(refused.starts_with(&format!("TM400 {expected}")), "{statement}\n got {refused}");
    }
    let refused = fleet.refused("SELECT turnmill.set_session('nope', 'queue')").await;
    assert!(refused.starts_with("TM404 there is no session \"nope\" | A session is made with its first turn"), "{refused}");
    let left: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM turnmill.turns), (SELECT count(*) FROM turnmill.sessions), (SELECT count(*) FROM turnmill.tenants)",
    )
    .fetch_one(&fleet.pool)
    .await
    .unwrap();
    assert_eq!(left, (1, 1, 0), "the good one");
    // Numbers as texts are what a command line gives.
    let good =
        "SELECT turnmill.enqueue_turn('x', project_id => repeat('p', 255), options => '{\"max_turns\": \"3\", \"max_budget_usd\": 0.001}')";
    sqlx::raw_sql(good).execute(&fleet.pool).await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_limit_of_a_prompt_is_configurable_and_a_prompt_at_the_limit_is_taken(pool: PgPool) {
    let fleet = Fleet::new(pool);
    sqlx::raw_sql("SELECT turnmill.enqueue_turn(repeat('x', 1048576), project_id => 'p1')").execute(&fleet.pool).await.unwrap();
    sqlx::raw_sql("UPDATE turnmill.fleet SET prompt_max_bytes = 3").execute(&fleet.pool).await.unwrap();
    let refused = fleet.refused("SELECT turnmill.enqueue_turn('ää', project_id => 'p1')").await;
    assert!(refused.contains("has 4 bytes, more than the limit of 3"), "{refused}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn why_a_turn_waits_is_one_word(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 1).await;
    let first = fleet.enqueue_in("1", Some("s")).await;
    let second = fleet.enqueue_in("2", Some("s")).await;
    let reason = |id: String| {
        let pool = fleet.pool.clone();
        async move { sqlx::query_scalar::<_, Option<String>>("SELECT turnmill.wait_reason($1)").bind(id).fetch_one(&pool).await.unwrap() }
    };
    assert_eq!(reason(first.turn_id.clone()).await.as_deref(), Some("no_worker"));
    assert_eq!(second.waits_for.as_deref(), Some("session_busy"), "the receipt says it, too");
    let worker = fleet.worker("a").await;
    assert_eq!(reason(first.turn_id.clone()).await, None, "nothing is in its way");
    for (state, word) in [("paused", Some("pool_paused")), ("blocked", Some("pool_blocked")), ("active", None)] {
        fleet.store.set_pool("default", &PoolChange { state: Some(state.to_owned()), ..PoolChange::default() }).await.unwrap();
        assert_eq!(reason(first.turn_id.clone()).await.as_deref(), word);
    }
    let job = worker.claim_one().await;
    assert_eq!(reason(first.turn_id.clone()).await, None, "it runs");
    let elsewhere = fleet.enqueue("3").await;
    assert_eq!(elsewhere.waits_for.as_deref(), Some("no_slot"));
    settle_and_free(&fleet.store, &job, Ending::Completed).await;
    assert_eq!(reason(first.turn_id).await, None, "it has ended");
    assert_eq!(reason("no such turn".to_owned()).await, None);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_polls_a_turn_sees_each_block_once_then_the_end_and_when_it_starts_over(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("x").await.turn_id;
    let read = async |after: i32| -> (String, i32, i32, Vec<i64>) {
        let row: (String, i32, i32, serde_json::Value) =
            sqlx::query_as("SELECT status, generation, next_after, blocks FROM turnmill.read_turn($1, $2)")
                .bind(&turn)
                .bind(after)
                .fetch_one(&fleet.pool)
                .await
                .unwrap();
        let seqs = row.3.as_array().unwrap().iter().map(|block| block["seq"].as_i64().unwrap()).collect();
        (row.0, row.1, row.2, seqs)
    };
    assert_eq!(read(-1).await, ("pending".to_owned(), 1, -1, vec![]), "nothing yet is an answer, too");
    let worker = fleet.worker("a").await;
    let job = worker.claim_one().await;
    append(&fleet.store, job.append_of(0, 5, &["a", "b"])).await;
    assert_eq!(read(-1).await, ("in_progress".to_owned(), 1, 1, vec![0, 1]));
    assert_eq!(read(0).await, ("in_progress".to_owned(), 1, 1, vec![1]));
    let why = turnmill::turn::TurnError::new("sandbox_lost", "gone");
    let restart = Retry { delay: std::time::Duration::ZERO, charged: false, restart: true, keep: false, spent: None, why: &why };
    fleet.store.retry_later(&job, &restart, std::time::Duration::from_secs(30)).await.unwrap().unwrap();
    let job = worker.claim_one().await;
    append(&fleet.store, job.append_of(0, 5, &["c"])).await;
    assert_eq!(read(1).await, ("in_progress".to_owned(), 2, 2, vec![2]), "a new generation: what was there is void");
    assert_eq!(read(-1).await.3, [2]);
    let settle = turnmill::store::Settle { journal_offset: 5, ..ending(Ending::Completed) };
    fleet.store.settle(&job, &settle, std::time::Duration::from_secs(30)).await.unwrap().unwrap();
    assert_eq!(read(2).await, ("completed".to_owned(), 2, 2, vec![]), "who has all sees the end");
    let unknown = fleet.refused("SELECT turnmill.read_turn('nope')").await;
    assert!(unknown.starts_with("TM404"), "{unknown}");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_caller_that_dawdles_over_its_commit_holds_up_no_worker(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.enqueue_in("1", Some("s")).await;
    let worker = fleet.worker("a").await;
    let job = worker.claim_one().await;
    let mut dawdler = sqlx::PgConnection::connect_with(&fleet.pool.connect_options()).await.unwrap();
    let mut tx = dawdler.begin().await.unwrap();
    sqlx::query("SELECT turnmill.enqueue_turn('2', session_id => 's')").execute(&mut *tx).await.unwrap();
    sqlx::query("SELECT turnmill.cancel_turn($1)").bind(&job.turn_id).execute(&mut *tx).await.unwrap();
    // With both open: the worker ends the turn, and the session goes on when the caller commits.
    tokio::time::timeout(std::time::Duration::from_secs(5), settle_and_free(&fleet.store, &job, Ending::Completed))
        .await
        .expect("nothing is locked");
    tx.commit().await.unwrap();
    fleet.store.tidy().await.unwrap();
    assert_eq!(worker.claim_one().await.ordinal, 2);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_table_column_and_public_function_has_a_comment(pool: PgPool) {
    let bare: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v')
         WHERE c.relnamespace = 'turnmill'::regnamespace AND c.relkind IN ('r', 'v', 'S')
           AND (col_description(c.oid, a.attnum) IS NULL AND a.attnum IS NOT NULL OR obj_description(c.oid, 'pg_class') IS NULL AND c.relkind <> 'S')
         UNION ALL
         SELECT p.proname || '()' FROM pg_proc p WHERE p.pronamespace = 'turnmill'::regnamespace
           AND p.prorettype <> 'trigger'::regtype AND obj_description(p.oid, 'pg_proc') IS NULL",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert!(bare.is_empty(), "no comment on: {bare:?}");
}
