//! Endpoints and their secrets, as the API and the commands make and change them.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::courier::seal_of_endpoint;
use super::guard::Guard;
use super::sign::new_secret;
use super::{EVENTS, Settings};
use crate::config::Config;
use crate::keys::Vault;
use crate::store::{NewEndpoint, Store};

/// An endpoint that somebody wants.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Checked: [`Guard::check_url`].
    pub url: String,
    /// For people.
    pub description: String,
    /// Of this project only.
    pub project_id: Option<String>,
    /// Of this tenant only.
    pub tenant_id: Option<String>,
    /// What it wants to hear of; empty: everything.
    pub events: Vec<String>,
}

/// A secret that was just made; it is shown this once.
#[derive(Debug, Clone)]
pub struct Made {
    /// Whose.
    pub endpoint_id: String,
    /// `whsec_…`
    pub secret: String,
    /// Until when the one before signs as well.
    pub old_secret_until: Option<DateTime<Utc>>,
}

/// Makes endpoints and secrets.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    vault: Vault,
    /// Which URLs may be an endpoint's.
    pub guard: Guard,
    /// Limits.
    pub settings: Settings,
}

impl Registry {
    /// Fails for settings that can't work.
    pub fn new(store: Store, config: &Config) -> anyhow::Result<Self> {
        let settings = config.webhooks.clone();
        let guard = Guard::new(&settings.allow_networks).context("webhooks.allow_networks")?;
        Ok(Self { store, vault: Vault::new(config.keys.master.expose_secret())?, guard, settings })
    }

    /// Whether secrets are sealed here. Else whoever reads the database can sign.
    pub fn seals(&self) -> bool {
        self.vault.sealing().is_some()
    }

    /// Makes an endpoint; `None`: there are too many of its bounds.
    pub async fn add(&self, wanted: Wanted) -> sqlx::Result<Option<Made>> {
        let id = format!("whe_{}", Uuid::now_v7());
        let (bytes, secret) = new_secret();
        let mut events = if wanted.events.is_empty() { EVENTS.map(str::to_owned).to_vec() } else { wanted.events };
        events.sort_unstable();
        events.dedup();
        let new = NewEndpoint {
            secret: self.vault.seal(&seal_of_endpoint(&id), bytes),
            id: id.clone(),
            url: wanted.url,
            description: wanted.description,
            project_id: wanted.project_id,
            tenant_id: wanted.tenant_id,
            events,
        };
        let made = self.store.add_endpoint(&new, i64::from(self.settings.endpoints_max)).await?;
        Ok(made.then_some(Made { endpoint_id: id, secret, old_secret_until: None }))
    }

    /// Another secret; the one before signs as well for `webhooks.rotation`, or for `keep`. `None`: there is no such endpoint.
    pub async fn rotate(&self, id: &str, keep: Option<Duration>) -> sqlx::Result<Option<Made>> {
        let (bytes, secret) = new_secret();
        let sealed = self.vault.seal(&seal_of_endpoint(id), bytes);
        let until = self.store.rotate_secret(id, &sealed, keep.unwrap_or(self.settings.rotation)).await?;
        Ok(until.map(|until| Made { endpoint_id: id.to_owned(), secret, old_secret_until: Some(until) }))
    }
}
