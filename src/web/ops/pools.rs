//! *Pools*: whether turns of each start, and what is in the way; pausing, resuming and unblocking one. What is set of it is
//! changed in `pool_set`.

use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use chrono::{DateTime, Utc};

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::deed::{Ask, Deed};
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of, part_of};
use super::look::{self, Mark};
use super::turn::Nothing;
use super::workers::late;
use crate::store::{AuditRow, COUNTED_MAX, PoolAnswer, PoolCard, PoolChange, Wait};

/// How old what is shown may be.
const FRESH: Duration = Duration::from_millis(500);

/// Acts on a pool that its page shows.
const ACTS: i64 = 10;

/// Turns that wait for the same.
pub(super) struct Waiting {
    words: String,
    means: &'static str,
    href: String,
    pages: Vec<(String, &'static str)>,
    turns: String,
    oldest: Option<DateTime<Utc>>,
}

impl Waiting {
    fn of(pool: &str, wait: &Wait) -> Self {
        let reason = wait.reason.as_deref().unwrap_or_default();
        let filter = if reason.is_empty() { "status=pending".to_owned() } else { format!("reason={reason}") };
        Self {
            words: look::reason_words(reason).to_owned(),
            means: look::reason_means(reason),
            href: format!("/ops/turns?{filter}&pool={}", look::encoded(pool)),
            pages: look::reason_pages(reason, None),
            turns: at_most(wait.turns),
            oldest: wait.oldest_at,
        }
    }
}

/// A number that is counted up to a limit.
fn at_most(number: i64) -> String {
    if number >= COUNTED_MAX { format!("{}+", look::count(COUNTED_MAX)) } else { look::count(number) }
}

/// A pool with what its turns wait for.
pub(super) struct Row {
    pub(super) card: PoolCard,
    mark: Mark,
    path: String,
    waits: Vec<Waiting>,
}

impl Row {
    fn of(card: &PoolCard, waits: &[(String, Wait)]) -> Self {
        Self {
            mark: look::pool(&card.state),
            path: look::encoded(&card.name),
            waits: waits.iter().filter(|(pool, _)| *pool == card.name).map(|(pool, wait)| Waiting::of(pool, wait)).collect(),
            card: card.clone(),
        }
    }

    /// What the slots do, in words.
    fn doing(&self) -> String {
        let card = &self.card;
        let parts = [("run turns", card.busy), ("being created", card.creating), ("warm", card.warm), ("being given up", card.leaving)];
        let shown: Vec<String> = parts.iter().filter(|(_, n)| *n > 0).map(|(words, n)| format!("{n} {words}")).collect();
        if shown.is_empty() { "nothing held".to_owned() } else { shown.join(", ") }
    }

    fn rate(&self) -> String {
        match (self.card.create_rate, self.card.tokens) {
            (Some(rate), Some(tokens)) => format!("{rate}/s, {:.0} at once now, {} at most", tokens.floor(), self.card.create_burst),
            (Some(rate), None) => format!("{rate}/s"),
            (None, _) => "no limit of ours".to_owned(),
        }
    }

    fn keeps(&self) -> String {
        keeps(self.card.warm_s, self.card.paused_s)
    }

    fn longest_turn(&self) -> String {
        duration(self.card.turn_timeout_s)
    }

    fn longest_run(&self) -> String {
        duration(self.card.sandbox_max_s)
    }

    fn ready(&self) -> String {
        at_most(self.card.ready)
    }

    /// What E2B holds back, for how long.
    fn hold(&self) -> Option<String> {
        let seconds = look::age(self.card.hold_s?);
        Some(match self.card.held_for.as_deref() {
            Some("capacity") => format!("E2B has no room: nothing is created for {seconds}."),
            _ => format!("E2B's rate limit: nothing is created for {seconds}."),
        })
    }

    fn reported(&self) -> String {
        match (self.card.reported, self.card.reported_s) {
            (Some(n), Some(age)) => format!("{n}, asked {} ago", look::age(age)),
            (Some(n), None) => n.to_string(),
            _ => "not asked yet".to_owned(),
        }
    }

