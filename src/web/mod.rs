//! The HTTP API, over the same SQL functions that everybody may call.
//!
//! | file | part |
//! | --- | --- |
//! | `mod` | every route, in one table; what is around them |
//! | `enqueue`, `turns`, `sessions`, `blocks`, `artifacts`, `queue` | a resource each |
//! | `webhooks`, `deliveries` | who is told that turns end, and what became of it |
//! | `keys` | users' own keys to the model |
//! | `streams` | server-sent events: one reader's backlog, then what the hub tells |
//! | `hub` | one query for all readers that have caught up |
//! | `previews` | the second lane: blocks while they grow |
//! | `progress`, `position` | where a reader is, and what it is told next: pure |
//! | `auth`, `rights` | tokens, scopes, bounds; those of streams that are open |
//! | `request`, `problem`, `respond` | what comes in, what is wrong with it, what goes out |
//! | `document` | the OpenAPI document and the page that shows it |
//! | `ops` | the dashboard, for people |
//! | `chat` | a page to talk to an agent, on a server without tokens |
//! | `server` | connections: limits and the end |

mod artifacts;
mod auth;
mod blocks;
mod chat;
mod deliveries;
mod document;
mod enqueue;
mod hub;
mod keys;
mod ops;
mod position;
mod previews;
mod problem;
mod progress;
mod queue;
mod request;
mod respond;
mod rights;
mod server;
mod sessions;
mod shapes;
mod streams;
mod turns;
mod usage;
mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::IntoResponse as _;
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::info;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::{SCOPES, new_token};
use hub::Hub;
use problem::Problem;
use queue::{QueueStats, Recent};
use rights::Rights;

use crate::config::{self, Config};
use crate::keys::Vault;
use crate::store::Store;
use crate::webhooks::Registry;

/// What every handler shares.
#[derive(Debug, Clone)]
pub struct App {
    store: Store,
    config: Arc<config::Web>,
    hub: Hub,
    rights: Rights,
    registry: Arc<Registry>,
    /// Seals users' own keys.
    vault: Vault,
    /// Whoever can reach it may do everything: on its own machine only.
    open: bool,
    stop: CancellationToken,
    stats: Arc<Recent<QueueStats>>,
    ready: Arc<Recent<()>>,
    desk: Arc<ops::Desk>,
}

/// Every route there is.
fn table() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::base())
        .routes(routes!(enqueue::enqueue, turns::list))
        .routes(routes!(turns::read, turns::edit, turns::withdraw))
        .routes(routes!(turns::cancel))
        .routes(routes!(turns::retry))
        .routes(routes!(blocks::read))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::read))
        .routes(routes!(streams::turn))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::read, sessions::change))
        .routes(routes!(streams::session))
        .routes(routes!(sessions::interrupt))
        .routes(routes!(sessions::token))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::read, webhooks::change, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(deliveries::test))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::replay_failed))
        .routes(routes!(deliveries::read))
        .routes(routes!(deliveries::replay))
        .routes(routes!(keys::give, keys::read, keys::forget))
        .routes(routes!(usage::sums))
        .routes(routes!(queue::stats))
        .routes(routes!(queue::health))
        .routes(routes!(queue::ready))
        .routes(routes!(document::json))
        .routes(routes!(document::page))
}

/// The OpenAPI document, as it is served.
pub fn openapi() -> serde_json::Value {
    document::complete(table().into_openapi())
}

fn router(app: App) -> Router {
    let (routes, _) = table().split_for_parts();
    let routes = if app.open { routes.merge(chat::routes()) } else { routes };
    let routes = routes
        .merge(ops::routes())
        .layer(axum::middleware::from_fn_with_state(app.clone(), auth::same_machine))
        .layer(CatchPanicLayer::custom(|_| Problem::new("internal", "Something went wrong here.").into_response()));
    let routes = match cors(&app.config.cors_origins) {
        Ok(Some(cors)) => routes.layer(cors),
        _ => routes,
    };
    routes.layer(axum::middleware::from_fn(respond::finish)).with_state(app)
}

