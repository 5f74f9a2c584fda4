//! *Turns*: found by what is known of them, page by page; those that are shown are patched in place, and what is new is
//! counted, not pushed in between.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of, part_of};
use super::lists::{self, BETWEEN, IDS_MAX_BYTES, some};
use super::look::{self, Mark};
use crate::store::{FoundPage, FoundTurn, TurnFilter};

/// Turns of a page.
const PAGE: i64 = 50;

/// What every list of pages is under, so that no other list's cursor is taken for one.
const LIST: &str = "ops-turns";

/// Statuses, as they are chosen.
const STATUSES: [&str; 5] = ["pending", "in_progress", "completed", "failed", "cancelled"];

/// Reasons, as they are chosen.
const REASONS: [&str; 10] = [
    "session_busy",
    "no_slot",
    "create_rate",
    "tenant_limit",
    "backoff",
    "budget",
    "pool_paused",
    "pool_blocked",
    "fleet_stopped",
    "no_worker",
];

/// The filter, as the address has it; an empty field filters nothing.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    pool: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    q: String,
    #[serde(default)]
    below: String,
    /// Those that are shown, to be shown anew.
    #[serde(default)]
    ids: String,
}

impl Wanted {
    /// As the store takes it.
    pub fn filter(&self) -> Result<TurnFilter, Problem> {
        lists::checked(&[&self.status, &self.reason, &self.error, &self.pool, &self.tenant, &self.session, &self.q])?;
        Ok(TurnFilter {
            status: some(&self.status),
            reason: some(&self.reason),
            error: some(&self.error),
            pool: some(&self.pool),
            tenant: some(&self.tenant),
            session: some(&self.session),
            text: some(&self.q),
            ids: None,
        })
    }

    /// The filter as a query again, without where the page begins.
    pub fn query(&self) -> String {
        lists::query_of(&[
            ("status", &self.status),
            ("reason", &self.reason),
            ("error", &self.error),
            ("pool", &self.pool),
            ("tenant", &self.tenant),
            ("session", &self.session),
            ("q", &self.q),
        ])
    }
}

/// A turn in the list.
pub struct Row {
    /// The turn.
    pub turn: FoundTurn,
    /// Its state.
    pub mark: Mark,
    /// Its page.
    pub href: String,
}

impl Row {
    /// Of a turn.
    pub fn of(turn: &FoundTurn) -> Self {
        let mark = look::status(&turn.status, turn.wait_reason.as_deref(), turn.phase.as_deref());
        Self { mark, href: format!("/ops/turns/{}", look::encoded(&turn.id)), turn: turn.clone() }
    }

    fn tenant(&self) -> &str {
        self.turn.tenant_id.as_deref().unwrap_or_default()
    }

    /// Its error's code, if it has one.
    pub fn error(&self) -> &str {
        self.turn.error_code.as_deref().unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "turns_list.html")]
struct List {
    rows: Vec<Row>,
    query: String,
    newer: i64,
    next: String,
    gave_up: bool,
    looked_at: i64,
    first_page: bool,
    again: String,
    as_of: DateTime<Utc>,
    may_act: bool,
}

impl List {
    async fn of(app: &super::super::App, viewer: &Viewer, wanted: &Wanted) -> Result<Self, Fault> {
        let filter = wanted.filter()?;
        let (page, newer) = if wanted.ids.is_empty() {
            (app.store.find_turns(&filter, &lists::read_place(LIST, &wanted.below)?, PAGE).await?, 0)
        } else {
            Self::again(app, wanted, &filter).await?
        };
        let rows: Vec<Row> = page.turns.iter().map(Row::of).collect();
        let ids = rows.iter().map(|row| row.turn.id.as_str()).collect::<Vec<_>>().join(&BETWEEN.to_string());
        let query = wanted.query();
        let ids = look::encoded(&ids);
        // A page that the reader went on to shows what it showed; only the first one tells of what is new.
        let again = if rows.is_empty() || ids.len() > IDS_MAX_BYTES {
            format!("/ops/list?{query}")
        } else {
            format!("/ops/list?{query}&ids={ids}&below={}", look::encoded(&wanted.below))
        };
        Ok(Self {
            rows,
            newer,
            next: page.next.as_ref().map(|(at, id)| lists::place(LIST, *at, id)).unwrap_or_default(),
            gave_up: page.gave_up,
            looked_at: page.looked_at,
            first_page: wanted.below.is_empty(),
            again: if wanted.ids.is_empty() || ids.len() <= IDS_MAX_BYTES { again } else { String::new() },
            as_of: app.store.clock().await?,
            may_act: viewer.may_act,
            query,
        })
    }

    /// The turns that are shown, as they are now; and how many are new above them.
    async fn again(app: &super::super::App, wanted: &Wanted, filter: &TurnFilter) -> Result<(FoundPage, i64), Fault> {
        let ids: Vec<String> = wanted.ids.split(BETWEEN).map(str::to_owned).take(usize::try_from(PAGE).unwrap_or(0)).collect();
        let shown = TurnFilter { ids: Some(ids), ..TurnFilter::default() };
        let mut page = app.store.find_turns(&shown, &None, PAGE).await?;
        let newer = match page.turns.first() {
            Some(first) if wanted.below.is_empty() => app.store.count_newer(filter, &(first.created_at, first.id.clone())).await?,
            _ => 0,
        };
        let last = page.turns.last().map(|turn| (turn.created_at, turn.id.clone()));
        page.next = last.filter(|_| i64::try_from(page.turns.len()).unwrap_or(0) == PAGE);
        Ok((page, newer))
    }

    fn newer_words(&self) -> String {
        lists::newer_words(self.newer)
    }

    fn looked_at(&self) -> String {
        look::count(self.looked_at)
    }
}

#[derive(Template)]
#[template(path = "turns.html")]
struct TurnsPage {
    frame: Frame,
    wanted: Wanted,
    pools: Vec<String>,
    list: List,
}

impl TurnsPage {
    fn statuses() -> [(&'static str, Mark); 5] {
        STATUSES.map(|status| (status, look::status(status, None, None)))
    }

    fn reasons() -> [(&'static str, &'static str); 10] {
        REASONS.map(|reason| (reason, look::reason_words(reason)))
    }

    fn filtered(&self) -> bool {
        !self.list.query.is_empty()
    }
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    let list = List::of(&app, &viewer, &wanted).await?;
    let pools = app.store.rooms().await?.into_iter().map(|room| room.pool).collect();
    Ok(page_of(&TurnsPage { frame: Frame::of(&viewer, "/ops/turns", "Turns"), wanted, pools, list }))
}

/// Its list alone.
pub async fn list(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&List::of(&app, &viewer, &wanted).await?))
}