    /// Orphans, and what E2B lists beyond what is held: something is wrong.
    fn is_off(&self) -> bool {
        self.card.orphans > 0 || self.card.reported.is_some_and(|n| i64::from(n) > self.card.held())
    }
}

/// What becomes of a sandbox after its turn, in words.
pub(super) fn keeps(warm_s: i32, paused_s: i32) -> String {
    match (warm_s, paused_s) {
        (0, 0) => "killed".to_owned(),
        (warm, 0) => format!("warm for {}", duration(warm)),
        (0, paused) => format!("paused for {}", duration(paused)),
        (warm, paused) => format!("warm for {}, then paused for {}", duration(warm), duration(paused)),
    }
}

/// Seconds in a field; none is 0.
pub(super) fn typed(seconds: i32) -> String {
    if seconds == 0 { "0".to_owned() } else { duration(seconds) }
}

/// Seconds, as they are typed.
pub(super) fn duration(seconds: i32) -> String {
    humantime::format_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).to_string()
}

#[derive(Template)]
#[template(path = "pools_live.html")]
struct Live {
    late: Option<String>,
    known: bool,
    rows: Vec<Row>,
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl Live {
    async fn of(app: &App, may_act: bool) -> Self {
        let (cards, waits, clock) = tokio::join!(
            app.desk.part("pool cards", FRESH, || app.store.pool_cards(None)),
            app.desk.part("waits by pool", FRESH, || app.store.waits_by_pool()),
            app.desk.part("clock", FRESH, || app.store.clock()),
        );
        let waiting = waits.value.as_deref().map_or(&[][..], Vec::as_slice);
        Self {
            late: late(&cards).or_else(|| late(&waits)),
            known: cards.value.is_some(),
            rows: cards.value.iter().flat_map(|all| all.iter()).map(|card| Row::of(card, waiting)).collect(),
            may_act,
            as_of: clock.value.map(|now| *now).unwrap_or_default(),
        }
    }
}

#[derive(Template)]
#[template(path = "pools.html")]
struct PoolsPage {
    frame: Frame,
    live: Live,
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    let live = Live::of(&app, viewer.may_act).await;
    Ok(page_of(&PoolsPage { frame: Frame::of(&viewer, "/ops/pools", "Pools"), live }))
}

/// What of it refreshes itself.
pub async fn live(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    Ok(part_of(&Live::of(&app, viewer.may_act).await))
}

#[derive(Template)]
#[template(path = "pool_live.html")]
struct OneLive {
    row: Row,
    audit: Vec<AuditRow>,
    may_act: bool,
    as_of: DateTime<Utc>,
}

/// A pool, as it is now.
pub(super) async fn card(app: &App, name: &str) -> Result<PoolCard, Fault> {
    Ok(app.store.pool_cards(Some(name)).await?.pop().ok_or_else(Problem::not_found)?)
}

impl OneLive {
    async fn of(app: &App, name: &str, may_act: bool) -> Result<Self, Fault> {
        let card = card(app, name).await?;
        let (waits, audit, as_of) =
            tokio::try_join!(app.store.waits_by_pool(), app.store.audit(Some(("pool", name)), None, ACTS), app.store.clock())?;
        Ok(Self { row: Row::of(&card, &waits), audit, may_act, as_of })
    }
}

#[derive(Template)]
#[template(path = "pool.html")]
struct OnePage {
    frame: Frame,
    path: String,
    live: OneLive,
    may_act: bool,
}

impl OnePage {
    fn card(&self) -> &PoolCard {
        &self.live.row.card
    }

    fn rate(&self) -> String {
        self.card().create_rate.map(|rate| rate.to_string()).unwrap_or_default()
    }

    fn warm(&self) -> String {
        typed(self.card().warm_s)
    }

    fn paused(&self) -> String {
        typed(self.card().paused_s)
    }
}

/// One pool.
pub async fn one(viewer: Viewer, State(app): State<App>, Id(name): Id) -> Result<Response, Fault> {
    let live = OneLive::of(&app, &name, viewer.may_act).await?;
    let frame = Frame::of(&viewer, "/ops/pools", format!("Pool {name}"));
    Ok(page_of(&OnePage { frame, path: look::encoded(&name), live, may_act: viewer.may_act }))
}

/// What of it refreshes itself.
pub async fn one_live(viewer: Viewer, State(app): State<App>, Id(name): Id) -> Result<Response, Fault> {
    Ok(part_of(&OneLive::of(&app, &name, viewer.may_act).await?))
}

/// What is done to a pool's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Pause,
    Resume,
    Unblock,
}

