//! The second lane: blocks while they grow, for readers that ask for it and pools that have it. Best effort, beside the hub.
//!
//! The hub says which turns its readers watch; a task of its own names them to the workers, polls what they write and
//! publishes the newest state, which the hub passes on. A reader's previews are always behind its last block: each has the
//! text of one block from its beginning, and the block itself takes its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::progress::{Event, Progress};
use crate::store::{PreviewRow, Store};

/// Between two polls while somebody watches.
const TICK: Duration = Duration::from_millis(100);

/// How long it lasts that workers were told who is watched, and how often they are told.
const WATCH: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);

/// Most pieces of one turn at a time: an end and a beginning for the agent and each of its subagents.
pub const PIECES_MAX: usize = 40;

/// Turns of one process that are watched at a time: those of more come block by block.
const TURNS_MAX: usize = 1000;

/// The newest of each watched turn.
pub type Newest = HashMap<String, Arc<TurnNow>>;

/// What goes on in a turn, behind one of its blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnNow {
    epoch: i64,
    n: i32,
    ordinal: i32,
    generation: i32,
    after_seq: i32,
    growing: Vec<Growing>,
}

/// A block that grows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Growing {
    preview: i32,
    kind: String,
    tool_name: Option<String>,
    parent_tool_use_id: Option<String>,
    text: String,
    chars: usize,
}

impl TurnNow {
    /// Takes the next row.
    fn take(&mut self, row: PreviewRow) {
        if row.epoch != self.epoch {
            *self = Self { epoch: row.epoch, ..Self::default() };
        }
        (self.n, self.ordinal, self.generation, self.after_seq) = (row.n, row.ordinal, row.generation, row.after_seq);
        self.growing.retain(|growing| row.open.contains(&growing.preview));
        let (Some(preview), Some(kind), Some(at), Some(text)) = (row.preview, row.kind, row.at, row.text) else { return };
        let chars = text.chars().count();
        match self.growing.iter_mut().find(|growing| growing.preview == preview) {
            Some(growing) if i32::try_from(growing.chars) == Ok(at) => {
                growing.text.push_str(&text);
                growing.chars += chars;
            }
            // A gap: seen again with its block.
            Some(_) => self.growing.retain(|growing| growing.preview != preview),
            None if at == 0 => {
                let (tool_name, parent_tool_use_id) = (row.tool_name, row.parent_tool_use_id);
                self.growing.push(Growing { preview, kind, tool_name, parent_tool_use_id, text, chars });
            }
            None => {}
        }
    }
}

/// What one reader has been told, and not yet as a block.
#[derive(Debug, Default)]
pub struct Told {
    /// By turn and subagent: which preview, and how much of it.
    growing: BTreeMap<(i32, Option<String>), Sent>,
}

#[derive(Debug)]
struct Sent {
    epoch: i64,
    preview: i32,
    bytes: usize,
    chars: usize,
}

