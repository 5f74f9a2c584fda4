//! Lists of sessions for operators, at a price that doesn't grow with history: as `found` does it for turns.

use chrono::{DateTime, Utc};

use super::{Below, LOOKED_AT_MAX, Store};

/// What to look for; `None`s: anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionsWanted {
    /// Its project.
    pub project: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
    /// Where its turns run.
    pub pool: Option<String>,
    /// running, waiting or idle.
    pub state: Option<String>,
    /// How its id begins, or what is in it.
    pub text: Option<String>,
    /// Only these.
    pub ids: Option<Vec<String>>,
}

/// A session in a list.
#[derive(Debug, Clone)]
pub struct FoundSession {
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
    /// What happens to turns that come while it is busy.
    pub on_busy: String,
    /// The turn of another session after which it begins.
    pub forked_from: Option<String>,
    /// Turns that it has had.
    pub turns: i32,
    /// When its first turn was enqueued.
    pub created_at: DateTime<Utc>,
    /// Its turn that runs or is next.
    pub current_turn_id: Option<String>,
    /// How far that is; `None`: it waits, or there is none.
    pub phase: Option<String>,
    /// Why it waits.
    pub wait_reason: Option<String>,
    /// Its newest turn.
    pub last_turn_id: Option<String>,
    /// That one's status.
    pub last_status: Option<String>,
    /// When that was enqueued.
    pub last_at: Option<DateTime<Utc>>,
    /// What is kept for its next turn: warm, pausing or paused.
    pub kept: Option<String>,
}

/// A page of sessions.
#[derive(Debug, Clone, Default)]
pub struct SessionPage {
    /// Newest first.
    pub sessions: Vec<FoundSession>,
    /// Where the next page begins.
    pub next: Below,
    /// Nothing more was found among so many; `next`, if there is one, goes on from there.
    pub gave_up: bool,
}

/// What is remembered of a session outside its sandboxes.
#[derive(Debug, Clone, Default)]
pub struct SessionKept {
    /// Newest versions of the conversation that are kept; counted up to a hundred.
    pub memories: i64,
    /// Size of the newest, before it is packed.
    pub memory_bytes: Option<i64>,
    /// When that was saved.
    pub memory_at: Option<DateTime<Utc>>,
    /// How its files are kept: saved, empty, carried, unchanged or lost.
    pub files_kind: Option<String>,
    /// Size of the packed files.
    pub files_bytes: Option<i64>,
    /// How many there are.
    pub files: Option<i32>,
    /// What of them is missing.
    pub files_missing: Option<String>,
    /// When they were saved.
    pub files_at: Option<DateTime<Utc>>,
    /// Turns that wait behind its current one; counted up to a thousand.
    pub behind: i64,
}

