//! Pools: what operators set at run time.

use serde_json::{Map, Value, json};

use super::Store;
use super::audit::{Act, Actor, note};
use super::db::Tx;

/// A pool and how full it is.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// E2B template.
    pub template: String,
    /// Most sandboxes at once.
    pub cap: i32,
    /// Slots that are not free: sandboxes that live or may live.
    pub held: i64,
    /// Jobs that could start.
    pub ready: i64,
    /// active, paused or blocked.
    pub state: String,
    /// Why, if not active.
    pub state_reason: Option<String>,
    /// The agent's command line.
    pub agent: Vec<String>,
    /// Creates a second, if limited.
    pub create_rate: Option<f64>,
    /// The account's own limit, where E2B has named it.
    pub account_cap: Option<i32>,
    /// Sandboxes of this fleet that E2B listed as running.
    pub reported: Option<i32>,
    /// Of the held ones, those that wait for their session's next turn.
    pub warm: i64,
    /// Sandboxes that wait for it paused.
    pub parked: i64,
    /// Seconds that one is kept running after its turn.
    pub warm_s: i32,
    /// Seconds that it is kept paused after that.
    pub paused_s: i32,
    /// Dollars that one costs an hour, if said.
    pub sandbox_usd_per_hour: Option<f64>,
    /// Most dollars that one turn's model calls may cost.
    pub turn_budget_usd: Option<f64>,
}

/// However long E2B asks us to wait.
const HOLD_MAX: std::time::Duration = std::time::Duration::from_secs(600);

/// Why nobody may create in a pool for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// E2B's rate limit: for at least this long.
    Rate(std::time::Duration),
    /// E2B's limit of concurrent sandboxes, and how high it said that is.
    Capacity {
        /// Sandboxes.
        account_cap: Option<i32>,
    },
}

/// What to change of a pool; `None` leaves it. A pool that doesn't exist is made.
#[derive(Debug, Clone, Default)]
pub struct PoolChange {
    /// Most sandboxes at once.
    pub cap: Option<i32>,
    /// E2B template.
    pub template: Option<String>,
    /// The agent's command line.
    pub agent: Option<Vec<String>>,
    /// Extra environment of the agent, an object of strings.
    pub agent_env: Option<serde_json::Value>,
    /// Where in the sandbox the agent starts; empty = its home.
    pub workdir: Option<String>,
    /// Longest turn, seconds.
    pub turn_timeout_s: Option<i32>,
    /// Longest silence of an agent without an open call, seconds.
    pub idle_timeout_s: Option<i32>,
    /// Most creates a second; `Some(None)` = no limit of ours.
    pub create_rate: Option<Option<f64>>,
    /// Creates that may come at once after a pause.
    pub create_burst: Option<i32>,
    /// `v1` or `v2` of E2B's create.
    pub api_version: Option<String>,
    /// Script that brings the project's files in; `Some(None)` = the shipped one, an empty one = none.
    pub prepare: Option<Option<String>>,
    /// Script that gets the journal; as `prepare`.
    pub watch: Option<Option<String>>,
    /// Script that brings the files back; as `prepare`.
    pub finish: Option<Option<String>>,
    /// active or paused.
    pub state: Option<String>,
    /// Why it is in that state from now on, for people.
    pub state_reason: Option<String>,
    /// Seconds that a sandbox is kept running for its session's next turn, and then paused; 0 and 0: it is killed.
    pub release: Option<(i32, i32)>,
    /// Seconds that E2B lets a sandbox run without a pause.
    pub sandbox_max_s: Option<i32>,
    /// Newest turns of a session whose conversation is kept.
    pub context_versions: Option<i32>,
    /// Days after its last turn that a session is remembered.
    pub context_days: Option<i32>,
    /// auto, snapshot, hooks or none.
    pub workspace: Option<String>,
    /// Most bytes of a snapshot.
    pub workspace_max_bytes: Option<i64>,
    /// Most bytes of a file that is kept for readers.
    pub artifact_max_bytes: Option<i64>,
    /// Patterns of what is neither listed nor kept.
    pub files_exclude: Option<Vec<String>>,
    /// Whether readers may watch blocks grow.
    pub previews: Option<bool>,
    /// MCP servers of its own, an object by name; `Some(None)` = none.
    pub mcp_servers: Option<Option<serde_json::Value>>,
    /// Whether settings, hooks and MCP servers of the project's repository are used.
    pub trust_project: Option<bool>,
    /// Days for which raw journals are kept; 0 = not at all.
    pub journal_days: Option<i32>,
    /// Dollars that a sandbox costs an hour; `Some(None)` = not said.
    pub sandbox_usd_per_hour: Option<Option<f64>>,
    /// Most dollars that one turn's model calls may cost; `Some(None)` = no limit.
    pub turn_budget_usd: Option<Option<f64>>,
    /// Whether the agent's key is added outside of its sandbox.
    pub inject_key: Option<bool>,
    /// What a sandbox may reach besides its model; `Some(None)` = everything.
    pub egress_allow: Option<Option<Vec<String>>>,
}

