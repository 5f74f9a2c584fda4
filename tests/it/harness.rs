//! The words in which the tests are written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turnmill::agent::{Fold, ModelUse, Spent, mock};
use turnmill::config::Config;
use turnmill::e2b;
use turnmill::keys::Keyring;
use turnmill::local::e2b as local;
use turnmill::local::postgres::passable_tempdir;
use turnmill::store::{self, Answer, Append, Claimed, Enqueue, PoolChange, Reading, Receipt, Renewal, Settle, Store, TurnRow};
use turnmill::turn::{Ending, TurnError};
use turnmill::worker::Worker;

/// Our own binary.
pub const TURNMILL: &str = env!("CARGO_BIN_EXE_turnmill");

/// Nothing here takes longer on a slow machine under load.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A migrated database and what its users do with it.
#[derive(Clone)]
pub struct Fleet {
    pub store: Store,
    /// Straight to Postgres.
    pub pool: PgPool,
    /// The PgBouncer in between, if there is one (`make test-pgbouncer`).
    bouncer: Option<String>,
}

impl Fleet {
    pub fn new(pool: PgPool) -> Self {
        let bouncer = std::env::var("TURNMILL_TEST_PGBOUNCER").ok();
        let store = match &bouncer {
            Some(place) => {
                let database = pool.connect_options().get_database().unwrap().to_owned();
                Store::lazy(&store::Options {
                    url: format!("postgres://postgres@{place}/{database}"),
                    direct_url: Some(pool.connect_options().to_url_lossy().to_string()),
                    connections: 10,
                    limits: store::Limits { pgbouncer: true, ..store::Limits::default() },
                })
                .unwrap()
            }
            None => Store::new(pool.clone()),
        };
        Self { store, pool, bouncer }
    }

    /// Of a Postgres of its own.
    pub fn of(store: Store) -> Self {
        Self { pool: store.pool().clone(), store, bouncer: None }
    }

    /// The database as a login with one of Turnmill's roles has it, and no other rights: over connections of its own.
    /// Through PgBouncer, where a connection is nobody's own, it is the database's owner.
    pub async fn with_role(&self, role: &str) -> Store {
        if self.bouncer.is_some() {
            return self.store.clone();
        }
        self.store.create_roles().await.unwrap();
        let to = self.pool.connect_options().as_ref().clone().options([("role", role)]);
        Store::new(sqlx::postgres::PgPoolOptions::new().max_connections(8).connect_lazy_with(to))
    }

