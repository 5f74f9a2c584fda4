//! Sandboxes that are kept for their session's next turn: warm, paused, given up for others, and never used for a state
//! that they don't hold. Forks and retries begin where they should.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{Enqueue, Kept, PoolChange, Settle, TenantChange};
use turnmill::turn::Ending;

use crate::harness::{Claimer, Fleet, Running, RunningWorker, ending, until};
use crate::memory::{RECALL, texts};

const DAY: i32 = 86_400;

/// The pool keeps sandboxes so many seconds warm, and then paused.
async fn keep(fleet: &Fleet, warm_s: i32, paused_s: i32) {
    let change =
        PoolChange { release: Some((warm_s, paused_s)), sandbox_max_s: Some(DAY), turn_timeout_s: Some(600), ..PoolChange::default() };
    fleet.store.set_pool("default", &change).await.unwrap();
}

/// Where each claim of the turn found its sandbox: new, warm or paused.
async fn found(fleet: &Fleet, turn: &str) -> Vec<String> {
    let rows = sqlx::query_scalar("SELECT sandbox FROM turnmill.attempts WHERE turn_id = $1 AND sandbox IS NOT NULL ORDER BY epoch");
    rows.bind(turn).fetch_all(&fleet.pool).await.unwrap()
}

async fn run(all: &Running, prompt: &str, session: &str) -> String {
    let turn = all.fleet.enqueue_in(prompt, Some(session)).await.turn_id;
    let ended = all.fleet.ended(&turn).await;
    assert_eq!(ended.error_message, None);
    turn
}

async fn states(fleet: &Fleet) -> Vec<String> {
    let states = sqlx::query_scalar("SELECT state FROM turnmill.slots WHERE state <> 'free' ORDER BY id");
    states.fetch_all(&fleet.pool).await.unwrap()
}

async fn parked(fleet: &Fleet) {
    until("a sandbox is parked", || async { (fleet.store.parked().await.unwrap() == 1).then_some(()) }).await;
    assert_eq!(states(fleet).await, [""; 0], "which costs no slot");
}

