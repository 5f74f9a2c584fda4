//! The turns that run in this process, by epoch; and how a cancel reaches one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Somebody wants the turn cancelled, for this reason.
pub type Cancel = Option<Option<String>>;

/// The turns that run here. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Running {
    turns: Arc<Mutex<HashMap<i64, Entry>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    turn_id: String,
    cancel: watch::Sender<Cancel>,
}

/// Keeps a turn on the list; dropping it, however its task ends, takes it off.
#[derive(Debug)]
pub struct Guard {
    running: Running,
    epoch: i64,
}

impl Running {
    /// Puts a turn on the list, with the cancel that is known of already.
    pub fn enter(&self, turn_id: &str, epoch: i64, cancel: Cancel) -> (Guard, watch::Receiver<Cancel>) {
        let cancel = watch::Sender::new(cancel);
        let receiver = cancel.subscribe();
        self.lock().insert(epoch, Entry { turn_id: turn_id.to_owned(), cancel });
        (Guard { running: self.clone(), epoch }, receiver)
    }

    /// Lists the turn under its next epoch as well, before the database knows that one. Who drops the old guard
    /// only when the database does leaves no moment in which the turn looks like nobody's.
    pub(super) fn enter_again(&self, guard: &Guard, epoch: i64) -> Guard {
        let mut turns = self.lock();
        if let Some(entry) = turns.get(&guard.epoch).cloned() {
            turns.insert(epoch, entry);
        }
        Guard { running: self.clone(), epoch }
    }

    /// Epochs on the list.
    pub fn epochs(&self) -> Vec<i64> {
        self.lock().keys().copied().collect()
    }

    /// Turns on the list that nobody has cancelled yet.
    pub fn turns(&self) -> Vec<String> {
        self.lock().values().filter(|entry| entry.cancel.borrow().is_none()).map(|entry| entry.turn_id.clone()).collect()
    }

    /// Tells a turn that it is cancelled.
    pub fn cancel(&self, turn_id: &str, reason: Option<&str>) {
        for entry in self.lock().values().filter(|entry| entry.turn_id == turn_id) {
            entry.cancel.send_replace(Some(reason.map(str::to_owned)));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Entry>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.running.lock().remove(&self.epoch);
    }
}
