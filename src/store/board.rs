//! What whoever is on call looks at first: what waits and why, what every slot does, how long starts take.

use chrono::{DateTime, Utc};

use super::{COUNTED_MAX, Store};

/// Turns that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// As `wait_reason` says; `None`: nothing is in their way.
    pub reason: Option<String>,
    /// How many; counted up to a limit.
    pub turns: i64,
    /// Since when the first of them is queued.
    pub oldest_at: Option<DateTime<Utc>>,
}

/// The turn that could start, were there room, and has been queued longest.
#[derive(Debug, Clone)]
pub struct Oldest {
    /// The turn.
    pub turn_id: String,
    /// Its pool.
    pub pool: String,
    /// Since when.
    pub queued_at: DateTime<Utc>,
    /// The same as an age, by the database's clock.
    pub age_s: f64,
    /// Why it waits.
    pub reason: Option<String>,
}

/// A slot and what goes on in it.
#[derive(Debug, Clone)]
pub struct SlotCell {
    /// Its number.
    pub id: i64,
    /// Its pool.
    pub pool: String,
    /// free, creating, busy, warm, pausing or releasing.
    pub state: String,
    /// How far its turn is.
    pub phase: Option<String>,
    /// The turn that holds it.
    pub turn_id: Option<String>,
    /// Whose sandbox is in it.
    pub session_id: Option<String>,
    /// E2B's id.
    pub sandbox_id: Option<String>,
    /// Who has the turn; `None`: it was handed over.
    pub worker_id: Option<String>,
    /// Seconds since its turn began, or its sandbox.
    pub age_s: Option<f64>,
    /// Seconds since its turn's last block, or since its agent was started.
    pub silent_s: Option<f64>,
    /// What the turn's failed attempts have cost so far.
    pub cost_usd: Option<f64>,
    /// Held for a turn that has no job any more.
    pub leaked: bool,
    /// Its release or pause was due a while ago.
    pub overdue: bool,
    /// Goes away instead of coming free.
    pub retire: bool,
}

/// How long turns of the last minutes took to start.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    /// How many are looked at.
    pub turns: i64,
    /// Enqueue to claim: median and 95th of a hundred.
    pub wait: Option<Vec<f64>>,
    /// Claim to running agent.
    pub startup: Option<Vec<f64>>,
    /// Claim to first block.
    pub first_block: Option<Vec<f64>>,
}

/// What E2B says of a pool beside what we say.
#[derive(Debug, Clone)]
pub struct PoolRoom {
    /// Its name.
    pub pool: String,
    /// active, paused or blocked.
    pub state: String,
    /// Why, if not active.
    pub state_reason: Option<String>,
    /// Most sandboxes.
    pub cap: i32,
    /// Slots that are not free.
    pub held: i64,
    /// What E2B lists as running.
    pub reported: Option<i32>,
    /// Seconds since it was asked.
    pub reported_s: Option<f64>,
    /// The account's own limit.
    pub account_cap: Option<i32>,
    /// Paused sandboxes, which cost no slot.
    pub parked: i64,
    /// Sandboxes that no slot knows.
    pub orphans: i64,
    /// Sandboxes whose time is counted at this moment.
    pub metered: i64,
    /// What one of them costs an hour, in dollars; `None`: nobody has said.
    pub sandbox_usd_per_hour: Option<f64>,
}

impl PoolRoom {
    /// What its sandboxes cost an hour, as many as there are now.
    #[expect(clippy::cast_precision_loss, reason = "a pool has some thousands")]
    pub fn usd_per_hour(&self) -> f64 {
        self.metered as f64 * self.sandbox_usd_per_hour.unwrap_or(0.0)
    }
}

/// Slots of one board at most.
pub const CELLS_MAX: i64 = 2000;

