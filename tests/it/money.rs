//! What turns cost: booked once whatever happens to their workers, the same however it is summed.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use turnmill::store::{Claimed, Enqueue, Fenced, NextAttempt, PoolChange, Retry, Settle};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Claimer, Fleet, ending, spent};

const SOME_TIME: Duration = Duration::from_secs(600);

impl Fleet {
    /// Ages what sandboxes have run for and nobody has booked.
    pub async fn age_sandboxes(&self, seconds: i32) {
        sqlx::query(
            "UPDATE turnmill.slots SET metered_at = coalesce(metered_at, clock_timestamp()) - make_interval(secs => $1) WHERE sandbox_id IS NOT NULL",
        )
        .bind(f64::from(seconds))
        .execute(&self.pool)
        .await
        .unwrap();
    }

    /// Turns, ledger and roll-up say the same, to the last digit.
    pub async fn books_balance(&self) {
        let wrong: Vec<Value> = sqlx::query_scalar(
            "WITH booked AS (
               SELECT turn_id, coalesce(sum(usd) FILTER (WHERE kind = 'model'), 0) AS model_usd, sum(input_tokens) AS input_tokens,
                 sum(output_tokens) AS output_tokens, coalesce(sum(seconds), 0) AS seconds, coalesce(sum(usd) FILTER (WHERE kind = 'sandbox'), 0) AS sandbox_usd,
                 sum(turns) AS turns
               FROM turnmill.ledger WHERE turn_id IS NOT NULL GROUP BY turn_id)
             SELECT to_jsonb(t) || to_jsonb(b) FROM turnmill.turns t FULL JOIN booked b ON b.turn_id = t.id
             WHERE (coalesce(t.cost_usd, 0), coalesce(t.input_tokens, 0), coalesce(t.output_tokens, 0), coalesce(t.sandbox_s, 0), coalesce(t.sandbox_usd, 0))
               IS DISTINCT FROM (coalesce(b.model_usd, 0), coalesce(b.input_tokens, 0), coalesce(b.output_tokens, 0), coalesce(b.seconds, 0), coalesce(b.sandbox_usd, 0))
               OR coalesce(b.turns, 0) > (t.completed_at IS NOT NULL)::int",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        assert_eq!(wrong, [Value::Null; 0], "each turn has what was booked for it");
        let wrong: Vec<Value> = sqlx::query_scalar(
            "WITH l AS (SELECT day, tenant_id, pool, kind, model, sum(usd) AS usd, sum(seconds) AS s, sum(turns) AS n, sum(unpriced) AS u, sum(input_tokens) AS i
                        FROM turnmill.ledger GROUP BY 1, 2, 3, 4, 5),
                  r AS (SELECT day, tenant_id, pool, kind, model, sum(usd) AS usd, sum(seconds) AS s, sum(turns) AS n, sum(unpriced) AS u, sum(input_tokens) AS i
                        FROM turnmill.spend GROUP BY 1, 2, 3, 4, 5)
             SELECT jsonb_build_array(to_jsonb(l), to_jsonb(r)) FROM l FULL JOIN r USING (day, tenant_id, pool, kind, model)
             WHERE (l.usd, l.s, l.n, l.u, l.i) IS DISTINCT FROM (r.usd, r.s, r.n, r.u, r.i)",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        assert_eq!(wrong, [Value::Null; 0], "the roll-up is the sum of the ledger");
    }

    /// Every charge as `[kind, model, turns, unpriced, usd]`.
    async fn charges(&self) -> Vec<Value> {
        let rows = sqlx::query_scalar(
            "SELECT jsonb_build_array(kind, model, turns, unpriced, usd) FROM turnmill.ledger ORDER BY epoch, kind DESC, model",
        );
        rows.fetch_all(&self.pool).await.unwrap()
    }

    async fn turn_money(&self, turn: &str) -> Value {
        let row = sqlx::query_scalar(
            "SELECT jsonb_build_object('usd', cost_usd, 'in', input_tokens, 'out', output_tokens, 'sandbox_s', round(sandbox_s, -1), 'sandbox_usd', round(sandbox_usd, 2))
             FROM turnmill.turns WHERE id = $1",
        );
        row.bind(turn).fetch_one(&self.pool).await.unwrap()
    }

