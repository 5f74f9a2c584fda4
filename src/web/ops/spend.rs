//! *Spend*: what today has cost against its budget, and whether turns start; what the days before have cost, by tenant, pool or
//! model. All of it is read from the roll-up of days. The fleet is stopped, resumed and given its budget in `fleet_set`.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, NaiveTime, Utc};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of, part_of};
use super::glance::Part;
use super::lists::{self, some};
use super::look::{self, Mark};
use super::money::{self, Budget};
use super::tiles::Tile;
use super::workers::late;
use crate::store::{AuditRow, By, FleetMoney, PoolRoom, SpendDay, SpendFilter, SpendSum};

/// How old what is shown may be.
const FRESH: Duration = Duration::from_secs(1);

/// The same for sums over days.
const SLOW: Duration = Duration::from_secs(5);

/// The most expensive that are shown.
const SUMS: i64 = 50;

/// Acts on the fleet that are shown.
const ACTS: i64 = 10;

/// Days that can be looked at.
const DAYS: [i32; 3] = [7, 30, 90];

/// Over what sums are made, and how that is called.
const BYS: [(By, &str, &str); 3] = [(By::Tenant, "tenant", "Tenants"), (By::Pool, "pool", "Pools"), (By::Model, "model", "Models")];

/// The filter, as the address has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    days: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    pool: String,
}

impl Wanted {
    fn filter(&self) -> Result<SpendFilter, Problem> {
        lists::checked(&[&self.tenant, &self.pool])?;
        let days = if self.days.is_empty() { Some(30) } else { DAYS.into_iter().find(|days| days.to_string() == self.days) };
        let days = days.ok_or_else(|| Problem::parameter("days", "days is 7, 30 or 90"))?;
        Ok(SpendFilter { days, tenant: some(&self.tenant), pool: some(&self.pool) })
    }

    fn by(&self) -> Result<By, Problem> {
        let by = if self.by.is_empty() { "tenant" } else { &self.by };
        let found = BYS.iter().find(|(_, name, _)| *name == by).map(|(by, ..)| *by);
        found.ok_or_else(|| Problem::parameter("by", "by is tenant, pool or model"))
    }

    fn query(&self, by: &str) -> String {
        lists::query_of(&[("by", by), ("days", &self.days), ("tenant", &self.tenant), ("pool", &self.pool)])
    }
}

/// What most look at is asked once for all of them; what is filtered, for whoever asks.
async fn days_of(app: &App, filter: &SpendFilter) -> Part<Vec<SpendDay>> {
    let name = match filter {
        SpendFilter { days: 7, tenant: None, pool: None } => "spend of 7 days",
        SpendFilter { days: 30, tenant: None, pool: None } => "spend of 30 days",
        SpendFilter { days: 90, tenant: None, pool: None } => "spend of 90 days",
        _ => return app.desk.once("spend of days", app.store.spend_days(filter)).await,
    };
    app.desk.part(name, SLOW, || app.store.spend_days(filter)).await
}

/// The same for sums.
async fn sums_of(app: &App, by: By, filter: &SpendFilter) -> Part<Vec<SpendSum>> {
    let name = match (by, filter) {
        (By::Tenant, SpendFilter { days: 30, tenant: None, pool: None }) => "spend by tenant",
        (By::Pool, SpendFilter { days: 30, tenant: None, pool: None }) => "spend by pool",
        (By::Model, SpendFilter { days: 30, tenant: None, pool: None }) => "spend by model",
        _ => return app.desk.once("sums of spend", app.store.spend_sums(by, filter, SUMS)).await,
    };
    app.desk.part(name, SLOW, || app.store.spend_sums(by, filter, SUMS)).await
}

fn total(days: &[SpendDay]) -> f64 {
    days.iter().map(SpendDay::usd).sum()
}

/// Days, as a chart and the same as a table.
#[derive(Template)]
#[template(path = "spend_days.html")]
pub(super) struct Days {
    late: Option<String>,
    shown: Option<Arc<Vec<SpendDay>>>,
    /// Where they are asked anew.
    pub(super) again: String,
}

impl Days {
    /// Of those that the filter leaves.
    pub(super) async fn of(app: &App, filter: &SpendFilter) -> Self {
        let days = days_of(app, filter).await;
        let (count, tenant, pool) = (filter.days.to_string(), filter.tenant.as_deref(), filter.pool.as_deref());
        let query = lists::query_of(&[("days", &count), ("tenant", tenant.unwrap_or_default()), ("pool", pool.unwrap_or_default())]);
        Self { late: late(&days), shown: days.value, again: format!("/ops/spend/days?{query}") }
    }

    /// All of them together.
    pub(super) fn total(&self) -> String {
        self.shown.as_ref().map_or("–".to_owned(), |days| look::dollars(total(days)))
    }

    /// How many these are.
    pub(super) fn count(&self) -> usize {
        self.shown.as_ref().map_or(0, |days| days.len())
    }

