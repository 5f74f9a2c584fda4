//! *Turn*: everything about one, on one page; and what can be done about it.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;

use super::super::App;
use super::super::problem::Problem;
use super::super::request::Id;
use super::deed::{Ask, Deed};
use super::enter::{Viewer, may_not_act};
use super::frame::{Fault, Frame, page_of, part_of};
use super::lanes::{self, Lanes};
use super::look::{self, Mark};
use super::said::{PAGE, Transcript};
use crate::store::{AuditRow, OpsTurn, Period};

/// Entries of the audit that are shown.
const AUDIT: i64 = 20;

/// What of the page refreshes itself.
#[derive(Template)]
#[template(path = "turn_live.html")]
pub struct TurnLive {
    path: String,
    turn: OpsTurn,
    mark: Mark,
    lanes: Lanes,
    periods: Vec<Period>,
    audit: Vec<AuditRow>,
    /// Attempts whose raw journal is kept, and its size.
    journals: Vec<(i32, i64)>,
    may_act: bool,
    as_file: bool,
}

impl TurnLive {
    /// Everything about a turn but what it said.
    pub async fn of(app: &App, id: &str, may_act: bool, as_file: bool) -> Result<Self, Fault> {
        let turn = app.store.ops_turn(id).await?.ok_or_else(Problem::not_found)?;
        let entries = app.store.audit(Some(("turn", id)), None, AUDIT);
        let (periods, audit, journals) = tokio::try_join!(app.store.periods(id), entries, app.store.journals(id))?;
        let mark = look::status(&turn.status, turn.wait_reason.as_deref(), turn.phase.as_deref());
        Ok(Self { path: look::encoded(id), lanes: lanes::draw(&turn, &periods), mark, periods, audit, journals, turn, may_act, as_file })
    }

    /// The turn.
    pub fn turn(&self) -> &OpsTurn {
        &self.turn
    }

    fn ended(&self) -> bool {
        self.turn.completed_at.is_some()
    }

    fn retryable(&self) -> bool {
        self.ended()
    }

    fn means(&self) -> &'static str {
        self.turn.wait_reason.as_deref().map_or("", look::reason_means)
    }

    fn waited(&self) -> String {
        let until = self.turn.started_at.or(self.turn.completed_at).unwrap_or(self.turn.now);
        look::age(look::between(self.turn.created_at, until))
    }

    fn ran(&self) -> String {
        let until = self.turn.completed_at.unwrap_or(self.turn.now);
        self.turn.started_at.map_or("–".to_owned(), |from| look::age(look::between(from, until)))
    }

    fn lease(&self) -> String {
        match self.turn.lease_until {
            Some(until) if until > self.turn.now => format!("holds for {}", look::age(look::between(self.turn.now, until))),
            Some(until) => format!("ran out {} ago", look::age(look::between(until, self.turn.now))),
            None => "handed over: the next claim adopts it".to_owned(),
        }
    }

    fn tokens(&self) -> Vec<(String, String)> {
        let known = self.turn.usage.as_ref().and_then(|usage| usage.as_object()).into_iter().flatten();
        known.filter_map(|(name, value)| Some((name.replace('_', " "), look::count(value.as_i64()?)))).collect()
    }

    fn options(&self) -> String {
        if self.turn.options.as_object().is_some_and(serde_json::Map::is_empty) { String::new() } else { self.turn.options.to_string() }
    }
}

#[derive(Template)]
#[template(path = "turn.html")]
struct TurnPage {
    frame: Frame,
    path: String,
    live: TurnLive,
    ended: bool,
    said: Transcript,
}

/// The page.
pub async fn page(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    let live = TurnLive::of(&app, &id, viewer.may_act, false).await?;
    let turn = live.turn();
    let ended = turn.completed_at.is_some();
    let said = app.store.said_before(&id, i32::MAX, PAGE).await?;
    let said = Transcript::of(&id, &said, turn.started_at.unwrap_or(turn.created_at), ended);
    let frame = Frame::of(&viewer, "/ops/turns", format!("Turn {}", look::short_id(&id)));
    Ok(page_of(&TurnPage { frame, path: look::encoded(&id), ended, live, said }))
}

