//! Tenants: whose turns start next, and how many may run.

use super::Store;

/// A tenant with a weight or a limit of its own.
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
}

/// What to change of a tenant; `None` leaves it. One that doesn't exist is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct TenantChange {
    /// Its share.
    pub weight: Option<f64>,
    /// Its limit; `Some(None)` = none.
    pub running_max: Option<Option<i32>>,
}

impl Store {
    /// Makes or changes a tenant; takes effect with the next claim.
    pub async fn set_tenant(&self, id: &str, change: TenantChange) -> sqlx::Result<()> {
        sqlx::query!(
            "SELECT turnmill.set_tenant($1, $2, $3, $4)",
            id,
            change.weight,
            change.running_max.flatten(),
            change.running_max == Some(None),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// All tenants with a weight or a limit of their own.
    pub async fn tenants(&self) -> sqlx::Result<Vec<Tenant>> {
        sqlx::query_as!(
            Tenant,
            r#"SELECT t.id, t.weight, t.running_max,
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = t.id AND j.state = 'leased') AS "running!",
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = t.id AND j.state = 'ready') AS "ready!"
               FROM turnmill.tenants t ORDER BY t.id"#
        )
        .fetch_all(&self.pool)
        .await
    }
}
