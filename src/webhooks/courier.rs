//! Takes what is due and reports what came of it; every worker has one.
//!
//! How much is under way is bounded in all and for each endpoint, and further for endpoints that fail or answer slowly: each of
//! their tries costs seconds, and is not to cost others theirs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::guard::Guard;
use super::pace::next_try;
use super::post::{Failure, Outcome, Poster};
use super::sign::signature;
use super::{Lookup, Settings};
use crate::keys::{Closed, Vault};
use crate::store::{Due, FailedTry, Room, Store};

/// What a try may take beside its request, before others take it for lost.
const SLACK: Duration = Duration::from_secs(15);

/// Between two looks at least.
const PACE: Duration = Duration::from_millis(25);

/// Between two sweeps of what has ended.
const SWEEP: Duration = Duration::from_secs(10);

/// How long what is under way may take to end when the process does.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// After a delivery could not be tried by our own fault.
const PUT_OFF: Duration = Duration::from_secs(60);

/// An endpoint is slow when its answer takes longer than this part of the timeout.
const SLOW: u32 = 8;

/// For how long it then counts as slow, unless it is quick before.
const SLOW_FOR: Duration = Duration::from_secs(600);

/// Delivers.
#[derive(Debug, Clone)]
pub struct Courier {
    store: Store,
    settings: Arc<Settings>,
    vault: Vault,
    poster: Poster,
}

/// What this process has under way, and what it has seen of endpoints.
#[derive(Debug, Default)]
struct UnderWay {
    tries: HashMap<Id, (Due, Instant)>,
    /// When an endpoint was last slow.
    slow: HashMap<String, Instant>,
}

impl UnderWay {
    /// Endpoints that have been slow lately, or are just now.
    fn slow(&mut self, limit: Duration) -> Vec<String> {
        self.slow.retain(|_, when| when.elapsed() < SLOW_FOR);
        let now = self.tries.values().filter(|(_, since)| since.elapsed() > limit).map(|(due, _)| due.endpoint_id.clone());
        self.slow.keys().cloned().chain(now).collect()
    }

    fn ended(&mut self, id: Id, limit: Duration) {
        let Some((due, since)) = self.tries.remove(&id) else { return };
        if since.elapsed() > limit {
            self.slow.insert(due.endpoint_id, Instant::now());
        } else {
            self.slow.remove(&due.endpoint_id);
        }
    }
}

impl Courier {
    /// Fails for networks that are none, and where there are no CA certificates.
    pub fn new(store: Store, settings: Settings, vault: Vault) -> anyhow::Result<Self> {
        let guard = Guard::new(&settings.allow_networks)?;
        Self::with_guard(store, settings, vault, guard)
    }

    /// The same, with names found in another way.
    pub fn with_lookup(store: Store, settings: Settings, vault: Vault, lookup: Lookup) -> anyhow::Result<Self> {
        let guard = Guard::with_lookup(&settings.allow_networks, lookup)?;
        Self::with_guard(store, settings, vault, guard)
    }

    fn with_guard(store: Store, settings: Settings, vault: Vault, guard: Guard) -> anyhow::Result<Self> {
        let poster = Poster::new(guard, settings.timeout)?;
        Ok(Self { store, settings: Arc::new(settings), vault, poster })
    }

