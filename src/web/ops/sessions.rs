//! *Sessions*: found by what is known of them; and one with its turns, and what is kept for the next one.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of, part_of};
use super::lists::{self, BETWEEN, IDS_MAX_BYTES, some};
use super::look::{self, Mark};
use super::turns::Row as TurnRow;
use crate::store::{Below, FoundSession, LOOKED_AT_MAX, SessionKept, SessionPage, SessionsWanted, TurnFilter};

/// Sessions of a page.
const PAGE: i64 = 50;

/// Turns that a session's page shows.
const TURNS: i64 = 50;

/// What every list of pages is under.
const LIST: &str = "ops-sessions";

/// States, as they are chosen.
const STATES: [&str; 3] = ["running", "waiting", "idle"];

/// The filter, as the address has it; an empty field filters nothing.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    q: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    project: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    pool: String,
    #[serde(default)]
    below: String,
    /// Those that are shown, to be shown anew.
    #[serde(default)]
    ids: String,
}

impl Wanted {
    fn filter(&self) -> Result<SessionsWanted, Problem> {
        lists::checked(&[&self.q, &self.state, &self.project, &self.tenant, &self.pool])?;
        if !self.state.is_empty() && !STATES.contains(&self.state.as_str()) {
            return Err(Problem::parameter("state", "state is running, waiting or idle"));
        }
        Ok(SessionsWanted {
            project: some(&self.project),
            tenant: some(&self.tenant),
            pool: some(&self.pool),
            state: some(&self.state),
            text: some(&self.q),
            ids: None,
        })
    }

    fn query(&self) -> String {
        lists::query_of(&[
            ("q", &self.q),
            ("state", &self.state),
            ("project", &self.project),
            ("tenant", &self.tenant),
            ("pool", &self.pool),
        ])
    }
}

/// A session in the list.
struct Row {
    session: FoundSession,
    mark: Mark,
    last: Option<Mark>,
    href: String,
}

fn mark_of(session: &FoundSession) -> Mark {
    look::session(session.current_turn_id.is_some(), session.phase.as_deref(), session.wait_reason.as_deref())
}

impl Row {
    fn of(session: &FoundSession) -> Self {
        Self {
            mark: mark_of(session),
            last: session.last_status.as_deref().map(|status| look::status(status, None, None)),
            href: format!("/ops/sessions/{}", look::encoded(&session.id)),
            session: session.clone(),
        }
    }
}

#[derive(Template)]
#[template(path = "sessions_list.html")]
struct List {
    rows: Vec<Row>,
    query: String,
    newer: i64,
    next: String,
    gave_up: bool,
    first_page: bool,
    again: String,
    as_of: DateTime<Utc>,
}

impl List {
    async fn of(app: &App, wanted: &Wanted) -> Result<Self, Fault> {
        let filter = wanted.filter()?;
        let below = lists::read_place(LIST, &wanted.below)?;
        let (page, newer) = if wanted.ids.is_empty() {
            (app.store.find_sessions(&filter, &below, PAGE).await?, 0)
        } else {
            again(app, wanted, &filter).await?
        };
        let rows: Vec<Row> = page.sessions.iter().map(Row::of).collect();
        let ids = rows.iter().map(|row| row.session.id.as_str()).collect::<Vec<_>>().join(&BETWEEN.to_string());
        let (query, ids) = (wanted.query(), look::encoded(&ids));
        let again = if rows.is_empty() || ids.len() > IDS_MAX_BYTES {
            format!("/ops/session-list?{query}")
        } else {
            format!("/ops/session-list?{query}&ids={ids}&below={}", look::encoded(&wanted.below))
        };
        Ok(Self {
            rows,
            newer,
            next: page.next.as_ref().map(|(at, id)| lists::place(LIST, *at, id)).unwrap_or_default(),
            gave_up: page.gave_up,
            first_page: wanted.below.is_empty(),
            again,
            as_of: app.store.clock().await?,
            query,
        })
    }

