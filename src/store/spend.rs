//! What was spent, as operators look at it: by day, and the most expensive of each kind; from the roll-up and what is not in it
//! yet (the view `spend`), so that it costs the same whatever there was. And what they do about it, with its entry in the audit.

use chrono::NaiveDate;
use serde_json::json;

use super::audit::{Act, note};
use super::db::Tx;
use super::fleet::change_fleet;
use super::{Actor, By, FleetChange, Store};

/// Which charges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpendFilter {
    /// UTC days up to today, with it.
    pub days: i32,
    /// Of this tenant only.
    pub tenant: Option<String>,
    /// In this pool only.
    pub pool: Option<String>,
}

/// One UTC day.
#[derive(Debug, Clone, PartialEq)]
pub struct SpendDay {
    /// Which.
    pub day: NaiveDate,
    /// Dollars for models.
    pub model_usd: f64,
    /// Dollars for sandboxes.
    pub sandbox_usd: f64,
    /// Turns that ended.
    pub turns: i64,
    /// Attempts whose model cost nobody knows.
    pub unpriced: i64,
}

impl SpendDay {
    /// Both.
    pub fn usd(&self) -> f64 {
        self.model_usd + self.sandbox_usd
    }
}

/// The sum of one tenant, pool or model.
#[derive(Debug, Clone, PartialEq)]
pub struct SpendSum {
    /// Its id or name; empty: no tenant, or sandboxes.
    pub key: String,
    /// Dollars for models.
    pub model_usd: f64,
    /// Dollars for sandboxes.
    pub sandbox_usd: f64,
    /// Both.
    pub usd: f64,
    /// Turns that ended; a model's: none, as turns may use several.
    pub turns: i64,
    /// Hours that sandboxes ran.
    pub sandbox_hours: f64,
    /// Tokens that models read, from the cache as well.
    pub tokens_in: i64,
    /// Tokens that they wrote.
    pub tokens_out: i64,
    /// How many there are, shown or not.
    pub of: i64,
}

impl Store {
    /// Each of the last days, oldest first, also those on which nothing was spent.
    pub async fn spend_days(&self, filter: &SpendFilter) -> sqlx::Result<Vec<SpendDay>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            SpendDay,
            r#"WITH today AS (SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS day)
               SELECT d.day AS "day!", coalesce(s.model_usd, 0) AS "model_usd!", coalesce(s.sandbox_usd, 0) AS "sandbox_usd!",
                 coalesce(s.turns, 0) AS "turns!", coalesce(s.unpriced, 0) AS "unpriced!"
               FROM (SELECT today.day - n AS day FROM today, generate_series(0, $1 - 1) n) d
               LEFT JOIN (
                 SELECT day, sum(usd) FILTER (WHERE kind = 'model')::float8 AS model_usd, sum(usd) FILTER (WHERE kind <> 'model')::float8 AS sandbox_usd,
                   sum(turns)::bigint AS turns, sum(unpriced)::bigint AS unpriced
                 FROM turnmill.spend
                 WHERE day > (SELECT day - $1 FROM today) AND ($2::text IS NULL OR tenant_id = $2) AND ($3::text IS NULL OR pool = $3)
                 GROUP BY day) s USING (day)
               ORDER BY 1"#,
            filter.days,
            filter.tenant,
            filter.pool,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// The most expensive tenants, pools or models of the last days.
    pub async fn spend_sums(&self, by: By, filter: &SpendFilter, limit: i64) -> sqlx::Result<Vec<SpendSum>> {
        let mut tx = self.pool.glance().await?;
        let rows = sqlx::query_as!(
            SpendSum,
            r#"SELECT CASE $1 WHEN 'tenant' THEN tenant_id WHEN 'pool' THEN pool ELSE model END AS "key!",
                 coalesce(sum(usd) FILTER (WHERE kind = 'model'), 0)::float8 AS "model_usd!",
                 coalesce(sum(usd) FILTER (WHERE kind <> 'model'), 0)::float8 AS "sandbox_usd!", sum(usd)::float8 AS "usd!",
                 sum(turns)::bigint AS "turns!", (sum(seconds) / 3600)::float8 AS "sandbox_hours!",
                 sum(input_tokens + cache_read_tokens + cache_write_tokens)::bigint AS "tokens_in!", sum(output_tokens)::bigint AS "tokens_out!",
                 count(*) OVER () AS "of!"
               FROM turnmill.spend
               WHERE day > (statement_timestamp() AT TIME ZONE 'UTC')::date - $2::integer AND ($3::text IS NULL OR tenant_id = $3)
                 AND ($4::text IS NULL OR pool = $4)
               GROUP BY 1 ORDER BY sum(usd) DESC, 1 LIMIT $5"#,
            by.name(),
            filter.days,
            filter.tenant,
            filter.pool,
            limit,
        )
        .fetch_all(&mut tx)
        .await;
        tx.done(rows).await
    }

    /// Stops or resumes the fleet or sets its budget, on somebody's word; `false`: it is so already, and nothing was done.
    pub async fn change_fleet_by(&self, actor: &Actor, change: &FleetChange) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        let changed = change_by(&mut tx, actor, change).await;
        tx.done(changed).await
    }
}

async fn change_by(tx: &mut Tx, actor: &Actor, change: &FleetChange) -> sqlx::Result<bool> {
    let before =
        sqlx::query!("SELECT name, budget_usd_per_day::float8 AS budget_usd_per_day, stopped_reason FROM turnmill.fleet FOR NO KEY UPDATE")
            .fetch_one(&mut *tx)
            .await?;
    let (verb, detail) = match change {
        FleetChange::Stop(_) if before.stopped_reason.is_some() => return Ok(false),
        FleetChange::Resume if before.stopped_reason.is_none() => return Ok(false),
        FleetChange::Budget(usd) if *usd == before.budget_usd_per_day => return Ok(false),
        FleetChange::Stop(reason) => ("stop", json!({ "stopped": [null, reason] })),
        FleetChange::Resume => ("resume", json!({ "stopped": [before.stopped_reason, null] })),
        FleetChange::Budget(usd) => ("set", json!({ "budget_usd_per_day": [before.budget_usd_per_day, usd] })),
    };
    change_fleet(tx, change).await?;
    note(tx, actor, Act { verb, kind: "fleet", subject: &before.name }, detail).await?;
    Ok(true)
}
