//! Whether an agent still says something.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// When the agent last said something to this worker, and whether a tool of its runs: then silence is no sign.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Mutex<(Instant, bool)>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { last: Mutex::new((Instant::now(), false)) }
    }
}

impl Pulse {
    /// It has just said something; `works`: a call of its is open.
    pub fn beat(&self, works: bool) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), works);
    }

    /// Resolves when nothing was said for `limit`, while no call was open.
    pub async fn quiet_for(&self, limit: Duration) {
        loop {
            let (since, works) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let left = if works { limit } else { limit.saturating_sub(since.elapsed()) };
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
    fn silence_counts_only_while_no_call_is_open() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (pulse, limit) = (Pulse::default(), Duration::from_millis(20));
            pulse.beat(true);
            assert!(tokio::time::timeout(limit * 5, pulse.quiet_for(limit)).await.is_err(), "a tool is at work");
            pulse.beat(false);
            let since = Instant::now();
            pulse.quiet_for(limit).await;
            assert!(since.elapsed() >= limit);
        });
    }
}