/// What the agent of an attempt printed, byte for byte, as it is kept: gzip.
pub async fn journal(_: Viewer, State(app): State<App>, Path((id, attempt)): Path<(String, i32)>) -> Result<Response, Fault> {
    let journal = app.store.journal(&id, Some(attempt)).await?.ok_or_else(Problem::not_found)?;
    let mut response = journal.data.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    let name = file_name(&id);
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"journal-{name}-{attempt}.jsonl.gz\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// An id as a part of a file's name, whatever is in it.
pub fn file_name(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' }).take(80).collect()
}

/// What of it refreshes itself.
pub async fn live(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    Ok(part_of(&TurnLive::of(&app, &id, viewer.may_act, false).await?))
}

fn ask(viewer: &Viewer, id: &str, act: &str) -> Ask {
    let path = look::encoded(id);
    let curl = Some(format!("curl -X POST -H \"Authorization: Bearer $TOKEN\" \"$TURNMILL/v1/turns/{path}/{act}\""));
    Ask { curl, ..Ask::of(viewer, "/ops/turns", format!("/ops/turns/{path}/{act}"), format!("/ops/turns/{path}")) }
}

/// Asks whether to cancel.
pub async fn ask_cancel(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let turn = app.store.ops_turn(&id).await?.ok_or_else(Problem::not_found)?;
    let (about, nothing) = match (turn.status.as_str(), turn.job_state.as_deref()) {
        _ if turn.completed_at.is_some() => (format!("It is {} already. Nothing would change.", turn.status), true),
        (_, Some("leased")) => ("It runs. Its agent is stopped within a second or so; what it has said stays.".to_owned(), false),
        _ => ("It waits. It ends at once, and the next turn of its session goes on.".to_owned(), false),
    };
    let sql = Some(format!("SELECT turnmill.cancel_turn({}, 'why');", look::sql(&id)));
    Ok(Ask {
        title: "Cancel this turn?".to_owned(),
        about,
        button: "Cancel the turn".to_owned(),
        harmful: true,
        nothing,
        sql,
        ..ask(&viewer, &id, "cancel")
    }
    .show())
}

/// Asks whether to run it again.
pub async fn ask_retry(viewer: Viewer, State(app): State<App>, Id(id): Id) -> Result<Response, Fault> {
    if !viewer.may_act {
        return Err(may_not_act());
    }
    let turn = app.store.ops_turn(&id).await?.ok_or_else(Problem::not_found)?;
    let (about, nothing) = match turn.completed_at {
        Some(_) => ("Its message is enqueued again, as a new turn at the end of its session. This one stays as it is.".to_owned(), false),
        None => ("It has not ended. Cancel it first, or wait.".to_owned(), true),
    };
    let sql = Some(format!("SELECT turn_id FROM turnmill.retry_turn({});", look::sql(&id)));
    Ok(Ask {
        title: "Run this turn again?".to_owned(),
        about,
        button: "Run it again".to_owned(),
        nothing,
        sql,
        ..ask(&viewer, &id, "retry")
    }
    .show())
}

/// A form with nothing but its reason.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Cancels.
pub async fn cancel(State(app): State<App>, Id(id): Id, deed: Deed<Nothing>) -> Result<Response, Fault> {
    app.store.cancel_by(&deed.actor, &id).await?;
    poke(&app, &id).await;
    Ok(Redirect::to(&format!("/ops/turns/{}", look::encoded(&id))).into_response())
}

/// Runs it again; goes to the new turn.
pub async fn retry(State(app): State<App>, Id(id): Id, deed: Deed<Nothing>) -> Result<Response, Fault> {
    let receipt = app.store.retry_by(&deed.actor, &id).await?;
    app.hub.poke(&receipt.session_id);
    let made = receipt.turn_id.unwrap_or(id);
    Ok(Redirect::to(&format!("/ops/turns/{}", look::encoded(&made))).into_response())
}

/// Tells readers at once; they would find out by themselves.
pub async fn poke(app: &App, id: &str) {
    if let Ok(Some((session, _))) = app.store.place_of(id, &crate::store::Bounds::default()).await {
        app.hub.poke(&session);
    }
}
