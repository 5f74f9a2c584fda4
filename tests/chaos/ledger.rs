//! What the agents and the sandboxes' server wrote down themselves, as it happened.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Milliseconds since 1970: all ledgers are of this machine.
#[expect(clippy::disallowed_methods, reason = "the ledgers' clock; it decides nothing")]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One start of an agent, by its own account.
#[derive(Debug, Clone)]
pub struct AgentRun {
    pub message_uuid: String,
    pub sandbox: String,
    pub attempt: i64,
    pub resumes: bool,
    pub from_ms: i64,
    /// `None`: it was killed.
    pub to_ms: Option<i64>,
}

/// Something that was done to a sandbox, in the order of the ledger.
#[derive(Debug, Clone)]
pub struct Act {
    pub at_ms: i64,
    pub sandbox: String,
    pub what: Deed,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// The server began and found these.
    Boot(Vec<String>),
    Create {
        turn: String,
    },
    Gone {
        why: String,
    },
    /// It does not run any more, and counts nowhere.
    Pause,
    Resume,
    /// A call of the supervisor began.
    Began {
        pid: i64,
        epoch: i64,
        verb: String,
        attempt: i64,
    },
    /// A process ended; 0 of a supervisor's: it was accepted.
    Ended {
        pid: i64,
        exit: Option<i64>,
    },
    /// The server did wrong, because it was asked to.
    Fault {
        kind: String,
    },
}

/// The agents' ledger.
pub fn agents(path: &Path) -> Vec<AgentRun> {
    let mut runs: Vec<AgentRun> = Vec::new();
    let mut open: BTreeMap<(i64, String), usize> = BTreeMap::new();
    for line in lines(path) {
        let key = (number(&line["pid"]), text(&line["message_uuid"]));
        match line["act"].as_str() {
            Some("start") => {
                let journal = text(&line["journal"]);
                let attempt = journal.split("/attempt-").nth(1).and_then(|rest| rest.split('/').next()).and_then(|n| n.parse().ok());
                open.insert(key, runs.len());
                runs.push(AgentRun {
                    message_uuid: text(&line["message_uuid"]),
                    sandbox: text(&line["sandbox"]),
                    attempt: attempt.unwrap_or(-1),
                    resumes: line["resumes"] == true,
                    from_ms: number(&line["at_ms"]),
                    to_ms: None,
                });
            }
            Some("end") => {
                if let Some(run) = open.remove(&key).and_then(|nth| runs.get_mut(nth)) {
                    run.to_ms = Some(number(&line["at_ms"]));
                }
            }
            _ => {}
        }
    }
    runs
}

/// The server's ledger.
pub fn server(path: &Path) -> Vec<Act> {
    lines(path).into_iter().filter_map(|line| act(&line)).collect()
}

fn act(line: &Value) -> Option<Act> {
    let detail = &line["detail"];
    let what = match line["act"].as_str()? {
        "boot" => Deed::Boot(detail["sandboxes"].as_object().into_iter().flatten().map(|(id, _)| id.clone()).collect()),
        "create" => Deed::Create { turn: text(&detail["metadata"]["turnmill_turn"]) },
        "pause" => Deed::Pause,
        "resume" => Deed::Resume,
        "kill" => Deed::Gone { why: text(&detail["why"]) },
        "start" => Deed::Began {
            pid: number(&detail["pid"]),
            epoch: detail["epoch"].as_i64()?,
            verb: text(&detail["verb"]),
            attempt: number(&detail["attempt"]),
        },
        "end" => Deed::Ended { pid: number(&detail["pid"]), exit: detail["exit"].as_i64() },
        "fault" => Deed::Fault { kind: fault_kind(detail) },
        _ => return None,
    };
    Some(Act { at_ms: number(&line["at_ms"]), sandbox: text(&line["sandbox"]), what })
}

fn fault_kind(detail: &Value) -> String {
    let on = text(&detail["on"]);
    let how = match (&detail["status"], &detail["lose_answer"], &detail["cut_after_ms"], &detail["stall_after_ms"]) {
        (status, ..) if !status.is_null() => status.to_string(),
        (_, lost, ..) if *lost == true => "lost".to_owned(),
        (_, _, cut, _) if !cut.is_null() => "cut".to_owned(),
        (.., stall) if !stall.is_null() => "stalled".to_owned(),
        _ => "slow".to_owned(),
    };
    format!("{on}_{how}")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(-1)
}
