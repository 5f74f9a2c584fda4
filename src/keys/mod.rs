//! Where keys come from, and who gets them.
//!
//! | file | part |
//! | --- | --- |
//! | `environment` | secrets as the operator gives them: variables and files |
//! | `keyring` | a worker's sources of keys, in their order |
//! | `bedrock`, `sts`, `bearer` | Amazon Bedrock: a role assumed for some models, and a token made of that |
//! | `credentials` | what one turn's processes get |
//! | `egress` | the key outside of the sandbox, and what may be reached from there |
//! | `mask` | takes secrets out of what is stored or shown |
//! | `own` | the keys of users and tenants, sealed |
//! | `vault`, `rotate` | seals what the database keeps; seals it anew |
//! | `strength` | what can't be a secret |

mod bearer;
mod bedrock;
mod credentials;
mod egress;
mod environment;
mod keyring;
mod mask;
mod own;
mod rotate;
mod strength;
mod sts;
mod vault;

pub use bearer::bearer_token;
pub use bedrock::{Bedrock, check_model};
pub use credentials::{Credentials, KeyKind, seal_of_secrets};
pub use egress::{Egress, STAND_IN, check_allowed};
pub use environment::Environment;
pub use keyring::{Keyring, Required, Source};
pub use mask::{MASKED, Mask, Pieces, SECRET_MIN, is_maskable, shortened};
pub use own::{OwnKey, check_own, kind_of, seal_of_own};
pub use rotate::{Rotated, rotate};
pub use strength::weakness;
pub use vault::{Closed, Sealed, Vault};

/// Why a turn has no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTrouble {
    /// For programs, as in `turns.error_code`.
    pub code: &'static str,
    /// What to do about it. Never a secret.
    pub text: String,
    /// Whether it may be otherwise in a while.
    pub passing: bool,
}

impl KeyTrouble {
    /// That only somebody can end.
    pub fn lasting(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), passing: false }
    }

    /// That may end by itself.
    pub fn passing(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), passing: true }
    }
}
