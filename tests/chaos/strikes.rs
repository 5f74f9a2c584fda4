//! How each fault is done, and what was done in the end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::{Fault, What};
use super::fleet::{CAP, Fleet};
use super::ledger::now_ms;
use super::load::{Load, enqueue_in};

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Kinds, in the order in which they were done.
    pub kinds: Vec<&'static str>,
    /// Faults that found nothing to hit or could not be done.
    pub idle: Vec<String>,
    /// Signals to workers.
    pub workers: Vec<Strike>,
    /// The pool's caps, in order.
    pub caps: Vec<CapChange>,
}

/// A signal to a worker.
#[derive(Debug, Clone)]
pub struct Strike {
    pub kind: &'static str,
    pub pid: u32,
    pub at_ms: i64,
}

/// A change of the cap that was committed between these times.
#[derive(Debug, Clone)]
pub struct CapChange {
    pub before_ms: i64,
    pub after_ms: i64,
    pub cap: i64,
    /// Slots that held a sandbox, or the intent of one, right after.
    pub held: i64,
}

type Shared = Arc<Mutex<Done>>;

/// Injects all of them at their times; then puts the cap back.
pub async fn run(plan: Vec<Fault>, fleet: Arc<Fleet>, load: Arc<Load>) -> Done {
    let since = Instant::now();
    let done: Shared = Arc::default();
    let first = CapChange { before_ms: 0, after_ms: 0, cap: i64::from(CAP), held: 0 };
    noted(&done, |done| done.caps.push(first));
    let mut faults = JoinSet::new();
    // Caps change one after the other, so that it is known which holds.
    let caps = Arc::new(tokio::sync::Mutex::new(()));
    for fault in plan {
        sleep(fault.at.saturating_sub(since.elapsed())).await;
        let (fleet, load, done, caps) = (fleet.clone(), load.clone(), done.clone(), caps.clone());
        faults.spawn(async move {
            let kind = fault.kind;
            let _one = if let What::Cap { .. } = fault.what { Some(caps.lock().await) } else { None };
            match strike(fault, &fleet, &load, &done).await {
                Ok(()) => noted(&done, |done| done.kinds.push(kind)),
                Err(error) => noted(&done, |done| done.idle.push(format!("{kind}: {error:#}"))),
            }
        });
    }
    faults.join_all().await;
    if let Err(error) = change_cap(CAP, &fleet, &done).await {
        noted(&done, |done| done.idle.push(format!("cap_changed: {error:#}")));
    }
    std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner))
}

