//! A turn's transcript: blocks as they are shown, a page of them, and what comes next.
//!
//! Blocks come in order. What belongs together (a result to its call, what a subagent says to the call that started it) is
//! put together by the browser; without scripts it stands in order.

use std::time::Duration;

use askama::Template;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::super::App;
use super::super::blocks;
use super::super::problem::Problem;
use super::super::request::Id;
use super::enter::Viewer;
use super::frame::{Fault, part_of};
use super::{look, markdown};
use crate::store::{Place, Said, SaidPage};

/// Blocks of one page.
pub const PAGE: i64 = 200;

/// How long a browser's question waits for an answer that is not there yet: less than what proxies in between take for dead.
const WAIT: Duration = Duration::from_secs(25);

/// Characters of a call's parameters that are shown in its line.
const LINE_CHARS: usize = 140;

/// A block, ready to be shown. `html` is harmless.
#[expect(clippy::struct_excessive_bools, reason = "a template asks them one by one")]
pub struct Shown {
    /// Its place.
    pub seq: i32,
    /// Of the style.
    pub class: &'static str,
    /// What it is, in a word or two.
    pub head: String,
    /// One line of what is in it.
    pub line: String,
    /// What is in it.
    pub html: String,
    /// Folded at first.
    pub folded: bool,
    /// Starts over: this is its first block of another generation.
    pub starts_over: Option<i32>,
    /// When it was committed.
    pub at: DateTime<Utc>,
    /// Seconds since the turn began.
    pub offset: String,
    /// The call that it is, or that it answers.
    pub tool: String,
    /// It answers that call.
    pub answers: bool,
    /// The call whose subagent said it.
    pub parent: String,
    /// Something in it was cut.
    pub cut: bool,
    /// What went wrong.
    pub is_error: bool,
}

fn text<'a>(content: &'a Value, key: &str) -> &'a str {
    content[key].as_str().unwrap_or_default()
}

/// The first line, cut.
fn first_line(text: &str, chars: usize) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.chars().count() <= chars { line.to_owned() } else { line.chars().take(chars).collect::<String>() + "…" }
}

/// What a call is about, in a line: its only text, or the JSON.
fn call_line(parameters: &Value) -> String {
    const TELLING: [&str; 8] = ["command", "file_path", "path", "pattern", "query", "url", "description", "prompt"];
    let told = TELLING.iter().find_map(|key| parameters[*key].as_str());
    first_line(told.unwrap_or(&parameters.to_string()), LINE_CHARS)
}

impl Shown {
    /// Of a block of a turn that began then.
    pub fn of(block: &Said, began: DateTime<Utc>) -> Self {
        let content = &block.content;
        let mut shown = Self {
            seq: block.seq,
            class: "b-content",
            head: String::new(),
            line: String::new(),
            html: String::new(),
            folded: false,
            starts_over: None,
            at: block.created_at,
            offset: look::age(look::between(began, block.created_at)),
            tool: text(content, "tool_use_id").to_owned(),
            answers: false,
            parent: block.parent_tool_use_id.clone().unwrap_or_default(),
            cut: block.cut,
            is_error: false,
        };
        match block.kind.as_str() {
            "thinking" => {
                (shown.class, shown.head, shown.folded) = ("b-thinking", "Thinking".to_owned(), true);
                shown.line = first_line(text(content, "text"), LINE_CHARS);
                shown.html = markdown::render(text(content, "text"));
            }
            "tool_use" => {
                (shown.class, shown.folded) = ("b-tool", true);
                shown.head = first_line(text(content, "tool_name"), 80);
                shown.line = call_line(&content["parameters"]);
                let whole = match &content["parameters"] {
                    Value::String(cut) => cut.clone(),
                    value => serde_json::to_string_pretty(value).unwrap_or_default(),
                };
                shown.html = markdown::pre(&whole);
            }
            "tool_result" => {
                let failed = content["error"].as_str();
                let said = failed.unwrap_or(text(content, "result"));
                (shown.class, shown.folded, shown.answers) = ("b-result", true, true);
                (shown.head, shown.is_error) = (if failed.is_some() { "Error" } else { "Result" }.to_owned(), failed.is_some());
                shown.line = first_line(said, LINE_CHARS);
                shown.html = markdown::pre(said);
            }
            _ => shown.say(content),
        }
        shown
    }

