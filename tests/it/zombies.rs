//! The zombie matrix: every write of a worker, after every way to lose a turn, is refused and changes nothing at all,
//! in the database and in the sandbox.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use turnmill::block::Block;
use turnmill::local::postgres::passable_tempdir;
use turnmill::store::{Answer, Claimed, Fenced, NextAttempt, Position, Retry, Settle, Store};
use turnmill::turn::{Ending, TurnError};

use crate::harness::{Fleet, Holding as _, append, ending, renew, spent};

const SOME_TIME: Duration = Duration::from_secs(30);

/// How a worker that does not know it has lost its turn.
#[derive(Debug, Clone, Copy)]
enum Loss {
    LeaseRanOutAndAnotherAdopted,
    HandedOverAndAnotherAdopted,
    AnotherAdoptedAndSettled,
    AnotherAdoptedAndReleases,
    SettledAndAnotherReleases,
    WentOnToTheNextAttempt,
    RetriedAndCancelledInTheQueue,
    RetriedAndClaimedAnew,
    RestartedAndClaimedAnew,
    ForgottenWithItsSession,
}

const LOSSES: [Loss; 10] = [
    Loss::LeaseRanOutAndAnotherAdopted,
    Loss::HandedOverAndAnotherAdopted,
    Loss::AnotherAdoptedAndSettled,
    Loss::AnotherAdoptedAndReleases,
    Loss::SettledAndAnotherReleases,
    Loss::WentOnToTheNextAttempt,
    Loss::RetriedAndCancelledInTheQueue,
    Loss::RetriedAndClaimedAnew,
    Loss::RestartedAndClaimedAnew,
    Loss::ForgottenWithItsSession,
];

