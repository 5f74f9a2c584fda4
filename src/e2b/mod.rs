//! stub
#![allow(missing_docs)]
use std::{collections::BTreeMap, ops::Range, time::Duration}; use bytes::Bytes; use secrecy::SecretString;
#[derive(Debug, Clone, Copy)] pub enum ApiVersion { V1, V2 }
#[derive(Debug, Clone)] pub struct Config { pub api_url: String, pub domain: String, pub sandbox_url: Option<String>, pub api_key: SecretString, pub api_version: ApiVersion }
#[derive(Debug, Clone)] pub struct Client;
#[derive(Debug, Clone)] pub struct Sandbox { pub id: String }
#[derive(Debug, Clone)] pub struct SandboxInfo;
impl From<&SandboxInfo> for Sandbox { fn from(_: &SandboxInfo) -> Self { unimplemented!() } }
#[derive(Debug, Clone)] pub struct ListedSandbox { pub id: String }
#[derive(Debug, Clone, thiserror::Error)] pub enum CreateError { #[error("")] Retry(String), #[error("")] RetryAfter(Duration, String), #[error("")] AtCapacity { cap: Option<u32>, cause: String }, #[error("")] Blocked(String), #[error("")] Config(String), #[error("")] Unknown(String) }
#[derive(Debug, Clone, thiserror::Error)] pub enum ApiError { #[error("")] Transient(String) }
#[derive(Debug, Clone, thiserror::Error)] pub enum EnvdError { #[error("")] Gone, #[error("")] NotReady(String), #[error("")] Unreachable(String), #[error("")] DeadlineExceeded }
impl Client { pub fn new(_: Config) -> Self { Self }
 pub async fn create(&self, _: &str, _: &serde_json::Value, _: Duration) -> Result<Sandbox, CreateError> { unimplemented!() }
 pub async fn get(&self, _: &str) -> Result<Option<SandboxInfo>, ApiError> { unimplemented!() }
 pub async fn list(&self, _: &[(&str, &str)]) -> Result<Vec<ListedSandbox>, ApiError> { unimplemented!() }
 pub async fn set_timeout(&self, _: &str, _: Duration) -> Result<bool, ApiError> { unimplemented!() }
 pub async fn kill(&self, _: &str) -> Result<(), ApiError> { unimplemented!() }
 pub fn envd(&self, _: &Sandbox) -> Envd { Envd } }
#[derive(Debug, Clone)] pub struct Envd;
#[derive(Debug, Clone)] pub struct Command { pub cmd: String, pub args: Vec<String>, pub envs: BTreeMap<String, String>, pub cwd: Option<String>, pub user: String, pub tag: Option<String> }
pub struct Output { pub stdout: Vec<u8>, pub stderr: Vec<u8>, pub exit_code: i32 }
#[derive(Debug)] pub enum ProcessEvent { Stdout(Bytes), Stderr(Bytes), End }
pub type ProcessStream = futures::stream::BoxStream<'static, Result<ProcessEvent, EnvdError>>;
impl Envd {
 pub async fn run(&self, _: &Command, _: Duration) -> Result<Output, EnvdError> { unimplemented!() }
 pub async fn start(&self, _: &Command) -> Result<ProcessStream, EnvdError> { unimplemented!() }
 pub async fn upload(&self, _: &str, _: &str, _: Bytes, _: Duration) -> Result<(), EnvdError> { unimplemented!() }
 pub async fn download(&self, _: &str, _: &str, _: Range<u64>, _: Duration) -> Result<Bytes, EnvdError> { unimplemented!() } }
