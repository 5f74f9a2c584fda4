//! The queue: claim and adopt, phases, hand-over, promotion, cancels.

use std::time::Duration;

use super::{Fenced, Store};
use crate::keys::Egress;

/// A job that this worker holds, with all that it needs to act.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "columns of a row")]
pub struct Claimed {
    /// The turn.
    pub turn_id: String,
    /// Its session.
    pub session_id: String,
    /// The session's project.
    pub project_id: String,
    /// Place in the session, from 1.
    pub ordinal: i32,
    /// Where it runs.
    pub pool: String,
    /// The fence: every write names it.
    pub epoch: i64,
    /// The start of the agent that is due or running.
    pub attempt: i32,
    /// Starts over from scratch so far, plus one.
    pub generation: i32,
    /// Failed start-ups so far.
    pub failures: i32,
    /// Sandboxes that vanished under the agent so far.
    pub sandboxes_lost: i32,
    /// Attempts so far whose agent failed and was tried again in its sandbox.
    pub agent_failures: i32,
    /// This attempt goes on in the conversation of the one before.
    pub resumes: bool,
    /// Bytes of the journal whose blocks are committed.
    pub journal_offset: i64,
    /// Seq of the next block.
    pub next_seq: i32,
    /// Whether it came from the queue or from another worker.
    pub taken: Taken,
    /// The slot that it holds.
    pub slot_id: i64,
    /// creating: the sandbox may or may not exist; busy: `sandbox_id` is it.
    pub slot_state: String,
    /// Idempotency-Key of the create.
    pub nonce: String,
    /// Body of the create, word for word.
    pub create_request: serde_json::Value,
    /// The sandbox, once known.
    pub sandbox_id: Option<String>,
    /// The turn after which the conversation and the files in the sandbox are; `None`: it is, or will be, new.
    pub holds: Option<String>,
    /// Nobody has found the sandbox to be there yet, under this turn.
    pub unseen: bool,
    /// How long the pool keeps a sandbox running for its session's next turn.
    pub warm: Duration,
    /// The user's message.
    pub prompt: String,
    /// Per-turn settings.
    pub options: serde_json::Value,
    /// The uuid of the message on the agent's input.
    pub message_uuid: String,
    /// The agent's id of the conversation.
    pub agent_session_id: String,
    /// The pool's agent command line.
    pub agent: Vec<String>,
    /// The pool's extra environment, an object of strings.
    pub agent_env: serde_json::Value,
    /// Where the agent starts.
    pub workdir: Option<String>,
    /// `v1` or `v2` of E2B's create; `None` = as the worker is configured.
    pub api_version: Option<String>,
    /// What its sandbox may reach, and whether the key is in it.
    pub egress: Egress,
    /// Readers may watch its blocks grow.
    pub previews: bool,
    /// MCP servers of the pool, an object by name.
    pub mcp_servers: Option<serde_json::Value>,
    /// Whether settings, hooks and MCP servers of the project's repository are used.
    pub trust_project: bool,
    /// What its agent prints is kept word for word.
    pub keeps_journal: bool,
    /// The pool's hooks.
    pub hooks: PoolHooks,
    /// Where in its home the agent keeps a conversation.
    pub transcript: Option<String>,
    /// Most bytes of one.
    pub transcript_max_bytes: i64,
    /// The agent did not take the conversation that it was given.
    pub forgets: bool,
    /// How long a sandbox outlives its last extension.
    pub sandbox_timeout: Duration,
    /// What is left of the turn's limit, by the database's clock.
    pub time_left: Duration,
    /// How long its agent may say nothing while no tool of its runs.
    pub idle_timeout: Duration,
    /// What the pool lets one turn's model calls cost, in dollars.
    pub turn_budget_usd: Option<f64>,
    /// What those of its attempts so far have cost.
    pub spent_usd: f64,
    /// Those of them that ended before their agent said what they cost.
    pub unpriced: i32,
    /// Worker processes that died soon after they had taken this turn.
    pub crashes: i32,
    /// Somebody wants it cancelled, for this reason: so that whoever adopts it takes the end of its agent for what it is.
    pub cancel: Option<Option<String>>,
}

/// What a pool runs in its sandboxes around the agent: `None` = the shipped script, empty = none.
#[derive(Debug, Clone, Default)]
pub struct PoolHooks {
    /// Brings the project's files in.
    pub prepare: Option<String>,
    /// Gets the journal while it grows.
    pub watch: Option<String>,
    /// Brings the files back.
    pub finish: Option<String>,
    /// Seconds for prepare.
    pub prepare_timeout_s: i32,
    /// Seconds for finish.
    pub finish_timeout_s: i32,
}