impl Told {
    /// What was told in the first lane takes the place of previews.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Block(block, ordinal) => drop(self.growing.remove(&(*ordinal, block.parent_tool_use_id.clone()))),
            Event::Generation(turn) | Event::End(turn) => self.growing.retain(|(ordinal, _), _| *ordinal != turn.ordinal),
            Event::Status(_) | Event::Preview(_) => {}
        }
    }

    /// What a reader that stands there is to be told, as JSON.
    pub fn advance(&mut self, turn_id: &str, now: &TurnNow, at: &Progress) -> Vec<Arc<str>> {
        let runs = at.is_in(now.ordinal, now.generation);
        if runs && !at.is_behind(now.ordinal, now.after_seq) {
            // It has a later block, or one before is still on its way to it.
            return Vec::new();
        }
        // What was being said when an attempt ended is not gone on with.
        let growing = if runs { now.growing.as_slice() } else { &[] };
        let mut told = Vec::new();
        let about = |parent: &Option<String>| json!({ "turn_id": turn_id, "generation": now.generation, "after": now.after_seq, "parent_tool_use_id": parent });
        self.growing.retain(|(ordinal, parent), sent| {
            let goes_on = *ordinal != now.ordinal
                || growing.iter().any(|g| g.parent_tool_use_id == *parent && (now.epoch, g.preview) == (sent.epoch, sent.preview));
            if !goes_on {
                let mut data = about(parent);
                data["withdrawn"] = true.into();
                told.push(data.to_string().into());
            }
            goes_on
        });
        for growing in growing {
            let begun = || Sent { epoch: now.epoch, preview: growing.preview, bytes: 0, chars: 0 };
            let sent = self.growing.entry((now.ordinal, growing.parent_tool_use_id.clone())).or_insert_with(begun);
            let text = &growing.text[sent.bytes..];
            if text.is_empty() && sent.bytes > 0 {
                continue;
            }
            let mut data = about(&growing.parent_tool_use_id);
            data["type"] = growing.kind.as_str().into();
            if let Some(name) = &growing.tool_name {
                data["tool_name"] = name.as_str().into();
            }
            data["at"] = sent.chars.into();
            data["text"] = text.into();
            if !text.is_empty() {
                told.push(data.to_string().into());
            }
            (sent.bytes, sent.chars) = (growing.text.len(), growing.chars);
        }
        told
    }
}

/// Which turns readers watch, by session.
pub type Watched = BTreeMap<String, BTreeSet<String>>;

/// Polls what workers write of the turns that are watched, and publishes it, until `stop`.
pub async fn follow(store: Store, mut watched: watch::Receiver<Watched>, newest: watch::Sender<Newest>, stop: CancellationToken) {
    let follow = async {
        let mut lane = Lane { store, turns: Vec::new(), with_previews: Vec::new(), renew_at: Instant::now() };
        loop {
            if watched.has_changed().unwrap_or(true) || lane.turns.is_empty() {
                if watched.borrow().is_empty() {
                    newest.send_if_modified(|newest| !std::mem::take(newest).is_empty());
                    if watched.changed().await.is_err() {
                        return;
                    }
                }
                lane.watch(watched.borrow_and_update().values().flatten().take(TURNS_MAX).cloned().collect());
            }
            let since = Instant::now();
            if let Err(error) = lane.poll(&newest).await {
                debug!(%error, "Previews were not read: {error}");
            }
            // Busy at most half of the time, however slow the database is.
            sleep(TICK.max(since.elapsed())).await;
        }
    };
    stop.run_until_cancelled(follow).await;
}

struct Lane {
    store: Store,
    turns: Vec<String>,
    /// Those of them whose pools have previews.
    with_previews: Vec<String>,
    renew_at: Instant,
}

impl Lane {
    fn watch(&mut self, turns: Vec<String>) {
        if turns.iter().any(|turn| !self.turns.contains(turn)) {
            self.renew_at = Instant::now();
        }
        self.with_previews.retain(|turn| turns.contains(turn));
        self.turns = turns;
    }

