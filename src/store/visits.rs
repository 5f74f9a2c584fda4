//! Browsers that have shown a token to the dashboard.

use std::time::Duration;

use super::{Bounds, Store};

/// Who is behind a visit.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The token that it came with.
    pub token_id: String,
    /// That token's name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What is in its reach.
    pub bounds: Bounds,
}

impl Store {
    /// Begins a visit with a token, for so long or as long as the token lasts; forgets some that are over.
    pub async fn begin_visit(&self, hash: &[u8], token_id: &str, lasts: Duration) -> sqlx::Result<()> {
        sqlx::query!(
            "WITH gone AS (DELETE FROM turnmill.ops_visits WHERE hash IN (
               SELECT hash FROM turnmill.ops_visits WHERE expires_at < clock_timestamp() ORDER BY expires_at LIMIT 50 FOR UPDATE SKIP LOCKED))
             INSERT INTO turnmill.ops_visits (hash, token_id, expires_at)
             SELECT $1, id, least(expires_at, clock_timestamp() + make_interval(secs => $3)) FROM turnmill.api_tokens WHERE id = $2",
            hash,
            token_id,
            lasts.as_secs_f64(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Whose visit it is, if it and its token are still good.
    pub async fn visit(&self, hash: &[u8]) -> sqlx::Result<Option<Visit>> {
        let row = sqlx::query!(
            "SELECT t.id, t.name, t.scopes, t.project_id, t.tenant_id, t.session_id
             FROM turnmill.ops_visits v JOIN turnmill.api_tokens t ON t.id = v.token_id
             WHERE v.hash = $1 AND v.expires_at > clock_timestamp() AND t.revoked_at IS NULL
               AND coalesce(t.expires_at > clock_timestamp(), true)",
            hash
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Visit {
            token_id: row.id,
            name: row.name,
            scopes: row.scopes,
            bounds: Bounds { project_id: row.project_id, tenant_id: row.tenant_id, session_id: row.session_id },
        }))
    }

    /// Ends a visit.
    pub async fn end_visit(&self, hash: &[u8]) -> sqlx::Result<()> {
        sqlx::query!("DELETE FROM turnmill.ops_visits WHERE hash = $1", hash).execute(&self.pool).await?;
        Ok(())
    }
}
