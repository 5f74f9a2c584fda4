//! Random lives of the queue, on the real SQL, beside a reference that is too simple to be wrong.
//!
//! After each act the whole database must say what `reference.rs` says. A failure is shrunk to the shortest list of acts that
//! fails, and shown with its seed: `TURNMILL_SEED=… cargo test --test it properties` runs it again.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::Value;
use sqlx::PgPool;
use turnmill::agent::Spent;
use turnmill::store::{Answer, Claimed, Enqueue, NextAttempt, Renewal, Retry, Settle};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Fleet, Holding as _, append, ending, renew, spent};
use crate::reference::{Outcome, Reference};

const CASES: u32 = 40;
const ACTS_MAX: usize = 60;
pub const WORKERS: [&str; 3] = ["a", "b", "c"];
const SOME_TIME: Duration = Duration::from_secs(600);

/// What somebody does. A number picks one of what there is: of the claims ever made, stale ones too, or of the turns.
#[derive(Debug, Clone)]
pub enum Act {
    Enqueue { session: Option<u8>, key: Option<u8>, body: u8 },
    Claim { worker: usize, wanted: i64 },
    LoseLease { worker: usize },
    Renew { worker: usize },
    SandboxReady(usize),
    Append { claim: usize, bytes: i64, blocks: usize, misplaced: bool },
    NextAttempt { claim: usize, blocks: usize },
    Settle { claim: usize, ending: Ending, blocks: usize },
    RetryLater { claim: usize, restart: bool, charged: bool, at_once: bool },
    HandOver(usize),
    HandOverStrangers { worker: usize, knows: usize },
    Cancel(usize),
    SlotFreed(usize),
    TakeReleases,
    SetCap(i32),
    Tidy,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let worker = 0..WORKERS.len();
    // Mostly one of the newest.
    let claim = prop_oneof![4 => 0..3usize, 1 => 0..30usize];
    let one = prop_oneof![
        8 => (prop::option::weighted(0.8, 0..3u8), prop::option::weighted(0.3, 0..4u8), 0..2u8)
            .prop_map(|(session, key, body)| Act::Enqueue { session, key, body }),
        8 => (worker.clone(), 1..4i64).prop_map(|(worker, wanted)| Act::Claim { worker, wanted }),
        2 => worker.clone().prop_map(|worker| Act::LoseLease { worker }),
        2 => worker.clone().prop_map(|worker| Act::Renew { worker }),
        3 => claim.clone().prop_map(Act::SandboxReady),
        6 => (claim.clone(), 1..9i64, 0..4usize, prop::bool::weighted(0.2))
            .prop_map(|(claim, bytes, blocks, misplaced)| Act::Append { claim, bytes, blocks, misplaced }),
        2 => (claim.clone(), 0..2usize).prop_map(|(claim, blocks)| Act::NextAttempt { claim, blocks }),
        5 => (claim.clone(), prop_oneof![Just(Ending::Completed), Just(Ending::Failed), Just(Ending::Cancelled)], 0..3usize)
            .prop_map(|(claim, ending, blocks)| Act::Settle { claim, ending, blocks }),
        3 => (claim.clone(), any::<[bool; 3]>())
            .prop_map(|(claim, [restart, charged, at_once])| Act::RetryLater { claim, restart, charged, at_once }),
        2 => claim.clone().prop_map(Act::HandOver),
        1 => (worker, claim.clone()).prop_map(|(worker, knows)| Act::HandOverStrangers { worker, knows }),
        3 => (0..8usize).prop_map(Act::Cancel),
        5 => claim.prop_map(Act::SlotFreed),
        2 => Just(Act::TakeReleases),
        2 => (0..5i32).prop_map(Act::SetCap),
        1 => Just(Act::Tidy),
    ];
    prop::collection::vec(one, 1..ACTS_MAX)
}

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whatever_is_done_in_whatever_order_the_queue_does_as_its_reference(pool: PgPool) {
    let seed: u64 = std::env::var("TURNMILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let runtime = tokio::runtime::Handle::current();
    let failure = tokio::task::spawn_blocking(move || {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        runner.run(&acts(), |acts| runtime.block_on(live(Fleet::new(pool.clone()), &acts))).err()
    });
    match failure.await.unwrap() {
        Some(TestError::Fail(why, acts)) => panic!("TURNMILL_SEED={seed}: {why}\n{acts:#?}"),
        Some(TestError::Abort(why)) => panic!("TURNMILL_SEED={seed}: {why}"),
        None => {}
    }
}

/// One life, from an empty database.
async fn live(fleet: Fleet, acts: &[Act]) -> Result<(), TestCaseError> {
    fleet.begin_anew().await;
    let mut reference = Reference::new(fleet.cap_of_default().await);
    let mut claims: Vec<Claimed> = Vec::new();
    for (nth, act) in acts.iter().enumerate() {
        let did = carry_out(&fleet, act, &mut claims, &mut reference).await;
        let expected = reference.outcome();
        let at = format!("act {nth}, {act:?}");
        prop_assert_eq!(did, expected, "{}", at);
        let (now, should) = (fleet.queue().await, reference.queue());
        prop_assert!(now == should, "{}: the database has\n{:#}\ninstead of\n{:#}", at, now, should);
    }
    fleet.books_balance().await;
    fleet.store.sum_charges().await.unwrap();
    fleet.books_balance().await;
    Ok(())
}

/// The newest first.
fn pick(claims: &[Claimed], nth: usize) -> Option<Claimed> {
    (!claims.is_empty()).then(|| claims[claims.len() - 1 - nth % claims.len()].clone())
}

/// Does it in the database and tells the reference.
#[expect(clippy::too_many_lines, reason = "a table: one act after the other")]
async fn carry_out(fleet: &Fleet, act: &Act, claims: &mut Vec<Claimed>, reference: &mut Reference) -> Outcome {
    let store = &fleet.store;
    let why = TurnError::new("some_code", "some words");
    match *act {
        Act::Enqueue { session, key, body } => {
            let turn = Enqueue {
                prompt: format!("body {body}"),
                project_id: Some("p1".to_owned()),
                session_id: session.map(|session| format!("sess_{session}")),
                idempotency_key: key.map(|key| format!("key_{key}")),
                ..Enqueue::default()
            };
            let receipt = store.enqueue(&turn).await;
            reference.enqueue(session, key, body, receipt.as_ref().ok());
            match receipt {
                Ok(receipt) => Outcome::Turn(receipt.turn_id.unwrap()),
                Err(error) => {
                    Outcome::Refused(error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned())
                }
            }
        }
        Act::Claim { worker, wanted } => {
            let claimed = store.claim(WORKERS[worker], wanted).await.unwrap();
            reference.claim(worker, wanted, &claimed);
            claims.extend(claimed.iter().cloned());
            Outcome::Count(claimed.len())
        }
        Act::LoseLease { worker } => {
            fleet.let_lease_expire(WORKERS[worker]).await;
            reference.leases[worker] = false;
            reference.nothing()
        }
        Act::Renew { worker } => {
            let held = renew(store, WORKERS[worker], SOME_TIME).await == Renewal::Extended;
            reference.renew(worker);
            Outcome::Done(held)
        }
        Act::SandboxReady(claim) => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            reference.sandbox_ready(&job);
            let done = store.sandbox_ready(&job, "i-1").await.unwrap().is_ok();
            fleet.age_sandboxes(90).await;
            Outcome::Done(done)
        }
        Act::Append { claim, bytes, blocks, misplaced } => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            let from = reference.offset_of(&job.turn_id) + i64::from(misplaced);
            reference.append(&job, from, bytes, blocks);
            let texts = vec!["said"; blocks];
            Outcome::Done(append(store, job.append_of(from, from + bytes, &texts)).await == Answer::Done)
        }
        Act::NextAttempt { claim, blocks } => {
            let Some(mut job) = pick(claims, claim) else { return reference.nothing() };
            let journal_offset = reference.offset_of(&job.turn_id);
            let epoch = store.next_epoch().await.unwrap();
            let (blocks, spent) = (some_blocks(blocks), some_spending(claim));
            let next =
                NextAttempt { epoch, journal_offset, blocks: &blocks, resumes: true, forgets: false, spent: spent.as_ref(), why: &why };
            let seq = store.next_attempt(&job, &next).await.unwrap();
            reference.next_attempt(&job, epoch, blocks.len());
            if let Ok(seq) = seq {
                job.go_on(&next, seq, None, Duration::ZERO);
                claims.push(job);
            }
            Outcome::Done(seq.is_ok())
        }
        Act::Settle { claim, ending: how, blocks } => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            let journal_offset = reference.offset_of(&job.turn_id);
            let settle = Settle { journal_offset, blocks: some_blocks(blocks), spent: some_spending(claim), ..ending(how) };
            reference.settle(&job, how, blocks);
            Outcome::Done(store.settle(&job, &settle, Duration::ZERO).await.unwrap().is_ok())
        }
        Act::RetryLater { claim, restart, charged, at_once } => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            let delay = if at_once { Duration::ZERO } else { SOME_TIME };
            reference.retry_later(&job, restart, charged, at_once);
            let retry = Retry { delay, charged, restart, keep: false, spent: some_spending(claim), why: &why };
            Outcome::Done(store.retry_later(&job, &retry, Duration::ZERO).await.unwrap().is_ok())
        }
        Act::HandOver(claim) => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            reference.hand_over(&job);
            Outcome::Done(store.hand_over(&job).await.unwrap().is_ok())
        }
        Act::HandOverStrangers { worker, knows } => {
            let known: Vec<i64> = pick(claims, knows).map(|job| job.epoch).into_iter().collect();
            reference.hand_over_strangers(worker, &known);
            Outcome::Count(store.hand_over_strangers(WORKERS[worker], &known).await.unwrap().try_into().unwrap())
        }
        Act::Cancel(nth) => {
            let Some(turn) = reference.nth_turn(nth) else { return reference.nothing() };
            reference.cancel(&turn);
            Outcome::Status(store.cancel(&turn, None).await.unwrap())
        }
        Act::SlotFreed(claim) => {
            let Some(job) = pick(claims, claim) else { return reference.nothing() };
            reference.slot_freed(job.slot_id, job.epoch);
            Outcome::Done(store.slot_freed(job.slot_id, job.epoch).await.unwrap().is_ok())
        }
        Act::TakeReleases => {
            let due = store.due_releases(100, Duration::ZERO).await.unwrap();
            reference.take_releases(&due);
            let mut freed = true;
            for slot in &due {
                reference.slot_freed(slot.slot_id, slot.epoch);
                freed &= store.slot_freed(slot.slot_id, slot.epoch).await.unwrap().is_ok();
            }
            assert!(freed, "whoever took a release may free its slot");
            reference.count(due.len())
        }
        Act::SetCap(cap) => {
            fleet.cap("default", cap).await;
            reference.cap = cap;
            reference.nothing()
        }
        Act::Tidy => {
            store.tidy().await.unwrap();
            reference.tidy();
            reference.nothing()
        }
    }
}

