//! What readers see of a worker's end: the longest wait between two blocks of a turn that changed hands, less the
//! agent's own rhythm. Workers and the sandboxes' server are processes; the sandboxes are simulated.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::{enqueue, of, wait_for};
use crate::cli::children::{end, pid, spawn};
use crate::cli::paint;
use crate::store::{PoolChange, Store};

/// The lease of these workers.
const LEASE: Duration = Duration::from_secs(5);

/// A line of the agent.
const RHYTHM: Duration = Duration::from_millis(100);

/// About twenty seconds.
const LINES: usize = 200;

pub(super) async fn measure(store: &Store, turns: u32, url: &str, home: &tempfile::TempDir) -> anyhow::Result<()> {
    anstream::println!("{}{turns} turns whose worker ends; the pause that readers see{}", paint::BOLD, paint::OFF);
    let cap = i32::try_from(turns)? * 2;
    store.set_pool("default", &PoolChange { cap: Some(cap), ..PoolChange::default() }).await?;
    let steps = vec![r#"{"text": "x"}"#; LINES].join(",");
    let script = home.path().join("steady.json");
    std::fs::write(&script, format!(r#"{{"delay_ms": {}, "steps": [{steps}]}}"#, RHYTHM.as_millis()))?;
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let (listen, sandboxes) = (format!("127.0.0.1:{port}"), home.path().join("simulated"));
    let arguments = ["local", "--listen", &listen, "--dir", &sandboxes.to_string_lossy(), "--simulate", &script.to_string_lossy()];
    let mut server = spawn(&home.path().join("local.log"), &arguments, &BTreeMap::new())?;
    let e2b = format!("http://{listen}");
    let environment = BTreeMap::from([
        ("DATABASE_URL", url.to_owned()),
        ("E2B_API_URL", e2b.clone()),
        ("E2B_SANDBOX_URL", e2b),
        ("E2B_API_KEY", "local".to_owned()),
        ("TURNMILL_WORKER__LEASE", format!("{}s", LEASE.as_secs())),
        ("TURNMILL_WORKER__HEARTBEAT", "1s".to_owned()),
        ("TURNMILL_WORKER__TURNS_MAX", cap.to_string()),
    ]);
    for (how, in_order) in [("SIGTERM: handed over", true), ("SIGKILL: adopted, lease 5 s", false)] {
        let mut worker = spawn(&home.path().join("worker.log"), &["worker"], &environment)?;
        let ids = enqueue(store, turns, "steady").await?;
        have_begun(store, &ids).await?;
        let mut heir = spawn(&home.path().join("heir.log"), &["worker"], &environment)?;
        is_there(store, &heir).await?;
        if in_order {
            end(&mut worker).await?;
        } else {
            worker.kill().await?;
        }
        wait_for(store, &ids).await?;
        end(&mut heir).await?;
        let pauses = "SELECT max(gap) FROM (
                        SELECT turn_id, extract(epoch FROM created_at - lag(created_at) OVER (PARTITION BY turn_id ORDER BY seq))::float8 AS gap
                        FROM turnmill.blocks WHERE turn_id = ANY ($1)) gaps
                      WHERE turn_id IN (SELECT turn_id FROM turnmill.attempts WHERE taken = 'adopted')
                      GROUP BY turn_id";
        let gaps: Vec<f64> = sqlx::query_scalar(pauses).bind(&ids).fetch_all(store.pool()).await?;
        let blocks: i64 =
            sqlx::query_scalar("SELECT count(*) FROM turnmill.blocks WHERE turn_id = ANY ($1)").bind(&ids).fetch_one(store.pool()).await?;
        let lost = i64::from(turns) * i64::try_from(LINES)? - blocks;
        let adopted = gaps.len();
        let (p50, p99) = of(gaps.into_iter().map(|gap| (gap - RHYTHM.as_secs_f64()).max(0.0)).collect())?;
        anstream::println!("  {how:<30} p50 {p50:>6.2} s   p99 {p99:>6.2} s   {adopted} turns, {lost} blocks lost");
    }
    end(&mut server).await
}

/// All of them say something.
async fn have_begun(store: &Store, turns: &[String]) -> anyhow::Result<()> {
    for turn in turns {
        while store.read(turn, -1, 1).await?.is_none_or(|reading| reading.blocks.is_empty()) {
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn is_there(store: &Store, worker: &Child) -> anyhow::Result<()> {
    let (mark, since) = (format!("-{}-", pid(worker)), Instant::now());
    while !store.workers().await?.iter().any(|row| row.id.contains(&mark)) {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(20), "the second worker does not start");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