#[sqlx::test(migrator = "turnmill::store::MIGRATOR")]
async fn whoever_lost_a_turn_in_whatever_way_can_change_nothing(pool: PgPool) {
    let fleet = Fleet::new(pool);
    // The same slot for whoever comes next: the hardest case.
    fleet.cap("default", 1).await;
    let mut wrong = Vec::new();
    for loss in LOSSES {
        for has_sandbox in [false, true] {
            let zombie = fleet.lose_a_turn(loss, has_sandbox).await;
            for (call, zombie) in fleet.disguises(&zombie).await.iter().flat_map(|zombie| CALLS.map(|call| (call, zombie))) {
                let before = fleet.everything().await;
                if !refused(call, &fleet.store, zombie).await {
                    wrong.push(format!("{loss:?}, sandbox {has_sandbox}: {call} is not refused"));
                }
                for (table, rows) in fleet.everything().await {
                    if before[&table] != rows {
                        wrong.push(format!("{loss:?}, sandbox {has_sandbox}: {call} changes {table}"));
                    }
                }
            }
            fleet.clear_away().await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const CALLS: [&str; 12] = [
    "create_asked",
    "sandbox_ready",
    "agent_started",
    "append",
    "empty append",
    "next_attempt",
    "settle",
    "retry_later",
    "retry_later with restart",
    "hand_over",
    "hand_over_strangers",
    "slot_freed",
];

async fn refused(call: &str, store: &Store, zombie: &Claimed) -> bool {
    let why = TurnError::new("zombie", "was here");
    let retry = |restart| Retry { delay: Duration::ZERO, charged: true, restart, keep: false, spent: None, why: &why };
    let blocks = [Block::error("zombie", "was here")];
    let offset = zombie.journal_offset;
    match call {
        "create_asked" => store.create_asked(zombie).await.unwrap() == Err(Fenced),
        "sandbox_ready" => store.sandbox_ready(zombie, "i-zombie").await.unwrap() == Err(Fenced),
        "agent_started" => store.agent_started(zombie).await.unwrap() == Err(Fenced),
        "append" => matches!(append(store, zombie.append_of(offset, offset + 5, &["late"])).await, Answer::Fenced(_)),
        "empty append" => matches!(append(store, zombie.append_of(offset, offset + 5, &[])).await, Answer::Fenced(_)),
        "next_attempt" => {
            let epoch = store.next_epoch().await.unwrap();
            let spent = spent(1.0);
            let spent = Some(&spent);
            let next = NextAttempt { epoch, journal_offset: offset, blocks: &blocks, resumes: true, forgets: false, spent, why: &why };
            store.next_attempt(zombie, &next).await.unwrap() == Err(Fenced)
        }
        "settle" => {
            let settle = Settle { journal_offset: offset, blocks: blocks.to_vec(), spent: Some(spent(1.0)), ..ending(Ending::Failed) };
            store.settle(zombie, &settle, SOME_TIME).await.unwrap() == Err(Fenced)
        }
        "retry_later" => store.retry_later(zombie, &retry(false), SOME_TIME).await.unwrap() == Err(Fenced),
        "retry_later with restart" => store.retry_later(zombie, &retry(true), SOME_TIME).await.unwrap() == Err(Fenced),
        "hand_over" => store.hand_over(zombie).await.unwrap() == Err(Fenced),
        "hand_over_strangers" => store.hand_over_strangers("zombie", &[]).await.unwrap() == 0,
        "slot_freed" => store.slot_freed(zombie.slot_id, zombie.epoch).await.unwrap() == Err(Fenced),
        _ => unreachable!("{call}"),
    }
}

impl Fleet {
    /// A worker `zombie` takes a turn, and loses it like this. Another turn of the session waits behind it.
    async fn lose_a_turn(&self, loss: Loss, has_sandbox: bool) -> Claimed {
        let turn = self.enqueue("lost").await;
        let session = self.turn(&turn.turn_id).await.session_id;
        self.enqueue_in("next", Some(&session)).await;
        let (zombie, other) = (self.worker("zombie").await, self.worker("other").await);
        renew(&self.store, "zombie", SOME_TIME).await;
        let mut lost = zombie.claim_one().await;
        self.store.create_asked(&lost).await.unwrap().unwrap();
        if has_sandbox {
            self.store.sandbox_ready(&lost, "i-1").await.unwrap().unwrap();
            self.store.agent_started(&lost).await.unwrap().unwrap();
            assert_eq!(append(&self.store, lost.append_of(0, 10, &["said in time"])).await, Answer::Done);
            lost.journal_offset = 10;
        }
        let why = TurnError::new("sandbox_lost", "gone");
        let retry = |restart| Retry { delay: Duration::ZERO, charged: true, restart, keep: false, spent: None, why: &why };
        let settle = Settle { journal_offset: lost.journal_offset, ..ending(Ending::Completed) };
        let store = &self.store;
        match loss {
            Loss::LeaseRanOutAndAnotherAdopted | Loss::AnotherAdoptedAndSettled | Loss::AnotherAdoptedAndReleases => {
                self.let_lease_expire("zombie").await;
                let heir = other.claim_one().await;
                assert!(heir.turn_id == lost.turn_id && heir.epoch > lost.epoch);
                if !matches!(loss, Loss::LeaseRanOutAndAnotherAdopted) {
                    store.settle(&heir, &settle, SOME_TIME).await.unwrap().unwrap();
                }
                if matches!(loss, Loss::AnotherAdoptedAndSettled) {
                    store.slot_freed(heir.slot_id, heir.epoch).await.unwrap().unwrap();
                }
            }
            Loss::HandedOverAndAnotherAdopted => {
                store.hand_over(&lost).await.unwrap().unwrap();
                other.claim_one().await;
            }
            Loss::SettledAndAnotherReleases => {
                store.settle(&lost, &settle, Duration::ZERO).await.unwrap().unwrap();
                assert_eq!(store.due_releases(1, SOME_TIME).await.unwrap().len(), 1);
            }
            Loss::WentOnToTheNextAttempt => {
                let (epoch, journal_offset) = (store.next_epoch().await.unwrap(), lost.journal_offset);
                let next = NextAttempt { epoch, journal_offset, blocks: &[], resumes: true, forgets: false, spent: None, why: &why };
                store.next_attempt(&lost, &next).await.unwrap().unwrap();
                // In its own name, but the job of another task of it.
                self.sql("UPDATE turnmill.jobs SET worker_id = 'other' WHERE turn_id = $1", &lost.turn_id).await;
            }
            Loss::RetriedAndCancelledInTheQueue => {
                store.retry_later(&lost, &retry(false), Duration::ZERO).await.unwrap().unwrap();
                assert_eq!(store.cancel(&lost.turn_id, None).await.unwrap(), "cancelled");
                assert_eq!(store.due_releases(1, SOME_TIME).await.unwrap().len(), 1);
            }
            Loss::RetriedAndClaimedAnew | Loss::RestartedAndClaimedAnew => {
                let restart = matches!(loss, Loss::RestartedAndClaimedAnew);
                store.retry_later(&lost, &retry(restart), SOME_TIME).await.unwrap().unwrap();
                store.slot_freed(lost.slot_id, lost.epoch).await.unwrap().unwrap();
                let anew = other.claim_one().await;
                assert_eq!((&anew.turn_id, anew.generation), (&lost.turn_id, 1 + i32::from(restart)));
            }
            Loss::ForgottenWithItsSession => {
                store.settle(&lost, &settle, SOME_TIME).await.unwrap().unwrap();
                store.slot_freed(lost.slot_id, lost.epoch).await.unwrap().unwrap();
                for turn in store.turns(Some("pending"), 10).await.unwrap() {
                    store.cancel(&turn.id, None).await.unwrap();
                }
                assert!(store.forget_session(&lost.session_id).await.unwrap());
            }
        }
        lost
    }

    /// The zombie as it is; and as one that knows attempt and place of its successor, so that only the epoch gives it away.
    async fn disguises(&self, zombie: &Claimed) -> Vec<Claimed> {
        let mut all = vec![zombie.clone()];
        if let Some(Position { attempt, journal_offset, .. }) = self.store.position(&zombie.turn_id).await.unwrap() {
            all.push(Claimed { attempt, journal_offset, ..zombie.clone() });
        }
        all
    }

    /// Every row of every table.
    async fn everything(&self) -> BTreeMap<String, Value> {
        let tables = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'turnmill' AND table_type = 'BASE TABLE'";
        let mut all = BTreeMap::new();
        for table in sqlx::query_scalar::<_, String>(tables).fetch_all(&self.pool).await.unwrap() {
            let rows = format!("SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY to_jsonb(t)::text), '[]') FROM turnmill.{table} t");
            all.insert(table, sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&self.pool).await.unwrap());
        }
        all
    }

    /// The next zombie finds an empty house.
    async fn clear_away(&self) {
        sqlx::raw_sql(
            "TRUNCATE turnmill.sessions, turnmill.jobs, turnmill.attempts, turnmill.cancel_requests CASCADE; DELETE FROM turnmill.slots",
        )
        .execute(&self.pool)
        .await
        .unwrap();
        self.cap("default", 0).await;
        self.cap("default", 1).await;
    }
}

/// Nobody else's user id: `signal KILL` ends all that it has.
const AGENT: u32 = 1_499_999_999;

/// A sandbox without a server: a directory and the supervisor in it.
struct Sandbox(tempfile::TempDir);

impl Sandbox {
    fn new() -> Self {
        let root = passable_tempdir("turnmill-test-").unwrap();
        let home = root.path().join("home/user");
        std::fs::create_dir_all(root.path().join("var/lib/turnmill")).unwrap();
        std::fs::create_dir_all(&home).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&home, Some(AGENT), Some(AGENT)).unwrap();
        }
        std::fs::write(root.path().join("run-turn"), turnmill::sandbox::SUPERVISOR).unwrap();
        std::fs::write(root.path().join("input"), "{}\n").unwrap();
        Self(root)
    }

    fn run(&self, epoch: u32, words: &str) -> Output {
        let root = self.0.path();
        let mut command = Command::new("bash");
        command.arg(root.join("run-turn")).args(["--epoch", &epoch.to_string()]).args(words.split(' '));
        command.env("TURNMILL_ROOT", root).env("HOME", root).env("TURNMILL_AGENT_UID", AGENT.to_string()).output().unwrap()
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fn read(dir: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    all.insert(path.display().to_string(), Vec::new());
                    read(&path, all);
                } else {
                    all.insert(path.display().to_string(), std::fs::read(&path).unwrap());
                }
            }
        }
        let mut all = BTreeMap::new();
        read(&self.0.path().join("var"), &mut all);
        all
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.run(99, "signal --turn t --attempt 1 KILL");
        crate::harness::sweep(self.0.path());
    }
}

