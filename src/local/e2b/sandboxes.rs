//! Which sandboxes there are. Each has a directory with its record and its root; a server that is started
//! again on the same directory finds them, and their processes, as it left them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rand::Rng as _;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::acts::{Acts, now_ms};
use super::kill;
use super::simulated::Simulation;
use super::table::Processes;
use super::watch::Watches;
use crate::agent::mock::Script;

/// What is on disk of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub template: String,
    /// Its template's name, where that was built here; else what was asked for.
    #[serde(default)]
    pub alias: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub env_vars: BTreeMap<String, String>,
    pub token: String,
    pub started_ms: u64,
    /// The deadline when it was last set.
    pub end_ms: u64,
    /// The Linux user of its `user`, where we may choose.
    pub uid: Option<u32>,
    /// Its processes stand still; not counted against the account's limit.
    #[serde(default)]
    pub paused: bool,
    /// At its deadline it is paused, not killed.
    #[serde(default)]
    pub auto_pause: bool,
    /// As it was asked for, and given back.
    #[serde(default)]
    pub network: Value,
}

/// A live sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub record: Record,
    pub end_ms: AtomicU64,
    /// Its `/`.
    pub root: PathBuf,
    /// Where its processes look for programs.
    pub path: String,
    pub processes: Processes,
    pub watches: Watches,
    /// Instead of a directory and processes.
    pub simulation: Option<Arc<Simulation>>,
    paused: AtomicBool,
    network: Mutex<Value>,
    /// Cancelled when it is killed or paused: every open stream is cut.
    gone: Mutex<CancellationToken>,
    killed: AtomicBool,
    /// Held by whoever kills, pauses or resumes it.
    changing: tokio::sync::Mutex<()>,
}

/// The first answer to a create with an idempotency key; given again, also when the sandbox is long gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Known {
    pub key: String,
    pub request: Value,
    pub answer: Value,
}

/// All sandboxes of one server.
#[derive(Debug)]
pub(super) struct Sandboxes {
    dir: PathBuf,
    live: Mutex<HashMap<String, Arc<Sandbox>>>,
    known: Mutex<HashMap<String, Known>>,
    acts: Arc<Acts>,
    uids: Option<(u32, u32)>,
    /// What simulated sandboxes' agents do; `None`: they are real.
    simulate: Option<Arc<Script>>,
    /// Held as long as we run: one server per directory.
    _lock: File,
}

