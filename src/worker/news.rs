//! Tells readers that there is something to read: after the commit, for many turns at once.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::store::Store;

/// Between two notifications of one process: NOTIFY serialises the commits of the whole database.
const PAUSE: Duration = Duration::from_millis(50);

/// What happened to which turns.
#[derive(Debug, Clone)]
pub(super) struct News {
    turns: mpsc::UnboundedSender<String>,
}

impl News {
    /// Starts the task; it ends when the last `News` is gone.
    pub fn spawn(store: Store, background: &TaskTracker) -> Self {
        let (turns, inbox) = mpsc::unbounded_channel();
        background.spawn(run(store, inbox));
        Self { turns }
    }

    /// There is something new of this turn, and it is committed.
    pub fn of(&self, turn_id: &str) {
        // Nobody to tell: the process ends.
        drop(self.turns.send(turn_id.to_owned()));
    }
}

async fn run(store: Store, mut inbox: mpsc::UnboundedReceiver<String>) {
    while let Some(first) = inbox.recv().await {
        let mut turns = HashSet::from([first]);
        while let Ok(next) = inbox.try_recv() {
            turns.insert(next);
        }
        // A hint: who doesn't get it polls.
        if let Err(error) = store.wake_readers(&turns.into_iter().collect::<Vec<_>>()).await {
            debug!(%error, "Readers were not told: {error}");
        }
        sleep(PAUSE).await;
    }
}