    fn unpriced(&self) -> i64 {
        self.shown.iter().flat_map(|days| days.iter()).map(|day| day.unpriced).sum()
    }

    fn seconds(day: &SpendDay) -> i64 {
        day.day.and_time(NaiveTime::MIN).and_utc().timestamp()
    }
}

/// The most expensive.
#[derive(Template)]
#[template(path = "spend_sums.html")]
struct Sums {
    late: Option<String>,
    by: &'static str,
    rows: Option<Vec<SumRow>>,
    again: String,
}

struct SumRow {
    name: String,
    href: String,
    share: i64,
    sum: SpendSum,
    /// It stands for all that are not shown: only dollars and turns are known of them.
    rest: bool,
}

impl SumRow {
    fn of(by: By, sum: &SpendSum, most: f64, rest: &str) -> Self {
        let path = look::encoded(&sum.key);
        let (name, href) = match by {
            By::Tenant if sum.key.is_empty() => ("no tenant".to_owned(), String::new()),
            By::Tenant => (sum.key.clone(), look::tenant_href(&sum.key)),
            By::Pool => (sum.key.clone(), format!("/ops/spend?by=tenant&pool={path}{rest}")),
            _ if sum.key.is_empty() => ("sandboxes".to_owned(), String::new()),
            _ => (sum.key.clone(), String::new()),
        };
        #[expect(clippy::cast_possible_truncation, reason = "a share of a hundred")]
        let share = if most > 0.0 { (sum.usd / most * 100.0) as i64 } else { 0 };
        Self { name, href, share, sum: sum.clone(), rest: false }
    }

    fn hours(&self) -> String {
        if self.rest { "–".to_owned() } else { look::decimal(Some(self.sum.sandbox_hours)) }
    }

    fn tokens(&self, count: impl look::As<i64>) -> String {
        if self.rest { "–".to_owned() } else { look::count(count) }
    }

    /// What those that are not shown come to.
    fn others(rows: &[Self], days: &[SpendDay]) -> Option<Self> {
        let (shown, of) = (rows.len(), rows.first()?.sum.of);
        let hidden = of - i64::try_from(shown).unwrap_or(0);
        let left = |all: f64, of: fn(&SpendSum) -> f64| (all - rows.iter().map(|row| of(&row.sum)).sum::<f64>()).max(0.0);
        let model_usd = left(days.iter().map(|day| day.model_usd).sum(), |sum| sum.model_usd);
        let sandbox_usd = left(days.iter().map(|day| day.sandbox_usd).sum(), |sum| sum.sandbox_usd);
        let turns = (days.iter().map(|day| day.turns).sum::<i64>() - rows.iter().map(|row| row.sum.turns).sum::<i64>()).max(0);
        let sum = SpendSum { model_usd, sandbox_usd, usd: model_usd + sandbox_usd, turns, ..rows[0].sum.clone() };
        (hidden > 0).then(|| Self { name: format!("{} others", look::count(hidden)), href: String::new(), share: 0, sum, rest: true })
    }
}

impl Sums {
    async fn of(app: &App, wanted: &Wanted) -> Result<Self, Fault> {
        let (by, filter) = (wanted.by()?, wanted.filter()?);
        let (sums, days) = tokio::join!(sums_of(app, by, &filter), days_of(app, &filter));
        let most = sums.value.iter().filter_map(|all| all.first()).map(|sum| sum.usd).fold(0.0, f64::max);
        let rest = if wanted.days.is_empty() { String::new() } else { format!("&days={}", filter.days) };
        let rows = sums.value.as_deref().map(|sums| {
            let mut rows: Vec<SumRow> = sums.iter().map(|sum| SumRow::of(by, sum, most, &rest)).collect();
            rows.extend(days.value.as_deref().and_then(|days| SumRow::others(&rows, days)));
            rows
        });
        let name = BYS.iter().find(|(of, ..)| *of == by).map_or("", |(_, name, _)| name);
        Ok(Self { late: late(&sums), by: name, rows, again: format!("/ops/spend/sums?{}", wanted.query(name)) })
    }
}

/// Today, and whether turns start.
#[derive(Template)]
#[template(path = "spend_live.html")]
struct Live {
    late: Option<String>,
    fleet: Option<Arc<FleetMoney>>,
    mark: Mark,
    budget: Budget,
    tiles: Vec<Tile>,
    unpriced_pools: Vec<String>,
    audit: Vec<AuditRow>,
    may_act: bool,
    as_of: DateTime<Utc>,
}

/// What is the matter with the fleet, in a word.
fn state(fleet: Option<&FleetMoney>, budget: &Budget) -> Mark {
    match fleet {
        None => look::mark("s-pending", "?", "not known"),
        Some(fleet) if fleet.stopped_at.is_some() => look::mark("s-failed", "■", "stopped"),
        Some(_) if budget.is_spent() => look::mark("s-failed", "✕", "budget spent"),
        Some(_) => look::mark("s-completed", "●", "turns start"),
    }
}

