//! The second lane: what models are in the middle of saying, of turns that somebody watches.
//!
//! A copier notes what its parser has; a task of the process writes what is new of all watched turns, some times a second,
//! in one statement. Nobody waits for that: what could not be written is written with the next, or was for nothing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::agent::{Preview, Previews as Growing};
use crate::keys::{Mask, Pieces};
use crate::store::{Claimed, PreviewPiece, PreviewWrite, Store};

/// Between two writes. A person sees no difference to less.
const TICK: Duration = Duration::from_millis(100);

/// Between two looks at who watches.
const LOOK: Duration = Duration::from_millis(500);

/// The turns of this process that may be watched. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Previews {
    turns: Arc<Mutex<HashMap<i64, Arc<Turn>>>>,
}

#[derive(Debug)]
struct Turn {
    id: String,
    watched: AtomicBool,
    now: Mutex<Now>,
}

/// What goes on, and the journal byte up to which all blocks before it are committed; `None`: some of them are not.
#[derive(Debug, Default)]
struct Now {
    committed: Option<i64>,
    growing: Vec<Shown>,
}

/// A preview as it may be seen.
#[derive(Debug)]
struct Shown {
    preview: Preview,
    /// Bytes of the parser's text that are taken.
    taken: usize,
    pieces: Pieces,
}

/// A copier's place; dropping it ends the turn's previews.
#[derive(Debug)]
pub(super) struct Seat {
    previews: Previews,
    epoch: i64,
    turn: Arc<Turn>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.previews.turns).remove(&self.epoch);
    }
}

impl Seat {
    /// What the parser has now. `committed`: the journal byte that the database stands at, if no block waits for it.
    pub fn note(&self, committed: Option<i64>, growing: &Growing, mask: &Mask) {
        if !self.turn.watched.load(Ordering::Relaxed) {
            return;
        }
        let mut now = lock(&self.turn.now);
        now.committed = committed;
        let growing = growing.growing();
        now.growing.retain(|known| growing.iter().any(|preview| preview.nth == known.preview.nth));
        for preview in growing {
            match now.growing.iter_mut().find(|known| known.preview.nth == preview.nth) {
                Some(known) => known.grow(&preview.text),
                None => now.growing.push(Shown::of(preview, mask)),
            }
        }
    }
}

impl Shown {
    fn of(preview: &Preview, mask: &Mask) -> Self {
        let mut shown = Self { preview: Preview { text: String::new(), ..preview.clone() }, taken: 0, pieces: mask.pieces() };
        shown.grow(&preview.text);
        shown
    }

    /// Texts only grow.
    fn grow(&mut self, text: &str) {
        self.preview.text.push_str(&self.pieces.next(&text[self.taken..]));
        self.taken = text.len();
    }
}

impl Previews {
    /// A place for a turn's copier, where its pool has previews.
    pub fn enter(&self, job: &Claimed) -> Option<Seat> {
        job.previews.then(|| {
            let turn = Turn { id: job.turn_id.clone(), watched: AtomicBool::new(false), now: Mutex::default() };
            let turn = Arc::new(turn);
            lock(&self.turns).insert(job.epoch, turn.clone());
            Seat { previews: self.clone(), epoch: job.epoch, turn }
        })
    }

    /// Looks who watches, and writes, until `stop`.
    pub async fn keep(self, store: Store, stop: CancellationToken) {
        let mut written: HashMap<i64, Written> = HashMap::new();
        let mut look_at = Instant::now();
        let keep = async {
            loop {
                let since = Instant::now();
                let turns = lock(&self.turns).clone();
                written.retain(|epoch, _| turns.contains_key(epoch));
                if look_at <= since && !turns.is_empty() {
                    look_at = since + LOOK;
                    look(&store, &turns).await;
                }
                if let Err(error) = write(&store, &turns, &mut written).await {
                    debug!(%error, "Previews were not written: {error}");
                }
                // At most half of the time, however slow the database is.
                sleep(TICK.max(since.elapsed())).await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }
}

async fn look(store: &Store, turns: &HashMap<i64, Arc<Turn>>) {
    let ids: Vec<String> = turns.values().map(|turn| turn.id.clone()).collect();
    match store.watched(&ids).await {
        Ok(watched) => {
            let watched: HashSet<String> = watched.into_iter().collect();
            for turn in turns.values() {
                turn.watched.store(watched.contains(&turn.id), Ordering::Relaxed);
            }
        }
        Err(error) => debug!(%error, "Who watches was not found out: {error}"),
    }
}

async fn write(store: &Store, turns: &HashMap<i64, Arc<Turn>>, written: &mut HashMap<i64, Written>) -> sqlx::Result<()> {
    let mut writes = Vec::new();
    let mut then = Vec::new();
    for (&epoch, turn) in turns.iter().filter(|(_, turn)| turn.watched.load(Ordering::Relaxed)) {
        let before = written.get(&epoch).cloned().unwrap_or_default();
        if let Some((write, after)) = before.next(&turn.id, epoch, &lock(&turn.now)) {
            then.push((write.turn_id.clone(), epoch, after));
            writes.push(write);
        }
    }
    if writes.is_empty() {
        return Ok(());
    }
    let done = match store.write_previews(&writes).await {
        Ok(done) => done,
        Err(error) => {
            // It may be there for all that: what is written next goes behind it.
            for (_, epoch, after) in then {
                written.entry(epoch).or_default().n = after.n;
            }
            return Err(error);
        }
    };
    written.extend(then.into_iter().filter(|(turn, ..)| done.contains(turn)).map(|(_, epoch, after)| (epoch, after)));
    Ok(())
}

/// What the database has of an epoch's previews.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Written {
    n: i32,
    committed: i64,
    open: Vec<Told>,
}

/// How much of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    nth: i32,
    bytes: usize,
    chars: i32,
}

