//! Lists of turns for operators: by what they look for, at a price that doesn't grow with history.
//!
//! A page reads along the index that fits the filter best, and looks at no more than [`LOOKED_AT_MAX`] turns: where it finds
//! less than a page among these, it says how far it has come, and the reader may go on from there.

use chrono::{DateTime, Utc};

use super::Store;

/// What to look for; `None`s: anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnFilter {
    /// pending, `in_progress`, completed, failed or cancelled.
    pub status: Option<String>,
    /// As `wait_reason` says.
    pub reason: Option<String>,
    /// Error code.
    pub error: Option<String>,
    /// Where it runs.
    pub pool: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
    /// Its session.
    pub session: Option<String>,
    /// How its id begins, or what is in it.
    pub text: Option<String>,
    /// Only these.
    pub ids: Option<Vec<String>>,
}

/// Where a page begins: below this turn.
pub type Below = Option<(DateTime<Utc>, String)>;

/// A turn in a list.
#[derive(Debug, Clone)]
pub struct FoundTurn {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session_id: String,
    /// Its project.
    pub project_id: String,
    /// Whose it is.
    pub tenant_id: Option<String>,
    /// Where it runs.
    pub pool: String,
    /// Its status.
    pub status: String,
    /// Why it waits, if it does.
    pub wait_reason: Option<String>,
    /// How far it is, while it runs.
    pub phase: Option<String>,
    /// Starts of the agent.
    pub attempt: i32,
    /// What went wrong, at last or with the newest try.
    pub error_code: Option<String>,
    /// The start of the message.
    pub prompt_start: String,
    /// Model cost.
    pub cost_usd: Option<f64>,
    /// When enqueued.
    pub created_at: DateTime<Utc>,
    /// Seconds in the queue until the first claim, or so far.
    pub waited_s: f64,
    /// Seconds from the first claim to the end, or so far.
    pub ran_s: Option<f64>,
}

/// A page of turns.
#[derive(Debug, Clone, Default)]
pub struct FoundPage {
    /// Newest first.
    pub turns: Vec<FoundTurn>,
    /// Where the next page begins.
    pub next: Below,
    /// Nothing more was found among so many; `next` goes on from there.
    pub gave_up: bool,
    /// How many those are.
    pub looked_at: i64,
}

/// Turns that one page looks at.
pub const LOOKED_AT_MAX: i64 = 20_000;

/// The same where they are far apart: each of them is on a page of the table for itself.
const APART_MAX: i64 = 5_000;

/// Up to so many unfinished turns are looked at one by one; more are many of the newest, too.
const LIVE_MAX: i64 = 5_000;

/// A tenant of more sessions than this has its share of the newest turns.
const SESSIONS_MAX: i64 = 2_000;

/// The statement around a source of turns, which gives columns of `turns` below ($1, $2), at most $3.
///
/// What belongs to one of these is looked up for each, under a LIMIT that keeps it so: left to join the tables, Postgres may
/// read a whole one, or walk an index from end to end for what it takes to be at its start.
macro_rules! found {
    ($source:tt, $filter:expr, $below:expr, $most:expr, $limit:expr, $tx:expr) => {
        found!($source, $filter, $below, $most, $limit, $tx, false)
    };
    // asked: the source has asked for the reason already.
    ($source:tt, $filter:expr, $below:expr, $most:expr, $limit:expr, $tx:expr, $asked:expr) => {{
        let (at, id) = $below.clone().unzip();
        sqlx::query_as!(
            FoundTurn,
            r#"WITH found AS MATERIALIZED (
                 SELECT t.*, s.pool, s.tenant_id
                 FROM ("# + $source + r#") t
                 CROSS JOIN LATERAL (SELECT o.pool, o.tenant_id FROM turnmill.sessions o WHERE o.id = t.session_id LIMIT 1) s
                 WHERE ($4::text IS NULL OR t.status = $4) AND ($5::text IS NULL OR t.error_code = $5)
                   AND ($6::text IS NULL OR s.pool = $6) AND ($7::text IS NULL OR s.tenant_id = $7)
                   AND ($8::text IS NULL OR t.session_id = $8) AND ($9::text IS NULL OR position($9 IN t.id) > 0 OR t.session_id = $9)
                   AND ($13::boolean OR $10::text IS NULL OR (t.completed_at IS NULL AND turnmill.wait_reason(t.id) = $10))
                   AND ($12::text[] IS NULL OR t.id = ANY ($12))
                 ORDER BY t.created_at DESC, t.id DESC LIMIT $11)
               SELECT f.id AS "id!", f.session_id AS "session_id!", f.project_id AS "project_id!", f.tenant_id, f.pool AS "pool!",
                 f.status AS "status!", CASE WHEN $13 THEN $10 WHEN j.state <> 'leased' THEN turnmill.wait_reason(f.id) END AS wait_reason, j.phase AS "phase?", f.attempt AS "attempt!", f.error_code,
                 left(f.prompt, 200) AS "prompt_start!", f.cost_usd::float8 AS cost_usd, f.created_at AS "created_at!",
                 extract(epoch FROM coalesce(f.started_at, f.completed_at, clock_timestamp()) - f.created_at)::float8 AS "waited_s!",
                 extract(epoch FROM coalesce(f.completed_at, clock_timestamp()) - f.started_at)::float8 AS ran_s
               FROM found f LEFT JOIN turnmill.jobs j ON j.turn_id = f.id
               ORDER BY f.created_at DESC, f.id DESC"#,
            at,
            id,
            $most,
            $filter.status,
            $filter.error,
            $filter.pool,
            $filter.tenant,
            $filter.session,
            $filter.text,
            $filter.reason,
            $limit,
            $filter.ids.as_deref(),
            $asked,
        )
        .fetch_all(&mut $tx)
        .await
    }};
}

