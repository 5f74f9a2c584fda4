//! What E2B checks of a sandbox's network. Here nothing is limited and nothing added: it is recorded.

use serde_json::{Value, json};

/// E2B's limits for the headers that it adds.
const DOMAINS_MAX: usize = 10;
const HEADERS_MAX: usize = 20;
const VALUE_CHARS_MAX: usize = 2048;

/// Why E2B would refuse it.
pub(super) fn wrong(network: &Value) -> Option<String> {
    let words = |name: &str| network.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let is_domain = |word: &str| word.chars().any(|c| c.is_ascii_alphabetic()) && !word.contains([':', '/']);
    if words("allowOut").any(is_domain) && !words("denyOut").any(|word| word == "0.0.0.0/0") {
        return Some("When specifying allowed domains in allowOut, you must include 'ALL_TRAFFIC' (0.0.0.0/0) in denyOut".to_owned());
    }
    let rules = network.get("rules").and_then(Value::as_object)?;
    if rules.len() > DOMAINS_MAX {
        return Some(format!("rules has more than {DOMAINS_MAX} domains"));
    }
    for (domain, rules) in rules {
        let Some([rule]) = rules.as_array().map(Vec::as_slice) else { return Some(format!("rules of {domain} must have one rule")) };
        let Some(headers) = rule["transform"]["headers"].as_object() else {
            return Some(format!("rule of {domain} has no transform.headers"));
        };
        let long = |value: &Value| value.as_str().is_none_or(|value| value.len() > VALUE_CHARS_MAX);
        if headers.len() > HEADERS_MAX || headers.values().any(long) {
            return Some(format!("headers of {domain} are too many or too long"));
        }
    }
    None
}

/// For the ledger: which headers are added, and not what they say.
pub(super) fn without_values(network: &Value) -> Value {
    let mut shown = network.clone();
    for rule in shown.get_mut("rules").and_then(Value::as_object_mut).into_iter().flat_map(|rules| rules.values_mut()) {
        let names: Vec<String> =
            rule[0]["transform"]["headers"].as_object().into_iter().flat_map(|headers| headers.keys().cloned()).collect();
        *rule = json!(names);
    }
    shown
}
