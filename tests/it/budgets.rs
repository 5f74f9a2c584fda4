//! What turns may spend: a turn, a tenant a day, the fleet a day; and the fleet's stop.

use std::time::Duration;

use serde_json::json;
use sqlx::{ConnectOptions as _, PgPool};
use turnmill::store::{By, Enqueue, FleetChange, NextAttempt, PoolChange, Retry, TenantChange, UsageFilter};
use turnmill::turn::TurnError;

use crate::commands::{said, turnmill};
use crate::harness::{Claimer, Fleet, Running, spent, until};
use crate::money::costing;

const SOME_TIME: Duration = Duration::from_secs(600);

impl Fleet {
    async fn waits_for(&self, turn: &str) -> Option<String> {
        sqlx::query_scalar("SELECT turnmill.wait_reason($1)").bind(turn).fetch_one(&self.pool).await.unwrap()
    }

    async fn budget(&self, tenant: &str, usd: Option<f64>) {
        let change = TenantChange { budget_usd_per_day: Some(usd), ..TenantChange::default() };
        self.store.set_tenant(tenant, change).await.unwrap();
    }
}

impl Claimer {
    /// Runs what there is to the end, at this price each; how many.
    pub async fn work(&self, fleet: &Fleet, usd: f64) -> usize {
        let jobs = self.claim(10).await;
        for job in &jobs {
            fleet.store.settle(job, &costing(usd), SOME_TIME).await.unwrap().unwrap();
            fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
        }
        jobs.len()
    }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_tenant_s_spent_budget_holds_its_turns_until_midnight_or_until_it_is_raised_and_nobody_else_s(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.budget("acme", Some(1.0)).await;
    fleet.enqueue_for("acme").await;
    assert_eq!(worker.work(&fleet, 0.6).await, 1);
    // What runs is not stopped: two that start together may overshoot, by what they cost.
    let [first, second] = [fleet.enqueue_for("acme").await, fleet.enqueue_for("acme").await];
    assert_eq!((fleet.waits_for(&first).await, fleet.waits_for(&second).await), (None, None));
    assert_eq!(worker.work(&fleet, 0.6).await, 2);
    let (held, other) = (fleet.enqueue_for("acme").await, fleet.enqueue_for("other").await);
    assert_eq!((fleet.waits_for(&held).await.as_deref(), fleet.waits_for(&other).await), (Some("budget"), None));
    let midnight: bool = sqlx::query_scalar(
        "SELECT turnmill.waits_until($1) = (date_trunc('day', clock_timestamp() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC'",
    )
    .bind(&held)
    .fetch_one(&fleet.pool)
    .await
    .unwrap();
    assert!(midnight);
    assert_eq!(worker.work(&fleet, 0.1).await, 1, "the other's");
    // Summed or not, it is the same.
    fleet.store.sum_charges().await.unwrap();
    assert_eq!(worker.work(&fleet, 0.1).await, 0);
    fleet.budget("acme", Some(2.0)).await;
    assert_eq!((fleet.waits_for(&held).await, worker.work(&fleet, 0.6).await), (None, 1));
    fleet.enqueue_for("acme").await;
    assert_eq!(worker.work(&fleet, 0.1).await, 0, "1.2 and 0.6 and 0.6 are spent");
    // The day after.
    for table in ["spend_days", "fresh_charges", "charges"] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("UPDATE turnmill.{table} SET day = day - 1"))).execute(&fleet.pool).await.unwrap();
    }
    assert_eq!(worker.work(&fleet, 0.1).await, 1);
    fleet.budget("acme", None).await;
    fleet.enqueue_for("acme").await;
    assert_eq!(worker.work(&fleet, 100.0).await, 1);
    fleet.books_balance().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_fleet_s_budget_holds_all_turns_and_its_stop_holds_them_at_once(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    fleet.store.change_fleet(&FleetChange::Budget(Some(0.5))).await.unwrap();
    fleet.enqueue_for("x").await;
    assert_eq!(worker.work(&fleet, 0.5).await, 1);
    let held = fleet.enqueue_for("y").await;
    assert_eq!((fleet.waits_for(&held).await.as_deref(), worker.work(&fleet, 0.1).await), (Some("budget"), 0));
    fleet.store.sum_charges().await.unwrap();
    assert_eq!(worker.work(&fleet, 0.1).await, 0);
    fleet.store.change_fleet(&FleetChange::Budget(None)).await.unwrap();
    fleet.store.change_fleet(&FleetChange::Stop("the key has leaked".to_owned())).await.unwrap();
    assert_eq!((fleet.waits_for(&held).await.as_deref(), worker.work(&fleet, 0.1).await), (Some("fleet_stopped"), 0));
    assert!(fleet.store.change_fleet(&FleetChange::Stop(" ".to_owned())).await.is_err(), "not without a reason");
    let money = fleet.store.fleet_money().await.unwrap();
    assert_eq!(money.stopped_reason.as_deref(), Some("the key has leaked"));
    fleet.store.change_fleet(&FleetChange::Resume).await.unwrap();
    assert_eq!(worker.work(&fleet, 0.1).await, 1);
}

