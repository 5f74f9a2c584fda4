//! The `turnmill` command: parses, sets up logging, runs one subcommand.

use std::process::ExitCode;

use clap::Parser as _;
use turnmill::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return turnmill::cli::explain(&error),
    };
    // The stand-in agent plays another program: its own output, exit codes and runtime.
    if let Command::Agent(agent) = cli.command {
        return agent.run();
    }
    turnmill::cli::logging(&cli.log, cli.command.is_service());
    turnmill::tls::install();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("error: can't start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(code) => code,
        Err(error) => {
            turnmill::cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
