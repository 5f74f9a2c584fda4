//! Amazon Bedrock: the worker assumes a role that may invoke the pinned models and nothing else, and makes a short-term key
//! of what it gets. Only that key goes into a sandbox; it can sign nothing, and ends by itself.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::bearer::{LIFE_MAX, bearer_token};
use super::sts::{Identity, Wanted, assume};
use super::{Credentials, Environment, KeyKind, KeyTrouble};
use crate::config;

/// How much longer than its turn a key must last: the turn's limit is looked at every now and then.
const MARGIN: Duration = Duration::from_secs(60);

/// How much longer than that one is asked for, so that the turns after it can have the same.
const SPARE: Duration = Duration::from_secs(1800);

/// STS gives nothing shorter.
const LIFE_MIN: Duration = Duration::from_secs(900);

/// Turns that ask within this time of a refusal get the same answer.
const REFUSED: Duration = Duration::from_secs(3);

/// STS takes no longer policy.
const POLICY_CHARS_MAX: usize = 2048;

/// The source of Bedrock's keys.
#[derive(Debug)]
pub struct Bedrock {
    role: Role,
    region: String,
    /// The first is the agent's unless the turn says otherwise.
    models: Vec<String>,
    session_max: Duration,
    session: String,
    endpoint: Option<String>,
    identity: Identity,
    policy: String,
    /// Whoever holds the lock asks; the others wait for the answer.
    newest: Mutex<Option<Result<Minted, Refused>>>,
}

#[derive(Debug, Clone)]
struct Minted {
    token: secrecy::SecretString,
    until: Instant,
}

#[derive(Debug)]
struct Refused {
    at: Instant,
    why: KeyTrouble,
}

impl Bedrock {
    /// As it is configured: `None` where nothing says that Bedrock is wanted. Else all of it must be there.
    pub fn new(environment: &Environment, keys: &config::Keys) -> anyhow::Result<Option<Self>> {
        let on = environment.plain("CLAUDE_CODE_USE_BEDROCK").is_some_and(|value| !["0", "false"].contains(&value.as_str()));
        if !on && environment.get("BEDROCK_MODEL_ID").is_none() {
            return Ok(None);
        }
        let missing = |name: &str, what: &str| format!("Bedrock is wanted, but {name} is missing: {what}");
        let model = environment.plain("BEDROCK_MODEL_ID").with_context(|| {
            missing("BEDROCK_MODEL_ID", "the inference profile to call, as us.anthropic.claude-sonnet-4-5-20250929-v1:0")
        })?;
        let region = environment.plain("AWS_REGION").with_context(|| missing("AWS_REGION", "where to call Bedrock, as us-east-1"))?;
        let role = environment.plain("AWS_ROLE_ARN").with_context(|| {
            missing(
                "AWS_ROLE_ARN",
                "the role that workers assume for the agents, so that those never get the workers' own rights; docs/keys.md",
            )
        })?;
        let role: Role = role.parse()?;
        let further = keys.bedrock_models.split([',', ' ']).filter(|model| !model.is_empty()).map(str::to_owned);
        let models: Vec<String> = std::iter::once(model).chain(further).collect();
        for model in &models {
            check_model(model)?;
        }
        let policy = session_policy(&role, &region, &models).to_string();
        anyhow::ensure!(
            policy.len() <= POLICY_CHARS_MAX,
            "BEDROCK_MODEL_ID and keys.bedrock_models name too many models: the session's policy would have {} characters, and STS takes {POLICY_CHARS_MAX}",
            policy.len()
        );
        anyhow::ensure!(
            (LIFE_MIN..=LIFE_MAX).contains(&keys.bedrock_session_max),
            "keys.bedrock_session_max must be between 15m and 12h: as long as the role may be assumed"
        );
        Ok(Some(Self {
            session: format!("turnmill-{:08x}", rand::random::<u32>()),
            endpoint: (!keys.sts_url.is_empty()).then(|| keys.sts_url.clone()),
            identity: identity(environment)?,
            session_max: keys.bedrock_session_max,
            newest: Mutex::new(None),
            role,
            region,
            models,
            policy,
        }))
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("Bedrock in {}, model {}, role {}", self.region, self.models[0], self.role.arn)
    }

