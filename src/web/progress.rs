//! How far one reader is in a session, and what it is to be told next. Pure: pages in, events out.
//!
//! Every event of a block or an end has a position, and positions only grow. A status has none: it is what a reader is
//! told first, whenever it comes, from the same snapshot as the blocks that follow, and again with every change. So
//! whoever reconnects, from wherever, never keeps a status that is stale.
//!
//! ```text
//! for each turn, in order:   generation?  status?  block …  [ status  end ]   once it has ended and all is told
//! ```
//!
//! Blocks and ends come in the order of turns: nothing of a turn before the end of the one before it. Only statuses of
//! later turns come early, as that of one which was cancelled while it waited.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::position::InSession;
use crate::store::{Place, StreamBlock, TurnPage, TurnState};

/// Something that a reader is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// What a turn is now.
    Status(Arc<TurnState>),
    /// The turn has started over: all that was told of its blocks no longer holds.
    Generation(Arc<TurnState>),
    /// One more block.
    Block(Arc<StreamBlock>, i32),
    /// The turn has ended, and that was all of it.
    End(Arc<TurnState>),
    /// Of a block that grows, as JSON: from the second lane, without a position.
    Preview(Arc<str>),
}

/// One reader's place.
#[derive(Debug, Clone)]
pub struct Progress {
    session_id: String,
    at: InSession,
    last_ordinal: i32,
    known: BTreeMap<i32, Arc<TurnState>>,
    /// Of the block at the place where it came back.
    generation: Option<i32>,
}

impl Progress {
    /// Of a session, for good.
    pub fn in_session(session_id: String, at: InSession) -> Self {
        Self { session_id, at, last_ordinal: i32::MAX, known: BTreeMap::new(), generation: None }
    }

    /// Of one turn in it, after a block.
    pub fn in_turn(session_id: String, ordinal: i32, seq: i32) -> Self {
        Self { session_id, at: InSession { ordinal, seq }, last_ordinal: ordinal, known: BTreeMap::new(), generation: None }
    }

    /// It comes back with blocks of this generation.
    pub fn coming_back(mut self, generation: Option<i32>) -> Self {
        self.generation = generation;
        self
    }

    /// The session.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    /// Where the next page for this reader begins.
    pub fn place(&self) -> Place {
        Place { session_id: self.session_id.clone(), ordinal: self.at.ordinal, seq: self.at.seq, last_ordinal: self.last_ordinal }
    }

    /// Whether there can't be more: it was one turn's, and that has ended.
    pub fn over(&self) -> bool {
        self.at.ordinal > self.last_ordinal
    }

    /// Takes note of a page that begins at or before this reader's place; what is to be told. Events that it has had
    /// already are left out, whichever page they are in.
    pub fn advance(&mut self, turns: &[SharedPage]) -> Vec<Event> {
        let mut told = Vec::new();
        // Whether all turns so far have ended and are told to the end.
        let mut in_order = true;
        for turn in turns {
            let ordinal = turn.state.ordinal;
            if ordinal < self.at.ordinal || ordinal > self.last_ordinal {
                continue;
            }
            self.note_generation(turn, &mut told);
            if !(in_order && turn.state.ended()) {
                self.note_status(turn, &mut told);
            }
            if !in_order {
                continue;
            }
            for block in &turn.blocks {
                if ordinal > self.at.ordinal || block.seq > self.at.seq {
                    self.at = InSession { ordinal, seq: block.seq };
                    told.push(Event::Block(block.clone(), ordinal));
                }
            }
            in_order = turn.state.ended() && !turn.more;
            if in_order {
                self.note_status(turn, &mut told);
                told.push(Event::End(turn.state.clone()));
                self.at = InSession::past(ordinal);
                self.known.remove(&ordinal);
            }
        }
        told
    }

    fn note_generation(&self, turn: &SharedPage, told: &mut Vec<Event>) {
        let ordinal = turn.state.ordinal;
        let grown = match self.known.get(&ordinal) {
            Some(known) => known.generation < turn.state.generation,
            None => ordinal == self.at.ordinal && self.generation.is_some_and(|before| before < turn.state.generation),
        };
        if grown {
            told.push(Event::Generation(turn.state.clone()));
        }
    }

    fn note_status(&mut self, turn: &SharedPage, told: &mut Vec<Event>) {
        let ordinal = turn.state.ordinal;
        if self.known.get(&ordinal).is_none_or(|known| **known != *turn.state) {
            self.known.insert(ordinal, turn.state.clone());
            told.push(Event::Status(turn.state.clone()));
        }
    }

    /// Whether the turn runs, and in this generation, as far as it was told.
    pub fn is_in(&self, ordinal: i32, generation: i32) -> bool {
        self.known(ordinal).is_some_and(|turn| turn.status == "in_progress" && turn.generation == generation)
    }

    /// Whether what comes next is the turn's block behind `seq`, as far as it was told.
    pub fn is_behind(&self, ordinal: i32, seq: i32) -> bool {
        let first = seq == -1 && self.at.seq == -1 && self.at.ordinal < ordinal;
        let begun = || self.known.keys().next() == Some(&ordinal);
        self.at == InSession { ordinal, seq } || (first && begun())
    }

