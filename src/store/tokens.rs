//! Tokens of the HTTP API: stored as hashes, looked up by them.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Store;

/// A token to be made.
#[derive(Debug, Clone, Default)]
pub struct NewToken {
    /// SHA-256 of the token.
    pub hash: Vec<u8>,
    /// How it begins.
    pub prefix: String,
    /// Whose it is, for people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Only there.
    pub project_id: Option<String>,
    /// Only theirs.
    pub tenant_id: Option<String>,
    /// Only this one.
    pub session_id: Option<String>,
    /// `None`: until it is revoked.
    pub expires_in: Option<Duration>,
}

/// A token as people see it.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// How it begins.
    pub prefix: String,
    /// Whose it is.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Only there.
    pub project_id: Option<String>,
    /// Only theirs.
    pub tenant_id: Option<String>,
    /// active, expired or revoked.
    pub state: String,
    /// When made.
    pub created_at: DateTime<Utc>,
    /// When it ends, if it does.
    pub expires_at: Option<DateTime<Utc>>,
    /// Within a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Whoever came with a token.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The token's id.
    pub id: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What of it is in reach.
    pub bounds: Bounds,
    /// active, expired or revoked.
    pub state: String,
    /// Until it expires.
    pub seconds_left: Option<f64>,
}

/// What of the database a caller can see; what is outside is not there for him. `None`s: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Only this project.
    pub project_id: Option<String>,
    /// Only this tenant.
    pub tenant_id: Option<String>,
    /// Only this session.
    pub session_id: Option<String>,
}

impl Store {
    /// Stores a token; its id, and when it ends.
    pub async fn add_token(&self, token: &NewToken) -> sqlx::Result<(String, Option<DateTime<Utc>>)> {
        let made = sqlx::query!(
            r#"INSERT INTO turnmill.api_tokens (hash, prefix, name, scopes, project_id, tenant_id, session_id, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp() + make_interval(secs => $8))
               RETURNING id, expires_at"#,
            token.hash,
            token.prefix,
            token.name,
            &token.scopes,
            token.project_id,
            token.tenant_id,
            token.session_id,
            token.expires_in.map(|d| d.as_secs_f64()),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((made.id, made.expires_at))
    }

    /// All but those of browsers, newest first.
    pub async fn tokens(&self) -> sqlx::Result<Vec<TokenRow>> {
        sqlx::query_as!(
            TokenRow,
            r#"SELECT id, prefix, name, scopes, project_id, tenant_id, created_at, expires_at, last_used_at,
                 CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= clock_timestamp() THEN 'expired' ELSE 'active' END
                   AS "state!"
               FROM turnmill.api_tokens WHERE session_id IS NULL ORDER BY created_at DESC, id DESC LIMIT 1000"#
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Refuses it from now on, and the browsers' tokens that were made with it expire by themselves. How many were meant.
    pub async fn revoke_token(&self, id_or_prefix: &str) -> sqlx::Result<u64> {
        let done = sqlx::query!(
            "UPDATE turnmill.api_tokens SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE id = $1 OR prefix = $1",
            id_or_prefix
        );
        Ok(done.execute(&self.pool).await?.rows_affected())
    }

    /// Whose token has this hash; notes that it was used, at most once a minute.
    pub async fn bearer(&self, hash: &[u8]) -> sqlx::Result<Option<Bearer>> {
        let found = sqlx::query!(
            r#"SELECT id, scopes, project_id, tenant_id, session_id,
                 extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds_left,
                 CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= clock_timestamp() THEN 'expired' ELSE 'active' END
                   AS "state!",
                 (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute') AS "stale!"
               FROM turnmill.api_tokens WHERE hash = $1"#,
            hash
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = found else { return Ok(None) };
        if row.stale && row.state == "active" {
            sqlx::query!(
                "UPDATE turnmill.api_tokens SET last_used_at = clock_timestamp()
                 WHERE id IN (SELECT id FROM turnmill.api_tokens WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED)",
                row.id
            )
            .execute(&self.pool)
            .await?;
        }
        let bounds = Bounds { project_id: row.project_id, tenant_id: row.tenant_id, session_id: row.session_id };
        Ok(Some(Bearer { id: row.id, scopes: row.scopes, bounds, state: row.state, seconds_left: row.seconds_left }))
    }

    /// Which of these tokens are revoked, or gone.
    pub async fn revoked_of(&self, ids: &[String]) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar!(
            r#"SELECT asked.id AS "id!" FROM unnest($1::text[]) AS asked(id)
               LEFT JOIN turnmill.api_tokens t USING (id) WHERE t.id IS NULL OR t.revoked_at IS NOT NULL"#,
            ids
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Removes browsers' tokens that have been over for a day, a few at a time.
    pub async fn forget_expired_tokens(&self) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM turnmill.api_tokens WHERE id IN (
               SELECT id FROM turnmill.api_tokens
               WHERE session_id IS NOT NULL AND expires_at < clock_timestamp() - interval '1 day'
               ORDER BY expires_at LIMIT 50 FOR UPDATE SKIP LOCKED)"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
