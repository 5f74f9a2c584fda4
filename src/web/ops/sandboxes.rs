//! *Sandboxes*: what every slot holds, what is paused beside them, and what E2B reports that nobody knows. To kill one is to
//! ask for it: a worker does it, and whoever uses it finds out as with any sandbox that vanishes.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::deed::{Ask, Deed};
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of, part_of};
use super::lists::{self, some};
use super::look::{self, Mark};
use super::turn::Nothing;
use crate::store::{HeldFilter, HeldSlot, Orphan, ParkedSandbox, SandboxPlace};

/// Slots that are shown at most.
const SLOTS: i64 = 500;

/// Paused sandboxes of a page.
const PARKED: i64 = 100;

/// Orphans that are shown at most.
const ORPHANS: i64 = 200;

/// What the list of paused ones is under.
const LIST: &str = "ops-parked";

/// States, as they are chosen.
const STATES: [(&str, &str); 7] = [
    ("wrong", "leaked or overdue"),
    ("creating", "creating"),
    ("busy", "busy"),
    ("warm", "warm"),
    ("pausing", "pausing"),
    ("releasing", "releasing"),
    ("parked", "paused"),
];

/// The filter, as the address has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    q: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    pool: String,
    #[serde(default)]
    worker: String,
    /// Where the page of paused ones begins.
    #[serde(default)]
    after: String,
}

impl Wanted {
    fn filter(&self) -> Result<HeldFilter, Problem> {
        lists::checked(&[&self.q, &self.state, &self.pool, &self.worker])?;
        if !self.state.is_empty() && !STATES.iter().any(|(state, _)| *state == self.state) {
            return Err(Problem::parameter("state", "state is wrong, creating, busy, warm, pausing, releasing or parked"));
        }
        Ok(HeldFilter { pool: some(&self.pool), state: some(&self.state), worker: some(&self.worker), text: some(&self.q) })
    }

    fn query(&self) -> String {
        lists::query_of(&[("q", &self.q), ("state", &self.state), ("pool", &self.pool), ("worker", &self.worker)])
    }
}

/// A slot in the list.
struct Held {
    slot: HeldSlot,
    mark: Mark,
    /// What is to be known of it.
    note: String,
    silent: bool,
    /// Its sandbox, as a step of a path; empty: it can't be killed by hand.
    kill: String,
}

impl Held {
    fn of(slot: HeldSlot) -> Self {
        let note = match (&slot.kill_at, slot.leaked, slot.overdue, slot.retire) {
            (Some(_), ..) => "being killed, as somebody asked",
            (_, true, ..) => "no turn holds it",
            (_, _, true, _) => "should be gone by now",
            (.., true) => "above the cap: goes away",
            _ => "",
        };
        let killable = slot.kill_at.is_none() && slot.state != "releasing";
        Self {
            mark: look::slot(&slot.state, slot.phase.as_deref(), slot.leaked || slot.overdue),
            note: note.to_owned(),
            silent: slot.silent_s.is_some_and(|silent| silent > crate::verdict::SILENT.as_secs_f64()),
            kill: slot.sandbox_id.as_deref().filter(|_| killable).map(look::encoded).unwrap_or_default(),
            slot,
        }
    }
}

