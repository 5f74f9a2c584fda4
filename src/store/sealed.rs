//! What is sealed under the workers' master keys, and sealing it anew under another.

use super::Store;
use super::db::Tx;
use crate::keys::Sealed;

/// Kinds of what is kept sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedKind {
    /// What agents remember, by turn.
    Conversation,
    /// What agents have made, by turn.
    Workspace,
    /// What signs to an endpoint.
    WebhookSecret,
    /// What signed before that, and still does.
    OldWebhookSecret,
    /// Users' and tenants' own keys.
    OwnKey,
    /// What the processes of turns were given.
    TurnSecrets,
}

impl SealedKind {
    /// All of them. The largest last: they take the longest.
    pub const ALL: [Self; 6] =
        [Self::OwnKey, Self::TurnSecrets, Self::WebhookSecret, Self::OldWebhookSecret, Self::Conversation, Self::Workspace];

    /// For people, as many.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Conversation => "conversations",
            Self::Workspace => "workspaces",
            Self::WebhookSecret => "secrets of webhooks",
            Self::OldWebhookSecret => "old secrets of webhooks",
            Self::OwnKey => "keys of users and tenants",
            Self::TurnSecrets => "secrets of turns",
        }
    }
}

/// One sealed thing.
#[derive(Debug, Clone)]
pub struct SealedRow {
    /// Of its row; a batch goes on after it.
    pub id: String,
    /// Whose it is: the turn, the endpoint; of a user's key the tenant and the user.
    pub of: (String, String),
    /// As it is now.
    pub sealed: Sealed,
}

/// What became of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resealed {
    /// The last row that was looked at; `None`: there was none left.
    pub last: Option<String>,
    /// Rows sealed anew.
    pub done: u64,
    /// Rows that could not be opened.
    pub closed: u64,
}

/// How much there is of a kind under one key.
#[derive(Debug, Clone)]
pub struct SealedCount {
    /// As [`SealedKind::plural`].
    pub kind: String,
    /// The master key; `None`: it is kept as it is.
    pub key_id: Option<String>,
    /// Rows.
    pub count: i64,
}