/// Which index leads to what is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Session,
    Live,
    Error,
    Trouble,
    Id,
    Ids,
    Reason,
    Tenant,
    Newest,
}

impl Way {
    /// Turns that one page looks at along it.
    fn most(self) -> i64 {
        if matches!(self, Self::Trouble | Self::Error) { APART_MAX } else { LOOKED_AT_MAX }
    }
}

impl Store {
    /// A page of turns, newest first.
    pub async fn find_turns(&self, filter: &TurnFilter, below: &Below, limit: i64) -> sqlx::Result<FoundPage> {
        let Some(text) = &filter.text else { return self.page_along(self.way(filter).await?, filter, below, limit).await };
        // Most likely somebody has the whole id, or its start; or that of a session.
        let session = TurnFilter { session: Some(text.clone()), text: None, ..filter.clone() };
        for (way, filter) in [(Way::Id, filter), (Way::Session, &session)] {
            let page = self.page_along(way, filter, below, limit).await?;
            if !page.turns.is_empty() {
                return Ok(page);
            }
        }
        self.page_along(Way::Newest, filter, below, limit).await
    }

    async fn page_along(&self, way: Way, filter: &TurnFilter, below: &Below, limit: i64) -> sqlx::Result<FoundPage> {
        let mut turns = self.along(way, filter, below, limit + 1).await?;
        let more = i64::try_from(turns.len()).unwrap_or(0) > limit;
        turns.truncate(usize::try_from(limit).unwrap_or(0));
        if more {
            let next = turns.last().map(|turn| (turn.created_at, turn.id.clone()));
            return Ok(FoundPage { turns, next, gave_up: false, looked_at: way.most() });
        }
        let next = self.looked_until(way, filter, below).await?;
        Ok(FoundPage { gave_up: next.is_some(), looked_at: way.most(), turns, next })
    }

    /// Turns that came since, up to a hundred: more are "many".
    pub async fn count_newer(&self, filter: &TurnFilter, than: &(DateTime<Utc>, String)) -> sqlx::Result<i64> {
        let newest = self.find_turns(filter, &None, 100).await?;
        let newer = newest.turns.iter().take_while(|turn| (turn.created_at, &turn.id) > (than.0, &than.1)).count();
        Ok(i64::try_from(newer).unwrap_or(0))
    }

    async fn way(&self, filter: &TurnFilter) -> sqlx::Result<Way> {
        if filter.ids.is_some() {
            return Ok(Way::Ids);
        }
        if filter.session.is_some() {
            return Ok(Way::Session);
        }
        if filter.reason.is_some() {
            return Ok(Way::Reason);
        }
        let unfinished = matches!(filter.status.as_deref(), Some("pending" | "in_progress"));
        if unfinished && self.live_are_few().await? {
            return Ok(Way::Live);
        }
        if filter.error.is_some() && !unfinished {
            return Ok(Way::Error);
        }
        if matches!(filter.status.as_deref(), Some("failed" | "cancelled")) {
            return Ok(Way::Trouble);
        }
        match &filter.tenant {
            Some(tenant) if self.sessions_are_few(tenant).await? => Ok(Way::Tenant),
            _ => Ok(Way::Newest),
        }
    }

