//! What the queue should do, in plain Rust: no locks, no races, one act after the other.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use turnmill::store::{Claimed, Receipt, Releasing, Taken};
use turnmill::turn::Ending;

use crate::properties::WORKERS;

/// What an act answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    Done(bool),
    Count(usize),
    Status(String),
    Turn(String),
    Refused(String),
}

#[derive(Debug, Clone)]
struct Turn {
    id: String,
    session: String,
    ordinal: i32,
    key: Option<u8>,
    /// What a repeated enqueue must say again.
    body: (Option<u8>, u8),
    status: &'static str,
    blocks: i32,
    cancel_asked: bool,
    job: Option<Job>,
}

#[derive(Debug, Clone)]
struct Job {
    state: &'static str,
    at_once: bool,
    /// Of a leased one: worker, epoch, slot.
    worker: Option<usize>,
    epoch: Option<i64>,
    slot: Option<i64>,
    /// Its holder has given it back in words: not twice.
    given_back: bool,
    attempt: i32,
    generation: i32,
    failures: i32,
    offset: i64,
}

#[derive(Debug, Clone)]
struct Held {
    state: &'static str,
    epoch: i64,
    turn: Option<String>,
}

#[derive(Debug)]
pub struct Reference {
    turns: Vec<Turn>,
    held: BTreeMap<i64, Held>,
    pub leases: [bool; 3],
    pub cap: i32,
    last: Outcome,
}

impl Reference {
    pub fn new(cap: i32) -> Self {
        Self { turns: Vec::new(), held: BTreeMap::new(), leases: [true; 3], cap, last: Outcome::Nothing }
    }

    /// What the last act should have answered.
    pub fn outcome(&mut self) -> Outcome {
        std::mem::replace(&mut self.last, Outcome::Nothing)
    }

    pub fn nothing(&mut self) -> Outcome {
        self.last = Outcome::Nothing;
        Outcome::Nothing
    }

    pub fn count(&mut self, count: usize) -> Outcome {
        self.last = Outcome::Count(count);
        Outcome::Count(count)
    }

    pub fn nth_turn(&self, nth: usize) -> Option<String> {
        (!self.turns.is_empty()).then(|| self.turns[self.turns.len() - 1 - nth % self.turns.len()].id.clone())
    }

    pub fn offset_of(&self, turn: &str) -> i64 {
        self.turns.iter().find(|it| it.id == turn).and_then(|turn| turn.job.as_ref()).map_or(0, |job| job.offset)
    }

    pub fn enqueue(&mut self, session: Option<u8>, key: Option<u8>, body: u8, receipt: Option<&Receipt>) {
        let same_key = self.turns.iter().find(|turn| key.is_some() && turn.key == key);
        self.last = match (same_key, receipt) {
            (Some(turn), _) if turn.body == (session, body) => Outcome::Turn(turn.id.clone()),
            (Some(_), _) => Outcome::Refused("TM409".to_owned()),
            (None, None) => Outcome::Turn("a new one".to_owned()),
            (None, Some(receipt)) => {
                let session_id = session.map_or_else(|| receipt.session_id.clone(), |session| format!("sess_{session}"));
                let of_session = || self.turns.iter().filter(|turn| turn.session == session_id);
                let state = if of_session().any(|turn| turn.job.is_some()) { "waiting" } else { "ready" };
                let job = Job {
                    state,
                    at_once: true,
                    worker: None,
                    epoch: None,
                    slot: None,
                    given_back: false,
                    attempt: 1,
                    generation: 1,
                    failures: 0,
                    offset: 0,
                };
                let turn = Turn {
                    id: receipt.turn_id.clone().unwrap(),
                    ordinal: i32::try_from(of_session().count()).unwrap() + 1,
                    session: session_id,
                    key,
                    body: (session, body),
                    status: "pending",
                    blocks: 0,
                    cancel_asked: false,
                    job: Some(job),
                };
                self.turns.push(turn);
                Outcome::Turn(receipt.turn_id.clone().unwrap())
            }
        };
    }