    /// Delivers until `stop`. `wake`: a turn has ended here.
    pub async fn run(self, wake: Arc<Notify>, stop: CancellationToken) {
        if self.settings.deliveries_max == 0 {
            return;
        }
        let (mut tries, mut under_way) = (JoinSet::new(), UnderWay::default());
        let mut swept = Instant::now();
        let mut looked = Instant::now();
        while !stop.is_cancelled() {
            // What ends one after the other is not a look each.
            sleep(PACE.saturating_sub(looked.elapsed())).await;
            looked = Instant::now();
            match self.take(&mut under_way).await {
                Ok(due) => {
                    for due in due {
                        let (courier, one) = (self.clone(), due.clone());
                        let id = tries.spawn(async move { courier.deliver(&one).await }).id();
                        under_way.tries.insert(id, (due, Instant::now()));
                    }
                }
                Err(error) => debug!(%error, "Could not look for deliveries that are due"),
            }
            if swept.elapsed() > SWEEP.mul_f64(0.75 + rand::random::<f64>() / 2.0) {
                swept = Instant::now();
                if let Err(error) = self.store.sweep_outbox(self.settings.keep).await {
                    warn!(%error, "The outbox could not be swept whole: {error}");
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = wake.notified() => {}
                Some(ended) = tries.join_next_with_id() => self.forget(&mut under_way, ended),
                // Jittered, so that a fleet that was started together does not look together.
                () = sleep(self.settings.poll.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => {}
            }
        }
        self.let_go(tries, under_way).await;
    }

    /// How long an endpoint may take to answer and not be slow.
    fn slow_limit(&self) -> Duration {
        self.settings.timeout / SLOW
    }

    async fn take(&self, under_way: &mut UnderWay) -> sqlx::Result<Vec<Due>> {
        let most = i64::from(self.settings.deliveries_max);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let slow = under_way.slow(self.slow_limit());
        let under_way = &under_way.tries;
        let costly = under_way.values().filter(|(due, _)| due.failing || slow.contains(&due.endpoint_id)).count();
        let room = Room {
            free: most - count(under_way.len()),
            // At most half of all, but one.
            free_costly: (most / 2).max(1) - count(costly),
            of_one: i64::from(self.settings.endpoint_deliveries_max),
        };
        if room.free <= 0 {
            return Ok(Vec::new());
        }
        let mut busy: HashMap<&str, i64> = HashMap::new();
        for (due, _) in under_way.values() {
            *busy.entry(&due.endpoint_id).or_default() += 1;
        }
        let busy: Vec<(String, i64)> = busy.into_iter().map(|(id, count)| (id.to_owned(), count)).collect();
        self.store.due_deliveries(room, &busy, &slow, self.settings.timeout + SLACK).await
    }

    async fn deliver(&self, due: &Due) {
        let signature = match self.sign(due) {
            Ok(signature) => signature,
            Err(closed) => {
                let why = format!("it can't be signed: {closed}");
                warn!(endpoint.id = %due.endpoint_id, delivery.id = %due.id, "Delivery {} waits: {why}", due.id);
                return self.report(due, || self.store.put_off(due, PUT_OFF, Some(&why))).await;
            }
        };
        match self.poster.post(due, &signature).await {
            Outcome::Delivered(status) => {
                debug!(endpoint.id = %due.endpoint_id, delivery.id = %due.id, status, "Delivery {} was taken with {status}", due.id);
                self.report(due, || async { self.store.delivered(due, status).await.map(drop) }).await;
            }
            Outcome::Failed(failure) => self.failed(due, &failure).await,
        }
    }

    /// With all secrets that are live: while they are exchanged, the receiver has one or the other.
    fn sign(&self, due: &Due) -> Result<String, Closed> {
        let belongs_to = seal_of_endpoint(&due.endpoint_id);
        let sealed = std::iter::once(due.secret.clone()).chain(due.old_secret.clone());
        let secrets = sealed.map(|sealed| self.vault.open(&belongs_to, sealed)).collect::<Result<Vec<_>, _>>()?;
        Ok(signature(&secrets, &due.id, due.now_s, &due.body))
    }

    async fn failed(&self, due: &Due, failure: &Failure) {
        // Of a test somebody waits for the answer.
        let once = failure.gone || due.kind == "webhook.test";
        let next = next_try(&self.settings, due.attempts, due.age, failure.retry_after, rand::random()).filter(|_| !once);
        let (failures, after) = (self.settings.disable_failures, self.settings.disable_after);
        let why_disabled = if failure.gone {
            failure.error.clone()
        } else {
            format!(
                "at least {failures} deliveries in a row failed, for more than {}; the last: {}",
                humantime::format_duration(after),
                failure.error
            )
        };
        if let Some(pause) = next {
            debug!(
                endpoint.id = %due.endpoint_id, delivery.id = %due.id, attempts = due.attempts, pause_ms = pause.as_millis(),
                "Delivery {} failed: {}; next try in {pause:?}", due.id, failure.error
            );
        } else {
            info!(
                endpoint.id = %due.endpoint_id, delivery.id = %due.id, attempts = due.attempts,
                "Delivery {} is given up: {}", due.id, failure.error
            );
        }
        let tried = FailedTry {
            status: failure.status,
            error: &failure.error,
            next,
            wants: failure.retry_after.unwrap_or_default().min(self.settings.retry_delay_max),
            gone: failure.gone,
            limit: (i32::try_from(failures).unwrap_or(i32::MAX), after),
            why_disabled: &why_disabled,
        };
        let report = async || {
            if self.store.delivery_failed(due, &tried).await? {
                warn!(endpoint.id = %due.endpoint_id, "Webhook endpoint {} is disabled: {why_disabled}", due.endpoint_id);
            }
            Ok(())
        };
        self.report(due, report).await;
    }

    /// What can't be reported is delivered again when its time is over.
    async fn report<F: Future<Output = sqlx::Result<()>>>(&self, due: &Due, report: impl FnMut() -> F) {
        let told = report.retry(ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_jitter()).await;
        if let Err(error) = told {
            warn!(delivery.id = %due.id, %error, "What came of delivery {} could not be noted; it is tried again", due.id);
        }
    }

    fn forget(&self, under_way: &mut UnderWay, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                warn!(%error, "A delivery's task ended by itself; it is tried again: {error}");
                error.id()
            }
        };
        under_way.ended(id, self.slow_limit());
    }

    /// What doesn't end in a moment is left to others, at once.
    async fn let_go(&self, mut tries: JoinSet<()>, mut under_way: UnderWay) {
        let ended = async {
            while let Some(ended) = tries.join_next_with_id().await {
                self.forget(&mut under_way, ended);
            }
        };
        drop(timeout(DRAIN_MAX, ended).await);
        tries.shutdown().await;
        let given_back = under_way.tries.values().map(|(due, _)| self.store.put_off(due, Duration::ZERO, None));
        drop(timeout(DRAIN_MAX, futures::future::join_all(given_back)).await);
    }
}

/// As what a secret is sealed.
pub fn seal_of_endpoint(endpoint_id: &str) -> String {
    format!("webhook/{endpoint_id}")
}
