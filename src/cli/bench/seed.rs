//! A history to look at: many ended turns with their blocks and attempts, and the minutes in which they were.
//!
//! Written as a restore would write it, without the functions that enqueue and settle: two million turns in minutes.

use std::time::Duration;

use clap::Args;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgPool};
use tokio::time::Instant;

use super::super::{paint, store};
use crate::config::Config;

/// Turns of one statement.
const BATCH: u32 = 20_000;

/// Of whose project all of it is: so that it can be told apart, and a second time is refused.
const PROJECT: &str = "seed";

/// Fill DATABASE_URL with ended turns, to see what the dashboard is like with history.
#[derive(Debug, Args)]
pub struct Seed {
    /// Ended turns
    #[arg(long, default_value_t = 2_000_000)]
    turns: u32,
    /// Blocks of each
    #[arg(long, default_value_t = 10)]
    blocks: u32,
    /// Days over which they are spread
    #[arg(long, default_value_t = 90)]
    days: u32,
}

impl Seed {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let store = store(config).await?;
        let pool = store.pool();
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM turnmill.turns LIMIT 1) t").fetch_one(pool).await?;
        anyhow::ensure!(
            there == 0,
            "this database has turns already; seed one of its own, so that nobody takes made-up turns for real ones"
        );
        fill(pool, self.turns, self.blocks, self.days).await
    }
}

/// Writes the history.
pub async fn fill(pool: &PgPool, turns: u32, blocks: u32, days: u32) -> anyhow::Result<()> {
    let since = Instant::now();
    let mut said = Duration::ZERO;
    // Each of its statements is slow.
    let mut connection = pool.connect_options().as_ref().clone().disable_statement_logging().connect().await?;
    // Nothing here refers to what is not there; and a statement may take as long as it takes, also to
    // wait for an autovacuum that is at the same table.
    let limits = "SET statement_timeout = 0; SET lock_timeout = 0; SET synchronous_commit = off; SET session_replication_role = replica";
    if connection.execute(limits).await.is_err() {
        connection.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET synchronous_commit = off").await?;
    }
    for from in (0..turns).step_by(BATCH as usize) {
        let to = (from + BATCH).min(turns);
        connection.execute(sqlx::raw_sql(AssertSqlSafe(batch(from, to, turns, blocks, days)))).await?;
        if since.elapsed() > said + Duration::from_secs(10) {
            said = since.elapsed();
            anstream::eprintln!("{}{to} of {turns} turns after {:.0} s{}", paint::DIM, said.as_secs_f64(), paint::OFF);
        }
    }
    connection.execute(sqlx::raw_sql(AssertSqlSafe(rest(turns, days)))).await?;
    // Without it the first pages would pay for the visibility map.
    connection.execute("VACUUM ANALYZE").await?;
    connection.close().await?;
    anstream::eprintln!("{turns} turns with {} blocks in {:.0} s", u64::from(turns) * u64::from(blocks), since.elapsed().as_secs_f64());
    Ok(())
}

