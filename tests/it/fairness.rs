//! Whose turn starts next: tenants by weight and limit, priorities, create rates; and that no row which somebody sits
//! on holds up the others.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgPool;
use turnmill::store::{Enqueue, Hold, PoolChange, Renewal, TenantChange};
use turnmill::turn::Ending;

use crate::harness::{Claimer, Fleet, PATIENCE, settle_and_free};

async fn enqueue_for(fleet: &Fleet, tenant: Option<&str>, priority: i32) -> String {
    let turn = Enqueue {
        prompt: "x".to_owned(),
        project_id: Some("p1".to_owned()),
        tenant_id: tenant.map(str::to_owned),
        priority,
        ..Enqueue::default()
    };
    fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap()
}

/// As many enqueues, in one statement: ten thousand single ones would take a quarter of a minute here.
async fn backlog(fleet: &Fleet, tenant: &str, turns: i32) {
    sqlx::query(
        "WITH session AS (
           INSERT INTO turnmill.sessions (id, project_id, tenant_id, pool, turns) SELECT $1 || n, 'p1', $1, 'default', 1 FROM generate_series(1, $2) n
           RETURNING id),
         turn AS (
           INSERT INTO turnmill.turns (id, session_id, project_id, ordinal, prompt, body_hash) SELECT 'turn_' || id, id, 'p1', 1, 'x', '' FROM session
           RETURNING id, session_id)
         INSERT INTO turnmill.jobs (turn_id, session_id, ordinal, pool, state, tenant_id) SELECT id, session_id, 1, 'default', 'ready', $1 FROM turn",
    )
    .bind(tenant)
    .bind(turns)
    .execute(&fleet.pool)
    .await
    .unwrap();
}

/// Runs turns one slot at a time; how many of each tenant were taken.
async fn turn_over(fleet: &Fleet, worker: &Claimer, slots: usize) -> HashMap<String, usize> {
    let mut taken = HashMap::new();
    for _ in 0..slots {
        let job = worker.claim_one().await;
        let tenant: String = sqlx::query_scalar("SELECT tenant_id FROM turnmill.jobs WHERE turn_id = $1")
            .bind(&job.turn_id)
            .fetch_one(&fleet.pool)
            .await
            .unwrap();
        *taken.entry(tenant).or_default() += 1;
        settle_and_free(&fleet.store, &job, Ending::Completed).await;
    }
    taken
}