impl Act {
    fn read(word: &str) -> Result<Self, Problem> {
        match word {
            "pause" => Ok(Self::Pause),
            "resume" => Ok(Self::Resume),
            "unblock" => Ok(Self::Unblock),
            _ => Err(Problem::not_found()),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Unblock => "unblock",
        }
    }

    /// States that it changes, and the one that it changes them to.
    fn states(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Pause => (&["active", "blocked"], "paused"),
            Self::Resume => (&["paused"], "active"),
            Self::Unblock => (&["blocked"], "active"),
        }
    }

    fn consequence(self, card: &PoolCard) -> String {
        let (ready, busy) = (at_most(card.ready), look::count(card.busy + card.creating));
        match self {
            Self::Pause => format!(
                "No turn of pool {} starts any more.\n\n{busy} that run go on to their ends; {ready} that could start wait, and say \
                 “pool paused”. New ones can be enqueued. Kept sandboxes stay until they are due.",
                card.name
            ),
            Self::Resume => format!(
                "Turns of pool {} start again: {ready} could, and {} slots are free. Creates keep to its rate.",
                card.name,
                look::count(card.free)
            ),
            Self::Unblock => format!(
                "E2B refused our key{}. Workers ask it every ten seconds and unblock the pool by themselves when it answers; this lets \
                 turns try at once. If E2B still refuses, the pool is blocked again, and no turn fails of it.",
                card.state_reason.as_deref().map(|why| format!(": “{why}”")).unwrap_or_default()
            ),
        }
    }
}

/// Asks whether to pause, resume or unblock one.
pub async fn ask(viewer: Viewer, State(app): State<App>, Path((name, word)): Path<(String, String)>) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let act = Act::read(&word)?;
    let card = card(&app, &name).await?;
    let (from, to) = act.states();
    let nothing = !from.contains(&card.state.as_str());
    let (path, flag) = (look::encoded(&name), if act == Act::Pause { "--pause" } else { "--resume" });
    let title = format!("{}{} this pool?", word[..1].to_uppercase(), &word[1..]);
    Ok(Ask {
        about: if nothing { format!("It is {}. Nothing would change.", card.state) } else { act.consequence(&card) },
        button: title.trim_end_matches('?').replace("this pool", "the pool"),
        title,
        harmful: act == Act::Pause,
        nothing,
        sql: Some(format!("UPDATE turnmill.pools SET state = '{to}', state_reason = NULL WHERE name = {};", look::sql(&name))),
        shell: Some(format!("turnmill pool set {name} {flag}")),
        ..Ask::of(&viewer, "/ops/pools", format!("/ops/pools/{path}/{word}"), format!("/ops/pools/{path}"))
    }
    .show())
}

/// Does it.
pub async fn act(State(app): State<App>, Path((name, word)): Path<(String, String)>, deed: Deed<Nothing>) -> Result<Response, Fault> {
    let act = Act::read(&word)?;
    let (from, to) = act.states();
    let why = (act == Act::Pause).then(|| format!("by {}: {}", deed.actor.name, deed.actor.reason));
    let change = PoolChange { state: Some(to.to_owned()), state_reason: why, ..PoolChange::default() };
    let answer = app.store.change_pool_by(&deed.actor, &name, act.word(), from, &change).await?;
    done(&app, &name, &answer)
}

/// Back to the pool, or why nothing was done.
pub(super) fn done(app: &App, name: &str, answer: &PoolAnswer) -> Result<Response, Fault> {
    match answer {
        PoolAnswer::Changed => {
            app.desk.forget("pool cards");
            Ok(Redirect::to(&format!("/ops/pools/{}", look::encoded(name))).into_response())
        }
        PoolAnswer::Unknown => Err(Problem::not_found().into()),
        PoolAnswer::Refused(state) => Err(Problem::new("conflict", format!("Pool {name} is {state} now. Nothing was changed.")).into()),
    }
}