    fn newer_words(&self) -> String {
        lists::newer_words(self.newer)
    }

    fn looked_at() -> String {
        look::count(LOOKED_AT_MAX)
    }
}

/// The sessions that are shown, as they are now; and how many are new above them.
async fn again(app: &App, wanted: &Wanted, filter: &SessionsWanted) -> Result<(SessionPage, i64), Fault> {
    let ids: Vec<String> = wanted.ids.split(BETWEEN).map(str::to_owned).take(usize::try_from(PAGE).unwrap_or(0)).collect();
    let shown = SessionsWanted { ids: Some(ids), ..SessionsWanted::default() };
    let mut page = app.store.find_sessions(&shown, &None, PAGE).await?;
    let newer = match page.sessions.first() {
        Some(first) if wanted.below.is_empty() => {
            let newest = app.store.find_sessions(filter, &None, 100).await?;
            newest.sessions.iter().take_while(|s| (s.created_at, &s.id) > (first.created_at, &first.id)).count()
        }
        _ => 0,
    };
    let last: Below = page.sessions.last().map(|session| (session.created_at, session.id.clone()));
    page.next = last.filter(|_| i64::try_from(page.sessions.len()).unwrap_or(0) == PAGE);
    Ok((page, i64::try_from(newer).unwrap_or(0)))
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct SessionsPage {
    frame: Frame,
    wanted: Wanted,
    pools: Vec<String>,
    list: List,
}

impl SessionsPage {
    fn filtered(&self) -> bool {
        !self.list.query.is_empty()
    }
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    let list = List::of(&app, &wanted).await?;
    let pools = app.store.rooms().await?.into_iter().map(|room| room.pool).collect();
    Ok(page_of(&SessionsPage { frame: Frame::of(&viewer, "/ops/sessions", "Sessions"), wanted, pools, list }))
}

/// Its list alone.
pub async fn list(_: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&List::of(&app, &wanted).await?))
}

/// A sandbox that is kept for a session.
struct Kept {
    sandbox_id: String,
    path: String,
    state: String,
    due_at: DateTime<Utc>,
}

#[derive(Template)]
#[template(path = "session_live.html")]
struct Live {
    session: FoundSession,
    mark: Mark,
    memory: SessionKept,
    kept: Vec<Kept>,
    turns: Vec<TurnRow>,
    more: bool,
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl Live {
    async fn of(app: &App, id: &str, may_act: bool) -> Result<Self, Fault> {
        let session = app.store.ops_session(id).await?.ok_or_else(Problem::not_found)?;
        let filter = TurnFilter { session: Some(id.to_owned()), ..TurnFilter::default() };
        let (turns, kept, memory, as_of) = tokio::try_join!(
            app.store.find_turns(&filter, &None, TURNS),
            app.store.kept_for(id),
            app.store.session_kept(id),
            app.store.clock(),
        )?;
        let kept = kept.into_iter().map(|(sandbox_id, state, due_at)| Kept { path: look::encoded(&sandbox_id), sandbox_id, state, due_at });
        Ok(Self {
            mark: mark_of(&session),
            kept: kept.collect(),
            more: turns.next.is_some(),
            turns: turns.turns.iter().map(TurnRow::of).collect(),
            session,
            memory,
            may_act,
            as_of,
        })
    }
}

#[derive(Template)]
#[template(path = "session.html")]
struct OnePage {
    frame: Frame,
    path: String,
    live: Live,
}

/// One session.
pub async fn one(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    let live = Live::of(&app, &id, viewer.may_act).await?;
    let frame = Frame::of(&viewer, "/ops/sessions", format!("Session {}", look::short_id(&id)));
    Ok(page_of(&OnePage { frame, path: look::encoded(&id), live }))
}

/// What of it refreshes itself.
pub async fn live(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    Ok(part_of(&Live::of(&app, &id, viewer.may_act).await?))
}
