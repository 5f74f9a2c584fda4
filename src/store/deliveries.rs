//! Deliveries as people see them: listed, read, sent again; and a test.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Bounds, Store};

/// Most deliveries that one call sends again.
pub const REPLAYED_MAX: i64 = 10_000;

/// A delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// `msg_…`, the `webhook-id`.
    pub id: String,
    /// Who is told.
    pub endpoint_id: String,
    /// What about; `None`: a test.
    pub turn_id: Option<String>,
    /// The event's type.
    pub kind: String,
    /// The body.
    pub payload: serde_json::Value,
    /// pending, delivered or failed.
    pub state: String,
    /// Tries since it is due.
    pub attempts: i32,
    /// Not before then, while it is pending.
    pub next_at: DateTime<Utc>,
    /// When it was last tried.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// Status of the last answer.
    pub last_status: Option<i32>,
    /// What was wrong with the last try.
    pub last_error: Option<String>,
    /// When it was delivered or given up.
    pub ended_at: Option<DateTime<Utc>>,
    /// When the event was.
    pub created_at: DateTime<Utc>,
}

/// What came of a wish to send something again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// It is due.
    Due,
    /// Its endpoint is disabled.
    Disabled,
    /// There is no such delivery, or it is out of bounds.
    Unknown,
}

/// Which ones to send again.
#[derive(Debug, Clone, Copy)]
pub enum Since {
    /// Whose event was not before then.
    At(DateTime<Utc>),
    /// Whose event was at most so long ago.
    Ago(Duration),
}

impl Store {
    /// An endpoint's, newest first, from before an id on; of one state, or of all. The caller has made sure that the endpoint
    /// is in bounds.
    pub async fn deliveries(
        &self,
        endpoint_id: &str,
        state: Option<&str>,
        before: Option<&str>,
        limit: i64,
    ) -> sqlx::Result<Vec<Delivery>> {
        sqlx::query_as!(
            Delivery,
            "SELECT id, endpoint_id, turn_id, type AS kind, payload, state, attempts, next_at, last_attempt_at, last_status, last_error,
               ended_at, created_at
             FROM turnmill.outbox
             WHERE endpoint_id = $1 AND ($2::text IS NULL OR state = $2) AND ($3::text IS NULL OR id < $3)
             ORDER BY id DESC LIMIT $4",
            endpoint_id,
            state,
            before,
            limit,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// One; `None`: no such id, its endpoint is deleted or out of bounds.
    pub async fn delivery(&self, id: &str, bounds: &Bounds) -> sqlx::Result<Option<Delivery>> {
        sqlx::query_as!(
            Delivery,
            "SELECT o.id, o.endpoint_id, o.turn_id, o.type AS kind, o.payload, o.state, o.attempts, o.next_at, o.last_attempt_at,
               o.last_status, o.last_error, o.ended_at, o.created_at
             FROM turnmill.outbox o JOIN turnmill.webhook_endpoints e ON e.id = o.endpoint_id
             WHERE o.id = $1 AND ($2::text IS NULL OR e.project_id = $2) AND ($3::text IS NULL OR e.tenant_id = $3)",
            id,
            bounds.project_id,
            bounds.tenant_id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Makes a delivery due now, with all its tries before it again, whatever became of it. One that is under way stays so.
    pub async fn replay(&self, id: &str, bounds: &Bounds) -> sqlx::Result<Replay> {
        let found = sqlx::query!(
            r#"WITH one AS (
                 SELECT o.id, e.state = 'enabled' AS enabled FROM turnmill.outbox o JOIN turnmill.webhook_endpoints e ON e.id = o.endpoint_id
                 WHERE o.id = $1 AND ($2::text IS NULL OR e.project_id = $2) AND ($3::text IS NULL OR e.tenant_id = $3)),
               again AS (
                 UPDATE turnmill.outbox o
                 SET state = 'pending', attempts = 0, next_at = clock_timestamp(), since = clock_timestamp(), ended_at = NULL
                 FROM one WHERE o.id = one.id AND one.enabled AND o.epoch IS NULL)
               SELECT enabled AS "enabled!" FROM one"#,
            id,
            bounds.project_id,
            bounds.tenant_id,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(match found {
            None => Replay::Unknown,
            Some(one) if one.enabled => {
                self.end_peace(id).await?;
                Replay::Due
            }
            Some(_) => Replay::Disabled,
        })
    }

    /// The same for what an enabled endpoint's failed deliveries are, the oldest first, [`REPLAYED_MAX`] at most. How many.
    pub async fn replay_failed(&self, endpoint_id: &str, since: Since) -> sqlx::Result<u64> {
        let (at, ago) = match since {
            Since::At(at) => (Some(at), None),
            Since::Ago(ago) => (None, Some(ago.as_secs_f64())),
        };
        let done = sqlx::query!(
            "UPDATE turnmill.outbox o
             SET state = 'pending', attempts = 0, next_at = clock_timestamp(), since = clock_timestamp(), ended_at = NULL
             FROM (SELECT f.id FROM turnmill.outbox f JOIN turnmill.webhook_endpoints e ON e.id = f.endpoint_id
                   WHERE f.endpoint_id = $1 AND f.state = 'failed' AND e.state = 'enabled'
                     AND f.created_at >= coalesce($2, statement_timestamp() - make_interval(secs => $3))
                   ORDER BY f.id LIMIT $4 FOR NO KEY UPDATE OF f SKIP LOCKED) failed
             WHERE o.id = failed.id",
            endpoint_id,
            at,
            ago,
            REPLAYED_MAX,
        )
        .execute(&self.pool)
        .await?;
        self.end_peace(endpoint_id).await?;
        Ok(done.rows_affected())
    }

    /// Somebody thinks that the endpoint, or that of this delivery, is well again: it is asked at once.
    async fn end_peace(&self, id: &str) -> sqlx::Result<()> {
        sqlx::query!(
            "UPDATE turnmill.webhook_endpoints SET not_before = NULL
             WHERE (id = $1 OR id = (SELECT o.endpoint_id FROM turnmill.outbox o WHERE o.id = $1)) AND not_before IS NOT NULL",
            id
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// An event that happened nowhere, for one endpoint; its id. `None`: the endpoint is not there, or disabled.
    pub async fn send_test(&self, endpoint_id: &str) -> sqlx::Result<Option<String>> {
        self.end_peace(endpoint_id).await?;
        sqlx::query_scalar!(
            r#"INSERT INTO turnmill.outbox (endpoint_id, type, payload)
               SELECT e.id, 'webhook.test', jsonb_build_object(
                 'type', 'webhook.test',
                 'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                 'data', jsonb_build_object('endpoint_id', e.id))
               FROM turnmill.webhook_endpoints e WHERE e.id = $1 AND e.state = 'enabled' RETURNING id"#,
            endpoint_id
        )
        .fetch_optional(&self.pool)
        .await
    }
}
