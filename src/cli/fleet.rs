//! `turnmill tenant` and `turnmill fleet`: who may run and spend how much.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{paint, store};
use crate::config::Config;
use crate::store::{FleetChange, TenantChange};

/// Show and change tenants.
#[derive(Debug, Args)]
pub struct Tenants {
    #[command(subcommand)]
    what: Option<TenantCommand>,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Show tenants with a weight or a limit of their own (the default)
    List,
    /// Make a tenant, or change one; takes effect with the next claim
    Set(TenantSet),
}

#[derive(Debug, Args)]
struct TenantSet {
    /// The tenant, as in sessions.tenant_id
    id: String,
    /// Its share of a pool while others wait too; all others have 1
    #[arg(long, value_parser = weight)]
    weight: Option<f64>,
    /// Most of its turns that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..), conflicts_with = "unlimited")]
    running_max: Option<i32>,
    /// No limit of running turns
    #[arg(long)]
    unlimited: bool,
    /// What its turns may cost on a UTC day, model and sandboxes, before no other starts until the next; "none" for no limit
    #[arg(long, value_name = "USD", value_parser = dollars)]
    budget_usd_per_day: Option<Dollars>,
}

fn weight(value: &str) -> Result<f64, String> {
    value.parse().ok().filter(|w: &f64| *w > 0.0 && *w <= 1e6).ok_or_else(|| "give a number above 0, up to 1000000".to_owned())
}

impl Tenants {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        if let Some(TenantCommand::Set(set)) = self.what {
            let running_max = if set.unlimited { Some(None) } else { set.running_max.map(Some) };
            let budget_usd_per_day = set.budget_usd_per_day.map(|usd| usd.0);
            store.set_tenant(&set.id, TenantChange { weight: set.weight, running_max, budget_usd_per_day }).await?;
        }
        for tenant in store.tenants().await? {
            let today = spent_of(tenant.today_usd, tenant.budget_usd_per_day);
            let limit = tenant.running_max.map(|max| format!(" of at most {max}")).unwrap_or_default();
            anstream::println!(
                "{}{}{}  weight {}, {} running{limit}, {} ready, {today}",
                paint::BOLD,
                paint::line(&tenant.id),
                paint::OFF,
                tenant.weight,
                tenant.running,
                tenant.ready
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What was spent today, and of how much.
fn spent_of(usd: f64, budget: Option<f64>) -> String {
    let over = if budget.is_some_and(|budget| usd >= budget) { ": no turn starts until midnight UTC" } else { "" };
    format!("${usd:.2}{} today{over}", budget.map(|budget| format!(" of ${budget:.2}")).unwrap_or_default())
}

/// This database's fleet.
#[derive(Debug, Args)]
pub struct FleetArgs {
    #[command(subcommand)]
    what: Option<FleetCommand>,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    /// Show the fleet's name, id and workers (the default)
    Show,
    /// Set what all turns together may cost on a UTC day
    Set {
        /// Model and sandboxes, before no turn starts until the next day; "none" for no limit
        #[arg(long, value_name = "USD", value_parser = dollars)]
        budget_usd_per_day: Dollars,
    },
    /// Start no turn any more, from this moment on; what runs goes on to its end
    Stop {
        /// Why, for whoever is on call
        #[arg(long)]
        reason: String,
    },
    /// Start turns again
    Resume,
    /// Give this database a new fleet id and name, so that it touches none of its original's sandboxes
    Fork {
        /// What workers are then configured with (TURNMILL_FLEET)
        #[arg(value_parser = super::admin::name)]
        name: String,
    },
}

impl FleetArgs {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        match self.what {
            None | Some(FleetCommand::Show) => {}
            Some(FleetCommand::Fork { name }) => drop(store.fork_fleet(&name).await?),
            Some(FleetCommand::Set { budget_usd_per_day }) => store.change_fleet(&FleetChange::Budget(budget_usd_per_day.0)).await?,
            Some(FleetCommand::Stop { reason }) => store.change_fleet(&FleetChange::Stop(reason)).await?,
            Some(FleetCommand::Resume) => store.change_fleet(&FleetChange::Resume).await?,
        }
        let (fleet, money) = (store.fleet().await?, store.fleet_money().await?);
        let spent = spent_of(money.today_usd, money.budget_usd_per_day);
        anstream::println!("{}{}{}  {}, {spent}", paint::BOLD, paint::line(&fleet.name), paint::OFF, fleet.id);
        if let (Some(at), Some(reason)) = (money.stopped_at, money.stopped_reason) {
            anstream::println!(
                "  stopped since {}: {}; no turn starts until: turnmill fleet resume",
                paint::time(at),
                paint::line(&reason)
            );
        }
        for worker in store.workers().await? {
            let state = match (worker.state.as_str(), worker.alive) {
                ("gone", _) => "gone",
                (_, false) => "lease ran out",
                (state, true) => state,
            };
            let (id, version) = (paint::line(&worker.id), paint::line(&worker.version));
            anstream::println!("  {id}  {state}, {}/{} turns, {version}", worker.turns, worker.turns_max);
        }
        for correction in store.corrections(10).await? {
            let done = correction.done_at.map_or("within its grace".to_owned(), |at| format!("put right {}", paint::time(at)));
            let (subject, reason) = (paint::line(&correction.subject), paint::line(&correction.reason));
            anstream::println!("  {} {subject}: {reason}; {done}", correction.kind);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An amount, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dollars(pub Option<f64>);

/// Reads one: a number of dollars, or "none".
pub(super) fn dollars(value: &str) -> Result<Dollars, String> {
    let amount = value.strip_prefix('$').unwrap_or(value).parse().ok().filter(|usd| (0.0..=1e6).contains(usd));
    match (value, amount) {
        ("none", _) => Ok(Dollars(None)),
        (_, Some(usd)) => Ok(Dollars(Some(usd))),
        _ => Err("give a number of dollars, as 2.50, or \"none\"".to_owned()),
    }
}

/// The same, but not nothing.
pub(super) fn some_dollars(value: &str) -> Result<Dollars, String> {
    dollars(value).and_then(|usd| if usd.0 == Some(0.0) { Err("give more than 0, or \"none\"".to_owned()) } else { Ok(usd) })
}
