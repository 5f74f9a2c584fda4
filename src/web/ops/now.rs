//! *Now*: is it working, what waits and why, what does every slot do.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};

use super::super::App;
use super::enter::Viewer;
use super::frame::{Fault, Frame, page_of, part_of};
use super::glance::Part;
use super::look::{self, Mark};
use super::tiles::{self, Tile};
use crate::store::{Failure, Minute, Oldest, PoolRoom, SlotCell, Starts, Wait, WorkerRow};
use crate::verdict::{FLEET_STOPPED, Verdict};
use crate::worker::sampler;

/// How old what is shown may be.
const FRESH: Duration = Duration::from_secs(1);

/// The same for what changes once a minute.
const SLOW: Duration = Duration::from_secs(5);

/// Kinds of failures that are shown.
const FAILURES: i64 = 12;

/// Minutes that are drawn.
const MINUTES: i32 = 120;

/// Everything that refreshes itself.
pub(super) struct Now {
    verdict: Part<(Verdict, Option<DateTime<Utc>>)>,
    oldest: Part<Option<Oldest>>,
    pub(super) rooms: Part<Vec<PoolRoom>>,
    pub(super) cells: Part<Vec<SlotCell>>,
    pub(super) waits: Part<Vec<Wait>>,
    starts: Part<Starts>,
    failures: Part<Vec<Failure>>,
    workers: Part<Vec<WorkerRow>>,
    pub(super) minutes: Part<Vec<Minute>>,
}

impl Now {
    async fn look(app: &App) -> Self {
        let (store, desk) = (&app.store, &app.desk);
        let judge = || async {
            let (_, verdict) = sampler::look(store).await?;
            // A stop of the fleet says itself since when.
            let since = if verdict.code == FLEET_STOPPED { None } else { store.verdict_since(verdict.code).await? };
            Ok((verdict, since))
        };
        let (verdict, oldest, rooms, cells, waits, starts, failures, workers, minutes) = tokio::join!(
            desk.part("verdict", FRESH, judge),
            desk.part("oldest", FRESH, || store.oldest_ready()),
            desk.part("rooms", FRESH, || store.rooms()),
            desk.part("cells", FRESH, || store.slot_cells()),
            desk.part("waits", FRESH, || store.waits()),
            desk.part("starts", SLOW, || store.starts()),
            desk.part("failures", SLOW, || store.failures(FAILURES)),
            desk.part("workers", FRESH, || store.workers()),
            desk.part("minutes", SLOW, || store.minutes(MINUTES)),
        );
        Self { verdict, oldest, rooms, cells, waits, starts, failures, workers, minutes }
    }

    /// Parts that have never been answered.
    fn unknown(&self) -> Vec<&'static str> {
        let known = [
            ("slots", self.cells.value.is_some()),
            ("waits", self.waits.value.is_some()),
            ("starts", self.starts.value.is_some()),
            ("failures", self.failures.value.is_some()),
            ("workers", self.workers.value.is_some()),
        ];
        known.iter().filter(|(_, known)| !known).map(|(name, _)| *name).collect()
    }

    /// Parts that could not be asked anew, and for how long the oldest of them has not been.
    fn late(&self) -> Option<String> {
        let late = [
            ("verdict", self.verdict.late),
            ("oldest waiting", self.oldest.late),
            ("pools", self.rooms.late),
            ("slots", self.cells.late),
            ("waits", self.waits.late),
            ("start-up times", self.starts.late),
            ("failures", self.failures.late),
            ("workers", self.workers.late),
            ("rates", self.minutes.late),
        ];
        let names: Vec<&str> = late.iter().filter(|(_, late)| late.is_some()).map(|(name, _)| *name).collect();
        let oldest = late.iter().filter_map(|(_, late)| *late).max()?;
        let what = if names.len() == late.len() { "Nothing on this page".to_owned() } else { format!("Not current: {}", names.join(", ")) };
        let rest = if names.len() == late.len() { " is current: the database does not answer in time" } else { "" };
        let shown =
            if oldest.is_zero() { String::new() } else { format!(" Shown is what it was {} ago.", look::age(oldest.as_secs_f64())) };
        Some(format!("{what}{rest}.{shown}"))
    }
}

impl Live {
    /// Whether something is known of a part, so that nothing in it means that there is nothing.
    fn knows(&self, part: &str) -> bool {
        !self.unknown.contains(&part)
    }
}