/// One in three does not say; amounts have more digits than are kept.
fn some_spending(nth: usize) -> Option<Spent> {
    (!nth.is_multiple_of(3)).then(|| spent(0.000_000_7 + f64::from(u32::try_from(nth).unwrap()) / 3.0))
}

fn some_blocks(count: usize) -> Vec<turnmill::block::Block> {
    vec![turnmill::block::Block::error("some_code", "some words"); count]
}

impl Fleet {
    /// As after the migrations, with the workers.
    async fn begin_anew(&self) {
        let tables = "TRUNCATE turnmill.sessions, turnmill.jobs, turnmill.attempts, turnmill.cancel_requests, turnmill.workers,
                        turnmill.charges, turnmill.fresh_charges, turnmill.spend_days CASCADE;
                      UPDATE turnmill.spend_state SET day = '-infinity', usd = 0;
                      UPDATE turnmill.pools SET sandbox_usd_per_hour = 0.17;
                      DELETE FROM turnmill.slots;";
        sqlx::raw_sql(tables).execute(&self.pool).await.unwrap();
        self.cap("default", 0).await;
        self.cap("default", 2).await;
        for worker in WORKERS {
            self.worker(worker).await;
            renew(&self.store, worker, SOME_TIME).await;
        }
    }

    async fn cap_of_default(&self) -> i32 {
        self.store.pools().await.unwrap()[0].cap
    }