/// What is kept is given up, and nothing is left.
async fn end(all: Running) {
    keep(&all.fleet, 0, 0).await;
    sqlx::raw_sql(
        "UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'warm'; UPDATE turnmill.parked SET due_at = clock_timestamp()",
    )
    .execute(&all.fleet.pool)
    .await
    .unwrap();
    until("nothing is parked", || async { (all.fleet.store.parked().await.unwrap() == 0).then_some(()) }).await;
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_next_turn_takes_the_session_s_warm_sandbox_and_no_other_session_does(pool: PgPool) {
    let all = Running::start(pool).await;
    keep(&all.fleet, 600, 0).await;
    run(&all, "/mock noop", "chat").await;
    assert_eq!(states(&all.fleet).await, ["warm"]);
    let other = run(&all, RECALL, "another chat").await;
    assert_eq!((texts(&all, &other).await, found(&all.fleet, &other).await), (vec![json!("")], vec!["new".to_owned()]));
    // Only the sandbox knows the conversation now.
    all.fleet.sql("DELETE FROM turnmill.transcripts WHERE session_id = $1", "chat").await;
    let second = run(&all, RECALL, "chat").await;
    assert_eq!((texts(&all, &second).await, found(&all.fleet, &second).await), (vec![json!("/mock noop")], vec!["warm".to_owned()]));
    let third = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &third).await, [format!("/mock noop\n{RECALL}")]);
    assert_eq!(all.e2b.acts("create").await.len(), 2, "one sandbox for each session");
    end(all).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_paused_sandbox_costs_no_slot_and_is_woken_for_its_session_under_another_worker(pool: PgPool) {
    let all = Running::with(pool, |config| config.worker.reconcile = Duration::from_millis(100)).await;
    keep(&all.fleet, 0, 600).await;
    run(&all, "/mock noop", "chat").await;
    parked(&all.fleet).await;
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let worker = RunningWorker::start(&fleet, &e2b.url).await;
    let all = Running { fleet, e2b, worker };
    all.fleet.sql("DELETE FROM turnmill.transcripts WHERE session_id = $1", "chat").await;
    let second = run(&all, RECALL, "chat").await;
    assert_eq!((texts(&all, &second).await, found(&all.fleet, &second).await), (vec![json!("/mock noop")], vec!["paused".to_owned()]));
    assert_eq!(all.e2b.acts("create").await.len(), 1);
    assert!(all.fleet.store.corrections(10).await.unwrap().is_empty(), "the reconciler knows it");
    parked(&all.fleet).await;
    end(all).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_kept_sandbox_that_is_gone_costs_nothing_but_a_new_one(pool: PgPool) {
    let all = Running::start(pool).await;
    for (warm, paused, name) in [(600, 0, "warm"), (0, 600, "paused")] {
        keep(&all.fleet, warm, paused).await;
        run(&all, "/mock noop", name).await;
        if paused > 0 {
            parked(&all.fleet).await;
        }
        let kept = all.e2b.client().list(&[]).await.unwrap().pop().unwrap();
        all.e2b.vanish(&kept.id).await;
        let second = run(&all, RECALL, name).await;
        assert_eq!(texts(&all, &second).await, ["/mock noop"], "restored");
        assert_eq!(found(&all.fleet, &second).await, [name, "new"]);
        let turn = all.fleet.turn(&second).await;
        assert_eq!((turn.generation, turn.attempt), (1, 1), "nothing was lost with it");
        end_all_kept(&all).await;
    }
    end(all).await;
}

async fn end_all_kept(all: &Running) {
    sqlx::raw_sql(
        "UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'warm'; UPDATE turnmill.parked SET due_at = clock_timestamp()",
    )
    .execute(&all.fleet.pool)
    .await
    .unwrap();
    all.fleet.no_slot_held().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn warm_sandboxes_make_room_for_turns_that_wait_and_age_out(pool: PgPool) {
    let all = Running::start(pool).await;
    keep(&all.fleet, 600, 600).await;
    all.fleet.cap("default", 1).await;
    run(&all, "/mock noop", "chat").await;
    assert_eq!(states(&all.fleet).await, ["warm"]);
    // Its slot is the only one: it is paused for the other session, and both are remembered.
    let other = run(&all, "/mock noop", "another chat").await;
    assert_eq!(found(&all.fleet, &other).await, ["new"]);
    let second = run(&all, RECALL, "chat").await;
    assert_eq!((texts(&all, &second).await, found(&all.fleet, &second).await), (vec![json!("/mock noop")], vec!["paused".to_owned()]));
    assert_eq!(all.e2b.acts("create").await.len(), 2);
    // Above the cap none is kept warm.
    until("it is warm", || async { (states(&all.fleet).await == ["warm"]).then_some(()) }).await;
    all.fleet.cap("default", 0).await;
    all.fleet.no_slot_held().await;
    assert_eq!(all.fleet.store.parked().await.unwrap(), 2);
    end(all).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_cancel_before_the_agent_started_leaves_the_kept_sandbox_as_it_was(pool: PgPool) {
    let all = Running::start(pool).await;
    keep(&all.fleet, 600, 0).await;
    run(&all, "/mock noop", "chat").await;
    // The supervisor is slow to answer while the cancel comes.
    all.e2b.faults(json!([{ "on": "upload", "delay_ms": 1500 }])).await;
    let second = all.fleet.enqueue_in("/mock hang", Some("chat")).await.turn_id;
    until("it is taken", || async { (all.fleet.turn(&second).await.status == "in_progress").then_some(()) }).await;
    all.fleet.store.cancel(&second, None).await.unwrap();
    assert_eq!(all.fleet.ended(&second).await.status, "cancelled");
    assert_eq!((states(&all.fleet).await, all.agent_starts()), (vec!["warm".to_owned()], 1));
    let third = run(&all, RECALL, "chat").await;
    assert_eq!((texts(&all, &third).await, found(&all.fleet, &third).await), (vec![json!("/mock noop")], vec!["warm".to_owned()]));
    end(all).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_retry_begins_before_the_turn_that_it_repeats_whatever_is_kept(pool: PgPool) {
    let all = Running::start(pool).await;
    keep(&all.fleet, 600, 0).await;
    run(&all, "/mock noop", "chat").await;
    let second = run(&all, RECALL, "chat").await;
    let again = all.fleet.store.retry(&second).await.unwrap().turn_id.unwrap();
    all.fleet.ended(&again).await;
    assert_eq!(texts(&all, &again).await, ["/mock noop"], "as the second did");
    assert_eq!(found(&all.fleet, &again).await, ["warm", "new"], "the kept one held the second's end");
    // What follows goes on from the retry, without what it stands for.
    let third = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &third).await, [format!("/mock noop\n{RECALL}")]);
    assert_eq!(found(&all.fleet, &third).await, ["warm"]);
    // The first again: from nothing.
    let first: String = sqlx::query_scalar("SELECT id FROM turnmill.turns WHERE session_id = 'chat' AND ordinal = 1")
        .fetch_one(&all.fleet.pool)
        .await
        .unwrap();
    let again = all.fleet.store.retry(&first).await.unwrap().turn_id.unwrap();
    all.fleet.ended(&again).await;
    let last = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &last).await, ["/mock noop"]);
    end(all).await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_fork_begins_where_the_other_session_was_and_goes_its_own_way(pool: PgPool) {
    let all = Running::start(pool).await;
    let first = run(&all, "/mock noop", "chat").await;
    run(&all, r#"/mock {"steps": [{"text": "two"}]}"#, "chat").await;
    let fork =
        Enqueue { prompt: RECALL.to_owned(), session_id: Some("end".to_owned()), fork: Some("chat".to_owned()), ..Enqueue::default() };
    let at_end = all.fleet.store.enqueue(&fork).await.unwrap().turn_id.unwrap();
    all.fleet.ended(&at_end).await;
    assert_eq!(texts(&all, &at_end).await, ["/mock noop\n/mock {\"steps\": [{\"text\": \"two\"}]}"]);
    let early = all.fleet.store.fork("chat", None, Some(&first)).await.unwrap();
    let one = run(&all, RECALL, &early).await;
    assert_eq!(texts(&all, &one).await, ["/mock noop"]);
    let two = run(&all, RECALL, &early).await;
    assert_eq!(texts(&all, &two).await, [format!("/mock noop\n{RECALL}")], "its own conversation");
    let original = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &original).await, ["/mock noop\n/mock {\"steps\": [{\"text\": \"two\"}]}"], "which the other knows nothing of");
    for (call, why) in [
        ("SELECT turnmill.fork_session('nope')", "TM404 there is no session \"nope\" |"),
        ("SELECT turnmill.fork_session('chat', 'end')", "TM409 there is already a session \"end\" |"),
        ("SELECT turnmill.fork_session('chat', at_turn => 'nope')", "TM404 there is no turn \"nope\" in session \"chat\" | Fork"),
        ("SELECT turnmill.fork_session('chat', '')", "TM400 new_session_id is empty |"),
    ] {
        let said = all.fleet.refused(call).await;
        assert!(said.starts_with(why), "{said}");
    }
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_old_sandbox_is_not_kept_where_the_next_turn_might_outlive_it(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 600, 0).await;
    fleet.cap("default", 4).await;
    let worker = fleet.worker("w").await;
    // Of the default hour of a sandbox's life a turn may take 600 s.
    for (age, left) in [(0, Some(600)), (2700, Some(300)), (3100, None)] {
        sqlx::query("UPDATE turnmill.pools SET sandbox_max_s = 3600").execute(&fleet.pool).await.unwrap();
        let session = format!("s{age}");
        let job = begin(&fleet, &worker, &session).await;
        sqlx::query("UPDATE turnmill.slots SET sandbox_at = clock_timestamp() - make_interval(secs => $1) WHERE id = $2")
            .bind(age)
            .bind(job.slot_id)
            .execute(&fleet.pool)
            .await
            .unwrap();
        let kept = fleet.store.settle(&job, &keeping(), Duration::ZERO).await.unwrap().unwrap();
        assert_eq!(kept, if left.is_some() { Kept::Warm } else { Kept::Releasing }, "{age}");
        if let Some(left) = left {
            let until: f64 =
                sqlx::query_scalar("SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM turnmill.slots WHERE id = $1")
                    .bind(job.slot_id)
                    .fetch_one(&fleet.pool)
                    .await
                    .unwrap();
            assert!((f64::from(left) - 30.0..=f64::from(left)).contains(&until), "{age}: {until}");
        }
    }
}