/// A cell of the board.
struct Cell {
    mark: Mark,
    href: String,
    title: String,
    stale: bool,
    pool: String,
    slot: i64,
    turn: String,
    worker: String,
    age: String,
    silent: String,
    cost: String,
    sandbox: String,
}

fn cell(row: &SlotCell) -> Cell {
    let mark = look::slot(&row.state, row.phase.as_deref(), row.leaked || row.overdue);
    let age = look::maybe_age(row.age_s);
    let silent = row.silent_s.is_some_and(|silent| silent > crate::verdict::SILENT.as_secs_f64());
    let mut title = format!("slot {}, {}", row.id, mark.word);
    if row.state != "free" {
        let _ = write!(title, ", for {age}");
    }
    if let Some(cost) = row.cost_usd {
        let _ = write!(title, ", {}", look::money(cost));
    }
    if silent {
        let _ = write!(title, ", no word for {}", look::maybe_age(row.silent_s));
    }
    Cell {
        href: row.turn_id.as_deref().map(|id| format!("/ops/turns/{}", look::encoded(id))).unwrap_or_default(),
        mark,
        title,
        stale: silent,
        pool: row.pool.clone(),
        slot: row.id,
        turn: row.turn_id.clone().unwrap_or_default(),
        worker: row.worker_id.clone().unwrap_or_default(),
        age,
        silent: look::maybe_age(row.silent_s),
        cost: look::maybe_money(row.cost_usd),
        sandbox: row.sandbox_id.clone().unwrap_or_default(),
    }
}

