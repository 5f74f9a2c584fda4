//! Server-sent events of a turn and of a session.
//!
//! A stream is a task: it reads its backlog page by page, as fast as its client takes it, then joins the hub. Whatever
//! ends it, its client comes back with the position of the last event that it has. Heartbeats are comments.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;
use utoipa::ToSchema;

use super::App;
use super::auth::{Caller, TurnsRead};
use super::hub::Seat;
use super::position::{self, InSession, InTurn};
use super::problem::Problem;
use super::progress::{Event, Progress, SharedPage};
use super::request::{Id, Query};
use super::rights::Right;
use crate::store::{PageLimits, is_outage};

/// Of one reading of a backlog.
const BACKLOG: PageLimits = PageLimits { turns: 4, blocks: 200, bytes: 1 << 20, reasons: true };

/// Written ahead of what the client takes.
const FRAMES: usize = 8;

/// Before a database that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Where to begin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    after: Option<String>,
    previews: Option<bool>,
}

/// One event of a stream, for the document.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamEvent {
    /// The position, to be given back as `Last-Event-ID` or `?after=`; only blocks and ends have one.
    #[schema(required = false)]
    id: String,
    /// status, generation, block, preview, caught_up, end, reconnect. Ignore what you don't know.
    event: String,
    /// JSON: of a block as in `BlocksPage`; of a status and an end the turn's status, generation and error; of a preview as said
    /// with the stream.
    #[schema(content_media_type = "application/json")]
    data: String,
    /// Milliseconds after which to connect anew.
    #[schema(required = false)]
    retry: u32,
}

/// `Last-Event-ID`, then `?after=`; neither may be nonsense.
fn position_of<T>(headers: &HeaderMap, query: &After, read: fn(&str) -> Result<T, Problem>) -> Result<Option<T>, Problem> {
    let after = query.after.as_deref().map(read).transpose()?;
    // Empty is what a client has that has received none.
    let last = headers.get("last-event-id").filter(|id| !id.is_empty());
    let last = last.map(|id| id.to_str().map_err(|_| Problem::new("invalid_position", "Last-Event-ID is no position.")).and_then(read));
    Ok(last.transpose()?.or(after))
}

/// Stream a turn
///
/// Server-sent events: `status`, `generation`, `block`, `caught_up`, `end`, `reconnect`. The `id` of a block is its `seq`; give
/// the last one back as `Last-Event-ID` or `?after=` and nothing is missed and nothing comes twice. A `status` comes first and
/// with every change. A `generation` says that the answer starts over: drop the blocks of it that you have. `caught_up`: all
/// that was there is told, more may come. `end` has the terminal status and the id `end`; whoever reconnects with that gets 204,
/// at which browsers stop asking. `reconnect`: the server asks you to connect anew, with the last id.
///
/// With `previews=true`, and where the turn's pool has them, a `preview` has what the next block says so far: `{turn_id, generation,
/// after, parent_tool_use_id, type, tool_name, at, text}`. Put `text` behind what you have, or, with `at` 0, in its place: there is
/// one preview for each `parent_tool_use_id`. The text of a `tool_use` is the beginning of its parameters' JSON. Drop a preview with
/// the next `block` of the same `parent_tool_use_id`, with `{"withdrawn": true}`, a `generation`, an `end`, and whenever you
/// reconnect. Previews have no id, may be left out, and stop at 64 KiB.
#[utoipa::path(get, path = "/v1/turns/{turn_id}/stream", tag = "Read", operation_id = "stream_turn",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255),
        ("after" = Option<String>, Query, description = "The position to go on from: the id of the last event that was received; without it, from the beginning", pattern = "^(end|-1|[0-9]{1,9})$"),
        ("previews" = Option<bool>, Query, description = "Also `preview` events, where the turn's pool has them: what the next block says so far"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same, as browsers send it when they reconnect; it goes first", pattern = "^(|end|-1|[0-9]{1,9})$")),
    responses((status = 200, description = "The events", body = StreamEvent, content_type = "text/event-stream"),
        (status = 204, description = "It has ended, and you have all of it")))]
