//! A server that speaks E2B's API over local processes: for development, the demo and the tests.
//!
//! A sandbox is a directory, an environment and, where we are root, a user id of its own. It isolates nothing:
//! bind it to loopback only. Both planes are on one port, told apart by their paths; the sandbox is named by
//! the `E2b-Sandbox-Id` header or the `49983-ID.` host.
//!
//! | file | part |
//! | --- | --- |
//! | `control`, `lifecycle` | create, get, list; set timeout, pause, connect, kill |
//! | `templates` | templates are asked for; nothing is built |
//! | `sandboxes` | which there are, on disk, so that they survive this process |
//! | `kill` | signals to all of a sandbox's processes |
//! | `envd` | what its endpoints share: whom a request is for, Connect's shapes |
//! | `process`, `spawn`, `table` | envd's processes: the calls, how one is started, those there are |
//! | `files` | envd's uploads and downloads |
//! | `filesystem`, `watch` | envd's directories, and what changes in them |
//! | `simulated` | sandboxes without processes, for thousands of them |
//! | `acts` | the ledger of all acts, and faults on demand (`/_local/…`) |

mod acts;
mod control;
mod envd;
mod files;
mod filesystem;
mod kill;
mod lifecycle;
mod network;
mod process;
mod sandboxes;
mod simulated;
mod spawn;
mod table;
mod templates;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::info;

use acts::Acts;
pub use kill::everything_in as kill_everything_in;
use sandboxes::Sandboxes;
use templates::Templates;

use crate::agent::mock::Script;

/// Between two looks for sandboxes whose time is over.
const EXPIRY_TICK: Duration = Duration::from_millis(100);

/// How the server runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Loopback.
    pub listen: SocketAddr,
    /// Where sandboxes live.
    pub dir: PathBuf,
    /// The only account key taken; `None`: any that is not empty.
    pub api_key: Option<String>,
    /// Most sandboxes at once.
    pub concurrency: Option<u32>,
    /// Sandboxes outlive the server's end, as they always outlive its crash.
    pub keep: bool,
    /// What is called `turnmill` in every sandbox; `None`: this program.
    pub program: Option<PathBuf>,
    /// Sandboxes are no more than a script that is played: no process, no directory, gone with the server.
    pub simulate: Option<Script>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            dir: PathBuf::new(),
            api_key: None,
            concurrency: None,
            keep: false,
            program: None,
            simulate: None,
        }
    }
}

/// What every request handler shares.
#[derive(Debug, Clone)]
struct App {
    options: Arc<Options>,
    sandboxes: Arc<Sandboxes>,
    templates: Arc<Templates>,
    acts: Arc<Acts>,
}

/// Serves until `stop`; tells its address through `ready` when it takes requests.
pub async fn serve(options: Options, stop: CancellationToken, ready: oneshot::Sender<SocketAddr>) -> anyhow::Result<()> {
    anyhow::ensure!(
        options.listen.ip().is_loopback(),
        "the local server isolates nothing and listens on loopback only, not on {}",
        options.listen
    );
    let acts = Arc::new(Acts::open(&options.dir)?);
    let sandboxes = Arc::new(Sandboxes::open(&options.dir, options.program.as_deref(), options.simulate.clone(), acts.clone())?);
    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
    let address = listener.local_addr()?;
    let app = App { options: Arc::new(options), sandboxes: sandboxes.clone(), templates: Arc::default(), acts };
    let keep = app.options.keep;

    let expiry = async {
        loop {
            tokio::time::sleep(EXPIRY_TICK).await;
            sandboxes.expire().await;
        }
    };
    info!(%address, "Local E2B server on {address}");
    // Who asked for the address may have gone.
    let _ = ready.send(address);
    tokio::select! {
        ended = async { axum::serve(listener, routes(app)).await } => ended.context("the local server")?,
        () = expiry => {}
        () = stop.cancelled() => {}
    }
    if !keep {
        sandboxes.kill_all().await;
    }
    Ok(())
}

/// Every route of both planes.
fn routes(app: App) -> Router {
    Router::new()
        .route("/sandboxes", post(control::create_v1).get(control::list_v1))
        .route("/v2/sandboxes", post(control::create_v2).get(control::list_v2))
        .route("/sandboxes/{id}", get(control::get).delete(lifecycle::kill))
        .route("/sandboxes/{id}/timeout", post(lifecycle::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(lifecycle::refresh))
        .route("/sandboxes/{id}/pause", post(lifecycle::pause))
        .route("/sandboxes/{id}/resume", post(lifecycle::resume))
        .route("/sandboxes/{id}/connect", post(lifecycle::connect_v1))
        .route("/v2/sandboxes/{id}/connect", post(lifecycle::connect_v2))
        .route("/sandboxes/{id}/network", put(lifecycle::set_network))
        .route("/sandboxes/{id}/metrics", get(lifecycle::metrics))
        .route("/v3/templates", post(templates::request))
        .route("/v2/templates/{id}/builds/{build}", post(templates::build))
        .route("/templates/{id}/builds/{build}/status", get(templates::status))
        .route("/templates/{id}/files/{hash}", get(templates::files))
        .route("/templates/aliases/{alias}", get(templates::alias))
        .route("/process.Process/Start", post(process::start))
        .route("/process.Process/Connect", post(process::connect))
        .route("/process.Process/List", post(process::list))
        .route("/process.Process/SendInput", post(process::send_input))
        .route("/process.Process/CloseStdin", post(process::close_stdin))
        .route("/process.Process/Update", post(process::update))
        .route("/process.Process/SendSignal", post(process::send_signal))
        .route("/filesystem.Filesystem/Stat", post(filesystem::stat))
        .route("/filesystem.Filesystem/MakeDir", post(filesystem::make_dir))
        .route("/filesystem.Filesystem/Move", post(filesystem::move_entry))
        .route("/filesystem.Filesystem/ListDir", post(filesystem::list_dir))
        .route("/filesystem.Filesystem/Remove", post(filesystem::remove))
        .route("/filesystem.Filesystem/WatchDir", post(watch::watch_dir))
        .route("/filesystem.Filesystem/CreateWatcher", post(watch::create_watcher))
        .route("/filesystem.Filesystem/GetWatcherEvents", post(watch::get_watcher_events))
        .route("/filesystem.Filesystem/RemoveWatcher", post(watch::remove_watcher))
        .merge(
            Router::new()
                .route("/files", get(files::download).post(files::upload))
                .layer(tower_http::compression::CompressionLayer::new())
                .layer(tower_http::decompression::RequestDecompressionLayer::new()),
        )
        .route("/health", get(envd::health))
        .route("/envs", get(envd::envs))
        .route("/metrics", get(envd::metrics))
        .route("/_local/ledger", get(acts::ledger))
        .route("/_local/faults", post(acts::set_faults).patch(acts::add_faults))
        .route("/_local/templates/{id}/files/{hash}", put(templates::upload))
        .route("/_local/sandboxes/{id}", delete(lifecycle::vanish))
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// An error in E2B's own shape.
fn fault(status: StatusCode, message: &str) -> Response {
    fault_with_code(status, message, None)
}

fn fault_with_code(status: StatusCode, message: &str, error_code: Option<&str>) -> Response {
    let mut body = json!({ "code": status.as_u16(), "message": message });
    if let Some(code) = error_code {
        body["error_code"] = Value::from(code);
    }
    (status, axum::Json(body)).into_response()
}
