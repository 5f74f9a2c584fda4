//! How an attempt ended.
//!
//! Exit code and result both lie: an API failure is a `success` with `is_error`, an interrupt exits with 0, and
//! what was killed has no result at all. So a turn is completed only when everything says so.

use serde_json::Value;

/// How the agent's process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it: 128 + n for a signal.
    pub status: i32,
    /// The end of what it printed on stderr.
    pub stderr_tail: String,
    /// Why its supervisor ended it or did not start it: `journal_full`, or what went wrong with `prepare`.
    pub reason: Option<String>,
    /// What went wrong with the hook after it.
    pub finish: Option<String>,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Whether it did what it was asked to.
    pub verdict: Verdict,
    /// Tokens, as the agent reports them.
    pub usage: Option<Value>,
    /// Dollars of this process alone, as the agent estimates them.
    pub cost_usd: Option<f64>,
}

impl Outcome {
    /// Whether the agent finished its turn.
    pub fn completed(&self) -> bool {
        self.verdict == Verdict::Completed
    }
}

/// Whether it did what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Completed,
    /// No.
    Failed(Failure),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, and what to do about it.
    pub message: String,
    /// Whether the same turn may work when tried again.
    pub retryable: bool,
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $retryable:literal;)+) => {
        /// Why an agent failed. Stable: programs compare `turns.error_code` with these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl ErrorCode {
            /// As in `turns.error_code`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Whether the same turn may work when tried again.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)+ }
            }

            /// Whether the agent's conversation is there to go on with.
            pub fn keeps_conversation(self) -> bool {
                !matches!(self.as_str(), "session_not_found" | "prepare_failed" | "prepare_timeout")
            }
        }
    };
}

error_codes! {
    /// The model's API refuses the key.
    AuthenticationFailed = "authentication_failed", false;
    /// The account can't pay, or is on hold.
    Billing = "billing_error", false;
    /// Too many requests to the model.
    RateLimit = "rate_limit", true;
    /// The model has too much to do.
    Overloaded = "overloaded", true;
    /// The model's API failed.
    ServerError = "server_error", true;
    /// The model's API can't be reached from the sandbox.
    ConnectionFailed = "connection_failed", true;
    /// There is no such model, or not for this key.
    ModelNotFound = "model_not_found", false;
    /// The API takes the request for wrong.
    InvalidRequest = "invalid_request", false;
    /// The conversation no longer fits the model.
    PromptTooLong = "prompt_too_long", false;
    /// An image can't be processed.
    ImageError = "image_error", false;
    /// The model declined.
    Refusal = "refusal", false;
    /// The answer was longer than the model may write.
    MaxOutputTokens = "max_output_tokens", false;
    /// The turn's limit of model calls.
    MaxTurns = "max_turns", false;
    /// The turn's budget.
    BudgetExhausted = "budget_exhausted", false;
    /// Any other failure of the API.
    ApiError = "api_error", true;
    /// The agent's program is not in the sandbox.
    AgentNotFound = "agent_not_found", false;
    /// It ended without a word.
    AgentNoOutput = "agent_no_output", false;
    /// What it printed is no stream-json.
    AgentGarbage = "agent_garbage", false;
    /// It printed more than its journal may hold.
    JournalFull = "journal_full", false;
    /// The hook that fetches the project's files misses something that no other try will bring.
    PrepareConfig = "prepare_config", false;
    /// The hook that fetches the project's files failed.
    PrepareFailed = "prepare_failed", true;
    /// It took too long.
    PrepareTimeout = "prepare_timeout", true;
    /// The hook that saves the project's files misses something that no other try will bring.
    FinishConfig = "finish_config", false;
    /// The hook that saves the project's files failed.
    FinishFailed = "finish_failed", true;
    /// It took too long.
    FinishTimeout = "finish_timeout", true;
    /// A signal ended it, which we did not send.
    AgentKilled = "agent_killed", true;
    /// It ended in the middle.
    AgentCrashed = "agent_crashed", true;
    /// It was interrupted, which we did not ask for.
    AgentInterrupted = "agent_interrupted", true;
    /// It said nothing for too long, and was stopped.
    AgentIdle = "agent_idle", true;
    /// It says that it failed, in words that are new to us.
    AgentFailed = "agent_failed", false;
}

/// What the lines said, as far as the outcome needs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    results: Vec<Value>,
    api_error: Option<Value>,
    /// Events of stream-json.
    events: u64,
    /// Flat events, which have no result of their own.
    flat_events: u64,
    garbage: u64,
    first_garbage: String,
}