impl Sandboxes {
    pub fn open(dir: &Path, program: Option<&Path>, simulate: Option<Script>, acts: Arc<Acts>) -> anyhow::Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("opening {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another local server runs on {}; stop it, or choose another --dir", dir.display()))?;
        // The agents' users must get through to their homes, and to nothing else here.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        install(program, &dir.join("bin"))?;
        let live = load(&dir)?;
        let found: BTreeMap<&String, u64> = live.values().map(|sandbox| (&sandbox.record.id, sandbox.record.started_ms)).collect();
        acts.note("boot", "", json!({ "sandboxes": found }));
        Ok(Self {
            live: Mutex::new(live),
            known: Mutex::new(load_known(&dir)),
            uids: spare_uids(),
            simulate: simulate.map(Arc::new),
            acts,
            dir,
            _lock: lock,
        })
    }

    /// Makes one; the request's own fields are checked by the caller.
    pub fn create(&self, record: Record) -> anyhow::Result<Arc<Sandbox>> {
        let home = self.dir.join(&record.id);
        let mut sandbox = Sandbox::at(&home, record);
        if let Some(script) = &self.simulate {
            sandbox.simulation = Some(Arc::new(Simulation::new(script.clone())));
            let sandbox = Arc::new(sandbox);
            self.live().insert(sandbox.record.id.clone(), sandbox.clone());
            return Ok(sandbox);
        }
        let sandbox = Arc::new(sandbox);
        for place in ["home/user", "root", "tmp", "var/lib"] {
            fs::create_dir_all(sandbox.root.join(place))?;
        }
        fs::set_permissions(sandbox.root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        if let Some(uid) = sandbox.record.uid {
            chown(sandbox.root.join("home/user"), Some(uid), Some(uid))?;
        }
        sandbox.save()?;
        self.live().insert(sandbox.record.id.clone(), sandbox.clone());
        Ok(sandbox)
    }

    /// A record for a new sandbox.
    pub fn blank(&self, template: &str, timeout_s: u64) -> Record {
        let mut rng = rand::rng();
        let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut word = |n: usize| (0..n).map(|_| char::from(letters[rng.random_range(0..letters.len())])).collect::<String>();
        Record {
            id: format!("i{}", word(20)),
            template: template.to_owned(),
            alias: None,
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
            token: word(32),
            started_ms: now_ms(),
            end_ms: now_ms() + timeout_s * 1000,
            uid: self.uids.map(|(first, last)| rng.random_range(first..last)),
            paused: false,
            auto_pause: false,
            network: Value::Null,
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.live().get(id).filter(|sandbox| !sandbox.is_killed()).cloned()
    }

    /// Newest first, as E2B lists them.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.live().values().filter(|sandbox| !sandbox.is_killed()).cloned().collect();
        all.sort_by(|a, b| (b.record.started_ms, &b.record.id).cmp(&(a.record.started_ms, &a.record.id)));
        all
    }

    /// How many count against the limit: also those being killed, but no paused ones.
    pub fn count(&self) -> usize {
        self.live().values().filter(|sandbox| !sandbox.is_paused()).count()
    }

    /// Ends a sandbox: its streams, all its processes, its directory. `false`: there was none.
    pub async fn kill(&self, id: &str, why: &str) -> bool {
        let Some(sandbox) = self.live().get(id).cloned() else { return false };
        // A second kill waits for the first: whoever is told "gone" may rely on it.
        let _changing = sandbox.changing.lock().await;
        if !self.live().contains_key(id) {
            return false;
        }
        sandbox.killed.store(true, Ordering::SeqCst);
        sandbox.cut();
        // They hold the sandbox, as it holds them.
        sandbox.watches.clear();
        if sandbox.simulation.is_none() {
            self.clear_away(&sandbox).await;
        }
        self.live().remove(id);
        self.acts.note("kill", id, json!({ "why": why, "live": self.count() }));
        true
    }

    async fn clear_away(&self, sandbox: &Sandbox) {
        let id = &sandbox.record.id;
        if !kill::all(id, sandbox.record.uid).await {
            warn!(sandbox.id = id, "Sandbox {id} has processes that SIGKILL does not end");
        }
        let home = self.dir.join(id);
        if let Err(error) = tokio::fs::remove_dir_all(&home).await {
            warn!(sandbox.id = id, %error, "The directory {} of sandbox {id} could not be removed", home.display());
        }
    }

    /// Ends those whose time is over.
    pub async fn expire(&self) {
        let now = now_ms();
        let due = self.all().into_iter().filter(|sandbox| !sandbox.is_paused() && sandbox.end_ms.load(Ordering::Relaxed) <= now);
        futures::future::join_all(due.map(|sandbox| async move {
            if sandbox.record.auto_pause {
                // One that can't be written stays as it is, and is due again.
                drop(self.pause(&sandbox).await);
            } else {
                self.kill(&sandbox.record.id, "timeout").await;
            }
        }))
        .await;
    }

    /// Stops all its processes and cuts its streams. `false`: it is paused already.
    pub async fn pause(&self, sandbox: &Sandbox) -> anyhow::Result<bool> {
        let _changing = sandbox.changing.lock().await;
        if sandbox.paused.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        sandbox.cut();
        sandbox.signal(Signal::STOP);
        // From now on this is when it was paused.
        sandbox.end_ms.store(now_ms(), Ordering::Relaxed);
        sandbox.save()?;
        self.acts.note("pause", &sandbox.record.id, json!({ "live": self.count() }));
        Ok(true)
    }

    /// Lets it go on for `seconds`. `false`: it was not paused, and only its deadline moves, never back.
    pub async fn resume(&self, sandbox: &Sandbox, seconds: u64) -> anyhow::Result<bool> {
        let _changing = sandbox.changing.lock().await;
        let until = now_ms() + seconds * 1000;
        if !sandbox.paused.swap(false, Ordering::SeqCst) {
            sandbox.end_ms.fetch_max(until, Ordering::Relaxed);
            sandbox.save()?;
            return Ok(false);
        }
        sandbox.end_ms.store(until, Ordering::Relaxed);
        sandbox.save()?;
        sandbox.signal(Signal::CONT);
        self.acts.note("resume", &sandbox.record.id, json!({ "live": self.count() }));
        Ok(true)
    }

    pub async fn kill_all(&self) {
        let all = self.all();
        futures::future::join_all(all.iter().map(|sandbox| self.kill(&sandbox.record.id, "the server ended"))).await;
    }

    pub fn known(&self, key: &str) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn remember(&self, known: Known) -> anyhow::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.dir.join("idempotency.jsonl"))?;
        file.write_all(format!("{}\n", serde_json::to_string(&known)?).as_bytes())?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(known.key.clone(), known);
        Ok(())
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Sandbox>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    fn at(home: &Path, record: Record) -> Self {
        Self {
            end_ms: AtomicU64::new(record.end_ms),
            root: home.join("root"),
            path: search_path(&home.parent().unwrap_or(home).join("bin"), record.uid.is_some()),
            paused: AtomicBool::new(record.paused),
            network: Mutex::new(record.network.clone()),
            record,
            processes: Processes::default(),
            watches: Watches::default(),
            simulation: None,
            gone: Mutex::default(),
            killed: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// Cancelled when its streams are to be cut.
    pub fn gone(&self) -> CancellationToken {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn signal(&self, signal: Signal) {
        if self.simulation.is_none() {
            kill::signal(&self.record.id, self.record.uid, signal);
        }
    }

    fn cut(&self) {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
    }

    pub fn network(&self) -> Value {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kept and given back; processes of this machine can't be held to it.
    pub fn set_network(&self, network: Value) -> anyhow::Result<()> {
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = network;
        self.save()
    }

    /// Sets the deadline, from now.
    pub fn live_for(&self, seconds: u64) -> anyhow::Result<()> {
        self.end_ms.store(now_ms() + seconds * 1000, Ordering::Relaxed);
        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        if self.simulation.is_some() {
            return Ok(());
        }
        let record = Record {
            end_ms: self.end_ms.load(Ordering::Relaxed),
            paused: self.is_paused(),
            network: self.network(),
            ..self.record.clone()
        };
        let home = self.root.parent().unwrap_or(&self.root);
        let mut file = tempfile::NamedTempFile::new_in(home)?;
        serde_json::to_writer(&mut file, &record)?;
        file.persist(home.join("sandbox.json"))?;
        Ok(())
    }
}

pub(super) fn load(dir: &Path) -> anyhow::Result<HashMap<String, Arc<Sandbox>>> {
    let mut live = HashMap::new();
    for entry in fs::read_dir(dir)? {
        let home = entry?.path();
        // No record: its create was cut before it was answered, or its kill before it was done.
        let Ok(text) = fs::read(home.join("sandbox.json")) else { continue };
        let record: Record = serde_json::from_slice(&text).with_context(|| format!("reading {}", home.display()))?;
        live.insert(record.id.clone(), Arc::new(Sandbox::at(&home, record)));
    }
    Ok(live)
}

fn load_known(dir: &Path) -> HashMap<String, Known> {
    let text = fs::read_to_string(dir.join("idempotency.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str::<Known>(line).ok()).map(|known| (known.key.clone(), known)).collect()
}

/// `turnmill agent mock` must be found in every sandbox, also by users who can't see where we are installed.
fn install(program: Option<&Path>, bin: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(bin)?;
    fs::set_permissions(bin, fs::Permissions::from_mode(0o755))?;
    let ours = program.map_or_else(std::env::current_exe, |program| Ok(program.to_owned()))?;
    let theirs = bin.join("turnmill");
    drop(fs::remove_file(&theirs));
    if fs::hard_link(&ours, &theirs).is_err() {
        fs::copy(&ours, &theirs).with_context(|| format!("copying {} to {}", ours.display(), theirs.display()))?;
    }
    Ok(())
}

/// Our own programs, then those of this machine; without places that another user can't enter, which would make
/// a missing program one that may not be run.
fn search_path(bin: &Path, as_another_user: bool) -> String {
    let all = std::env::var_os("PATH").unwrap_or_default();
    let open = |place: &PathBuf| place.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 != 0));
    let places = std::env::split_paths(&all).filter(|place| !as_another_user || open(place));
    std::env::join_paths(std::iter::once(bin.to_owned()).chain(places)).unwrap_or_default().to_string_lossy().into_owned()
}

/// User ids that nobody has, when we are root: the upper half of those that this namespace knows. Wide, and
/// drawn at random, so that two servers on one machine don't take the same.
fn spare_uids() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let last = map.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(|word| word.parse::<u64>().ok());
        let (first, _, count) = (words.next()??, words.next()??, words.next()??);
        Some(first + count)
    });
    let end = u32::try_from(last.max()?.min(1 << 31)).ok()?;
    (end >= 65_536).then_some((end / 2, end - 2))
}