    /// Which of the ready turns go first is the queue's to say; how many, and that they might, is checked.
    pub fn claim(&mut self, worker: usize, wanted: i64, claimed: &[Claimed]) {
        let leases = self.leases;
        let orphan = |job: &Job| job.state == "leased" && job.worker.is_none_or(|worker| !leases[worker]);
        let jobs = || self.turns.iter().flat_map(|turn| &turn.job);
        let free = usize::try_from(self.cap).unwrap().saturating_sub(self.held.len());
        let wanted = usize::try_from(wanted).unwrap();
        let adopted = jobs().filter(|job| orphan(job)).count().min(wanted);
        let started = jobs().filter(|job| job.state == "ready" && job.at_once).count().min(free).min(wanted - adopted);
        self.last = Outcome::Count(adopted + started);
        for claim in claimed {
            let turn = self.turns.iter_mut().find(|turn| turn.id == claim.turn_id).expect("it was enqueued");
            let job = turn.job.as_mut().expect("it has not ended");
            match claim.taken {
                Taken::Adopted => {
                    assert!(orphan(job), "only from who lost it: {claim:?}");
                    assert_eq!(Some(claim.slot_id), job.slot, "with its slot");
                    self.held.get_mut(&claim.slot_id).expect("it is held").epoch = claim.epoch;
                }
                Taken::Claimed => {
                    assert!(job.state == "ready" && job.at_once, "only what may start: {claim:?}");
                    let held = Held { state: "creating", epoch: claim.epoch, turn: Some(claim.turn_id.clone()) };
                    assert!(self.held.insert(claim.slot_id, held).is_none(), "a slot is one turn's");
                }
            }
            assert_eq!((claim.journal_offset, claim.next_seq, claim.attempt), (job.offset, turn.blocks, job.attempt), "where it stood");
            (job.state, job.worker, job.epoch, job.slot) = ("leased", Some(worker), Some(claim.epoch), Some(claim.slot_id));
            job.given_back = false;
            turn.status = "in_progress";
        }
    }

    pub fn renew(&mut self, worker: usize) {
        self.last = Outcome::Done(std::mem::replace(&mut self.leases[worker], true));
    }

    /// The turn of this claim, if it is still its own.
    fn own(&mut self, claim: &Claimed) -> Option<&mut Turn> {
        let turn = self.turns.iter_mut().find(|turn| turn.id == claim.turn_id)?;
        let own = turn.job.as_ref().is_some_and(|job| (job.epoch, job.attempt) == (Some(claim.epoch), claim.attempt));
        self.last = Outcome::Done(own);
        own.then_some(turn)
    }

    pub fn sandbox_ready(&mut self, claim: &Claimed) {
        if self.own(claim).is_some() {
            self.held.get_mut(&claim.slot_id).unwrap().state = "busy";
        }
    }

    pub fn append(&mut self, claim: &Claimed, from: i64, bytes: i64, blocks: usize) {
        let Some(turn) = self.own(claim) else { return };
        let job = turn.job.as_mut().unwrap();
        if job.offset == from {
            job.offset += bytes;
            turn.blocks += i32::try_from(blocks).unwrap();
        } else {
            self.last = Outcome::Done(false);
        }
    }

    pub fn next_attempt(&mut self, claim: &Claimed, epoch: i64, blocks: usize) {
        let Some(turn) = self.own(claim) else { return };
        let job = turn.job.as_mut().unwrap();
        if job.worker.is_none() {
            // Handed over: it is for the next one to go on.
            self.last = Outcome::Done(false);
            return;
        }
        turn.blocks += i32::try_from(blocks).unwrap();
        (job.epoch, job.attempt, job.offset) = (Some(epoch), job.attempt + 1, 0);
        self.held.get_mut(&claim.slot_id).unwrap().epoch = epoch;
    }

    pub fn settle(&mut self, claim: &Claimed, how: Ending, blocks: usize) {
        let Some(turn) = self.own(claim) else { return };
        turn.blocks += i32::try_from(blocks).unwrap();
        self.release(claim);
        self.end(&claim.turn_id, how.as_str());
    }

    pub fn retry_later(&mut self, claim: &Claimed, restart: bool, charged: bool, at_once: bool) {
        let Some(turn) = self.own(claim) else { return };
        turn.status = "pending";
        let asked = turn.cancel_asked;
        let job = turn.job.as_mut().unwrap();
        (job.state, job.worker, job.epoch, job.slot, job.at_once) = ("ready", None, None, None, at_once);
        job.failures += i32::from(charged);
        if restart {
            (job.attempt, job.generation, job.offset) = (job.attempt + 1, job.generation + 1, 0);
        }
        self.release(claim);
        if asked {
            self.end(&claim.turn_id, "cancelled");
        }
    }

