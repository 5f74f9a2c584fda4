//! What each way to end comes to.

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
    let good =
        json!({ "type": "result", "subtype": "success", "is_error": false, "terminal_reason": "completed", "user_message_uuid": "ours" });
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

/// Code and retryable of these events and an exit code.
fn failure(events: &[Value], status: i32, stderr: &str) -> (&'static str, bool, String) {
    let mut seen = Seen::default();
    for event in events {
        seen.event(event);
        if event["is_api_error_message"] == true {
            seen.api_error(event);
        }
    }
    match decide(&seen, Some("ours"), &Exit { status, stderr_tail: stderr.to_owned(), ..Exit::default() }).verdict {
        Verdict::Failed(failure) => (failure.code.as_str(), failure.retryable, failure.message),
        Verdict::Completed => panic!("it completed"),
    }
}

fn api_failure(error: Value, with: Value) -> (&'static str, bool, String) {
    let mut result =
        json!({ "type": "result", "subtype": "success", "is_error": true, "terminal_reason": "api_error", "result": "API Error" });
    result.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    failure(&[json!({ "type": "assistant", "is_api_error_message": true, "error": error }), result], 1, "")
}

#[test]
fn each_way_to_fail_has_its_code() {
    for (error, with, code, retryable) in [
        ("authentication_failed", json!({ "api_error_status": 403 }), "authentication_failed", false),
        ("cloud_credential_error", json!({}), "authentication_failed", false),
        ("account_on_hold", json!({}), "billing_error", false),
        ("model_not_found", json!({ "api_error_status": 404 }), "model_not_found", false),
        ("unknown", json!({ "api_error_status": 400 }), "invalid_request", false),
        ("unknown", json!({ "api_error_status": 400, "terminal_reason": "prompt_too_long" }), "prompt_too_long", false),
        ("unknown", json!({ "api_error_status": 413, "terminal_reason": "image_error" }), "image_error", false),
        ("rate_limit", json!({ "api_error_status": 429 }), "rate_limit", true),
        ("unknown", json!({ "api_error": "usage_limit_reached" }), "rate_limit", true),
        ("unknown", json!({ "api_error_status": 429 }), "rate_limit", true),
        ("overloaded", json!({ "api_error_status": 529 }), "overloaded", true),
        ("server_error", json!({ "api_error_status": 529 }), "overloaded", true),
        ("server_error", json!({ "api_error_status": 502 }), "server_error", true),
        ("unknown", json!({ "api_error_status": 502 }), "server_error", true),
        ("unknown", json!({ "api_error_status": 401 }), "authentication_failed", false),
        ("server_error", json!({ "api_error": "connection_failed" }), "connection_failed", true),
        ("unknown", json!({ "result": "empty or malformed response" }), "api_error", true),
        ("max_output_tokens", json!({}), "max_output_tokens", false),
        ("invalid_request", json!({ "stop_reason": "refusal" }), "refusal", false),
    ] {
        let (found, again, _) = api_failure(json!(error), with.clone());
        assert_eq!((found, again), (code, retryable), "{error} {with}");
    }
    let ended = |with: Value| {
        let mut result = json!({ "type": "result", "subtype": "error_during_execution", "is_error": true, "errors": ["why"] });
        result.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        let (code, retryable, message) = failure(&[result], 1, "");
        assert!(message.contains("why") || message.contains("No conversation"), "{message}");
        (code, retryable)
    };
    assert_eq!(ended(json!({ "subtype": "error_max_turns", "terminal_reason": "max_turns" })), ("max_turns", false));
    assert_eq!(ended(json!({ "subtype": "error_max_turns" })), ("max_turns", false), "older ones give no reason");
    assert_eq!(ended(json!({ "subtype": "error_max_budget_usd" })), ("budget_exhausted", false));
    assert_eq!(ended(json!({ "subtype": "error_max_structured_output_retries" })), ("agent_failed", false));
    assert_eq!(ended(json!({ "terminal_reason": "aborted_tools" })), ("agent_interrupted", true));
    let lost = ended(json!({ "errors": ["No conversation found with session ID: x"] }));
    assert_eq!(lost, ("session_not_found", true), "which begins it anew");
    assert!(!ErrorCode::SessionNotFound.keeps_conversation() && ErrorCode::Overloaded.keeps_conversation());
}

#[test]
fn an_account_s_limit_says_when_it_ends() {
    let limit = json!({ "type": "rate_limit_event", "rate_limit_info": { "status": "rejected", "resetsAt": 1_790_000_000 } });
    let error = json!({ "type": "assistant", "is_api_error_message": true, "error": "rate_limit" });
    let result = json!({ "type": "result", "subtype": "success", "is_error": true, "result": "limit reached" });
    let (code, _, message) = failure(&[limit.clone(), error.clone(), result.clone()], 1, "");
    assert_eq!(
        (code, message.as_str()),
        ("rate_limit", "the agent failed: limit reached; the account's limit ends at 2026-09-21T14:13:20Z")
    );
    let mut allowed = limit;
    allowed["rate_limit_info"]["status"] = json!("allowed");
    assert!(!failure(&[allowed, error, result], 1, "").2.contains("ends at"));
}

