//! Races on real Postgres, in a given order of their steps.
//!
//! A racer runs one call of the store in a connection of its own. A deferred trigger holds every transaction at its
//! commit until the test opens the racer's gate, so each call has two steps: it does its work, and it commits. After each
//! step the test waits until every racer has finished, stands at its gate, or waits for a lock: Postgres says which.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, PgPool, Row as _};
use tokio::task::JoinHandle;
use turnmill::store::{Claimed, Settle, Store};
use turnmill::turn::Ending;

use crate::harness::{Claimer, Fleet, PATIENCE, ending, renew};

/// What a racer did, in its own words.
pub type Outcome = String;

pub type Call = Box<dyn FnOnce(Store) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

pub fn call<F: Future<Output = Outcome> + Send + 'static>(act: impl FnOnce(Store) -> F + Send + 'static) -> Call {
    Box::new(move |store| Box::pin(act(store)))
}

/// Every order of the steps: each number is a racer, who begins where it comes first and commits where it comes again.
pub fn orders(racers: usize) -> Vec<Vec<usize>> {
    fn go_on(left: &mut Vec<u8>, order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if left.iter().all(|steps| *steps == 0) {
            all.push(order.clone());
        }
        for racer in 0..left.len() {
            if left[racer] > 0 {
                left[racer] -= 1;
                order.push(racer);
                go_on(left, order, all);
                order.pop();
                left[racer] += 1;
            }
        }
    }
    let mut all = Vec::new();
    go_on(&mut vec![2; racers], &mut Vec::new(), &mut all);
    all
}

/// The fleet, with gates.
pub struct Track {
    pub fleet: Fleet,
    /// Keeps the gates shut.
    keeper: PgConnection,
    stores: Vec<(Store, i32)>,
}