    pub fn hand_over(&mut self, claim: &Claimed) {
        // It names no attempt: the epoch says it all.
        let attempt = self.turns.iter().find(|turn| turn.id == claim.turn_id).and_then(|turn| turn.job.as_ref()).map(|job| job.attempt);
        let claim = Claimed { attempt: attempt.unwrap_or(claim.attempt), ..claim.clone() };
        if let Some(turn) = self.own(&claim) {
            let job = turn.job.as_mut().unwrap();
            job.worker = None;
            let again = std::mem::replace(&mut job.given_back, true);
            self.last = Outcome::Done(!again);
        }
    }

    pub fn hand_over_strangers(&mut self, worker: usize, known: &[i64]) {
        let mut given = 0;
        for job in self.turns.iter_mut().flat_map(|turn| &mut turn.job) {
            if job.worker == Some(worker) && !known.contains(&job.epoch.unwrap()) {
                job.worker = None;
                job.given_back = true;
                given += 1;
            }
        }
        self.last = Outcome::Count(given);
    }

    pub fn cancel(&mut self, turn: &str) {
        let it = self.turns.iter_mut().find(|it| it.id == turn).unwrap();
        let answer = match it.job.as_ref().map(|job| job.state) {
            None => it.status,
            Some("leased") => {
                it.cancel_asked = true;
                "cancelling"
            }
            Some(_) => {
                self.end(turn, "cancelled");
                "cancelled"
            }
        };
        self.last = Outcome::Status(answer.to_owned());
    }

    pub fn slot_freed(&mut self, slot: i64, epoch: i64) {
        let own = self.held.get(&slot).is_some_and(|held| (held.state, held.epoch) == ("releasing", epoch));
        if own {
            self.held.remove(&slot);
        }
        self.last = Outcome::Done(own);
    }

    pub fn take_releases(&mut self, due: &[Releasing]) {
        let releasing = self.held.values().filter(|held| held.state == "releasing").count();
        assert_eq!(due.len(), releasing, "each release can be taken over");
        for slot in due {
            self.held.get_mut(&slot.slot_id).unwrap().epoch = slot.epoch;
        }
    }

    pub fn tidy(&mut self) {
        for turn in self.turns.clone() {
            self.promote(&turn.session);
        }
    }

    fn release(&mut self, claim: &Claimed) {
        let held = self.held.get_mut(&claim.slot_id).unwrap();
        (held.state, held.turn) = ("releasing", None);
    }

    fn end(&mut self, turn: &str, status: &'static str) {
        let turn = self.turns.iter_mut().find(|it| it.id == turn).unwrap();
        (turn.status, turn.job, turn.cancel_asked) = (status, None, false);
        let session = turn.session.clone();
        self.promote(&session);
    }

    fn promote(&mut self, session: &str) {
        let first = self.turns.iter_mut().filter(|turn| turn.session == session).find_map(|turn| turn.job.as_mut());
        if let Some(job) = first.filter(|job| job.state == "waiting") {
            job.state = "ready";
        }
    }

    /// As `Fleet::queue` has it.
    pub fn queue(&self) -> Value {
        let turn = |turn: &Turn| {
            let job = turn.job.as_ref().map(|job| {
                let worker = job.worker.map(|worker| WORKERS[worker]);
                json!({ "state": job.state, "worker": worker, "epoch": job.epoch, "slot": job.slot, "attempt": job.attempt,
                    "generation": job.generation, "failures": job.failures, "offset": job.offset, "next_seq": turn.blocks })
            });
            let row = json!({ "ordinal": turn.ordinal, "status": turn.status, "cancel_asked": turn.cancel_asked, "blocks": turn.blocks,
                "seqs": (0..turn.blocks).collect::<Vec<_>>(), "job": job });
            (turn.id.clone(), row)
        };
        let held = |(id, held): (&i64, &Held)| (id.to_string(), json!({ "state": held.state, "epoch": held.epoch, "turn": held.turn }));
        json!({
            "turns": self.turns.iter().map(turn).collect::<serde_json::Map<_, _>>(),
            "held": self.held.iter().map(held).collect::<serde_json::Map<_, _>>(),
            "usable": usize::try_from(self.cap).unwrap().saturating_sub(self.held.len()),
            "stray_jobs": 0,
        })
    }
}
