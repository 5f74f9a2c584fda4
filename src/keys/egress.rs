//! What a sandbox may reach, and what is added to its requests on the way out: E2B's `network`. With a header for the model's
//! host the key need not be in the sandbox at all. What comes of this holds a secret, so it is never stored.

use std::collections::BTreeMap;

use reqwest::Url;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{Credentials, KeyKind, KeyTrouble};

/// What the sandbox has in the key's place: programs that look for one go on.
pub const STAND_IN: &str = "sk-ant-added-outside-of-this-sandbox";

/// E2B's limit for one header.
const HEADER_CHARS_MAX: usize = 2048;

/// Everything, as E2B wants it denied before a host name can be allowed.
const ANYWHERE: &str = "0.0.0.0/0";

/// What a pool says about the network of its sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// The key is added outside.
    pub inject_key: bool,
    /// What may be reached besides the model; `None`: everything.
    pub allow: Option<Vec<String>>,
}

impl Egress {
    /// The body for E2B; `None`: nothing to say. `environment` is the agent's, and says where its model is.
    pub fn network(&self, credentials: &Credentials, environment: &BTreeMap<String, String>) -> Result<Option<Value>, KeyTrouble> {
        let host = model_host(environment);
        let mut network = json!({});
        if let Some((kind, key)) = credentials.key().filter(|_| self.inject_key) {
            let (name, value) = header(kind, key.expose_secret());
            if value.len() > HEADER_CHARS_MAX {
                let text = format!(
                    "it has {} characters with its header, and E2B adds {HEADER_CHARS_MAX} at most: give it to the agent itself (turnmill pool set \
                     NAME --inject-key off)",
                    value.len()
                );
                return Err(KeyTrouble::lasting("key_not_injectable", text));
            }
            network["rules"] = json!({ (&host): [{ "transform": { "headers": { (name): value } } }] });
        }
        if let Some(allow) = &self.allow {
            let mut allow = allow.clone();
            allow.push(host);
            allow.sort_unstable();
            allow.dedup();
            network["allowOut"] = json!(allow);
            network["denyOut"] = json!([ANYWHERE]);
        }
        Ok(network.as_object().is_some_and(|network| !network.is_empty()).then_some(network))
    }
}

/// Where the agent's requests to its model go.
fn model_host(environment: &BTreeMap<String, String>) -> String {
    let of_url = |name: &str| environment.get(name).and_then(|url| Url::parse(url).ok()?.host_str().map(str::to_owned));
    if environment.contains_key("CLAUDE_CODE_USE_BEDROCK") {
        let region = environment.get("AWS_REGION").map_or("us-east-1", String::as_str);
        return of_url("ANTHROPIC_BEDROCK_BASE_URL").unwrap_or_else(|| format!("bedrock-runtime.{region}.amazonaws.com"));
    }
    of_url("ANTHROPIC_BASE_URL").unwrap_or_else(|| "api.anthropic.com".to_owned())
}

/// As Claude Code itself would send the key.
fn header(kind: KeyKind, key: &str) -> (&'static str, String) {
    match kind {
        KeyKind::ApiKey => ("x-api-key", key.to_owned()),
        KeyKind::AuthToken | KeyKind::OauthToken | KeyKind::BedrockToken => ("authorization", format!("Bearer {key}")),
    }
}

/// Whether `word` can be one of a pool's `egress_allow`; what it should be.
pub fn check_allowed(word: &str) -> Result<(), String> {
    let host = word.strip_prefix("*.").unwrap_or(word);
    let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let is_host = host.len() <= 253 && host.contains('.') && host.split('.').all(label);
    let is_network = word.parse::<ipnet::IpNet>().is_ok() || word.parse::<std::net::IpAddr>().is_ok();
    if is_host || is_network {
        return Ok(());
    }
    Err(format!(
        "\"{word}\" is no host name, address or network; write them like api.example.com, *.example.com, 10.1.0.0/16, without https:// and path"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(egress: &Egress, kind: KeyKind, key: &str, variables: &[(&str, &str)]) -> Value {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        egress.network(&Credentials::with_key(kind, key.into()), &environment).unwrap().unwrap_or_default()
    }

    #[test]
    fn the_key_is_added_for_its_model_s_host_as_the_agent_would_send_it() {
        let egress = Egress { inject_key: true, allow: None };
        let rules =
            |host: &str, name: &str, value: &str| json!({ "rules": { (host): [{ "transform": { "headers": { (name): value } } }] } });
        assert_eq!(network(&egress, KeyKind::ApiKey, "sk", &[]), rules("api.anthropic.com", "x-api-key", "sk"));
        let gateway = [("ANTHROPIC_BASE_URL", "https://gateway.example:8443/claude")];
        assert_eq!(network(&egress, KeyKind::AuthToken, "tok", &gateway), rules("gateway.example", "authorization", "Bearer tok"));
        let bedrock = [("CLAUDE_CODE_USE_BEDROCK", "1"), ("AWS_REGION", "eu-west-1")];
        let expected = rules("bedrock-runtime.eu-west-1.amazonaws.com", "authorization", "Bearer bedrock-api-key-x");
        assert_eq!(network(&egress, KeyKind::BedrockToken, "bedrock-api-key-x", &bedrock), expected);
        assert!(egress.network(&Credentials::default(), &BTreeMap::new()).unwrap().is_none(), "there is none to add");
        let long = egress.network(&Credentials::with_key(KeyKind::ApiKey, "x".repeat(3000).into()), &BTreeMap::new()).unwrap_err();
        assert!(long.code == "key_not_injectable" && !long.text.contains("xxx"), "{long:?}");
    }

    #[test]
    fn what_may_be_reached_is_the_list_and_the_model() {
        let egress = Egress { inject_key: false, allow: Some(vec!["pypi.org".to_owned(), "10.0.0.0/8".to_owned()]) };
        let expected = json!({ "allowOut": ["10.0.0.0/8", "api.anthropic.com", "pypi.org"], "denyOut": ["0.0.0.0/0"] });
        assert_eq!(network(&egress, KeyKind::ApiKey, "sk", &[]), expected);
        assert_eq!(network(&Egress { inject_key: false, allow: None }, KeyKind::ApiKey, "sk", &[]), Value::Null);
    }

    #[test]
    fn urls_and_words_are_no_hosts() {
        for wrong in
            ["", "https://pypi.org", "pypi.org/simple", "a b.example", "localhost", "*", "*.", "10.0.0.0/33", "pypi.org:443", "a..b"]
        {
            assert!(check_allowed(wrong).is_err(), "{wrong}");
        }
        for good in ["pypi.org", "*.example.com", "10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "registry.npmjs.org"] {
            assert_eq!(check_allowed(good), Ok(()), "{good}");
        }
    }
}
