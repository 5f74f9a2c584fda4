//! A new migration must be embedded, also when no Rust file has changed.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
