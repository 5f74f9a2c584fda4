//! Endpoints that are told when turns end, in the bounds of who asks; what they are told is in `outbox`.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Bounds, Store};
use crate::keys::Sealed;

/// An endpoint, without its secret.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `whe_…`
    pub id: String,
    /// Where to POST.
    pub url: String,
    /// For people.
    pub description: String,
    /// Of this project only.
    pub project_id: Option<String>,
    /// Of this tenant only.
    pub tenant_id: Option<String>,
    /// What it wants to hear of.
    pub events: Vec<String>,
    /// enabled or disabled.
    pub state: String,
    /// Why it is disabled.
    pub disabled_reason: Option<String>,
    /// Since when.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Deliveries that failed since the last that did not.
    pub failures: i32,
    /// The first of these.
    pub failing_since: Option<DateTime<Utc>>,
    /// Within a second.
    pub last_success_at: Option<DateTime<Utc>>,
    /// When one last failed.
    pub last_failure_at: Option<DateTime<Utc>>,
    /// What was wrong then.
    pub last_error: Option<String>,
    /// Whether its secret is sealed under a master key.
    pub secret_sealed: bool,
    /// Until when the secret before signs as well.
    pub old_secret_until: Option<DateTime<Utc>>,
    /// When made.
    pub created_at: DateTime<Utc>,
}

/// An endpoint to be made.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Made before, because its secret is sealed as this one's.
    pub id: String,
    /// Where to POST.
    pub url: String,
    /// For people.
    pub description: String,
    /// Of this project only.
    pub project_id: Option<String>,
    /// Of this tenant only.
    pub tenant_id: Option<String>,
    /// What it wants to hear of.
    pub events: Vec<String>,
    /// What signs.
    pub secret: Sealed,
}

/// What to change of an endpoint; `None`s stay.
#[derive(Debug, Clone, Default)]
pub struct EndpointChange {
    /// Where to POST.
    pub url: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// What it wants to hear of.
    pub events: Option<Vec<String>>,
    /// Enabled or not, and then why.
    pub enabled: Option<Result<(), String>>,
}

impl Store {
    /// Stores an endpoint, unless there are so many of its project already, or of its tenant where it has no project, or of neither:
    /// each may cost the end of a turn a row. One after the other, so that none is counted late.
    pub async fn add_endpoint(&self, new: &NewEndpoint, max: i64) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended('turnmill.webhook_endpoints', 0))").execute(&mut tx).await?;
        let made = sqlx::query!(
            "INSERT INTO turnmill.webhook_endpoints (id, url, description, project_id, tenant_id, events, secret, secret_key_id)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8
             WHERE (SELECT count(*) FROM turnmill.webhook_endpoints e
                    WHERE e.project_id IS NOT DISTINCT FROM $4 AND ($4 IS NOT NULL OR e.tenant_id IS NOT DISTINCT FROM $5)) < $9",
            new.id,
            new.url,
            new.description,
            new.project_id,
            new.tenant_id,
            &new.events,
            new.secret.data,
            new.secret.key_id,
            max,
        )
        .execute(&mut tx)
        .await;
        let made = tx.done(made).await?;
        Ok(made.rows_affected() > 0)
    }

    /// One endpoint; `None`: no such id, or out of bounds.
    pub async fn endpoint(&self, id: &str, bounds: &Bounds) -> sqlx::Result<Option<Endpoint>> {
        sqlx::query_as!(
            Endpoint,
            r#"SELECT id, url, description, project_id, tenant_id, events, state, disabled_reason, disabled_at, failures, failing_since,
                 last_success_at, last_failure_at, last_error, secret_key_id IS NOT NULL AS "secret_sealed!",
                 CASE WHEN old_secret_until > clock_timestamp() THEN old_secret_until END AS old_secret_until, created_at
               FROM turnmill.webhook_endpoints
               WHERE id = $1 AND ($2::text IS NULL OR project_id = $2) AND ($3::text IS NULL OR tenant_id = $3)"#,
            id,
            bounds.project_id,
            bounds.tenant_id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Newest first, from before an id on.
    pub async fn endpoints(&self, bounds: &Bounds, before: Option<&str>, limit: i64) -> sqlx::Result<Vec<Endpoint>> {
        sqlx::query_as!(
            Endpoint,
            r#"SELECT id, url, description, project_id, tenant_id, events, state, disabled_reason, disabled_at, failures, failing_since,
                 last_success_at, last_failure_at, last_error, secret_key_id IS NOT NULL AS "secret_sealed!",
                 CASE WHEN old_secret_until > clock_timestamp() THEN old_secret_until END AS old_secret_until, created_at
               FROM turnmill.webhook_endpoints
               WHERE ($1::text IS NULL OR project_id = $1) AND ($2::text IS NULL OR tenant_id = $2) AND ($3::text IS NULL OR id < $3)
               ORDER BY id DESC LIMIT $4"#,
            bounds.project_id,
            bounds.tenant_id,
            before,
            limit,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Changes it; whether it was there. Enabled, or under another URL, it begins with no failures.
    pub async fn change_endpoint(&self, id: &str, change: &EndpointChange) -> sqlx::Result<bool> {
        let (state, why) = match &change.enabled {
            None => (None, None),
            Some(Ok(())) => (Some("enabled"), None),
            Some(Err(why)) => (Some("disabled"), Some(why.as_str())),
        };
        let done = sqlx::query!(
            "UPDATE turnmill.webhook_endpoints e
             SET url = coalesce($2, url), description = coalesce($3, description), events = coalesce($4, events), state = coalesce($5, state),
                 disabled_at = CASE $5 WHEN 'enabled' THEN NULL WHEN 'disabled' THEN coalesce(disabled_at, clock_timestamp()) ELSE disabled_at END,
                 disabled_reason = CASE $5 WHEN 'enabled' THEN NULL WHEN 'disabled' THEN coalesce(disabled_reason, $6) ELSE disabled_reason END,
                 failures = CASE WHEN $5 = 'enabled' OR $2 <> url THEN 0 ELSE failures END,
                 failing_since = CASE WHEN $5 = 'enabled' OR $2 <> url THEN NULL ELSE failing_since END,
                 not_before = CASE WHEN $5 = 'enabled' OR $2 <> url THEN NULL ELSE not_before END
             WHERE id = $1",
            id,
            change.url,
            change.description,
            change.events.as_deref(),
            state,
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Another secret signs from now on; the one before does as well, for as long as `keep`. `None`: it is not there.
    pub async fn rotate_secret(&self, id: &str, secret: &Sealed, keep: Duration) -> sqlx::Result<Option<DateTime<Utc>>> {
        sqlx::query_scalar!(
            r#"SELECT turnmill.rotate_webhook_secret($1, $2, $3, make_interval(secs => $4)) AS until"#,
            id,
            secret.data,
            secret.key_id,
            keep.as_secs_f64(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Forgets it; whether it was there. What it was told and is to be told goes by the next sweep.
    pub async fn delete_endpoint(&self, id: &str) -> sqlx::Result<bool> {
        let done = sqlx::query!("DELETE FROM turnmill.webhook_endpoints WHERE id = $1", id).execute(&self.pool).await?;
        Ok(done.rows_affected() > 0)
    }
}
