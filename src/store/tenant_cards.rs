//! Tenants as operators see them: what is set of each, what runs, what waits and why, what was spent today.
//!
//! There may be any number of them, and most wait for nothing. So those whose turns wait are found by jumping from one to the
//! next in the queue; all others are walked through by their id, a page at a time.

use serde_json::{Map, Value, json};

use super::audit::{Act, note};
use super::board::Wait;
use super::db::Tx;
use super::tenants::change_tenant;
use super::{Actor, Store, TenantChange};

/// A tenant with everything that decides whether its turns start.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantCard {
    /// As in `sessions.tenant_id`.
    pub id: String,
    /// Its share while others wait too.
    pub weight: f64,
    /// Most of its turns that run at once; `None`: no limit.
    pub running_max: Option<i32>,
    /// Its turns that run.
    pub running: i64,
    /// Most that it may spend on a UTC day, in dollars; `None`: no limit.
    pub budget_usd_per_day: Option<f64>,
    /// What it has spent on this one.
    pub today_usd: f64,
    /// Something of it is set, or it has had a session.
    pub known: bool,
}

impl TenantCard {
    /// Its budget of this day is spent.
    pub fn is_over_budget(&self) -> bool {
        self.budget_usd_per_day.is_some_and(|budget| self.today_usd >= budget)
    }

    /// As many of its turns run as may.
    pub fn is_at_limit(&self) -> bool {
        self.running_max.is_some_and(|most| self.running >= i64::from(most))
    }
}

/// A page of ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantPage {
    /// In their order.
    pub ids: Vec<String>,
    /// Where the next page begins: behind this one.
    pub next: Option<String>,
    /// Nothing more was found among so many; `next` goes on from there.
    pub gave_up: bool,
}

/// Turns of one tenant in one pool that are counted.
pub const TENANT_COUNTED_MAX: i64 = 1000;

/// Tenants that a search looks at before it asks whether to go on.
pub const TENANTS_LOOKED_AT_MAX: i64 = 2000;

/// Places in the queue, each a tenant in a pool, that are looked at for who waits.
const HEADS_MAX: i64 = 1000;

impl Store {
    /// Tenants with turns that could start were there room, the longest wait first; with `text` somewhere in their id.
    pub async fn waiting_tenants(&self, text: Option<&str>, limit: i64) -> sqlx::Result<Vec<String>> {
        let mut tx = self.pool.glance().await?;
        let ids = sqlx::query_scalar!(
            r#"WITH RECURSIVE head AS (
                 SELECT p.name AS pool, f.tenant_id FROM turnmill.pools p CROSS JOIN LATERAL (
                   SELECT j.tenant_id FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready' ORDER BY j.tenant_id LIMIT 1) f
                 UNION ALL
                 SELECT h.pool, n.tenant_id FROM head h CROSS JOIN LATERAL (
                   SELECT j.tenant_id FROM turnmill.jobs j
                   WHERE j.pool = h.pool AND j.state = 'ready' AND j.tenant_id > h.tenant_id ORDER BY j.tenant_id LIMIT 1) n)
               SELECT h.tenant_id AS "id!"
               FROM (SELECT * FROM head LIMIT $1) h CROSS JOIN LATERAL (
                 SELECT j.queued_at FROM turnmill.jobs j WHERE j.pool = h.pool AND j.state = 'ready' AND j.tenant_id = h.tenant_id
                 ORDER BY j.priority DESC, j.queued_at LIMIT 1) f
               WHERE h.tenant_id <> '' AND ($2::text IS NULL OR position($2 IN h.tenant_id) > 0)
               GROUP BY h.tenant_id ORDER BY min(f.queued_at), h.tenant_id LIMIT $3"#,
            HEADS_MAX,
            text,
            limit,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(ids).await
    }

    /// Tenants that have had a session or have something set, by id, behind `after`, without those in `but`; with `text`
    /// somewhere in their id.
    pub async fn tenants_by_id(&self, text: Option<&str>, after: &str, but: &[String], limit: i64) -> sqlx::Result<TenantPage> {
        let walk = if text.is_some() { TENANTS_LOOKED_AT_MAX } else { limit + 1 + i64::try_from(but.len()).unwrap_or(0) };
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query!(
            r#"WITH RECURSIVE met AS (
                 (SELECT s.tenant_id AS id, 1::bigint AS nth FROM turnmill.sessions s WHERE s.tenant_id > $1 ORDER BY s.tenant_id LIMIT 1)
                 UNION ALL
                 SELECT n.tenant_id, met.nth + 1 FROM met CROSS JOIN LATERAL (
                   SELECT s.tenant_id FROM turnmill.sessions s WHERE s.tenant_id > met.id ORDER BY s.tenant_id LIMIT 1) n
                 WHERE met.nth < $2),
               own AS MATERIALIZED (SELECT t.id FROM turnmill.tenants t WHERE t.id > $1 ORDER BY t.id LIMIT $2),
               -- Behind this one a walk that was cut short knows nothing.
               until AS (SELECT least((SELECT max(id) FROM met HAVING count(*) = $2), (SELECT max(id) FROM own HAVING count(*) = $2)) AS id)
               SELECT until.id AS until, f.id AS "id?"
               FROM until LEFT JOIN LATERAL (
                 SELECT u.id FROM (SELECT id FROM met UNION SELECT id FROM own) u
                 WHERE (until.id IS NULL OR u.id <= until.id) AND u.id <> ALL ($3) AND ($4::text IS NULL OR position($4 IN u.id) > 0)
                 ORDER BY u.id LIMIT $5) f ON true
               ORDER BY f.id"#,
            after,
            walk,
            but,
            text,
            limit + 1,
        )
        .fetch_all(&mut tx)
        .await;
        let rows = tx.done(rows).await?;
        let until = rows.first().and_then(|row| row.until.clone());
        let mut ids: Vec<String> = rows.into_iter().filter_map(|row| row.id).collect();
        let more = i64::try_from(ids.len()).unwrap_or(0) > limit;
        ids.truncate(usize::try_from(limit).unwrap_or(0));
        let next = if more { ids.last().cloned() } else { until };
        Ok(TenantPage { gave_up: !more && next.is_some(), ids, next })
    }

