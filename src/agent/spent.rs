//! What an attempt's model calls came to, by its agent's own word.
//!
//! `total_cost_usd`, `modelUsage` and `duration_api_ms` of a result count the whole resumed session, and its `usage` leaves
//! subagents out. What one process has spent is the sum, over its results, of `model_usage_since_last_result`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Models that are told apart; what comes after them is summed as [`OTHER`]. A result is as long as its writer likes.
const MODELS_MAX: usize = 20;

/// Longest name of a model.
const NAME_MAX_CHARS: usize = 200;

/// Whose name is not known.
const OTHER: &str = "other";

/// More than any process spends, of all models together, and less than what columns can hold: who prints the result may lie.
const USD_MAX: f64 = 1e4;

/// The same of tokens, of one model and kind.
const TOKENS_MAX: i64 = 1 << 36;

/// Tokens and dollars of one process of the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spent {
    /// Tokens, as its result reports them: of the main agent only, and with fields of its own.
    pub usage: Option<Value>,
    /// By model, with subagents; `None`: it did not say what it cost.
    pub models: Option<Vec<ModelUse>>,
}

/// What one model was used for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelUse {
    /// As the agent names it.
    pub model: String,
    /// Tokens read anew.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// Tokens read from the prompt cache.
    pub cache_read_tokens: i64,
    /// Tokens written to it.
    pub cache_write_tokens: i64,
    /// Dollars, at list prices.
    pub cost_usd: f64,
}

impl Spent {
    /// By all results of a process, of which `primary` is that of our message.
    pub(super) fn of(results: &[Value], primary: Option<&Value>) -> Self {
        let usage = primary.map(|result| result["usage"].clone()).filter(Value::is_object);
        Self { models: stepwise(results).or_else(|| at_once(results)), usage }
    }

    /// With no more dollars than this, each model's in proportion.
    #[must_use]
    pub fn at_most(mut self, usd: f64) -> Self {
        if let Some(all) = self.cost_usd().filter(|all| *all > usd) {
            self.models.iter_mut().flatten().for_each(|model| model.cost_usd *= usd / all);
        }
        self
    }

    /// Dollars; `None`: it did not say.
    pub fn cost_usd(&self) -> Option<f64> {
        self.models.as_ref().map(|models| models.iter().map(|model| model.cost_usd).sum())
    }
}

/// Step by step, if each result says what came since the one before.
fn stepwise(results: &[Value]) -> Option<Vec<ModelUse>> {
    let mut sums: BTreeMap<String, ModelUse> = BTreeMap::new();
    let mut all_usd = 0.0;
    for result in results {
        for (name, said) in result["model_usage_since_last_result"].as_object()? {
            let mut name = named(name);
            if sums.len() >= MODELS_MAX && !sums.contains_key(&name) {
                OTHER.clone_into(&mut name);
            }
            let sum = sums.entry(name.clone()).or_insert_with(|| ModelUse { model: name, ..ModelUse::default() });
            sum.input_tokens = tokens(sum.input_tokens, &said["inputTokens"]);
            sum.output_tokens = tokens(sum.output_tokens, &said["outputTokens"]);
            sum.cache_read_tokens = tokens(sum.cache_read_tokens, &said["cacheReadInputTokens"]);
            sum.cache_write_tokens = tokens(sum.cache_write_tokens, &said["cacheCreationInputTokens"]);
            let cost_usd = dollars(&said["costUSD"]).unwrap_or(0.0).min(USD_MAX - all_usd);
            sum.cost_usd += cost_usd;
            all_usd += cost_usd;
        }
    }
    (!results.is_empty()).then(|| sums.into_values().collect())
}

