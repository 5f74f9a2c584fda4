//! Webhooks: whoever wants to is told over HTTP that a turn has ended, at least once, signed as
//! [Standard Webhooks](https://www.standardwebhooks.com) says.
//!
//! The row is in the outbox with the commit that ends the turn (a trigger, `migrations/0026`). Workers deliver:
//!
//! pending ──take──▶ under way ──2xx──▶ delivered ──▶ forgotten after `webhooks.keep`
//!    ▲                  │
//!    └─ later, in time ─┴─ too late ──▶ failed ──replay──▶ pending
//!
//! Taken is a row for a time, with an epoch; no transaction is open while a receiver thinks. Who dies in the middle, or is
//! late, changes nothing: the row is due again, with the same id.
//!
//! | file | part |
//! | --- | --- |
//! | `registry` | endpoints and their secrets, for the API and the commands |
//! | `courier` | takes what is due and reports what came of it |
//! | `post` | one request, and what its answer means |
//! | `pace` | when to try again: pure |
//! | `guard` | which addresses may be asked at all |
//! | `sign` | secrets and signatures |

mod courier;
mod guard;
mod pace;
mod post;
mod registry;
mod sign;

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

pub use courier::{Courier, seal_of_endpoint};
pub use guard::{Guard, Lookup};
pub use registry::{Made, Registry, Wanted};
pub use sign::{new_secret, signature};

/// What an endpoint can hear of.
pub const EVENTS: [&str; 3] = ["turn.completed", "turn.failed", "turn.cancelled"];

/// Longest URL of an endpoint.
pub const URL_MAX: usize = 2048;

/// Limits and rhythms of webhooks; see `config/default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Most requests of one worker at once; 0: it delivers nothing.
    pub deliveries_max: u32,
    /// Of these, to one endpoint.
    pub endpoint_deliveries_max: u32,
    /// How long one request may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Between two looks for what is due.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// First pause after a try that failed; it quadruples with each.
    #[serde(with = "humantime_serde")]
    pub retry_delay: Duration,
    /// Longest such pause.
    #[serde(with = "humantime_serde")]
    pub retry_delay_max: Duration,
    /// How long one delivery is tried.
    #[serde(with = "humantime_serde")]
    pub retry_for: Duration,
    /// Failures in a row after which an endpoint is disabled …
    pub disable_failures: u32,
    /// … if they have gone on for so long.
    #[serde(with = "humantime_serde")]
    pub disable_after: Duration,
    /// How long a secret signs beside the one that follows it.
    #[serde(with = "humantime_serde")]
    pub rotation: Duration,
    /// How long deliveries are kept once they have ended.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// Most endpoints of the same bounds.
    pub endpoints_max: u32,
    /// Networks that may be asked though they are private, with commas between.
    pub allow_networks: String,
}

impl Settings {
    /// Fails for settings that can't work.
    pub fn check(&self) -> anyhow::Result<()> {
        Guard::new(&self.allow_networks).context("webhooks.allow_networks")?;
        for (name, duration) in [
            ("timeout", self.timeout),
            ("poll", self.poll),
            ("retry_delay", self.retry_delay),
            ("retry_delay_max", self.retry_delay_max),
            ("retry_for", self.retry_for),
            ("keep", self.keep),
        ] {
            anyhow::ensure!(!duration.is_zero(), "webhooks.{name} must be more than zero");
        }
        for (name, number) in [
            ("endpoint_deliveries_max", self.endpoint_deliveries_max),
            ("disable_failures", self.disable_failures),
            ("endpoints_max", self.endpoints_max),
        ] {
            anyhow::ensure!(number > 0, "webhooks.{name} must be more than zero");
        }
        Ok(())
    }

    /// What runs on this machine may be told, too: for development.
    pub fn allow_loopback(&mut self) {
        let given = std::mem::take(&mut self.allow_networks);
        self.allow_networks = ["127.0.0.0/8", "::1/128", given.trim()].join(",");
    }
}