pub async fn turn(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(id): Id,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let at = position_of(&headers, &query, position::in_turn)?.unwrap_or(InTurn::After(-1));
    let (session, ordinal) = app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    match at {
        InTurn::End => Ok(StatusCode::NO_CONTENT.into_response()),
        InTurn::After(seq) => start(app, &caller, Progress::in_turn(session, ordinal, seq), true, &query).await,
    }
}

/// Stream a session
///
/// The events of its turns, one after another, and of those that are yet to come; it does not end by itself. As the stream of a
/// turn, but an `id` is `ORDINAL:SEQ`, and `ORDINAL:end` for the `end` of a turn, after which the next turn begins. A `status` of
/// a turn that waits may come before its time.
#[utoipa::path(get, path = "/v1/sessions/{session_id}/stream", tag = "Read", operation_id = "stream_session",
    params(("session_id" = String, Path, description = "The session", max_length = 255),
        ("after" = Option<String>, Query, description = "The position to go on from: the id of the last event that was received; without it, from the beginning", pattern = "^[1-9][0-9]{0,8}:(end|-1|[0-9]{1,9})$"),
        ("previews" = Option<bool>, Query, description = "Also `preview` events, where the turn's pool has them: what the next block says so far"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same, as browsers send it when they reconnect; it goes first", pattern = "^(|[1-9][0-9]{0,8}:(end|-1|[0-9]{1,9}))$")),
    responses((status = 200, description = "The events", body = StreamEvent, content_type = "text/event-stream")))]