/// From an agent that doesn't say it step by step: its last total, which is its own as long as it resumes nothing.
fn at_once(results: &[Value]) -> Option<Vec<ModelUse>> {
    let last = results.last()?;
    let (cost_usd, usage) = (dollars(&last["total_cost_usd"])?, &last["usage"]);
    let names: Vec<&String> = last["modelUsage"].as_object().into_iter().flat_map(|models| models.keys()).collect();
    let model = named(if let [one] = names[..] { one } else { OTHER });
    let spent = ModelUse {
        model,
        input_tokens: tokens(0, &usage["input_tokens"]),
        output_tokens: tokens(0, &usage["output_tokens"]),
        cache_read_tokens: tokens(0, &usage["cache_read_input_tokens"]),
        cache_write_tokens: tokens(0, &usage["cache_creation_input_tokens"]),
        cost_usd,
    };
    Some(vec![spent])
}

fn named(said: &str) -> String {
    let name: String = said.chars().filter(|c| !c.is_control()).take(NAME_MAX_CHARS).collect();
    if name.is_empty() { OTHER.to_owned() } else { name }
}

fn tokens(before: i64, said: &Value) -> i64 {
    said.as_i64().map_or(before, |more| before.saturating_add(more.max(0)).min(TOKENS_MAX))
}

fn dollars(said: &Value) -> Option<f64> {
    said.as_f64().filter(|dollars| *dollars >= 0.0).map(|dollars| dollars.min(USD_MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(results: &[Value]) -> Spent {
        Spent::of(results, results.first())
    }

    fn step(model: &str, input: i64, cost: f64) -> Value {
        json!({ "total_cost_usd": 99, "model_usage_since_last_result": { model: { "inputTokens": input, "outputTokens": 2, "costUSD": cost } } })
    }

    #[test]
    fn the_steps_of_a_process_are_summed_by_model() {
        let spent = of(&[step("a", 10, 0.5), step("b", 1, 0.25), step("a", 5, 0.125)]);
        let sums: Vec<_> = spent.models.iter().flatten().map(|m| (m.model.as_str(), m.input_tokens, m.output_tokens, m.cost_usd)).collect();
        assert_eq!(sums, [("a", 15, 4, 0.625), ("b", 1, 2, 0.25)]);
        assert_eq!(spent.cost_usd(), Some(0.875));
    }

    #[test]
    fn a_total_is_taken_only_where_there_are_no_steps() {
        let whole =
            json!({ "total_cost_usd": 0.5, "usage": { "input_tokens": 7, "cache_creation_input_tokens": 3 }, "modelUsage": { "m": {} } });
        let models = of(&[whole]).models.unwrap();
        assert_eq!((models[0].model.as_str(), models[0].input_tokens, models[0].cache_write_tokens, models[0].cost_usd), ("m", 7, 3, 0.5));
        assert_eq!(of(&[step("a", 1, 0.5), json!({ "total_cost_usd": 2 })]).cost_usd(), Some(2.0));
        assert_eq!(of(&[]), Spent::default(), "who printed no result has not said");
        assert_eq!(of(&[json!({})]).cost_usd(), None);
    }

    #[test]
    fn what_columns_cannot_hold_is_not_believed() {
        assert_eq!(of(&[json!({ "total_cost_usd": -1 })]).cost_usd(), None);
        assert_eq!(
            of(&[step("a", -5, f64::MAX)]).models.unwrap()[0],
            ModelUse { model: "a".into(), output_tokens: 2, cost_usd: USD_MAX, ..ModelUse::default() }
        );
        let forged: Vec<Value> = (0..11).map(|n| step(&format!("m{n}"), i64::MAX, 9_999_999.0)).collect();
        assert_eq!(of(&forged).cost_usd(), Some(USD_MAX), "of all models together");
        assert!((of(&forged).at_most(3.0).cost_usd().unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(of(&[step("a", 1, 0.5)]).at_most(3.0).cost_usd(), Some(0.5));
        let many: Vec<Value> = (0..50).map(|n| step(&format!("m{n:02}\u{0}"), i64::MAX, 1.0)).collect();
        let models = of(&many).models.unwrap();
        assert_eq!(models.len(), MODELS_MAX + 1);
        assert!((models.iter().map(|m| m.cost_usd).sum::<f64>() - 50.0).abs() < 1e-9);
        assert!(models.iter().all(|m| !m.model.contains('\0') && m.input_tokens <= TOKENS_MAX));
    }
}
