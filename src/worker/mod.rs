//! A worker process: takes turns from the queue and copies what their agents say into Postgres.
//!
//! | file | part |
//! | --- | --- |
//! | `claims` | looks for work and hands it to the runtime |
//! | `runtime` | runs each turn under apalis' Monitor |
//! | `attempt` | one worker's time with one turn, on one page |
//! | `startup` | a sandbox for it, made or found again |
//! | `launch` | what the agent is started with |
//! | `network` | what its sandbox may reach, and the key on its way out |
//! | `credentials` | its key |
//! | `context` | the conversation of the turns before, brought in and kept |
//! | `follow` | journal → lines → blocks → writer, until the agent has ended |
//! | `journal` | a copy of all that the agent printed |
//! | `secrets` | what is masked in it |
//! | `writer` | commits the blocks of all turns together |
//! | `news` | tells readers of it |
//! | `previews` | what is not a block yet, for those who watch |
//! | `lease` | the process's right to act, on its own monotonic clock |
//! | `upkeep` | cancels, promotions, releases |
//! | `sampler` | the roll-up for the dashboard, likewise |
//! | `reconcile` | slots against what E2B says, one worker of the fleet at a time |
//!
//! The sandbox outlives all of this: whatever is dropped here at any point, another worker takes up at the
//! journal byte that is in the database.

mod attempt;
mod budget;
mod claims;
mod context;
mod credentials;
mod files;
mod follow;
mod journal;
mod launch;
mod lease;
mod lines;
mod network;
mod news;
mod previews;
mod pulse;
mod reconcile;
mod running;
pub mod runtime;
pub mod sampler;
mod secrets;
mod silence;
mod startup;
mod upkeep;
mod writer;

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::Config;
use crate::e2b;
use crate::keys::{Keyring, Vault};
use crate::store::Store;
use crate::webhooks::Courier;

pub use claims::Assignment;
pub use lease::Lease;
pub use running::Running;

/// What every part of a worker shares.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Host, pid and random part.
    pub id: Arc<str>,
    /// The database.
    pub store: Store,
    /// Settings.
    pub config: Arc<Config>,
    /// Where sandboxes come from.
    pub e2b: e2b::Client,
    /// Where agents' keys come from.
    pub keyring: Arc<Keyring>,
    /// Seals what is kept of users.
    pub vault: Vault,
    /// This fleet's random id.
    pub fleet_id: Arc<str>,
    /// The right to act.
    pub lease: Arc<Lease>,
    /// The turns that run here.
    pub running: Running,
    /// Wakes the claimer.
    pub wake: Arc<Notify>,
    /// Wakes the courier of webhooks.
    turn_ended: Arc<Notify>,
    writer: writer::Writer,
    news: news::News,
    previews: previews::Previews,
}

impl Worker {
    /// Checks schema and fleet and registers the process. `background` gets the writer's task.
    pub async fn register(store: Store, config: Arc<Config>, keyring: Keyring, background: &TaskTracker) -> anyhow::Result<Self> {
        store.check_schema().await?;
        let fleet = store.expect_fleet(&config.fleet).await?;
        let host = hostname();
        let id = format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let turns_max = i32::try_from(config.worker.turns_max.get()).unwrap_or(i32::MAX);
        let news = news::News::spawn(store.clone(), background);
        store.register_worker(&id, config.worker.lease, turns_max, &host).await?;
        Ok(Self {
            id: id.into(),
            e2b: client(&config)?,
            keyring: Arc::new(keyring),
            vault: Vault::new(config.keys.master.expose_secret())?,
            fleet_id: fleet.id.into(),
            lease: Arc::new(Lease::new()),
            running: Running::default(),
            wake: Arc::new(Notify::new()),
            turn_ended: Arc::new(Notify::new()),
            writer: writer::Writer::spawn(store.clone(), config.worker.flush, news.clone(), background),
            news,
            previews: previews::Previews::default(),
            store,
            config,
        })
    }

    /// Only renews the lease until `stop`: for a runtime with a handler of its own.
    pub async fn keep_lease(self, stop: CancellationToken) {
        lease::keep(self, stop).await;
    }

    /// Runs until `stop`, then hands every turn over and returns within moments, whatever they do.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        info!(worker.id = %self.id, fleet.id = %self.fleet_id, "Worker {} takes up to {} turns", self.id, self.config.worker.turns_max);
        let courier = Courier::new(self.store.clone(), self.config.webhooks.clone(), self.vault.clone())?;
        let background = TaskTracker::new();
        background.spawn(lease::keep(self.clone(), stop.clone()));
        background.spawn(upkeep::listen(self.clone(), stop.clone()));
        background.spawn(upkeep::watch_cancels(self.clone(), stop.clone()));
        background.spawn(upkeep::tidy(self.clone(), stop.clone()));
        background.spawn(reconcile::keep(self.clone(), stop.clone()));
        background.spawn(self.previews.clone().keep(self.store.clone(), stop.clone()));
        background.spawn(courier.run(self.turn_ended.clone(), stop.clone()));
        background.spawn(sampler::keep(self.clone(), stop.clone()));
        background.close();
        let worker = self.clone();
        let ended = runtime::run(&self, stop.clone(), move |assignment| {
            let worker = worker.clone();
            async move { Box::pin(attempt::run(&worker, assignment)).await }
        })
        .await;
        stop.cancel();
        background.wait().await;
        // The agents run on; whoever claims next adopts them at the byte that is committed.
        if let Err(error) = self.store.release_worker(&self.id).await {
            warn!(worker.id = %self.id, %error, "Worker {} could not give its lease back; its turns are adopted when it runs out", self.id);
        }
        info!(worker.id = %self.id, "Worker {} has handed over and ends", self.id);
        ended
    }
}

/// The client for the configured E2B account.
pub fn client(config: &Config) -> anyhow::Result<e2b::Client> {
    let e2b = &config.e2b;
    e2b::Client::new(e2b::Config {
        api_url: if e2b.api_url.is_empty() { format!("https://api.{}", e2b.domain) } else { e2b.api_url.clone() },
        domain: e2b.domain.clone(),
        sandbox_url: (!e2b.sandbox_url.is_empty()).then(|| e2b.sandbox_url.clone()),
        api_key: SecretString::clone(&e2b.api_key),
        headers: e2b.headers()?,
        keepalive: e2b.keepalive,
    })
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
