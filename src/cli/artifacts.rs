//! `turnmill artifacts`: the files that a turn has made, listed or fetched.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::{paint, store};
use crate::config::Config;
use crate::store::{ArtifactRow, Artifacts};

/// List the files that a turn created, modified or deleted, or fetch one.
#[derive(Debug, Args)]
pub struct ArtifactsArgs {
    /// The turn
    turn: String,
    /// Print the content of this file
    path: Option<String>,
    /// Write the content there
    #[arg(long, short, value_name = "FILE", requires = "path")]
    output: Option<PathBuf>,
    /// A JSON line each
    #[arg(long, conflicts_with = "path")]
    json: bool,
}

impl ArtifactsArgs {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        let Some(path) = self.path else {
            let found = store.artifacts(&self.turn).await?;
            let found =
                found.with_context(|| format!("there is no turn \"{}\"; list turns with: turnmill turns", paint::line(&self.turn)))?;
            return show(&found, self.json);
        };
        let content = store.artifact(&self.turn, &path).await?;
        match self.output {
            Some(file) => std::fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?,
            // Byte for byte: whoever wants it on a terminal has asked for it.
            None => std::io::stdout().lock().write_all(&content)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(found: &Artifacts, json: bool) -> anyhow::Result<ExitCode> {
    if let Some(why) = &found.unlisted {
        anstream::eprintln!("Not all is listed: {}.", paint::line(why));
    }
    if found.completed_at.is_none() {
        anstream::eprintln!("The turn has not ended: its files are listed when it has.");
    }
    let size = |row: &ArtifactRow| row.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    let width = found.rows.iter().map(|row| size(row).len()).max().unwrap_or(0);
    for row in &found.rows {
        if json {
            anstream::println!("{}", paint::json(row)?);
            continue;
        }
        let kept = if row.kept || row.bytes.is_none() { "" } else { "  (not kept)" };
        anstream::println!("{:<8}  {:>width$}  {}{}{kept}{}", row.change, size(row), paint::line(&row.path), paint::DIM, paint::OFF);
    }
    Ok(ExitCode::SUCCESS)
}
