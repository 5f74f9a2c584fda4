//! Forgetting a user or a session: every row that is theirs goes, and where a row must stay, what names them goes.
//!
//! | what becomes of it | tables |
//! | --- | --- |
//! | deleted | sessions, turns and all that hangs on them (blocks, transcripts, workspaces, attachments, artifacts, journals, outbox, turn secrets); attempts, cancel requests, previews and their watches; browsers' tokens; a user's keys |
//! | kept without their ids | charges (money must add up), the audit (that something was done), the last sample of a failure, forks' origin |
//! | gone before | what is queued or runs (`jobs`), and sandboxes (`slots`, `parked`): workers kill them when asked |
//!
//! In transactions of at most [`BATCH`] turns, the oldest first, of the newest session first: so a fork goes before what it was made from.
//! The audit's entry of the erasure is written before the first row goes, and its entries about turns in the transaction in which those
//! go: stopped anywhere, it is gone on with by asking again. `tests/it/erase.rs` says of every table of the schema which of these it is,
//! or why it holds nothing of anybody.

use serde_json::{Value, json};

use super::Store;
use super::audit::{Act, Actor, note};
use super::db::Tx;

/// Most turns of one transaction.
const BATCH: i64 = 100;

/// Sessions that are counted at once.
const COUNTED: usize = 500;

/// What stands where an id was.
const ERASED: &str = "erased";

/// Who is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One session.
    Session(String),
    /// All sessions of a user, of one project or of all.
    User {
        /// As in `sessions.user_id`.
        id: String,
        /// Only there; then the user's keys stay, which are no project's.
        project: Option<String>,
        /// Of this tenant, empty = of none; `None`: of whichever. Two tenants' users may have the same id.
        tenant: Option<String>,
    },
}

/// What there is of somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// The sessions' ids.
    pub sessions: Vec<String>,
    /// Turns that have not ended.
    pub live: Vec<String>,
    /// Sandboxes that live, or may, in slots and paused.
    pub sandboxes: i64,
    /// Other users' sessions, or other ones, that began as forks of these: they have copies of the conversation.
    pub forks: Vec<String>,
    /// Those of the forks that would lose the conversation or files: they have not saved any of their own yet.
    pub unsaved_forks: Vec<String>,
    /// Rows by table, but for tables without any.
    pub rows: Vec<(String, i64)>,
}

impl Traces {
    /// Whether there is nothing.
    pub fn are_none(&self) -> bool {
        self.rows.is_empty() && self.sandboxes == 0
    }
}

/// How far the erasure of a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasure {
    /// Nothing is left of it.
    Done,
    /// A turn has come meanwhile, or a sandbox: it and what is around it are still there.
    Busy,
    /// A fork of it has nothing saved of its own, and would lose the conversation or files.
    Forked,
}

impl Store {
    /// What there is of them; changes nothing.
    pub async fn traces(&self, whose: &Whose) -> sqlx::Result<Traces> {
        let sessions = self.whose_sessions(whose).await?;
        let mut found = Traces { sessions: sessions.clone(), ..Traces::default() };
        found.live = self.live_turns(&sessions).await?;
        let mut rows: Vec<(String, i64)> = Vec::new();
        for some in sessions.chunks(COUNTED) {
            found.sandboxes += self.count_sandboxes(some).await?;
            for (fork, saved) in self.forks_of(some, &sessions).await? {
                if !saved {
                    found.unsaved_forks.push(fork.clone());
                }
                found.forks.push(fork);
            }
            for (table, count) in self.rows_of(some).await? {
                match rows.iter_mut().find(|(name, _)| *name == table) {
                    Some((_, sum)) => *sum += count,
                    None => rows.push((table, count)),
                }
            }
        }
        rows.push(("user_keys".to_owned(), self.keys_of(whose).await?));
        rows.retain(|(_, count)| *count > 0);
        Ok(Traces { rows, ..found })
    }

    /// Asks workers to kill every sandbox of these sessions, wherever it is; how many there still are.
    pub async fn kill_sandboxes_of(&self, sessions: &[String]) -> sqlx::Result<i64> {
        sqlx::query!(
            "INSERT INTO turnmill.sandbox_kills (sandbox_id)
             SELECT sandbox_id FROM turnmill.slots WHERE session_id = ANY ($1) AND sandbox_id IS NOT NULL AND state <> 'releasing'
             UNION SELECT sandbox_id FROM turnmill.parked WHERE session_id = ANY ($1) AND NOT doomed
             ON CONFLICT DO NOTHING",
            sessions
        )
        .execute(&self.pool)
        .await?;
        self.count_sandboxes(sessions).await
    }

