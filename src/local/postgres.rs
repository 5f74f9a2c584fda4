#![allow(missing_docs)]
use std::path::{Path, PathBuf};
#[derive(Debug, Default)] pub struct Options {}
#[derive(Debug)] pub struct Postgres;
impl Postgres { pub async fn start(_: &Path, _: Options) -> anyhow::Result<Self> { unimplemented!() } pub fn url(&self) -> String { unimplemented!() } pub async fn stop(self) -> anyhow::Result<()> { unimplemented!() } }
pub fn find_bin() -> anyhow::Result<PathBuf> { unimplemented!() }