/// What the hour that runs costs: turns as those of the last one, sandboxes as many as there are now.
pub(super) fn sandboxes_an_hour(rooms: &[PoolRoom]) -> f64 {
    rooms.iter().map(PoolRoom::usd_per_hour).sum()
}

fn tiles(days: Option<&Vec<SpendDay>>, rooms: Option<&Vec<PoolRoom>>) -> Vec<Tile> {
    let today = days.and_then(|days| days.last());
    let amount = |usd: Option<f64>| usd.map_or("–".to_owned(), look::dollars);
    let tile = |name, value, note: &str| Tile { name, value, note: note.to_owned(), class: "" };
    let before = days.and_then(|days| days.split_last()).map(|(_, before)| before);
    #[expect(clippy::cast_precision_loss, reason = "a month")]
    let average = before.map(|before| total(before) / before.len().max(1) as f64);
    let running: i64 = rooms.into_iter().flatten().map(|room| room.metered).sum();
    vec![
        tile("Models", amount(today.map(|day| day.model_usd)), "today"),
        tile("Sandboxes", amount(today.map(|day| day.sandbox_usd)), "today"),
        tile("Turns ended", today.map_or("–".to_owned(), |day| look::count(day.turns)), "today"),
        tile("Sandboxes, an hour", amount(rooms.map(|rooms| sandboxes_an_hour(rooms))), &format!("{} run now", look::count(running))),
        tile("A day, on average", amount(average), "the 29 days before"),
        tile("Last 30 days", amount(days.map(|days| total(days))), "with today"),
    ]
}

async fn acts(app: &App) -> sqlx::Result<Vec<AuditRow>> {
    let name = app.store.fleet().await?.name;
    app.store.audit(Some(("fleet", &name)), None, ACTS).await
}

impl Live {
    async fn of(app: &App, may_act: bool) -> Self {
        let month = SpendFilter { days: 30, ..SpendFilter::default() };
        let (fleet, days, rooms, audit, clock) = tokio::join!(
            app.desk.part("fleet money", FRESH, || app.store.fleet_money()),
            days_of(app, &month),
            app.desk.part("rooms", FRESH, || app.store.rooms()),
            app.desk.part("acts on the fleet", FRESH, || acts(app)),
            app.desk.part("clock", FRESH, || app.store.clock()),
        );
        let money = fleet.value.as_deref();
        let budget = Budget { spent: money.map_or(0.0, |money| money.today_usd), limit: money.and_then(|money| money.budget_usd_per_day) };
        let unpriced = |room: &&PoolRoom| room.sandbox_usd_per_hour.is_none();
        Self {
            late: late(&fleet).or_else(|| late(&days)).or_else(|| late(&rooms)),
            mark: state(money, &budget),
            tiles: tiles(days.value.as_deref(), rooms.value.as_deref()),
            unpriced_pools: rooms.value.iter().flat_map(|rooms| rooms.iter()).filter(unpriced).map(|room| room.pool.clone()).collect(),
            audit: audit.value.as_deref().cloned().unwrap_or_default(),
            fleet: fleet.value,
            budget,
            may_act,
            as_of: clock.value.map(|now| *now).unwrap_or_default(),
        }
    }
}

#[derive(Template)]
#[template(path = "spend.html")]
struct SpendPage {
    frame: Frame,
    wanted: Wanted,
    pools: Vec<String>,
    live: Live,
    days: Days,
    sums: Sums,
    may_act: bool,
}

impl SpendPage {
    fn budget(&self) -> String {
        money::typed(self.live.budget.limit)
    }

    fn is_chosen(&self, days: impl look::As<i64>) -> bool {
        let days = days.get();
        self.wanted.days == days.to_string() || (self.wanted.days.is_empty() && days == 30)
    }

    fn filtered(&self) -> bool {
        !self.wanted.tenant.is_empty() || !self.wanted.pool.is_empty()
    }
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    let filter = wanted.filter()?;
    let (live, days, sums) =
        tokio::join!(Box::pin(Live::of(&app, viewer.may_act)), Days::of(&app, &filter), Box::pin(Sums::of(&app, &wanted)));
    let rooms = app.desk.part("rooms", FRESH, || app.store.rooms()).await;
    let pools = rooms.value.iter().flat_map(|rooms| rooms.iter()).map(|room| room.pool.clone()).collect();
    let frame = Frame::of(&viewer, "/ops/spend", "Spend");
    Ok(page_of(&SpendPage { frame, wanted, pools, live, days, sums: sums?, may_act: viewer.may_act }))
}

/// What of it refreshes itself with every tick.
pub async fn live(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    Ok(part_of(&Box::pin(Live::of(&app, viewer.may_act)).await))
}

/// The days alone.
pub async fn days(_: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&Days::of(&app, &wanted.filter()?).await))
}

/// The sums alone.
pub async fn sums(_: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&Box::pin(Sums::of(&app, &wanted)).await?))
}