    /// What a worker that is a process of its own needs to reach the database.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let direct = self.pool.connect_options().to_url_lossy();
        match &self.bouncer {
            Some(place) => vec![
                ("DATABASE_URL", format!("postgres://postgres@{place}{}", direct.path())),
                ("TURNMILL_DATABASE__PGBOUNCER", "true".to_owned()),
                ("TURNMILL_DATABASE__DIRECT_URL", direct.to_string()),
            ],
            None => vec![("DATABASE_URL", direct.to_string())],
        }
    }

    pub async fn enqueue(&self, prompt: &str) -> Enqueued {
        self.enqueue_in(prompt, None).await
    }

    /// Into a session of project `p1`.
    pub async fn enqueue_in(&self, prompt: &str, session: Option<&str>) -> Enqueued {
        let turn = Enqueue {
            prompt: prompt.to_owned(),
            project_id: Some("p1".to_owned()),
            session_id: session.map(str::to_owned),
            ..Enqueue::default()
        };
        self.store.enqueue(&turn).await.unwrap().into()
    }

    /// A worker as the database sees it: a name and a lease.
    pub async fn worker(&self, name: &'static str) -> Claimer {
        self.store.register_worker(name, Duration::from_secs(30), 10, "test").await.unwrap();
        Claimer { store: self.store.clone(), name }
    }

    pub async fn renew(&self, worker: &str) -> Renewal {
        renew(&self.store, worker, Duration::from_secs(30)).await
    }

    /// Ages the lease instead of waiting for it.
    pub async fn let_lease_expire(&self, worker: &str) {
        self.sql("UPDATE turnmill.workers SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", worker).await;
    }

    pub async fn cap(&self, pool: &str, cap: i32) {
        self.store.set_pool(pool, &PoolChange { cap: Some(cap), ..PoolChange::default() }).await.unwrap();
    }

    pub async fn turn(&self, id: &str) -> TurnRow {
        self.store.turn(id).await.unwrap().unwrap()
    }

    pub async fn read(&self, id: &str) -> Reading {
        self.store.read(id, -1, 100_000).await.unwrap().unwrap()
    }

    /// The turn, when it has ended.
    pub async fn ended(&self, id: &str) -> TurnRow {
        let what = format!("turn {id} ends");
        until(&what, || async {
            // A database that is being restarted may be asked again.
            let turn = self.store.turn(id).await.ok().flatten()?;
            turn.completed_at.is_some().then_some(turn)
        })
        .await
    }

    /// Waits until the turn has at least this many blocks.
    pub async fn has_blocks(&self, id: &str, count: usize) {
        until("blocks", || async { (self.read(id).await.blocks.len() >= count).then_some(()) }).await;
    }

    /// All blocks as `[type, content]`, with their seq checked to be dense.
    pub async fn blocks(&self, id: &str) -> Vec<Value> {
        let blocks = self.read(id).await.blocks;
        assert!(blocks.iter().enumerate().all(|(nth, block)| i32::try_from(nth).unwrap() == block.seq), "seq has gaps");
        blocks.into_iter().map(|block| json!([block.kind, block.content])).collect()
    }

    /// How often the turn was taken: `claimed`, then `adopted` for each take-over.
    pub async fn taken(&self, id: &str) -> Vec<String> {
        self.store.seams(id).await.unwrap().into_iter().map(|seam| seam.taken).collect()
    }

    /// The turn's timeline, for people who wonder what happened.
    pub async fn history(&self, id: &str) -> Vec<Value> {
        let rows = sqlx::query_scalar("SELECT to_jsonb(a) FROM turnmill.attempts a WHERE turn_id = $1 ORDER BY epoch").bind(id);
        rows.fetch_all(&self.pool).await.unwrap()
    }

    /// Waits until no slot holds a sandbox.
    pub async fn no_slot_held(&self) {
        until("all slots are free", || async { (self.store.slots_held().await.ok()? == 0).then_some(()) }).await;
    }

    pub async fn message_uuid(&self, id: &str) -> String {
        sqlx::query_scalar("SELECT message_uuid::text FROM turnmill.turns WHERE id = $1").bind(id).fetch_one(&self.pool).await.unwrap()
    }

    /// The blocks that a script makes of this turn's message.
    pub async fn expected(&self, id: &str, script: &str) -> Vec<Value> {
        let uuid = self.message_uuid(id).await;
        blocks_of(mock::lines(&mock::Script::find(script).unwrap(), &uuid).iter().map(Vec::as_slice), &uuid)
    }

    pub async fn sql(&self, statement: &'static str, argument: &str) {
        sqlx::query(statement).bind(argument).execute(&self.pool).await.unwrap();
    }

    /// Fails as Postgres does; the error's code, message and hint in one text.
    pub async fn refused(&self, statement: &str) -> String {
        let error = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&self.pool).await.expect_err("this should be refused");
        let error = error.into_database_error().unwrap();
        let hint = error.downcast_ref::<sqlx::postgres::PgDatabaseError>().hint().unwrap_or_default().to_owned();
        format!("{} {} | {hint}", error.code().unwrap_or_default(), error.message())
    }
}

/// The receipt of a turn that was taken.
pub struct Enqueued {
    pub turn_id: String,
    pub waits_for: Option<String>,
}

impl From<Receipt> for Enqueued {
    fn from(receipt: Receipt) -> Self {
        let turn_id = receipt.turn_id.expect("the turn is taken");
        Self { turn_id, waits_for: receipt.waits_for }
    }
}

/// Renews a lease, as that worker's process does.
pub async fn renew(store: &Store, worker: &str, lease: Duration) -> Renewal {
    let fleet = store.fleet().await.unwrap().id;
    store.renew(worker, &fleet, lease).await.unwrap()
}

/// Journal lines → blocks as `[type, content]`.
pub fn blocks_of<'a>(lines: impl Iterator<Item = &'a [u8]>, message_uuid: &str) -> Vec<Value> {
    let mut fold = Fold::new(Some(message_uuid.to_owned()));
    let blocks = lines.flat_map(|line| fold.line(line)).collect::<Vec<_>>();
    blocks.into_iter().map(|block| json!([block.kind.as_str(), block.content])).collect()
}

/// One worker's claims, by hand.
pub struct Claimer {
    store: Store,
    pub name: &'static str,
}

