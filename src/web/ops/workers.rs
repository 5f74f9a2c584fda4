//! *Workers*: who is alive, with how much, and since when; and asking one to end in order.

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use chrono::{DateTime, Utc};

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::deed::{Ask, Deed};
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of, part_of};
use super::glance::Part;
use super::look::{self, Mark};
use super::turn::Nothing;
use crate::store::WorkerRow;

/// How old what is shown may be.
const FRESH: Duration = Duration::from_millis(500);

/// A worker in the list.
struct Shown {
    row: WorkerRow,
    mark: Mark,
    share: i64,
    path: String,
    may_drain: bool,
}

fn alive(row: &WorkerRow) -> bool {
    row.alive && row.state != "gone"
}

/// Takes more turns than it has.
fn room(row: &WorkerRow) -> i64 {
    if row.state == "active" && row.alive { (i64::from(row.turns_max) - row.turns).max(0) } else { 0 }
}

impl Shown {
    fn of(row: &WorkerRow) -> Self {
        Self {
            mark: look::worker(&row.state, row.alive),
            share: row.turns * 100 / i64::from(row.turns_max.max(1)),
            path: look::encoded(&row.id),
            may_drain: alive(row) && row.drain_at.is_none(),
            row: row.clone(),
        }
    }
}

#[derive(Template)]
#[template(path = "workers_live.html")]
struct Live {
    late: Option<String>,
    known: bool,
    /// Alive or with turns.
    rows: Vec<Shown>,
    /// Of the last hour.
    gone: Vec<Shown>,
    turns: i64,
    turns_max: i64,
    versions: Vec<String>,
    may_act: bool,
    as_of: DateTime<Utc>,
}

impl Live {
    async fn of(app: &App, may_act: bool) -> Self {
        let part = app.desk.part("workers", FRESH, || app.store.workers()).await;
        let clock = app.desk.part("clock", FRESH, || app.store.clock()).await;
        let all: &[WorkerRow] = part.value.as_deref().map_or(&[], Vec::as_slice);
        let (here, gone): (Vec<&WorkerRow>, Vec<&WorkerRow>) = all.iter().partition(|row| row.state != "gone" || row.turns > 0);
        let mut versions: Vec<String> = here.iter().filter(|row| alive(row)).map(|row| row.version.clone()).collect();
        versions.sort();
        versions.dedup();
        Self {
            late: late(&part),
            known: part.value.is_some(),
            turns: here.iter().map(|row| row.turns).sum(),
            turns_max: here.iter().filter(|row| alive(row)).map(|row| i64::from(row.turns_max)).sum(),
            rows: here.into_iter().map(Shown::of).collect(),
            gone: gone.into_iter().map(Shown::of).collect(),
            versions,
            may_act,
            as_of: clock.value.map(|now| *now).unwrap_or_default(),
        }
    }
}

/// What is to be said of a part that could not be asked anew.
pub fn late<T>(part: &Part<T>) -> Option<String> {
    let ago = part.late?;
    let shown = if ago.is_zero() { String::new() } else { format!(" Shown is what it was {} ago.", look::age(ago.as_secs_f64())) };
    Some(format!("The database does not answer in time.{shown}"))
}

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersPage {
    frame: Frame,
    live: Live,
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    let live = Live::of(&app, viewer.may_act).await;
    Ok(page_of(&WorkersPage { frame: Frame::of(&viewer, "/ops/workers", "Workers"), live }))
}

/// What of it refreshes itself.
pub async fn live(viewer: Viewer, State(app): State<App>) -> Result<Response, Fault> {
    Ok(part_of(&Live::of(&app, viewer.may_act).await))
}

/// What draining one of these would come to; `None`: nothing.
fn consequence(row: &WorkerRow, all: &[WorkerRow]) -> Option<String> {
    if !alive(row) || row.drain_at.is_some() {
        return None;
    }
    let others: Vec<&WorkerRow> = all.iter().filter(|other| other.id != row.id && other.state == "active" && other.alive).collect();
    let room: i64 = others.iter().map(|other| self::room(other)).sum();
    let turns = if row.turns == 1 { "its 1 turn".to_owned() } else { format!("its {} turns", look::count(row.turns)) };
    let adopted = match (row.turns, others.len()) {
        (0, 0) => "It has no turns; no other worker is alive, so no turn starts until one is.".to_owned(),
        (0, _) => "It has no turns.".to_owned(),
        (_, 0) => format!(
            "No other worker is alive: nobody copies what the agents of {turns} say until one is, and their sandboxes end some \
             minutes later if none comes."
        ),
        (n, many) => {
            let workers = if many == 1 { "1 other worker adopts".to_owned() } else { format!("{} other workers adopt", look::count(many)) };
            let rest = if room < n {
                format!(" They have room for {} at once; the rest waits for it, while its agents run on.", look::count(room))
            } else {
                String::new()
            };
            format!(
                "Their agents run on; {workers} them at the byte where this one stops: no block is lost, and no attempt is charged.{rest}"
            )
        }
    };
    let hands = if row.turns > 0 { format!("hands {turns} over") } else { "has nothing to hand over".to_owned() };
    Some(format!(
        "With its next heartbeat it takes nothing new, {hands} and exits with code 0, as at SIGTERM.\n\n{adopted}\n\nWhat keeps workers \
         running there (Kubernetes, systemd) may start another in its place."
    ))
}

/// Asks whether to drain one.
pub async fn ask_drain(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let all = app.store.workers().await?;
    let row = all.iter().find(|row| row.id == id).ok_or_else(Problem::not_found)?;
    let consequence = consequence(row, &all);
    Ok(Ask {
        title: "Drain this worker?".to_owned(),
        nothing: consequence.is_none(),
        about: consequence.map_or_else(
            || {
                if row.alive {
                    "It drains already. Nothing would change."
                } else {
                    "It is not alive: others have adopted its turns, or will."
                }
                .to_owned()
            },
            |what| format!("{id}\n\n{what}"),
        ),
        button: "Drain the worker".to_owned(),
        harmful: true,
        sql: Some(format!("SELECT turnmill.drain_worker({});", look::sql(&id))),
        shell: Some(format!("kill -TERM {}  # on {}", row.pid, row.host)),
        ..Ask::of(&viewer, "/ops/workers", format!("/ops/workers/{}/drain", look::encoded(&id)), "/ops/workers")
    }
    .show())
}

/// Asks it to end in order.
pub async fn drain(State(app): State<App>, Id(id): Id, deed: Deed<Nothing>) -> Result<Response, Fault> {
    app.store.drain_worker_by(&deed.actor, &id).await?;
    app.desk.forget("workers");
    Ok(Redirect::to("/ops/workers").into_response())
}
