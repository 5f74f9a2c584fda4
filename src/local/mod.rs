//! The embedded default: what `turnmill dev` and `make demo` need, on this machine alone.

pub mod e2b;
pub mod postgres;
