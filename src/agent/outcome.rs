//! How an attempt ended.
//!
//! Exit code and result both lie: an API failure is a `success` with `is_error`, an interrupt exits with 0, and
//! what was killed has no result at all. So a turn is completed only when everything says so.

use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

use super::codes::{ErrorCode, Failure};
use super::seen::Seen;
use super::spent::Spent;

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
    /// What this process alone has spent.
    pub spent: Spent,
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

pub(super) fn decide(seen: &Seen, message_uuid: Option<&str>, exit: &Exit) -> Outcome {
    let result = primary(&seen.results, message_uuid);
    let verdict = match result {
        _ if exit.reason.is_some() => stopped(exit),
        Some(result) if exit.status == 0 && is_good(result) => finished(exit),
        Some(result) if is_good(result) => ended_badly(exit),
        Some(result) => from_result(result, seen),
        None if exit.status == 0 && seen.flat_events > 0 && seen.events == 0 => finished(exit),
        None if exit.status == 0 && ended_before(seen, message_uuid) => finished(exit),
        None => without_result(seen, exit),
    };
    Outcome { verdict, spent: Spent::of(&seen.results, result) }
}

/// To a message that was answered in an attempt before, whose end nobody saw, a resumed agent says only that it is done.
fn ended_before(seen: &Seen, message_uuid: Option<&str>) -> bool {
    seen.resumed && seen.results.is_empty() && seen.spoken == 0 && message_uuid.is_some() && seen.done.as_deref() == message_uuid
}

/// It says that it succeeded, and did not end so.
fn ended_badly(exit: &Exit) -> Verdict {
    let also = also(exit);
    match exit.status {
        129.. => failed(ErrorCode::AgentKilled, format!("the agent was ended by signal {} after its answer{also}", exit.status - 128)),
        status => failed(ErrorCode::AgentFailed, format!("the agent says that it succeeded, but ended with exit code {status}{also}")),
    }
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
        Some("workspace_failed") => {
            (ErrorCode::WorkspaceFailed, format!("the session's files from before could not be unpacked in the new sandbox: {said}"))
        }
        Some("attachment_refused") => {
            (ErrorCode::AttachmentRefused, format!("a file that came with the message can't be put where it belongs: {said}"))
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

fn from_result(result: &Value, seen: &Seen) -> Verdict {
    let said = result["errors"][0].as_str().or_else(|| result["result"].as_str()).unwrap_or_default();
    let error = seen.api_error.as_ref().and_then(|event| event["error"].as_str());
    let status = result["api_error_status"].as_i64();
    let code = match (result["terminal_reason"].as_str(), result["stop_reason"].as_str(), error) {
        (Some("prompt_too_long"), ..) => ErrorCode::PromptTooLong,
        (Some("image_error"), ..) => ErrorCode::ImageError,
        (Some("max_turns"), ..) => ErrorCode::MaxTurns,
        (Some("budget_exhausted"), ..) => ErrorCode::BudgetExhausted,
        (Some("aborted_streaming" | "aborted_tools"), ..) => ErrorCode::AgentInterrupted,
        _ if result["subtype"] == "error_max_turns" => ErrorCode::MaxTurns,
        _ if result["subtype"] == "error_max_budget_usd" => ErrorCode::BudgetExhausted,
        _ if said.starts_with("No conversation found") => ErrorCode::SessionNotFound,
        (_, Some("refusal"), _) => ErrorCode::Refusal,
        (.., Some("authentication_failed" | "oauth_org_not_allowed" | "cloud_credential_error")) => ErrorCode::AuthenticationFailed,
        (.., Some("billing_error" | "account_on_hold" | "verification_required")) => ErrorCode::Billing,
        (.., Some("rate_limit")) => ErrorCode::RateLimit,
        (.., Some("model_not_found")) => ErrorCode::ModelNotFound,
        (.., Some("max_output_tokens")) => ErrorCode::MaxOutputTokens,
        (.., Some("invalid_request")) => ErrorCode::InvalidRequest,
        _ if result["api_error"] == "connection_failed" => ErrorCode::ConnectionFailed,
        (.., Some("overloaded")) => ErrorCode::Overloaded,
        _ if result["api_error"] == "usage_limit_reached" => ErrorCode::RateLimit,
        _ if status == Some(529) => ErrorCode::Overloaded,
        (.., Some("server_error")) => ErrorCode::ServerError,
        _ => match status {
            Some(529) => ErrorCode::Overloaded,
            Some(400) => ErrorCode::InvalidRequest,
            Some(401 | 403) => ErrorCode::AuthenticationFailed,
            Some(429) => ErrorCode::RateLimit,
            Some(500..) => ErrorCode::ServerError,
            _ if result["terminal_reason"] == "api_error" => ErrorCode::ApiError,
            _ => ErrorCode::AgentFailed,
        },
    };
    let until = seen.limit_resets.filter(|_| code == ErrorCode::RateLimit).and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let until = until.map(|time| format!("; the account's limit ends at {}", time.to_rfc3339_opts(SecondsFormat::Secs, true)));
    let said = if said.is_empty() { "it gave no reason" } else { said };
    failed(code, format!("the agent failed: {said}{}", until.unwrap_or_default()))
}

fn without_result(seen: &Seen, exit: &Exit) -> Verdict {
    let status = exit.status;
    let silent = seen.events + seen.flat_events + seen.garbage == 0;
    let also = also(exit);
    match status {
        // It was stopped while it asked again and again with a key that won't do.
        _ if matches!(seen.retries_for.as_deref(), Some("authentication_failed" | "oauth_org_not_allowed" | "cloud_credential_error")) => {
            failed(ErrorCode::AuthenticationFailed, format!("the model's API refuses the credentials that the agent has{also}"))
        }
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
        1.. if silent && refuses_flags(&exit.stderr_tail) => {
            let next = "The template's version is too old for it, or the pool has a wrong flag: build the template with the version of \
                        e2b/e2b.Dockerfile, or correct the flags (turnmill pool set NAME --agent …, the turn's options)";
            failed(ErrorCode::AgentRefused, format!("the agent refuses its command line{also}. {next}"))
        }
        _ if silent => failed(ErrorCode::AgentNoOutput, format!("the agent ended with exit code {status} and printed nothing{also}")),
        0 => failed(ErrorCode::AgentInterrupted, format!("the agent ended without a result{also}")),
        _ => failed(ErrorCode::AgentCrashed, format!("the agent ended in the middle with exit code {status}{also}")),
    }
}

fn also(exit: &Exit) -> String {
    let stderr = exit.stderr_tail.trim();
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// In the words of the usual parsers of command lines, and in Claude Code's own.
fn refuses_flags(stderr: &str) -> bool {
    let words = [
        "unknown option",
        "unknown argument",
        "unexpected argument",
        "unrecognized option",
        "unrecognized argument",
        "invalid option",
        "argument missing",
        "is invalid. ",
        "Error: When using --print",
        "Invalid session ID",
        "cannot be used with root",
        "needs an update",
    ];
    words.iter().any(|words| stderr.contains(words))
}

fn failed(code: ErrorCode, message: String) -> Verdict {
    Verdict::Failed(Failure { code, message, retryable: code.retryable() })
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