/// A turn whose agent runs.
async fn begin(fleet: &Fleet, worker: &Claimer, session: &str) -> turnmill::store::Claimed {
    fleet.enqueue_in("x", Some(session)).await;
    let job = worker.claim_one().await;
    fleet.store.sandbox_ready(&job, &format!("sandbox-of-{session}")).await.unwrap().unwrap();
    fleet.store.agent_started(&job).await.unwrap().unwrap();
    job
}

fn keeping() -> Settle {
    Settle { keep: true, ..ending(Ending::Completed) }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_is_before_a_warm_session_gets_its_slot(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 600, 0).await;
    fleet.cap("default", 1).await;
    let worker = fleet.worker("w").await;
    let job = begin(&fleet, &worker, "warm").await;
    // The other session has waited for longer than the warm one's next turn.
    let waiting = fleet.enqueue_in("x", Some("waiting")).await.turn_id;
    fleet.enqueue_in("x", Some("warm")).await;
    assert_eq!(fleet.store.settle(&job, &keeping(), Duration::ZERO).await.unwrap(), Ok(Kept::Warm));
    assert!(worker.claim(5).await.is_empty(), "the warm one's next turn must not pass by");
    assert_eq!(fleet.turn(&waiting).await.waits_for.as_deref(), Some("no_slot"));
    let evicted = fleet.store.evict_warm(Duration::from_secs(30)).await.unwrap();
    assert_eq!(evicted.len(), 1);
    assert!(fleet.store.evict_warm(Duration::from_secs(30)).await.unwrap().is_empty(), "one is enough");
    fleet.store.slot_freed(evicted[0].slot_id, evicted[0].epoch).await.unwrap().unwrap();
    assert_eq!(worker.claim_one().await.turn_id, waiting);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_warm_sandbox_needs_no_free_slot_and_no_create_and_obeys_its_tenant_s_limit(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 600, 0).await;
    fleet.cap("default", 2).await;
    let worker = fleet.worker("w").await;
    let job = begin(&fleet, &worker, "warm").await;
    begin(&fleet, &worker, "busy").await;
    assert_eq!(fleet.store.settle(&job, &keeping(), Duration::ZERO).await.unwrap(), Ok(Kept::Warm));
    let hold = turnmill::store::Hold::Rate(Duration::from_secs(60));
    fleet.store.hold_creates("default", hold, 0.0).await.unwrap();
    fleet.sql("UPDATE turnmill.sessions SET tenant_id = 'a' WHERE id = $1", "warm").await;
    fleet.store.set_tenant("a", TenantChange { running_max: Some(Some(0)), ..TenantChange::default() }).await.unwrap();
    // It would need a create, so it lacks no slot that the warm one could give it.
    let cold = fleet.enqueue_in("x", Some("cold")).await.turn_id;
    let next = fleet.enqueue_in("x", Some("warm")).await.turn_id;
    assert!(worker.claim(5).await.is_empty());
    assert_eq!(fleet.turn(&next).await.waits_for.as_deref(), Some("tenant_limit"));
    assert_eq!(fleet.turn(&cold).await.waits_for.as_deref(), Some("create_rate"));
    fleet.store.set_tenant("a", TenantChange { running_max: Some(Some(1)), ..TenantChange::default() }).await.unwrap();
    assert_eq!(fleet.turn(&next).await.waits_for, None, "nothing is in its way");
    let claimed = worker.claim_one().await;
    assert_eq!((claimed.turn_id, claimed.slot_id, claimed.sandbox_id.as_deref()), (next, job.slot_id, Some("sandbox-of-warm")));
    assert!(claimed.unseen && claimed.holds == Some(job.turn_id));
    assert!(fleet.store.evict_warm(Duration::ZERO).await.unwrap().is_empty());
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn no_more_warm_sandboxes_go_than_turns_lack_slots_however_many_workers_look(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 600, 0).await;
    fleet.cap("default", 4).await;
    let worker = fleet.worker("w").await;
    for session in ["one", "two", "three", "four"] {
        let job = begin(&fleet, &worker, session).await;
        assert_eq!(fleet.store.settle(&job, &keeping(), Duration::ZERO).await.unwrap(), Ok(Kept::Warm));
    }
    fleet.store.set_tenant("a", TenantChange { running_max: Some(Some(1)), ..TenantChange::default() }).await.unwrap();
    for n in 0..3 {
        let turn = Enqueue {
            prompt: "x".to_owned(),
            project_id: Some("p1".to_owned()),
            session_id: Some(format!("waiting {n}")),
            tenant_id: Some("a".to_owned()),
            ..Enqueue::default()
        };
        fleet.store.enqueue(&turn).await.unwrap();
    }
    let looks = (0..6).map(|_| fleet.store.evict_warm(Duration::from_secs(30)));
    let evicted: usize = futures::future::join_all(looks).await.into_iter().map(|evicted| evicted.unwrap().len()).sum();
    assert_eq!(evicted, 1, "their tenant may run one");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn turns_that_left_no_conversation_push_none_out(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 0, 0).await;
    fleet.store.set_pool("default", &PoolChange { context_versions: Some(2), ..PoolChange::default() }).await.unwrap();
    let worker = fleet.worker("w").await;
    let good = turnmill::keys::Sealed { key_id: None, data: vec![1] };
    for saved in [Some(&good), None, None, None] {
        let job = begin(&fleet, &worker, "chat").await;
        fleet.store.save_transcript(&job, i64::from(saved.is_some()), saved).await.unwrap();
        crate::harness::settle_and_free(&fleet.store, &job, Ending::Completed).await;
    }
    let job = begin(&fleet, &worker, "chat").await;
    let past = fleet.store.past(&job).await.unwrap();
    assert_eq!((past.saved.is_some(), past.missing, past.bytes), (true, 0, Some(0)), "the first one's is there, and nothing since");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_waits_while_its_session_s_sandbox_is_being_paused(pool: PgPool) {
    let fleet = Fleet::new(pool);
    keep(&fleet, 0, 600).await;
    fleet.cap("default", 2).await;
    let worker = fleet.worker("w").await;
    let job = begin(&fleet, &worker, "chat").await;
    assert_eq!(fleet.store.settle(&job, &keeping(), Duration::from_secs(30)).await.unwrap(), Ok(Kept::Pausing));
    let next = fleet.enqueue_in("x", Some("chat")).await.turn_id;
    assert!(worker.claim(5).await.is_empty());
    assert_eq!(fleet.turn(&next).await.waits_for.as_deref(), Some("session_busy"));
    // Its worker dies: anyone goes on with the pause when it is due, or gives it up.
    fleet.sql("UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE session_id = $1", "chat").await;
    let due = fleet.store.due_releases(5, Duration::from_secs(30)).await.unwrap();
    assert!(due.len() == 1 && due[0].pause);
    assert!(fleet.store.slot_parked(job.slot_id, job.epoch).await.unwrap().is_err(), "the first is fenced");
    assert!(fleet.store.give_up_pause(job.slot_id, job.epoch).await.unwrap().is_err());
    fleet.store.slot_parked(due[0].slot_id, due[0].epoch).await.unwrap().unwrap();
    let claimed = worker.claim_one().await;
    assert_eq!((claimed.turn_id, claimed.sandbox_id.as_deref(), fleet.store.parked().await.unwrap()), (next, Some("sandbox-of-chat"), 0));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn conversations_are_sealed_under_the_workers_key_and_without_it_that_is_said(pool: PgPool) {
    let key = |key: &'static str| move |config: &mut turnmill::config::Config| config.keys.master = key.into();
    let all = Running::with(pool, key("old:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")).await;
    run(&all, "/mock noop", "chat").await;
    let (id, data): (String, Vec<u8>) =
        sqlx::query_as("SELECT key_id, data FROM turnmill.transcripts").fetch_one(&all.fleet.pool).await.unwrap();
    assert!(id == "old" && !data.starts_with(&[0x1f, 0x8b]), "no gzip to be seen");
    let second = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &second).await, ["/mock noop"]);
    let Running { fleet, e2b, worker } = all;
    worker.stop().await;
    let mut config = crate::harness::config(&e2b.url);
    config.keys.master = "new:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".into();
    let worker = RunningWorker::with(&fleet, config).await;
    let all = Running { fleet, e2b, worker };
    let third = run(&all, RECALL, "chat").await;
    assert_eq!(texts(&all, &third).await, ["context_lost", ""]);
    let why: Value = all.fleet.blocks(&third).await[0][1]["text"].clone();
    assert!(why.as_str().unwrap().contains("sealed under key \"old\""), "{why}");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_session_keeps_its_newest_conversations_and_is_forgotten_in_time(pool: PgPool) {
    let all = Running::start(pool).await;
    let change = PoolChange { context_versions: Some(2), context_days: Some(10), ..PoolChange::default() };
    all.fleet.store.set_pool("default", &change).await.unwrap();
    for _ in 0..4 {
        run(&all, "/mock noop", "chat").await;
    }
    run(&all, "/mock noop", "another chat").await;
    let kept = async || -> Vec<(String, i32)> {
        let rows = sqlx::query_as("SELECT session_id, ordinal FROM turnmill.transcripts ORDER BY session_id, ordinal");
        rows.fetch_all(&all.fleet.pool).await.unwrap()
    };
    let expected = |rows: &[(&str, i32)]| rows.iter().map(|(id, ordinal)| ((*id).to_owned(), *ordinal)).collect::<Vec<_>>();
    assert_eq!(kept().await, expected(&[("another chat", 1), ("chat", 3), ("chat", 4)]));
    let age = "UPDATE turnmill.transcripts SET saved_at = clock_timestamp() - interval '11 days' WHERE session_id = $1";
    all.fleet.sql(age, "chat").await;
    all.fleet.store.forget_old().await.unwrap();
    assert_eq!(kept().await, expected(&[("another chat", 1)]));
    all.stop().await;
}