impl Store {
    /// All pools by name.
    pub async fn pools(&self) -> sqlx::Result<Vec<Pool>> {
        sqlx::query_as!(
            Pool,
            r#"SELECT p.name, p.template, p.cap, p.state, p.state_reason, p.agent, p.create_rate, q.account_cap, q.reported, p.warm_s, p.paused_s,
                 p.sandbox_usd_per_hour::float8 AS sandbox_usd_per_hour, p.turn_budget_usd::float8 AS turn_budget_usd,
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state <> 'free') AS "held!",
                 (SELECT count(*) FROM turnmill.slots s WHERE s.pool = p.name AND s.state = 'warm') AS "warm!",
                 (SELECT count(*) FROM turnmill.parked k WHERE k.pool = p.name) AS "parked!",
                 (SELECT count(*) FROM turnmill.jobs j WHERE j.pool = p.name AND j.state = 'ready') AS "ready!"
               FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name ORDER BY p.name"#
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Makes or changes a pool; says whether it was made. Its slots follow the cap in the same transaction.
    pub async fn set_pool(&self, name: &str, change: &PoolChange) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        let made = sqlx::query!("INSERT INTO turnmill.pools (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", name);
        let made = made.execute(&mut tx).await?.rows_affected() == 1;
        apply(&mut tx, name, change).await?;
        tx.commit().await?;
        Ok(made)
    }

    /// Changes a pool on somebody's word, if it is in one of these states.
    pub async fn change_pool_by(
        &self,
        actor: &Actor,
        name: &str,
        verb: &str,
        from: &[&str],
        change: &PoolChange,
    ) -> sqlx::Result<PoolAnswer> {
        let mut tx = self.pool.begin().await?;
        let answer = change_by(&mut tx, actor, name, verb, from, change).await;
        tx.done(answer).await
    }

