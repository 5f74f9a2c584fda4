//! *Tenants*: who waits for a limit or a budget and since when, who runs how much, what each has spent today; and one with what
//! it spent before. What is set of it is changed in `tenant_set`.
//!
//! A tenant is named in the query and not in the path: its id may be `..`, which no browser sends as a step of one.

use std::time::Duration;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::App;
use super::super::position::{cursor, read_cursor};
use super::super::problem::Problem;
use super::super::request::is_id;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of, part_of};
use super::lists::{self, some};
use super::look::{self, Mark};
use super::money::{self, Budget};
use super::spend::Days;
use super::workers::late;
use crate::store::{AuditRow, SpendFilter, TENANT_COUNTED_MAX, TENANTS_LOOKED_AT_MAX, TenantCard, Wait};

/// How old what is shown may be.
const FRESH: Duration = Duration::from_millis(500);

/// Tenants of a page, besides those that wait.
const PAGE: i64 = 50;

/// Those that wait which are above them.
const WAITING: usize = 50;

/// Those that wait among which a reason is looked for.
const WAITING_MAX: i64 = 200;

/// Acts on a tenant that its page shows.
const ACTS: i64 = 10;

/// Days of its chart.
const DAYS: i32 = 30;

/// What is under every page of this list.
const LIST: &str = "ops-tenants";

/// What can be chosen, and how it is called.
const SHOWN: [(&str, &str); 4] =
    [("", "all"), ("waiting", "those who wait"), ("budget", "held by a budget"), ("tenant_limit", "held by their limit")];

/// The filter, as the address has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    q: String,
    #[serde(default)]
    show: String,
    #[serde(default)]
    after: String,
}

impl Wanted {
    fn checked(&self) -> Result<(), Problem> {
        lists::checked(&[&self.q, &self.show])?;
        if SHOWN.iter().any(|(show, _)| *show == self.show) {
            return Ok(());
        }
        Err(Problem::parameter("show", "show is waiting, budget or tenant_limit"))
    }

    fn query(&self) -> String {
        lists::query_of(&[("q", &self.q), ("show", &self.show)])
    }

    /// Behind whom the page begins.
    fn place(&self) -> Result<String, Problem> {
        Ok(if self.after.is_empty() { String::new() } else { read_cursor(&self.after, &[LIST], 1)?.concat() })
    }
}

/// Turns that wait for the same.
struct Waiting {
    words: String,
    means: &'static str,
    href: String,
    turns: String,
    oldest: Option<DateTime<Utc>>,
}

/// A tenant with what its turns wait for.
pub(super) struct Row {
    pub(super) card: TenantCard,
    mark: Mark,
    budget: Budget,
    path: String,
    waits: Vec<Waiting>,
    since: Option<DateTime<Utc>>,
    /// What keeps most of its turns.
    held_by: Option<String>,
}

/// What is the matter with a tenant, in a word: the worst first.
fn state(card: &TenantCard, most: Option<&Wait>) -> Mark {
    match most {
        _ if card.is_over_budget() => look::mark("s-failed", "✕", "budget spent"),
        _ if card.running_max == Some(0) => look::mark("s-waiting", "‖", "may run none"),
        Some(wait) => look::mark("s-waiting", "◷", look::reason_words(wait.reason.as_deref().unwrap_or_default())),
        None if card.running > 0 => look::mark("s-running", "▶", "running"),
        None => look::mark("s-pending", "○", "idle"),
    }
}

impl Row {
    fn of(card: TenantCard, waits: &[(String, Wait)]) -> Self {
        let mine: Vec<&Wait> = waits.iter().filter(|(id, _)| *id == card.id).map(|(_, wait)| wait).collect();
        let path = look::encoded(&card.id);
        let waiting = |wait: &&Wait| {
            let reason = wait.reason.as_deref().unwrap_or_default();
            let filter = if reason.is_empty() { "status=pending".to_owned() } else { format!("reason={reason}") };
            let more = if wait.turns >= TENANT_COUNTED_MAX { "+" } else { "" };
            Waiting {
                words: look::reason_words(reason).to_owned(),
                means: look::reason_means(reason),
                href: format!("/ops/turns?{filter}&tenant={path}"),
                turns: format!("{}{more}", look::count(wait.turns)),
                oldest: wait.oldest_at,
            }
        };
        Self {
            mark: state(&card, mine.first().copied()),
            budget: Budget { spent: card.today_usd, limit: card.budget_usd_per_day },
            waits: mine.iter().map(waiting).collect(),
            since: mine.iter().filter_map(|wait| wait.oldest_at).min(),
            held_by: mine.first().and_then(|wait| wait.reason.clone()),
            path,
            card,
        }
    }

