//! Each check of the protocol taken away in turn: the model must be able to tell the difference.

use std::collections::BTreeSet;
use std::time::Duration;

use stateright::{Checker, HasDiscoveries, Model as _};

use crate::{Fence, Protocol};

const BLOCKS: &str = "blocks are lines of the journal, in order, none twice, none missing";
const WHOLE: &str = "a completed turn has its whole journal";
const STALE_WRITE: &str = "no write of a stale epoch takes effect";
const STALE_ACT: &str = "no act of a stale epoch takes effect in a sandbox";
const ONCE: &str = "an agent is started once per attempt";
const CAP: &str = "live sandboxes stay within the cap";
const FREE: &str = "a slot is free only when its sandbox is gone";
const RECORD: &str = "a sandbox is killed only when that is on record";
const ORDER: &str = "turns of a session run one at a time, in order";
const STUCK: &str = "when nobody can go on, all has ended and nothing is left";

struct Twin {
    turns: usize,
    faults: u8,
    cancels: u8,
    without: Fence,
}

/// One turn, and one fault: most twins need no more.
fn without(without: Fence) -> Twin {
    Twin { turns: 1, faults: 1, cancels: 0, without }
}

impl Twin {
    fn breaks(self, promise: &'static str) {
        let Self { turns, faults, cancels, without } = self;
        let checker = Protocol { turns, faults, cancels, without: Some(without) }
            .checker()
            // Some twins run in circles for ever.
            .timeout(Duration::from_secs(30))
            .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([promise])))
            .spawn_bfs()
            .join();
        checker.assert_any_discovery(promise);
    }

    fn with(self, turns: usize, faults: u8, cancels: u8) -> Self {
        Self { turns, faults, cancels, ..self }
    }
}

#[test]
fn an_append_under_any_epoch_is_found_out() {
    without(Fence::AppendEpoch).breaks(STALE_WRITE);
}

#[test]
fn an_append_at_any_offset_writes_a_block_twice() {
    without(Fence::AppendOffset).breaks(BLOCKS);
    without(Fence::AppendOffset).breaks(WHOLE);
}

#[test]
fn a_settle_under_any_epoch_is_found_out() {
    without(Fence::SettleEpoch).breaks(STALE_WRITE);
}

#[test]
fn a_retry_under_any_epoch_is_found_out() {
    without(Fence::RetryEpoch).with(1, 2, 0).breaks(STALE_WRITE);
}

#[test]
fn a_sandbox_made_known_under_any_epoch_is_found_out() {
    without(Fence::ReadyEpoch).breaks(STALE_WRITE);
}

#[test]
fn a_slot_freed_under_any_epoch_is_found_out() {
    without(Fence::FreedEpoch).breaks(STALE_WRITE);
}

#[test]
fn a_stale_slot_freed_frees_a_slot_whose_sandbox_lives() {
    without(Fence::FreedEpoch).with(2, 2, 0).breaks(FREE);
}

#[test]
fn a_cancel_that_ends_a_turn_under_its_worker_leaves_a_sandbox_and_its_slot() {
    without(Fence::CancelState).with(1, 1, 1).breaks(STUCK);
}

#[test]
fn a_promotion_without_a_look_at_the_others_lets_turns_overlap() {
    without(Fence::PromoteCheck).with(2, 1, 0).breaks(ORDER);
}

#[test]
fn without_tidy_a_turn_that_was_enqueued_while_the_last_one_ended_waits_for_ever() {
    without(Fence::Tidy).with(2, 0, 0).breaks(STUCK);
}

#[test]
fn a_claim_whose_answer_was_lost_is_stuck_unless_its_own_worker_gives_it_back() {
    without(Fence::Strangers).breaks(STUCK);
}

#[test]
fn a_create_that_is_not_on_record_leaks_its_sandbox() {
    without(Fence::Intent).with(1, 1, 1).breaks(FREE);
}

#[test]
fn an_adopter_with_a_nonce_of_its_own_makes_a_second_sandbox() {
    without(Fence::SameNonce).breaks(CAP);
}

#[test]
fn a_refusal_says_nothing_about_a_create_before_or_after_it() {
    without(Fence::DoubtKept).with(1, 1, 1).breaks(FREE);
    without(Fence::DoubtKept).with(1, 2, 0).breaks(FREE);
}

#[test]
fn a_search_without_patience_misses_a_create_on_its_way() {
    without(Fence::SearchPatience).with(1, 1, 1).breaks(FREE);
}

#[test]
fn a_slot_freed_before_the_kill_lets_too_many_sandboxes_live() {
    without(Fence::KillBeforeFree).with(2, 1, 0).breaks(CAP);
}

#[test]
fn a_kill_before_the_settle_is_found_out() {
    without(Fence::KillOnRecord).breaks(RECORD);
}

#[test]
fn a_supervisor_that_looks_at_no_epoch_is_found_out() {
    without(Fence::SandboxEpoch).with(1, 1, 1).breaks(STALE_ACT);
}

#[test]
fn a_supervisor_without_its_mkdir_starts_the_agent_twice() {
    without(Fence::MkdirOnce).breaks(ONCE);
}

#[test]
fn a_start_whose_answer_was_lost_counts_as_a_start() {
    without(Fence::StartRemembered).with(1, 2, 0).breaks(ONCE);
}

/// Not every check is needed twice: here the epoch alone would do, as a worker settles only where its appends stand.
#[test]
fn the_offset_of_a_settle_is_a_second_lock() {
    let protocol = Protocol { turns: 1, faults: 2, cancels: 1, without: Some(Fence::SettleOffset) };
    protocol.checker().spawn_bfs().join().assert_properties();
}