    async fn rate(&self, usd_per_hour: f64) {
        let change = PoolChange { sandbox_usd_per_hour: Some(Some(usd_per_hour)), ..PoolChange::default() };
        self.store.set_pool("default", &change).await.unwrap();
    }

    /// A turn of a tenant, in a session of its own.
    pub async fn enqueue_for(&self, tenant: &str) -> String {
        let turn = Enqueue {
            prompt: "hi".to_owned(),
            project_id: Some(format!("p-{tenant}")),
            tenant_id: Some(tenant.to_owned()),
            ..Enqueue::default()
        };
        self.store.enqueue(&turn).await.unwrap().turn_id.unwrap()
    }
}

impl Claimer {
    /// A claimed turn whose agent runs in a sandbox that has been there for an hour.
    async fn started(&self, fleet: &Fleet, sandbox: &str) -> Claimed {
        let job = self.claim_one().await;
        fleet.store.create_asked(&job).await.unwrap().unwrap();
        fleet.store.sandbox_ready(&job, sandbox).await.unwrap().unwrap();
        fleet.store.agent_started(&job).await.unwrap().unwrap();
        fleet.age_sandboxes(3600).await;
        job
    }
}

/// The end of a turn whose last attempt cost so much.
pub fn costing(usd: f64) -> Settle {
    Settle { spent: Some(spent(usd)), ..ending(Ending::Completed) }
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn every_attempt_of_a_turn_is_booked_once_also_the_failed_and_the_taken_over_ones(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.rate(0.36).await;
    let turn = fleet.enqueue("hi").await.turn_id;
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let why = TurnError::new("overloaded", "words");

    // Fails in a sandbox that lives: the next attempt is in the same one.
    let mut job = a.started(&fleet, "i-1").await;
    let first = spent(0.5);
    let next = NextAttempt {
        epoch: fleet.store.next_epoch().await.unwrap(),
        journal_offset: 0,
        blocks: &[],
        resumes: true,
        forgets: false,
        spent: Some(&first),
        why: &why,
    };
    let seq = fleet.store.next_attempt(&job, &next).await.unwrap().unwrap();
    job.go_on(&next, seq, Some("i-1".to_owned()), Duration::ZERO);

    // Its worker dies. Whoever adopts it books what the attempt cost; the dead one books nothing any more.
    fleet.let_lease_expire("a").await;
    let adopted = b.claim_one().await;
    assert_eq!(fleet.store.settle(&job, &costing(99.0), SOME_TIME).await.unwrap(), Err(Fenced));
    fleet.age_sandboxes(3600).await;

    // The sandbox vanishes, and nobody knows what the agent has cost until then.
    let phase = fleet.store.agent_started(&adopted).await.unwrap();
    assert_eq!(phase, Ok(()));
    let retry = Retry { delay: Duration::ZERO, charged: false, restart: true, keep: false, spent: None, why: &why };
    fleet.store.retry_later(&adopted, &retry, SOME_TIME).await.unwrap().unwrap();
    fleet.store.slot_freed(adopted.slot_id, adopted.epoch).await.unwrap().unwrap();
    assert_eq!(fleet.store.retry_later(&adopted, &retry, SOME_TIME).await.unwrap(), Err(Fenced));

    let last = b.started(&fleet, "i-2").await;
    fleet.store.settle(&last, &costing(0.25), SOME_TIME).await.unwrap().unwrap();
    assert_eq!(fleet.store.settle(&last, &costing(0.25), SOME_TIME).await.unwrap(), Err(Fenced));

    let money = fleet.turn_money(&turn).await;
    assert_eq!((&money["usd"], &money["in"], &money["out"]), (&json!(0.75), &json!(200), &json!(20)));
    assert_eq!((money["sandbox_s"].as_f64(), money["sandbox_usd"].as_f64()), (Some(10_800.0), Some(1.08)));
    let charges = fleet.charges().await;
    let kinds: Vec<_> = charges.iter().map(|c| (c[0].as_str().unwrap(), c[2].as_i64().unwrap(), c[3].as_i64().unwrap())).collect();
    let expected = [("sandbox", 0, 0), ("model", 0, 0), ("sandbox", 0, 1), ("sandbox", 1, 0), ("model", 0, 0)];
    assert_eq!(kinds, expected, "three attempts, of which one has not said what it cost");
    fleet.books_balance().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn time_for_which_a_sandbox_is_kept_warm_is_the_session_s_and_no_turn_s(pool: PgPool) {
    let fleet = Fleet::new(pool);
    fleet.rate(3.6).await;
    let warm = PoolChange { release: Some((7200, 0)), sandbox_max_s: Some(86_400), turn_timeout_s: Some(600), ..PoolChange::default() };
    fleet.store.set_pool("default", &warm).await.unwrap();
    let first = fleet.enqueue_in("hi", Some("s")).await.turn_id;
    let second = fleet.enqueue_in("again", Some("s")).await.turn_id;
    let worker = fleet.worker("a").await;
    let job = worker.started(&fleet, "i-1").await;
    fleet.store.settle(&job, &Settle { keep: true, ..costing(0.0) }, SOME_TIME).await.unwrap().unwrap();
    fleet.age_sandboxes(1000).await;

    let job = worker.claim_one().await;
    assert_eq!(job.sandbox_id.as_deref(), Some("i-1"), "it takes the warm one");
    fleet.age_sandboxes(100).await;
    fleet.store.settle(&job, &costing(0.0), SOME_TIME).await.unwrap().unwrap();
    fleet.age_sandboxes(10).await;
    fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();

    let by_kind: Vec<Value> = sqlx::query_scalar(
        "SELECT jsonb_build_array(kind, turn_id, session_id, round(seconds, -1), round(usd, 1)) FROM turnmill.ledger WHERE kind <> 'model' ORDER BY booked_at",
    )
    .fetch_all(&fleet.pool)
    .await
    .unwrap();
    let rounded: Vec<(String, Value, f64, f64)> =
        by_kind.iter().map(|c| (c[0].as_str().unwrap().to_owned(), c[1].clone(), c[3].as_f64().unwrap(), c[4].as_f64().unwrap())).collect();
    assert_eq!(
        rounded,
        [
            ("sandbox".to_owned(), json!(first), 3600.0, 3.6),
            ("kept".to_owned(), Value::Null, 1000.0, 1.0),
            ("sandbox".to_owned(), json!(second), 100.0, 0.1),
            ("kept".to_owned(), Value::Null, 10.0, 0.0),
        ]
    );
    fleet.books_balance().await;
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn the_roll_up_takes_each_charge_once_and_a_second_booking_of_the_same_never(pool: PgPool) {
    let fleet = Fleet::new(pool);
    let worker = fleet.worker("a").await;
    for tenant in ["x", "y", "x"] {
        fleet.enqueue_for(tenant).await;
        let job = worker.claim_one().await;
        fleet.store.settle(&job, &costing(0.1), SOME_TIME).await.unwrap().unwrap();
        fleet.store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
    }
    fleet.books_balance().await;
    // All at once, and once more.
    let summed = futures::future::join_all((0..8).map(|_| fleet.store.sum_charges())).await;
    assert_eq!(summed.into_iter().map(Result::unwrap).sum::<i64>(), 6);
    assert_eq!(fleet.store.sum_charges().await.unwrap(), 0);
    fleet.books_balance().await;
    let usd =
        || async { sqlx::query_scalar::<_, f64>("SELECT sum(usd)::float8 FROM turnmill.spend").fetch_one(&fleet.pool).await.unwrap() };
    assert!((usd().await - 0.3).abs() < 1e-9);

    let again =
        "INSERT INTO turnmill.fresh_charges (epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, usd)
                 SELECT epoch, kind, model, day, booked_at, pool, tenant_id, project_id, session_id, turn_id, usd FROM turnmill.charges";
    sqlx::raw_sql(again).execute(&fleet.pool).await.unwrap();
    assert_eq!(fleet.store.sum_charges().await.unwrap(), 0, "the ledger's key refuses them");
    assert!((usd().await - 0.3).abs() < 1e-9);
    fleet.books_balance().await;
}