impl Store {
    /// What turns wait for, whatever their pool; most first.
    pub async fn waits(&self) -> sqlx::Result<Vec<Wait>> {
        let mut all: Vec<Wait> = Vec::new();
        for (_, wait) in self.waits_by_pool().await? {
            match all.iter_mut().find(|known| known.reason == wait.reason) {
                Some(known) => {
                    known.turns += wait.turns;
                    known.oldest_at = known.oldest_at.min(wait.oldest_at);
                }
                None => all.push(wait),
            }
        }
        all.sort_by_key(|wait| std::cmp::Reverse(wait.turns));
        Ok(all)
    }

    /// What turns of each pool wait for; most first. One of each kind is asked `wait_reason`, so there is one definition of that.
    pub async fn waits_by_pool(&self) -> sqlx::Result<Vec<(String, Wait)>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query!(
            r#"WITH live AS MATERIALIZED (
                 (SELECT turn_id, session_id, pool, state, tenant_id, queued_at, run_at > clock_timestamp() AS later
                  FROM turnmill.jobs WHERE state = 'ready' LIMIT $1)
                 UNION ALL
                 (SELECT turn_id, session_id, pool, state, tenant_id, queued_at, false FROM turnmill.jobs WHERE state = 'waiting' LIMIT $1)),
               kind AS MATERIALIZED (
                 SELECT count(*) AS n, min(l.queued_at) AS oldest_at, min(l.turn_id) AS turn_id
                 FROM live l
                 LEFT JOIN turnmill.tenants t ON t.id = l.tenant_id
                 LEFT JOIN (SELECT session_id, min(state) AS state FROM turnmill.slots WHERE state IN ('warm', 'pausing') GROUP BY session_id) k
                   ON k.session_id = l.session_id
                 GROUP BY l.state, l.pool, l.later, t.id, k.state)
               SELECT CASE WHEN j.state = 'waiting' THEN 'session_busy' ELSE turnmill.wait_reason(kind.turn_id) END AS reason,
                 sum(kind.n)::bigint AS "turns!", min(kind.oldest_at) AS oldest_at, j.pool
               FROM kind JOIN turnmill.jobs j ON j.turn_id = kind.turn_id
               GROUP BY 1, 4 ORDER BY 2 DESC"#,
            COUNTED_MAX
        )
        .fetch_all(&mut tx)
        .await;
        let rows = tx.done(rows).await?;
        Ok(rows.into_iter().map(|row| (row.pool, Wait { reason: row.reason, turns: row.turns, oldest_at: row.oldest_at })).collect())
    }

    /// The turn that waits longest of those that could start; found by jumping from tenant to tenant, as `queue` does.
    pub async fn oldest_ready(&self) -> sqlx::Result<Option<Oldest>> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            Oldest,
            r#"WITH RECURSIVE tenant AS (
                 SELECT p.name AS pool, f.tenant_id FROM turnmill.pools p CROSS JOIN LATERAL (
                   SELECT j.tenant_id FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready' ORDER BY j.tenant_id LIMIT 1) f
                 UNION ALL
                 SELECT t.pool, n.tenant_id FROM tenant t CROSS JOIN LATERAL (
                   SELECT j.tenant_id FROM turnmill.jobs j
                   WHERE j.pool = t.pool AND j.state = 'ready' AND j.tenant_id > t.tenant_id ORDER BY j.tenant_id LIMIT 1) n)
               SELECT f.turn_id AS "turn_id!", t.pool AS "pool!", f.queued_at AS "queued_at!",
                 extract(epoch FROM clock_timestamp() - f.queued_at)::float8 AS "age_s!", turnmill.wait_reason(f.turn_id) AS reason
               FROM (SELECT * FROM tenant LIMIT 1000) t CROSS JOIN LATERAL (
                 SELECT j.turn_id, j.queued_at FROM turnmill.jobs j
                 WHERE j.pool = t.pool AND j.state = 'ready' AND j.tenant_id = t.tenant_id
                 ORDER BY j.priority DESC, j.queued_at LIMIT 1) f
               ORDER BY f.queued_at LIMIT 1"#
        )
        .fetch_optional(&mut tx)
        .await;
        tx.done(row).await
    }

    /// All slots, held ones first.
    pub async fn slot_cells(&self) -> sqlx::Result<Vec<SlotCell>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            SlotCell,
            r#"SELECT s.id, s.pool, s.state, j.phase AS "phase?", s.turn_id, s.session_id, s.sandbox_id, j.worker_id AS "worker_id?",
                 extract(epoch FROM clock_timestamp() - coalesce(t.started_at, s.sandbox_at, s.asked_at))::float8 AS age_s,
                 CASE WHEN j.phase = 'agent' THEN extract(epoch FROM clock_timestamp() - coalesce(b.created_at, a.agent_at))::float8 END AS silent_s,
                 t.cost_usd::float8 AS "cost_usd?", s.retire,
                 (s.state IN ('creating', 'busy') AND j.turn_id IS NULL) AS "leaked!",
                 (s.state IN ('pausing', 'releasing') AND s.due_at < clock_timestamp() - interval '2 minutes') AS "overdue!"
               FROM turnmill.slots s
               LEFT JOIN turnmill.jobs j ON j.turn_id = s.turn_id AND j.slot_id = s.id AND j.epoch = s.epoch
               LEFT JOIN turnmill.turns t ON t.id = j.turn_id
               LEFT JOIN turnmill.attempts a ON a.epoch = j.epoch
               LEFT JOIN LATERAL (SELECT b.created_at FROM turnmill.blocks b WHERE b.turn_id = j.turn_id ORDER BY b.seq DESC LIMIT 1) b ON true
               ORDER BY (s.state = 'free'), s.pool, s.id LIMIT $1"#,
            CELLS_MAX
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// How long the newest starts of the last quarter of an hour took. What is still under way counts with its time so far.
    pub async fn starts(&self) -> sqlx::Result<Starts> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            Starts,
            r#"WITH first AS MATERIALIZED (
                 SELECT a.turn_id, a.taken_at, coalesce(a.agent_at, a.ended_at, clock_timestamp()) AS agent_at FROM turnmill.attempts a
                 WHERE a.taken = 'claimed' AND a.taken_at > statement_timestamp() - interval '15 minutes' ORDER BY a.taken_at DESC LIMIT 500),
               one AS MATERIALIZED (
                 SELECT extract(epoch FROM t.started_at - t.created_at)::float8 AS wait,
                   extract(epoch FROM f.agent_at - f.taken_at)::float8 AS startup,
                   extract(epoch FROM coalesce(b.created_at, t.completed_at, clock_timestamp()) - t.started_at)::float8 AS first_block
                 FROM first f JOIN turnmill.turns t ON t.id = f.turn_id
                 LEFT JOIN turnmill.blocks b ON b.turn_id = t.id AND b.seq = 0)
               SELECT count(*) AS "turns!",
                 percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY wait) AS wait,
                 percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY startup) AS startup,
                 percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_block) AS first_block
               FROM one"#
        )
        .fetch_one(&mut tx)
        .await;
        tx.done(row).await
    }

    /// Each pool's cap, what it holds and what E2B reports.
    pub async fn rooms(&self) -> sqlx::Result<Vec<PoolRoom>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            PoolRoom,
            r#"SELECT p.name AS pool, p.state, p.state_reason, p.cap, q.reported, q.account_cap,
                 extract(epoch FROM clock_timestamp() - q.reported_at)::float8 AS reported_s,
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state <> 'free') AS "held!",
                 (SELECT count(*) FROM turnmill.parked k WHERE k.pool = p.name) AS "parked!",
                 (SELECT count(*) FROM turnmill.corrections c WHERE c.pool = p.name AND c.kind = 'orphan' AND c.done_at IS NULL) AS "orphans!",
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.metered_at IS NOT NULL) AS "metered!",
                 p.sandbox_usd_per_hour::float8 AS sandbox_usd_per_hour
               FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name ORDER BY p.name"#
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }
}
