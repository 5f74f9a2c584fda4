//! A web app: enqueues turns in its own transactions, cancels some, and remembers what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};
use serde_json::{Value, json};
use sqlx::{PgPool, Row as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Args, scripts};

/// One turn to come.
#[derive(Debug, Clone)]
pub struct Planned {
    pub key: String,
    pub session: String,
    pub prompt: String,
    pub script: Value,
    /// Cancelled so long after it was enqueued.
    pub cancel_after: Option<Duration>,
}

impl Planned {
    /// Its agent first says what it remembers.
    fn recalls(&mut self) {
        let foreign = self.script["foreign"] == true;
        if let Some(steps) = self.script["steps"].as_array_mut().filter(|_| !foreign) {
            steps.insert(0, json!({ "recall": null }));
        }
        self.prompt = format!("/mock {}", self.script);
    }
}

/// What the web app knows.
#[derive(Debug, Default)]
pub struct Notes {
    /// Scripts of all turns that were ever sent, by key.
    pub scripts: BTreeMap<String, Value>,
    /// Turns whose commit was acknowledged: key → turn.
    pub acknowledged: BTreeMap<String, String>,
    /// Per session the keys in the order of their acknowledgement.
    pub order: BTreeMap<String, Vec<String>>,
    /// Turns that somebody may have cancelled.
    pub cancelled: Vec<String>,
    /// Turns that have ended, as they were when that was first seen.
    pub ended: BTreeMap<String, Ended>,
    /// What the database refused and should not have.
    pub refused: Vec<String>,
}

/// A turn's row and blocks when it had just ended.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Ended {
    pub id: String,
    pub status: String,
    pub row: String,
    pub blocks: String,
}

/// What is compared of a turn that has ended.
const ENDED: &str = "SELECT t.id, t.status, md5(to_jsonb(t)::text) AS row,
       md5(coalesce((SELECT string_agg(to_jsonb(b)::text, '' ORDER BY b.seq) FROM turnmill.blocks b WHERE b.turn_id = t.id), '')) AS blocks
     FROM turnmill.turns t WHERE t.completed_at IS NOT NULL AND t.completed_at > to_timestamp($1::float8) ORDER BY t.completed_at LIMIT 2000";

/// The web app.
pub struct Load {
    app: PgPool,
    arrivals: Vec<(Duration, Vec<Planned>)>,
    notes: Mutex<Notes>,
}

impl Load {
    pub fn new(args: &Args, app: PgPool) -> Self {
        let mut rng = StdRng::seed_from_u64(args.seed.unwrap_or_default());
        let mut arrivals = Vec::new();
        let mut made = 0;
        while made < args.turns {
            let at = Duration::from_millis(rng.random_range(0..args.seconds * 1000));
            // Most sessions have one turn, some a handful that wait for each other.
            let turns = if rng.random_ratio(1, 8) { rng.random_range(2..9) } else { 1 }.min(args.turns - made);
            let session = format!("sess_chaos_{made}");
            let turn = |nth| {
                let mut turn = planned(&mut rng, &session, made + nth);
                if nth > 0 {
                    turn.recalls();
                }
                turn
            };
            arrivals.push((at, (0..turns).map(turn).collect()));
            made += turns;
        }
        arrivals.sort_by_key(|(at, _)| *at);
        Self { app, arrivals, notes: Mutex::default() }
    }

    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until all is enqueued and all cancels are sent.
    pub async fn run(self: Arc<Self>) {
        let since = Instant::now();
        let mut sessions = JoinSet::new();
        for (at, turns) in self.arrivals.clone() {
            sleep(at.saturating_sub(since.elapsed())).await;
            let load = self.clone();
            sessions.spawn(async move {
                for turn in turns {
                    let Some(id) = load.enqueue(&turn).await else { return };
                    if let Some(after) = turn.cancel_after {
                        let load = load.clone();
                        tokio::spawn(async move {
                            sleep(after).await;
                            load.cancel(&id).await;
                        });
                    }
                }
            });
        }
        sessions.join_all().await;
    }

    /// Enqueues in one transaction with a row of its own, until it is told that this is done.
    pub async fn enqueue(&self, turn: &Planned) -> Option<String> {
        self.notes().scripts.insert(turn.key.clone(), turn.script.clone());
        loop {
            match self.try_enqueue(turn).await {
                Ok(id) => {
                    self.acknowledge(turn, &id);
                    return Some(id);
                }
                Err(error) if may_pass(&error) => sleep(Duration::from_millis(100)).await,
                Err(error) => {
                    self.notes().refused.push(format!("enqueue {}: {error}", turn.key));
                    return None;
                }
            }
        }
    }

