//! `turnmill journal`: what an agent printed, word for word.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use flate2::read::MultiGzDecoder;

use super::{paint, store};
use crate::config::Config;

/// Print what the agent of a finished attempt printed: every line, also those that no block shows.
#[derive(Debug, Args)]
pub struct Journal {
    /// The turn
    turn: String,
    /// Which start of its agent, from 1; the newest whose journal is kept, if it is not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    attempt: Option<i32>,
}

impl Journal {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        let kept = store.journal(&self.turn, self.attempt).await?;
        let Some(kept) = kept else {
            let turn = paint::line(&self.turn);
            let others: Vec<String> = store.journals(&self.turn).await?.iter().map(|(attempt, _)| attempt.to_string()).collect();
            if others.is_empty() {
                anyhow::bail!(
                    "no journal is kept of turn \"{turn}\": no attempt of it has ended, or its pool keeps none, or no longer (pool set --journal-days)"
                );
            }
            anyhow::bail!("no journal is kept of that attempt of turn \"{turn}\"; there is one of: {}", others.join(", "));
        };
        let mut lines = Vec::new();
        MultiGzDecoder::new(kept.data.as_slice()).read_to_end(&mut lines).context("unpacking the journal")?;
        std::io::stdout().lock().write_all(&lines)?;
        if !kept.whole {
            anstream::eprintln!("It goes on: {} of {} bytes are kept.", lines.len(), kept.bytes);
        }
        Ok(ExitCode::SUCCESS)
    }
}
