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
