//! Tenants: whose turns start next, how many may run, what they may spend.

use super::Store;
use super::db::Tx;

/// A tenant with a weight, a limit or a budget of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// As in `sessions.tenant_id`.
    pub id: String,
    /// Its share while others wait too.
    pub weight: f64,
    /// Most of its turns that run at once.
    pub running_max: Option<i32>,
    /// Its turns that run.
    pub running: i64,
    /// Its turns that could start.
    pub ready: i64,
    /// Most that it may spend on a UTC day, in dollars.
    pub budget_usd_per_day: Option<f64>,
    /// What it has spent on this one.
    pub today_usd: f64,
}

/// What to change of a tenant; `None` leaves it. One that doesn't exist is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct TenantChange {
    /// Its share.
    pub weight: Option<f64>,
    /// Its limit; `Some(None)` = none.
    pub running_max: Option<Option<i32>>,
    /// Its budget of a UTC day, in dollars; `Some(None)` = none.
    pub budget_usd_per_day: Option<Option<f64>>,
}

impl Store {
    /// Makes or changes a tenant; takes effect with the next claim.
    pub async fn set_tenant(&self, id: &str, change: TenantChange) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        let done = change_tenant(&mut tx, id, change).await;
        tx.done(done).await
    }

    /// All tenants with a weight, a limit or a budget of their own.
    pub async fn tenants(&self) -> sqlx::Result<Vec<Tenant>> {
        sqlx::query_as!(
            Tenant,
            r#"SELECT t.id, t.weight, t.running_max,
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = t.id AND j.state = 'leased') AS "running!",
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = t.id AND j.state = 'ready') AS "ready!",
                 t.budget_usd_per_day::float8 AS budget_usd_per_day, turnmill.spent_today(t.id)::float8 AS "today_usd!"
               FROM turnmill.tenants t ORDER BY t.id"#
        )
        .fetch_all(&self.pool)
        .await
    }
}

/// Makes or changes a tenant, with whatever else the transaction does.
pub(super) async fn change_tenant(tx: &mut Tx, id: &str, change: TenantChange) -> sqlx::Result<()> {
    let (running_max, unlimited) = (change.running_max.flatten(), change.running_max == Some(None));
    sqlx::query!("SELECT turnmill.set_tenant($1, $2, $3, $4)", id, change.weight, running_max, unlimited).execute(&mut *tx).await?;
    if let Some(budget) = change.budget_usd_per_day {
        sqlx::query!("SELECT turnmill.set_tenant_budget($1, $2::float8::numeric)", id, budget).execute(&mut *tx).await?;
    }
    Ok(())
}