    /// Turns of these sessions that have not ended.
    pub async fn live_turns(&self, sessions: &[String]) -> sqlx::Result<Vec<String>> {
        let mut live = Vec::new();
        for some in sessions.chunks(COUNTED) {
            let turns =
                sqlx::query_scalar!("SELECT turn_id FROM turnmill.jobs WHERE session_id = ANY ($1) ORDER BY session_id, ordinal", some);
            live.extend(turns.fetch_all(&self.pool).await?);
        }
        Ok(live)
    }

    /// The tenants that have sessions or keys of theirs; empty = none.
    pub async fn tenants_of(&self, whose: &Whose) -> sqlx::Result<Vec<String>> {
        let Whose::User { id, project, tenant } = whose else { return Ok(Vec::new()) };
        sqlx::query_scalar!(
            r#"SELECT tenant AS "tenant!" FROM (
                 SELECT coalesce(tenant_id, '') FROM turnmill.sessions WHERE user_id = $1 AND ($2::text IS NULL OR project_id = $2)
                 UNION SELECT tenant_id FROM turnmill.user_keys WHERE user_id = $1 AND $2::text IS NULL) t (tenant)
               WHERE $3::text IS NULL OR tenant = $3 ORDER BY tenant"#,
            id,
            project.as_ref(),
            tenant.as_ref(),
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Erases a session whose turns have all ended and whose sandboxes are gone. Forks that have nothing saved yet are in its way,
    /// unless they are to lose it.
    pub async fn erase_session(&self, session: &str, forks_lose: bool) -> sqlx::Result<Erasure> {
        loop {
            let mut tx = self.pool.begin().await?;
            let done = erase_some(&mut tx, session, forks_lose).await;
            if let Step::Is(done) = tx.done(done).await? {
                return Ok(done);
            }
        }
    }

    /// Notes in the audit that there is an erasure: by an id of its own, and numbers.
    pub async fn begin_erasure(&self, whose: &Whose, actor: &Actor, traces: &Traces) -> sqlx::Result<String> {
        let mut tx = self.pool.begin().await?;
        let done = begin(&mut tx, whose, actor, traces).await;
        tx.done(done).await
    }

    /// Erases a user's keys.
    pub async fn erase_keys(&self, whose: &Whose) -> sqlx::Result<()> {
        let Whose::User { id, project: None, tenant } = whose else { return Ok(()) };
        sqlx::query!("DELETE FROM turnmill.user_keys WHERE user_id = $1 AND ($2::text IS NULL OR tenant_id = $2)", id, tenant.as_ref())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Numbers of entries of the audit that have one of these ids in their words: as a word, where an id is one, or else anywhere.
    /// Whether they mean it is for people to judge.
    pub async fn audit_mentions(&self, ids: &[String]) -> sqlx::Result<Vec<i64>> {
        sqlx::query_scalar!(
            r"SELECT a.id FROM turnmill.audit a, concat_ws(' ', a.reason, a.detail::text) AS said
              WHERE a.subject <> $2 AND a.act <> 'erase'
                AND (EXISTS (SELECT FROM regexp_split_to_table(said, '[^[:alnum:]_-]+') AS word WHERE word = ANY ($1))
                  OR EXISTS (SELECT FROM unnest($1::text[]) AS odd (id) WHERE odd.id !~ '^[[:alnum:]_-]+$' AND position(odd.id IN said) > 0))
              ORDER BY a.id LIMIT 1000",
            ids,
            ERASED
        )
        .fetch_all(&self.pool)
        .await
    }

    async fn whose_sessions(&self, whose: &Whose) -> sqlx::Result<Vec<String>> {
        let (session, user, project, tenant) = match whose {
            Whose::Session(id) => (Some(id), None, None, None),
            Whose::User { id, project, tenant } => (None, Some(id), project.as_ref(), tenant.as_ref()),
        };
        sqlx::query_scalar!(
            "SELECT id FROM turnmill.sessions
             WHERE ($1::text IS NULL OR id = $1) AND ($2::text IS NULL OR user_id = $2) AND ($3::text IS NULL OR project_id = $3)
               AND ($4::text IS NULL OR coalesce(tenant_id, '') = $4)
             ORDER BY created_at DESC, id",
            session,
            user,
            project,
            tenant,
        )
        .fetch_all(&self.pool)
        .await
    }

    async fn count_sandboxes(&self, sessions: &[String]) -> sqlx::Result<i64> {
        sqlx::query_scalar!(
            r#"SELECT (SELECT count(*) FROM turnmill.slots WHERE session_id = ANY ($1))
                    + (SELECT count(*) FROM turnmill.parked WHERE session_id = ANY ($1)) AS "count!""#,
            sessions
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Forks, and whether each has saved what it would go on from.
    async fn forks_of(&self, sessions: &[String], but: &[String]) -> sqlx::Result<Vec<(String, bool)>> {
        let rows = sqlx::query!(
            r#"SELECT f.id, NOT turnmill.needs_origin(f.id) AS "saved!" FROM turnmill.sessions f
               JOIN turnmill.turns t ON t.id = f.forked_from
               WHERE t.session_id = ANY ($1) AND f.id <> ALL ($2) ORDER BY f.id"#,
            sessions,
            but
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.saved)).collect())
    }

    async fn keys_of(&self, whose: &Whose) -> sqlx::Result<i64> {
        let Whose::User { id, project: None, tenant } = whose else { return Ok(0) };
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM turnmill.user_keys WHERE user_id = $1 AND ($2::text IS NULL OR tenant_id = $2)"#,
            id,
            tenant.as_ref()
        )
        .fetch_one(&self.pool)
        .await
    }

    async fn rows_of(&self, sessions: &[String]) -> sqlx::Result<Vec<(String, i64)>> {
        let rows = sqlx::query!(
            r#"WITH theirs AS MATERIALIZED (SELECT id FROM turnmill.turns WHERE session_id = ANY ($1))
               SELECT 'sessions' AS "table!", count(*) AS "count!" FROM turnmill.sessions WHERE id = ANY ($1)
               UNION ALL SELECT 'turns', count(*) FROM theirs
               UNION ALL SELECT 'blocks', count(*) FROM theirs JOIN turnmill.blocks x ON x.turn_id = theirs.id
               UNION ALL SELECT 'attachments', count(*) FROM theirs JOIN turnmill.attachments x ON x.turn_id = theirs.id
               UNION ALL SELECT 'artifacts', count(*) FROM theirs JOIN turnmill.artifacts x ON x.turn_id = theirs.id
               UNION ALL SELECT 'transcripts', count(*) FROM theirs JOIN turnmill.transcripts x ON x.turn_id = theirs.id
               UNION ALL SELECT 'workspaces', count(*) FROM theirs JOIN turnmill.workspaces x ON x.turn_id = theirs.id
               UNION ALL SELECT 'journals', count(*) FROM theirs JOIN turnmill.journals x ON x.turn_id = theirs.id
               UNION ALL SELECT 'outbox', count(*) FROM theirs JOIN turnmill.outbox x ON x.turn_id = theirs.id
               UNION ALL SELECT 'turn_secrets', count(*) FROM theirs JOIN turnmill.turn_secrets x ON x.turn_id = theirs.id
               UNION ALL SELECT 'attempts', count(*) FROM theirs JOIN turnmill.attempts x ON x.turn_id = theirs.id
               UNION ALL SELECT 'previews', count(*) FROM theirs JOIN turnmill.previews x ON x.turn_id = theirs.id
               UNION ALL SELECT 'preview_watches', count(*) FROM theirs JOIN turnmill.preview_watches x ON x.turn_id = theirs.id
               UNION ALL SELECT 'cancel_requests', count(*) FROM theirs JOIN turnmill.cancel_requests x ON x.turn_id = theirs.id
               UNION ALL SELECT 'audit', count(*) FROM theirs JOIN turnmill.audit x ON x.kind = 'turn' AND x.subject = theirs.id
               UNION ALL SELECT 'api_tokens', count(*) FROM turnmill.api_tokens WHERE session_id = ANY ($1)
               UNION ALL SELECT 'charges', count(*) FROM turnmill.ledger WHERE session_id = ANY ($1)
               UNION ALL SELECT 'failures', count(*) FROM theirs JOIN turnmill.failures x ON x.last_turn_id = theirs.id"#,
            sessions
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.table, row.count)).collect())
    }
}

