//! Signals to all of a sandbox's processes, and their end; also of those that a server before us started.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// How long SIGKILL is tried.
const KILL_MAX: Duration = Duration::from_secs(10);

/// The same, when somebody waits for our own end.
const HURRIED_MAX: Duration = Duration::from_secs(2);

pub(super) fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// Signals every process of a sandbox once; says how many there were.
pub(super) fn signal(sandbox_id: &str, uid: Option<u32>, signal: Signal) -> usize {
    let found = processes_with(&mark(sandbox_id), uid);
    for pid in &found {
        // Already gone is as good.
        let _ = kill_process(*pid, signal);
    }
    found.len()
}

/// Ends the processes of every sandbox in a server's directory, whether or not that server runs: for who is in a hurry
/// to end, and must not leave agents behind.
pub fn everything_in(dir: &Path) {
    let since = std::time::Instant::now();
    loop {
        // Anew each time: one may just be made.
        let all = super::sandboxes::load(dir).unwrap_or_default();
        let found: usize = all.values().map(|sandbox| signal(&sandbox.record.id, sandbox.record.uid, Signal::KILL)).sum();
        if found == 0 || since.elapsed() > HURRIED_MAX {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mark(sandbox_id: &str) -> Vec<u8> {
    format!("E2B_SANDBOX_ID={sandbox_id}").into_bytes()
}

/// Ends every process that has the sandbox's id in its environment or is its user's. `false`: some are left.
pub(super) async fn all(sandbox_id: &str, uid: Option<u32>) -> bool {
    let since = Instant::now();
    let mark = mark(sandbox_id);
    loop {
        let found = processes_with(&mark, uid);
        if found.is_empty() {
            return true;
        }
        for pid in found {
            // Already gone is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        if since.elapsed() > KILL_MAX {
            return false;
        }
        // Until the kernel has taken them away; one may have forked while we looked.
        sleep(Duration::from_millis(5)).await;
    }
}

fn processes_with(mark: &[u8], uid: Option<u32>) -> Vec<Pid> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    all.flatten()
        .filter_map(|entry| {
            let pid = pid(entry.file_name().to_str()?.parse().ok()?)?;
            let of_user = uid.is_some_and(|uid| entry.metadata().is_ok_and(|found| found.uid() == uid));
            let marked = || {
                std::fs::read(entry.path().join("environ"))
                    .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|variable| variable == mark))
            };
            (of_user || marked()).then_some(pid).filter(|_| !is_zombie(&entry.path()))
        })
        .collect()
}

fn is_zombie(proc: &Path) -> bool {
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}