fn noted(done: &Shared, note: impl FnOnce(&mut Done)) {
    note(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
}

async fn strike(fault: Fault, fleet: &Fleet, load: &Load, done: &Shared) -> anyhow::Result<()> {
    let hit = |pid| noted(done, |done| done.workers.push(Strike { kind: fault.kind, pid, at_ms: now_ms() }));
    match fault.what {
        What::KillWorker { nth, down } => {
            let at_ms = now_ms();
            let pid = fleet.kill_worker(nth, down).await?;
            noted(done, |done| done.workers.push(Strike { kind: fault.kind, pid, at_ms }));
        }
        What::SuspendWorker { nth, time } => fleet.suspend_worker(nth, time, hit).await,
        What::ReplaceWorker { nth } => fleet.replace_worker(nth, hit).await?,
        What::CrashPostgres { down } => fleet.crash_postgres(down).await?,
        What::TerminateBackends { share } => {
            let statement =
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'turnmill' AND random() < $1";
            sqlx::query(statement).bind(share).execute(fleet.app()).await?;
        }
        What::KillServer { down } => fleet.kill_server(down).await?,
        What::Server(fault) => {
            let url = format!("{}/_local/faults", fleet.e2b_url);
            once_it_is_up(|| reqwest::Client::new().patch(&url).json(&[&fault]).send()).await?;
        }
        What::Vanish { nth } => vanish(fleet, nth).await?,
        What::Cap { cap } => change_cap(cap, fleet, done).await?,
        What::HoldTurns { nth, time, commit } => hold_turns(fleet, nth, time, commit).await?,
        What::HoldEnqueue { turn, time, commit } => {
            load.notes().scripts.insert(turn.key.clone(), turn.script.clone());
            let mut connection = own_connection(fleet).await?;
            let mut tx = connection.begin().await?;
            let id = enqueue_in(&mut tx, &turn).await?;
            sleep(time).await;
            if commit {
                tx.commit().await?;
                load.acknowledge(&turn, &id);
            } else {
                tx.rollback().await?;
            }
        }
        What::HoldCancel { nth, time, commit } => {
            let turn = load.some_turn(&["waiting", "ready", "leased"], nth).await.ok_or_else(|| anyhow::anyhow!("no turn to cancel"))?;
            let mut connection = own_connection(fleet).await?;
            let mut tx = connection.begin().await?;
            load.notes().cancelled.push(turn.clone());
            sqlx::query("SELECT turnmill.cancel_turn($1, 'chaos, held')").bind(&turn).execute(&mut *tx).await?;
            sleep(time).await;
            if commit { tx.commit().await? } else { tx.rollback().await? }
        }
        What::Cancel { nth, states } => {
            let turn = load.some_turn(states, nth).await.ok_or_else(|| anyhow::anyhow!("no turn to cancel"))?;
            load.cancel(&turn).await;
        }
    }
    Ok(())
}

/// A transaction that looks at some turns that run, locks them, and then thinks.
async fn hold_turns(fleet: &Fleet, nth: u32, time: Duration, commit: bool) -> anyhow::Result<()> {
    let mut connection = own_connection(fleet).await?;
    let mut tx = connection.begin().await?;
    sqlx::query("SELECT FROM turnmill.turns WHERE completed_at IS NULL ORDER BY md5(id || $1) LIMIT 3 FOR UPDATE")
        .bind(nth.to_string())
        .execute(&mut *tx)
        .await?;
    sleep(time).await;
    if commit {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(())
}

async fn own_connection(fleet: &Fleet) -> anyhow::Result<PgConnection> {
    Ok(PgConnection::connect_with(&fleet.app().connect_options()).await?)
}

/// The server may be the one that is away: what is to go wrong next waits for it.
async fn once_it_is_up<F>(ask: impl Fn() -> F) -> anyhow::Result<reqwest::Response>
where
    F: Future<Output = reqwest::Result<reqwest::Response>>,
{
    let since = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.is_connect() && since.elapsed() < Duration::from_secs(5) => sleep(Duration::from_millis(100)).await,
            answer => return Ok(answer?.error_for_status()?),
        }
    }
}

async fn vanish(fleet: &Fleet, nth: u32) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    let url = format!("{}/v2/sandboxes", fleet.e2b_url);
    let all: Vec<Value> = once_it_is_up(|| client.get(&url).header("X-API-Key", "local").send()).await?.json().await?;
    anyhow::ensure!(!all.is_empty(), "there is no sandbox");
    let chosen = all[nth as usize % all.len()]["sandboxID"].as_str().unwrap_or_default();
    client.delete(format!("{}/_local/sandboxes/{chosen}", fleet.e2b_url)).send().await?.error_for_status()?;
    Ok(())
}

/// Until it is known to be committed: the checker must know which cap holds when.
async fn change_cap(cap: i32, fleet: &Fleet, done: &Shared) -> anyhow::Result<()> {
    let (before_ms, since) = (now_ms(), Instant::now());
    loop {
        match try_change_cap(cap, fleet).await {
            Ok(held) => {
                noted(done, |done| done.caps.push(CapChange { before_ms, after_ms: now_ms(), cap: i64::from(cap), held }));
                return Ok(());
            }
            Err(error) => anyhow::ensure!(since.elapsed() < Duration::from_secs(60), "the cap could not be changed: {error}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// How many slots held a sandbox then.
async fn try_change_cap(cap: i32, fleet: &Fleet) -> sqlx::Result<i64> {
    let mut tx = fleet.app().begin().await?;
    sqlx::query("UPDATE turnmill.pools SET cap = $1 WHERE name = 'default'").bind(cap).execute(&mut *tx).await?;
    let row = sqlx::query("SELECT count(*) FROM turnmill.slots WHERE pool = 'default' AND state <> 'free'").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(row.get(0))
}