enum Step {
    More,
    Is(Erasure),
}

/// Some turns of a session, or when there are none the session itself. Its row is locked: nobody enqueues into it meanwhile.
async fn erase_some(tx: &mut Tx, session: &str, forks_lose: bool) -> sqlx::Result<Step> {
    sqlx::query!("SELECT id FROM turnmill.sessions WHERE id = $1 FOR UPDATE", session).fetch_optional(&mut *tx).await?;
    // Of all its turns: what a fork needs may have been saved long before the turn that it was made from.
    let loses = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM turnmill.turns t JOIN turnmill.sessions f ON f.forked_from = t.id
                          WHERE t.session_id = $1 AND turnmill.needs_origin(f.id)) AS "loses!""#,
        session
    );
    if !forks_lose && loses.fetch_one(&mut *tx).await? {
        return Ok(Step::Is(Erasure::Forked));
    }
    let turns = sqlx::query_scalar!(
        "SELECT id FROM turnmill.turns WHERE session_id = $1 AND completed_at IS NOT NULL ORDER BY ordinal LIMIT $2",
        session,
        BATCH
    )
    .fetch_all(&mut *tx)
    .await?;
    if !turns.is_empty() {
        erase_turns(tx, &turns).await?;
        return Ok(Step::More);
    }
    let busy = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM turnmill.turns WHERE session_id = $1)
             OR EXISTS (SELECT FROM turnmill.slots WHERE session_id = $1) OR EXISTS (SELECT FROM turnmill.parked WHERE session_id = $1)
             AS "busy!""#,
        session
    );
    if busy.fetch_one(&mut *tx).await? {
        return Ok(Step::Is(Erasure::Busy));
    }
    // In this order: what is moved from the one to the other while we wait for its row is found in the other.
    sqlx::query!(
        "UPDATE turnmill.fresh_charges SET session_id = $2, turn_id = CASE WHEN turn_id IS NOT NULL THEN $2 END WHERE session_id = $1",
        session,
        ERASED
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "UPDATE turnmill.charges SET session_id = $2, turn_id = CASE WHEN turn_id IS NOT NULL THEN $2 END WHERE session_id = $1",
        session,
        ERASED
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM turnmill.api_tokens WHERE session_id = $1", session).execute(&mut *tx).await?;
    sqlx::query!(
        "UPDATE turnmill.audit SET subject = $2, reason = $2, detail = '{}' WHERE kind = 'session' AND subject = $1",
        session,
        ERASED
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM turnmill.sessions WHERE id = $1", session).execute(&mut *tx).await?;
    Ok(Step::Is(Erasure::Done))
}

/// Turns that have ended, with all that hangs on them.
async fn erase_turns(tx: &mut Tx, turns: &[String]) -> sqlx::Result<()> {
    erase_from_audit(tx, turns).await?;
    sqlx::query!("DELETE FROM turnmill.attempts WHERE turn_id = ANY ($1)", turns).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM turnmill.cancel_requests WHERE turn_id = ANY ($1)", turns).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM turnmill.previews WHERE turn_id = ANY ($1)", turns).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM turnmill.preview_watches WHERE turn_id = ANY ($1)", turns).execute(&mut *tx).await?;
    sqlx::query!("UPDATE turnmill.failures SET last_turn_id = $2, last_message = NULL WHERE last_turn_id = ANY ($1)", turns, ERASED)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("UPDATE turnmill.sessions SET forked_from = NULL WHERE forked_from = ANY ($1)", turns).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM turnmill.turns WHERE id = ANY ($1)", turns).execute(&mut *tx).await?;
    Ok(())
}

