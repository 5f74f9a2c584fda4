//! What one turn's processes get: the agent the key to its model, the hooks the project's token; neither gets the other's.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret, SecretString};

use super::STAND_IN;

/// The project's token, for the hooks that move its files.
pub(super) const PROJECT_TOKEN: &str = "USPARK_TOKEN";

/// What a key is, and so under which name the agent wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Of the model's API.
    ApiKey,
    /// Of a gateway in front of it.
    AuthToken,
    /// Of a subscription.
    OauthToken,
    /// Of Amazon Bedrock, for some hours.
    BedrockToken,
}

impl KeyKind {
    /// The variable in which Claude Code looks for it.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::ApiKey => "ANTHROPIC_API_KEY",
            Self::AuthToken => "ANTHROPIC_AUTH_TOKEN",
            Self::OauthToken => "CLAUDE_CODE_OAUTH_TOKEN",
            Self::BedrockToken => "AWS_BEARER_TOKEN_BEDROCK",
        }
    }
}

/// What one turn's processes get in their environments.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    key: Option<(KeyKind, SecretString)>,
    /// What is no secret: which model, where it is.
    settings: Vec<(&'static str, String)>,
    project_token: Option<SecretString>,
    /// What the turn's attempts before were given, by whomever.
    before: Vec<SecretString>,
}

impl Credentials {
    /// With a key for the agent.
    pub fn with_key(kind: KeyKind, key: SecretString) -> Self {
        Self { key: Some((kind, key)), ..Self::default() }
    }

    /// And with what is no secret.
    #[must_use]
    pub fn and(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    /// And with the project's token for its hooks.
    #[must_use]
    pub fn and_project_token(mut self, token: Option<SecretString>) -> Self {
        self.project_token = token;
        self
    }

    /// The agent's key, if it gets one.
    pub fn key(&self) -> Option<(KeyKind, &SecretString)> {
        self.key.as_ref().map(|(kind, key)| (*kind, key))
    }

    /// And knowing what the turn's attempts before were given, which its processes may say still.
    #[must_use]
    pub fn and_known(mut self, before: Vec<SecretString>) -> Self {
        self.before = before;
        self
    }

    /// Every secret value that the turn's processes get or got, the agent's and the hooks': what must never be stored or logged.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        self.key.iter().map(|(_, key)| key).chain(&self.project_token).chain(&self.before)
    }

    /// The same in one piece, each once, to be sealed.
    pub fn pack(&self) -> Vec<u8> {
        let each: BTreeSet<&str> = self.secrets().map(ExposeSecret::expose_secret).collect();
        each.into_iter().flat_map(|secret| [secret, "\0"].concat().into_bytes()).collect()
    }

    /// And back.
    pub fn unpack(packed: &[u8]) -> Vec<SecretString> {
        let text = String::from_utf8_lossy(packed);
        text.split_terminator('\0').map(|secret| secret.to_owned().into()).collect()
    }

    /// Adds the secrets to an agent's environment, which its own shell can read; where they are added `outside`, a stand-in. Of a
    /// base URL the pool's own stays.
    pub fn add_to(&self, environment: &mut BTreeMap<String, String>, outside: bool) {
        for (name, value) in &self.settings {
            match *name {
                "ANTHROPIC_BASE_URL" => _ = environment.entry((*name).to_owned()).or_insert_with(|| value.clone()),
                _ => _ = environment.insert((*name).to_owned(), value.clone()),
            }
        }
        if let Some((kind, key)) = &self.key {
            let key = if outside { STAND_IN } else { key.expose_secret() };
            environment.insert(kind.variable().to_owned(), key.to_owned());
        }
    }

    /// Adds the project's token to the environment of hooks.
    pub fn add_project_token_to(&self, environment: &mut BTreeMap<String, String>) {
        if let Some(token) = &self.project_token {
            environment.insert(PROJECT_TOKEN.to_owned(), token.expose_secret().to_owned());
        }
    }
}

/// What turns' secrets are sealed to: their turn.
pub fn seal_of_secrets(turn_id: &str) -> String {
    format!("turn_secrets/{turn_id}")
}
