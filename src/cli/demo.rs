//! stub
use std::process::ExitCode;
/// x
#[derive(Debug, clap::Args)]
pub struct Demo {}
impl Demo { /// x
pub async fn run(self) -> anyhow::Result<ExitCode> { anyhow::bail!("x") } }
