//! What readers over HTTP see: from a line that an agent prints to the event, in both lanes; and thousands of readers of one
//! server, which is a process of its own.
//!
//! The agent prints what time it is; so do the blocks of the crowd. Both clocks are this machine's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{enqueue, of, wait_for};
use crate::agent::mock::now_ms;
use crate::block::{Block, BlockKind};
use crate::cli::children::{end, pid, spawn};
use crate::cli::paint;
use crate::store::{Append, PoolChange, Store};

/// Turns at once, each in a session of its own with one reader.
const TURNS: u32 = 8;

/// Words of a block, and blocks of a turn, of about a second each.
const WORDS: usize = 20;
const BLOCKS: usize = 8;

/// Readers of a session of the crowd.
const PER_SESSION: usize = 100;

/// Blocks that each of the crowd gets.
const CROWD_BLOCKS: i64 = 50;

/// From a line that an agent prints to the event at its reader, in both lanes.
pub(super) async fn lanes(store: &Store, url: &str, home: &tempfile::TempDir) -> anyhow::Result<()> {
    anstream::println!("{}{TURNS} turns at once: from the agent's line to its reader's event{}", paint::BOLD, paint::OFF);
    let mut web = serve(url, home).await?;
    let block = format!(r#"{{"clock": {WORDS}}}"#);
    let script = format!(r#"/mock {{"delay_ms": 1000, "steps": [{}]}}"#, vec![block; BLOCKS].join(","));
    for (what, previews, asked) in
        [("blocks, no previews", false, false), ("blocks, previews unwatched", true, false), ("blocks, previews watched", true, true)]
    {
        store.set_pool("default", &PoolChange { previews: Some(previews), ..PoolChange::default() }).await?;
        let mut readers = JoinSet::new();
        let turns = enqueue(store, TURNS, &script).await?;
        for turn in &turns {
            readers.spawn(read(format!("{}/v1/turns/{turn}/stream?previews={asked}", web.url)));
        }
        let (mut blocks, mut words) = (Vec::new(), Vec::new());
        while let Some(seen) = readers.join_next().await {
            let seen = seen??;
            blocks.extend(seen.blocks);
            words.extend(seen.words);
        }
        wait_for(store, &turns).await?;
        let (count, (p50, p99)) = (blocks.len(), of(blocks)?);
        anstream::println!("  {what:<30} p50 {p50:>6.0} ms  p99 {p99:>6.0} ms  {count} blocks");
        if asked {
            let (count, (p50, p99)) = (words.len(), of(words)?);
            anstream::println!("  {:<30} p50 {p50:>6.0} ms  p99 {p99:>6.0} ms  {count} words before their block", "words of previews");
        }
    }
    store.set_pool("default", &PoolChange { previews: Some(false), ..PoolChange::default() }).await?;
    end(&mut web.process).await
}

/// Thousands of readers of one server.
pub(super) async fn crowd(store: &Store, readers: usize, url: &str, home: &tempfile::TempDir) -> anyhow::Result<()> {
    let sessions = readers.div_ceil(PER_SESSION);
    anstream::println!("{}{readers} readers of {sessions} sessions on one server: from a commit to all of them{}", paint::BOLD, paint::OFF);
    let cap = i32::try_from(sessions)?;
    store.set_pool("default", &PoolChange { cap: Some(cap), ..PoolChange::default() }).await?;
    store.register_worker("streams", Duration::from_secs(3600), sessions.try_into()?, "bench").await?;
    let turns = enqueue(store, sessions.try_into()?, "x").await?;
    let mut jobs = Vec::new();
    while jobs.len() < sessions {
        jobs.extend(store.claim("streams", 100).await?);
    }
    let mut web = serve(url, home).await?;
    let before = web.resident_kib()?;
    let mut reading = JoinSet::new();
    for n in 0..readers {
        reading.spawn(read(format!("{}/v1/turns/{}/stream", web.url, turns[n % sessions])));
        if n % 100 == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    sleep(Duration::from_secs(5)).await;
    let each = (web.resident_kib()? - before) / i64::try_from(readers)?;
    for n in 0..CROWD_BLOCKS {
        let appends: Vec<Append> = jobs
            .iter()
            .map(|job| Append {
                turn_id: job.turn_id.clone(),
                epoch: job.epoch,
                attempt: job.attempt,
                from_offset: n,
                to_offset: n + 1,
                blocks: vec![Block::new(BlockKind::Content, serde_json::json!({ "text": now_ms().to_string() }))],
            })
            .collect();
        store.append(&appends).await?;
        store.wake_readers(&turns).await?;
        sleep(Duration::from_millis(500)).await;
    }
    for job in &jobs {
        let done = super::settle_at(CROWD_BLOCKS);
        store.settle(job, &done, Duration::from_secs(30)).await??;
        store.slot_freed(job.slot_id, job.epoch).await??;
    }
    let (mut blocks, mut cut) = (Vec::new(), 0);
    while let Some(seen) = reading.join_next().await {
        match seen? {
            Ok(seen) => blocks.extend(seen.blocks),
            Err(_) => cut += 1,
        }
    }
    let missing = readers * usize::try_from(CROWD_BLOCKS)? - blocks.len();
    let (count, (p50, p99)) = (blocks.len(), of(blocks)?);
    anstream::println!(
        "  {each} KiB each; p50 {p50:.0} ms, p99 {p99:.0} ms over {count} events, with all readers on this machine too; {missing} missed, {cut} cut off"
    );
    end(&mut web.process).await
}

struct Serving {
    url: String,
    process: Child,
}

impl Serving {
    fn resident_kib(&self) -> anyhow::Result<i64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&self.process)))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the server's memory")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    }
}

