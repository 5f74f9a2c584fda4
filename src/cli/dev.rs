//! `turnmill dev`: everything in one process, with nothing set up, until Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use secrecy::ExposeSecret as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::note::Note;
use super::signals::{self, Stop};
use super::{admin, called, on_path, paint};
use crate::config::Config;
use crate::keys::Keyring;
use crate::local::e2b;
use crate::local::postgres::{self, Postgres};
use crate::store::{self, PoolChange, Store};
use crate::web::Web;
use crate::worker::Worker;

/// Run everything here: a private Postgres (or DATABASE_URL), the local sandboxes, a worker, the HTTP API.
///
/// Leaves nothing behind. With a `claude` on the PATH and a key in the environment, or in the .env.local here, it runs
/// the real agent, else the stand-in. Other terminals find it by themselves: turnmill enqueue 'hello' --watch
#[derive(Debug, Args)]
pub struct Dev {
    /// Use this agent: "mock", or a command line; by default claude if it and a key are there
    #[arg(long, value_name = "COMMAND", value_parser = admin::agent)]
    agent: Option<admin::Agent>,
    /// Most sandboxes at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=10000))]
    cap: i32,
}

impl Dev {
    /// Runs it.
    pub async fn run(self, config: Config) -> anyhow::Result<ExitCode> {
        let stop = signals::listen()?;
        let home = postgres::passable_tempdir("turnmill-dev-")?;
        let mut postgres = None;
        let ended = tokio::select! {
            ended = self.live(config, home.path(), &mut postgres, &stop) => ended.map(|()| ExitCode::SUCCESS),
            () = stop.now.cancelled() => {
                e2b::kill_everything_in(&sandboxes(home.path()));
                if let Some(postgres) = postgres.take() {
                    postgres.stop_now().await?;
                }
                Ok(signals::STOPPED.into())
            }
        };
        if let Some(postgres) = postgres {
            postgres.stop().await?;
        }
        ended
    }

    /// Ends when it is told to, in this order: the worker has let go, then its sandboxes end; then the database may.
    async fn live(&self, mut config: Config, home: &Path, postgres: &mut Option<Postgres>, stop: &Stop) -> anyhow::Result<()> {
        if config.database.url.expose_secret().is_empty() {
            let server = Postgres::start(&home.join("postgres"), postgres::Options::default()).await?;
            config.database.url = postgres.insert(server).url().into();
        }
        let url = config.database.url.expose_secret().to_owned();
        let store = Store::connect(&config.database.options(&url), store::PATIENCE).await?;
        store.migrate().await?;

        let server = TaskTracker::new();
        let sandboxes_stop = CancellationToken::new();
        let address = serve(&server, sandboxes(home), sandboxes_stop.clone()).await?;
        config.e2b.api_url = format!("http://{address}");
        config.e2b.sandbox_url = format!("http://{address}");
        config.e2b.api_key = "local".into();

        config.webhooks.allow_loopback();
        config.environment.fill_in_from(Path::new(".env.local"))?;
        let keyring = super::keyring(&config)?;
        let agent = self.agent(&keyring);
        let change = PoolChange { cap: Some(self.cap), agent: agent.clone(), previews: Some(true), ..PoolChange::default() };
        store.set_pool("default", &change).await?;
        // With connections of its own: a LISTEN holds one for good.
        let for_web = Store::connect(&config.database.options(&url), store::PATIENCE).await?;
        let web = web(for_web, config.clone()).await?;
        let web_address = web.address()?;
        let note = Note::leave(&url)?;
        welcome(&url, &address.to_string(), &web_address.to_string(), agent.as_deref(), &keyring, note.is_some());

        let background = TaskTracker::new();
        background.spawn(web.run(stop.in_order.clone()));
        background.close();
        let worker = Worker::register(store, Arc::new(config), keyring, &background).await?;
        let ended = worker.run(stop.in_order.clone()).await;
        stop.in_order.cancel();
        background.wait().await;
        sandboxes_stop.cancel();
        server.close();
        server.wait().await;
        ended
    }

    /// `None`: the pool's own command line, the real Claude Code.
    fn agent(&self, keyring: &Keyring) -> Option<Vec<String>> {
        match &self.agent {
            Some(agent) => Some(agent.0.clone()),
            None if keyring.source().is_some() && on_path("claude").is_some() => None,
            None => Some(admin::mock_agent()),
        }
    }
}

/// The HTTP API, without tokens; on a free port if somebody else has its own.
async fn web(store: Store, mut config: Config) -> anyhow::Result<Web> {
    match Web::bind(store.clone(), &config, true).await {
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) => {
            config.web.listen.set_port(0);
            Web::bind(store, &config, true).await
        }
        bound => bound,
    }
}

async fn serve(server: &TaskTracker, dir: PathBuf, stop: CancellationToken) -> anyhow::Result<std::net::SocketAddr> {
    let (ready, address) = oneshot::channel();
    let options = e2b::Options { listen: ([127, 0, 0, 1], 0).into(), dir, ..e2b::Options::default() };
    let serving = server.spawn(e2b::serve(options, stop, ready));
    match address.await {
        Ok(address) => Ok(address),
        Err(_) => Err(serving.await?.err().unwrap_or_else(|| anyhow::anyhow!("it ended at once")).context("the local server can't start")),
    }
}

fn sandboxes(home: &Path) -> PathBuf {
    home.join("sandboxes")
}

fn welcome(url: &str, e2b: &str, web: &str, agent: Option<&[String]>, keyring: &Keyring, found_by_itself: bool) {
    let agent = match agent {
        None => format!("claude, with {}", keyring.source().unwrap_or_else(|| "its own login".to_owned())),
        Some(words) => words.join(" "),
    };
    let turnmill = called();
    let export = if found_by_itself {
        String::new()
    } else {
        format!("  export DATABASE_URL={url}    # without it, other commands find the dev that was here first\n")
    };
    anstream::println!(
        "{}turnmill dev{} runs until Ctrl-C.\n  database  {url}\n  sandboxes http://{e2b} (local processes, isolates nothing)\n  web       http://{web}/chat to talk to it, /ops to see what goes on, /docs for its HTTP API\n  agent     {}\n\n\
         In another terminal:\n{export}  {turnmill} enqueue 'Fix the login bug' --watch\n  psql {url} -c \"SELECT turn_id FROM turnmill.enqueue_turn('Fix the login bug', project_id => 'p1')\"\n",
        paint::BOLD,
        paint::OFF,
        paint::line(&agent),
    );
}
