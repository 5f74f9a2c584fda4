//! What a worker does beside its turns: hears hints and cancels, promotes, and finishes releases that others
//! could not.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Worker;
use super::secrets::Secrets;
use crate::e2b::ApiError;
use crate::store::Releasing;

/// Between two rounds of tidying.
const TIDY: Duration = Duration::from_secs(1);

/// How long a release that was taken over is left to whoever took it.
const RELEASE_HOLD: Duration = Duration::from_secs(10);

/// How long one tries to pause a sandbox: less than the least hold of a pause, which is a minute.
const PAUSE_MAX: Duration = Duration::from_secs(45);

/// Releases, and kills of parked sandboxes, of one round.
const RELEASES_MAX: i64 = 50;

/// Wakes the claimer on NOTIFY. Polling goes on regardless, so a lost connection costs only latency.
pub(super) async fn listen(worker: Worker, stop: CancellationToken) {
    let hear = async {
        loop {
            match worker.store.listen().await {
                Ok(mut hints) => {
                    worker.wake.notify_one();
                    while hints.wait().await.is_ok() {
                        worker.wake.notify_one();
                    }
                }
                Err(error) => debug!(%error, "LISTEN does not work here; the queue is polled"),
            }
            sleep(Duration::from_secs(1)).await;
        }
    };
    stop.run_until_cancelled(hear).await;
}

