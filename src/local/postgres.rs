//! A private Postgres over the installed server binaries: its own directory, port and password, on loopback.
//! It refuses to run as root, so as root it runs as `postgres` or `nobody`.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::Connection as _;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long it may take to start, recovery included.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to stop in order, before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The same for an immediate stop.
const STOP_NOW_MAX: Duration = Duration::from_secs(2);

/// Where distributions put the server binaries; `*` is a version.
const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
];

/// How the server runs.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Survives a loss of power: `fsync` and all that follows from it. Off for what is thrown away anyhow.
    pub durable: bool,
    /// Further settings, as `("max_connections", "200")`.
    pub settings: Vec<(&'static str, &'static str)>,
}

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    password: String,
    options: Options,
    server: Child,
}

impl Postgres {
    /// Makes a database cluster in `dir`, which must be enterable by others when we are root, and starts it.
    pub async fn start(dir: &Path, options: Options) -> anyhow::Result<Self> {
        let bin = find_bin()?;
        fs::create_dir_all(dir)?;
        if let Some((uid, gid)) = unprivileged()? {
            chown(dir, Some(uid), Some(gid))?;
        }
        let password = format!("{:016x}", rand::random::<u64>());
        initdb(&bin, dir, &password).await?;
        let port = free_port()?;
        let server = launch(&bin, dir, port, &options)?;
        let mut postgres = Self { bin, dir: dir.to_owned(), port, password, options, server };
        postgres.ready().await?;
        Ok(postgres)
    }

    /// For DATABASE_URL.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    /// The process id of its postmaster.
    pub fn pid(&self) -> Option<u32> {
        self.server.id()
    }

    /// Ends it; its clients are cut off.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::INT);
        if timeout(STOP_MAX, self.server.wait()).await.is_err() {
            self.server.kill().await.context("killing Postgres")?;
        }
        Ok(())
    }

    /// Ends it as fast as it can be without leaving anything behind: what is in flight is lost.
    pub async fn stop_now(mut self) -> anyhow::Result<()> {
        self.signal(Signal::QUIT);
        if timeout(STOP_NOW_MAX, self.server.wait()).await.is_err() {
            self.server.kill().await.context("killing Postgres")?;
        }
        Ok(())
    }

    /// What a crash of its machine looks like to its clients: SIGKILL, and nothing after.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        self.server.kill().await.context("killing Postgres")
    }

    /// Starts it again after a crash, on the same port; returns when it has recovered.
    pub async fn recover(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            self.server = launch(&self.bin, &self.dir, self.port, &self.options)?;
            match self.ready().await {
                Ok(()) => return Ok(()),
                // Its old backends may not have noticed yet, and hold its shared memory.
                Err(_) if since.elapsed() < START_MAX => sleep(Duration::from_millis(100)).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.server.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.server.try_wait()? {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                anyhow::bail!("Postgres ended with {status}: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" | "));
            }
            match sqlx::PgConnection::connect(&self.url()).await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) if since.elapsed() > START_MAX => return Err(error).context("Postgres takes no connections"),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

async fn initdb(bin: &Path, dir: &Path, password: &str) -> anyhow::Result<()> {
    let mut secret = tempfile::NamedTempFile::new_in(dir)?;
    secret.write_all(password.as_bytes())?;
    if let Some((uid, gid)) = unprivileged()? {
        chown(secret.path(), Some(uid), Some(gid))?;
    }
    let mut command = as_unprivileged(&bin.join("initdb"))?;
    command.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]);
    command.arg("--pgdata").arg(dir.join("data")).arg("--pwfile").arg(secret.path());
    let output = command.stdin(Stdio::null()).output().await.context("running initdb")?;
    anyhow::ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn launch(bin: &Path, dir: &Path, port: u16, options: &Options) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = as_unprivileged(&bin.join("postgres"))?;
    command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]);
    // Not synchronous_commit: what was committed must survive at least our own SIGKILL.
    let throwaway = [("fsync", "off"), ("full_page_writes", "off")];
    let fixed = [("listen_addresses", "127.0.0.1"), ("unix_socket_directories", ""), ("max_connections", "200")];
    let settings = fixed.into_iter().chain(throwaway.into_iter().filter(|_| !options.durable)).chain(options.settings.iter().copied());
    for (name, value) in settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    // A process group of its own: Ctrl-C in the terminal is for us, and we end it in order.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("starting Postgres")
}

/// Through setpriv, so that it ends with us even when we are killed, and so that it is not root.
fn as_unprivileged(program: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if let Some((uid, gid)) = unprivileged()? {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    command.arg("--").arg(program).current_dir("/");
    Ok(command)
}

/// Whom to become when we are root.
fn unprivileged() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = |wanted: &str| {
        users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&wanted))
            .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
    };
    ids("postgres")
        .or_else(|| ids("nobody"))
        .map(Some)
        .context("Postgres doesn't run as root, and there is no user \"postgres\" or \"nobody\"")
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The directory of the newest installed server's binaries.
pub fn find_bin() -> anyhow::Result<PathBuf> {
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let mut found: Vec<(u32, PathBuf)> = PLACES
        .iter()
        .flat_map(|place| expand(place))
        .chain(on_path.map(|dir| (0, dir)))
        .filter(|(_, dir)| dir.join("postgres").is_file() && dir.join("initdb").is_file())
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, dir)| dir)
        .context("no Postgres server is installed here: apt-get install postgresql (or your system's package), or set DATABASE_URL")
}

/// The directories that a place with one `*` stands for, with their version.
fn expand(place: &str) -> Vec<(u32, PathBuf)> {
    let Some((before, after)) = place.split_once('*') else { return vec![(0, place.into())] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("/", before));
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?.parse().ok()?;
            Some((version, PathBuf::from(format!("{parent}/{name}{after}"))))
        })
        .collect()
}

/// A temporary directory through which other users get, to what is theirs in it.
pub fn passable_tempdir(prefix: &str) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    Ok(dir)
}