    /// The longest turn that a key lasts for.
    pub fn turn_max(&self) -> Duration {
        self.session_max.saturating_sub(MARGIN)
    }

    /// What a turn's agent gets: a key that outlasts the turn, and the models that it is good for.
    pub async fn credentials(&self, model: Option<&str>, time_left: Duration) -> Result<Credentials, KeyTrouble> {
        if let Some(model) = model.filter(|model| !self.models.iter().any(|pinned| pinned == model)) {
            let text = format!(
                "the option model is \"{model}\", and on Bedrock only these may be called: {}; add it to keys.bedrock_models",
                self.models.join(", ")
            );
            return Err(KeyTrouble::lasting("bedrock_model", text));
        }
        let needed = time_left + MARGIN;
        if needed > self.session_max {
            let text = format!(
                "the turn may run for {} s more, and a Bedrock key of this fleet lasts for {} s at most: lower the pool's turn_timeout_s, or raise \
                 the role's maximum session duration and keys.bedrock_session_max (12h at most, 1h for a role that a role assumes)",
                time_left.as_secs(),
                self.session_max.as_secs()
            );
            return Err(KeyTrouble::lasting("bedrock_session_too_short", text));
        }
        let token = self.token(needed).await?;
        let mut credentials =
            Credentials::with_key(KeyKind::BedrockToken, token).and("CLAUDE_CODE_USE_BEDROCK", "1").and("AWS_REGION", self.region.as_str());
        // All of them, or the agent would look for models that it may not call.
        for name in ["ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"] {
            credentials = credentials.and(name, self.models[0].as_str());
        }
        Ok(credentials)
    }

    /// One that lasts so long, from before or new.
    async fn token(&self, needed: Duration) -> Result<secrecy::SecretString, KeyTrouble> {
        let mut newest = self.newest.lock().await;
        match &*newest {
            Some(Ok(minted)) if minted.until.saturating_duration_since(Instant::now()) >= needed => return Ok(minted.token.clone()),
            Some(Err(refused)) if refused.at.elapsed() < REFUSED => return Err(refused.why.clone()),
            _ => {}
        }
        let minted = self.mint(needed).await;
        let answer = minted.as_ref().map(|minted| minted.token.clone()).map_err(KeyTrouble::clone);
        *newest = Some(minted.map_err(|why| Refused { at: Instant::now(), why }));
        answer
    }

    async fn mint(&self, needed: Duration) -> Result<Minted, KeyTrouble> {
        let life = (needed + SPARE).min(self.session_max).max(LIFE_MIN);
        let since = Instant::now();
        let wanted = Wanted { role: &self.role.arn, session: &self.session, policy: &self.policy, life };
        let assumed = assume(&self.identity, &self.region, self.endpoint.as_deref(), wanted).await?;
        #[expect(clippy::disallowed_methods, reason = "AWS wants to know when something was signed; nothing here is decided by it")]
        let now = SystemTime::now();
        let token = bearer_token(assumed, &self.region, life, now)
            .map_err(|error| KeyTrouble::lasting("bedrock_refused", format!("no key can be made of what STS gave: {error}")))?;
        Ok(Minted { token, until: since + life })
    }
}

/// Who the worker itself is to AWS.
fn identity(environment: &Environment) -> anyhow::Result<Identity> {
    let session = environment.get("AWS_SESSION_TOKEN").cloned();
    match (environment.plain("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY").cloned()) {
        (Some(id), Some(secret)) => Ok(Identity::Key { id, secret, session }),
        (Some(_), None) => anyhow::bail!("Bedrock is wanted, but AWS_SECRET_ACCESS_KEY is missing, which belongs to AWS_ACCESS_KEY_ID"),
        (None, Some(_)) => anyhow::bail!("Bedrock is wanted, but AWS_ACCESS_KEY_ID is missing, which belongs to AWS_SECRET_ACCESS_KEY"),
        (None, None) => Ok(match std::env::var("AWS_WEB_IDENTITY_TOKEN_FILE") {
            Ok(file) if !file.is_empty() => Identity::ServiceAccount(file),
            _ => Identity::Found,
        }),
    }
}

