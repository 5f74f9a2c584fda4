//! Looks for work: claims as many jobs as there are free permits, hands them to the runtime, then waits for
//! a hint, a freed slot or the poll.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::running::{Cancel, Guard};
use super::{Worker, upkeep};
use crate::store::{Claimed, Taken};

/// Most jobs of one claim statement.
const BATCH_MAX: usize = 100;

/// The first pause after something was found; it doubles up to `worker.poll` while nothing is.
const POLL_MIN: Duration = Duration::from_millis(20);

/// A claimed job on its way through the runtime, with what keeps it this process's business.
#[derive(Debug)]
pub struct Assignment {
    /// The job.
    pub job: Claimed,
    /// Cancelled when the process lost its lease, or stops: let go of the turn at once.
    pub era: CancellationToken,
    /// Changes when somebody wants the turn cancelled.
    pub cancel: watch::Receiver<Cancel>,
    _permit: OwnedSemaphorePermit,
    /// Keeps it on the list of what runs here.
    pub(super) listed: Guard,
}

/// Claims until `stop`. Permits are counted here, so that nothing is claimed that can't start now.
pub(super) async fn run(worker: Worker, jobs: mpsc::Sender<Assignment>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(worker.config.worker.turns_max.get() as usize));
    let mut pause = POLL_MIN;
    loop {
        let Some(free) = stop.run_until_cancelled(some_permits(&permits)).await else { return };
        let Some(era) = stop.run_until_cancelled(worker.lease.held()).await else { return };
        let asked = free.len();
        // Not cancelled half-way: a claim whose answer nobody reads would wait for `hand_over_strangers`.
        match worker.store.claim(&worker.id, i64::try_from(asked).unwrap_or(1)).await {
            Ok(claimed) => {
                let got = claimed.len();
                for (job, permit) in claimed.into_iter().zip(free) {
                    let assignment = assign(&worker, job, &era, &stop, permit);
                    if jobs.send(assignment).await.is_err() {
                        return;
                    }
                }
                if got > 0 {
                    pause = POLL_MIN;
                }
                if got == asked {
                    continue;
                }
            }
            Err(error) => warn!(worker.id = %worker.id, %error, "Worker {} could not look for turns", worker.id),
        }
        // There are permits left, so what waits does not wait for them.
        upkeep::evict_warm(&worker, &stop).await;
        give_back_strangers(&worker).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = worker.wake.notified() => pause = POLL_MIN,
            // Jittered, so that a fleet that was started together does not look together.
            () = sleep(pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => {
                pause = (pause * 2).min(worker.config.worker.poll);
            }
        }
    }
}

fn assign(worker: &Worker, job: Claimed, era: &CancellationToken, stop: &CancellationToken, permit: OwnedSemaphorePermit) -> Assignment {
    worker.news.of(&job.turn_id);
    let (listed, cancel) = worker.running.enter(&job.turn_id, job.epoch, job.cancel.clone());
    match job.taken {
        Taken::Claimed => info!(turn.id = %job.turn_id, turn.epoch = job.epoch, "Turn {} claimed", job.turn_id),
        Taken::Adopted => info!(
            turn.id = %job.turn_id, turn.epoch = job.epoch, journal.offset = job.journal_offset,
            "Turn {} adopted at byte {}", job.turn_id, job.journal_offset
        ),
    }
    let turn_era = era.child_token();
    // A stop ends the turn's time here as a lost lease does: by letting go.
    let (ends, stop) = (turn_era.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! { () = stop.cancelled() => ends.cancel(), () = ends.cancelled() => {} }
    });
    Assignment { job, era: turn_era, cancel, _permit: permit, listed }
}

/// Waits for one free permit and takes all that are free with it.
async fn some_permits(permits: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    let Ok(first) = permits.clone().acquire_owned().await else { return std::future::pending().await };
    let mut free = vec![first];
    while free.len() < BATCH_MAX {
        let Ok(next) = permits.clone().try_acquire_owned() else { break };
        free.push(next);
    }
    free
}

async fn give_back_strangers(worker: &Worker) {
    match worker.store.hand_over_strangers(&worker.id, &worker.running.epochs()).await {
        Ok(0) => {}
        Ok(given) => {
            warn!(worker.id = %worker.id, "Worker {} handed over {given} turns in its name that it does not run", worker.id);
            worker.wake.notify_one();
        }
        Err(error) => warn!(worker.id = %worker.id, %error, "Worker {} could not look for turns in its name", worker.id),
    }
}