/// Which pages of elsewhere may ask. `None`: none.
fn cors(origins: &str) -> anyhow::Result<Option<CorsLayer>> {
    let origins: Vec<&str> = origins.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    let allowed = match origins[..] {
        [] => return Ok(None),
        ["*"] => AllowOrigin::any(),
        _ => {
            let values = origins.iter().map(|origin| {
                let good = origin.contains("://") && !origin.ends_with('/') && *origin != "*";
                anyhow::ensure!(good, "web.cors_origins has \"{origin}\"; write origins like https://app.example, with commas between");
                Ok(HeaderValue::from_str(origin)?)
            });
            AllowOrigin::list(values.collect::<anyhow::Result<Vec<_>>>()?)
        }
    };
    let asked = ["idempotency-key", "last-event-id", "x-request-id"].map(HeaderName::from_static);
    let told = ["location", "retry-after", "x-request-id", "idempotency-replayed"].map(HeaderName::from_static);
    let cors = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(asked.into_iter().chain([header::AUTHORIZATION, header::CONTENT_TYPE]).collect::<Vec<_>>())
        .expose_headers(told)
        .max_age(std::time::Duration::from_secs(3600));
    Ok(Some(cors))
}

/// Fails for settings that can't work.
pub fn check(config: &config::Web) -> anyhow::Result<()> {
    cors(&config.cors_origins)?;
    anyhow::ensure!(config.reader_events_max > 0, "web.reader_events_max must be more than zero");
    anyhow::ensure!(config.connections_max > 0, "web.connections_max must be more than zero");
    for (name, duration) in [
        ("arrival_max", config.arrival_max),
        ("stall_max", config.stall_max),
        ("heartbeat", config.heartbeat),
        ("stream_max", config.stream_max),
        ("poll", config.poll),
        ("poll_unheard", config.poll_unheard),
        ("session_token_max", config.session_token_max),
    ] {
        anyhow::ensure!(!duration.is_zero(), "web.{name} must be more than zero");
    }
    Ok(())
}

/// A server that has its port and takes requests as soon as it is run.
#[derive(Debug)]
pub struct Web {
    listener: TcpListener,
    store: Store,
    config: Arc<config::Web>,
    registry: Arc<Registry>,
    vault: Vault,
    open: bool,
}

impl Web {
    /// Takes the port. `open`: without tokens, which is for loopback only.
    pub async fn bind(store: Store, config: &Config, open: bool) -> anyhow::Result<Self> {
        let at = config.web.listen;
        anyhow::ensure!(
            !open || at.ip().is_loopback(),
            "without tokens anybody who reaches it could do everything, so it listens on loopback only, not on {at}; \
             leave --open out and make a token: turnmill token create NAME"
        );
        let registry = Arc::new(Registry::new(store.clone(), config)?);
        let vault = Vault::new(config.keys.master.expose_secret())?;
        let listener = TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))?;
        Ok(Self { listener, store, config: Arc::new(config.web.clone()), registry, vault, open })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then within `web.drain_max` no more.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let address = self.address()?;
        info!(%address, open = self.open, "HTTP API on http://{address}");
        let hub = Hub::start(self.store.clone(), self.config.clone(), stop.clone());
        let rights = Rights::default();
        tokio::spawn(rights.clone().keep(self.store.clone(), stop.clone()));
        let app = App {
            store: self.store,
            config: self.config.clone(),
            hub,
            rights,
            registry: self.registry,
            vault: self.vault,
            open: self.open,
            stop: stop.clone(),
            stats: Arc::default(),
            ready: Arc::default(),
            desk: Arc::default(),
        };
        server::serve(self.listener, router(app), self.config, stop).await;
        Ok(())
    }
}