/// How a job came to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// From the queue, with a free slot.
    Claimed,
    /// From a worker that lost its lease or gave it back.
    Adopted,
}

impl Claimed {
    /// What its model calls may cost in all: the turn's own option `max_budget_usd`, at most what the pool allows.
    pub fn budget_usd(&self) -> Option<f64> {
        let given = &self.options["max_budget_usd"];
        let given = given.as_f64().or_else(|| given.as_str()?.parse().ok());
        match (given, self.turn_budget_usd) {
            (Some(given), Some(most)) => Some(f64::min(given, most)),
            (given, most) => given.or(most),
        }
    }

    /// What is left of that for an attempt, in millionths of a dollar as the database counts; not more than zero: nothing. Of an
    /// attempt that did not say what it cost nobody knows: it leaves half of what it had. So all of them spend twice the budget at most.
    pub fn budget_left_usd(&self) -> Option<f64> {
        self.budget_usd().map(|budget| ((budget - self.spent_usd) * 0.5_f64.powi(self.unpriced) * 1e6).round() / 1e6)
    }
}

impl Store {
    /// Takes up to `wanted` jobs for `worker`: orphans first, then ready jobs that have a free slot.
    pub async fn claim(&self, worker: &str, wanted: i64) -> sqlx::Result<Vec<Claimed>> {
        let rows = sqlx::query_file!("src/store/claim.sql", worker, wanted).fetch_all(&self.pool).await?;
        Ok(rows
            .into_iter()
            .map(|r| Claimed {
                turn_id: r.turn_id,
                session_id: r.session_id,
                project_id: r.project_id,
                ordinal: r.ordinal,
                pool: r.pool,
                epoch: r.epoch,
                attempt: r.attempt,
                generation: r.generation,
                failures: r.failures,
                sandboxes_lost: r.sandboxes_lost,
                agent_failures: r.agent_failures,
                resumes: r.resumes,
                journal_offset: r.journal_offset,
                next_seq: r.next_seq,
                taken: if r.taken == "adopted" { Taken::Adopted } else { Taken::Claimed },
                slot_id: r.slot_id,
                slot_state: r.slot_state,
                nonce: r.nonce,
                create_request: r.create_request,
                sandbox_id: r.sandbox_id,
                holds: r.holds,
                unseen: r.phase == "sandbox",
                warm: Duration::from_secs(u64::try_from(r.warm_s).unwrap_or(0)),
                prompt: r.prompt,
                options: r.options,
                message_uuid: r.message_uuid,
                agent_session_id: r.agent_session_id,
                agent: r.agent,
                agent_env: r.agent_env,
                transcript: r.transcript,
                transcript_max_bytes: r.transcript_max_bytes,
                forgets: r.forgets,
                workdir: r.workdir,
                egress: Egress { inject_key: r.inject_key, allow: r.egress_allow },
                previews: r.previews,
                mcp_servers: r.mcp_servers,
                trust_project: r.trust_project,
                keeps_journal: r.keeps_journal,
                api_version: r.api_version,
                hooks: PoolHooks {
                    prepare: r.prepare,
                    watch: r.watch,
                    finish: r.finish,
                    prepare_timeout_s: r.prepare_timeout_s,
                    finish_timeout_s: r.finish_timeout_s,
                },
                sandbox_timeout: Duration::from_secs(u64::try_from(r.sandbox_timeout_s).unwrap_or(60)),
                time_left: Duration::from_secs_f64(r.seconds_left),
                idle_timeout: Duration::from_secs(u64::try_from(r.idle_timeout_s).unwrap_or(600)),
                turn_budget_usd: r.turn_budget_usd,
                spent_usd: r.spent_usd,
                unpriced: r.unpriced,
                crashes: r.crashes,
                cancel: r.cancel_asked.then_some(r.cancel_reason),
            })
            .collect())
    }

