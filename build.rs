//! A new migration must be embedded, and how pages are read be heeded, also when no Rust file has changed.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=askama.toml");
}
