//! The words in which the tests of the HTTP API are written.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use turnmill::config::{self, Config};
use turnmill::store::{self, Bounds, Store};
use turnmill::web::{SCOPES, Web, new_token};

use crate::harness::{Claimer, Fleet, Holding as _, PATIENCE, append, ending};
use turnmill::store::Claimed;
use turnmill::turn::Ending;

/// A web server over a database, and a client that may do everything.
pub struct Site {
    pub fleet: Fleet,
    pub url: String,
    pub token: String,
    pub client: reqwest::Client,
    stop: CancellationToken,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
    hears: bool,
    master: String,
    open: bool,
    change: Arc<dyn Fn(&mut config::Web) + Send + Sync>,
}

/// What came back.
#[derive(Debug)]
pub struct Said {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Said {
    /// The code of a problem, which is one in every respect.
    pub fn problem(&self) -> &str {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status.as_u16(), "{self:?}");
        assert_eq!(self.body["request_id"], self.headers["x-request-id"].to_str().unwrap(), "{self:?}");
        let code = self.body["code"].as_str().unwrap();
        assert_eq!(self.body["type"], format!("/docs#{code}"), "{self:?}");
        code
    }

    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.body
    }
}

impl Site {
    pub async fn start(pool: PgPool) -> Self {
        Self::with(Fleet::new(pool), |_| {}).await
    }

    pub async fn with(fleet: Fleet, change: impl Fn(&mut config::Web) + Send + Sync + 'static) -> Self {
        turnmill::tls::install();
        let (token, stored) = new_token("the tests", &SCOPES, Bounds::default(), None);
        fleet.store.add_token(&stored).await.unwrap();
        let mut site = Self {
            fleet,
            url: String::new(),
            token,
            client: reqwest::Client::new(),
            stop: CancellationToken::new(),
            serving: None,
            hears: true,
            open: false,
            master: String::new(),
            change: Arc::new(change),
        };
        site.serve("127.0.0.1:0").await;
        site
    }

    /// Where LISTEN can't work, as through PgBouncer without Postgres' own address.
    pub async fn that_hears_nothing(mut self) -> Self {
        self.stop().await;
        self.hears = false;
        self.serve("127.0.0.1:0").await;
        self
    }

    /// With a master key.
    pub async fn that_seals(mut self, master: &str) -> Self {
        self.stop().await;
        master.clone_into(&mut self.master);
        self.serve("127.0.0.1:0").await;
        self
    }

    /// Without tokens, with the pages for people, as in `turnmill dev`.
    pub async fn open(fleet: Fleet, change: impl Fn(&mut config::Web) + Send + Sync + 'static) -> Self {
        let mut site = Self::with(fleet, change).await;
        site.stop().await;
        site.open = true;
        site.serve("127.0.0.1:0").await;
        site
    }

    async fn serve(&mut self, listen: &str) {
        let mut config = Config::load(None).unwrap();
        config.web.listen = listen.parse().unwrap();
        config.webhooks.allow_loopback();
        config.keys.master = self.master.clone().into();
        (self.change)(&mut config.web);
        // A LISTEN keeps a connection for good: one of its own, as the server's process has it.
        // Over the tests' own connections: the one that a store has beside PgBouncer may be a LISTEN's.
        Store::new(self.fleet.pool.clone()).create_roles().await.unwrap();
        let url = format!("{}&options[role]=turnmill_web", self.fleet.pool.connect_options().to_url_lossy());
        let mut options = store::Options::new(&url, 8);
        options.limits.pgbouncer = !self.hears;
        let store = Store::lazy(&options).unwrap();
        let web = Web::bind(store, &config, self.open).await.unwrap();
        self.url = format!("http://{}", web.address().unwrap());
        self.stop = CancellationToken::new();
        self.serving = Some(tokio::spawn(web.run(self.stop.clone())));
    }