    /// E2B refuses our credentials: nobody claims from the pool until an operator, or the probe, heals it.
    pub async fn block_pool(&self, name: &str, reason: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.pools SET state = 'blocked', state_reason = $2, state_at = clock_timestamp()
             WHERE name = $1 AND state = 'active'",
            name,
            reason
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// E2B has said 429: nobody creates in the pool for a while, at most ten minutes. For capacity that is 1 s, then 2,
    /// up to 10, until a create works again. Gives what is left of the pause.
    pub async fn hold_creates(&self, pool: &str, hold: Hold, chance: f64) -> sqlx::Result<std::time::Duration> {
        let (kind, least, account_cap) = match hold {
            Hold::Rate(least) => ("rate", Some(least.min(HOLD_MAX).as_secs_f64()), None),
            Hold::Capacity { account_cap } => ("capacity", None, account_cap),
        };
        let pause = sqlx::query_scalar!(
            // Locked before it is read: of refusals that come together only the first makes the pause longer.
            r#"WITH pause AS MATERIALIZED (
                 SELECT pool, creates_after <= clock_timestamp() AS first,
                   coalesce($3, least(10, 2 ^ least(capacity_hits, 4))) * (1 + $4::float8 / 4) AS seconds
                 FROM turnmill.pool_states WHERE pool = $1 FOR NO KEY UPDATE)
               UPDATE turnmill.pool_states q
               SET creates_after = CASE WHEN pause.first OR $2 = 'rate'
                     THEN greatest(q.creates_after, clock_timestamp() + make_interval(secs => pause.seconds)) ELSE q.creates_after END,
                   held_for = $2,
                   capacity_hits = q.capacity_hits + CASE WHEN $2 = 'capacity' AND pause.first THEN 1 ELSE 0 END,
                   account_cap = coalesce($5, q.account_cap)
               FROM pause WHERE q.pool = pause.pool
               RETURNING greatest(extract(epoch FROM q.creates_after - clock_timestamp()), 0)::float8 AS "seconds!""#,
            pool,
            kind,
            least,
            chance,
            account_cap,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(std::time::Duration::from_secs_f64(pause.max(0.0)))
    }

    /// Pools that have been blocked for ten seconds without a probe; each is given to one caller at a time.
    pub async fn pools_to_probe(&self) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            "UPDATE turnmill.pools SET state_at = clock_timestamp()
             WHERE state = 'blocked' AND state_at < clock_timestamp() - interval '10 seconds' RETURNING name"
        )
        .fetch_all(&self.pool)
        .await
    }

    /// What the probe of a blocked pool was answered.
    pub async fn still_blocked(&self, name: &str, reason: &str) -> sqlx::Result<()> {
        sqlx::query!("UPDATE turnmill.pools SET state_reason = $2 WHERE name = $1 AND state = 'blocked'", name, reason)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// E2B takes our credentials again.
    pub async fn unblock_pool(&self, name: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.pools SET state = 'active', state_reason = NULL, state_at = clock_timestamp()
             WHERE name = $1 AND state = 'blocked'",
            name
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// What came of an operator's change of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolAnswer {
    /// It is changed.
    Changed,
    /// There is no such pool.
    Unknown,
    /// Nothing is changed: it is in this state.
    Refused(String),
}

/// What of a pool operators change through the dashboard, as the audit has it.
async fn settings(tx: &mut Tx, name: &str) -> sqlx::Result<Option<(String, Map<String, Value>)>> {
    let row = sqlx::query!(
        "SELECT state, cap, create_rate, create_burst, warm_s, paused_s FROM turnmill.pools WHERE name = $1 FOR NO KEY UPDATE",
        name
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| {
        let now = json!({ "state": row.state, "cap": row.cap, "create_rate": row.create_rate, "create_burst": row.create_burst,
            "warm_s": row.warm_s, "paused_s": row.paused_s });
        (row.state, now.as_object().cloned().unwrap_or_default())
    }))
}

async fn change_by(tx: &mut Tx, actor: &Actor, name: &str, verb: &str, from: &[&str], change: &PoolChange) -> sqlx::Result<PoolAnswer> {
    let Some((state, before)) = settings(tx, name).await? else { return Ok(PoolAnswer::Unknown) };
    if !from.contains(&state.as_str()) {
        return Ok(PoolAnswer::Refused(state));
    }
    apply_settings(tx, name, change).await?;
    let after = settings(tx, name).await?.map(|(_, after)| after).unwrap_or_default();
    let changed: Map<String, Value> = after
        .into_iter()
        .filter(|(key, value)| before.get(key) != Some(value))
        .map(|(key, to)| (key.clone(), json!([before.get(&key), to])))
        .collect();
    note(tx, actor, Act { verb, kind: "pool", subject: name }, Value::Object(changed)).await?;
    Ok(PoolAnswer::Changed)
}