impl Seen {
    pub fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some("result") => {
                // Its text is in the blocks already, and may be megabytes.
                let mut result = event.clone();
                if let Some(text) = event["result"].as_str() {
                    result["result"] = start_of(text, 500).into();
                }
                self.results.push(result);
            }
            Some("thinking" | "content" | "tool_use" | "tool_result") => self.flat_events += 1,
            _ => self.events += 1,
        }
    }

    pub fn api_error(&mut self, event: &Value) {
        self.api_error = Some(event.clone());
    }

    pub fn garbage(&mut self, line: &[u8]) {
        if self.garbage == 0 {
            self.first_garbage = start_of(&String::from_utf8_lossy(line).replace('\0', "\u{fffd}"), 200);
        }
        self.garbage += 1;
    }
}

pub(super) fn decide(seen: &Seen, message_uuid: Option<&str>, exit: &Exit) -> Outcome {
    let result = primary(&seen.results, message_uuid);
    let verdict = match result {
        _ if exit.reason.is_some() => stopped(exit),
        Some(result) if exit.status == 0 && is_good(result) => finished(exit),
        Some(result) => from_result(result, seen.api_error.as_ref()),
        None if exit.status == 0 && seen.flat_events > 0 && seen.events == 0 => finished(exit),
        None => without_result(seen, exit),
    };
    Outcome { verdict, usage: result.map(|result| result["usage"].clone()).filter(|usage| !usage.is_null()), cost_usd: cost(&seen.results) }
}

/// The supervisor did not let it run, or not to its end.
fn stopped(exit: &Exit) -> Verdict {
    let said = exit.stderr_tail.trim();
    let (code, text) = match exit.reason.as_deref() {
        Some("journal_full") => (
            ErrorCode::JournalFull,
            "the agent printed more than its journal may hold and was stopped; see worker.journal_max_bytes".to_owned(),
        ),
        Some("prepare_config") => (ErrorCode::PrepareConfig, format!("the project's files can't be fetched as it is configured: {said}")),
        Some("prepare_timeout") => {
            (ErrorCode::PrepareTimeout, format!("fetching the project's files took longer than the pool's prepare_timeout_s: {said}"))
        }
        _ => (ErrorCode::PrepareFailed, format!("fetching the project's files failed: {said}")),
    };
    failed(code, text)
}

/// The agent did its work; what it changed must be saved as well.
fn finished(exit: &Exit) -> Verdict {
    let said = exit.stderr_tail.trim();
    match exit.finish.as_deref() {
        None => Verdict::Completed,
        Some("finish_config") => {
            failed(ErrorCode::FinishConfig, format!("the agent finished, but its files can't be saved as it is configured: {said}"))
        }
        Some("finish_timeout") => {
            let text = format!("the agent finished, but saving its files took longer than the pool's finish_timeout_s: {said}");
            failed(ErrorCode::FinishTimeout, text)
        }
        Some(_) => failed(ErrorCode::FinishFailed, format!("the agent finished, but its files could not be saved: {said}")),
    }
}

/// The result of our message; a process may print more, of tasks that ended in the background.
fn primary<'a>(results: &'a [Value], message_uuid: Option<&str>) -> Option<&'a Value> {
    let ours = |result: &&Value| message_uuid.is_some() && result["user_message_uuid"].as_str() == message_uuid;
    let unnamed = |result: &&Value| result["user_message_uuid"].is_null() && result["origin"].is_null();
    results.iter().find(ours).or_else(|| results.iter().find(unnamed))
}

fn is_good(result: &Value) -> bool {
    result["is_error"] != true
        && result["subtype"] == "success"
        && (result["terminal_reason"].is_null() || result["terminal_reason"] == "completed")
}

/// `total_cost_usd` counts the whole resumed session, so the steps since the last result are summed where given.
fn cost(results: &[Value]) -> Option<f64> {
    let of_step = |result: &Value| {
        let models = result["model_usage_since_last_result"].as_object()?;
        Some(models.values().filter_map(|model| model["costUSD"].as_f64()).sum::<f64>())
    };
    results.iter().map(of_step).sum::<Option<f64>>().filter(|_| !results.is_empty()).or_else(|| results.last()?["total_cost_usd"].as_f64())
}

