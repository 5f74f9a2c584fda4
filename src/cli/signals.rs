//! What the terminal and the operator ask for: to stop in order, then at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The exit code of who was stopped.
pub const STOPPED: u8 = 130;

/// How far a command was asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled by the first signal: end in order.
    pub in_order: CancellationToken,
    /// Cancelled by the second: end now, but leave nothing behind.
    pub now: CancellationToken,
}

/// Listens for SIGINT, SIGTERM, and SIGHUP, which a closed terminal sends.
pub fn listen() -> anyhow::Result<Stop> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = hangup()?;
    let stop = Stop::default();
    let told = stop.clone();
    tokio::spawn(async move {
        for token in [told.in_order, told.now] {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hung_up => {} }
            info!("Stopping; another signal ends at once");
            token.cancel();
        }
    });
    Ok(stop)
}

/// For who leaves nothing behind that another would not clear away: the second signal ends the process at once.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = listen()?;
    tokio::spawn(async move {
        stop.now.cancelled().await;
        std::process::exit(STOPPED.into());
    });
    Ok(stop.in_order)
}

/// `None`: whoever started us wants it ignored, as nohup does; to listen for it would undo that.
fn hangup() -> std::io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if ignored.is_some_and(|mask| mask & 1 == 1) { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}
