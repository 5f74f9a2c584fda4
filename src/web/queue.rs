//! How full the queue is, and whether we are well.

use std::time::Duration;

use axum::Json as Answer;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::App;
use super::auth::{Caller, QueueRead};
use super::problem::Problem;
use crate::store::COUNTED_MAX;

/// How old an answer may be: however many ask, the database is asked once in this time.
const FRESH: Duration = Duration::from_secs(1);

/// Something that costs a query, kept for a moment.
#[derive(Debug)]
pub struct Recent<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Recent<T> {
    /// The one there is, or a new one; one asks for all who wait.
    async fn or<F: Future<Output = Result<T, Problem>>>(&self, ask: impl FnOnce() -> F) -> Result<T, Problem> {
        let mut kept = self.0.lock().await;
        if let Some((at, value)) = &*kept
            && at.elapsed() < FRESH
        {
            return Ok(value.clone());
        }
        let value = ask().await?;
        *kept = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

/// How full the queue is. Unfinished turns only; each number is counted up to `counted_max`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QueueStats {
    /// Turns that wait for anything: `ready` and `waiting`.
    depth: i64,
    /// Turns that could start, were there room.
    ready: i64,
    /// Turns behind another of their session.
    waiting: i64,
    /// Turns that run.
    running: i64,
    /// Where counting stops: a number that has reached it may be larger.
    counted_max: i64,
    /// Since when the oldest of the ready ones is queued; null: there is none.
    oldest_ready_at: Option<DateTime<Utc>>,
    /// Workers that are alive.
    workers: i64,
    /// Turns that they can run at once.
    turns_max: i64,
    /// The same, a pool each.
    pools: Vec<PoolStats>,
}

/// One pool's share.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PoolStats {
    /// Its name.
    name: String,
    /// active, paused or blocked.
    state: String,
    /// Turns that could start, were there room.
    ready: i64,
    /// Turns that run.
    running: i64,
    /// Most sandboxes at once.
    cap: i32,
    /// Sandboxes that it holds.
    held: i64,
    /// Since when the oldest of the ready ones is queued.
    oldest_ready_at: Option<DateTime<Utc>>,
}

/// How full is the queue?
///
/// Cheap at any size, and asked of the database once a second at most. It counts the whole fleet: the scope is `queue:read`.
#[utoipa::path(get, path = "/v1/queue/stats", tag = "Queue", operation_id = "queue_stats",
    responses((status = 200, description = "As of a second ago at most", body = QueueStats)))]
pub async fn stats(_: Caller<QueueRead>, State(app): State<App>) -> Result<Answer<QueueStats>, Problem> {
    app.stats.or(|| ask(&app)).await.map(Answer)
}

async fn ask(app: &App) -> Result<QueueStats, Problem> {
    let pools = app.store.queue().await?;
    let totals = app.store.queue_totals().await?;
    let ready = pools.iter().map(|pool| pool.ready).sum::<i64>().min(COUNTED_MAX);
    Ok(QueueStats {
        depth: (ready + totals.waiting).min(COUNTED_MAX),
        ready,
        waiting: totals.waiting,
        running: pools.iter().map(|pool| pool.running).sum(),
        counted_max: COUNTED_MAX,
        oldest_ready_at: pools.iter().filter_map(|pool| pool.oldest_ready_at).min(),
        workers: totals.workers,
        turns_max: totals.turns_max,
        pools: pools
            .into_iter()
            .map(|pool| PoolStats {
                name: pool.pool,
                state: pool.state,
                ready: pool.ready,
                running: pool.running,
                cap: pool.cap,
                held: pool.held,
                oldest_ready_at: pool.oldest_ready_at,
            })
            .collect(),
    })
}

/// We are well.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// ok
    status: &'static str,
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "Health", operation_id = "health", security(()),
    responses((status = 200, description = "It is", body = Health)))]
pub async fn health() -> Answer<Health> {
    Answer(Health { status: "ok" })
}

/// Does it take requests?
///
/// Not while the database is away, and not when it is about to end.
#[utoipa::path(get, path = "/readyz", tag = "Health", operation_id = "ready", security(()),
    responses((status = 200, description = "It does", body = Health)))]
pub async fn ready(State(app): State<App>) -> Result<Answer<Health>, Problem> {
    if app.stop.is_cancelled() {
        return Err(Problem::new("unavailable", "The server is about to end."));
    }
    app.ready.or(|| async { Ok(app.store.ping().await?) }).await?;
    Ok(Answer(Health { status: "ok" }))
}