    /// What this reader was told of a turn last.
    pub fn known(&self, ordinal: i32) -> Option<&Arc<TurnState>> {
        self.known.get(&ordinal)
    }
}

/// A page that many readers share.
#[derive(Debug, Clone)]
pub struct SharedPage {
    /// The turn.
    pub state: Arc<TurnState>,
    /// Its next blocks.
    pub blocks: Vec<Arc<StreamBlock>>,
    /// Whether there are more.
    pub more: bool,
}

impl From<TurnPage> for SharedPage {
    fn from(page: TurnPage) -> Self {
        Self { state: Arc::new(page.state), blocks: page.blocks.into_iter().map(Arc::new).collect(), more: page.more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(ordinal: i32, status: &str, generation: i32, seqs: std::ops::Range<i32>) -> SharedPage {
        let turn_id = format!("t{ordinal}");
        let block = |seq| StreamBlock {
            turn_id: turn_id.clone(),
            seq,
            generation,
            kind: "content".to_owned(),
            content: serde_json::value::RawValue::from_string("{}".to_owned()).unwrap(),
            parent_tool_use_id: None,
            created_at: chrono::DateTime::default(),
        };
        let blocks = seqs.map(|seq| Arc::new(block(seq))).collect();
        let state = TurnState { turn_id, ordinal, status: status.to_owned(), generation, attempt: 1, wait_reason: None, error: None };
        SharedPage { state: Arc::new(state), blocks, more: false }
    }

    fn told(progress: &mut Progress, pages: &[SharedPage]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::Status(turn) => format!("{} {}", turn.turn_id, turn.status),
            Event::Generation(turn) => format!("{} over {}", turn.turn_id, turn.generation),
            Event::Block(block, ordinal) => format!("{ordinal}:{}", block.seq),
            Event::End(turn) => format!("{} end", turn.turn_id),
            Event::Preview(_) => "preview".to_owned(),
        };
        progress.advance(pages).iter().map(name).collect()
    }

    #[test]
    fn whatever_pages_overlap_each_event_comes_once_and_in_order() {
        let mut reader = Progress::in_session("s".to_owned(), InSession::START);
        let first = [turn(1, "in_progress", 1, 0..2), turn(2, "pending", 1, 0..0)];
        assert_eq!(told(&mut reader, &first), ["t1 in_progress", "1:0", "1:1", "t2 pending"]);
        assert!(told(&mut reader, &first).is_empty(), "the same page once more");
        assert_eq!(told(&mut reader, &[turn(1, "in_progress", 1, 1..4)]), ["1:2", "1:3"], "one that begins before its place");
        let over = [turn(1, "pending", 2, 4..4), turn(2, "cancelled", 1, 0..0)];
        assert_eq!(told(&mut reader, &over), ["t1 over 2", "t1 pending", "t2 cancelled"], "the later one's end waits for its time");
        assert!(told(&mut reader, &over).is_empty());
        let ended = [turn(1, "failed", 2, 4..5), turn(2, "cancelled", 1, 0..0), turn(3, "in_progress", 1, 0..1)];
        assert_eq!(told(&mut reader, &ended), ["1:4", "t1 failed", "t1 end", "t2 end", "t3 in_progress", "3:0"]);
        assert!(told(&mut reader, &ended).is_empty());
    }

    #[test]
    fn what_is_not_a_block_yet_is_for_whoever_has_all_before_it() {
        let mut reader = Progress::in_session("s".to_owned(), InSession::START);
        assert!(!reader.is_behind(2, -1), "it does not know what is before");
        told(&mut reader, &[turn(1, "in_progress", 1, 0..0), turn(3, "pending", 1, 0..0)]);
        assert!(reader.is_behind(1, -1) && !reader.is_behind(1, 0) && !reader.is_behind(3, -1));
        told(&mut reader, &[turn(1, "in_progress", 1, 0..1)]);
        assert!(reader.is_behind(1, 0) && !reader.is_behind(1, -1));
        told(&mut reader, &[turn(1, "completed", 1, 1..1)]);
        assert!(reader.is_behind(3, -1), "there is no second turn");
    }

    #[test]
    fn the_end_waits_until_all_blocks_are_told() {
        let mut reader = Progress::in_turn("s".to_owned(), 1, -1);
        let part = SharedPage { more: true, ..turn(1, "completed", 1, 0..2) };
        assert_eq!(told(&mut reader, &[part]), ["0", "1"].map(|seq| format!("1:{seq}")));
        assert!(!reader.over());
        assert_eq!(told(&mut reader, &[turn(1, "completed", 1, 2..3)]), ["1:2", "t1 completed", "t1 end"]);
        assert!(reader.over());
    }

    #[test]
    fn who_comes_back_is_told_to_drop_blocks_only_of_an_earlier_generation() {
        let back = |generation| Progress::in_turn("s".to_owned(), 1, 3).coming_back(generation);
        assert_eq!(told(&mut back(Some(1)), &[turn(1, "in_progress", 2, 4..5)]), ["t1 over 2", "t1 in_progress", "1:4"]);
        assert_eq!(told(&mut back(Some(2)), &[turn(1, "in_progress", 2, 4..5)]), ["t1 in_progress", "1:4"]);
    }
}