    /// Ends the server in order.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            serving.await.unwrap().unwrap();
        }
    }

    /// Tells the server to end, and waits for nothing.
    pub fn stop_now(&self) {
        self.stop.cancel();
    }

    /// A deploy: another server on the same address.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listen = self.url.trim_start_matches("http://").to_owned();
        self.serve(&listen).await;
    }

    /// A token that may do less.
    pub async fn token(&self, scopes: &[&str], bounds: Bounds) -> String {
        let (token, stored) = new_token("a test", scopes, bounds, None);
        self.fleet.store.add_token(&stored).await.unwrap();
        token
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.url))
    }

    pub async fn send(&self, request: RequestBuilder) -> Said {
        let response = timeout(PATIENCE, request.send()).await.expect("it answers").unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        Said { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    pub async fn as_who(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Said {
        let request = self.request(method, path).bearer_auth(token);
        self.send(if let Some(body) = body { request.json(&body) } else { request }).await
    }

    pub async fn get(&self, path: &str) -> Said {
        self.as_who(&self.token, "GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Said {
        self.as_who(&self.token, "POST", path, Some(body)).await
    }

    /// Enqueues into a session of project `p1`; the turn's id.
    pub async fn say(&self, session: &str, message: &str) -> String {
        let receipt =
            self.post(&format!("/v1/sessions/{session}/turns"), json!({ "user_message": message, "project_id": "p1" })).await.ok();
        receipt["turn_id"].as_str().unwrap().to_owned()
    }

    pub async fn stream(&self, path: &str, last: Option<&str>) -> Events {
        self.stream_as(&self.token, path, last).await
    }

    pub async fn stream_as(&self, token: &str, path: &str, last: Option<&str>) -> Events {
        Events::open(self.request("GET", path).bearer_auth(token), last).await.unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Sse {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

/// A stream as a client reads it.
pub struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
    /// What the client would reconnect with.
    pub last: Option<String>,
}

impl Events {
    /// Connects, with the last id that the client has.
    pub async fn open(request: RequestBuilder, last: Option<&str>) -> reqwest::Result<Self> {
        let request = if let Some(last) = last { request.header("last-event-id", last) } else { request };
        let response = request.send().await?;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Ok(Self { body: response.bytes_stream().boxed(), text: String::new(), last: last.map(str::to_owned) })
    }

    /// The next event; `None`: the stream has ended, in whatever way.
    pub async fn next(&mut self) -> Option<Sse> {
        timeout(PATIENCE, self.wait()).await.expect("the next event comes")
    }

    async fn wait(&mut self) -> Option<Sse> {
        loop {
            while let Some(at) = self.text.find("\n\n") {
                let frame: String = self.text.drain(..at + 2).collect();
                let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start().to_owned());
                if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                    let id = field("id:");
                    if id.is_some() {
                        self.last.clone_from(&id);
                    }
                    return Some(Sse { name, id, data: serde_json::from_str(&data).unwrap() });
                }
            }
            let chunk = self.body.next().await?.ok()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next one of this name, past all others.
    pub async fn until(&mut self, name: &str) -> Sse {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// All that is left of it.
    pub async fn rest(mut self) -> Vec<Sse> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// What a client makes of the events, as a page would show it: blocks by turn, of the newest generation, and statuses.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Shown {
    pub blocks: Vec<(String, i64, String)>,
    pub statuses: std::collections::BTreeMap<String, String>,
    pub ended: Vec<String>,
}

impl Shown {
    pub fn take(&mut self, event: &Sse) {
        let turn = event.data["turn_id"].as_str().unwrap_or_default().to_owned();
        match event.name.as_str() {
            "block" => {
                let seq = event.data["seq"].as_i64().unwrap();
                assert!(!self.blocks.iter().any(|(of, there, _)| *of == turn && *there == seq), "block {seq} came twice");
                self.blocks.push((turn, seq, event.data["content"]["text"].as_str().unwrap_or_default().to_owned()));
            }
            "generation" => self.blocks.retain(|(of, ..)| *of != turn),
            "status" => drop(self.statuses.insert(turn, event.data["status"].as_str().unwrap().to_owned())),
            "end" => {
                self.statuses.insert(turn.clone(), event.data["status"].as_str().unwrap().to_owned());
                assert!(!self.ended.contains(&turn), "the end of {turn} came twice");
                self.ended.push(turn);
            }
            _ => {}
        }
    }

    pub fn texts(&self) -> Vec<&str> {
        self.blocks.iter().map(|(.., text)| text.as_str()).collect()
    }
}

/// A worker's hand: writes blocks of a claimed turn and ends it.
pub struct Hand {
    pub store: Store,
    pub job: Claimed,
    at: i64,
}

impl Hand {
    pub async fn of(fleet: &Fleet, worker: &Claimer) -> Self {
        Self { store: fleet.store.clone(), job: worker.claim_one().await, at: 0 }
    }

    pub async fn write(&mut self, texts: &[&str]) {
        let append_of = self.job.append_of(self.at, self.at + 1, texts);
        assert_eq!(append(&self.store, append_of).await, store::Answer::Done);
        self.at += 1;
    }

    pub async fn end(self, how: Ending) {
        let mut last = ending(how);
        last.journal_offset = self.at;
        self.store.settle(&self.job, &last, Duration::from_secs(30)).await.unwrap().unwrap();
        self.store.slot_freed(self.job.slot_id, self.job.epoch).await.unwrap().unwrap();
    }

    /// Its sandbox is lost: the turn starts over.
    pub async fn start_over(self, worker: &Claimer) -> Self {
        let why = turnmill::turn::TurnError::new("sandbox_lost", "it is gone");
        let retry = store::Retry { delay: Duration::ZERO, charged: false, restart: true, keep: false, spent: None, why: &why };
        self.store.retry_later(&self.job, &retry, Duration::from_secs(30)).await.unwrap().unwrap();
        self.store.slot_freed(self.job.slot_id, self.job.epoch).await.unwrap().unwrap();
        Self { store: self.store.clone(), job: worker.claim_one().await, at: 0 }
    }
}
