#![allow(missing_docs)]
use std::{net::SocketAddr, path::PathBuf}; use tokio::sync::oneshot; use tokio_util::sync::CancellationToken;
#[derive(Debug, Clone)] pub struct Options { pub listen: SocketAddr, pub dir: PathBuf, pub api_key: Option<String>, pub concurrency: Option<u32>, pub keep: bool }
impl Default for Options { fn default() -> Self { unimplemented!() } }
pub async fn serve(_: Options, _: CancellationToken, _: oneshot::Sender<SocketAddr>) -> anyhow::Result<()> { unimplemented!() }