/// Tells running turns that somebody wants them cancelled.
pub(super) async fn watch_cancels(worker: Worker, stop: CancellationToken) {
    let watch = async {
        loop {
            sleep(worker.config.worker.cancel_poll).await;
            let turns = worker.running.turns();
            if turns.is_empty() {
                continue;
            }
            match worker.store.cancels(&turns).await {
                Ok(asked) => asked.iter().for_each(|(turn, reason)| worker.running.cancel(turn, reason.as_deref())),
                Err(error) => debug!(%error, "Could not look for cancels"),
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// Keeps the queue going where no single transaction can.
pub(super) async fn tidy(worker: Worker, stop: CancellationToken) {
    let ending = stop.clone();
    let tidy = async {
        loop {
            sleep(TIDY.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            if let Err(error) = worker.store.tidy().await {
                warn!(%error, "The queue could not be tidied whole");
            }
            kill_asked(&worker).await;
            match worker.store.due_releases(RELEASES_MAX, RELEASE_HOLD).await {
                Ok(due) => {
                    let (pauses, kills): (Vec<_>, Vec<_>) = due.into_iter().partition(|slot| slot.pause);
                    for slot in pauses {
                        release_beside(&worker, slot, &ending);
                    }
                    futures::future::join_all(kills.iter().map(|slot| release(&worker, slot))).await;
                }
                Err(error) => debug!(%error, "Could not look for releases that are due"),
            }
            kill_parked(&worker).await;
            heal_pools(&worker).await;
        }
    };
    stop.run_until_cancelled(tidy).await;
}

/// Warm sandboxes go where turns wait for nothing but a slot.
pub(super) async fn evict_warm(worker: &Worker, stop: &CancellationToken) {
    match worker.store.evict_warm(RELEASE_HOLD).await {
        Ok(evicted) => {
            for slot in evicted {
                debug!(slot.id = slot.slot_id, "The warm sandbox of slot {} makes room", slot.slot_id);
                release_beside(worker, slot, stop);
            }
        }
        Err(error) => debug!(%error, "Could not look for warm sandboxes to give up"),
    }
}

/// Nobody waits for it. What is dropped half-way is due again soon.
fn release_beside(worker: &Worker, slot: Releasing, stop: &CancellationToken) {
    let (worker, stop) = (worker.clone(), stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(release(&worker, &slot)).await });
}

/// Kills or pauses the slot's sandbox and frees the slot. What fails is done again by anyone when it is due.
pub(super) async fn release(worker: &Worker, slot: &Releasing) {
    if slot.pause && park(worker, slot).await {
        return;
    }
    let gone = match (&slot.sandbox_id, slot.since_asked) {
        (Some(id), _) => kill(worker, id).await,
        (None, None) => true,
        (None, Some(since)) => search(worker, slot, since).await,
    };
    if !gone {
        return;
    }
    freed(worker, slot, false).await;
}

/// Pauses the slot's sandbox for its session's next turn; `false`: it is to be killed.
async fn park(worker: &Worker, slot: &Releasing) -> bool {
    let Some(id) = slot.sandbox_id.as_deref() else { return false };
    let pausing = (|| worker.e2b.pause(id))
        .retry(ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_jitter())
        .when(|error| !matches!(error, ApiError::Refused(_)));
    // Not for longer than it is ours: whoever takes it over asks again, and the session's next turn may run in it then.
    let Ok(paused) = tokio::time::timeout(PAUSE_MAX, pausing).await else { return true };
    match paused {
        Ok(lives) => freed(worker, slot, lives).await,
        Err(error) => {
            warn!(sandbox.id = id, %error, "Sandbox {id} can't be paused and is killed");
            let given_up = worker.store.give_up_pause(slot.slot_id, slot.epoch).await;
            return !matches!(given_up, Ok(Ok(())));
        }
    }
    true
}

async fn freed(worker: &Worker, slot: &Releasing, parked: bool) {
    let let_go = if parked {
        worker.store.slot_parked(slot.slot_id, slot.epoch).await
    } else {
        worker.store.slot_freed(slot.slot_id, slot.epoch).await
    };
    match let_go {
        Ok(Ok(())) => worker.wake.notify_one(),
        Ok(Err(_)) => debug!(slot.id = slot.slot_id, "Slot {} is released by another worker", slot.slot_id),
        Err(error) => warn!(slot.id = slot.slot_id, %error, "Slot {} could not be freed yet", slot.slot_id),
    }
}

/// Kills sandboxes that somebody wants gone. Only under the lease, which is bound to the fleet's id as the sandboxes are. A
/// turn that runs in one finds out by itself, as with any that vanishes.
async fn kill_asked(worker: &Worker) {
    let Some(era) = worker.lease.now() else { return };
    let kill_all = async {
        let asked = worker.store.due_kills(RELEASES_MAX, RELEASE_HOLD).await?;
        futures::future::join_all(asked.iter().map(async |id| {
            if kill(worker, id).await {
                info!(sandbox.id = %id, "Sandbox {id} is killed, as somebody asked");
                worker.store.killed(id).await?;
            }
            Ok::<(), sqlx::Error>(())
        }))
        .await
        .into_iter()
        .collect::<Result<Vec<()>, _>>()
    };
    if let Some(Err(error)) = era.run_until_cancelled(kill_all).await {
        debug!(%error, "Could not kill the sandboxes that somebody wants gone");
    }
}

/// Kills paused sandboxes that no turn has come for.
async fn kill_parked(worker: &Worker) {
    match worker.store.doom_parked(RELEASES_MAX, RELEASE_HOLD).await {
        Ok(doomed) => {
            futures::future::join_all(doomed.iter().map(async |id| {
                if kill(worker, id).await
                    && let Err(error) = worker.store.parked_gone(id).await
                {
                    debug!(sandbox.id = %id, %error, "Sandbox {id} is not struck off yet");
                }
            }))
            .await;
        }
        Err(error) => debug!(%error, "Could not look for paused sandboxes whose time is over"),
    }
}

pub(super) async fn kill(worker: &Worker, sandbox_id: &str) -> bool {
    let killed = (|| worker.e2b.kill(sandbox_id))
        .retry(ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_jitter())
        .await;
    if let Err(error) = &killed {
        warn!(sandbox.id = sandbox_id, %error, "Sandbox {sandbox_id} could not be killed yet");
    }
    killed.is_ok()
}

/// A create whose answer was never seen: looks for its nonce, until it can't come any more.
async fn search(worker: &Worker, slot: &Releasing, since: Duration) -> bool {
    let labels = [("turnmill_fleet", &*worker.fleet_id), ("turnmill_nonce", slot.nonce.as_str())];
    match worker.e2b.list(&labels).await {
        Ok(found) => {
            let mut all_gone = true;
            for sandbox in &found {
                info!(sandbox.id = %sandbox.id, slot.id = slot.slot_id, "Sandbox {} was created unseen and is killed", sandbox.id);
                all_gone &= kill(worker, &sandbox.id).await;
            }
            // After this long a create that was sent has either made a sandbox that E2B lists, or never will: two
            // minutes with the default deadline, which is longer than E2B itself tries.
            let settled = worker.config.worker.create_deadline * 4 / 3;
            all_gone && (!found.is_empty() || since > settled)
        }
        Err(error) => {
            debug!(slot.id = slot.slot_id, %error, "E2B can't be asked for the sandbox of slot {}", slot.slot_id);
            false
        }
    }
}

/// A blocked pool heals when E2B answers us again; until then it says what E2B answered last.
async fn heal_pools(worker: &Worker) {
    let Ok(pools) = worker.store.pools_to_probe().await else { return };
    for pool in pools {
        match worker.e2b.list(&[("turnmill_fleet", &*worker.fleet_id)]).await {
            Ok(_) if worker.store.unblock_pool(&pool).await.is_ok() => {
                info!(pool = %pool, "Pool {pool} is active again: E2B takes our key");
                worker.wake.notify_one();
            }
            Ok(_) => {}
            // A server may repeat what it was sent.
            Err(error) => drop(worker.store.still_blocked(&pool, &Secrets::new(worker, []).in_errors.text(&error.to_string())).await),
        }
    }
}