    /// All that decides, in the reference's words.
    async fn queue(&self) -> Value {
        let statement = "SELECT jsonb_build_object(
            'turns', (SELECT coalesce(jsonb_object_agg(t.id, jsonb_build_object('ordinal', t.ordinal, 'status', t.status,
                'cancel_asked', EXISTS (SELECT FROM turnmill.cancel_requests c JOIN turnmill.jobs USING (turn_id) WHERE c.turn_id = t.id),
                'blocks', (SELECT count(*) FROM turnmill.blocks b WHERE b.turn_id = t.id),
                'seqs', (SELECT coalesce(jsonb_agg(seq ORDER BY seq), '[]') FROM turnmill.blocks b WHERE b.turn_id = t.id),
                'job', (SELECT jsonb_build_object('state', state, 'worker', worker_id, 'epoch', epoch, 'slot', slot_id, 'attempt', attempt,
                    'generation', generation, 'failures', failures, 'offset', journal_offset, 'next_seq', next_seq)
                  FROM turnmill.jobs j WHERE j.turn_id = t.id))), '{}') FROM turnmill.turns t),
            'held', (SELECT coalesce(jsonb_object_agg(id, jsonb_build_object('state', state, 'epoch', epoch, 'turn', turn_id)), '{}')
                FROM turnmill.slots WHERE state <> 'free'),
            'usable', (SELECT count(*) FROM turnmill.slots WHERE state = 'free' AND NOT retire),
            'stray_jobs', (SELECT count(*) FROM turnmill.jobs j WHERE NOT EXISTS (SELECT FROM turnmill.turns t WHERE t.id = j.turn_id)))";
        sqlx::query_scalar(statement).fetch_one(&self.pool).await.unwrap()
    }
}
