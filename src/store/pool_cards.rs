//! Pools as operators see them: what is set, what is held, what E2B says, what keeps creates back.

use chrono::{DateTime, Utc};

use super::{COUNTED_MAX, Store};

/// A pool with everything that decides whether its turns start.
#[derive(Debug, Clone)]
pub struct PoolCard {
    /// Its name.
    pub name: String,
    /// E2B template.
    pub template: String,
    /// active, paused or blocked.
    pub state: String,
    /// Why.
    pub state_reason: Option<String>,
    /// Since when.
    pub state_at: DateTime<Utc>,
    /// Most sandboxes.
    pub cap: i32,
    /// Slots whose sandbox is being created.
    pub creating: i64,
    /// Slots in which turns run.
    pub busy: i64,
    /// Slots kept warm for their session.
    pub warm: i64,
    /// Slots that are being given up.
    pub leaving: i64,
    /// Slots that nothing is in.
    pub free: i64,
    /// Slots above the cap, which go away instead of coming free.
    pub retiring: i64,
    /// Paused sandboxes.
    pub parked: i64,
    /// Sandboxes that no slot knows.
    pub orphans: i64,
    /// Turns that could start; counted up to a limit.
    pub ready: i64,
    /// What E2B lists as running.
    pub reported: Option<i32>,
    /// Seconds since it was asked.
    pub reported_s: Option<f64>,
    /// The account's own limit, where E2B has named it.
    pub account_cap: Option<i32>,
    /// Most creates a second; `None`: no limit of ours.
    pub create_rate: Option<f64>,
    /// Creates that may come at once after a pause.
    pub create_burst: i32,
    /// Creates that may come at once now.
    pub tokens: Option<f64>,
    /// Seconds for which nobody creates, because E2B has said 429.
    pub hold_s: Option<f64>,
    /// Why: rate or capacity.
    pub held_for: Option<String>,
    /// Seconds that a sandbox is kept running after its turn.
    pub warm_s: i32,
    /// Seconds that it is kept paused after that.
    pub paused_s: i32,
    /// Seconds that E2B lets one run.
    pub sandbox_max_s: i32,
    /// Seconds after which a turn is stopped.
    pub turn_timeout_s: i32,
    /// The agent's command line.
    pub agent: Vec<String>,
}

impl PoolCard {
    /// Slots that are not free.
    pub fn held(&self) -> i64 {
        self.creating + self.busy + self.warm + self.leaving
    }
}

impl Store {
    /// All pools, or one, by name.
    pub async fn pool_cards(&self, name: Option<&str>) -> sqlx::Result<Vec<PoolCard>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            PoolCard,
            r#"WITH slot AS MATERIALIZED (
                 SELECT pool, count(*) FILTER (WHERE state = 'creating') AS creating, count(*) FILTER (WHERE state = 'busy') AS busy,
                   count(*) FILTER (WHERE state = 'warm') AS warm, count(*) FILTER (WHERE state IN ('pausing', 'releasing')) AS leaving,
                   count(*) FILTER (WHERE state = 'free') AS free, count(*) FILTER (WHERE retire) AS retiring
                 FROM turnmill.slots GROUP BY pool)
               SELECT p.name, p.template, p.state, p.state_reason, p.state_at, p.cap, p.create_rate, p.create_burst, p.warm_s, p.paused_s,
                 p.sandbox_max_s, p.turn_timeout_s, p.agent, q.reported, q.account_cap,
                 coalesce(s.creating, 0) AS "creating!", coalesce(s.busy, 0) AS "busy!", coalesce(s.warm, 0) AS "warm!",
                 coalesce(s.leaving, 0) AS "leaving!", coalesce(s.free, 0) AS "free!", coalesce(s.retiring, 0) AS "retiring!",
                 extract(epoch FROM clock_timestamp() - q.reported_at)::float8 AS reported_s,
                 CASE WHEN p.create_rate IS NOT NULL THEN greatest(0, least(p.create_burst,
                   q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at)))::float8 END AS tokens,
                 CASE WHEN q.creates_after > clock_timestamp() THEN extract(epoch FROM q.creates_after - clock_timestamp())::float8 END AS hold_s,
                 q.held_for,
                 (SELECT count(*) FROM (SELECT FROM turnmill.parked k WHERE k.pool = p.name LIMIT $2) k) AS "parked!",
                 (SELECT count(*) FROM turnmill.corrections c WHERE c.pool = p.name AND c.kind = 'orphan' AND c.done_at IS NULL) AS "orphans!",
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready' LIMIT $2) j) AS "ready!"
               FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name LEFT JOIN slot s ON s.pool = p.name
               WHERE $1::text IS NULL OR p.name = $1 ORDER BY p.name"#,
            name,
            COUNTED_MAX,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }
}
