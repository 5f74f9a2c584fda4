//! A small Messages API on loopback, as far as Claude Code needs one: it answers by script, streams as the real
//! one does, fails on demand, and keeps what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::sleep;

/// What the model says, piece by piece.
#[derive(Debug, Clone)]
pub enum Part {
    Thinking(&'static str),
    Text(&'static str),
    /// Id, name and input of a call.
    Tool(&'static str, &'static str, Value),
}

/// One answer to one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A whole message.
    Say(Vec<Part>),
    /// The same with a pause before each event.
    Slowly(Duration, Vec<Part>),
    /// Text a few letters at a time, with a pause before each event.
    Typed(Duration, Vec<Part>),
    /// The connection breaks in the middle of the message.
    Cut(Vec<Part>),
    /// An error status with the API's own type.
    Fail(u16, &'static str),
    /// Nothing, ever.
    Hang,
}

/// Tokens of every message: the real price list makes a cost of them.
pub const INPUT_TOKENS: u64 = 1000;
pub const OUTPUT_TOKENS: u64 = 100;

/// The stand-in. Each turn names its script in its prompt: `[script NAME]`; the last of a conversation counts.
#[derive(Debug, Clone, Default)]
pub struct Api {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    scripts: HashMap<String, Vec<Answer>>,
    /// Every request that was made for a script, in order.
    requests: HashMap<String, Vec<Value>>,
}

impl Api {
    /// Serves on loopback for as long as the test runs; the base URL.
    pub async fn serve(&self) -> String {
        let app = Router::new().route("/v1/messages", post(messages)).fallback(any(StatusCode::NOT_FOUND)).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    /// Sets what the requests of a script get, one after the other; the last answer is given again and again.
    pub fn script(&self, name: &str, answers: Vec<Answer>) {
        self.lock().scripts.insert(name.to_owned(), answers);
    }

    /// The requests of a script so far.
    pub fn requests(&self, name: &str) -> Vec<Value> {
        self.lock().requests.get(name).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn answer(&self, request: Value) -> Answer {
        let text = request["messages"].to_string();
        let name = text.rsplit_once("[script ").and_then(|(_, rest)| rest.split_once(']')).map(|(name, _)| name.to_owned());
        let name = name.unwrap_or_else(|| panic!("a request without a script: {text}"));
        let mut inner = self.lock();
        let seen = inner.requests.entry(name.clone()).or_default();
        seen.push(request);
        let nth = seen.len() - 1;
        let answers = inner.scripts.get(&name).unwrap_or_else(|| panic!("there is no script {name}"));
        answers.get(nth).or(answers.last()).cloned().expect("a script has answers")
    }
}

async fn messages(State(api): State<Api>, Json(request): Json<Value>) -> Response {
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    let streams = request["stream"] == true;
    let answer = api.answer(request);
    let letters = if matches!(answer, Answer::Typed(..)) { 8 } else { usize::MAX };
    let (pause, parts, cut) = match answer {
        Answer::Say(parts) => (Duration::ZERO, parts, false),
        Answer::Slowly(pause, parts) | Answer::Typed(pause, parts) => (pause, parts, false),
        Answer::Cut(parts) => (Duration::ZERO, parts, true),
        Answer::Fail(status, kind) => {
            let error = json!({ "type": "error", "error": { "type": kind, "message": format!("{kind} on demand") } });
            return (StatusCode::from_u16(status).unwrap(), Json(error)).into_response();
        }
        Answer::Hang => std::future::pending().await,
    };
    if !streams {
        return Json(whole(&model, &parts)).into_response();
    }
    let mut events = events(&model, &parts, letters);
    if cut {
        // In the middle of the last block.
        events.truncate(events.len() - 4);
    }
    let bytes = futures::stream::iter(events).then(move |(name, event)| async move {
        sleep(pause).await;
        Ok(format!("event: {name}\ndata: {event}\n\n"))
    });
    let end = futures::stream::iter(cut.then(|| Err(std::io::Error::other("cut"))));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(bytes.chain(end))).into_response()
}

fn usage(output_tokens: u64) -> Value {
    json!({ "input_tokens": INPUT_TOKENS, "output_tokens": output_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0 })
}

fn stop_reason(parts: &[Part]) -> &'static str {
    if parts.iter().any(|part| matches!(part, Part::Tool(..))) { "tool_use" } else { "end_turn" }
}

fn message(model: &str, content: &[Value], stop_reason: Option<&str>, output_tokens: u64) -> Value {
    json!({ "id": format!("msg_{:016x}", rand::random::<u64>()), "type": "message", "role": "assistant", "model": model,
        "content": content, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage(output_tokens) })
}

/// A message as the API gives it in one piece: what the CLI asks for when a stream broke.
fn whole(model: &str, parts: &[Part]) -> Value {
    let content = parts.iter().map(|part| match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Thinking(text) => json!({ "type": "thinking", "thinking": text, "signature": "c2lnbmVk" }),
        Part::Tool(id, name, input) => json!({ "type": "tool_use", "id": id, "name": name, "input": input }),
    });
    message(model, &content.collect::<Vec<_>>(), Some(stop_reason(parts)), OUTPUT_TOKENS)
}

/// A message as the API streams it.
fn events(model: &str, parts: &[Part], letters: usize) -> Vec<(&'static str, Value)> {
    let message = message(model, &[], None, 1);
    let mut events = vec![("message_start", json!({ "type": "message_start", "message": message }))];
    let typed = |text: &str, delta: fn(String) -> Value| -> Vec<Value> {
        text.chars().collect::<Vec<_>>().chunks(letters).map(|some| delta(some.iter().collect())).collect()
    };
    for (index, part) in parts.iter().enumerate() {
        let (start, deltas) = match part {
            Part::Text(text) => (json!({ "type": "text", "text": "" }), typed(text, |text| json!({ "type": "text_delta", "text": text }))),
            Part::Thinking(text) => (
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
                vec![json!({ "type": "thinking_delta", "thinking": text }), json!({ "type": "signature_delta", "signature": "c2lnbmVk" })],
            ),
            Part::Tool(id, name, input) => (
                json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
                typed(&input.to_string(), |json| json!({ "type": "input_json_delta", "partial_json": json })),
            ),
        };
        events.push(("content_block_start", json!({ "type": "content_block_start", "index": index, "content_block": start })));
        for delta in deltas {
            events.push(("content_block_delta", json!({ "type": "content_block_delta", "index": index, "delta": delta })));
        }
        events.push(("content_block_stop", json!({ "type": "content_block_stop", "index": index })));
    }
    let stop = json!({ "stop_reason": stop_reason(parts), "stop_sequence": null });
    events.push(("message_delta", json!({ "type": "message_delta", "delta": stop, "usage": usage(OUTPUT_TOKENS) })));
    events.push(("message_stop", json!({ "type": "message_stop" })));
    events
}