/// Those of [`settings`]: a web server may change no other column. Its slots follow the cap by a trigger.
async fn apply_settings(tx: &mut Tx, name: &str, change: &PoolChange) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE turnmill.pools SET
           cap = coalesce($2, cap),
           state_at = CASE WHEN $3 <> state THEN clock_timestamp() ELSE state_at END,
           state_reason = CASE WHEN $3 IS NULL OR $3 = state THEN state_reason ELSE $4 END,
           state = coalesce($3, state),
           create_rate = CASE WHEN $5 THEN $6 ELSE create_rate END,
           create_burst = coalesce($7, create_burst),
           warm_s = coalesce($8, warm_s), paused_s = coalesce($9, paused_s)
         WHERE name = $1",
        name,
        change.cap,
        change.state,
        change.state_reason,
        change.create_rate.is_some(),
        change.create_rate.flatten(),
        change.create_burst,
        change.release.map(|(warm, _)| warm),
        change.release.map(|(_, paused)| paused),
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn apply(tx: &mut Tx, name: &str, change: &PoolChange) -> sqlx::Result<()> {
    apply_settings(tx, name, change).await?;
    sqlx::query!(
        "UPDATE turnmill.pools SET
           template = coalesce($2, template), agent = coalesce($3, agent),
           agent_env = coalesce($4, agent_env), turn_timeout_s = coalesce($5, turn_timeout_s),
           prepare = CASE WHEN $6 THEN $7 ELSE prepare END,
           watch = CASE WHEN $8 THEN $9 ELSE watch END,
           finish = CASE WHEN $10 THEN $11 ELSE finish END,
           api_version = coalesce($12, api_version),
           idle_timeout_s = coalesce($13, idle_timeout_s),
           workdir = CASE WHEN $14::text IS NULL THEN workdir ELSE nullif($14, '') END,
           sandbox_max_s = coalesce($15, sandbox_max_s),
           context_versions = coalesce($16, context_versions), context_days = coalesce($17, context_days)
         WHERE name = $1",
        name,
        change.template,
        change.agent.as_deref(),
        change.agent_env,
        change.turn_timeout_s,
        change.prepare.is_some(),
        change.prepare.clone().flatten(),
        change.watch.is_some(),
        change.watch.clone().flatten(),
        change.finish.is_some(),
        change.finish.clone().flatten(),
        change.api_version,
        change.idle_timeout_s,
        change.workdir,
        change.sandbox_max_s,
        change.context_versions,
        change.context_days,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "UPDATE turnmill.pools SET
           workspace = coalesce($2, workspace), workspace_max_bytes = coalesce($3, workspace_max_bytes),
           artifact_max_bytes = coalesce($4, artifact_max_bytes), files_exclude = coalesce($5, files_exclude),
           previews = coalesce($6, previews), journal_days = coalesce($7, journal_days),
           inject_key = coalesce($8, inject_key), egress_allow = CASE WHEN $9 THEN $10 ELSE egress_allow END,
           sandbox_usd_per_hour = CASE WHEN $11 THEN $12::float8::numeric(12, 6) ELSE sandbox_usd_per_hour END,
           turn_budget_usd = CASE WHEN $13 THEN $14::float8::numeric(12, 6) ELSE turn_budget_usd END,
           mcp_servers = CASE WHEN $15 THEN $16 ELSE mcp_servers END, trust_project = coalesce($17, trust_project)
         WHERE name = $1",
        name,
        change.workspace,
        change.workspace_max_bytes,
        change.artifact_max_bytes,
        change.files_exclude.as_deref(),
        change.previews,
        change.journal_days,
        change.inject_key,
        change.egress_allow.is_some(),
        change.egress_allow.as_ref().and_then(|allow| allow.as_deref()),
        change.sandbox_usd_per_hour.is_some(),
        change.sandbox_usd_per_hour.flatten(),
        change.turn_budget_usd.is_some(),
        change.turn_budget_usd.flatten(),
        change.mcp_servers.is_some(),
        change.mcp_servers.clone().flatten(),
        change.trust_project,
    )
    .execute(tx)
    .await?;
    Ok(())
}
