//! The processes: Postgres, the local E2B server, the workers. They end with us, however we end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::sleep;
use turnmill::local::postgres::{self, Postgres, passable_tempdir};

const TURNMILL: &str = env!("CARGO_BIN_EXE_turnmill");

/// The pool's cap when nobody changes it.
pub const CAP: i32 = 28;

/// The workers' lease.
pub const LEASE: Duration = Duration::from_secs(5);

/// Failed attempts of one turn's agent, and lost sandboxes, until it fails: the checker counts with them.
pub const AGENT_TRIES: usize = 4;
pub const SANDBOXES_LOST_MAX: usize = 1;

/// Settings of the workers: quick enough for thousands of short turns; what the faults cause is not to use up a turn's
/// tries. Those that the binary does not know are left out.
const SETTINGS: [(&str, &str); 19] = [
    ("worker.lease", "5s"),
    ("worker.heartbeat", "1s"),
    ("worker.turns_max", "16"),
    ("worker.poll", "200ms"),
    ("worker.stop_grace", "2s"),
    ("worker.create_deadline", "6s"),
    ("worker.call_deadline", "5s"),
    ("e2b.keepalive", "2s"),
    ("retry.startup_tries", "200"),
    ("retry.startup_delay", "200ms"),
    ("retry.startup_delay_max", "2s"),
    ("retry.agent_tries", "4"),
    ("retry.agent_delay", "200ms"),
    ("retry.agent_delay_max", "1s"),
    ("retry.sandboxes_lost_max", "1"),
    ("retry.crashes_max", "1000"),
    ("database.statement_timeout", "5s"),
    ("database.lock_timeout", "2s"),
    ("worker.orphan_grace", "30s"),
];

