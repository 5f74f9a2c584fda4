//! Keys to the model that users and tenants have given.

use chrono::{DateTime, Utc};

use super::Store;
use crate::keys::{OwnKey, Sealed};

/// That there is a key: all that anybody learns of it.
#[derive(Debug, Clone)]
pub struct OwnKeyInfo {
    /// Of sessions of this tenant; empty: of none.
    pub tenant_id: String,
    /// Of this user's; empty: of all the tenant's.
    pub user_id: String,
    /// The master key under which it is sealed.
    pub key_id: String,
    /// When it was last given.
    pub set_at: DateTime<Utc>,
}

impl Store {
    /// The key of the session's user, or else of its tenant.
    pub async fn own_key(&self, session_id: &str) -> sqlx::Result<Option<OwnKey>> {
        let found = sqlx::query!(
            "SELECT k.tenant_id, k.user_id, k.data, k.key_id
             FROM turnmill.sessions s
             JOIN turnmill.user_keys k ON k.tenant_id = coalesce(s.tenant_id, '') AND k.user_id IN (coalesce(s.user_id, ''), '')
             WHERE s.id = $1 ORDER BY k.user_id DESC LIMIT 1",
            session_id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(found.map(|r| OwnKey { tenant_id: r.tenant_id, user_id: r.user_id, sealed: Sealed { key_id: Some(r.key_id), data: r.data } }))
    }

    /// Stores a sealed key in the place of the one before. Reads none, not even by `excluded`: web servers may not.
    pub async fn set_own_key(&self, key: &OwnKey) -> sqlx::Result<OwnKeyInfo> {
        sqlx::query_as!(
            OwnKeyInfo,
            "INSERT INTO turnmill.user_keys (tenant_id, user_id, data, key_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, user_id) DO UPDATE
             SET data = $3, key_id = $4, set_at = clock_timestamp()
             RETURNING tenant_id, user_id, key_id, set_at",
            key.tenant_id,
            key.user_id,
            key.sealed.data,
            key.sealed.key_id,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// That there is one.
    pub async fn own_key_info(&self, tenant_id: &str, user_id: &str) -> sqlx::Result<Option<OwnKeyInfo>> {
        sqlx::query_as!(
            OwnKeyInfo,
            "SELECT tenant_id, user_id, key_id, set_at FROM turnmill.user_keys WHERE tenant_id = $1 AND user_id = $2",
            tenant_id,
            user_id
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Whose there are, up to a limit.
    pub async fn own_keys(&self, limit: i64) -> sqlx::Result<Vec<OwnKeyInfo>> {
        sqlx::query_as!(
            OwnKeyInfo,
            "SELECT tenant_id, user_id, key_id, set_at FROM turnmill.user_keys ORDER BY tenant_id, user_id LIMIT $1",
            limit
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Forgets it; whether it was there.
    pub async fn forget_own_key(&self, tenant_id: &str, user_id: &str) -> sqlx::Result<bool> {
        let done = sqlx::query!("DELETE FROM turnmill.user_keys WHERE tenant_id = $1 AND user_id = $2", tenant_id, user_id);
        Ok(done.execute(&self.pool).await?.rows_affected() > 0)
    }
}