impl Claimer {
    pub async fn claim(&self, wanted: i64) -> Vec<Claimed> {
        self.store.claim(self.name, wanted).await.unwrap()
    }

    pub async fn claim_one(&self) -> Claimed {
        let mut claimed = self.claim(1).await;
        assert_eq!(claimed.len(), 1, "there is a turn to claim");
        claimed.remove(0)
    }
}

/// What a holder does with its job, by hand.
pub trait Holding {
    fn append_of(&self, from: i64, to: i64, texts: &[&str]) -> Append;
}

impl Holding for Claimed {
    fn append_of(&self, from: i64, to: i64, texts: &[&str]) -> Append {
        let block = |text: &&str| turnmill::block::Block::new(turnmill::block::BlockKind::Content, json!({ "text": text }));
        Append {
            turn_id: self.turn_id.clone(),
            epoch: self.epoch,
            attempt: self.attempt,
            from_offset: from,
            to_offset: to,
            blocks: texts.iter().map(block).collect(),
        }
    }
}

pub async fn append(store: &Store, append: Append) -> Answer {
    store.append(&[append]).await.unwrap()[0]
}

pub fn ending(ending: Ending) -> Settle {
    Settle {
        ending,
        blocks: Vec::new(),
        journal_offset: 0,
        error: (ending != Ending::Completed).then(|| TurnError::new("some_code", "some words")),
        spent: None,
        keep: false,
    }
}

/// What an agent says that its calls of one model came to.
pub fn spent(cost_usd: f64) -> Spent {
    let model = ModelUse { model: "m".to_owned(), input_tokens: 100, output_tokens: 10, cost_usd, ..ModelUse::default() };
    Spent { usage: None, models: Some(vec![model]) }
}

/// Settles, then lets the slot go as if its sandbox were gone.
pub async fn settle_and_free(store: &Store, job: &Claimed, how: Ending) {
    store.settle(job, &ending(how), Duration::from_secs(30)).await.unwrap().unwrap();
    store.slot_freed(job.slot_id, job.epoch).await.unwrap().unwrap();
}

/// The local server, in this process.
pub struct LocalE2b {
    pub dir: tempfile::TempDir,
    pub url: String,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl LocalE2b {
    pub async fn start() -> Self {
        Self::with(local::Options::default()).await
    }

    pub async fn with(options: local::Options) -> Self {
        turnmill::tls::install();
        let dir = passable_tempdir("turnmill-test-").unwrap();
        let stop = CancellationToken::new();
        let (ready, address) = oneshot::channel();
        let options = local::Options { dir: dir.path().to_owned(), program: Some(TURNMILL.into()), ..options };
        let serving = tokio::spawn(local::serve(options, stop.clone(), ready));
        let url = format!("http://{}", address.await.expect("the local server starts"));
        Self { dir, url, stop, serving }
    }

    pub fn client(&self) -> e2b::Client {
        client(&self.url)
    }

    pub async fn faults(&self, faults: Value) {
        let response = reqwest::Client::new().post(format!("{}/_local/faults", self.url)).json(&faults).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
    }

    /// Ends a sandbox as E2B's do now and then.
    pub async fn vanish(&self, sandbox: &str) {
        let response = reqwest::Client::new().delete(format!("{}/_local/sandboxes/{sandbox}", self.url)).send().await.unwrap();
        assert!(response.status().is_success());
    }

    /// Everything that was done to sandboxes.
    pub async fn acts(&self, act: &str) -> Vec<Value> {
        let all: Vec<Value> = reqwest::get(format!("{}/_local/ledger", self.url)).await.unwrap().json().await.unwrap();
        all.into_iter().filter(|entry| entry["act"] == act).collect()
    }

    /// How often a file named like a mock's ledger says that the agent was started.
    pub fn agent_ledger(&self) -> PathBuf {
        agent_ledger(self.dir.path())
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.serving).await.unwrap().unwrap();
    }
}

impl Drop for LocalE2b {
    fn drop(&mut self) {
        sweep(self.dir.path());
    }
}

/// Ends the sandboxes' processes below a directory: a test that fails leaves nothing behind either.
pub fn sweep(dir: &Path) {
    use std::os::unix::ffi::OsStrExt as _;
    let mark = dir.as_os_str().as_bytes();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let marked = std::fs::read(entry.path().join("environ")).is_ok_and(|environ| environ.windows(mark.len()).any(|part| part == mark));
        if let Some(pid) =
            entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw).filter(|_| marked)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A file into which every start and end of an agent is noted, whoever its user is.
