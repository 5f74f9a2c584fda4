//! All that is known after the run: what the checker compares, by plain queries of its own.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::Value;

use super::fleet::Fleet;
use super::ledger::{self, Act, AgentRun};
use super::load::{Ended, Load};
use super::strikes::Done;

/// Everything. The checker reads it, and `plant` lies in it.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    // The database.
    pub turns: Vec<Turn>,
    pub blocks: BTreeMap<String, Vec<Block>>,
    pub attempts: BTreeMap<String, Vec<Attempt>>,
    /// Keys and turns of the web app's own table.
    pub messages: BTreeMap<String, String>,
    pub jobs_left: i64,
    /// Slots that are not free, for people.
    pub slots_left: Vec<String>,
    // The web app's notes.
    pub scripts: BTreeMap<String, Value>,
    pub acknowledged: BTreeMap<String, String>,
    pub order: BTreeMap<String, Vec<String>>,
    pub cancelled: Vec<String>,
    pub ended: BTreeMap<String, Ended>,
    pub ended_now: BTreeMap<String, Ended>,
    pub refused: Vec<String>,
    // The ledgers.
    pub runs: Vec<AgentRun>,
    pub acts: Vec<Act>,
    /// Sandboxes that the server still lists.
    pub listed: Vec<String>,
    /// Lines of the workers' and the server's logs that tell of a panic.
    pub panics: Vec<String>,
    /// What was done, by whoever did it.
    pub kinds: Vec<&'static str>,
    pub idle: Vec<String>,
    pub strikes: Vec<super::strikes::Strike>,
    pub caps: Vec<super::strikes::CapChange>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Turn {
    pub id: String,
    pub session_id: String,
    pub ordinal: i32,
    pub key: Option<String>,
    pub prompt: String,
    pub status: String,
    pub attempt: i32,
    pub generation: i32,
    pub blocks: i32,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub message_uuid: String,
    /// A conversation was saved after an earlier turn of its session.
    pub remembers: bool,
    /// An earlier turn's agent was started after the newest of those and may have said something, or after the newest whose
    /// files are known.
    pub gap: bool,
    /// The agent that was started last before it left no conversation behind.
    pub nothing: bool,
    pub started_ms: Option<i64>,
    pub completed_ms: Option<i64>,
    /// Its row in the queue and what it waits for, if it has not ended.
    pub job: Option<String>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Block {
    pub turn_id: String,
    pub seq: i32,
    pub generation: i32,
    pub attempt: i32,
    pub kind: String,
    pub content: Value,
}

#[derive(Debug, Clone, sqlx::FromRow, serde::Serialize)]
pub struct Attempt {
    pub turn_id: String,
    pub epoch: i64,
    pub attempt: i32,
    pub generation: i32,
    pub worker_id: String,
    pub taken: String,
    /// Where a claim found its sandbox: new, warm or paused.
    pub sandbox: Option<String>,
    pub sandbox_id: Option<String>,
    pub taken_ms: i64,
    pub agent_ms: Option<i64>,
    pub ended_ms: Option<i64>,
    pub ended: Option<String>,
    pub detail: Option<String>,
}

const TURNS: &str =
    "SELECT id, session_id, ordinal, idempotency_key AS key, prompt, status, attempt, generation, blocks, error_code, error_message,
  message_uuid::text AS message_uuid,
  EXISTS (SELECT FROM turnmill.transcripts s WHERE s.session_id = t.session_id AND s.ordinal < t.ordinal AND s.bytes > 0) AS remembers,
  EXISTS (SELECT FROM turnmill.turns p LEFT JOIN turnmill.transcripts s ON s.turn_id = p.id
    WHERE p.session_id = t.session_id AND p.ordinal < t.ordinal AND p.attempt > 0 AND s.turn_id IS NULL AND NOT EXISTS (
      SELECT FROM turnmill.transcripts n WHERE n.session_id = t.session_id AND n.ordinal > p.ordinal AND n.ordinal < t.ordinal AND n.bytes > 0))
    OR EXISTS (SELECT FROM turnmill.turns p LEFT JOIN turnmill.workspaces w ON w.turn_id = p.id
      WHERE p.session_id = t.session_id AND p.ordinal < t.ordinal AND p.attempt > 0 AND coalesce(w.missing IS NOT NULL, true)
        AND p.ordinal >= coalesce((SELECT max(x.ordinal) FROM turnmill.workspaces x
          WHERE x.session_id = t.session_id AND x.ordinal < t.ordinal AND x.kind IN ('saved', 'empty', 'carried')), 0)) AS gap,
  coalesce((SELECT s.bytes = 0 FROM turnmill.turns p LEFT JOIN turnmill.transcripts s ON s.turn_id = p.id
    WHERE p.session_id = t.session_id AND p.ordinal < t.ordinal AND p.attempt > 0 ORDER BY p.ordinal DESC LIMIT 1), false) AS nothing,
  (extract(epoch FROM started_at) * 1000)::bigint AS started_ms,
  (extract(epoch FROM completed_at) * 1000)::bigint AS completed_ms,
  (SELECT coalesce(turnmill.wait_reason(id), 'nothing') || ' ' || to_jsonb(j)::text FROM turnmill.jobs j WHERE j.turn_id = id) AS job
  FROM turnmill.turns t ORDER BY created_at";

const BLOCKS: &str = "SELECT turn_id, seq, generation, attempt, type AS kind, content FROM turnmill.blocks ORDER BY turn_id, seq";

const ATTEMPTS: &str = "SELECT turn_id, epoch, attempt, generation, worker_id, taken, sandbox, sandbox_id,
  (extract(epoch FROM taken_at) * 1000)::bigint AS taken_ms, (extract(epoch FROM agent_at) * 1000)::bigint AS agent_ms,
  (extract(epoch FROM ended_at) * 1000)::bigint AS ended_ms, ended, detail FROM turnmill.attempts ORDER BY turn_id, epoch";

const ENDED: &str = "SELECT t.id, t.status, md5(to_jsonb(t)::text) AS row,
  md5(coalesce((SELECT string_agg(to_jsonb(b)::text, '' ORDER BY b.seq) FROM turnmill.blocks b WHERE b.turn_id = t.id), '')) AS blocks
  FROM turnmill.turns t";

impl Evidence {
    pub async fn collect(fleet: &Fleet, load: &Load, done: Done) -> anyhow::Result<Self> {
        let app = fleet.app();
        let blocks: Vec<Block> = sqlx::query_as(BLOCKS).fetch_all(app).await?;
        let attempts: Vec<Attempt> = sqlx::query_as(ATTEMPTS).fetch_all(app).await?;
        let ended_now: Vec<Ended> = sqlx::query_as(ENDED).fetch_all(app).await?;
        let messages: Vec<(String, String)> = sqlx::query_as("SELECT key, turn_id FROM app.messages").fetch_all(app).await?;
        let slots = "SELECT to_jsonb(s)::text FROM turnmill.slots s WHERE state <> 'free'";
        let mut evidence = Self {
            turns: sqlx::query_as(TURNS).fetch_all(app).await?,
            blocks: grouped(blocks, |block| &block.turn_id),
            attempts: grouped(attempts, |attempt| &attempt.turn_id),
            messages: messages.into_iter().collect(),
            jobs_left: sqlx::query_scalar("SELECT count(*) FROM turnmill.jobs").fetch_one(app).await?,
            slots_left: sqlx::query_scalar(slots).fetch_all(app).await?,
            ended_now: ended_now.into_iter().map(|ended| (ended.id.clone(), ended)).collect(),
            runs: ledger::agents(&fleet.home().join("agents.jsonl")),
            acts: ledger::server(&fleet.home().join("e2b/ledger.jsonl")),
            listed: listed(&fleet.e2b_url).await?,
            panics: fleet.panics(),
            kinds: done.kinds,
            idle: done.idle,
            strikes: done.workers,
            caps: done.caps,
            ..Self::default()
        };
        let notes = std::mem::take(&mut *load.notes());
        evidence.scripts = notes.scripts;
        evidence.acknowledged = notes.acknowledged;
        evidence.order = notes.order;
        evidence.cancelled = notes.cancelled;
        evidence.ended = notes.ended;
        evidence.refused = notes.refused;
        Ok(evidence)
    }

    /// Whether the turn ran, in this generation, in a sandbox that was kept of the turn before.
    pub fn kept(&self, turn: &str, generation: i32) -> bool {
        let attempts = || self.attempts.get(turn).into_iter().flatten().filter(|attempt| attempt.generation == generation);
        // Of several claims the last is the one with which the agent was started.
        attempts().filter_map(|attempt| attempt.sandbox.as_deref()).next_back().is_some_and(|sandbox| sandbox != "new")
    }

    /// The turn's timeline, for people.
    pub fn history(&self, turn: &str) -> Vec<String> {
        let attempts = self.attempts.get(turn).map(Vec::as_slice).unwrap_or_default();
        attempts.iter().filter_map(|attempt| serde_json::to_string(attempt).ok()).collect()
    }
}

async fn listed(url: &str) -> anyhow::Result<Vec<String>> {
    let client = reqwest::Client::new();
    let mut tries = 0;
    // A fault that nobody has run into yet may wait for us.
    let list = loop {
        let list = client.get(format!("{url}/sandboxes")).header("X-API-Key", "local").send().await;
        match list.and_then(reqwest::Response::error_for_status) {
            Ok(list) => break list,
            Err(error) if tries >= 20 => return Err(error).context("listing sandboxes"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let all: Vec<Value> = list.json().await?;
    Ok(all.iter().filter_map(|sandbox| sandbox["sandboxID"].as_str().map(str::to_owned)).collect())
}

fn grouped<T>(rows: Vec<T>, turn: impl Fn(&T) -> &String) -> BTreeMap<String, Vec<T>> {
    let mut groups: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for row in rows {
        groups.entry(turn(&row).clone()).or_default().push(row);
    }
    groups
}