impl Store {
    /// Seals up to `limit` rows of a kind anew that are not under `newest`, from after a row on. Each is held from the look to the
    /// write, so that nothing that somebody saves meanwhile is written over; a row that somebody else holds is left for later.
    pub async fn reseal(
        &self,
        kind: SealedKind,
        newest: &str,
        after: &str,
        limit: i64,
        again: impl Fn(SealedRow) -> Option<Sealed>,
    ) -> sqlx::Result<Resealed> {
        let mut tx = self.pool.begin().await?;
        let rows = match kind {
            SealedKind::Conversation => sqlx::query_as!(
                Found,
                r#"SELECT turn_id AS id, turn_id AS of, '' AS "and!", key_id, data AS "data!" FROM turnmill.transcripts
                   WHERE data IS NOT NULL AND key_id IS DISTINCT FROM $1 AND turn_id > $2 ORDER BY turn_id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
            SealedKind::Workspace => sqlx::query_as!(
                Found,
                r#"SELECT turn_id AS id, turn_id AS of, '' AS "and!", key_id, data AS "data!" FROM turnmill.workspaces
                   WHERE data IS NOT NULL AND key_id IS DISTINCT FROM $1 AND turn_id > $2 ORDER BY turn_id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
            SealedKind::WebhookSecret => sqlx::query_as!(
                Found,
                r#"SELECT id, id AS of, '' AS "and!", secret_key_id AS key_id, secret AS data FROM turnmill.webhook_endpoints
                   WHERE secret_key_id IS DISTINCT FROM $1 AND id > $2 ORDER BY id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
            SealedKind::OldWebhookSecret => sqlx::query_as!(
                Found,
                r#"SELECT id, id AS of, '' AS "and!", old_secret_key_id AS key_id, old_secret AS "data!" FROM turnmill.webhook_endpoints
                   WHERE old_secret IS NOT NULL AND old_secret_key_id IS DISTINCT FROM $1 AND id > $2 ORDER BY id LIMIT $3
                   FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
            SealedKind::OwnKey => sqlx::query_as!(
                Found,
                r#"SELECT id, tenant_id AS of, user_id AS "and!", key_id AS "key_id?", data FROM turnmill.user_keys
                   WHERE key_id IS DISTINCT FROM $1 AND id > $2 ORDER BY id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
            SealedKind::TurnSecrets => sqlx::query_as!(
                Found,
                r#"SELECT turn_id || ' ' || attempt AS "id!", turn_id AS of, attempt::text AS "and!", key_id AS "key_id?", data
                   FROM turnmill.turn_secrets WHERE key_id IS DISTINCT FROM $1 AND turn_id || ' ' || attempt > $2
                   ORDER BY 1 LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED"#,
                newest,
                after,
                limit
            )
            .fetch_all(&mut tx)
            .await?,
        };
        let mut resealed = Resealed { last: rows.last().map(|row| row.id.clone()), ..Resealed::default() };
        for row in rows {
            let id = row.id.clone();
            let Some(sealed) = again(row.into()) else {
                resealed.closed += 1;
                continue;
            };
            resealed.done += write(kind, &mut tx, &id, &sealed).await?;
        }
        tx.commit().await?;
        Ok(resealed)
    }

    /// How much is kept under which key.
    pub async fn sealed(&self) -> sqlx::Result<Vec<SealedCount>> {
        let rows = sqlx::query!(
            r#"SELECT nth AS "nth!", key_id, count(*) AS "count!" FROM (
                 SELECT 0 AS nth, key_id FROM turnmill.user_keys
                 UNION ALL SELECT 1, key_id FROM turnmill.turn_secrets
                 UNION ALL SELECT 2, secret_key_id FROM turnmill.webhook_endpoints
                 UNION ALL SELECT 3, old_secret_key_id FROM turnmill.webhook_endpoints WHERE old_secret IS NOT NULL
                 UNION ALL SELECT 4, key_id FROM turnmill.transcripts WHERE data IS NOT NULL
                 UNION ALL SELECT 5, key_id FROM turnmill.workspaces WHERE data IS NOT NULL) kept
               GROUP BY nth, key_id ORDER BY nth, key_id"#
        )
        .fetch_all(&self.pool)
        .await?;
        let kind = |nth: i32| SealedKind::ALL[usize::try_from(nth).unwrap_or(0)].plural().to_owned();
        Ok(rows.into_iter().map(|row| SealedCount { kind: kind(row.nth), key_id: row.key_id, count: row.count }).collect())
    }
}

/// Puts a row as it is sealed now in the place of what it was; how many there were.
async fn write(kind: SealedKind, tx: &mut Tx, id: &str, sealed: &Sealed) -> sqlx::Result<u64> {
    let (data, key) = (&sealed.data, sealed.key_id.as_deref());
    let write = match kind {
        SealedKind::Conversation => {
            sqlx::query!("UPDATE turnmill.transcripts SET data = $2, key_id = $3 WHERE turn_id = $1", id, data, key)
        }
        SealedKind::Workspace => {
            sqlx::query!("UPDATE turnmill.workspaces SET data = $2, key_id = $3 WHERE turn_id = $1", id, data, key)
        }
        SealedKind::WebhookSecret => {
            sqlx::query!("UPDATE turnmill.webhook_endpoints SET secret = $2, secret_key_id = $3 WHERE id = $1", id, data, key)
        }
        SealedKind::OldWebhookSecret => {
            sqlx::query!("UPDATE turnmill.webhook_endpoints SET old_secret = $2, old_secret_key_id = $3 WHERE id = $1", id, data, key)
        }
        SealedKind::OwnKey => sqlx::query!("UPDATE turnmill.user_keys SET data = $2, key_id = $3 WHERE id = $1", id, data, key),
        SealedKind::TurnSecrets => {
            sqlx::query!("UPDATE turnmill.turn_secrets SET data = $2, key_id = $3 WHERE turn_id || ' ' || attempt = $1", id, data, key)
        }
    };
    Ok(write.execute(tx).await?.rows_affected())
}

struct Found {
    id: String,
    of: String,
    and: String,
    key_id: Option<String>,
    data: Vec<u8>,
}

impl From<Found> for SealedRow {
    fn from(row: Found) -> Self {
        Self { id: row.id, of: (row.of, row.and), sealed: Sealed { key_id: row.key_id, data: row.data } }
    }
}
