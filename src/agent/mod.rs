//! stub
#![allow(missing_docs)]
use crate::block::Block;
#[derive(Debug, Clone)] pub struct Fold;
impl Fold { pub fn new(_: Option<String>) -> Self { Self } pub fn line(&mut self, _: &[u8]) -> Vec<Block> { vec![] } pub fn oversized(&mut self, _: u64) -> Vec<Block> { vec![] } pub fn dangling(&self, _: &str) -> Vec<Block> { vec![] } pub fn outcome(&self, _: &Exit) -> Outcome { unimplemented!() } }
pub struct Exit { pub status: i32, pub stderr_tail: String }
#[derive(Debug, Clone, PartialEq)] pub struct Outcome { pub verdict: Verdict, pub usage: Option<serde_json::Value>, pub cost_usd: Option<f64> }
impl Outcome { pub fn completed(&self) -> bool { matches!(self.verdict, Verdict::Completed) } }
#[derive(Debug, Clone, PartialEq)] pub enum Verdict { Completed, Failed(Failure) }
#[derive(Debug, Clone, PartialEq)] pub struct Failure { pub code: ErrorCode, pub message: String, pub retryable: bool }
#[derive(Debug, Clone, Copy, PartialEq)] pub enum ErrorCode { X }
impl ErrorCode { pub fn as_str(self) -> &'static str { "x" } }
pub mod mock { pub fn run(_: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode { std::process::ExitCode::SUCCESS } }