#[test]
fn a_subagent_s_error_is_not_the_turn_s() {
    let theirs = json!({ "type": "assistant", "is_api_error_message": true, "error": "billing_error", "parent_tool_use_id": "t1" });
    let result = json!({ "type": "result", "subtype": "success", "is_error": true, "api_error_status": 529 });
    assert_eq!(failure(&[theirs, result], 1, "").0, "overloaded");
}

#[test]
fn an_end_without_a_result_is_told_by_what_came_before_it() {
    let init = json!({ "type": "system", "subtype": "init" });
    let retry = json!({ "type": "system", "subtype": "api_retry", "error": "authentication_failed", "error_status": 401 });
    let text = json!({ "type": "assistant", "message": { "content": [] } });
    let good = json!({ "type": "result", "subtype": "success", "is_error": false, "result": "all is done" });
    assert_eq!(failure(&[init.clone(), retry.clone()], 143, "").0, "authentication_failed");
    assert_eq!(failure(&[init.clone(), retry, text.clone()], 143, "").0, "agent_killed", "it went on");
    for (events, status, code) in [
        (vec![&init, &text], 0, "agent_interrupted"),
        (vec![&init, &text], 137, "agent_killed"),
        (vec![&init, &text], 1, "agent_crashed"),
        (vec![&init, &text, &good], 137, "agent_killed"),
        (vec![&init, &text, &good], 1, "agent_failed"),
    ] {
        let events: Vec<Value> = events.into_iter().cloned().collect();
        let (found, _, message) = failure(&events, status, "");
        assert_eq!(found, code, "{status}");
        assert!(!message.contains("all is done"), "an answer is no reason: {message}");
    }
}

#[test]
fn a_message_that_a_resumed_agent_calls_done_was_answered_before() {
    let done = |uuid: &str| json!({ "type": "command_lifecycle", "command_uuid": uuid, "state": "completed" });
    let ends = |resumed: bool, events: &[Value], status: i32| {
        let mut seen = Seen { resumed, ..Seen::default() };
        for event in events {
            seen.event(event);
        }
        decide(&seen, Some("ours"), &Exit { status, ..Exit::default() }).verdict == Verdict::Completed
    };
    assert!(ends(true, &[done("ours")], 0));
    assert!(ends(true, &[done("ours"), json!({ "type": "transcript_mirror" })], 0));
    assert!(!ends(false, &[done("ours")], 0), "without being told to go on, the CLI says this of a failed one too");
    assert!(!ends(true, &[done("somebody else's")], 0));
    assert!(!ends(true, &[done("ours")], 143));
    assert!(!ends(true, &[json!({ "type": "assistant" }), done("ours")], 0), "it went on, and was cut off");
    assert!(!ends(true, &[], 0));
}

/// The words are those of Claude Code 2.1.330 and of clap.
#[test]
fn a_cli_that_refuses_its_flags_is_told_apart_from_one_that_says_nothing() {
    for stderr in [
        "error: unknown option '--forward-subagent-text'",
        "error: option '--output-format <format>' argument 'x' is invalid. Allowed choices are text, json, stream-json.",
        "error: option '--model <model>' argument missing",
        "Error: When using --print, --output-format=stream-json requires --verbose",
        "Error: Invalid session ID. Must be a valid UUID.",
        "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons",
        "error: unexpected argument '--system-prompt-snapshot' found",
    ] {
        let (code, retryable, message) = failure(&[], 1, stderr);
        assert_eq!((code, retryable), ("agent_refused", false), "{stderr}");
        assert!(message.contains(stderr) && message.contains("turnmill pool set NAME --agent"), "{message}");
    }
    assert_eq!(failure(&[], 1, "Segmentation fault").0, "agent_no_output");
    assert_eq!(failure(&[], 0, "unknown option, they say").0, "agent_no_output");
    assert_eq!(failure(&[json!({ "type": "system" })], 1, "unknown option in a tool").0, "agent_crashed");
}

#[test]
fn what_no_column_holds_is_no_cost_and_no_usage() {
    for (result, cost) in [
        (json!({ "total_cost_usd": 0.5 }), Some(0.5)),
        (json!({ "total_cost_usd": 1e300 }), Some(1e4)),
        (json!({ "total_cost_usd": -1 }), None),
        (
            json!({ "total_cost_usd": 9, "model_usage_since_last_result": { "a": { "costUSD": 0.25 }, "b": { "costUSD": 0.5 } } }),
            Some(0.75),
        ),
    ] {
        let mut result = result;
        result["type"] = json!("result");
        result["usage"] = json!("many");
        let mut seen = Seen::default();
        seen.event(&result);
        let outcome = decide(&seen, None, &Exit::default());
        assert_eq!((outcome.spent.cost_usd(), outcome.spent.usage), (cost, None), "{result}");
    }
}