/// A role's ARN, taken apart.
#[derive(Debug)]
struct Role {
    arn: String,
    partition: String,
    account: String,
}

impl std::str::FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(arn: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        match parts[..] {
            ["arn", partition, "iam", "", account, name]
                if partition.starts_with("aws")
                    && account.len() == 12
                    && account.chars().all(|c| c.is_ascii_digit())
                    && name.len() > 5
                    && name.starts_with("role/") =>
            {
                Ok(Self { arn: arn.to_owned(), partition: partition.to_owned(), account: account.to_owned() })
            }
            _ => anyhow::bail!(
                "AWS_ROLE_ARN is \"{arn}\", which is no role's ARN; write it like arn:aws:iam::123456789012:role/turnmill-agents"
            ),
        }
    }
}

/// Whether a model can be called by this id: the newer ones only by that of an inference profile, the older ones no more.
pub fn check_model(id: &str) -> anyhow::Result<()> {
    let name = id.rsplit_once('/').map_or(id, |(_, name)| name);
    let of_claude = name.rsplit_once("anthropic.").map_or(name, |(_, model)| model);
    let retired = ["claude-v", "claude-instant", "claude-2", "claude-3-", "claude-3."].iter().any(|old| of_claude.starts_with(old));
    anyhow::ensure!(
        !retired,
        "the Bedrock model \"{id}\" (BEDROCK_MODEL_ID or keys.bedrock_models) is retired: Claude 3 and older can't be called any more; \
         give a newer one's inference profile, as us.anthropic.claude-sonnet-4-5-20250929-v1:0 (aws bedrock list-inference-profiles)"
    );
    if id.starts_with("arn:") {
        let good = id.split(':').nth(2) == Some("bedrock")
            && ["inference-profile/", "application-inference-profile/"].iter().any(|kind| id.contains(kind));
        anyhow::ensure!(
            good,
            "the Bedrock model \"{id}\" is no inference profile's ARN; list them with: aws bedrock list-inference-profiles"
        );
        return Ok(());
    }
    anyhow::ensure!(
        !id.starts_with("anthropic."),
        "the Bedrock model \"{id}\" is a bare model id, which Bedrock does not take on demand; give an inference profile of it, \
         as us.{id}, eu.{id} or global.{id} (aws bedrock list-inference-profiles)"
    );
    let good = id.split_once('.').is_some_and(|(place, model)| !place.is_empty() && model.starts_with("anthropic.") && model.len() > 10);
    anyhow::ensure!(
        good && id.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c)),
        "the Bedrock model \"{id}\" is no inference profile of an Anthropic model; they look like us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    );
    Ok(())
}

/// What a session may do, whatever the role may: call these models, each through its profile only, with a key like ours.
fn session_policy(role: &Role, region: &str, models: &[String]) -> Value {
    let Role { partition, account, .. } = role;
    let profiles: Vec<String> = models
        .iter()
        .map(|model| {
            if model.starts_with("arn:") {
                model.clone()
            } else {
                format!("arn:{partition}:bedrock:{region}:{account}:inference-profile/{model}")
            }
        })
        .collect();
    let mut behind: Vec<String> = models
        .iter()
        .flat_map(|model| match model.rsplit_once("anthropic.") {
            // In whichever region the profile finds room; a global one also names no region at all.
            Some((place, name)) => {
                let of = |region: &str| format!("arn:{partition}:bedrock:{region}::foundation-model/anthropic.{name}");
                if place.ends_with("global.") { vec![of("*"), of("")] } else { vec![of("*")] }
            }
            None => vec![format!("arn:{partition}:bedrock:*::foundation-model/anthropic.*")],
        })
        .collect();
    behind.sort_unstable();
    behind.dedup();
    let invoke = ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"];
    json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": invoke, "Resource": profiles },
        { "Effect": "Allow", "Action": invoke, "Resource": behind,
          "Condition": { "StringEquals": { "bedrock:InferenceProfileArn": profiles } } },
        { "Effect": "Allow", "Action": "bedrock:CallWithBearerToken", "Resource": "*" },
    ]})
}
