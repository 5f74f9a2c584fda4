//! Holds the slots against what E2B says is there. One worker of the fleet does it at a time.
//!
//! E2B is asked first and the slots are read after: every create is on record before E2B hears of it, so a sandbox
//! of this fleet that no slot knows is nobody's. Even so it is killed only when it has been nobody's for the grace.
//! Absence from a list proves nothing, so nothing follows from it: who has the turn of a sandbox that is gone finds out
//! by itself. A list that fails decides nothing.

use std::collections::HashMap;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Worker, upkeep};
use crate::e2b::ListedSandbox;

/// Reconciles at its rhythm, while this worker has the duty.
pub(super) async fn keep(worker: Worker, stop: CancellationToken) {
    let every = worker.config.worker.reconcile;
    let keep = async {
        loop {
            sleep(every.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            let era = worker.lease.held().await;
            match worker.store.take_duty("reconcile", &worker.id, every * 3).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    debug!(%error, "Could not take the reconciler's duty");
                    continue;
                }
            }
            // Only under the lease, which is bound to the fleet's id as the sandboxes are.
            if let Some(Err(error)) = era.run_until_cancelled(once(&worker)).await {
                warn!(%error, "The slots could not be held against what E2B says: {error:#}");
            }
        }
    };
    stop.run_until_cancelled(keep).await;
}

async fn once(worker: &Worker) -> anyhow::Result<()> {
    for slot in worker.store.release_leaked_slots().await? {
        warn!(slot.id = slot, "Slot {slot} was held for a turn that has no job; it is released");
    }
    let listed = worker.e2b.list(&[("turnmill_fleet", &*worker.fleet_id)]).await?;
    let known = worker.store.known_to_slots().await?;
    for sandbox in &listed {
        if !known.contains(&sandbox.id) && !known.contains(label(sandbox, "turnmill_nonce")) {
            orphan(worker, sandbox).await?;
        }
    }
    worker.store.settle_corrections(&listed.iter().map(|sandbox| sandbox.id.clone()).collect::<Vec<_>>()).await?;

    let mut running: HashMap<String, i32> = HashMap::new();
    for sandbox in listed.iter().filter(|sandbox| sandbox.state == "running") {
        *running.entry(label(sandbox, "turnmill_pool").to_owned()).or_default() += 1;
    }
    let (pools, counts): (Vec<String>, Vec<i32>) = running.into_iter().unzip();
    worker.store.note_reported(&pools, &counts).await?;
    worker.store.forget_old().await?;
    Ok(())
}

fn label<'a>(sandbox: &'a ListedSandbox, name: &str) -> &'a str {
    sandbox.metadata.get(name).map_or("", String::as_str)
}

async fn orphan(worker: &Worker, sandbox: &ListedSandbox) -> anyhow::Result<()> {
    let reason = format!("{}, no slot knows it; made for turn {}", sandbox.state, label(sandbox, "turnmill_turn"));
    let since = worker.store.notice_orphan(&sandbox.id, label(sandbox, "turnmill_pool"), &reason).await?;
    if since >= worker.config.worker.orphan_grace && upkeep::kill(worker, &sandbox.id).await {
        worker.store.orphan_killed(&sandbox.id).await?;
        warn!(sandbox.id = %sandbox.id, "Sandbox {} was nobody's for {since:?} and is killed: {reason}", sandbox.id);
    }
    Ok(())
}