    fn running(&self) -> String {
        let running = look::count(self.card.running);
        self.card.running_max.map_or(running.clone(), |most| format!("{running} of {most}"))
    }

    fn running_max(&self) -> i64 {
        i64::from(self.card.running_max.unwrap_or(0).max(1))
    }

    /// Why its turns are kept and until when, in a sentence.
    fn held(&self) -> Option<String> {
        let card = &self.card;
        if card.is_over_budget() {
            let until = if card.budget_usd_per_day == Some(0.0) { "until it has one" } else { "before midnight UTC, unless it is raised" };
            return Some(format!("Spent is {}. None of its turns starts {until}; what runs goes on.", self.budget.words()));
        }
        match self.held_by.as_deref() {
            Some("tenant_limit") => Some(format!("{} run. The next starts when one of them ends, or the limit is raised.", self.running())),
            Some("budget") => {
                Some("The budget of the whole fleet is spent. Nothing starts before midnight UTC, unless it is raised.".to_owned())
            }
            Some("fleet_stopped") => Some("Somebody has stopped the fleet. Nothing starts until it is resumed.".to_owned()),
            _ => None,
        }
    }

    /// Whose setting is in the way: its own, or the fleet's.
    fn is_fleet_s(&self) -> bool {
        !self.card.is_over_budget() && matches!(self.held_by.as_deref(), Some("budget" | "fleet_stopped"))
    }
}

/// What a list shows.
#[derive(Default)]
struct Found {
    cards: Vec<TenantCard>,
    waits: Vec<(String, Wait)>,
    next: Option<String>,
    gave_up: bool,
}

async fn find(app: &App, wanted: &Wanted, after: &str) -> sqlx::Result<Found> {
    let (store, text) = (&app.store, some(&wanted.q));
    let mut first = store.waiting_tenants(text.as_deref(), WAITING_MAX).await?;
    let (mut rest, mut next, mut gave_up) = (Vec::new(), None, false);
    if wanted.show.is_empty() {
        first.truncate(WAITING);
        let page = store.tenants_by_id(text.as_deref(), after, &first, PAGE).await?;
        (rest, next, gave_up) = (page.ids, page.next, page.gave_up);
    }
    // Those who wait are on the first page.
    let mut ids = if after.is_empty() { first } else { Vec::new() };
    ids.append(&mut rest);
    let waits = store.waits_by_tenant(&ids).await?;
    if matches!(wanted.show.as_str(), "budget" | "tenant_limit") {
        gave_up = ids.len() >= usize::try_from(WAITING_MAX).unwrap_or(usize::MAX);
        let held = |id: &String| waits.iter().any(|(of, wait)| of == id && wait.reason.as_deref() == Some(&wanted.show));
        ids.retain(held);
    }
    Ok(Found { cards: store.tenant_cards(&ids).await?, waits, next, gave_up })
}

