//! Where an agent's credentials come from. For now the fixed key in the worker's environment.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};

/// Names under which the worker's environment may hold the key, and the name under which the agent wants it.
const FIXED: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
    ("CLAUDE_API_KEY", "ANTHROPIC_API_KEY"),
    ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"),
    ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
];

/// What an agent gets in its environment to reach its model.
#[derive(Debug, Default)]
pub struct Credentials {
    variables: Vec<(&'static str, SecretString)>,
    source: Option<&'static str>,
}

impl Credentials {
    /// The first fixed key that the environment has. None is no error: the mock agent needs none.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        FIXED
            .iter()
            .find_map(|(ours, theirs)| {
                let value = variable(ours).filter(|value| !value.is_empty())?;
                Some(Self { variables: vec![(theirs, value.into())], source: Some(ours) })
            })
            .unwrap_or_default()
    }

    /// The variable that it came from, for people.
    pub fn source(&self) -> Option<&'static str> {
        self.source
    }

    /// Adds the secrets to an agent's environment, which its own shell can read.
    pub fn add_to(&self, environment: &mut BTreeMap<String, String>) {
        for (name, value) in &self.variables {
            environment.insert((*name).to_owned(), value.expose_secret().to_owned());
        }
    }
}