/// A stopped fleet's worker waits; when it is resumed, or a budget raised, nobody needs to wake it.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_waited_starts_by_itself_when_there_is_leave_again(pool: PgPool) {
    let all = Running::start(pool).await;
    all.fleet.store.change_fleet(&FleetChange::Stop("for a look".to_owned())).await.unwrap();
    let turn = all.fleet.enqueue("/mock noop").await.turn_id;
    until("it waits", || async { (all.fleet.waits_for(&turn).await.as_deref() == Some("fleet_stopped")).then_some(()) }).await;
    all.fleet.store.change_fleet(&FleetChange::Resume).await.unwrap();
    assert_eq!(all.fleet.ended(&turn).await.status, "completed");
    all.stop().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn a_turn_may_spend_what_it_asks_for_and_no_more_than_its_pool_allows(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    let change = PoolChange { turn_budget_usd: Some(Some(2.0)), ..PoolChange::default() };
    fleet.store.set_pool("default", &change).await.unwrap();
    for (options, budget) in [(json!({}), 2.0), (json!({ "max_budget_usd": 0.5 }), 0.5), (json!({ "max_budget_usd": 9 }), 2.0)] {
        let turn = Enqueue { prompt: "x".to_owned(), project_id: Some("p1".to_owned()), options: Some(options), ..Enqueue::default() };
        fleet.store.enqueue(&turn).await.unwrap();
        let job = worker.claim_one().await;
        assert_eq!((job.budget_usd(), job.budget_left_usd()), (Some(budget), Some(budget)));
        fleet.store.settle(&job, &costing(0.1), SOME_TIME).await.unwrap().unwrap();
        fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    }
}

/// Nobody knows what it has cost: so it can't be free.
#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn an_attempt_that_does_not_say_what_it_cost_leaves_half_of_what_was_left(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    let turn = Enqueue {
        prompt: "x".to_owned(),
        project_id: Some("p1".to_owned()),
        options: Some(serde_json::json!({ "max_budget_usd": 4 })),
        ..Enqueue::default()
    };
    fleet.store.enqueue(&turn).await.unwrap();
    let mut job = worker.claim_one().await;
    let why = TurnError::new("agent_killed", "words");
    let priced = spent(1.0);
    fleet.store.create_asked(&job).await.unwrap().unwrap();
    fleet.store.sandbox_ready(&job, "i-1").await.unwrap().unwrap();
    for (spent, left) in [(None, 2.0), (Some(&priced), 1.5), (None, 0.75)] {
        fleet.store.agent_started(&job).await.unwrap().unwrap();
        let epoch = fleet.store.next_epoch().await.unwrap();
        let next = NextAttempt { epoch, journal_offset: 0, blocks: &[], resumes: true, forgets: false, spent, why: &why };
        let seq = fleet.store.next_attempt(&job, &next).await.unwrap().unwrap();
        job.go_on(&next, seq, Some("i-1".to_owned()), Duration::ZERO);
        assert_eq!(job.budget_left_usd(), Some(left));
    }
    // Also whoever has it later, and when its sandbox is lost with the agent in it.
    fleet.store.agent_started(&job).await.unwrap().unwrap();
    let retry = Retry { delay: Duration::ZERO, charged: false, restart: true, keep: false, spent: None, why: &why };
    fleet.store.retry_later(&job, &retry, SOME_TIME).await.unwrap().unwrap();
    fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    let again = worker.claim_one().await;
    assert_eq!((again.unpriced, again.budget_left_usd()), (3, Some(0.375)));
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn usage_sums_the_same_whatever_it_is_summed_by(pool: PgPool) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    for tenant in ["x", "y", "x"] {
        fleet.enqueue_for(tenant).await;
        worker.work(&fleet, 0.25).await;
        fleet.store.sum_charges().await.unwrap();
    }
    fleet.enqueue_for("y").await;
    worker.work(&fleet, 1.0).await;
    let all = UsageFilter::default();
    for (_, by) in By::NAMES {
        let sums = fleet.store.usage(by, &all).await.unwrap();
        assert!((sums.iter().map(|sum| sum.usd).sum::<f64>() - 1.75).abs() < 1e-9, "{by:?}: {sums:?}");
        assert_eq!(
            (sums.iter().map(|sum| sum.turns).sum::<i64>(), sums.iter().map(|sum| sum.output_tokens).sum::<i64>()),
            (4, 40),
            "{by:?}"
        );
    }
    let of_y = UsageFilter { tenant_id: Some("y".to_owned()), ..all.clone() };
    let tenants = fleet.store.usage(By::Tenant, &of_y).await.unwrap();
    assert_eq!((tenants.len(), &*tenants[0].key, tenants[0].turns), (1, "y", 2));
    let of_project = UsageFilter { project_id: Some("p-x".to_owned()), ..all };
    assert_eq!(fleet.store.usage(By::Day, &of_project).await.unwrap()[0].turns, 2);
    let run = async |args: &[&str]| turnmill(args).env("DATABASE_URL", &url).output().await.unwrap();
    let shown = run(&["usage", "--by", "tenant"]).await;
    assert!(shown.status.success() && said(&shown).contains("y ") && said(&shown).contains("1.7500"), "{}", said(&shown));
    assert!(said(&run(&["usage", "--json"]).await).contains(r#""turns":4"#));
    assert!(said(&run(&["usage", "--by", "colour"]).await).contains("give one of day, tenant"));
    assert!(said(&run(&["usage", "--since", "2030-01-02", "--until", "2030-01-01"]).await).contains("is after --until"));
}
