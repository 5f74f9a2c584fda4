//! A worker's sources of keys, and in which order a turn looks into them.

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};

use super::credentials::PROJECT_TOKEN;
use super::{Bedrock, Credentials, Environment, KeyKind, weakness};
use crate::config::Config;

/// Where a key may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The worker's own, for every turn.
    Fixed,
    /// Amazon Bedrock.
    Bedrock,
    /// The session's user's, or tenant's.
    User,
}

/// Whether a turn may run without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Required {
    /// If its agent is not Claude Code, or the pool's own environment has a key.
    Auto,
    /// No.
    Always,
    /// Yes.
    #[default]
    Never,
}

/// Variables in a pool's own environment that make a key of ours needless.
const OF_A_POOL: [&str; 8] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
];

/// The sources of one worker. By default none, and none is needed.
#[derive(Debug, Default)]
pub struct Keyring {
    order: Vec<Source>,
    required: Required,
    fixed: Option<(KeyKind, SecretString)>,
    base_url: Option<String>,
    bedrock: Option<Bedrock>,
    project_token: Option<SecretString>,
    /// Where the fixed key was found, for people.
    origin: Option<String>,
}

impl Keyring {
    /// From what the operator gives. Fails, with what to do, for what can't work.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let environment = &config.environment;
        let order = order(&config.keys.order)?;
        let fixed = fixed(environment)?;
        let bedrock = if order.contains(&Source::Bedrock) { Bedrock::new(environment, &config.keys) } else { Ok(None) };
        let bedrock = match bedrock {
            // Somebody before it has one for every turn: half a configuration of what is never asked does no harm.
            Err(_)
                if fixed.is_some()
                    && order.iter().take_while(|source| **source != Source::Bedrock).any(|source| *source == Source::Fixed) =>
            {
                None
            }
            other => other?,
        };
        Ok(Self {
            required: required(&config.keys.required)?,
            base_url: base_url(environment)?,
            project_token: strong(environment, PROJECT_TOKEN)?,
            origin: fixed.as_ref().and_then(|(kind, _)| environment.origin(kind.variable()).map(str::to_owned)),
            fixed: fixed.filter(|_| order.contains(&Source::Fixed)),
            order,
            bedrock,
        })
    }

    /// Where a turn looks, in this order.
    pub fn order(&self) -> &[Source] {
        &self.order
    }

    /// The key for every turn.
    pub fn fixed(&self) -> Option<Credentials> {
        let (kind, key) = self.fixed.clone()?;
        let credentials = Credentials::with_key(kind, key);
        Some(match &self.base_url {
            Some(url) => credentials.and("ANTHROPIC_BASE_URL", url.as_str()),
            None => credentials,
        })
    }

    /// Bedrock, if it is set up.
    pub fn bedrock(&self) -> Option<&Bedrock> {
        self.bedrock.as_ref()
    }

    /// With what the turn's hooks get.
    pub fn for_hooks(&self, credentials: Credentials) -> Credentials {
        credentials.and_project_token(self.project_token.clone())
    }

    /// Whether a turn with this agent and this environment of its pool can't run without a key.
    pub fn requires(&self, agent: &[String], pool: &serde_json::Value) -> bool {
        let program = agent.first().and_then(|program| program.rsplit('/').next());
        match self.required {
            Required::Always => true,
            Required::Never => false,
            Required::Auto => program == Some("claude") && !OF_A_POOL.iter().any(|name| pool.get(name).is_some()),
        }
    }

    /// Where the key of most turns comes from, for people; `None`: from nowhere that is known before a turn.
    pub fn source(&self) -> Option<String> {
        self.order.iter().find_map(|source| match source {
            Source::Fixed => self.origin.clone().filter(|_| self.fixed.is_some()),
            Source::Bedrock => self.bedrock.as_ref().map(Bedrock::describe),
            Source::User => None,
        })
    }
}

fn order(text: &str) -> anyhow::Result<Vec<Source>> {
    let mut order = Vec::new();
    for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
        let source = match word {
            "fixed" => Source::Fixed,
            "bedrock" => Source::Bedrock,
            "user" => Source::User,
            _ => anyhow::bail!("keys.order has \"{word}\"; it is made of fixed, bedrock and user"),
        };
        anyhow::ensure!(!order.contains(&source), "keys.order has \"{word}\" twice");
        order.push(source);
    }
    anyhow::ensure!(!order.is_empty(), "keys.order is empty; it is made of fixed, bedrock and user");
    Ok(order)
}

fn required(text: &str) -> anyhow::Result<Required> {
    Ok(match text {
        "auto" => Required::Auto,
        "always" => Required::Always,
        "never" => Required::Never,
        _ => anyhow::bail!("keys.required is \"{text}\"; it is auto, always or never"),
    })
}

/// The first in the order in which Claude Code itself would take them.
fn fixed(environment: &Environment) -> anyhow::Result<Option<(KeyKind, SecretString)>> {
    for kind in [KeyKind::ApiKey, KeyKind::AuthToken, KeyKind::OauthToken] {
        if let Some(key) = strong(environment, kind.variable())? {
            return Ok(Some((kind, key)));
        }
    }
    Ok(None)
}

/// A secret that can be one.
fn strong(environment: &Environment, name: &str) -> anyhow::Result<Option<SecretString>> {
    let Some(value) = environment.get(name) else { return Ok(None) };
    match weakness(value.expose_secret()) {
        Some(why) => anyhow::bail!("{} {why}", environment.origin(name).unwrap_or(name)),
        None => Ok(Some(value.clone())),
    }
}

fn base_url(environment: &Environment) -> anyhow::Result<Option<String>> {
    let Some(text) = environment.plain("ANTHROPIC_BASE_URL") else { return Ok(None) };
    // Not repeated: somebody may have put a password in.
    let wrong = "ANTHROPIC_BASE_URL is no http:// or https:// URL; write it like https://gateway.example";
    let url = reqwest::Url::parse(&text).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()).context(wrong)?;
    anyhow::ensure!(
        url.username().is_empty() && url.password().is_none(),
        "ANTHROPIC_BASE_URL has a name or a password in it, which would be no secret there; give the gateway's token as ANTHROPIC_AUTH_TOKEN"
    );
    Ok(Some(text))
}
