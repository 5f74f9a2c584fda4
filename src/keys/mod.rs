//! Where credentials come from: for now fixed ones in the worker's environment. The agent gets the model's key and
//! the hooks the project's token; neither gets the other's.

mod mask;
mod vault;

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};

pub use mask::{MASKED, Mask, Pieces, SECRET_MIN, is_maskable};
pub use vault::{Closed, Sealed, Vault};

/// Names under which the worker's environment may hold the key, and the name under which the agent wants it.
const FIXED: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
    ("CLAUDE_API_KEY", "ANTHROPIC_API_KEY"),
    ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"),
    ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
];

/// The project's token, for the hooks that move its files.
const PROJECT_TOKEN: &str = "USPARK_TOKEN";

/// What an agent gets in its environment to reach its model, and its hooks to reach the project.
#[derive(Debug, Default)]
pub struct Credentials {
    variables: Vec<(&'static str, SecretString)>,
    source: Option<&'static str>,
    project_token: Option<SecretString>,
}

impl Credentials {
    /// The first fixed key that the environment has. None is no error: the mock agent needs none.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty()).map(SecretString::from);
        let key = FIXED.iter().find_map(|(ours, theirs)| Some((ours, (*theirs, given(ours)?))));
        Self {
            source: key.as_ref().map(|(ours, _)| **ours),
            variables: key.into_iter().map(|(_, variable)| variable).collect(),
            project_token: given(PROJECT_TOKEN),
        }
    }

    /// The variable that it came from, for people.
    pub fn source(&self) -> Option<&'static str> {
        self.source
    }

    /// Every secret value that the turn's processes get, the agent's and the hooks': what must never be stored or logged.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        self.variables.iter().map(|(_, value)| value).chain(&self.project_token)
    }

    /// Adds the secrets to an agent's environment, which its own shell can read.
    pub fn add_to(&self, environment: &mut BTreeMap<String, String>) {
        for (name, value) in &self.variables {
            environment.insert((*name).to_owned(), value.expose_secret().to_owned());
        }
    }

    /// Adds the project's token to the environment of hooks.
    pub fn add_project_token_to(&self, environment: &mut BTreeMap<String, String>) {
        if let Some(token) = &self.project_token {
            environment.insert(PROJECT_TOKEN.to_owned(), token.expose_secret().to_owned());
        }
    }
}
