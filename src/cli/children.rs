//! Our own commands as processes, for the demo and the bench.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

use super::ourselves;

/// One of our own commands as a process of its own, which ends with us even if we are killed.
pub fn spawn(log: &Path, args: &[&str], environment: &BTreeMap<&str, String>) -> anyhow::Result<Child> {
    let log = File::create(log)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(ourselves()?).args(args).envs(environment);
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("starting turnmill {}", args.join(" ")))
}

/// Ends one in order, within ten seconds.
pub async fn end(child: &mut Child) -> anyhow::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
    if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// Its process id; 0 once it has ended.
pub fn pid(child: &Child) -> u32 {
    child.id().unwrap_or(0)
}
