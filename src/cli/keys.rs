//! `turnmill keys`: the workers' own keys.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::keys::Vault;

/// Make master keys.
#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    what: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Print a new master key, for TURNMILL_KEYS__MASTER of every worker; put it before older ones, which still open
    New {
        /// Its id; made without it
        #[arg(value_parser = id)]
        id: Option<String>,
    },
}

fn id(value: &str) -> Result<String, String> {
    let good = (1..=64).contains(&value.len()) && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if good { Ok(value.to_owned()) } else { Err("give up to 64 letters, digits, \".\", \"_\", \"-\"".to_owned()) }
}

impl Keys {
    /// Runs it.
    pub fn run(self) -> ExitCode {
        let KeysCommand::New { id } = self.what;
        let id = id.unwrap_or_else(|| format!("k{:06x}", rand::random_range(0..0x100_0000_u32)));
        anstream::println!("{}", Vault::new_key(&id));
        ExitCode::SUCCESS
    }
}