#[derive(Template)]
#[template(path = "tenants_list.html")]
struct List {
    late: Option<String>,
    /// `None`: the database has not said.
    rows: Option<Vec<Row>>,
    query: String,
    next: String,
    gave_up: bool,
    first_page: bool,
    again: String,
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl List {
    async fn of(app: &App, wanted: &Wanted, may_act: bool) -> Result<Self, Fault> {
        wanted.checked()?;
        let (query, after) = (wanted.query(), wanted.place()?);
        let plain = query.is_empty() && after.is_empty();
        let asked = async {
            // What most look at is asked once for all of them.
            if plain {
                app.desk.part("tenants", FRESH, || find(app, wanted, "")).await
            } else {
                app.desk.once("tenants", find(app, wanted, &after)).await
            }
        };
        let (found, clock) = tokio::join!(asked, app.desk.part("clock", FRESH, || app.store.clock()));
        let shown = found.value.as_deref();
        Ok(Self {
            late: late(&found),
            rows: shown.map(|found| found.cards.iter().map(|card| Row::of(card.clone(), &found.waits)).collect()),
            next: shown.and_then(|found| found.next.as_deref()).map(|id| cursor(&[LIST, id])).unwrap_or_default(),
            gave_up: shown.is_some_and(|found| found.gave_up),
            first_page: after.is_empty(),
            again: format!("/ops/tenant-list?{query}&after={}", look::encoded(&wanted.after)),
            query,
            may_act,
            as_of: clock.value.map(|now| *now).unwrap_or_default(),
        })
    }

    fn looked_at() -> String {
        look::count(TENANTS_LOOKED_AT_MAX)
    }
}

#[derive(Template)]
#[template(path = "tenants.html")]
struct TenantsPage {
    frame: Frame,
    wanted: Wanted,
    list: List,
}

impl TenantsPage {
    fn filtered(&self) -> bool {
        !self.list.query.is_empty()
    }
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    let list = List::of(&app, &wanted, viewer.may_act).await?;
    Ok(page_of(&TenantsPage { frame: Frame::of(&viewer, "/ops/tenants", "Tenants"), wanted, list }))
}

/// Its list alone.
pub async fn list(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&List::of(&app, &wanted, viewer.may_act).await?))
}

/// Which one.
#[derive(Debug, Deserialize)]
pub struct Which {
    #[serde(default)]
    id: String,
}

/// A tenant, as it is now; one of which nothing is known is not there.
pub(super) async fn card(app: &App, id: &str) -> Result<TenantCard, Fault> {
    if !is_id(id) {
        return Err(Problem::not_found().into());
    }
    let card = app.store.tenant_cards(&[id.to_owned()]).await?.pop().filter(|card| card.known);
    Ok(card.ok_or_else(Problem::not_found)?)
}

#[derive(Template)]
#[template(path = "tenant_live.html")]
struct OneLive {
    row: Row,
    audit: Vec<AuditRow>,
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl OneLive {
    async fn of(app: &App, id: &str, may_act: bool) -> Result<Self, Fault> {
        let card = card(app, id).await?;
        let ids = [id.to_owned()];
        let (waits, audit, as_of) =
            tokio::try_join!(app.store.waits_by_tenant(&ids), app.store.audit(Some(("tenant", id)), None, ACTS), app.store.clock())?;
        Ok(Self { row: Row::of(card, &waits), audit, may_act, as_of })
    }
}

#[derive(Template)]
#[template(path = "tenant.html")]
struct OnePage {
    frame: Frame,
    live: OneLive,
    days: Days,
    may_act: bool,
}

impl OnePage {
    fn row(&self) -> &Row {
        &self.live.row
    }

    fn running_max(&self) -> String {
        self.row().card.running_max.map(|most| most.to_string()).unwrap_or_default()
    }

    fn budget(&self) -> String {
        money::typed(self.row().card.budget_usd_per_day)
    }
}

/// One tenant.
pub async fn one(viewer: Viewer, State(app): State<App>, Query(which): Query<Which>) -> Result<Response, Fault> {
    let live = OneLive::of(&app, &which.id, viewer.may_act).await?;
    let days = Days::of(&app, &SpendFilter { days: DAYS, tenant: Some(which.id.clone()), pool: None }).await;
    let frame = Frame::of(&viewer, "/ops/tenants", format!("Tenant {}", look::short_id(&which.id)));
    Ok(page_of(&OnePage { frame, live, days, may_act: viewer.may_act }))
}

/// What of it refreshes itself.
pub async fn one_live(viewer: Viewer, State(app): State<App>, Query(which): Query<Which>) -> Result<Response, Fault> {
    Ok(part_of(&OneLive::of(&app, &which.id, viewer.may_act).await?))
}
