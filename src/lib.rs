#![doc = include_str!("../README.md")]

pub mod agent;
pub mod block;
pub mod cli;
pub mod config;
pub mod e2b;
pub mod files;
pub mod keys;
pub mod local;
pub mod sandbox;
pub mod store;
pub mod tls;
pub mod transcript;
pub mod turn;
pub mod web;
pub mod webhooks;
pub mod worker;
