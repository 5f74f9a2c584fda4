//! Sandboxes that wait for their session's next turn: warm in their slot, or parked, which is paused and costs none.
//!
//! Whoever wants one changes its row first: a claim makes it busy, the others make it pausing, releasing or doomed. Who
//! comes second finds it changed, and does nothing to the sandbox.

use std::time::Duration;

use super::jobs::fenced;
use super::{Fenced, Releasing, Store};

impl Store {
    /// Gives up warm sandboxes where turns wait that nothing but a slot is missing for, the oldest first and no more than
    /// there are such turns; they are the caller's to pause or kill, by anyone after `hold`. One worker does it at a time: of
    /// two that count the same turns each would give up one for each of them.
    pub async fn evict_warm(&self, hold: Duration) -> sqlx::Result<Vec<Releasing>> {
        let mut tx = self.pool.begin().await?;
        // A statement of its own: the next one sees what whoever had the lock before has committed.
        let mine = sqlx::query_scalar!(
            r#"SELECT CASE WHEN EXISTS (SELECT FROM turnmill.slots WHERE state = 'warm')
                 THEN pg_try_advisory_xact_lock(hashtext('turnmill.evict_warm')) ELSE false END AS "mine!""#
        );
        if !mine.fetch_one(&mut tx).await? {
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        let rows = sqlx::query!(
            r#"WITH day AS MATERIALIZED (
                 SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS today),
               -- Of all tenants at once: asked one by one each would walk through what is not summed yet.
               fresh AS MATERIALIZED (
                 SELECT c.tenant_id, sum(c.usd) AS usd FROM turnmill.fresh_charges c
                 WHERE c.id > (SELECT s.summed_to - 1000 FROM turnmill.spend_state s) AND c.day = (SELECT today FROM day)
                   AND EXISTS (SELECT FROM turnmill.tenants t WHERE t.budget_usd_per_day IS NOT NULL)
                 GROUP BY c.tenant_id),
               spent AS MATERIALIZED (
                 SELECT t.id FROM turnmill.tenants t LEFT JOIN fresh c ON c.tenant_id = t.id
                 LEFT JOIN (SELECT d.tenant_id, sum(d.usd) AS usd FROM turnmill.spend_days d
                            WHERE d.day = (SELECT today FROM day) GROUP BY d.tenant_id) d ON d.tenant_id = t.id
                 WHERE t.budget_usd_per_day <= coalesce(c.usd, 0) + coalesce(d.usd, 0)),
               waiting AS MATERIALIZED (
                 SELECT p.name AS pool, j.tenant_id, count(*) AS n
                 FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name CROSS JOIN LATERAL (
                   SELECT j.tenant_id FROM turnmill.jobs j
                   WHERE j.pool = p.name AND j.state = 'ready' AND j.run_at <= clock_timestamp()
                     AND NOT EXISTS (SELECT FROM turnmill.tenants t WHERE t.id = j.tenant_id AND t.running >= t.running_max)
                     AND NOT EXISTS (SELECT FROM spent t WHERE t.id = j.tenant_id)
                     AND NOT EXISTS (SELECT FROM turnmill.slots k WHERE k.session_id = j.session_id AND k.state IN ('warm', 'pausing'))
                   LIMIT 1000) j
                 WHERE p.state = 'active' AND q.creates_after <= clock_timestamp()
                   AND EXISTS (SELECT FROM turnmill.fleet f WHERE f.stopped_at IS NULL
                               AND (f.budget_usd_per_day IS NULL OR f.budget_usd_per_day > turnmill.fleet_spent_today()))
                   AND EXISTS (SELECT FROM turnmill.slots w WHERE w.pool = p.name AND w.state = 'warm')
                 GROUP BY p.name, j.tenant_id),
               need AS MATERIALIZED (
                 -- What tenants may start, and what may be created, less the slots that are there or come.
                 SELECT p.name AS pool, p.paused_s,
                   least(w.n, CASE WHEN p.create_rate IS NOT NULL THEN floor(least(p.create_burst,
                     q.tokens + p.create_rate * extract(epoch FROM clock_timestamp() - q.tokens_at)))::bigint END)
                   - (SELECT count(*) FROM turnmill.slots f
                      WHERE f.pool = p.name AND NOT f.retire AND f.state IN ('free', 'pausing', 'releasing')) AS n
                 FROM turnmill.pools p JOIN turnmill.pool_states q ON q.pool = p.name JOIN (
                   SELECT w.pool, sum(least(w.n, t.running_max - t.running))::bigint AS n
                   FROM waiting w LEFT JOIN turnmill.tenants t ON t.id = w.tenant_id GROUP BY w.pool) w ON w.pool = p.name),
               victim AS MATERIALIZED (
                 SELECT v.id, need.paused_s FROM need CROSS JOIN LATERAL (
                   SELECT s.id FROM turnmill.slots s WHERE s.pool = need.pool AND s.state = 'warm'
                   -- Those first that no turn waits for.
                   ORDER BY EXISTS (SELECT FROM turnmill.jobs j WHERE j.session_id = s.session_id), s.due_at
                   LIMIT greatest(need.n, 0) FOR NO KEY UPDATE SKIP LOCKED) v)
               UPDATE turnmill.slots s
               SET state = CASE WHEN victim.paused_s > 0 THEN 'pausing' ELSE 'releasing' END,
                   epoch = nextval('turnmill.epochs'),
                   -- A pause takes some seconds for each GiB of memory.
                   due_at = clock_timestamp() + make_interval(secs => $1) * CASE WHEN victim.paused_s > 0 THEN 6 ELSE 1 END
               FROM victim WHERE s.id = victim.id
               RETURNING s.id, s.epoch AS "epoch!", s.sandbox_id, s.nonce AS "nonce!", s.state = 'pausing' AS "pause!""#,
            hold.as_secs_f64(),
        )
        .fetch_all(&mut tx)
        .await?;
        tx.commit().await?;
        let releasing = rows.into_iter().map(|r| Releasing {
            slot_id: r.id,
            epoch: r.epoch,
            sandbox_id: r.sandbox_id,
            nonce: r.nonce,
            since_asked: None,
            pause: r.pause,
        });
        Ok(releasing.collect())
    }

