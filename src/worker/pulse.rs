//! Whether an agent still says something.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// When the agent last said something to this worker, and how much longer than usual it may be silent now.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Mutex<(Instant, Leeway)>,
}

/// What silence means at the moment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leeway {
    /// That something is wrong.
    None,
    /// The same, but only after this much longer.
    More(Duration),
    /// Nothing.
    Endless,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { last: Mutex::new((Instant::now(), Leeway::None)) }
    }
}

impl Pulse {
    /// It has just said something, or begins.
    pub fn beat(&self, leeway: Leeway) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), leeway);
    }

    /// Resolves when nothing was said for `limit` and what leeway it has.
    pub async fn quiet_for(&self, limit: Duration) {
        loop {
            let (since, leeway) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let left = match leeway {
                Leeway::None => limit.saturating_sub(since.elapsed()),
                // Looked at again in time: its first word takes the rest away.
                Leeway::More(more) => (limit + more).saturating_sub(since.elapsed()).min(limit),
                Leeway::Endless => limit,
            };
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_where_it_means_something() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (pulse, limit) = (Pulse::default(), Duration::from_millis(20));
            pulse.beat(Leeway::Endless);
            assert!(tokio::time::timeout(limit * 5, pulse.quiet_for(limit)).await.is_err(), "a tool is at work");
            for (leeway, least) in [(Leeway::None, limit), (Leeway::More(limit), limit * 2)] {
                pulse.beat(leeway);
                let since = Instant::now();
                pulse.quiet_for(limit).await;
                assert!(since.elapsed() >= least);
            }
            pulse.beat(Leeway::More(limit * 1000));
            let (quiet, speaks) = (pulse.quiet_for(limit), async {
                sleep(limit / 2).await;
                pulse.beat(Leeway::None);
            });
            tokio::time::timeout(limit * 100, async { tokio::join!(quiet, speaks) }).await.expect("its first word ends the leeway");
        });
    }
}
