//! How long a sandbox that does not answer is worth waiting for.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// Growing pauses for as long as a silent sandbox is worth waiting for.
#[derive(Debug)]
pub(super) struct Silence {
    max: Duration,
    since: Instant,
    pauses: ExponentialBackoff,
}

impl Silence {
    pub fn new(max: Duration) -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        Self { max, since: Instant::now(), pauses }
    }

    /// It has answered.
    pub fn ends(&mut self) {
        *self = Self::new(self.max);
    }

    /// The next pause; `None`: it was silent for too long.
    pub fn next(&mut self) -> Option<Duration> {
        self.pauses.next().filter(|_| self.since.elapsed() < self.max)
    }
}