async fn wait_reason(fleet: &Fleet, turn: &str) -> Option<String> {
    fleet.turn(turn).await.waits_for
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn ten_thousand_turns_of_one_tenant_delay_another_s_by_one_slot_s_turnover(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 4).await;
    let worker = fleet.worker("a").await;
    backlog(&fleet, "big", 10_000).await;
    let running = worker.claim(4).await;
    assert_eq!(running.len(), 4, "alone, it has everything");
    let small = enqueue_for(&fleet, Some("small"), 0).await;
    assert_eq!(wait_reason(&fleet, &small).await.as_deref(), Some("no_slot"));
    settle_and_free(&fleet.store, &running[0], Ending::Completed).await;
    assert_eq!(worker.claim_one().await.turn_id, small, "the first slot that comes free is the other's");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn while_several_wait_each_gets_its_weight_s_share(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 40).await;
    let worker = fleet.worker("a").await;
    fleet.store.set_tenant("heavy", TenantChange { weight: Some(3.0), ..TenantChange::default() }).await.unwrap();
    for tenant in ["heavy", "light"] {
        backlog(&fleet, tenant, 100).await;
    }
    for _ in 0..20 {
        enqueue_for(&fleet, None, 0).await;
    }
    let mut shares = HashMap::new();
    for job in worker.claim(40).await {
        let tenant: String = sqlx::query_scalar("SELECT tenant_id FROM turnmill.jobs WHERE turn_id = $1")
            .bind(&job.turn_id)
            .fetch_one(&fleet.pool)
            .await
            .unwrap();
        *shares.entry(tenant).or_insert(0) += 1;
    }
    assert_eq!(shares, HashMap::from([("heavy".to_owned(), 24), ("light".to_owned(), 8), (String::new(), 8)]));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_higher_priority_goes_first_whoever_s_it_is(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 1).await;
    let worker = fleet.worker("a").await;
    backlog(&fleet, "big", 3).await;
    enqueue_for(&fleet, Some("small"), 0).await;
    let urgent = enqueue_for(&fleet, Some("big"), 5).await;
    assert_eq!(worker.claim_one().await.turn_id, urgent);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_tenant_s_limit_is_exact_hides_nobody_and_can_change(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 30).await;
    fleet.store.set_tenant("capped", TenantChange { running_max: Some(Some(3)), ..TenantChange::default() }).await.unwrap();
    backlog(&fleet, "capped", 20).await;
    backlog(&fleet, "free", 4).await;
    for name in ["a", "b", "c", "d"] {
        fleet.worker(name).await;
    }
    let running = async || -> HashMap<String, i64> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT tenant_id, count(*) FROM turnmill.jobs WHERE state = 'leased' GROUP BY 1")
            .fetch_all(&fleet.pool)
            .await
            .unwrap();
        rows.into_iter().collect()
    };
    let mut claimed = Vec::new();
    for _ in 0..4 {
        let claims = ["a", "b", "c", "d"].map(|name| fleet.store.claim(name, 5));
        claimed.extend(futures::future::join_all(claims).await.into_iter().flat_map(Result::unwrap));
        assert!(running().await.get("capped").copied().unwrap_or(0) <= 3);
    }
    assert_eq!(running().await, HashMap::from([("capped".to_owned(), 3), ("free".to_owned(), 4)]));
    let waiting: String =
        sqlx::query_scalar("SELECT turn_id FROM turnmill.jobs WHERE state = 'ready' LIMIT 1").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(wait_reason(&fleet, &waiting).await.as_deref(), Some("tenant_limit"));

    let ends = claimed.iter().find(|job| job.session_id.starts_with("capped")).unwrap();
    settle_and_free(&fleet.store, ends, Ending::Completed).await;
    assert_eq!(fleet.store.claim("a", 5).await.unwrap().len(), 1, "one ended, one starts");
    fleet.store.set_tenant("capped", TenantChange { running_max: Some(Some(5)), ..TenantChange::default() }).await.unwrap();
    // While one claim decides about the tenant, no other does: it would not see what the first has taken.
    let mut deciding = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM turnmill.tenants FOR NO KEY UPDATE").execute(&mut *deciding).await.unwrap();
    assert_eq!(fleet.store.claim("b", 9).await.unwrap().len(), 0);
    deciding.rollback().await.unwrap();
    assert_eq!(fleet.store.claim("a", 9).await.unwrap().len(), 2);
    // A counter that somebody has spoilt is put right.
    fleet.sql("UPDATE turnmill.tenants SET running = 99 WHERE id = $1", "capped").await;
    fleet.store.tidy().await.unwrap();
    fleet.store.set_tenant("capped", TenantChange { running_max: Some(None), ..TenantChange::default() }).await.unwrap();
    assert_eq!(fleet.store.claim("a", 9).await.unwrap().len(), 9, "no limit any more");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn no_more_is_created_than_the_pool_s_rate_allows_however_many_claim(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let limited = PoolChange { cap: Some(50), create_rate: Some(Some(1.0)), create_burst: Some(4), ..PoolChange::default() };
    fleet.store.set_pool("default", &limited).await.unwrap();
    fleet.sql("UPDATE turnmill.pool_states SET tokens_at = clock_timestamp() - interval '1 hour' WHERE pool = $1", "default").await;
    for _ in 0..10 {
        fleet.enqueue("x").await;
    }
    fleet.worker("a").await;
    let claims = (0..8).map(|_| fleet.store.claim("a", 10));
    let claimed: usize = futures::future::join_all(claims).await.into_iter().map(|jobs| jobs.unwrap().len()).sum();
    assert!((4..=5).contains(&claimed), "{claimed} at a burst of 4");
    let next: String =
        sqlx::query_scalar("SELECT turn_id FROM turnmill.jobs WHERE state = 'ready' LIMIT 1").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(wait_reason(&fleet, &next).await.as_deref(), Some("create_rate"));
    fleet.sql("UPDATE turnmill.pool_states SET tokens_at = tokens_at - interval '2 seconds' WHERE pool = $1", "default").await;
    let more = fleet.store.claim("a", 10).await.unwrap().len();
    assert!((2..=3).contains(&more), "{more} after two seconds at one a second");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn after_a_429_nobody_creates_in_the_pool_for_a_while_and_the_reason_is_told(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let turn = fleet.enqueue("x").await.turn_id;
    let worker = fleet.worker("a").await;
    fleet.store.hold_creates("default", Hold::Rate(Duration::from_secs(60)), 0.0).await.unwrap();
    assert_eq!((worker.claim(1).await.len(), wait_reason(&fleet, &turn).await.as_deref()), (0, Some("create_rate")));

    // Capacity: one second, then two, up to ten, until a create works.
    fleet.sql("UPDATE turnmill.pool_states SET creates_after = clock_timestamp() WHERE pool = $1", "default").await;
    let over = "UPDATE turnmill.pool_states SET creates_after = clock_timestamp() WHERE pool = $1";
    let refused =
        async || fleet.store.hold_creates("default", Hold::Capacity { account_cap: Some(20) }, 0.0).await.unwrap().as_secs_f64().round();
    let mut pauses = Vec::new();
    for _ in 0..6 {
        fleet.sql(over, "default").await;
        pauses.push(refused().await);
        assert_eq!(refused().await.to_bits(), pauses[pauses.len() - 1].to_bits(), "refusals that come together are one");
    }
    assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
    assert_eq!(wait_reason(&fleet, &turn).await.as_deref(), Some("no_slot"));
    assert_eq!(fleet.store.pools().await.unwrap()[0].account_cap, Some(20));
    fleet.sql("UPDATE turnmill.pool_states SET creates_after = clock_timestamp() WHERE pool = $1", "default").await;
    let job = worker.claim_one().await;
    fleet.store.sandbox_ready(&job, "sandbox").await.unwrap().unwrap();
    assert_eq!(refused().await.to_bits(), 1f64.to_bits(), "a create has worked");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_web_app_that_sits_on_a_row_holds_up_that_turn_alone(pool: PgPool) {
    use crate::harness::{Holding as _, append, ending};
    use turnmill::store::Answer;
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    let (sat_on, other) = (fleet.enqueue("1").await.turn_id, fleet.enqueue("2").await.turn_id);
    let mut web_app = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM turnmill.turns WHERE id = $1 FOR UPDATE").bind(&sat_on).execute(&mut *web_app).await.unwrap();
    let claimed = tokio::time::timeout(PATIENCE / 4, worker.claim(5)).await.expect("it does not wait for the web app");
    assert_eq!(claimed.iter().map(|job| &job.turn_id).collect::<Vec<_>>(), [&other], "the claim walks past it");
    web_app.rollback().await.unwrap();

    let first = worker.claim_one().await;
    let mut web_app = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM turnmill.turns WHERE id = $1 FOR UPDATE").bind(&sat_on).execute(&mut *web_app).await.unwrap();
    // An enqueue into its session, too.
    sqlx::query("SELECT turnmill.enqueue_turn('again', session_id => $1)").bind(&first.session_id).execute(&mut *web_app).await.unwrap();
    let both = [first.append_of(0, 5, &["a"]), claimed[0].append_of(0, 5, &["a"])];
    let answers = tokio::time::timeout(PATIENCE / 4, fleet.store.append(&both)).await.expect("it does not wait for the web app");
    assert_eq!(answers.unwrap(), [Answer::Locked, Answer::Done]);
    assert_eq!(fleet.renew("a").await, Renewal::Extended);
    let settle = turnmill::store::Settle { journal_offset: 5, ..ending(Ending::Completed) };
    fleet.store.settle(&claimed[0], &settle, Duration::from_secs(30)).await.unwrap().unwrap();
    web_app.commit().await.unwrap();
    assert_eq!(append(&fleet.store, first.append_of(0, 5, &["a"])).await, Answer::Done);
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn equal_tenants_take_turns(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 2).await;
    let worker = fleet.worker("a").await;
    for tenant in ["one", "two"] {
        backlog(&fleet, tenant, 20).await;
    }
    let _holds = worker.claim(1).await;
    let taken = turn_over(&fleet, &worker, 10).await;
    assert_eq!(taken, HashMap::from([("two".to_owned(), 10)]), "while one of the first runs, the others are the second's");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn turns_without_a_tenant_share_as_one_tenant_does(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.cap("default", 3).await;
    let worker = fleet.worker("a").await;
    for _ in 0..30 {
        enqueue_for(&fleet, None, 0).await;
    }
    let running = worker.claim(3).await;
    backlog(&fleet, "late", 30).await;
    settle_and_free(&fleet.store, &running[0], Ending::Completed).await;
    let taken = turn_over(&fleet, &worker, 10).await;
    assert_eq!(taken, HashMap::from([("late".to_owned(), 10)]), "the others have two running");
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_limit_holds_over_all_pools_and_past_rows_that_somebody_sits_on(pool: PgPool) {
    let fleet = Fleet::new(pool);
    for name in ["default", "other"] {
        fleet.cap(name, 20).await;
    }
    fleet.store.set_tenant("capped", TenantChange { running_max: Some(Some(2)), ..TenantChange::default() }).await.unwrap();
    let mut turns = Vec::new();
    for name in ["default", "other", "default", "other", "default"] {
        let turn = Enqueue {
            prompt: "x".to_owned(),
            project_id: Some("p1".to_owned()),
            tenant_id: Some("capped".to_owned()),
            pool: Some(name.to_owned()),
            ..Enqueue::default()
        };
        turns.push(fleet.store.enqueue(&turn).await.unwrap().turn_id.unwrap());
    }
    // A web app that is about to cancel the oldest two.
    let mut web_app = fleet.pool.begin().await.unwrap();
    for turn in &turns[..2] {
        sqlx::query("SELECT turnmill.cancel_turn($1)").bind(turn).execute(&mut *web_app).await.unwrap();
    }
    let claimed: Vec<_> = fleet.worker("a").await.claim(10).await.into_iter().map(|job| job.turn_id).collect();
    assert_eq!(claimed.iter().collect::<std::collections::HashSet<_>>(), turns[2..4].iter().collect(), "the next two, and no more");
    web_app.commit().await.unwrap();
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn who_sits_on_a_tenant_s_row_stops_neither_its_turns_ends_nor_the_tidying(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.store.set_tenant("capped", TenantChange { running_max: Some(Some(2)), ..TenantChange::default() }).await.unwrap();
    enqueue_for(&fleet, Some("capped"), 0).await;
    let job = fleet.worker("a").await.claim_one().await;
    let mut operator = fleet.pool.begin().await.unwrap();
    sqlx::query("SELECT turnmill.set_tenant('capped', 2.0)").execute(&mut *operator).await.unwrap();
    let ends = async {
        settle_and_free(&fleet.store, &job, Ending::Completed).await;
        fleet.store.tidy().await.unwrap();
    };
    tokio::time::timeout(PATIENCE / 4, ends).await.expect("nobody waits for the operator");
    operator.commit().await.unwrap();
    fleet.store.tidy().await.unwrap();
    let running: i32 = sqlx::query_scalar("SELECT running FROM turnmill.tenants").fetch_one(&fleet.pool).await.unwrap();
    assert_eq!(running, 0, "counted anew");
}
