//! What turns have cost, summed.

use axum::Json as Answer;
use axum::extract::State;
use chrono::{Days, NaiveDate};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, UsageRead};
use super::blocks::within;
use super::problem::Problem;
use super::request::{Query, is_id};
use crate::store::{By, Usage, UsageFilter};

/// Most sums of one answer.
const SUMS_MAX: i64 = 5000;

/// Longest time of one answer.
const DAYS_MAX: u64 = 366;

/// What sums are made over.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// UTC days.
    #[default]
    Day,
    /// Tenants; key null: turns of none.
    Tenant,
    /// Projects.
    Project,
    /// Pools.
    Pool,
    /// Models; key null: sandboxes.
    Model,
    /// Sessions.
    Session,
    /// Turns; key null: sandboxes that were kept for a session.
    Turn,
}

impl From<Over> for By {
    fn from(over: Over) -> Self {
        match over {
            Over::Day => Self::Day,
            Over::Tenant => Self::Tenant,
            Over::Project => Self::Project,
            Over::Pool => Self::Pool,
            Over::Model => Self::Model,
            Over::Session => Self::Session,
            Over::Turn => Self::Turn,
        }
    }
}

/// Which charges, summed over what.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Over what: day, tenant, project, pool, model, session or turn
    #[serde(default)]
    #[param(inline, required = false)]
    by: Over,
    /// The first UTC day; 29 days before the last without it
    since: Option<NaiveDate>,
    /// The last UTC day; today without it
    until: Option<NaiveDate>,
    /// Only of this tenant
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]+$")]
    tenant_id: Option<String>,
    /// Only of this project
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]+$")]
    project_id: Option<String>,
    /// Only of this session
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]+$")]
    session_id: Option<String>,
    /// How many sums at most
    #[param(minimum = 1, maximum = 5000, default = 1000)]
    limit: Option<i64>,
}

/// Sums of what was booked.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageSums {
    /// Over what.
    by: Over,
    /// The first UTC day.
    since: NaiveDate,
    /// The last.
    until: NaiveDate,
    /// Days in their order; all else dearest first.
    data: Vec<UsageSum>,
    /// Whether there are more than `limit`: narrow the days or the filters.
    more: bool,
}

/// One of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageSum {
    /// The day, the id or the name.
    key: Option<String>,
    /// Turns that ended.
    turns: i64,
    /// Attempts that ended before their agent said what they cost: their tokens are in no sum.
    unpriced: i64,
    /// Tokens that models read anew.
    input_tokens: i64,
    /// Tokens that they wrote.
    output_tokens: i64,
    /// Tokens read from the prompt cache.
    cache_read_tokens: i64,
    /// Tokens written to it.
    cache_write_tokens: i64,
    /// Seconds that sandboxes ran, also those kept for a session.
    sandbox_s: f64,
    /// Dollars for models, as agents estimate it.
    model_usd: f64,
    /// Dollars for sandboxes, at their pools' rates.
    sandbox_usd: f64,
    /// Both.
    usd: f64,
}

impl From<Usage> for UsageSum {
    fn from(row: Usage) -> Self {
        Self {
            key: Some(row.key).filter(|key| !key.is_empty()),
            turns: row.turns,
            unpriced: row.unpriced,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cache_read_tokens: row.cache_read_tokens,
            cache_write_tokens: row.cache_write_tokens,
            sandbox_s: row.sandbox_s,
            model_usd: row.model_usd,
            sandbox_usd: row.sandbox_usd,
            usd: row.usd,
        }
    }
}

/// What have turns cost?
///
/// Of what the token reaches: one that is bound to a project or a tenant sees theirs only. Cheapest by day, tenant, pool or
/// model and without `project_id` and `session_id`: those sums are kept.
#[utoipa::path(get, path = "/v1/usage", tag = "Usage", operation_id = "usage", params(UsageQuery),
    responses((status = 200, description = "The sums, also of what was booked this moment", body = UsageSums)))]
pub async fn sums(
    caller: Caller<UsageRead>,
    State(app): State<App>,
    Query(query): Query<UsageQuery>,
) -> Result<Answer<UsageSums>, Problem> {
    let limit = within("limit", query.limit.unwrap_or(1000), 1, SUMS_MAX)?;
    let (since, until) = days(&query, app.store.today().await?)?;
    let bounds = caller.bounds;
    let mut reached = true;
    let mut only = |name: &str, bound: Option<String>, said: Option<String>| {
        if said.as_deref().is_some_and(|id| !is_id(id)) {
            return Err(Problem::parameter(name, format!("{name} must be a text of 1 to 255 characters, without NUL")));
        }
        // What is out of bounds is not there.
        reached &= bound.is_none() || said.is_none() || bound == said;
        Ok(bound.or(said))
    };
    let filter = UsageFilter {
        since: Some(since),
        until: Some(until),
        tenant_id: only("tenant_id", bounds.tenant_id, query.tenant_id)?,
        project_id: only("project_id", bounds.project_id, query.project_id)?,
        session_id: only("session_id", bounds.session_id, query.session_id)?,
        limit: Some(limit + 1),
    };
    let mut rows = if reached { app.store.usage(query.by.into(), &filter).await? } else { Vec::new() };
    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(0));
    Ok(Answer(UsageSums { by: query.by, since, until, data: rows.into_iter().map(UsageSum::from).collect(), more }))
}

/// The first and the last day that are asked for.
fn days(query: &UsageQuery, today: NaiveDate) -> Result<(NaiveDate, NaiveDate), Problem> {
    let until = query.until.unwrap_or(today);
    let month = until.checked_sub_days(Days::new(29)).unwrap_or(until);
    let since = query.since.unwrap_or(month);
    if since > until {
        return Err(Problem::parameter("since", format!("since is {since}, after until, {until}")));
    }
    if since.checked_add_days(Days::new(DAYS_MAX)).is_some_and(|end| end <= until) {
        return Err(Problem::parameter("since", format!("since and until span more than {DAYS_MAX} days; ask for less at once")));
    }
    Ok((since, until))
}
