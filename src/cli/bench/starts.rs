//! How long a turn's start takes where its sandbox is new, kept warm, or woken from a pause: from the enqueue until its
//! agent runs. Local sandboxes: what E2B takes for a create or a resume comes on top, for the one or the other.

use std::time::Duration;

use tokio::time::sleep;

use super::{NO_OP, of, wait_for};
use crate::cli::paint;
use crate::store::{Enqueue, PoolChange, Store};

/// Turns of each session: the first finds a new sandbox, the others what was kept.
const TURNS: u32 = 3;

/// A day, in seconds.
const DAY: i32 = 86_400;

pub(super) async fn measure(store: &Store, sessions: u32) -> anyhow::Result<()> {
    anstream::println!("{}Enqueue to running agent, {sessions} sessions one after the other{}", paint::BOLD, paint::OFF);
    for release in [(DAY, 0), (0, DAY)] {
        let change = PoolChange { release: Some(release), sandbox_max_s: Some(DAY), ..PoolChange::default() };
        store.set_pool("default", &change).await?;
        for nth in 0..sessions {
            let session = format!("starts-{}-{nth}", release.0);
            for _ in 0..TURNS {
                let turn = Enqueue {
                    prompt: NO_OP.to_owned(),
                    project_id: Some("bench".to_owned()),
                    session_id: Some(session.clone()),
                    ..Enqueue::default()
                };
                let turn = store.enqueue(&turn).await?.turn_id.unwrap_or_default();
                wait_for(store, &[turn]).await?;
                while sqlx::query_scalar("SELECT EXISTS (SELECT FROM turnmill.slots WHERE state IN ('busy', 'pausing'))")
                    .fetch_one(store.pool())
                    .await?
                {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
        store.set_pool("default", &PoolChange { release: Some((0, 0)), ..PoolChange::default() }).await?;
        sqlx::query("UPDATE turnmill.slots SET due_at = clock_timestamp() WHERE state = 'warm'").execute(store.pool()).await?;
        sqlx::query("UPDATE turnmill.parked SET due_at = clock_timestamp()").execute(store.pool()).await?;
        while store.slots_held().await? + store.parked().await? > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    }
    let mut new = None;
    for kind in ["new", "warm", "paused"] {
        let times = "SELECT extract(epoch FROM a.agent_at - t.created_at)::float8 FROM turnmill.attempts a JOIN turnmill.turns t ON t.id = a.turn_id
                     WHERE a.sandbox = $1 AND t.session_id LIKE 'starts-%' AND a.agent_at IS NOT NULL";
        let (p50, p99) = of(sqlx::query_scalar(times).bind(kind).fetch_all(store.pool()).await?)?;
        let ratio = p50 / *new.get_or_insert(p50);
        anstream::println!("  {kind:<30} p50 {:>6.0} ms   p99 {:>6.0} ms   {ratio:.2} of new", p50 * 1000.0, p99 * 1000.0);
    }
    Ok(())
}