/// The statement around a source of sessions, which gives columns of `sessions` below ($1, $2), at most $3. It
/// looks up what belongs to them as that of `found` does.
macro_rules! found {
    ($source:tt, $wanted:expr, $below:expr, $limit:expr, $tx:expr) => {{
        let (at, id) = $below.clone().unzip();
        sqlx::query_as!(
            FoundSession,
            r#"WITH found AS MATERIALIZED (
                 SELECT s.*, j.turn_id AS current_turn_id, j.phase, j.state AS job_state
                 FROM ("# + $source + r#") s
                 LEFT JOIN LATERAL (SELECT i.turn_id, i.phase, i.state FROM turnmill.jobs i WHERE i.session_id = s.id AND i.state <> 'waiting' LIMIT 1) j ON true
                 WHERE ($4::text IS NULL OR s.project_id = $4) AND ($5::text IS NULL OR s.tenant_id = $5) AND ($6::text IS NULL OR s.pool = $6)
                   AND ($7::text IS NULL OR $7 = CASE j.state WHEN 'leased' THEN 'running' WHEN 'ready' THEN 'waiting' ELSE 'idle' END)
                   AND ($8::text IS NULL OR position($8 IN s.id) > 0) AND ($10::text[] IS NULL OR s.id = ANY ($10))
                 ORDER BY s.created_at DESC, s.id DESC LIMIT $9)
               SELECT f.id AS "id!", f.project_id AS "project_id!", f.user_id, f.tenant_id, f.pool AS "pool!", f.on_busy AS "on_busy!", f.forked_from,
                 f.turns AS "turns!", f.created_at AS "created_at!", f.current_turn_id AS "current_turn_id?", f.phase AS "phase?",
                 CASE WHEN f.job_state = 'ready' THEN turnmill.wait_reason(f.current_turn_id) END AS wait_reason,
                 t.id AS "last_turn_id?", t.status AS "last_status?", t.created_at AS "last_at?",
                 coalesce((SELECT k.state FROM turnmill.slots k WHERE k.session_id = f.id AND k.state IN ('warm', 'pausing') ORDER BY k.state DESC LIMIT 1),
                   (SELECT 'paused' FROM turnmill.parked p WHERE p.session_id = f.id AND NOT p.doomed LIMIT 1)) AS kept
               FROM found f
               LEFT JOIN LATERAL (SELECT t.id, t.status, t.created_at FROM turnmill.turns t WHERE t.session_id = f.id ORDER BY t.ordinal DESC LIMIT 1) t ON true
               ORDER BY f.created_at DESC, f.id DESC"#,
            at,
            id,
            LOOKED_AT_MAX,
            $wanted.project,
            $wanted.tenant,
            $wanted.pool,
            $wanted.state,
            $wanted.text,
            $limit,
            $wanted.ids.as_deref(),
        )
        .fetch_all(&mut $tx)
        .await
    }};
}

/// Which index leads to what is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ids,
    Id,
    Live,
    Project,
    Tenant,
    Newest,
}

impl Store {
    /// A page of sessions, newest first.
    pub async fn find_sessions(&self, wanted: &SessionsWanted, below: &Below, limit: i64) -> sqlx::Result<SessionPage> {
        if wanted.ids.is_none() && wanted.text.is_some() {
            // Most likely somebody has the whole id, or its start.
            let page = self.sessions_along(Way::Id, wanted, below, limit).await?;
            if !page.sessions.is_empty() {
                return Ok(page);
            }
        }
        let way = match wanted {
            SessionsWanted { ids: Some(_), .. } => Way::Ids,
            SessionsWanted { state: Some(state), .. } if state != "idle" => Way::Live,
            SessionsWanted { project: Some(_), .. } => Way::Project,
            SessionsWanted { tenant: Some(_), .. } => Way::Tenant,
            _ => Way::Newest,
        };
        self.sessions_along(way, wanted, below, limit).await
    }

    async fn sessions_along(&self, way: Way, wanted: &SessionsWanted, below: &Below, limit: i64) -> sqlx::Result<SessionPage> {
        let mut sessions = self.sessions_of(way, wanted, below, limit + 1).await?;
        let more = i64::try_from(sessions.len()).unwrap_or(0) > limit;
        sessions.truncate(usize::try_from(limit).unwrap_or(0));
        if more {
            let next = sessions.last().map(|session| (session.created_at, session.id.clone()));
            return Ok(SessionPage { sessions, next, gave_up: false });
        }
        let next = self.sessions_looked_until(way, wanted, below).await?;
        Ok(SessionPage { gave_up: next.is_some(), sessions, next })
    }

    /// One session as it is in a list; `None`: there is none.
    pub async fn ops_session(&self, id: &str) -> sqlx::Result<Option<FoundSession>> {
        let only = SessionsWanted { ids: Some(vec![id.to_owned()]), ..SessionsWanted::default() };
        Ok(self.sessions_of(Way::Ids, &only, &None, 1).await?.pop())
    }

