//! Writes the roll-up that the dashboard draws, so that no page ever counts history. One worker of the fleet does it at a
//! time.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Worker;
use crate::store::{Sample, Store};
use crate::verdict;

/// Samples at its rhythm, while this worker has the duty.
pub(super) async fn keep(worker: Worker, stop: CancellationToken) {
    let every = worker.config.worker.sample;
    let keep = async {
        loop {
            match worker.store.take_duty("sample", &worker.id, every * 3).await {
                Ok(true) => {
                    if let Err(error) = once(&worker.store).await {
                        warn!(%error, "The roll-up could not be written: {error}");
                    }
                }
                Ok(false) => {}
                Err(error) => debug!(%error, "Could not take the sampler's duty"),
            }
            sleep(every.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        }
    };
    stop.run_until_cancelled(keep).await;
}

/// One sample, and the minutes that are over.
async fn once(store: &Store) -> sqlx::Result<()> {
    let (sample, _) = look(store).await?;
    store.note_sample(&sample).await?;
    let closed = store.close_minutes().await?;
    debug!(closed, verdict = %sample.verdict, "Sampled; {closed} minutes are counted");
    Ok(())
}

/// How full it is, and what is to be said of it.
pub async fn look(store: &Store) -> sqlx::Result<(Sample, verdict::Verdict)> {
    let totals = store.queue_totals().await?;
    let (rooms, cells, waits) = (store.rooms().await?, store.slot_cells().await?, store.waits().await?);
    let (oldest, tries, money) = (store.oldest_ready().await?, store.recent_tries().await?, store.fleet_money().await?);
    let held: i64 = rooms.iter().map(|room| room.held).sum();
    let facts = verdict::Facts {
        workers: totals.workers,
        ready: waits.iter().filter(|wait| wait.reason.as_deref() != Some("session_busy")).map(|wait| wait.turns).sum(),
        running: i64::try_from(cells.iter().filter(|cell| cell.phase.is_some()).count()).unwrap_or(0),
        oldest: oldest.map(|turn| (Duration::from_secs_f64(turn.age_s.max(0.0)), turn.reason)),
        held,
        cap: rooms.iter().map(|room| i64::from(room.cap)).sum(),
        stopped: rooms.iter().filter(|r| r.state != "active").map(|r| (r.pool.clone(), r.state.clone(), r.state_reason.clone())).collect(),
        pools: rooms.len(),
        tries: tries.tries,
        tries_failed: tries.failed,
        commonest: tries.commonest,
        leaked: cells.iter().filter(|cell| cell.leaked || cell.overdue).count(),
        silent: cells.iter().filter(|cell| cell.silent_s.is_some_and(|silent| silent > verdict::SILENT.as_secs_f64())).count(),
        fleet_stopped: money.stopped_at.zip(money.stopped_reason),
    };
    let verdict = verdict::of(&facts);
    let reasons: Map<String, Value> = waits.into_iter().map(|wait| (wait.reason.unwrap_or_default(), Value::from(wait.turns))).collect();
    let sample = Sample {
        ready: facts.ready,
        waiting: totals.waiting,
        running: facts.running,
        oldest_ready_s: facts.oldest.as_ref().map(|(age, _)| age.as_secs_f64()),
        cap: facts.cap,
        held,
        reported: rooms.iter().map(|room| room.reported.map(i64::from)).sum(),
        workers: totals.workers,
        turns_max: totals.turns_max,
        reasons: Value::Object(reasons),
        verdict: verdict.code.to_owned(),
    };
    Ok((sample, verdict))
}
