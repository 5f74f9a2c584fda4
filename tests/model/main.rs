//! The protocol as a model, searched to the end by `stateright`; and its broken twins, each of which must be found out.
//!
//! Two workers, one session of one or two turns, one slot, E2B with its sandboxes, and the supervisor in each. Any
//! `faults` of these may happen at any moment, in any order: a lease runs out under a worker that goes on as if nothing
//! had happened, a worker crashes or hands over, the answer of a statement, a claim, a create or a start of the agent is
//! lost, a statement runs long after its sender gave it up, E2B refuses a create, an agent fails, a sandbox vanishes.
//! Everything else happens in any order too, and users cancel when they like.
//!
//! | model | code |
//! | --- | --- |
//! | `World::claim` | `store/claim.sql`: adopt, or ready job with free slot; epoch, intent and nonce |
//! | `World::execute` | `create_asked`, `sandbox_ready`, `slot_freed` of `store/slots.rs`; `append.sql`, `next_attempt.sql`, `settle.sql`; `retry_later`, `hand_over` |
//! | `World::promote`, `cancel`, `enqueue`, `commit_enqueue`, `tidy` | `turnmill.promote`, `cancel_turn`, `enqueue_turn` before and at its commit, `Store::tidy` |
//! | `World::act`, `start`, `notice_cancel`, `give_up` | `worker/attempt.rs`, `startup.rs`, `follow.rs` |
//! | `World::release`, `search`, `take_release` | `upkeep::release`, `search`, `Store::due_releases` |
//! | `admit`, `start` | `fence` and `start` in `e2b/run-turn`: the epoch, and `mkdir` |
//! | `Action::Renew`, `LoseLease` | `worker/lease.rs`; nothing in the model relies on a worker that stops in time |
//!
//! One step is one statement, which Postgres runs as a whole, one call, or one act under the supervisor's lock. That the
//! statements are as whole as that is shown on real Postgres by `it::interleavings`; that each refuses a stale epoch, by
//! `it::zombies`.
//!
//! Left out: phases, readers, pools beyond one, hooks; `generation`, which grows where `attempt` does; E2B's v1, which has
//! no key that makes a create safe to repeat. One assumption about time: a create that was recorded has been sent and has
//! made its sandbox by the time that `upkeep::search` gives up waiting for it (`CREATE_SETTLED`).
//!
//! Every state is finite and no path goes in circles: only a new epoch or a fault could bring an earlier state back, and
//! both only grow. So what holds in every state in which nobody can go on holds at last on every path.

mod database;
mod protocol;
mod twins;
mod worker;
mod world;

use protocol::{Fence, Protocol};
use stateright::{Checker as _, Model as _};

/// Every state that this many turns, faults and cancels can bring about.
fn search(turns: usize, faults: u8, cancels: u8) {
    let protocol = Protocol { turns, faults, cancels, without: None };
    protocol.checker().threads(2).spawn_bfs().join().assert_properties();
}

#[test]
fn one_turn_survives_any_two_faults_and_a_cancel() {
    search(1, 2, 1);
}

#[test]
fn two_turns_of_a_session_survive_any_two_faults_and_a_cancel() {
    search(2, 2, 1);
}

/// Two million states: a minute or more.
#[test]
#[ignore = "for changes of the protocol: cargo test --test model -- --ignored"]
fn one_turn_survives_any_three_faults_and_a_cancel() {
    search(1, 3, 1);
}