#[derive(Template)]
#[template(path = "sandboxes_live.html")]
struct Live {
    slots: Vec<Held>,
    slots_more: bool,
    parked: Vec<ParkedSandbox>,
    parked_next: String,
    orphans: Vec<Orphan>,
    query: String,
    after: String,
    filtered: bool,
    /// Whether slots, and paused ones, are looked for at all.
    shows: (bool, bool),
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl Live {
    async fn of(app: &App, wanted: &Wanted, may_act: bool) -> Result<Self, Fault> {
        let filter = wanted.filter()?;
        let after = lists::read_place(LIST, &wanted.after)?;
        let shows = (wanted.state != "parked", matches!(wanted.state.as_str(), "" | "parked") && wanted.worker.is_empty());
        let slots = async { if shows.0 { app.store.held_slots(&filter, SLOTS + 1).await } else { Ok(Vec::new()) } };
        let parked = async { if shows.1 { app.store.parked_sandboxes(&filter, &after, PARKED + 1).await } else { Ok(Vec::new()) } };
        let (mut slots, mut parked, orphans, as_of) = tokio::try_join!(slots, parked, app.store.orphans(ORPHANS), app.store.clock())?;
        let many = |count: usize, most: i64| i64::try_from(count).unwrap_or(i64::MAX) > most;
        let (slots_more, parked_more) = (many(slots.len(), SLOTS), many(parked.len(), PARKED));
        slots.truncate(usize::try_from(SLOTS).unwrap_or(0));
        parked.truncate(usize::try_from(PARKED).unwrap_or(0));
        let query = wanted.query();
        Ok(Self {
            slots: slots.into_iter().map(Held::of).collect(),
            slots_more,
            parked_next: parked.last().filter(|_| parked_more).map(|p| lists::place(LIST, p.due_at, &p.sandbox_id)).unwrap_or_default(),
            parked,
            orphans: if wanted.state.is_empty() && wanted.worker.is_empty() { orphans } else { Vec::new() },
            filtered: !query.is_empty(),
            query,
            after: look::encoded(&wanted.after),
            shows,
            may_act,
            as_of,
        })
    }
}

#[derive(Template)]
#[template(path = "sandboxes.html")]
struct SandboxesPage {
    frame: Frame,
    wanted: Wanted,
    pools: Vec<String>,
    live: Live,
}

impl SandboxesPage {
    fn states() -> [(&'static str, &'static str); 7] {
        STATES
    }
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    let live = Live::of(&app, &wanted, viewer.may_act).await?;
    let pools = app.store.rooms().await?.into_iter().map(|room| room.pool).collect();
    Ok(page_of(&SandboxesPage { frame: Frame::of(&viewer, "/ops/sandboxes", "Sandboxes"), wanted, pools, live }))
}

/// What of it refreshes itself.
pub async fn live(viewer: Viewer, State(app): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Fault> {
    Ok(part_of(&Live::of(&app, &wanted, viewer.may_act).await?))
}

/// What killing it would come to; `None`: nothing.
fn consequence(place: &SandboxPlace) -> Option<String> {
    let session = place.session_id.as_deref().map(look::short_id).unwrap_or_default();
    let turn = place.turn_id.as_deref().map(look::short_id);
    let next =
        "begins in a new sandbox, from the conversation and the files that were saved after its last turn, as far as its pool saves them.";
    match (place.place.as_str(), turn) {
        _ if place.asked => None,
        ("releasing" | "doomed", _) => None,
        ("creating" | "busy", Some(turn)) => {
            let lost = match place.sandboxes_lost.unwrap_or(0) {
                0 => "none before".to_owned(),
                n => format!("{n} before"),
            };
            let phase = place.phase.as_deref().unwrap_or("agent");
            Some(format!(
                "Turn {turn} runs in it (phase {phase}).\n\nIt starts over in a new sandbox, from the state in which it began; what it has \
                 said stays, as an earlier generation.\n\nIt has lost {lost}: with more than its workers allow \
                 (retry.sandboxes_lost_max, 1 by default) it fails with sandbox_lost instead."
            ))
        }
        ("creating" | "busy", None) => Some("No turn runs in it: its slot leaks. It comes free.".to_owned()),
        ("warm" | "pausing", _) => {
            Some(format!("No turn runs in it; it is kept for session {session}, whose next turn {next} Its slot comes free."))
        }
        ("parked", _) => Some(format!("It is paused, and kept for session {session}, whose next turn {next}")),
        _ => Some(
            "No slot knows it, so no turn can be in it. Workers kill it by themselves after a grace; this does not wait for that."
                .to_owned(),
        ),
    }
}

/// Asks whether to kill one.
pub async fn ask_kill(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let (place, totals) = tokio::try_join!(app.store.sandbox_place(&id), app.store.queue_totals())?;
    let place = place.ok_or_else(Problem::not_found)?;
    let consequence = consequence(&place);
    let when = if totals.workers == 0 { "No worker is alive: it is done as soon as one is." } else { "A worker does it within seconds." };
    Ok(Ask {
        title: "Kill this sandbox?".to_owned(),
        nothing: consequence.is_none(),
        about: consequence
            .map_or("It is being killed already. Nothing would change.".to_owned(), |what| format!("{id}\n\n{what}\n\n{when}")),
        button: "Kill the sandbox".to_owned(),
        harmful: true,
        sql: Some(format!("SELECT turnmill.kill_sandbox({});", look::sql(&id))),
        ..Ask::of(&viewer, "/ops/sandboxes", format!("/ops/sandboxes/{}/kill", look::encoded(&id)), "/ops/sandboxes")
    }
    .show())
}

/// Asks workers to kill it.
pub async fn kill(State(app): State<App>, Id(id): Id, deed: Deed<Nothing>) -> Result<Response, Fault> {
    app.store.kill_sandbox_by(&deed.actor, &id).await?;
    Ok(Redirect::to("/ops/sandboxes").into_response())
}