#[test]
fn whoever_lost_a_turn_can_change_nothing_in_its_sandbox_either() {
    let sandbox = Sandbox::new();
    let start = |attempt: u32, script: &str| format!("start --turn t --attempt {attempt} --input /input --journal-max 0 -- {script}");
    let probe = |epoch| serde_json::from_slice::<Value>(&sandbox.run(epoch, "probe --turn t --attempt 1").stdout).unwrap();
    sandbox.run(5, &start(1, "sleep 60"));
    for what in ["alive", "exited"] {
        if what == "exited" {
            sandbox.run(6, "signal --turn t --attempt 1 TERM");
        }
        let since = std::time::Instant::now();
        while probe(6)["state"] != what {
            assert!(since.elapsed() < crate::harness::PATIENCE, "it is not {what}: {}", probe(6));
            std::thread::yield_now();
        }
        let before = sandbox.files();
        for attempt in [1, 2] {
            let mut verbs = vec![start(attempt, "true")];
            verbs.extend(["probe", "finish"].map(|verb| format!("{verb} --turn t --attempt {attempt}")));
            verbs.extend(["INT", "TERM", "KILL"].map(|signal| format!("signal --turn t --attempt {attempt} {signal}")));
            verbs.push(format!("follow --turn t --attempt {attempt} --offset 0"));
            for verb in verbs {
                let output = sandbox.run(5, &verb);
                assert_eq!((output.status.code(), &*output.stdout), (Some(75), &b"{\"state\":\"fenced\"}\n"[..]), "{what}: {verb}");
                assert_eq!(sandbox.files(), before, "{what}: {verb}");
            }
        }
        assert_eq!(probe(6)["state"], what, "its holder goes on");
    }
}
