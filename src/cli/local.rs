//! `turnmill local`: the local E2B-compatible server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::sync::oneshot;

use super::{paint, signals};
use crate::agent::mock::Script;
use crate::local::e2b;

/// Run the local E2B-compatible server.
///
/// Sandboxes are directories and processes of this machine: it isolates nothing. For development and tests.
#[derive(Debug, Args)]
pub struct Local {
    /// Where to listen; loopback only
    #[arg(long, default_value = "127.0.0.1:3900", env = "TURNMILL_LOCAL_LISTEN")]
    listen: SocketAddr,
    /// Where sandboxes live. With it they survive a restart of the server; without it they end with it
    #[arg(long, value_name = "DIR", env = "TURNMILL_LOCAL_DIR")]
    dir: Option<PathBuf>,
    /// The only account key taken; without it, any
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Most sandboxes at once; one more is refused as E2B does
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// No processes: sandboxes only play this script of the stand-in agent (a name or a file; `/mock NAME` in a prompt
    /// overrides it). For thousands of sandboxes at once
    #[arg(long, value_name = "SCRIPT")]
    simulate: Option<String>,
}

impl Local {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let stop = signals::listen()?;
        let temporary = if self.dir.is_none() { Some(tempfile::Builder::new().prefix("turnmill-local-").tempdir()?) } else { None };
        let keep = self.dir.is_some();
        let dir = self.dir.or_else(|| temporary.as_ref().map(|t| t.path().to_owned())).unwrap_or_default();
        let simulate = self.simulate.as_deref().map(Script::find).transpose()?;
        let (ready, address) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(address) = address.await {
                anstream::println!(
                    "E2B-compatible server on http://{address} (isolates nothing)\n{}export E2B_API_URL=http://{address} E2B_SANDBOX_URL=http://{address} E2B_API_KEY=local{}",
                    paint::DIM,
                    paint::OFF
                );
            }
        });
        let options = e2b::Options {
            listen: self.listen,
            dir: dir.clone(),
            api_key: self.api_key,
            concurrency: self.concurrency,
            keep,
            simulate,
            ..e2b::Options::default()
        };
        tokio::select! {
            served = e2b::serve(options, stop.in_order, ready) => served.map(|()| ExitCode::SUCCESS),
            () = stop.now.cancelled() => {
                if !keep {
                    e2b::kill_everything_in(&dir);
                }
                Ok(signals::STOPPED.into())
            }
        }
    }
}
