//! `turnmill worker`: one process of the fleet.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::ExposeSecret as _;
use tokio_util::task::TaskTracker;

use super::DatabaseArg;
use super::signals::stop_on_signal;
use crate::config::Config;
use crate::store::Store;

/// How long it waits for a Postgres that refuses connections: one that is just restarted costs no start of a worker.
const PATIENCE: Duration = Duration::from_secs(5);

/// Take turns from the queue and run them, until SIGTERM.
#[derive(Debug, Args)]
pub struct Worker {
    #[command(flatten)]
    database: DatabaseArg,
    /// Turns to run at once
    #[arg(long, value_name = "N")]
    turns_max: Option<std::num::NonZeroU32>,
}

impl Worker {
    /// Runs it.
    pub async fn run(self, mut config: Config) -> anyhow::Result<ExitCode> {
        if let Some(turns_max) = self.turns_max {
            config.worker.turns_max = turns_max;
        }
        if let Some(url) = self.database.database_url {
            config.database.url = url.into();
        }
        let url = config.database.url.expose_secret();
        anyhow::ensure!(!url.is_empty(), "DATABASE_URL is not set; a worker needs the fleet's Postgres");
        anyhow::ensure!(
            !config.e2b.api_key.expose_secret().is_empty(),
            "E2B_API_KEY is not set; a worker needs an E2B account, or a server like it (E2B_API_URL)"
        );
        let store = Store::connect(&config.database.options(url), PATIENCE).await?;
        let stop = stop_on_signal()?;
        let background = TaskTracker::new();
        let keyring = super::keyring(&config)?;
        let worker =
            crate::worker::Worker::register(store, Arc::new(config), keyring, &background).await.context("the worker can't start")?;
        worker.run(stop).await?;
        Ok(ExitCode::SUCCESS)
    }
}