/// Entries about these turns and about sandboxes that they had, and of those kinds alone: a pool may be called as somebody's turn is.
/// By the audit's indexes: it may be long, and the session waits.
async fn erase_from_audit(tx: &mut Tx, turns: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH theirs AS MATERIALIZED (SELECT DISTINCT sandbox_id FROM turnmill.attempts WHERE turn_id = ANY ($1) AND sandbox_id IS NOT NULL)
         UPDATE turnmill.audit SET subject = $2, reason = $2, detail = '{}' WHERE id = ANY (ARRAY (
           SELECT id FROM turnmill.audit WHERE kind = 'turn' AND subject = ANY ($1)
           UNION SELECT id FROM turnmill.audit WHERE kind IN ('turn', 'sandbox') AND coalesce(detail ->> 'made', detail ->> 'turn') = ANY ($1)
           UNION SELECT a.id FROM theirs JOIN turnmill.audit a ON a.kind = 'sandbox' AND a.subject = theirs.sandbox_id
                 WHERE a.detail ->> 'turn' IS NULL))",
        turns,
        ERASED
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn begin(tx: &mut Tx, whose: &Whose, actor: &Actor, traces: &Traces) -> sqlx::Result<String> {
    let kind = match whose {
        Whose::Session(_) => "session",
        Whose::User { .. } => "user",
    };
    let erasure = sqlx::query_scalar!(r#"SELECT turnmill.new_id('erasure') AS "id!""#).fetch_one(&mut *tx).await?;
    let rows: serde_json::Map<String, Value> = traces.rows.iter().map(|(table, count)| (table.clone(), json!(count))).collect();
    note(tx, actor, Act { verb: "erase", kind, subject: &erasure }, Value::Object(rows)).await?;
    Ok(erasure)
}