impl Written {
    /// What to write next, and what the database has then. `None`: nothing is new, or blocks go first.
    fn next(&self, turn_id: &str, epoch: i64, now: &Now) -> Option<(PreviewWrite, Self)> {
        let committed = now.committed?;
        let mut pieces = Vec::new();
        let mut open = Vec::new();
        for Shown { preview, .. } in &now.growing {
            let before = self.open.iter().find(|told| told.nth == preview.nth);
            let mut told = before.cloned().unwrap_or(Told { nth: preview.nth, bytes: 0, chars: 0 });
            let text = &preview.text[told.bytes..];
            if before.is_none() || !text.is_empty() {
                pieces.push(PreviewPiece {
                    preview: preview.nth,
                    kind: preview.kind,
                    tool_name: preview.tool_name.clone(),
                    parent_tool_use_id: preview.parent_tool_use_id.clone(),
                    at: told.chars,
                    text: text.to_owned(),
                });
                told.bytes = preview.text.len();
                told.chars += i32::try_from(text.chars().count()).unwrap_or(i32::MAX);
            }
            open.push(told);
        }
        // What goes on is also news where a block has come meanwhile: it is void for readers until that is said.
        let moved = committed != self.committed && !open.is_empty();
        if open == self.open && !moved {
            return None;
        }
        let rows = i32::try_from(pieces.len().max(1)).unwrap_or(i32::MAX);
        let write = PreviewWrite {
            turn_id: turn_id.to_owned(),
            epoch,
            journal_offset: committed,
            n: self.n + 1,
            pieces,
            open: open.iter().map(|told| told.nth).collect(),
        };
        Some((write, Self { n: self.n + rows, committed, open }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockKind;

    fn now(committed: Option<i64>, growing: &[(i32, &str)]) -> Now {
        let preview = |&(nth, text): &(i32, &str)| {
            let kind = BlockKind::Content;
            let preview = Preview { nth, kind, tool_name: None, parent_tool_use_id: None, text: text.to_owned(), full: false };
            Shown::of(&preview, &Mask::default())
        };
        Now { committed, growing: growing.iter().map(preview).collect() }
    }

    /// `at:text` of the pieces, and what goes on.
    fn step(written: &mut Written, now: &Now) -> Option<(i32, Vec<String>, Vec<i32>)> {
        let (write, after) = written.next("t", 1, now)?;
        *written = after;
        Some((write.n, write.pieces.iter().map(|piece| format!("{}:{}", piece.at, piece.text)).collect(), write.open))
    }

    #[test]
    fn only_what_is_new_is_written_and_only_behind_committed_blocks() {
        let mut written = Written::default();
        let says = |n, pieces: &[&str], open: &[i32]| Some((n, pieces.iter().map(|&p| p.to_owned()).collect(), open.to_vec()));
        assert_eq!(step(&mut written, &now(Some(0), &[])), None);
        assert_eq!(step(&mut written, &now(Some(0), &[(1, "né")])), says(1, &["0:né"], &[1]));
        assert_eq!(step(&mut written, &now(Some(0), &[(1, "né")])), None, "nothing new");
        assert_eq!(step(&mut written, &now(None, &[(1, "né!")])), None, "a block waits for its commit");
        assert_eq!(step(&mut written, &now(Some(0), &[(1, "né!"), (2, "a")])), says(2, &["2:!", "0:a"], &[1, 2]));
        assert_eq!(step(&mut written, &now(Some(9), &[(2, "a")])), says(4, &[], &[2]), "the first is out");
        assert_eq!(step(&mut written, &now(Some(20), &[(2, "a")])), says(5, &[], &[2]), "another block has come");
        assert_eq!(step(&mut written, &now(Some(30), &[])), says(6, &[], &[]));
        assert_eq!(step(&mut written, &now(Some(40), &[])), None);
    }
}