/// Ends what is left of the sandboxes and removes the directory as soon as our end of its pipe is closed.
const GUARDIAN: &str = r#"
cat >/dev/null
for round in 1 2 3 4 5; do
  for place in /proc/[0-9]*; do
    pid=${place#/proc/}
    [ "$pid" = $$ ] || ! tr '\0' '\n' <"$place/environ" 2>/dev/null | grep -qF "$1" || kill -KILL "$pid" 2>/dev/null
  done
  rm -rf "$1" 2>/dev/null && [ ! -e "$1" ] && exit
  sleep 0.5
done
"#;

/// All of them.
pub struct Fleet {
    home: PathBuf,
    pub postgres: Mutex<Postgres>,
    /// The web app's connections.
    app: PgPool,
    pub e2b_url: String,
    server: Mutex<Child>,
    workers: Vec<Mutex<Child>>,
    environment: BTreeMap<String, String>,
    guardian: Child,
}

impl Fleet {
    pub async fn start(workers: usize) -> anyhow::Result<Self> {
        let home = passable_tempdir("turnmill-chaos-")?.keep();
        let guardian = guard(&home)?;
        let settings = vec![("max_connections", "150"), ("shared_buffers", "64MB")];
        let postgres = Postgres::start(&home.join("postgres"), postgres::Options { settings, ..postgres::Options::default() }).await?;
        let url = postgres.url();
        let app = PgPoolOptions::new().max_connections(30).acquire_timeout(Duration::from_secs(30)).connect(&url).await?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let e2b_url = format!("http://127.0.0.1:{port}");
        let mut environment: BTreeMap<String, String> = known_settings();
        for (name, value) in [("E2B_API_URL", &e2b_url), ("E2B_SANDBOX_URL", &e2b_url), ("DATABASE_URL", &url)] {
            environment.insert(name.to_owned(), value.clone());
        }
        environment.insert("E2B_API_KEY".to_owned(), "local".to_owned());
        environment.insert("CHAOS_HOME".to_owned(), home.display().to_string());
        fs::create_dir_all(home.join("e2b"))?;
        ledger_for_anybody(&home)?;
        let server = launch(&home, &server_args(&home, &e2b_url), &environment, "e2b.log")?;
        wait_for(&e2b_url).await?;
        let mut fleet = Self {
            home,
            postgres: Mutex::new(postgres),
            app,
            e2b_url,
            server: Mutex::new(server),
            workers: Vec::new(),
            environment,
            guardian,
        };
        fleet.prepare().await?;
        for nth in 0..workers {
            fleet.workers.push(Mutex::new(fleet.launch_worker(nth)?));
        }
        Ok(fleet)
    }

    /// The schema, as a deploy brings it; then our pool, and a table of the web app's own.
    async fn prepare(&self) -> anyhow::Result<()> {
        let mut migrate = launch(&self.home, &["migrate".to_owned()], &self.environment, "migrate.log")?;
        anyhow::ensure!(migrate.wait().await?.success(), "migrating: {}", self.log("migrate.log"));
        let agent = ["turnmill", "agent", "mock", "--session-id={session}"];
        let agent_env = json!({ "TURNMILL_MOCK_LEDGER": self.home.join("agents.jsonl") });
        sqlx::query(
            "UPDATE turnmill.pools SET cap = $1, agent = $2, agent_env = $3, prepare = '', watch = '', finish = '',
               warm_s = 3, paused_s = 6, sandbox_max_s = 86400, context_versions = 100 WHERE name = 'default'",
        )
        .bind(CAP)
        .bind(agent.map(str::to_owned).to_vec())
        .bind(agent_env)
        .execute(&self.app)
        .await?;
        sqlx::raw_sql("CREATE SCHEMA app; CREATE TABLE app.messages (key text PRIMARY KEY, turn_id text NOT NULL)")
            .execute(&self.app)
            .await?;
        Ok(())
    }

    pub fn app(&self) -> &PgPool {
        &self.app
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.home.join(name)).unwrap_or_default()
    }

    fn launch_worker(&self, nth: usize) -> anyhow::Result<Child> {
        launch(&self.home, &["worker".to_owned()], &self.environment, &format!("worker-{nth}.log"))
    }

    /// SIGKILL; another takes its place. The pid of the dead one.
    pub async fn kill_worker(&self, nth: usize, down: Duration) -> anyhow::Result<u32> {
        let mut worker = self.workers[nth].lock().await;
        let pid = pid(&worker);
        worker.kill().await?;
        sleep(down).await;
        *worker = self.launch_worker(nth)?;
        Ok(pid)
    }

    /// SIGSTOP, and SIGCONT later. `stopped` is called as soon as it stands still.
    pub async fn suspend_worker(&self, nth: usize, time: Duration, stopped: impl FnOnce(u32)) {
        let worker = self.workers[nth].lock().await;
        signal(&worker, Signal::STOP);
        stopped(pid(&worker));
        sleep(time).await;
        signal(&worker, Signal::CONT);
    }

    /// A deploy: the new one first, then SIGTERM for the old.
    pub async fn replace_worker(&self, nth: usize, told: impl FnOnce(u32)) -> anyhow::Result<()> {
        let mut worker = self.workers[nth].lock().await;
        let mut old = std::mem::replace(&mut *worker, self.launch_worker(nth)?);
        sleep(Duration::from_millis(500)).await;
        signal(&old, Signal::TERM);
        told(pid(&old));
        if tokio::time::timeout(Duration::from_secs(20), old.wait()).await.is_err() {
            old.kill().await?;
            anyhow::bail!("a worker did not end within 20 s of its SIGTERM");
        }
        Ok(())
    }

    /// SIGKILL; its sandboxes live on, and it finds them again.
    pub async fn kill_server(&self, down: Duration) -> anyhow::Result<()> {
        let mut server = self.server.lock().await;
        server.kill().await?;
        sleep(down).await;
        *server = launch(&self.home, &server_args(&self.home, &self.e2b_url), &self.environment, "e2b.log")?;
        wait_for(&self.e2b_url).await
    }

    pub async fn crash_postgres(&self, down: Duration) -> anyhow::Result<()> {
        let mut postgres = self.postgres.lock().await;
        postgres.crash().await?;
        sleep(down).await;
        postgres.recover().await
    }

    /// What no process of ours may ever say.
    pub fn panics(&self) -> Vec<String> {
        let names = (0..self.workers()).map(|nth| format!("worker-{nth}.log")).chain(["e2b.log".to_owned()]);
        let panics = |name: String| {
            let said = self.log(&name);
            said.lines().filter(|line| line.contains("panicked at")).map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        names.flat_map(panics).collect()
    }

    /// Everything that a process of ours logged or noted, for people.
    pub fn copy_logs(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(&self.home)?.flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        fs::copy(self.home.join("e2b/ledger.jsonl"), to.join("e2b.jsonl"))?;
        Ok(())
    }

    /// The end of all of it.
    pub async fn strike(mut self) -> anyhow::Result<()> {
        self.app.close().await;
        for worker in &mut self.workers {
            worker.get_mut().kill().await?;
        }
        self.server.get_mut().kill().await?;
        self.postgres.into_inner().stop().await?;
        drop(self.guardian.stdin.take());
        self.guardian.wait().await?;
        Ok(())
    }
}

/// Starts workers again that have ended by themselves, as any orchestrator does: without a database they can't begin.
pub async fn nurse(fleet: Arc<Fleet>) {
    loop {
        sleep(Duration::from_millis(500)).await;
        for (nth, worker) in fleet.workers.iter().enumerate() {
            let Ok(mut worker) = worker.try_lock() else { continue };
            if matches!(worker.try_wait(), Ok(Some(_)))
                && let Ok(next) = fleet.launch_worker(nth)
            {
                *worker = next;
            }
        }
    }
}

fn server_args(home: &Path, url: &str) -> Vec<String> {
    let listen = url.trim_start_matches("http://").to_owned();
    ["local".to_owned(), "--listen".to_owned(), listen, "--dir".to_owned(), home.join("e2b").display().to_string()].into()
}

/// With us it ends, also when we are killed; also when it is stopped itself.
fn launch(home: &Path, args: &[String], environment: &BTreeMap<String, String>, log: &str) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(home.join(log))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", TURNMILL]).args(args).envs(environment);
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("starting turnmill {}", args.join(" ")))
}

fn guard(home: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("bash");
    command.args(["-c", GUARDIAN, "guardian"]).arg(home).current_dir("/");
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting the guardian")
}

async fn wait_for(url: &str) -> anyhow::Result<()> {
    let (since, client) = (Instant::now(), reqwest::Client::new());
    while client.get(format!("{url}/health")).send().await.is_err() {
        anyhow::ensure!(since.elapsed() < Duration::from_secs(30), "the local server does not answer at {url}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Made here, for any user to write: in its sandbox the agent is not us.
fn ledger_for_anybody(home: &Path) -> anyhow::Result<()> {
    let file = File::create(home.join("agents.jsonl"))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(())
}

/// A variable that names no key is an error, so only those that `config/default.toml` has.
fn known_settings() -> BTreeMap<String, String> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/default.toml")).unwrap_or_default();
    let mut section = "";
    let mut known = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            known.push(format!("{section}.{key}"));
        }
    }
    let named = |key: &str| format!("TURNMILL_{}", key.replace('.', "__").to_uppercase());
    SETTINGS.iter().filter(|(key, _)| known.iter().any(|k| k == key)).map(|(key, value)| (named(key), (*value).to_owned())).collect()
}

fn pid(child: &Child) -> u32 {
    child.id().unwrap_or(0)
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
}