    /// Records that the agent of this attempt runs (or ran): from here on a lost sandbox is a lost attempt.
    pub async fn agent_started(&self, job: &Claimed) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "WITH job AS (
               UPDATE turnmill.jobs SET phase = 'agent'
               WHERE turn_id = $1 AND epoch = $2 AND attempt = $3 RETURNING turn_id, attempt),
             turn AS (UPDATE turnmill.turns t SET attempt = job.attempt FROM job
                      WHERE t.id = job.turn_id AND t.attempt <> job.attempt)
             UPDATE turnmill.attempts a SET agent_at = clock_timestamp()
             FROM job WHERE a.epoch = $2",
            job.turn_id,
            job.epoch,
            job.attempt,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(fenced(done))
    }

    /// Gives one turn back: the next claim of any worker adopts it. Nobody's failure.
    pub async fn hand_over(&self, job: &Claimed) -> sqlx::Result<Result<(), Fenced>> {
        let done = sqlx::query!(
            "WITH job AS (
               UPDATE turnmill.jobs SET worker_id = NULL
               WHERE turn_id = $1 AND epoch = $2 RETURNING journal_offset)
             UPDATE turnmill.attempts a SET ended_at = clock_timestamp(), ended = 'handed_over', to_offset = job.journal_offset
             FROM job WHERE a.epoch = $2 AND a.ended_at IS NULL",
            job.turn_id,
            job.epoch,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        Ok(fenced(done))
    }

    /// Hands over jobs in this worker's name that it doesn't know of: a claim whose answer was lost, or
    /// what it let go of when its lease ran out. Call it only where no claim is under way.
    pub async fn hand_over_strangers(&self, worker: &str, known: &[i64]) -> sqlx::Result<u64> {
        let given = sqlx::query_scalar!(
            r#"WITH job AS (
                 UPDATE turnmill.jobs j SET worker_id = NULL
                 FROM (SELECT turn_id FROM turnmill.jobs WHERE state = 'leased' AND worker_id = $1 AND epoch <> ALL ($2)
                       FOR NO KEY UPDATE SKIP LOCKED) stray
                 WHERE j.turn_id = stray.turn_id RETURNING j.epoch, j.journal_offset),
               noted AS (
                 UPDATE turnmill.attempts a SET ended_at = clock_timestamp(), ended = 'handed_over', to_offset = job.journal_offset
                 FROM job WHERE a.epoch = job.epoch AND a.ended_at IS NULL)
               SELECT count(*) AS "given!" FROM job"#,
            worker,
            known,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::try_from(given).unwrap_or(0))
    }

    /// Of these turns, those that someone wants cancelled, with the reason given.
    pub async fn cancels(&self, turns: &[String]) -> sqlx::Result<Vec<(String, Option<String>)>> {
        let rows = sqlx::query!("SELECT turn_id, reason FROM turnmill.cancel_requests WHERE turn_id = ANY ($1)", turns)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|r| (r.turn_id, r.reason)).collect())
    }

    /// What no single transaction can promise: promotes sessions whose next turn nobody promoted, cancels
    /// turns that were asked to while they changed hands, drops requests that nobody needs, recounts, sweeps workers.
    /// Each on its own, so that none stops the others; the first error, if any.
    pub async fn tidy(&self) -> sqlx::Result<()> {
        let done = [
            self.promote_forgotten().await,
            self.cancel_unheld().await,
            self.drop_late_cancels().await,
            self.drop_retired_slots().await,
            self.expire_warm().await,
            self.recount_tenants().await,
            self.sweep_workers().await,
            self.drop_old_previews().await,
            self.forget_journals().await,
            self.sum_charges().await.map(drop),
            self.forget_secrets().await,
        ];
        done.into_iter().collect()
    }

    async fn promote_forgotten(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "SELECT turnmill.promote(s.session_id) FROM (
               SELECT DISTINCT session_id FROM turnmill.jobs w WHERE w.state = 'waiting'
                 AND NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = w.session_id AND j.state <> 'waiting')
               LIMIT 1000) s"
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(())
    }

    async fn cancel_unheld(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "SELECT turnmill.cancel_turn(c.turn_id, c.reason) FROM turnmill.cancel_requests c
             JOIN turnmill.jobs j ON j.turn_id = c.turn_id AND j.state <> 'leased'"
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(())
    }

    async fn drop_late_cancels(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.cancel_requests c
             WHERE NOT EXISTS (SELECT FROM turnmill.jobs j WHERE j.turn_id = c.turn_id)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn drop_retired_slots(&self) -> sqlx::Result<()> {
        sqlx::query!("DELETE FROM turnmill.slots WHERE state = 'free' AND retire").execute(&self.pool).await?;
        Ok(())
    }

    /// Of tenants with a limit, those whose counter looks wrong.
    async fn recount_tenants(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "SELECT turnmill.recount_tenant(t.id) FROM turnmill.tenants t
             WHERE t.running_max IS NOT NULL
               AND t.running <> (SELECT count(*) FROM turnmill.jobs j WHERE j.tenant_id = t.id AND j.state = 'leased')"
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(())
    }
}

pub(super) fn fenced(rows: u64) -> Result<(), Fenced> {
    if rows == 0 { Err(Fenced) } else { Ok(()) }
}
