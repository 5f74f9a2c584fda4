//! The one TLS provider of the process.

/// Makes ring the default. More than one provider may get linked, and rustls panics on the ambiguity.
/// May be called any number of times.
pub fn install() {
    // An error means that one is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}
