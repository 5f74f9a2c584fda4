//! Sessions as callers of the API see them, within their bounds.

use chrono::{DateTime, Utc};

use super::{Bounds, Enqueue, Receipt, Store};

/// A conversation.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// Its id.
    pub id: String,
    /// Its project.
    pub project_id: String,
    /// Who talks.
    pub user_id: Option<String>,
    /// Who pays.
    pub tenant_id: Option<String>,
    /// Where its turns run.
    pub pool: String,
    /// queue, reject or interrupt.
    pub on_busy: String,
    /// How many turns it has had.
    pub turns: i32,
    /// Its turn that runs or is next, if any is unfinished.
    pub current_turn_id: Option<String>,
    /// Unfinished turns.
    pub unfinished: i64,
    /// When its first turn was enqueued.
    pub created_at: DateTime<Utc>,
}

/// A session to be made.
#[derive(Debug, Clone, Default)]
pub struct NewSession {
    /// `None`: made.
    pub id: Option<String>,
    /// Its project.
    pub project_id: Option<String>,
    /// Who talks.
    pub user_id: Option<String>,
    /// Who pays.
    pub tenant_id: Option<String>,
    /// `None`: `default`.
    pub pool: Option<String>,
    /// `None`: queue.
    pub on_busy: Option<String>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Of this project.
    pub project_id: Option<String>,
    /// Of this tenant.
    pub tenant_id: Option<String>,
    /// Older than this one: when it was made, and its id.
    pub before: Option<(DateTime<Utc>, String)>,
    /// At most so many.
    pub limit: i64,
}

impl Store {
    /// One session; `None`: no such id, or out of bounds.
    pub async fn session(&self, id: &str, bounds: &Bounds) -> sqlx::Result<Option<SessionRow>> {
        sqlx::query_as!(
            SessionRow,
            r#"SELECT s.id, s.project_id, s.user_id, s.tenant_id, s.pool, s.on_busy, s.turns, s.created_at,
                 (SELECT j.turn_id FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state <> 'waiting') AS current_turn_id,
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state <> 'waiting'
                    UNION ALL (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state = 'waiting' LIMIT 1000)) u)
                   AS "unfinished!"
               FROM turnmill.sessions s
               WHERE s.id = $1 AND ($2::text IS NULL OR s.project_id = $2) AND ($3::text IS NULL OR s.tenant_id = $3)
                 AND ($4::text IS NULL OR s.id = $4)"#,
            id,
            bounds.project_id,
            bounds.tenant_id,
            bounds.session_id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Newest first.
    pub async fn sessions(&self, filter: &SessionFilter) -> sqlx::Result<Vec<SessionRow>> {
        let (at, id) = filter.before.clone().unzip();
        sqlx::query_as!(
            SessionRow,
            r#"SELECT s.id, s.project_id, s.user_id, s.tenant_id, s.pool, s.on_busy, s.turns, s.created_at,
                 (SELECT j.turn_id FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state <> 'waiting') AS current_turn_id,
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state <> 'waiting'
                    UNION ALL (SELECT FROM turnmill.jobs j WHERE j.session_id = s.id AND j.state = 'waiting' LIMIT 1000)) u)
                   AS "unfinished!"
               FROM turnmill.sessions s
               WHERE ($1::text IS NULL OR s.project_id = $1) AND ($2::text IS NULL OR s.tenant_id = $2)
                 AND ($3::timestamptz IS NULL OR (s.created_at, s.id) < ($3, $4))
               ORDER BY s.created_at DESC, s.id DESC LIMIT $5"#,
            filter.project_id,
            filter.tenant_id,
            at,
            id,
            filter.limit,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Makes a session, or finds that it is there already and the same: its id, and whether it was made.
    pub async fn create_session(&self, new: &NewSession) -> sqlx::Result<(String, bool)> {
        let made = sqlx::query!(
            r#"SELECT id AS "id!", made AS "made!" FROM turnmill.create_session($1, $2, $3, $4, $5, $6)"#,
            new.id,
            new.project_id,
            new.user_id,
            new.tenant_id,
            new.pool,
            new.on_busy,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((made.id, made.made))
    }

    /// Changes what happens to turns that come while the session is busy.
    pub async fn set_on_busy(&self, session_id: &str, on_busy: &str) -> sqlx::Result<()> {
        sqlx::query!("SELECT turnmill.set_session($1, $2)", session_id, on_busy).execute(&self.pool).await?;
        Ok(())
    }

    /// Enqueues into a session that was not there a moment ago. If somebody else makes one of that id meanwhile, theirs is
    /// not used unless it is of the same project and tenant: then nothing is written, and the error says so.
    pub async fn enqueue_in_new(&self, session: &NewSession, turn: &Enqueue) -> sqlx::Result<Receipt> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            r#"SELECT id FROM turnmill.create_session($1, $2, $3, $4, $5)"#,
            session.id,
            session.project_id,
            session.user_id,
            session.tenant_id,
            session.pool,
        )
        .fetch_one(&mut tx)
        .await?;
        let receipt = turn.run(&mut tx).await?;
        tx.commit().await?;
        Ok(receipt)
    }

    /// Cancels the turn of a session that has begun, if there is one: its id, and what `cancel_turn` says.
    pub async fn interrupt(&self, session_id: &str, reason: Option<&str>) -> sqlx::Result<Option<(String, String)>> {
        let row = sqlx::query!(
            r#"SELECT j.turn_id, turnmill.cancel_turn(j.turn_id, $2) AS "status!"
               FROM turnmill.jobs j JOIN turnmill.turns t ON t.id = j.turn_id
               WHERE j.session_id = $1 AND j.state <> 'waiting' AND t.started_at IS NOT NULL"#,
            session_id,
            reason,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|r| (r.turn_id, r.status)))
    }
}