    /// These tenants, in this order; also those of which nothing is known.
    pub async fn tenant_cards(&self, ids: &[String]) -> sqlx::Result<Vec<TenantCard>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            TenantCard,
            r#"SELECT i.id AS "id!", coalesce(t.weight, 1) AS "weight!", t.running_max AS "running_max?",
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = i.id AND j.state = 'leased') AS "running!",
                 t.budget_usd_per_day::float8 AS "budget_usd_per_day?", turnmill.spent_today(i.id)::float8 AS "today_usd!",
                 (t.id IS NOT NULL OR EXISTS (SELECT FROM turnmill.sessions s WHERE s.tenant_id = i.id)) AS "known!"
               FROM unnest($1::text[]) WITH ORDINALITY i (id, nth) LEFT JOIN turnmill.tenants t ON t.id = i.id ORDER BY i.nth"#,
            ids
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// What turns of these tenants wait for, most first. One of each kind is asked `wait_reason`, as for `waits_by_pool`.
    pub async fn waits_by_tenant(&self, ids: &[String]) -> sqlx::Result<Vec<(String, Wait)>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query!(
            r#"WITH live AS MATERIALIZED (
                 SELECT j.* FROM unnest($1::text[]) i (id) CROSS JOIN turnmill.pools p CROSS JOIN LATERAL (
                   SELECT j.turn_id, j.session_id, j.pool, j.tenant_id, j.queued_at, j.run_at > clock_timestamp() AS later FROM turnmill.jobs j
                   WHERE j.pool = p.name AND j.state = 'ready' AND j.tenant_id = i.id ORDER BY j.priority DESC, j.queued_at LIMIT $2) j),
               kind AS MATERIALIZED (
                 SELECT l.tenant_id, count(*) AS n, min(l.queued_at) AS oldest_at, min(l.turn_id) AS turn_id
                 FROM live l
                 LEFT JOIN (SELECT session_id, min(state) AS state FROM turnmill.slots WHERE state IN ('warm', 'pausing') GROUP BY session_id) k
                   ON k.session_id = l.session_id
                 GROUP BY l.tenant_id, l.pool, l.later, k.state),
               asked AS MATERIALIZED (SELECT kind.*, turnmill.wait_reason(kind.turn_id) AS reason FROM kind)
               SELECT tenant_id AS "tenant_id!", reason, sum(n)::bigint AS "turns!", min(oldest_at) AS oldest_at
               FROM asked GROUP BY 1, 2 ORDER BY 3 DESC, 2"#,
            ids,
            TENANT_COUNTED_MAX,
        )
        .fetch_all(&mut tx)
        .await;
        let rows = tx.done(rows).await?;
        Ok(rows.into_iter().map(|row| (row.tenant_id, Wait { reason: row.reason, turns: row.turns, oldest_at: row.oldest_at })).collect())
    }

    /// Makes or changes a tenant on somebody's word; `false`: it is so already, and nothing was done.
    pub async fn change_tenant_by(&self, actor: &Actor, id: &str, change: TenantChange) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        let changed = change_by(&mut tx, actor, id, change).await;
        tx.done(changed).await
    }
}

/// What is set of a tenant, as the audit has it; one without a row has what everybody has.
async fn settings(tx: &mut Tx, id: &str) -> sqlx::Result<Map<String, Value>> {
    let row = sqlx::query!(
        "SELECT weight, running_max, budget_usd_per_day::float8 AS budget_usd_per_day FROM turnmill.tenants WHERE id = $1 FOR NO KEY UPDATE",
        id
    )
    .fetch_optional(tx)
    .await?;
    let (weight, most, budget) = row.map_or((1.0, None, None), |row| (row.weight, row.running_max, row.budget_usd_per_day));
    let now = json!({ "weight": weight, "running_max": most, "budget_usd_per_day": budget });
    Ok(now.as_object().cloned().unwrap_or_default())
}

async fn change_by(tx: &mut Tx, actor: &Actor, id: &str, change: TenantChange) -> sqlx::Result<bool> {
    let before = settings(tx, id).await?;
    change_tenant(tx, id, change).await?;
    let after = settings(tx, id).await?;
    let changed: Map<String, Value> = after
        .into_iter()
        .filter(|(key, value)| before.get(key) != Some(value))
        .map(|(key, to)| (key.clone(), json!([before.get(&key), to])))
        .collect();
    if changed.is_empty() {
        return Ok(false);
    }
    note(tx, actor, Act { verb: "set", kind: "tenant", subject: id }, Value::Object(changed)).await?;
    Ok(true)
}