    fn say(&mut self, content: &Value) {
        match text(content, "kind") {
            "error" => (self.class, self.head, self.is_error) = ("b-error", "Error".to_owned(), true),
            "warning" | "retraction" | "context_lost" => (self.class, self.head) = ("b-note", text(content, "kind").replace('_', " ")),
            _ => {}
        }
        self.html = markdown::render(text(content, "text"));
    }
}

/// Blocks, ready to be shown, after those of a generation.
pub fn shown(blocks: &[Said], began: DateTime<Utc>, mut generation: Option<i32>) -> Vec<Shown> {
    let one = |block: &Said| {
        let mut shown = Shown::of(block, began);
        let before = generation.replace(block.generation);
        shown.starts_over = before.filter(|before| *before != block.generation).map(|_| block.generation);
        shown
    };
    blocks.iter().map(one).collect()
}

/// A page of the transcript.
#[derive(Template)]
#[template(path = "said.html")]
pub struct Transcript {
    /// Of this turn, as a step of a path.
    pub path: String,
    /// In order.
    pub blocks: Vec<Shown>,
    /// There are some before them, and the first of these is before this.
    pub before: Option<i32>,
    /// The last one that is shown.
    pub last: i32,
    /// The generation of that.
    pub generation: i32,
    /// There will be no more.
    pub closed: bool,
    /// Whole texts can be had: not in a file that stands alone.
    pub links: bool,
}

impl Transcript {
    /// The last page.
    pub fn of(turn_id: &str, page: &SaidPage, began: DateTime<Utc>, closed: bool) -> Self {
        Self {
            path: look::encoded(turn_id),
            blocks: shown(&page.blocks, began, None),
            before: page.blocks.first().map(|block| block.seq).filter(|_| page.more),
            last: page.blocks.last().map_or(-1, |block| block.seq),
            generation: page.blocks.last().map_or(1, |block| block.generation),
            closed,
            links: true,
        }
    }
}

/// Which blocks.
#[derive(Debug, Deserialize)]
pub struct Which {
    after: Option<i32>,
    before: Option<i32>,
    generation: Option<i32>,
}

/// Blocks before one; or after one, as soon as there are any.
pub async fn page(_: Viewer, State(app): State<App>, Id(id): Id, Query(which): Query<Which>) -> Result<Response, Fault> {
    let turn = app.store.ops_turn(&id).await?.ok_or_else(Problem::not_found)?;
    let began = turn.started_at.unwrap_or(turn.created_at);
    if let Some(before) = which.before {
        let page = app.store.said_before(&id, before, PAGE).await?;
        return Ok(part_of(&Transcript::of(&id, &page, began, true)));
    }
    let after = which.after.unwrap_or(-1);
    let place = Place { session_id: turn.session_id, ordinal: turn.ordinal, seq: after, last_ordinal: turn.ordinal };
    let now = blocks::look(&app, &place, 1).await?;
    if now.blocks.is_empty() && !now.state.ended() {
        blocks::news(&app, &place, now, Instant::now() + WAIT).await?;
    }
    // The end first: what is read after it is all that there is.
    let ended = app.store.ops_turn(&id).await?.is_none_or(|turn| turn.completed_at.is_some());
    let page = app.store.said_after(&id, after, PAGE).await?;
    let mut transcript = Transcript::of(&id, &page, began, ended && !page.more);
    transcript.blocks = shown(&page.blocks, began, which.generation);
    transcript.before = None;
    transcript.last = transcript.last.max(after);
    Ok(part_of(&transcript))
}

/// One block, whole, as it is stored.
pub async fn block(
    _: Viewer,
    State(app): State<App>,
    axum::extract::Path((id, seq)): axum::extract::Path<(String, i32)>,
) -> Result<Response, Fault> {
    let content = app.store.block(&id, seq).await?.ok_or_else(Problem::not_found)?;
    let text = serde_json::to_string_pretty(&content).unwrap_or_default();
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}
