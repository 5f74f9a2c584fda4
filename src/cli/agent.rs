//! `turnmill agent mock`: the stand-in agent.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

const SCRIPTS: &str = r#"Scripts by name:
  default    five blocks, half a second apart
  noop       one block, at once
  tools      three calls of tools, one of which fails
  long       a quarter of a minute of plausible work
  api-error  the model's API is overloaded
  hang       stops in the middle of a call and never goes on
  crash      ends in the middle, as after a segmentation fault
  garbage    is some other program, that speaks no stream-json
  hostile    what has broken others: no JSON, no UTF-8, escape sequences, a line of 2 MiB

A script in a file, or as it is here on the command line or behind /mock, is JSON:
  {"delay_ms": 100, "steps": [
    {"thinking": "hm"}, {"text": "Let me look."},
    {"tool": {"name": "Bash", "input": {"command": "ls"}, "result": "src"}},
    {"sleep_ms": 500}, {"exit": 1}]}
Other steps: {"api_error": {"error": "overloaded", "status": 529, "message": "…"}}, {"raw": "a line as it is"},
{"torn": "a line without its end"}, {"huge": 1000000}, "invalid_utf8", "repeat", "recall",
{"write": {"path": "a.txt", "text": "new"}}, {"read": "a.txt"}, {"delete": "a.txt"}, "hang"; a tool without a result never returns.
delay_ms is the pause before each step."#;

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
    /// TURNMILL_MOCK_SCRIPT, or a first line of the prompt like `/mock tools`.
    #[command(after_long_help = SCRIPTS)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::mock::Script;

    #[test]
    fn what_the_help_says_of_scripts_holds() {
        let (names, json) = SCRIPTS.split_once("is JSON:\n").unwrap();
        let names: Vec<_> = names.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
        assert_eq!(names, crate::agent::mock::NAMES);
        let (script, others) = json.split_once("\nOther steps:").unwrap();
        assert_eq!(Script::find(script.trim()).unwrap().steps.len(), 5);
        let others = others.split(';').next().unwrap();
        assert_eq!(Script::find(&format!(r#"{{"steps": [{}]}}"#, others.replace('\n', " "))).unwrap().steps.len(), 11);
    }
}
