//! What nobody may see of what a turn's agent says: the secrets that it was given, by this worker or by one before, whose keys
//! may have been others.

use secrecy::SecretString;

use super::Worker;
use crate::keys::Mask;

/// What hides the secrets of one turn.
#[derive(Debug)]
pub(super) struct Secrets {
    /// In what its agent says.
    pub said: Mask,
    /// With those of this process: in errors, which may repeat what a server was sent.
    pub in_errors: Mask,
}

impl Secrets {
    /// Of what its processes have, as far as that is known.
    pub fn new<'a>(worker: &Worker, given: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let given: Vec<&SecretString> = given.into_iter().collect();
        let own = worker.config.secrets();
        Self { said: Mask::new(given.iter().copied()), in_errors: Mask::new(given.iter().copied().chain(&own)) }
    }
}