    /// Warm sandboxes whose time is over, or whose slot is above the cap, are to be paused or killed.
    pub(super) async fn expire_warm(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH over AS MATERIALIZED (
               SELECT s.id, p.paused_s FROM turnmill.slots s JOIN turnmill.pools p ON p.name = s.pool
               WHERE s.state = 'warm' AND (s.due_at <= clock_timestamp() OR s.retire) FOR NO KEY UPDATE OF s SKIP LOCKED)
             UPDATE turnmill.slots s
             SET state = CASE WHEN over.paused_s > 0 THEN 'pausing' ELSE 'releasing' END,
                 epoch = nextval('turnmill.epochs'), due_at = clock_timestamp()
             FROM over WHERE s.id = over.id"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A sandbox that can't be paused is to be killed; by the caller, unless somebody else has the slot.
    pub async fn give_up_pause(&self, slot_id: i64, epoch: i64) -> sqlx::Result<Result<(), Fenced>> {
        let given = sqlx::query!(
            "UPDATE turnmill.slots SET state = 'releasing' WHERE id = $1 AND epoch = $2 AND state = 'pausing'",
            slot_id,
            epoch
        );
        Ok(fenced(given.execute(&self.pool).await?.rows_affected()))
    }

    /// Takes up to `limit` parked sandboxes whose time is over, to be killed by the caller; by anyone after `hold`.
    pub async fn doom_parked(&self, limit: i64, hold: Duration) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            "WITH over AS MATERIALIZED (
               SELECT sandbox_id FROM turnmill.parked WHERE due_at <= clock_timestamp() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
             UPDATE turnmill.parked p SET doomed = true, due_at = clock_timestamp() + make_interval(secs => $2)
             FROM over WHERE p.sandbox_id = over.sandbox_id RETURNING p.sandbox_id",
            limit,
            hold.as_secs_f64(),
        )
        .fetch_all(&self.pool)
        .await
    }

    /// A doomed sandbox is gone.
    pub async fn parked_gone(&self, sandbox_id: &str) -> sqlx::Result<()> {
        sqlx::query!("DELETE FROM turnmill.parked WHERE sandbox_id = $1 AND doomed", sandbox_id).execute(&self.pool).await?;
        Ok(())
    }

    /// Sandboxes that are parked.
    pub async fn parked(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM turnmill.parked"#).fetch_one(&self.pool).await
    }
}
