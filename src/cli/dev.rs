//! `turnmill dev`: everything in one process, with nothing set up, until Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use secrecy::ExposeSecret as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{admin, on_path, paint, stop_on_signal};
use crate::config::Config;
use crate::keys::Credentials;
use crate::local::{e2b, postgres};
use crate::store::{self, PoolChange, Store};
use crate::worker::Worker;

/// Run everything here: a private Postgres (or DATABASE_URL), the local sandboxes, a worker.
///
/// Leaves nothing behind. With a `claude` on the PATH and a key in the environment it runs the real agent,
/// else the stand-in. Other terminals find it by themselves: turnmill enqueue 'hello' --watch
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
    pub async fn run(self, mut config: Config) -> anyhow::Result<ExitCode> {
        let stop = stop_on_signal()?;
        let home = postgres::passable_tempdir("turnmill-dev-")?;
        let postgres = if config.database.url.expose_secret().is_empty() {
            let postgres = postgres::Postgres::start(&home.path().join("postgres"), postgres::Options::default()).await?;
            config.database.url = postgres.url().into();
            Some(postgres)
        } else {
            None
        };
        let store = Store::connect(&config.database.options(config.database.url.expose_secret()), store::PATIENCE).await?;
        store.migrate().await?;

        let server = TaskTracker::new();
        let sandboxes_stop = CancellationToken::new();
        let address = serve(&server, home.path().join("sandboxes"), sandboxes_stop.clone()).await?;
        config.e2b.api_url = format!("http://{address}");
        config.e2b.sandbox_url = format!("http://{address}");
        config.e2b.api_key = "local".into();

        let credentials = Credentials::from_environment(|name| std::env::var(name).ok());
        let agent = self.agent(&credentials);
        store.set_pool("default", &PoolChange { cap: Some(self.cap), agent: agent.clone(), ..PoolChange::default() }).await?;
        let note = Note::write(config.database.url.expose_secret())?;
        welcome(config.database.url.expose_secret(), &address.to_string(), agent.as_deref(), &credentials);

        let background = TaskTracker::new();
        let worker = Worker::register(store, Arc::new(config), credentials, &background).await?;
        let ended = worker.run(stop).await;
        // In this order: the worker has let go, then its sandboxes end, then the database.
        sandboxes_stop.cancel();
        server.close();
        server.wait().await;
        drop(note);
        if let Some(postgres) = postgres {
            postgres.stop().await?;
        }
        ended.map(|()| ExitCode::SUCCESS)
    }

    /// `None`: the pool's own command line, the real Claude Code.
    fn agent(&self, credentials: &Credentials) -> Option<Vec<String>> {
        match &self.agent {
            Some(agent) => Some(agent.0.clone()),
            None if credentials.source().is_some() && on_path("claude").is_some() => None,
            None => Some(admin::mock_agent()),
        }
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

fn welcome(url: &str, e2b: &str, agent: Option<&[String]>, credentials: &Credentials) {
    let agent = match agent {
        None => format!("claude, with {}", credentials.source().unwrap_or("its own login")),
        Some(words) => words.join(" "),
    };
    anstream::println!(
        "{}turnmill dev{} runs until Ctrl-C.\n  database  {url}\n  sandboxes http://{e2b} (local processes, isolates nothing)\n  agent     {agent}\n\n\
         In another terminal:\n  turnmill enqueue 'Fix the login bug' --watch\n  psql {url} -c \"SELECT turn_id FROM turnmill.enqueue_turn('Fix the login bug', project_id => 'p1')\"\n",
        paint::BOLD,
        paint::OFF
    );
}

/// The file by which other commands of this user find a running `turnmill dev`.
#[derive(Debug)]
pub struct Note(PathBuf);

impl Note {
    /// Writes it, for this user's eyes only.
    pub fn write(url: &str) -> anyhow::Result<Self> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = note_path();
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("writing {}", path.display()))?;
        file.write_all(url.as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn note_path() -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    dir.join(format!("turnmill-dev-{}.url", rustix::process::getuid().as_raw()))
}

/// The database of the `turnmill dev` that this user runs on this machine.
pub fn running_url() -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let path = note_path();
    // In a shared /tmp anybody could put a file of that name: only our own counts.
    let ours = std::fs::metadata(&path).ok()?.uid() == rustix::process::getuid().as_raw();
    std::fs::read_to_string(path).ok().filter(|_| ours)
}
