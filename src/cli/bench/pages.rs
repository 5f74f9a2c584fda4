//! What the dashboard's pages cost, with history behind them and a full board of slots in front.
//!
//! Pages in turn, with a pause between any two, so that what is kept for a second is asked anew for nearly every one.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{ConnectOptions as _, Connection as _, PgPool};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::paint;
use super::{of, seed};
use crate::config::Config;
use crate::store::{PoolChange, Store};
use crate::web::Web;

/// Slots of the board, and turns that wait.
const RUNNING: i32 = 1000;

/// Rounds over all pages.
const ROUNDS: usize = 40;

/// Between any two requests.
const PAUSE: Duration = Duration::from_millis(80);

/// Seeds `turns`, and measures.
pub async fn measure(store: &Store, mut config: Config, turns: u32) -> anyhow::Result<()> {
    seed::fill(store.pool(), turns, 10, 90).await?;
    store.set_pool("default", &PoolChange { cap: Some(RUNNING), ..PoolChange::default() }).await?;
    crowd(store.pool()).await?;
    config.web.listen.set_port(0);
    let web = Web::bind(store.clone(), &config, true).await?;
    let at = format!("http://{}", web.address()?);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(web.run(stop.clone()));

    anstream::println!(
        "{}Pages of the dashboard, {turns} ended turns, {RUNNING} slots held, {RUNNING} turns waiting{}",
        paint::BOLD,
        paint::OFF
    );
    let client = reqwest::Client::new();
    let (middle, session) = (format!("{:08x}", turns / 2), format!("{:08x}", turns / 10));
    let pages = [
        "/ops".to_owned(),
        "/ops/now".to_owned(),
        "/ops/turns".to_owned(),
        "/ops/turns?status=failed".to_owned(),
        "/ops/turns?status=in_progress".to_owned(),
        "/ops/turns?reason=no_slot".to_owned(),
        "/ops/turns?error=rare_error".to_owned(),
        "/ops/turns?tenant=tenant-7".to_owned(),
        "/ops/turns?tenant=tenant-0&status=cancelled".to_owned(),
        "/ops/turns?q=nowhere".to_owned(),
        format!("/ops/turns?q=turn_seed_{}", &middle[..6]),
        format!("/ops/turns/turn_seed_{middle}"),
        "/ops/sessions".to_owned(),
        "/ops/sessions?state=running".to_owned(),
        "/ops/sessions?state=waiting".to_owned(),
        "/ops/sessions?tenant=tenant-0&state=idle".to_owned(),
        "/ops/sessions?project=seed&tenant=tenant-7".to_owned(),
        "/ops/sessions?q=nowhere".to_owned(),
        format!("/ops/sessions?q=sess_seed_{}", &session[..6]),
        format!("/ops/sessions/sess_seed_{session}"),
        "/ops/sandboxes".to_owned(),
        "/ops/sandboxes?state=wrong".to_owned(),
        "/ops/sandboxes?q=parked-44".to_owned(),
        "/ops/workers".to_owned(),
        "/ops/pools".to_owned(),
        "/ops/pools/default".to_owned(),
        "/ops/tenants".to_owned(),
        "/ops/tenants?show=budget".to_owned(),
        "/ops/tenants?q=nowhere".to_owned(),
        "/ops/tenant?id=tenant-7".to_owned(),
        "/ops/spend".to_owned(),
        "/ops/spend?by=model&days=90".to_owned(),
        "/ops/spend?by=pool&tenant=tenant-0".to_owned(),
        "/ops/audit".to_owned(),
    ];
    let mut times = vec![Vec::new(); pages.len()];
    for _ in 0..ROUNDS {
        for (page, times) in pages.iter().zip(&mut times) {
            let since = Instant::now();
            let response = client.get(format!("{at}{page}")).send().await.context("asking for a page")?;
            anyhow::ensure!(response.status().is_success(), "{page} was answered with {}", response.status());
            response.bytes().await?;
            times.push(since.elapsed().as_secs_f64() * 1000.0);
            sleep(PAUSE).await;
        }
    }
    for (page, times) in pages.iter().zip(times) {
        let (p50, p99) = of(times)?;
        anstream::println!("  {page:<50} p50 {p50:>6.1} ms  p99 {p99:>6.1} ms");
    }
    stop.cancel();
    serving.await??;
    Ok(())
}

