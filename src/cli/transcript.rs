//! `turnmill transcript`: what the agent remembers after a turn.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use secrecy::ExposeSecret as _;

use super::{paint, store};
use crate::config::Config;
use crate::keys::Vault;
use crate::transcript::unpack;

/// Print the conversation as it was after a turn: the agent's own file, an entry a line, as the Agent SDK's session stores
/// have them.
#[derive(Debug, Args)]
pub struct Transcript {
    /// The turn
    turn: String,
}

impl Transcript {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let vault = Vault::new(config.keys.master.expose_secret())?;
        let sealed = store(config).await?.transcript(&self.turn).await?;
        let sealed = sealed.with_context(|| {
            let turn = paint::line(&self.turn);
            format!("no conversation is kept of turn \"{turn}\": it has not ended, none was saved, or its session has gone on since (context_versions)")
        })?;
        let conversation = unpack(&vault, &self.turn, sealed).map_err(anyhow::Error::msg)?;
        std::io::stdout().lock().write_all(&conversation)?;
        Ok(ExitCode::SUCCESS)
    }
}
