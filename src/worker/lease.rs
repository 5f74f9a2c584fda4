//! The process's right to act. The database's clock decides who may adopt; this side only makes sure to
//! stop earlier, by a monotonic deadline taken *before* each renewal is sent.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Worker;
use crate::store::Renewal;

/// One stretch of time in which the process holds its lease. Its token is cancelled when it ends; whatever
/// acts for a turn stops then, without touching the sandbox.
#[derive(Debug)]
pub struct Lease {
    era: watch::Sender<Option<CancellationToken>>,
}

impl Lease {
    /// Not held until the first renewal.
    pub fn new() -> Self {
        Self { era: watch::Sender::new(None) }
    }

    /// Waits until the lease is held; the token ends with it.
    pub async fn held(&self) -> CancellationToken {
        let mut era = self.era.subscribe();
        let held = era.wait_for(Option::is_some).await.map(|token| token.clone());
        match held {
            Ok(Some(token)) => token,
            _ => std::future::pending().await,
        }
    }

    /// The token, if it is held now.
    pub fn now(&self) -> Option<CancellationToken> {
        self.era.borrow().clone()
    }

    /// From now on it is held.
    pub fn begin(&self) {
        self.era.send_if_modified(|era| {
            let begins = era.is_none();
            if begins {
                *era = Some(CancellationToken::new());
            }
            begins
        });
    }

    fn end(&self) -> bool {
        match self.era.send_replace(None) {
            Some(token) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

/// Renews the lease until `stop`; ends the era when it can't be renewed in time.
pub(super) async fn keep(worker: Worker, stop: CancellationToken) {
    let settings = &worker.config.worker;
    // What a suspended process or a slow clock may take from us.
    let margin = settings.lease / 10;
    let mut deadline: Option<Instant> = None;
    loop {
        let sent = Instant::now();
        let answer =
            timeout_at(deadline.unwrap_or(sent + settings.lease), worker.store.renew(&worker.id, &worker.fleet_id, settings.lease)).await;
        let pause = match answer {
            Ok(Ok(Renewal::Refused)) => {
                error!(worker.id = %worker.id, "This database is another fleet's now; worker {} ends and touches nothing", worker.id);
                worker.lease.end();
                stop.cancel();
                break;
            }
            Ok(Ok(Renewal::Drain)) => {
                info!(worker.id = %worker.id, "Somebody wants worker {} to end: it drains as at SIGTERM", worker.id);
                stop.cancel();
                break;
            }
            Ok(Ok(renewal)) => {
                if renewal == Renewal::Anew && deadline.take().is_some() && worker.lease.end() {
                    warn!(worker.id = %worker.id, "Worker {} lost its lease and lets go of its turns", worker.id);
                }
                deadline = Some(sent + settings.lease - margin);
                worker.lease.begin();
                settings.heartbeat
            }
            Ok(Err(error)) => {
                warn!(worker.id = %worker.id, %error, "Worker {} could not renew its lease", worker.id);
                settings.heartbeat / 8
            }
            Err(_) => Duration::ZERO,
        };
        if deadline.is_some_and(|d| Instant::now() >= d) {
            deadline = None;
            if worker.lease.end() {
                warn!(worker.id = %worker.id, "Worker {} fences itself: its lease could not be renewed; the agents run on", worker.id);
            }
        }
        let until = deadline.map_or(sent + pause.max(Duration::from_millis(50)), |d| d.min(sent + pause));
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(until.saturating_duration_since(Instant::now())) => {}
        }
    }
    worker.lease.end();
    info!(worker.id = %worker.id, "Worker {} renews no more", worker.id);
}
