//! One request, and what its answer means.

use std::error::Error as _;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::timeout;

use super::guard::{Forbidden, Guard};
use super::pace::retry_after;
use crate::store::Due;

/// How much of an answer's body is taken, and for how long: nobody reads it, but who is cut off while he still writes may take
/// his delivery for failed.
const BODY_MAX_BYTES: usize = 16 * 1024;
const BODY_MAX: Duration = Duration::from_secs(1);

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A 2xx.
    Delivered(u16),
    /// Anything else.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Status of the answer, if there was one.
    pub status: Option<u16>,
    /// What was wrong, for the endpoint's owner. Nothing of the answer is in it.
    pub error: String,
    /// 410: it will never come back.
    pub gone: bool,
    /// What it asks for.
    pub retry_after: Option<Duration>,
}

impl Failure {
    fn before_an_answer(error: String) -> Self {
        Self { status: None, error, gone: false, retry_after: None }
    }
}

/// Two clients, because a client's resolver doesn't know what for it is asked.
#[derive(Debug, Clone)]
pub struct Poster {
    guard: Guard,
    tls: Client,
    plain: Client,
    limit: Duration,
}

impl Poster {
    /// Fails when the machine has no CA certificates. `limit`: for a whole request.
    pub fn new(guard: Guard, limit: Duration) -> anyhow::Result<Self> {
        crate::tls::install();
        let client = |plain: bool| {
            Client::builder()
                .http1_only()
                .redirect(Policy::none())
                // A proxy would connect on our behalf, to whatever it can reach.
                .no_proxy()
                .dns_resolver(guard.resolver(plain))
                // Each request is a connection to an address that was looked at just now.
                .pool_max_idle_per_host(0)
                .timeout(limit)
                .user_agent(concat!("turnmill/", env!("CARGO_PKG_VERSION"), " (webhooks)"))
                .build()
                .context("no HTTP client: are the system's CA certificates installed (package ca-certificates)?")
        };
        Ok(Self { tls: client(false)?, plain: client(true)?, guard, limit })
    }

    /// Tells an endpoint once.
    pub async fn post(&self, due: &Due, signature: &str) -> Outcome {
        let Ok(url) = Url::parse(&due.url) else {
            return Outcome::Failed(Failure::before_an_answer("its URL is none".to_owned()));
        };
        let plain = url.scheme() == "http";
        if let Err(forbidden) = self.guard.literal(&url, plain) {
            return Outcome::Failed(Failure::before_an_answer(forbidden.to_string()));
        }
        let client = if plain { &self.plain } else { &self.tls };
        let request = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &due.id)
            .header("webhook-timestamp", due.now_s)
            .header("webhook-signature", signature)
            .body(due.body.clone());
        match request.send().await {
            Ok(answer) => {
                let outcome = judge(&answer);
                drop(timeout(BODY_MAX, read_a_little(answer)).await);
                outcome
            }
            Err(error) => Outcome::Failed(Failure::before_an_answer(self.said(&error))),
        }
    }

    fn said(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("no answer within {}", humantime::format_duration(self.limit));
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
            if cause.is::<Forbidden>() {
                break;
            }
        }
        // Without the URL, which may have something secret in its query.
        if error.source().is_none() { "the request failed".to_owned() } else { cause.to_string() }
    }
}

fn judge(answer: &Response) -> Outcome {
    let status = answer.status();
    if status.is_success() {
        return Outcome::Delivered(status.as_u16());
    }
    let error = match status {
        StatusCode::GONE => "it answered 410 Gone".to_owned(),
        _ if status.is_redirection() => format!("it answered {status}: redirects are not followed; give the endpoint its final URL"),
        _ => format!("it answered {status}"),
    };
    let gone = status == StatusCode::GONE;
    Outcome::Failed(Failure { status: Some(status.as_u16()), error, gone, retry_after: retry_after(answer.headers()) })
}

async fn read_a_little(answer: Response) {
    let (mut chunks, mut left) = (answer.bytes_stream(), BODY_MAX_BYTES);
    while let Some(Ok(chunk)) = chunks.next().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
