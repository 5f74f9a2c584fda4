//! One claim at a time, beside a crowd that waits: alone, beside thousands of another tenant's turns, and while
//! somebody holds a snapshot, which keeps every dead row of the queue in place.

use anyhow::Context as _;
use tokio::time::Instant;

use super::no_op;
use crate::cli::paint;
use crate::store::{Enqueue, Store};

/// Turns taken and ended one after another in each round.
const TAKEN: u32 = 400;

pub(super) async fn measure(store: &Store, crowd: i32) -> anyhow::Result<()> {
    anstream::println!("{}{TAKEN} turns claimed and ended one by one{}", paint::BOLD, paint::OFF);
    store.register_worker("crowd", std::time::Duration::from_secs(3600), 10, "bench").await?;
    let alone = round(store).await?;
    anstream::println!("  alone                          {alone:>8.0} turns/s");

    let waiting = "WITH session AS (
             INSERT INTO turnmill.sessions (id, project_id, tenant_id, pool, turns)
             SELECT 'crowd' || n, 'bench', 'crowd', 'default', 1 FROM generate_series(1, $1) n RETURNING id),
           turn AS (
             INSERT INTO turnmill.turns (id, session_id, project_id, ordinal, prompt, body_hash)
             SELECT 'turn_' || id, id, 'bench', 1, 'x', '' FROM session RETURNING id, session_id)
           INSERT INTO turnmill.jobs (turn_id, session_id, ordinal, pool, state, tenant_id)
           SELECT id, session_id, 1, 'default', 'ready', 'crowd' FROM turn";
    sqlx::query(waiting).bind(crowd).execute(store.pool()).await?;
    let beside = round(store).await?;
    anstream::println!("  beside {crowd:>6} waiting turns    {beside:>8.0} turns/s  {:.2} of alone", beside / alone);

    let mut snapshot = store.pool().begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    sqlx::query("SELECT count(*) FROM turnmill.fleet").execute(&mut *snapshot).await?;
    let mut held = 0.0;
    let mut rounds = 0;
    let since = Instant::now();
    while since.elapsed().as_secs() < 10 {
        held = round(store).await?;
        rounds += 1;
    }
    snapshot.rollback().await?;
    let ended = rounds * TAKEN;
    anstream::println!("  after {ended:>6} under a snapshot    {held:>8.0} turns/s  {:.2} of alone", held / alone);
    sqlx::query("DELETE FROM turnmill.jobs WHERE tenant_id = 'crowd'").execute(store.pool()).await?;
    Ok(())
}

/// Turns of a tenant of few, each claimed alone; per second.
async fn round(store: &Store) -> anyhow::Result<f64> {
    let turn = Enqueue {
        prompt: "x".to_owned(),
        project_id: Some("bench".to_owned()),
        tenant_id: Some("few".to_owned()),
        priority: 1,
        ..Enqueue::default()
    };
    for _ in 0..TAKEN {
        store.enqueue(&turn).await?;
    }
    let since = Instant::now();
    for _ in 0..TAKEN {
        let job = store.claim("crowd", 1).await?.pop().context("nothing to claim")?;
        no_op(store, &job).await?;
    }
    Ok(f64::from(TAKEN) / since.elapsed().as_secs_f64())
}