async fn serve(url: &str, home: &tempfile::TempDir) -> anyhow::Result<Serving> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let listen = format!("127.0.0.1:{port}");
    let environment = BTreeMap::from([
        ("DATABASE_URL", url.to_owned()),
        ("TURNMILL_WEB__CONNECTIONS_MAX", "10000".to_owned()),
        ("TURNMILL_WEB__READERS_MAX", "10000".to_owned()),
    ]);
    let process = spawn(&home.path().join("web.log"), &["web", "--open", "--listen", &listen], &environment)?;
    let web = Serving { url: format!("http://{listen}"), process };
    while reqwest::get(format!("{}/readyz", web.url)).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(web)
}

/// Milliseconds that each block, and each word of a preview, was old when it came.
#[derive(Default)]
struct Seen {
    blocks: Vec<f64>,
    words: Vec<f64>,
}

/// Reads a turn's stream to its end.
async fn read(url: String) -> anyhow::Result<Seen> {
    // A client of its own: a browser of its own.
    let mut body = reqwest::Client::builder().build()?.get(url).send().await?.error_for_status()?.bytes_stream();
    let (mut text, mut seen, mut rest) = (String::new(), Seen::default(), String::new());
    while let Some(bytes) = body.next().await {
        text.push_str(std::str::from_utf8(&bytes?)?);
        let now = now_ms();
        while let Some(at) = text.find("\n\n") {
            let frame: String = text.drain(..at + 2).collect();
            let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let data: Value = serde_json::from_str(field("data:")).unwrap_or_default();
            match field("event:") {
                // Its last word was printed with it.
                "block" => {
                    seen.blocks.extend(ages(data["content"]["text"].as_str().unwrap_or_default(), now).pop());
                    rest.clear();
                }
                "preview" => {
                    rest.push_str(data["text"].as_str().unwrap_or_default());
                    let whole = rest.rfind('\n').map_or(0, |end| end + 1);
                    seen.words.extend(ages(&rest.drain(..whole).collect::<String>(), now));
                }
                "end" => return Ok(seen),
                _ => {}
            }
        }
    }
    anyhow::bail!("cut off")
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a few seconds")]
fn ages(text: &str, now: u64) -> Vec<f64> {
    text.lines().filter_map(|line| line.parse().ok()).map(|said: u64| now.saturating_sub(said) as f64).collect()
}