    async fn try_enqueue(&self, turn: &Planned) -> sqlx::Result<String> {
        let mut tx = self.app.begin().await?;
        let id = enqueue_in(&mut tx, turn).await?;
        tx.commit().await?;
        Ok(id)
    }

    pub fn acknowledge(&self, turn: &Planned, id: &str) {
        let mut notes = self.notes();
        notes.acknowledged.insert(turn.key.clone(), id.to_owned());
        notes.order.entry(turn.session.clone()).or_default().push(turn.key.clone());
    }

    pub async fn cancel(&self, turn: &str) {
        self.notes().cancelled.push(turn.to_owned());
        loop {
            match sqlx::query("SELECT turnmill.cancel_turn($1, 'chaos')").bind(turn).execute(&self.app).await {
                Ok(_) => return,
                Err(error) if may_pass(&error) => sleep(Duration::from_millis(100)).await,
                Err(error) => return self.notes().refused.push(format!("cancel {turn}: {error}")),
            }
        }
    }

    /// Looks at each turn once it has ended, so that a later change is seen.
    pub async fn watch_ended(self: Arc<Self>) {
        let mut newest = 0.0_f64;
        loop {
            sleep(Duration::from_millis(500)).await;
            // What commits late may have an older time.
            let Ok(ended) = sqlx::query_as::<_, Ended>(ENDED).bind(newest - 20.0).fetch_all(&self.app).await else { continue };
            let latest = "SELECT coalesce(extract(epoch FROM max(completed_at)), 0)::float8 FROM turnmill.turns";
            newest = sqlx::query_scalar(latest).fetch_one(&self.app).await.unwrap_or(newest);
            let mut notes = self.notes();
            for turn in ended {
                notes.ended.entry(turn.id.clone()).or_insert(turn);
            }
        }
    }

    /// Until every turn has ended.
    pub async fn drained(&self) {
        self.nothing_of("SELECT count(*) FROM turnmill.turns WHERE completed_at IS NULL").await;
    }

    /// Until every slot is free, and no sandbox waits for its session any more.
    pub async fn released(&self) {
        self.nothing_of("SELECT (SELECT count(*) FROM turnmill.slots WHERE state <> 'free') + (SELECT count(*) FROM turnmill.parked)")
            .await;
    }

    async fn nothing_of(&self, count: &'static str) {
        while !matches!(sqlx::query_scalar::<_, i64>(count).fetch_one(&self.app).await, Ok(0)) {
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// A turn in one of these states of the queue, by a number.
    pub async fn some_turn(&self, states: &[&str], nth: u32) -> Option<String> {
        let statement = "SELECT turn_id FROM turnmill.jobs WHERE state = ANY ($1) ORDER BY md5(turn_id || $2::text) LIMIT 1";
        let states = states.iter().map(|&state| state.to_owned()).collect::<Vec<_>>();
        sqlx::query_scalar(statement).bind(states).bind(nth.to_string()).fetch_optional(&self.app).await.ok().flatten()
    }
}

/// In whoever's transaction: the web app's own row, and the turn.
pub async fn enqueue_in(connection: &mut sqlx::PgConnection, turn: &Planned) -> sqlx::Result<String> {
    let row = sqlx::query(
        "SELECT turn_id FROM turnmill.enqueue_turn(prompt => $1, project_id => 'chaos', session_id => $2, idempotency_key => $3)",
    )
    .bind(&turn.prompt)
    .bind(&turn.session)
    .bind(&turn.key)
    .fetch_one(&mut *connection)
    .await?;
    let id: String = row.get(0);
    let own = sqlx::query("INSERT INTO app.messages (key, turn_id) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    own.bind(&turn.key).bind(&id).execute(connection).await?;
    Ok(id)
}

/// A turn from the seed.
pub fn planned(rng: &mut StdRng, session: &str, nth: usize) -> Planned {
    let script = scripts::random(rng);
    let cancel_after = (script.hangs || rng.random_ratio(1, 25)).then(|| Duration::from_millis(rng.random_range(0..5000)));
    Planned {
        key: format!("chaos-{nth}"),
        session: session.to_owned(),
        prompt: format!("/mock {}", script.json),
        script: script.json,
        cancel_after,
    }
}

/// The connection or the server went away, or somebody had a lock: asking again is right.
pub fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => refusal.code().is_none_or(|code| !code.starts_with("TM") && !code.starts_with("42")),
        _ => true,
    }
}