    async fn along(&self, way: Way, filter: &TurnFilter, below: &Below, limit: i64) -> sqlx::Result<Vec<FoundTurn>> {
        let most = way.most();
        let mut tx = self.pool.glance().await?;
        let found = match way {
            Way::Session => found!(
                "SELECT * FROM turnmill.turns WHERE session_id = $8 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY ordinal DESC LIMIT $3",
                filter, below, most, limit, tx
            ),
            Way::Live => found!(
                "SELECT x.* FROM (SELECT turn_id FROM turnmill.jobs LIMIT $3) j CROSS JOIN LATERAL (SELECT * FROM turnmill.turns y WHERE y.id = j.turn_id LIMIT 1) x
                 WHERE (x.created_at, x.id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))",
                filter, below, most, limit, tx
            ),
            Way::Error => found!(
                "SELECT * FROM turnmill.turns WHERE error_code = $5 AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                filter, below, most, limit, tx
            ),
            Way::Trouble => found!(
                "SELECT * FROM turnmill.turns WHERE error_code IS NOT NULL AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                filter, below, most, limit, tx
            ),
            Way::Id => found!(
                "SELECT * FROM turnmill.turns WHERE id ~>=~ $9 AND id ~<~ ($9 || chr(1114111))
                   AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, '')) LIMIT $3",
                filter,
                below,
                most,
                limit,
                tx
            ),
            Way::Ids => found!("SELECT * FROM turnmill.turns WHERE id = ANY ($12) AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, '')) LIMIT $3", filter, below, most, limit, tx),
            // One of each kind is asked, as `waits` does: of thousands, one by one, nobody could wait for the answer.
            Way::Reason => found!(
                "SELECT x.* FROM (
                   WITH live AS MATERIALIZED (
                     SELECT j.turn_id, j.state, j.pool, j.run_at > clock_timestamp() AS later, t.id AS tenant, k.state AS kept
                     FROM (SELECT * FROM turnmill.jobs WHERE state <> 'leased' LIMIT $3) j
                     LEFT JOIN turnmill.tenants t ON t.id = j.tenant_id
                     LEFT JOIN (SELECT session_id, min(state) AS state FROM turnmill.slots WHERE state IN ('warm', 'pausing') GROUP BY session_id) k
                       ON k.session_id = j.session_id),
                   kind AS MATERIALIZED (
                     SELECT state, pool, later, tenant, kept, turnmill.wait_reason(min(turn_id)) AS reason FROM live GROUP BY state, pool, later, tenant, kept)
                   SELECT l.turn_id FROM live l JOIN kind k ON (k.state, k.pool) = (l.state, l.pool) AND k.later IS NOT DISTINCT FROM l.later
                     AND k.tenant IS NOT DISTINCT FROM l.tenant AND k.kept IS NOT DISTINCT FROM l.kept
                   WHERE k.reason = $10) w
                 CROSS JOIN LATERAL (SELECT * FROM turnmill.turns y WHERE y.id = w.turn_id LIMIT 1) x
                 WHERE (x.created_at, x.id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))",
                filter,
                below,
                most,
                limit,
                tx,
                true
            ),
            Way::Tenant => found!(
                "SELECT x.* FROM (SELECT id FROM turnmill.sessions WHERE tenant_id = $7 ORDER BY created_at DESC, id DESC LIMIT 2000) o
                 CROSS JOIN LATERAL (SELECT * FROM turnmill.turns y WHERE y.session_id = o.id ORDER BY y.ordinal DESC LIMIT 200) x
                 WHERE (x.created_at, x.id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, '')) LIMIT $3::bigint * 5",
                filter, below, most, limit, tx
            ),
            Way::Newest => found!(
                "SELECT * FROM turnmill.turns WHERE (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                 ORDER BY created_at DESC, id DESC LIMIT $3",
                filter, below, most, limit, tx
            ),
        };
        tx.done(found).await
    }

    /// The last turn that a page has looked at, if it has looked at as many as it may.
    async fn looked_until(&self, way: Way, filter: &TurnFilter, below: &Below) -> sqlx::Result<Below> {
        let only_trouble = match way {
            Way::Newest => false,
            Way::Trouble | Way::Error => true,
            Way::Session | Way::Live | Way::Id | Way::Ids | Way::Reason | Way::Tenant => return Ok(None),
        };
        let (at, id) = below.clone().unzip();
        let mut tx = self.pool.glance().await?;
        // Two plans in one statement: along the narrow index, or along the whole.
        let last = sqlx::query!(
            r#"(SELECT created_at AS "created_at!", id AS "id!" FROM turnmill.turns
                WHERE NOT $5::boolean AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                ORDER BY created_at DESC, id DESC OFFSET $3::bigint - 1 LIMIT 1)
               UNION ALL
               (SELECT created_at, id FROM turnmill.turns
                WHERE $5::boolean AND error_code IS NOT NULL AND ($4::text IS NULL OR error_code = $4) AND (created_at, id) < (coalesce($1::timestamptz, 'infinity'), coalesce($2::text, ''))
                ORDER BY created_at DESC, id DESC OFFSET $3::bigint - 1 LIMIT 1)"#,
            at,
            id,
            way.most(),
            filter.error.as_deref().filter(|_| way == Way::Error),
            only_trouble,
        )
        .fetch_optional(&mut tx)
        .await;
        Ok(tx.done(last).await?.map(|row| (row.created_at, row.id)))
    }

    async fn live_are_few(&self) -> sqlx::Result<bool> {
        let few = sqlx::query_scalar!(
            r#"SELECT count(*) <= $1::bigint AS "few!" FROM (SELECT FROM turnmill.jobs LIMIT $1::bigint + 1) j"#,
            LIVE_MAX
        );
        few.fetch_one(&self.pool).await
    }

    async fn sessions_are_few(&self, tenant: &str) -> sqlx::Result<bool> {
        let few = sqlx::query_scalar!(
            r#"SELECT count(*) <= $2::bigint AS "few!" FROM (SELECT FROM turnmill.sessions WHERE tenant_id = $1 LIMIT $2::bigint + 1) s"#,
            tenant,
            SESSIONS_MAX
        );
        few.fetch_one(&self.pool).await
    }
}