fn from_result(result: &Value, api_error: Option<&Value>) -> Verdict {
    let said = result["errors"][0].as_str().or_else(|| result["result"].as_str()).unwrap_or_default();
    let error = api_error.and_then(|event| event["error"].as_str());
    let status = result["api_error_status"].as_i64();
    let code = match (result["terminal_reason"].as_str(), result["stop_reason"].as_str(), error) {
        (Some("prompt_too_long"), ..) => ErrorCode::PromptTooLong,
        (Some("image_error"), ..) => ErrorCode::ImageError,
        (Some("max_turns"), ..) => ErrorCode::MaxTurns,
        (Some("budget_exhausted"), ..) => ErrorCode::BudgetExhausted,
        (Some("aborted_streaming" | "aborted_tools"), ..) => ErrorCode::AgentInterrupted,
        (_, Some("refusal"), _) => ErrorCode::Refusal,
        (.., Some("authentication_failed" | "oauth_org_not_allowed" | "cloud_credential_error")) => ErrorCode::AuthenticationFailed,
        (.., Some("billing_error" | "account_on_hold" | "verification_required")) => ErrorCode::Billing,
        (.., Some("rate_limit")) => ErrorCode::RateLimit,
        (.., Some("model_not_found")) => ErrorCode::ModelNotFound,
        (.., Some("max_output_tokens")) => ErrorCode::MaxOutputTokens,
        (.., Some("invalid_request")) => ErrorCode::InvalidRequest,
        _ if result["api_error"] == "connection_failed" => ErrorCode::ConnectionFailed,
        (.., Some("overloaded")) => ErrorCode::Overloaded,
        _ if status == Some(529) => ErrorCode::Overloaded,
        (.., Some("server_error")) => ErrorCode::ServerError,
        _ if status == Some(400) => ErrorCode::InvalidRequest,
        (Some("api_error"), ..) => ErrorCode::ApiError,
        _ => ErrorCode::AgentFailed,
    };
    failed(code, format!("the agent failed: {}", if said.is_empty() { "it gave no reason" } else { said }))
}

fn without_result(seen: &Seen, exit: &Exit) -> Verdict {
    let (status, stderr) = (exit.status, exit.stderr_tail.trim());
    let silent = seen.events + seen.flat_events + seen.garbage == 0;
    let also = if stderr.is_empty() { String::new() } else { format!(": {stderr}") };
    match status {
        126 | 127 if silent => failed(
            ErrorCode::AgentNotFound,
            format!("the agent could not be started in the sandbox{also}. Is it in the pool's template, and on its PATH?"),
        ),
        _ if seen.garbage > 0 && seen.events + seen.flat_events == 0 => {
            let text = format!(
                "the agent printed no stream-json but: {:?}. Does the pool's command line have --output-format=stream-json --verbose?",
                seen.first_garbage
            );
            failed(ErrorCode::AgentGarbage, text)
        }
        129.. => failed(ErrorCode::AgentKilled, format!("the agent was ended by signal {}{also}", status - 128)),
        _ if silent => failed(ErrorCode::AgentNoOutput, format!("the agent ended with exit code {status} and printed nothing{also}")),
        0 => failed(ErrorCode::AgentInterrupted, format!("the agent ended without a result{also}")),
        _ => failed(ErrorCode::AgentCrashed, format!("the agent ended in the middle with exit code {status}{also}")),
    }
}

fn failed(code: ErrorCode, message: String) -> Verdict {
    Verdict::Failed(Failure { code, message, retryable: code.retryable() })
}

fn start_of(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The verdict on one result line and an exit code.
    fn verdict(result: Value, status: i32) -> Verdict {
        let mut seen = Seen::default();
        seen.event(&json!({ "type": "system", "subtype": "init" }));
        seen.event(&result);
        decide(&seen, Some("ours"), &Exit { status, ..Exit::default() }).verdict
    }

    #[test]
    fn a_turn_is_completed_only_when_everything_says_so() {
        let good = json!({ "type": "result", "subtype": "success", "is_error": false, "terminal_reason": "completed", "user_message_uuid": "ours" });
        let but = |key: &str, value: Value| {
            let mut result = good.clone();
            result[key] = value;
            result
        };
        assert_eq!(verdict(good.clone(), 0), Verdict::Completed);
        assert_eq!(verdict(but("terminal_reason", Value::Null), 0), Verdict::Completed, "older ones don't say it");
        assert_eq!(verdict(but("user_message_uuid", Value::Null), 0), Verdict::Completed, "or whom they answer");
        for (result, status) in [
            (good.clone(), 1),
            (but("is_error", json!(true)), 0),
            (but("subtype", json!("error_during_execution")), 0),
            (but("terminal_reason", json!("aborted_tools")), 0),
            (but("user_message_uuid", json!("somebody else's")), 0),
        ] {
            assert!(matches!(verdict(result.clone(), status), Verdict::Failed(_)), "{result} {status}");
        }
    }
}