/// Turns that wait for the same.
struct Waiting {
    words: String,
    means: &'static str,
    href: String,
    pages: Vec<(String, &'static str)>,
    turns: String,
    share: i64,
    oldest: Option<DateTime<Utc>>,
}

/// Median and 95th of one wait.
struct Latency {
    name: &'static str,
    means: &'static str,
    p50: String,
    p95: String,
}

#[derive(Template)]
#[template(path = "now_live.html")]
struct Live {
    level: &'static str,
    fleet_stopped: bool,
    sentence: String,
    since: Option<DateTime<Utc>>,
    late: Option<String>,
    /// Parts of which nothing is known yet.
    unknown: Vec<&'static str>,
    as_of: DateTime<Utc>,
    oldest: Option<OldestShown>,
    tiles: Vec<Tile>,
    cells: Vec<Cell>,
    cells_more: bool,
    counts: Vec<(Mark, usize)>,
    waits: Vec<Waiting>,
    latencies: Vec<Latency>,
    starts: i64,
    rooms: Option<Arc<Vec<PoolRoom>>>,
    failures: Vec<Failure>,
    workers: Vec<WorkerShown>,
}

struct OldestShown {
    id: String,
    href: String,
    age: String,
    reason: String,
    means: &'static str,
}

struct WorkerShown {
    row: WorkerRow,
    mark: Mark,
    share: i64,
}

#[derive(Template)]
#[template(path = "now.html")]
struct NowPage {
    frame: Frame,
    live: Live,
    charts: Charts,
}

#[derive(Template)]
#[template(path = "now_charts.html")]
struct Charts {
    minutes: Vec<Minute>,
}

impl Charts {
    /// Those whose counts are final; with the gauges of the one that runs.
    fn of(minutes: Option<&Arc<Vec<Minute>>>) -> Self {
        let minutes = minutes.map(|all| all.iter().filter(|minute| minute.closed).cloned().collect()).unwrap_or_default();
        Self { minutes }
    }
}

impl Live {
    fn of(now: &Now, as_of: DateTime<Utc>) -> Self {
        let (level, sentence, since) = match now.verdict.value.as_deref() {
            Some((verdict, since)) => (verdict.level.as_str(), verdict.text.clone(), *since),
            None => ("down", "The database does not answer.".to_owned(), None),
        };
        let level = if now.verdict.is_late() { "down" } else { level };
        let cells: Vec<Cell> = now.cells.value.iter().flat_map(|cells| cells.iter()).map(cell).collect();
        let starts = now.starts.value.as_deref().cloned().unwrap_or_default();
        Self {
            level,
            fleet_stopped: now.verdict.value.as_deref().is_some_and(|(verdict, _)| verdict.code == FLEET_STOPPED),
            sentence,
            since,
            late: now.late(),
            unknown: now.unknown(),
            as_of,
            oldest: now.oldest.value.as_deref().and_then(|oldest| oldest.as_ref()).map(oldest_shown),
            tiles: tiles::of(now),
            counts: counts(&cells),
            cells_more: i64::try_from(cells.len()).unwrap_or(0) >= crate::store::CELLS_MAX,
            cells,
            waits: waits(now.waits.value.as_deref()),
            latencies: latencies(&starts),
            starts: starts.turns,
            rooms: now.rooms.value.clone(),
            failures: now.failures.value.as_deref().cloned().unwrap_or_default(),
            workers: now
                .workers
                .value
                .iter()
                .flat_map(|rows| rows.iter())
                .filter(|row| row.state != "gone" || row.turns > 0)
                .map(worker)
                .collect(),
        }
    }
}

fn oldest_shown(oldest: &Oldest) -> OldestShown {
    let reason = oldest.reason.as_deref().unwrap_or_default();
    OldestShown {
        href: format!("/ops/turns/{}", look::encoded(&oldest.turn_id)),
        id: oldest.turn_id.clone(),
        age: look::age(oldest.age_s),
        reason: look::reason_words(reason).to_owned(),
        means: look::reason_means(reason),
    }
}

fn worker(row: &WorkerRow) -> WorkerShown {
    WorkerShown { mark: look::worker(&row.state, row.alive), share: row.turns * 100 / i64::from(row.turns_max.max(1)), row: row.clone() }
}

/// How many cells of each kind there are, in the order in which a turn goes through them.
fn counts(cells: &[Cell]) -> Vec<(Mark, usize)> {
    let mut counts: Vec<(Mark, usize)> = Vec::new();
    for cell in cells {
        let kind =
            if cell.mark.class == "c-sandbox" { Mark { word: "sandbox".to_owned(), ..cell.mark.clone() } } else { cell.mark.clone() };
        match counts.iter_mut().find(|(mark, _)| *mark == kind) {
            Some((_, n)) => *n += 1,
            None => counts.push((kind, 1)),
        }
    }
    let order = ["c-leaked", "c-sandbox", "c-prepare", "c-agent", "c-finish", "c-warm", "c-pausing", "c-releasing", "c-free"];
    counts.sort_by_key(|(mark, _)| order.iter().position(|class| *class == mark.class));
    counts
}

fn waits(rows: Option<&Vec<Wait>>) -> Vec<Waiting> {
    let most = rows.into_iter().flatten().map(|wait| wait.turns).max().unwrap_or(1).max(1);
    let shown = |wait: &Wait| {
        let reason = wait.reason.as_deref().unwrap_or_default();
        Waiting {
            words: look::reason_words(reason).to_owned(),
            means: look::reason_means(reason),
            href: if reason.is_empty() { "/ops/turns?status=pending".to_owned() } else { format!("/ops/turns?reason={reason}") },
            pages: look::reason_pages(reason, None),
            turns: if wait.turns >= crate::store::COUNTED_MAX {
                format!("{}+", look::count(crate::store::COUNTED_MAX))
            } else {
                look::count(wait.turns)
            },
            share: wait.turns * 100 / most,
            oldest: wait.oldest_at,
        }
    };
    rows.into_iter().flatten().map(shown).collect()
}

fn latencies(starts: &Starts) -> Vec<Latency> {
    let one = |name, means, values: &Option<Vec<f64>>| {
        let at = |nth: usize| look::maybe_age(values.as_ref().and_then(|values| values.get(nth)).copied());
        Latency { name, means, p50: at(0), p95: at(1) }
    };
    vec![
        one("Wait", "from enqueue to the first claim", &starts.wait),
        one("Start-up", "from claim to a running agent", &starts.startup),
        one("First block", "from the first claim to the first block", &starts.first_block),
    ]
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    let now = Box::pin(Now::look(&app)).await;
    let charts = Charts::of(now.minutes.value.as_ref());
    let live = Live::of(&now, clock(&app).await);
    Ok(page_of(&NowPage { frame: Frame::of(&viewer, "/ops", "Now"), live, charts }))
}

/// What of it refreshes itself.
pub async fn live(_: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    Ok(part_of(&Live::of(&Box::pin(Now::look(&app)).await, clock(&app).await)))
}

/// The tables that are drawn.
pub async fn charts(_: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    let minutes = app.desk.part("minutes", SLOW, || app.store.minutes(MINUTES)).await;
    Ok(part_of(&Charts::of(minutes.value.as_ref())))
}

/// The database's clock, or what it was when it last answered.
async fn clock(app: &App) -> DateTime<Utc> {
    let now = app.desk.part("clock", Duration::from_millis(500), || app.store.clock()).await;
    now.value.map(|now| *now).unwrap_or_default()
}
