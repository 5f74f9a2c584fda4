//! `turnmill agent mock`: the stand-in agent.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Stand-ins for a coding agent.
#[derive(Debug, Args)]
pub struct Agent {
    #[command(subcommand)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// Speak Claude Code's stream-json from a script; needs no account and no key
    ///
    /// Reads one user message from stdin, as the real CLI does. The script is --script=NAME|FILE, or
    /// TURNMILL_MOCK_SCRIPT, or a first line of the prompt like `/mock tools`; by default five blocks,
    /// half a second apart. Names: default, noop, tools, long, api-error, hang, crash, garbage, hostile.
    Mock {
        /// As the real CLI's; only --script, --session-id and --resume mean something
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

impl Agent {
    /// Plays the agent.
    pub fn run(self) -> ExitCode {
        let Which::Mock { args } = self.which;
        crate::agent::mock::run(args.into_iter())
    }
}
