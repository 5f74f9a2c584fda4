//! The fleet's row: which workers may act in this database.

use chrono::{DateTime, Utc};

use super::Store;
use super::db::Tx;

/// All workers of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// Random; in the metadata of every sandbox.
    pub id: String,
    /// What workers are configured with.
    pub name: String,
}

/// What turns may spend, and whether they start.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetMoney {
    /// Most that all turns together may spend on a UTC day, in dollars.
    pub budget_usd_per_day: Option<f64>,
    /// What they have spent on this one.
    pub today_usd: f64,
    /// Since when no turn starts.
    pub stopped_at: Option<DateTime<Utc>>,
    /// Why.
    pub stopped_reason: Option<String>,
}

/// What to change of that.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetChange {
    /// The budget of a UTC day, in dollars; `None`: no limit.
    Budget(Option<f64>),
    /// No turn starts any more, for this reason; what runs goes on.
    Stop(String),
    /// Turns start again.
    Resume,
}

/// Changes it, with whatever else the transaction does.
pub(super) async fn change_fleet(tx: &mut Tx, change: &FleetChange) -> sqlx::Result<()> {
    match change {
        FleetChange::Budget(usd) => sqlx::query!("SELECT turnmill.set_fleet_budget($1::float8::numeric)", *usd).execute(&mut *tx).await?,
        FleetChange::Stop(reason) => sqlx::query!("SELECT turnmill.stop_fleet($1)", reason).execute(&mut *tx).await?,
        FleetChange::Resume => sqlx::query!("SELECT turnmill.resume_fleet()").execute(&mut *tx).await?,
    };
    Ok(())
}

impl Store {
    /// What turns may spend, and whether they start.
    pub async fn fleet_money(&self) -> sqlx::Result<FleetMoney> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            FleetMoney,
            r#"SELECT budget_usd_per_day::float8 AS budget_usd_per_day, turnmill.fleet_spent_today()::float8 AS "today_usd!", stopped_at,
                 stopped_reason FROM turnmill.fleet"#
        )
        .fetch_one(&mut tx)
        .await;
        tx.done(row).await
    }

    /// Changes it; holds from the next claim on.
    pub async fn change_fleet(&self, change: &FleetChange) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        let done = change_fleet(&mut tx, change).await;
        tx.done(done).await
    }

    /// Who this database says that it belongs to.
    pub async fn fleet(&self) -> sqlx::Result<Fleet> {
        sqlx::query_as!(Fleet, "SELECT id, name FROM turnmill.fleet").fetch_one(&self.pool).await
    }

    /// The fleet, if it is the one named; else an error that says what to do. A copy of production that
    /// staging opens by mistake must not kill production's sandboxes.
    pub async fn expect_fleet(&self, name: &str) -> anyhow::Result<Fleet> {
        let fleet = self.fleet().await?;
        anyhow::ensure!(
            fleet.name == name,
            "this database belongs to fleet \"{}\", but this process is configured for \"{name}\"; \
             set TURNMILL_FLEET={} if that is right, or, if this is a copy of another fleet's database, \
             give it an identity of its own: turnmill fleet fork {name}",
            fleet.name,
            fleet.name
        );
        Ok(fleet)
    }

    /// Gives the database a new fleet id and name. Slots are emptied without touching the sandboxes that
    /// they name: those are the original fleet's.
    pub async fn fork_fleet(&self, name: &str) -> anyhow::Result<Fleet> {
        let mut tx = self.pool.begin().await?;
        let alive = sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM turnmill.workers WHERE lease_until > clock_timestamp()"#);
        let alive = alive.fetch_one(&mut tx).await?;
        anyhow::ensure!(alive == 0, "{alive} workers run on this database; stop them first: they act for the fleet that it is now");
        let fleet = sqlx::query_as!(
            Fleet,
            "UPDATE turnmill.fleet SET id = turnmill.new_id('fleet'), name = $1, created_at = clock_timestamp()
             RETURNING id, name",
            name
        )
        .fetch_one(&mut tx)
        .await?;
        sqlx::query!(
            "UPDATE turnmill.jobs SET state = 'ready', worker_id = NULL, epoch = NULL, phase = NULL, slot_id = NULL,
                    attempt = attempt + 1, generation = generation + 1, journal_offset = 0, run_at = clock_timestamp(),
                    resumes = false, forgets = false, context_told = false
             WHERE state = 'leased'"
        )
        .execute(&mut tx)
        .await?;
        sqlx::query!(
            "UPDATE turnmill.slots SET state = 'free', epoch = NULL, due_at = NULL, turn_id = NULL, session_id = NULL,
                    nonce = NULL, create_request = NULL, asked_at = NULL, sandbox_id = NULL, sandbox_at = NULL, holds = NULL,
                    metered_at = NULL"
        )
        .execute(&mut tx)
        .await?;
        sqlx::query!("DELETE FROM turnmill.parked").execute(&mut tx).await?;
        sqlx::query!("UPDATE turnmill.duties SET worker_id = NULL, lease_until = clock_timestamp()").execute(&mut tx).await?;
        sqlx::query!("DELETE FROM turnmill.corrections").execute(&mut tx).await?;
        sqlx::query!("DELETE FROM turnmill.sandbox_kills").execute(&mut tx).await?;
        tx.commit().await?;
        Ok(fleet)
    }
}