pub async fn session(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(id): Id,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let at = position_of(&headers, &query, position::in_session)?.unwrap_or(InSession::START);
    let session = app.store.session(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    start(app, &caller, Progress::in_session(session.id, at), false, &query).await
}

async fn start(app: App, caller: &Caller<TurnsRead>, progress: Progress, one_turn: bool, query: &After) -> Result<Response, Problem> {
    let place = progress.place();
    // Whether what the client has still holds is asked of what it has, so that nobody is told in vain to drop it.
    let generation = if place.seq >= 0 { app.store.generation_at(&place).await? } else { None };
    let progress = progress.coming_back(generation);
    let seat = app.hub.seat().ok_or_else(|| Problem::new("too_many_readers", "This server has as many streams as it takes."))?;
    let (frames, body) = mpsc::channel(FRAMES);
    let longest = Instant::now() + app.config.stream_max.mul_f64(0.9 + rand::random::<f64>() / 10.0);
    let stream = Stream {
        until: caller.until.map_or(longest, |until| until.min(longest)),
        right: caller.token_id.as_deref().map(|id| app.rights.of(id)),
        app,
        progress,
        one_turn,
        previews: query.previews.unwrap_or(false),
        frames,
        _seat: seat,
    };
    tokio::spawn(stream.run());
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    // Proxies hold answers back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Why a stream is over before its turn is.
enum Over {
    /// The client has gone: nobody to tell.
    Gone,
    /// It is asked to connect anew.
    Reconnect(&'static str),
}

type Frame = Result<Bytes, std::convert::Infallible>;

struct Stream {
    app: App,
    progress: Progress,
    one_turn: bool,
    previews: bool,
    frames: mpsc::Sender<Frame>,
    until: Instant,
    right: Option<Right>,
    _seat: Seat,
}

impl Stream {
    async fn run(mut self) {
        // Jittered, so that those who lose a server do not all come back at once.
        let hello = format!("retry: {}\n\n", 1000 + rand::random_range(0..2000));
        if self.write(hello).await.is_err() {
            return;
        }
        if let Err(Over::Reconnect(why)) = self.tell_all().await {
            let retry = 100 + rand::random_range(0..1000);
            // One that doesn't read doesn't get this either.
            drop(self.write(format!("retry: {retry}\nevent: reconnect\ndata: {}\n\n", json!({ "reason": why }))).await);
        }
    }

    async fn tell_all(&mut self) -> Result<(), Over> {
        self.backlog().await?;
        if self.progress.over() {
            return Ok(());
        }
        let at = self.progress.place();
        let position = if self.one_turn { at.seq.to_string() } else { format!("{}:{}", at.ordinal, at.seq) };
        self.write(format!("event: caught_up\ndata: {}\n\n", json!({ "position": position }))).await?;
        self.news().await
    }

    /// What is there, as fast as the client takes it.
    async fn backlog(&mut self) -> Result<(), Over> {
        loop {
            let place = self.progress.place();
            let places = [&place];
            let read = tokio::select! {
                read = self.app.store.pages(&places, BACKLOG) => read,
                () = over(self.right.as_ref()) => return Err(Over::Reconnect("token")),
                () = self.app.stop.cancelled() => return Err(Over::Reconnect("shutdown")),
            };
            let turns: Vec<SharedPage> = match read {
                Ok(mut pages) => pages.pop().unwrap_or_default().into_iter().map(SharedPage::from).collect(),
                Err(error) if is_outage(&error) => {
                    self.write(": the database is away\n\n".to_owned()).await?;
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    warn!(%error, "A stream could not be read: {error}");
                    return Err(Over::Reconnect("error"));
                }
            };
            let told = self.progress.advance(&turns);
            for event in &told {
                self.write(self.frame(event)).await?;
            }
            let full = turns.iter().any(|turn| turn.more) || i64::try_from(turns.len()).unwrap_or(0) == BACKLOG.turns;
            if self.progress.over() || !full || told.is_empty() {
                return Ok(());
            }
            if Instant::now() > self.until {
                return Err(Over::Reconnect("time"));
            }
        }
    }

    /// What the hub says, until the turn has ended.
    async fn news(&mut self) -> Result<(), Over> {
        let mut feed = self.app.hub.join(self.progress.clone(), self.previews);
        loop {
            tokio::select! {
                event = feed.next() => match event {
                    Some(event) => {
                        self.write(self.frame(&event)).await?;
                        if self.one_turn && matches!(event, Event::End(_)) {
                            return Ok(());
                        }
                    }
                    None if self.app.stop.is_cancelled() => return Err(Over::Reconnect("shutdown")),
                    None => return Err(Over::Reconnect("too_slow")),
                },
                () = sleep(self.app.config.heartbeat) => self.write(": still here\n\n".to_owned()).await?,
                () = tokio::time::sleep_until(self.until) => return Err(Over::Reconnect("time")),
                () = over(self.right.as_ref()) => return Err(Over::Reconnect("token")),
                () = self.app.stop.cancelled() => return Err(Over::Reconnect("shutdown")),
                () = self.frames.closed() => return Err(Over::Gone),
            }
        }
    }

    async fn write(&self, text: String) -> Result<(), Over> {
        // The connection itself is cut when its client takes nothing; this is for what is in between.
        match timeout(self.app.config.stall_max * 2, self.frames.send(Ok(text.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Over::Gone),
        }
    }

    fn frame(&self, event: &Event) -> String {
        let write = |name: &str, id: Option<String>, data: String| {
            let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
            format!("{id}event: {name}\ndata: {data}\n\n")
        };
        match event {
            Event::Status(turn) => write("status", None, text(&**turn)),
            Event::Generation(turn) => {
                write("generation", None, json!({ "turn_id": turn.turn_id, "generation": turn.generation }).to_string())
            }
            Event::Block(block, ordinal) => {
                let id = if self.one_turn { block.seq.to_string() } else { format!("{ordinal}:{}", block.seq) };
                write("block", Some(id), text(&**block))
            }
            Event::Preview(data) => write("preview", None, data.to_string()),
            Event::End(turn) => {
                let id = if self.one_turn { "end".to_owned() } else { format!("{}:end", turn.ordinal) };
                write("end", Some(id), text(&**turn))
            }
        }
    }
}

/// Resolves when the stream's token is revoked; never where there is none.
async fn over(right: Option<&Right>) {
    match right {
        Some(right) => right.over().await,
        None => std::future::pending().await,
    }
}

/// One line: JSON has no line breaks of its own, whatever is in its strings.
fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
