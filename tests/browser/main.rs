//! Our pages in a real browser: Chromium without a window, driven over the W3C protocol. `make test-browser` installs it.
//! Real Postgres, a database per test; the server, the worker and the sandboxes are the real ones, the agent is the stand-in.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod browser;
mod chat;
#[path = "../it/harness.rs"]
mod harness;
mod hostile;
mod keys;
mod on_call;
mod ops;
mod pictures;
#[path = "../it/site.rs"]
mod site;
mod talk;