/// Turns that run as far as the database knows, each with its slot, taken in the last four hours, and as many that wait
/// for one; sandboxes paused beside them and some that are nobody's; tenants with budgets, of which some are spent; and what people have done.
async fn crowd(pool: &PgPool) -> anyhow::Result<()> {
    let running = "INSERT INTO turnmill.workers (id, lease_until, turns_max, host, pid, version) VALUES ('bench', clock_timestamp() + interval '1 day', 2000, 'bench', 1, '0');
      SELECT turnmill.enqueue_turn('x', project_id => 'bench', session_id => 'live-' || n, turn_id => 'live-' || n, tenant_id => 'tenant-' || n % 40) FROM generate_series(1, 2000) n;
      WITH picked AS MATERIALIZED (
        SELECT j.turn_id, s.id AS slot_id, nextval('turnmill.epochs') AS epoch, j.session_id
        FROM (SELECT turn_id, session_id, row_number() OVER (ORDER BY queued_at) AS nth FROM turnmill.jobs) j
        JOIN (SELECT id, row_number() OVER (ORDER BY id) AS nth FROM turnmill.slots) s USING (nth)),
      job AS (UPDATE turnmill.jobs j SET state = 'leased', worker_id = 'bench', epoch = picked.epoch, phase = 'agent', slot_id = picked.slot_id FROM picked WHERE j.turn_id = picked.turn_id),
      turn AS (UPDATE turnmill.turns t SET status = 'in_progress', started_at = clock_timestamp(), attempt = 1 FROM picked WHERE t.id = picked.turn_id),
      noted AS (INSERT INTO turnmill.attempts (epoch, turn_id, attempt, generation, worker_id, taken, taken_at, from_offset, from_seq, agent_at)
                SELECT epoch, turn_id, 1, 1, 'bench', 'claimed', clock_timestamp() - make_interval(mins => epoch::integer % 240), 0, 0, clock_timestamp() FROM picked)
      UPDATE turnmill.slots s SET state = 'busy', epoch = picked.epoch, turn_id = picked.turn_id, session_id = picked.session_id, nonce = 'n' || s.id,
        create_request = '{}', sandbox_id = 'sbx' || s.id, sandbox_at = clock_timestamp() FROM picked WHERE s.id = picked.slot_id;
      INSERT INTO turnmill.parked (sandbox_id, pool, session_id, holds, nonce, create_request, due_at)
        SELECT 'parked-' || n, 'default', 'sess_seed_' || lpad(to_hex(n), 8, '0'), 'turn_seed_' || lpad(to_hex(n * 5 + 4), 8, '0'), 'p' || n, '{}',
          clock_timestamp() + make_interval(mins => n) FROM generate_series(1, 5000) n;
      INSERT INTO turnmill.corrections (kind, subject, pool, reason) SELECT 'orphan', 'orphan-' || n, 'default', 'running, no slot knows it' FROM generate_series(1, 20) n;
      INSERT INTO turnmill.tenants (id, weight, running_max, budget_usd_per_day) SELECT 'tenant-' || n, 1 + n % 3, 10 + n, CASE WHEN n % 4 = 0 THEN 0.01 ELSE 1000000 END
        FROM generate_series(0, 39) n ON CONFLICT DO NOTHING;
      INSERT INTO turnmill.audit (actor, act, kind, subject, reason) SELECT 'bench', 'cancel', 'turn', 'live-' || n, 'to have some' FROM generate_series(1, 20000) n;
      ANALYZE";
    let mut connection = pool.connect_options().as_ref().clone().disable_statement_logging().connect().await?;
    sqlx::raw_sql(running).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}