    async fn poll(&mut self, newest: &watch::Sender<Newest>) -> sqlx::Result<()> {
        if self.renew_at <= Instant::now() {
            self.with_previews = self.store.watch_previews(&self.turns, WATCH).await?;
            self.renew_at = Instant::now() + RENEW;
        }
        let at = |turn: &String| newest.borrow().get(turn).map_or((0, 0), |now| (now.epoch, now.n));
        let after: Vec<_> = self.with_previews.iter().map(|turn| (turn.clone(), at(turn).0, at(turn).1)).collect();
        let rows = if after.is_empty() { Vec::new() } else { self.store.previews(&after).await? };
        newest.send_if_modified(|newest| {
            let before = newest.len();
            newest.retain(|turn, _| self.with_previews.contains(turn));
            let changed = before != newest.len() || !rows.is_empty();
            for row in rows {
                Arc::make_mut(newest.entry(row.turn_id.clone()).or_default()).take(row);
            }
            changed
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::progress::SharedPage;
    use super::*;
    use crate::store::TurnState;

    fn row(n: i32, after_seq: i32, open: &[i32], piece: Option<(i32, i32, &str)>) -> PreviewRow {
        PreviewRow {
            turn_id: "t".to_owned(),
            epoch: 7,
            n,
            ordinal: 2,
            generation: 1,
            after_seq,
            open: open.to_vec(),
            preview: piece.map(|(preview, ..)| preview),
            kind: Some("content".to_owned()),
            tool_name: None,
            parent_tool_use_id: None,
            at: piece.map(|(_, at, _)| at),
            text: piece.map(|(.., text)| text.to_owned()),
        }
    }

    fn told(reader: &mut Told, now: &TurnNow, seq: i32) -> Vec<String> {
        told_in(reader, now, seq, "in_progress", 1)
    }

    fn told_in(reader: &mut Told, now: &TurnNow, seq: i32, status: &str, generation: i32) -> Vec<String> {
        let mut at = Progress::in_turn("s".to_owned(), 2, seq);
        let (turn_id, status) = ("t".to_owned(), status.to_owned());
        let state = TurnState { turn_id, ordinal: 2, status, generation, attempt: 1, wait_reason: None, error: None };
        at.advance(&[SharedPage { state: Arc::new(state), blocks: Vec::new(), more: false }]);
        let told = reader.advance("t", now, &at);
        let show = |data: &Arc<str>| {
            let data: Value = serde_json::from_str(data).unwrap();
            if data["withdrawn"] == true { "withdrawn".to_owned() } else { format!("{}:{}", data["at"], data["text"].as_str().unwrap()) }
        };
        told.iter().map(show).collect()
    }

    #[test]
    fn a_reader_gets_each_text_from_its_beginning_and_only_behind_its_last_block() {
        let (mut now, mut early, mut late) = (TurnNow::default(), Told::default(), Told::default());
        now.take(row(1, 3, &[1], Some((1, 0, "né"))));
        assert_eq!(told(&mut early, &now, 3), ["0:né"]);
        assert!(told(&mut early, &now, 3).is_empty(), "nothing new");
        now.take(row(2, 3, &[1], Some((1, 2, "!"))));
        assert_eq!(told(&mut early, &now, 3), ["2:!"]);
        assert_eq!(told(&mut late, &now, 3), ["0:né!"], "who comes later gets all of it");
        assert!(told(&mut late, &now, 4).is_empty(), "its block is there");
        assert!(told(&mut late, &now, 2).is_empty(), "the block before is on its way");
        now.take(row(3, 3, &[], None));
        assert_eq!(told(&mut early, &now, 3), ["withdrawn"], "no block came");
        now.take(row(4, 3, &[2], Some((2, 5, "gap"))));
        assert!(told(&mut early, &now, 3).is_empty(), "never from the middle");
    }

    #[test]
    fn what_was_being_said_when_an_attempt_ended_is_withdrawn_and_not_said_again() {
        let (mut now, mut reader) = (TurnNow::default(), Told::default());
        now.take(row(1, 3, &[1], Some((1, 0, "dead"))));
        assert_eq!(told(&mut reader, &now, 3), ["0:dead"]);
        assert_eq!(told_in(&mut reader, &now, 3, "pending", 1), ["withdrawn"]);
        assert!(told_in(&mut reader, &now, 3, "pending", 1).is_empty());
        assert!(told_in(&mut reader, &now, 3, "in_progress", 2).is_empty(), "of another generation");
        assert!(told_in(&mut Told::default(), &now, 3, "in_progress", 2).is_empty());
    }

    #[test]
    fn another_worker_s_previews_begin_anew() {
        let (mut now, mut reader) = (TurnNow::default(), Told::default());
        now.take(row(5, 0, &[1], Some((1, 0, "abc"))));
        assert_eq!(told(&mut reader, &now, 0), ["0:abc"]);
        now.take(PreviewRow { epoch: 8, ..row(1, 0, &[1], Some((1, 0, "abcd"))) });
        assert_eq!(told(&mut reader, &now, 0), ["withdrawn", "0:abcd"]);
    }
}
