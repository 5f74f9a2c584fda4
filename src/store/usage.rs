//! What was spent, summed: read from the roll-up where that has it, else from the ledger. Both always say the same.

use chrono::NaiveDate;

use super::Store;

/// Most rows of one answer.
const ROWS_MAX: i64 = 10_000;

/// What sums are made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// UTC days.
    Day,
    /// Tenants; empty: none.
    Tenant,
    /// Projects.
    Project,
    /// Pools.
    Pool,
    /// Models; empty: sandboxes.
    Model,
    /// Sessions.
    Session,
    /// Turns; empty: sandboxes that were kept for a session.
    Turn,
}

impl By {
    /// Each with its name.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("day", Self::Day),
        ("tenant", Self::Tenant),
        ("project", Self::Project),
        ("pool", Self::Pool),
        ("model", Self::Model),
        ("session", Self::Session),
        ("turn", Self::Turn),
    ];

    /// As it is asked for.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, by)| *by == self).map_or("", |(name, _)| name)
    }
}

/// Which charges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// The first UTC day; `None`: 29 days before the last.
    pub since: Option<NaiveDate>,
    /// The last; `None`: today.
    pub until: Option<NaiveDate>,
    /// Of this tenant only; `Some("")`: of none.
    pub tenant_id: Option<String>,
    /// Of this project only.
    pub project_id: Option<String>,
    /// Of this session only.
    pub session_id: Option<String>,
    /// Rows at most; `None`, and never more than: 10,000.
    pub limit: Option<i64>,
}

impl UsageFilter {
    fn rows(&self) -> i64 {
        self.limit.unwrap_or(ROWS_MAX).min(ROWS_MAX)
    }
}

/// One sum.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Usage {
    /// Over what: a day, an id, a name.
    pub key: String,
    /// Turns that ended.
    pub turns: i64,
    /// Attempts whose model cost nobody knows: they were killed, or their sandbox vanished.
    pub unpriced: i64,
    /// Tokens that models read anew.
    pub input_tokens: i64,
    /// Tokens that they wrote.
    pub output_tokens: i64,
    /// Tokens read from the prompt cache.
    pub cache_read_tokens: i64,
    /// Tokens written to it.
    pub cache_write_tokens: i64,
    /// Seconds that sandboxes ran, also kept ones.
    pub sandbox_s: f64,
    /// Dollars for models, as agents estimate it.
    pub model_usd: f64,
    /// Dollars for sandboxes, at their pools' rates.
    pub sandbox_usd: f64,
    /// Both.
    pub usd: f64,
}

impl Store {
    /// The UTC day that charges of this moment are booked on.
    pub async fn today(&self) -> sqlx::Result<NaiveDate> {
        let row = sqlx::query_scalar!(r#"SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS "today!""#);
        row.fetch_one(&self.pool).await
    }

    /// Sums of charges; days in their order, all else by what it cost, dearest first. The first `limit`.
    pub async fn usage(&self, by: By, filter: &UsageFilter) -> sqlx::Result<Vec<Usage>> {
        match by {
            By::Project | By::Session | By::Turn => self.usage_of_ledger(by, filter).await,
            _ if filter.project_id.is_some() || filter.session_id.is_some() => self.usage_of_ledger(by, filter).await,
            _ => self.usage_of_roll_up(by, filter).await,
        }
    }

    async fn usage_of_roll_up(&self, by: By, filter: &UsageFilter) -> sqlx::Result<Vec<Usage>> {
        sqlx::query_as!(
            Usage,
            r#"SELECT CASE $1 WHEN 'day' THEN day::text WHEN 'tenant' THEN tenant_id WHEN 'pool' THEN pool ELSE model END AS "key!",
                 sum(turns)::bigint AS "turns!", sum(unpriced)::bigint AS "unpriced!",
                 sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
                 sum(cache_read_tokens)::bigint AS "cache_read_tokens!", sum(cache_write_tokens)::bigint AS "cache_write_tokens!",
                 sum(seconds)::float8 AS "sandbox_s!",
                 coalesce(sum(usd) FILTER (WHERE kind = 'model'), 0)::float8 AS "model_usd!",
                 coalesce(sum(usd) FILTER (WHERE kind <> 'model'), 0)::float8 AS "sandbox_usd!", sum(usd)::float8 AS "usd!"
               FROM turnmill.spend
               WHERE day BETWEEN coalesce($2::date, coalesce($3::date, (statement_timestamp() AT TIME ZONE 'UTC')::date) - 29)
                     AND coalesce($3, (statement_timestamp() AT TIME ZONE 'UTC')::date) AND ($4::text IS NULL OR tenant_id = $4)
               GROUP BY 1 ORDER BY CASE WHEN $1 = 'day' THEN 0 ELSE sum(usd) END DESC, 1 LIMIT $5"#,
            by.name(),
            filter.since,
            filter.until,
            filter.tenant_id,
            filter.rows(),
        )
        .fetch_all(&self.pool)
        .await
    }

    async fn usage_of_ledger(&self, by: By, filter: &UsageFilter) -> sqlx::Result<Vec<Usage>> {
        sqlx::query_as!(
            Usage,
            r#"SELECT CASE $1 WHEN 'day' THEN day::text WHEN 'tenant' THEN tenant_id WHEN 'pool' THEN pool WHEN 'model' THEN model
                   WHEN 'project' THEN project_id WHEN 'session' THEN session_id ELSE coalesce(turn_id, '') END AS "key!",
                 sum(turns)::bigint AS "turns!", sum(unpriced)::bigint AS "unpriced!",
                 sum(input_tokens)::bigint AS "input_tokens!", sum(output_tokens)::bigint AS "output_tokens!",
                 sum(cache_read_tokens)::bigint AS "cache_read_tokens!", sum(cache_write_tokens)::bigint AS "cache_write_tokens!",
                 sum(seconds)::float8 AS "sandbox_s!",
                 coalesce(sum(usd) FILTER (WHERE kind = 'model'), 0)::float8 AS "model_usd!",
                 coalesce(sum(usd) FILTER (WHERE kind <> 'model'), 0)::float8 AS "sandbox_usd!", sum(usd)::float8 AS "usd!"
               FROM turnmill.ledger
               WHERE day BETWEEN coalesce($2::date, coalesce($3::date, (statement_timestamp() AT TIME ZONE 'UTC')::date) - 29)
                     AND coalesce($3, (statement_timestamp() AT TIME ZONE 'UTC')::date)
                     AND ($4::text IS NULL OR tenant_id = $4) AND ($5::text IS NULL OR project_id = $5)
                     AND ($6::text IS NULL OR session_id = $6)
               GROUP BY 1 ORDER BY CASE WHEN $1 = 'day' THEN 0 ELSE sum(usd) END DESC, 1 LIMIT $7"#,
            by.name(),
            filter.since,
            filter.until,
            filter.tenant_id,
            filter.project_id,
            filter.session_id,
            filter.rows(),
        )
        .fetch_all(&self.pool)
        .await
    }
}