pub fn agent_ledger(dir: &Path) -> PathBuf {
    let path = dir.join("agent-starts.jsonl");
    let file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    path
}

pub fn starts_in(ledger: &Path) -> usize {
    std::fs::read_to_string(ledger).unwrap().lines().filter(|line| line.contains(r#""act":"start""#)).count()
}

pub fn client(url: &str) -> e2b::Client {
    e2b::Client::new(e2b::Config {
        api_url: url.to_owned(),
        domain: "local".to_owned(),
        sandbox_url: Some(url.to_owned()),
        api_key: "local".into(),
        headers: reqwest::header::HeaderMap::new(),
        keepalive: Duration::from_secs(20),
    })
    .unwrap()
}

/// Quick enough for tests, in the same proportions as the defaults.
pub fn config(e2b_url: &str) -> Config {
    let mut config = Config::load(None).unwrap();
    e2b_url.clone_into(&mut config.e2b.api_url);
    e2b_url.clone_into(&mut config.e2b.sandbox_url);
    config.e2b.api_key = "local".into();
    config.worker.lease = Duration::from_secs(3);
    config.worker.heartbeat = Duration::from_millis(500);
    config.worker.stop_grace = Duration::from_secs(2);
    config.worker.poll = Duration::from_millis(100);
    config.retry.startup_delay = Duration::from_millis(100);
    config.retry.agent_delay = Duration::from_millis(100);
    config
}

/// The pool `default` runs the stand-in agent and notes its starts.
pub async fn use_mock(store: &Store, ledger: &Path) {
    let agent = ["turnmill", "agent", "mock", "--session-id={session}"].map(str::to_owned).to_vec();
    let change = PoolChange {
        cap: Some(4),
        agent: Some(agent),
        agent_env: Some(json!({ "TURNMILL_MOCK_LEDGER": ledger })),
        ..PoolChange::default()
    };
    store.set_pool("default", &change).await.unwrap();
}

/// A whole worker, in this process.
pub struct RunningWorker {
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl RunningWorker {
    pub async fn start(fleet: &Fleet, e2b_url: &str) -> Self {
        Self::with(fleet, config(e2b_url)).await
    }

    pub async fn with(fleet: &Fleet, config: Config) -> Self {
        // Whatever keys the machine has that the tests run on.
        Self::with_keyring(fleet, config, Keyring::default()).await
    }

    /// With the keys that its configuration has.
    pub async fn with_keys(fleet: &Fleet, config: Config) -> Self {
        let keyring = Keyring::new(&config).unwrap();
        Self::with_keyring(fleet, config, keyring).await
    }

    async fn with_keyring(fleet: &Fleet, config: Config, keyring: Keyring) -> Self {
        let store = fleet.with_role("turnmill_worker").await;
        let worker = Worker::register(store, Arc::new(config), keyring, &TaskTracker::new()).await.unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker.run(stop.clone()));
        Self { stop, running }
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.running).await.expect("the worker ends by itself").unwrap().unwrap();
    }

    /// In order, as a deploy does.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// A whole fleet for one test: local sandboxes, the mock agent, one worker.
pub struct Running {
    pub fleet: Fleet,
    pub e2b: LocalE2b,
    pub worker: RunningWorker,
}

impl Running {
    pub async fn start(pool: PgPool) -> Self {
        Self::with(pool, |_| {}).await
    }

    pub async fn with(pool: PgPool, change: impl FnOnce(&mut Config)) -> Self {
        let fleet = Fleet::new(pool);
        let e2b = LocalE2b::start().await;
        use_mock(&fleet.store, &e2b.agent_ledger()).await;
        let mut config = config(&e2b.url);
        change(&mut config);
        let worker = RunningWorker::with(&fleet, config).await;
        Self { fleet, e2b, worker }
    }

    pub fn agent_starts(&self) -> usize {
        starts_in(&self.e2b.agent_ledger())
    }

    /// Stops all and checks that nothing is left.
    pub async fn stop(self) {
        self.fleet.no_slot_held().await;
        assert_eq!(self.e2b.client().list(&[]).await.unwrap().len(), 0, "no sandbox is left");
        self.worker.stop().await;
        self.e2b.stop().await;
    }
}