    async fn sessions_of(&self, way: Way, wanted: &SessionsWanted, below: &Below, limit: i64) -> sqlx::Result<Vec<FoundSession>> {
        let mut tx = self.pool.glance().await?;
        let found = match way {
            Way::Ids => found!(
                "SELECT * FROM turnmill.sessions WHERE id = ANY ($10) AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, '')) LIMIT $3",
                wanted, below, limit, tx
            ),
            Way::Id => found!(
                "SELECT * FROM turnmill.sessions WHERE id ~>=~ $8 AND id ~<~ ($8 || chr(1114111))
                   AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, '')) LIMIT $3",
                wanted, below, limit, tx
            ),
            Way::Live => found!(
                "SELECT x.* FROM (
                   SELECT session_id FROM turnmill.jobs WHERE state = CASE $7 WHEN 'running' THEN 'leased' ELSE 'ready' END LIMIT $3) l
                 CROSS JOIN LATERAL (SELECT * FROM turnmill.sessions y WHERE y.id = l.session_id LIMIT 1) x
                 WHERE (x.created_at, x.id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))",
                wanted, below, limit, tx
            ),
            Way::Project => found!(
                "SELECT * FROM turnmill.sessions WHERE project_id = $4 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                wanted, below, limit, tx
            ),
            Way::Tenant => found!(
                "SELECT * FROM turnmill.sessions WHERE tenant_id = $5 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                wanted, below, limit, tx
            ),
            Way::Newest => found!(
                "SELECT * FROM turnmill.sessions WHERE (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                wanted, below, limit, tx
            ),
        };
        tx.done(found).await
    }

    /// The last session that a page has looked at, if it has looked at as many as it may.
    async fn sessions_looked_until(&self, way: Way, wanted: &SessionsWanted, below: &Below) -> sqlx::Result<Below> {
        let (project, tenant) = match way {
            Way::Newest => (None, None),
            Way::Project => (wanted.project.as_deref(), None),
            Way::Tenant => (None, wanted.tenant.as_deref()),
            Way::Ids | Way::Id | Way::Live => return Ok(None),
        };
        let (at, id) = below.clone().unzip();
        let mut tx = self.pool.glance().await?;
        // A plan for each in one statement: along the narrow index, or along the whole.
        let last = sqlx::query!(
            r#"(SELECT created_at AS "created_at!", id AS "id!" FROM turnmill.sessions
                WHERE $4::text IS NULL AND $5::text IS NULL AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                ORDER BY created_at DESC, id DESC OFFSET $3::bigint - 1 LIMIT 1)
               UNION ALL
               (SELECT created_at, id FROM turnmill.sessions
                WHERE project_id = $4 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                ORDER BY created_at DESC, id DESC OFFSET $3::bigint - 1 LIMIT 1)
               UNION ALL
               (SELECT created_at, id FROM turnmill.sessions
                WHERE tenant_id = $5 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                ORDER BY created_at DESC, id DESC OFFSET $3::bigint - 1 LIMIT 1)"#,
            at,
            id,
            LOOKED_AT_MAX,
            project,
            tenant,
        )
        .fetch_optional(&mut tx)
        .await;
        Ok(tx.done(last).await?.map(|row| (row.created_at, row.id)))
    }

    /// What is kept of a session.
    pub async fn session_kept(&self, id: &str) -> sqlx::Result<SessionKept> {
        let mut tx = self.pool.glance().await?;
        let row = sqlx::query_as!(
            SessionKept,
            r#"SELECT (SELECT count(*) FROM (SELECT FROM turnmill.transcripts c WHERE c.session_id = $1 LIMIT 100) c) AS "memories!",
                 m.bytes AS "memory_bytes?", m.saved_at AS "memory_at?", w.kind AS "files_kind?", w.bytes AS "files_bytes?", w.files AS "files?",
                 w.missing AS files_missing, w.saved_at AS "files_at?",
                 (SELECT count(*) FROM (SELECT FROM turnmill.jobs j WHERE j.session_id = $1 AND j.state = 'waiting' LIMIT 1000) j) AS "behind!"
               FROM (SELECT) one
               LEFT JOIN LATERAL (SELECT bytes, saved_at FROM turnmill.transcripts WHERE session_id = $1 ORDER BY ordinal DESC LIMIT 1) m ON true
               LEFT JOIN LATERAL (SELECT kind, bytes, files, missing, saved_at FROM turnmill.workspaces WHERE session_id = $1 ORDER BY ordinal DESC LIMIT 1) w ON true"#,
            id
        )
        .fetch_one(&mut tx)
        .await;
        tx.done(row).await
    }
}
