//! Somebody who is told: an HTTP server on loopback that behaves as it is asked to, and what a test of webhooks does with it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use turnmill::config::Config;
use turnmill::keys::Vault;
use turnmill::store::{Bounds, Delivery, Endpoint};
use turnmill::turn::Ending;
use turnmill::webhooks::{Courier, Made, Registry, Wanted};

use crate::harness::{Fleet, settle_and_free, until};

/// What it answers.
#[derive(Debug, Clone)]
pub enum Manner {
    Status(u16),
    /// With a status and a Retry-After.
    Later(u16, &'static str),
    Redirect(String),
    /// 200, so much later.
    Slow(Duration),
    /// Nothing.
    Hang,
    /// 200, and then a body without an end.
    Endless,
}

/// One request that it got.
#[derive(Debug, Clone)]
pub struct Got {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// As the specification's own library sees it.
    pub fn verifies_with(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

struct Inside {
    manner: Mutex<Manner>,
    got: Mutex<Vec<Got>>,
}

pub struct Receiver {
    pub url: String,
    inside: Arc<Inside>,
    serving: JoinHandle<()>,
}

impl Receiver {
    pub async fn start(manner: Manner) -> Self {
        Self::at("127.0.0.1:0", manner).await
    }

    pub async fn at(address: &str, manner: Manner) -> Self {
        let inside = Arc::new(Inside { manner: Mutex::new(manner), got: Mutex::default() });
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}/hooks", listener.local_addr().unwrap());
        let routes = axum::Router::new().fallback(take).with_state(inside.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, inside, serving }
    }

    pub fn port(&self) -> u16 {
        reqwest::Url::parse(&self.url).unwrap().port().unwrap()
    }

    pub fn answers(&self, manner: Manner) {
        *self.inside.manner.lock().unwrap() = manner;
    }

    pub fn got(&self) -> Vec<Got> {
        self.inside.got.lock().unwrap().clone()
    }

    /// All that it got, once that is so many.
    pub async fn has_got(&self, count: usize) -> Vec<Got> {
        until("the receiver is told", || async { Some(self.got()).filter(|got| got.len() >= count) }).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(State(inside): State<Arc<Inside>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    inside.got.lock().unwrap().push(Got { headers, body });
    let manner = inside.manner.lock().unwrap().clone();
    let answer = Response::builder();
    match manner {
        Manner::Status(status) => answer.status(status).body(Body::from("thanks")).unwrap(),
        Manner::Later(status, when) => answer.status(status).header("retry-after", when).body(Body::empty()).unwrap(),
        Manner::Redirect(to) => answer.status(302).header("location", to).body(Body::empty()).unwrap(),
        Manner::Slow(pause) => {
            tokio::time::sleep(pause).await;
            answer.status(200).body(Body::empty()).unwrap()
        }
        Manner::Hang => std::future::pending().await,
        Manner::Endless => {
            let more = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096])));
            answer.status(200).body(Body::from_stream(more)).unwrap()
        }
    }
}

/// The settings of a server whose receivers are on loopback, quick enough for tests.
pub fn config() -> Config {
    let mut config = Config::load(None).unwrap();
    config.webhooks.allow_loopback();
    config.webhooks.poll = Duration::from_millis(50);
    config
}

/// A worker's courier, by itself.
pub struct RunningCourier {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl RunningCourier {
    pub fn start(fleet: &Fleet, config: &Config) -> Self {
        let vault = Vault::new(secrecy::ExposeSecret::expose_secret(&config.keys.master)).unwrap();
        Self::run(Courier::new(fleet.store.clone(), config.webhooks.clone(), vault).unwrap())
    }

    pub fn run(courier: Courier) -> Self {
        let stop = CancellationToken::new();
        Self { running: tokio::spawn(courier.run(Arc::new(Notify::new()), stop.clone())), stop }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

impl Fleet {
    /// An endpoint that hears of everything.
    pub async fn endpoint(&self, url: &str) -> Made {
        self.endpoint_that(Wanted { url: url.to_owned(), ..Wanted::default() }).await
    }

    pub async fn endpoint_that(&self, wanted: Wanted) -> Made {
        self.registry(&config()).add(wanted).await.unwrap().expect("there is room for it")
    }

    pub fn registry(&self, config: &Config) -> Registry {
        Registry::new(self.store.clone(), config).unwrap()
    }

    pub async fn endpoint_now(&self, made: &Made) -> Endpoint {
        self.store.endpoint(&made.endpoint_id, &Bounds::default()).await.unwrap().unwrap()
    }

    /// What it was and is to be told, the oldest first.
    pub async fn told(&self, made: &Made) -> Vec<Delivery> {
        let mut all = self.store.deliveries(&made.endpoint_id, None, None, 1000).await.unwrap();
        all.reverse();
        all
    }

    /// The only delivery, when it is as wanted.
    pub async fn delivery_that(&self, made: &Made, what: &str, is: impl Fn(&Delivery) -> bool) -> Delivery {
        until(what, || async { self.told(made).await.pop().filter(|last| is(last)) }).await
    }

    /// Ends so many turns, one after another.
    pub async fn turns_end(&self, count: usize) {
        let worker = self.worker("ends").await;
        for _ in 0..count {
            self.enqueue("hi").await;
            settle_and_free(&self.store, &worker.claim_one().await, Ending::Completed).await;
        }
    }

    /// Makes what waits due, instead of waiting for it.
    pub async fn all_is_due(&self, made: &Made) {
        self.sql("UPDATE turnmill.outbox SET next_at = clock_timestamp() WHERE endpoint_id = $1 AND state = 'pending'", &made.endpoint_id)
            .await;
        self.sql("UPDATE turnmill.webhook_endpoints SET not_before = NULL WHERE id = $1", &made.endpoint_id).await;
    }
}
