//! The tokens of open streams: a stream outlasts the moment at which its token was looked at, so they are asked about anew
//! every few seconds, all with one query. Who revokes a token need not wait until its streams end by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::Store;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// The tokens of this process's streams. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    tokens: Arc<Mutex<HashMap<String, Shared>>>,
}

#[derive(Debug)]
struct Shared {
    streams: usize,
    over: CancellationToken,
}

/// A stream's right to go on.
#[derive(Debug)]
pub struct Right {
    rights: Rights,
    token: String,
    over: CancellationToken,
}

impl Rights {
    /// For as long as this token lasts.
    pub fn of(&self, token_id: &str) -> Right {
        let mut tokens = self.lock();
        let shared = tokens.entry(token_id.to_owned()).or_insert_with(|| Shared { streams: 0, over: CancellationToken::new() });
        shared.streams += 1;
        Right { rights: self.clone(), token: token_id.to_owned(), over: shared.over.clone() }
    }

    /// Asks about them until `stop`.
    pub async fn keep(self, store: Store, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let ids: Vec<String> = self.lock().keys().cloned().collect();
            if ids.is_empty() {
                continue;
            }
            match store.revoked_of(&ids).await {
                Ok(revoked) => {
                    let mut tokens = self.lock();
                    revoked.iter().filter_map(|id| tokens.remove(id)).for_each(|shared| shared.over.cancel());
                }
                Err(error) => debug!(%error, "Streams' tokens were not looked at: {error}"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Right {
    /// Resolves when it is no more.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        if self.over.is_cancelled() {
            // What goes by its name now is another's.
            return;
        }
        let mut tokens = self.rights.lock();
        if let Some(shared) = tokens.get_mut(&self.token) {
            shared.streams -= 1;
            if shared.streams == 0 {
                tokens.remove(&self.token);
            }
        }
    }
}
