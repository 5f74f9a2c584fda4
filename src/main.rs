//! The `turnmill` command.
fn main() {}