impl Track {
    pub async fn new(pool: PgPool, racers: usize) -> Self {
        let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              PERFORM pg_advisory_xact_lock_shared(g::bigint) FROM current_setting('race.gate', true) g WHERE g <> '';
              RETURN NULL; END $$;";
        sqlx::raw_sql(gate).execute(&pool).await.unwrap();
        for table in ["jobs", "turns", "slots", "workers", "sessions", "cancel_requests"] {
            let trigger = format!(
                "CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE OR DELETE ON turnmill.{table}
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION gate()"
            );
            sqlx::raw_sql(AssertSqlSafe(trigger)).execute(&pool).await.unwrap();
        }
        let options: PgConnectOptions = (*pool.connect_options()).clone();
        let keeper = options.connect().await.unwrap();
        let mut stores = Vec::new();
        for racer in 0..racers {
            let gated = options.clone().options([("race.gate", racer.to_string())]);
            let own = PgPoolOptions::new().max_connections(1).connect_with(gated).await.unwrap();
            let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&own).await.unwrap();
            stores.push((Store::new(own), pid));
        }
        Self { fleet: Fleet::new(pool), keeper, stores }
    }

    /// Runs the calls in this order of their steps; what each did.
    pub async fn race(&mut self, calls: Vec<Call>, order: &[usize]) -> Vec<Outcome> {
        for racer in 0..calls.len() {
            self.gate("SELECT pg_advisory_lock($1)", racer).await;
        }
        let mut calls: Vec<_> = calls.into_iter().map(Some).collect();
        let mut running: Vec<Option<JoinHandle<Outcome>>> = calls.iter().map(|_| None).collect();
        for racer in order {
            match calls[*racer].take() {
                Some(begins) => running[*racer] = Some(tokio::spawn(begins(self.stores[*racer].0.clone()))),
                None => self.gate("SELECT pg_advisory_unlock($1)", *racer).await,
            }
            self.settle_down(&running).await;
        }
        let mut outcomes = Vec::new();
        for task in running {
            outcomes.push(tokio::time::timeout(PATIENCE, task.unwrap()).await.expect("it ends once all gates are open").unwrap());
        }
        outcomes
    }

    async fn gate(&mut self, statement: &'static str, racer: usize) {
        sqlx::query(statement).bind(i64::try_from(racer).unwrap()).execute(&mut self.keeper).await.unwrap();
    }

    /// Waits until nobody can go on without another step.
    async fn settle_down(&mut self, running: &[Option<JoinHandle<Outcome>>]) {
        let since = std::time::Instant::now();
        loop {
            let mut moving = BTreeSet::new();
            for (racer, task) in running.iter().enumerate() {
                if task.as_ref().is_some_and(|task| !task.is_finished()) {
                    moving.insert(self.stores[racer].1);
                }
            }
            let blocked: Vec<i32> = sqlx::query_scalar("SELECT DISTINCT pid FROM pg_locks WHERE NOT granted AND pid = ANY ($1)")
                .bind(moving.iter().copied().collect::<Vec<_>>())
                .fetch_all(&mut self.keeper)
                .await
                .unwrap();
            if blocked.len() == moving.len() {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "a racer neither ends nor waits");
            tokio::task::yield_now().await;
        }
    }

    /// Nothing is torn; then everything can be brought to its end, and what has ended stays as it is.
    pub async fn check(&self, what: &str) {
        let fleet = &self.fleet;
        fleet.store.tidy().await.unwrap();
        let broken = [
            (
                "a session is stuck",
                "SELECT count(*) FROM turnmill.jobs j WHERE state = 'waiting' AND NOT EXISTS (
                   SELECT FROM turnmill.jobs o WHERE o.session_id = j.session_id AND o.state <> 'waiting' AND o.ordinal < j.ordinal)",
            ),
            (
                "a job and its slot disagree",
                "SELECT count(*) FROM (SELECT turn_id, slot_id, epoch FROM turnmill.jobs WHERE state = 'leased') j
                 FULL JOIN (SELECT turn_id, id, epoch FROM turnmill.slots WHERE state IN ('creating', 'busy')) s
                   ON (s.turn_id, s.id, s.epoch) = (j.turn_id, j.slot_id, j.epoch)
                 WHERE j.turn_id IS NULL OR s.turn_id IS NULL",
            ),
            (
                "ordinals have gaps",
                "SELECT count(*) FROM turnmill.sessions s
                 WHERE s.turns <> (SELECT count(*) FROM turnmill.turns t WHERE t.session_id = s.id)
                    OR s.turns <> (SELECT max(ordinal) FROM turnmill.turns t WHERE t.session_id = s.id)",
            ),
            (
                "a turn and its job disagree",
                "SELECT count(*) FROM turnmill.turns t LEFT JOIN turnmill.jobs j ON j.turn_id = t.id
                 WHERE (t.completed_at IS NULL) <> (j.turn_id IS NOT NULL) OR (j.state = 'leased') <> (t.status = 'in_progress')",
            ),
            (
                "seq has gaps",
                "SELECT count(*) FROM turnmill.jobs j
                 WHERE next_seq <> (SELECT count(*) FROM turnmill.blocks b WHERE b.turn_id = j.turn_id)",
            ),
        ];
        for (name, statement) in broken {
            let rows: i64 = sqlx::query_scalar(statement).fetch_one(&fleet.pool).await.unwrap();
            assert_eq!(rows, 0, "{name}: {what}");
        }
        let ended = self.ended().await;
        for worker in ["a", "b"] {
            fleet.let_lease_expire(worker).await;
        }
        let sweeper = self.fresh("sweeper").await;
        loop {
            fleet.store.tidy().await.unwrap();
            for slot in fleet.store.due_releases(100, PATIENCE).await.unwrap() {
                fleet.store.slot_freed(slot.slot_id, slot.epoch).await.unwrap().unwrap();
            }
            let Some(job) = sweeper.claim(1).await.pop() else { break };
            let settle = Settle { journal_offset: job.journal_offset, ..ending(Ending::Completed) };
            fleet.store.settle(&job, &settle, std::time::Duration::ZERO).await.unwrap().unwrap();
        }
        assert_eq!(fleet.store.slots_held().await.unwrap(), 0, "{what}");
        let all = self.ended().await;
        let turns: i64 = sqlx::query_scalar("SELECT count(*) FROM turnmill.turns").fetch_one(&fleet.pool).await.unwrap();
        assert_eq!(i64::try_from(all.len()).unwrap(), turns, "all have ended: {what}");
        assert!(ended.is_subset(&all), "a status that was the last has changed: {what}");
    }

    async fn ended(&self) -> BTreeSet<(String, String)> {
        let rows = sqlx::query("SELECT id, status FROM turnmill.turns WHERE completed_at IS NOT NULL").fetch_all(&self.fleet.pool).await;
        rows.unwrap().iter().map(|row| (row.get("id"), row.get("status"))).collect()
    }

    /// A running turn of worker `a`, fresh.
    pub async fn running(&self, session: Option<&str>) -> Claimed {
        self.fleet.enqueue_in("running", session).await;
        self.fresh("a").await.claim_one().await
    }

    /// A worker with a lease.
    pub async fn fresh(&self, name: &'static str) -> Claimer {
        let worker = self.fleet.worker(name).await;
        renew(&self.fleet.store, name, PATIENCE).await;
        worker
    }

    pub async fn status(&self, turn: &str) -> String {
        self.fleet.turn(turn).await.status
    }
}