/// Numbers of ours in constant text. A session has five turns; one turn of fifty failed, one of a hundred was cancelled;
/// three hundred tenants, of which the first has half of everything.
fn batch(from: u32, to: u32, turns: u32, blocks: u32, days: u32) -> String {
    let numbers = format!("generate_series({from}, {}) AS n", to - 1);
    let at = format!(
        "date_trunc('hour', clock_timestamp()) - interval '1 hour' - make_interval(secs => ({turns} - n) * {days}.0 * 86400 / {turns})"
    );
    let id = "lpad(to_hex(n), 8, '0')";
    format!(
        "INSERT INTO turnmill.sessions (id, project_id, tenant_id, pool, turns, created_at)
           SELECT 'sess_seed_' || lpad(to_hex(n / 5), 8, '0'), '{PROJECT}',
                  'tenant-' || CASE WHEN n / 5 % 2 = 0 THEN 0 ELSE n / 5 % 300 END, 'default', 5, {at}
           FROM {numbers} WHERE n % 5 = 0;
         INSERT INTO turnmill.turns (id, session_id, project_id, ordinal, prompt, body_hash, status, attempt, blocks, error_code, error_message,
                                     usage, cost_usd, created_at, started_at, completed_at)
           SELECT 'turn_seed_' || {id}, 'sess_seed_' || lpad(to_hex(n / 5), 8, '0'), '{PROJECT}', n % 5 + 1, 'Fix what test ' || n || ' finds, and say why it was so.',
                  '\\x00', CASE WHEN n % 50 = 7 THEN 'failed' WHEN n % 100 = 9 THEN 'cancelled' ELSE 'completed' END, 1, {blocks},
                  CASE WHEN n % 50 = 7 THEN CASE WHEN n % 5000 = 7 THEN 'rare_error' ELSE 'api_error' END WHEN n % 100 = 9 THEN 'cancelled' END,
                  CASE WHEN n % 50 = 7 THEN 'the model did not answer' WHEN n % 100 = 9 THEN 'cancelled' END,
                  '{{\"input_tokens\": 1200, \"output_tokens\": 340}}', 0.0421, at, at + interval '2 seconds', at + interval '90 seconds'
           FROM (SELECT n, {at} AS at FROM {numbers}) s;
         INSERT INTO turnmill.transcripts (turn_id, session_id, ordinal, data, bytes, saved_at)
           SELECT 'turn_seed_' || {id}, 'sess_seed_' || lpad(to_hex(n / 5), 8, '0'), 5, '\\x00', 48211, {at} FROM {numbers} WHERE n % 5 = 4;
         INSERT INTO turnmill.workspaces (turn_id, session_id, ordinal, kind, data, bytes, files, saved_at)
           SELECT 'turn_seed_' || {id}, 'sess_seed_' || lpad(to_hex(n / 5), 8, '0'), 5, 'saved', '\\x00', 20480, 17, {at} FROM {numbers} WHERE n % 5 = 4;
         INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, taken_at, from_offset, from_seq, sandbox_id, sandbox_at,
                                        agent_at, ended_at, ended, to_offset, phase, error_code)
           SELECT nextval('turnmill.epochs'), 'turn_seed_' || {id}, 1, 1, 'seed-' || n % 7, 'claimed', at + interval '2 seconds', 0, 0, 'sbx' || n,
                  at + interval '3 seconds', at + interval '4 seconds', at + interval '90 seconds', 'settled', 48211, 'finish',
                  CASE WHEN n % 50 = 7 THEN 'api_error' END
           FROM (SELECT n, {at} AS at FROM {numbers}) s;
         INSERT INTO turnmill.blocks (id, turn_id, seq, generation, attempt, type, content, created_at)
           SELECT 'block_seed_' || {id} || '_' || b, 'turn_seed_' || {id}, b, 1, 1, CASE b % 4 WHEN 1 THEN 'tool_use' WHEN 2 THEN 'tool_result' ELSE 'content' END,
                  CASE b % 4 WHEN 1 THEN jsonb_build_object('tool_name', 'Bash', 'tool_use_id', 'toolu_' || b, 'parameters', jsonb_build_object('command', 'cargo test ' || n))
                             WHEN 2 THEN jsonb_build_object('tool_use_id', 'toolu_' || b - 1, 'result', 'test result: ok. 12 passed; 0 failed', 'error', NULL)
                             ELSE jsonb_build_object('text', 'The expiry of token ' || n || ' was compared in local time.') END,
                  at + make_interval(secs => 4 + b * 8)
           FROM (SELECT n, {at} AS at FROM {numbers}) s CROSS JOIN generate_series(0, {last}) AS b;",
        last = i64::from(blocks) - 1,
    )
}

/// The minutes, as a sampler would have left them, and the kinds of failures.
fn rest(turns: u32, days: u32) -> String {
    format!(
        "INSERT INTO turnmill.metrics_minute (minute, closed, enqueued, started, completed, failed, tries, tries_failed, failures, cost_usd, wait_p50_s, wait_p95_s,
                                              ready, waiting, running, cap, held, reported, workers, turns_max, reasons, verdict)
           SELECT m, true, n, n, n - n / 50, n / 50, n, n / 50, jsonb_build_object('agent api_error', n / 50), n * 0.0421, 1.9, 2.4, 0, 0, n, 50, n, n, 3, 60, '{{}}', 'working'
           FROM (SELECT m, ({turns} / ({days} * 1440.0) * (1 + sin(extract(epoch FROM m) / 13750)))::integer AS n
                 FROM generate_series(date_trunc('minute', clock_timestamp()) - make_interval(days => {days}), date_trunc('minute', clock_timestamp()) - interval '1 minute', interval '1 minute') m) s
         ON CONFLICT DO NOTHING;
         -- A day's sums by tenant and kind, as a roll-up would have left them: the first tenant has half of everything.
         INSERT INTO turnmill.spend_days (day, tenant_id, pool, kind, model, turns, unpriced, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, seconds, usd)
           SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date - d, 'tenant-' || t, 'default', k.kind, k.model, n * k.share, 0, n * k.share * 1200, n * k.share * 340, 0, 0,
                  n * k.seconds, n * k.usd
           FROM generate_series(0, {days} - 1) d, generate_series(0, 299) t,
                LATERAL (SELECT 1 + {turns} / {days} / CASE WHEN t = 0 THEN 2 ELSE 600 END AS n) c,
                (VALUES ('model', 'claude-sonnet-4-5', 1, 0, 0.0381), ('model', 'claude-haiku-4-5', 0, 0, 0.004), ('sandbox', '', 0, 87, 0.0041)) k (kind, model, share, seconds, usd)
         ON CONFLICT DO NOTHING;
         UPDATE turnmill.spend_state SET day = d.day, usd = d.usd FROM (SELECT day, sum(usd) AS usd FROM turnmill.spend_days GROUP BY day ORDER BY day DESC LIMIT 1) d;
         INSERT INTO turnmill.failures (phase, code, first_at, last_at, tries, turns, last_turn_id, last_message)
           VALUES ('agent', 'api_error', clock_timestamp() - make_interval(days => {days}), clock_timestamp() - interval '1 hour', {turns} / 50, {turns} / 50, 'turn_seed_00000007', 'the model did not answer'),
                  ('agent', 'rare_error', clock_timestamp() - make_interval(days => {days}), clock_timestamp() - interval '1 hour', {turns} / 5000, {turns} / 5000, 'turn_seed_00000007', 'the model did not answer')
         ON CONFLICT DO NOTHING;"
    )
}
