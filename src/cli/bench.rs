//! stub
use std::process::ExitCode;
/// x
#[derive(Debug, clap::Args)]
pub struct Bench {}
impl Bench { /// x
pub async fn run(self, _: crate::config::Config) -> anyhow::Result<ExitCode> { anyhow::bail!("x") } }
