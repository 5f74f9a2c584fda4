//! What the stand-in agent does, step by step.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};

/// A script: a name of ours, a file, or JSON like
/// `{"delay_ms": 100, "usd_per_step": 0.01, "steps": [{"text": "hi"}, {"tool": {"name": "Bash", "input": {"command": "ls"}, "result": "a"}}]}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Before every step.
    #[serde(default)]
    pub delay_ms: u64,
    /// Is some other program: prints no `init` first.
    #[serde(default)]
    pub foreign: bool,
    /// What each step costs, in dollars; without it the whole costs next to nothing.
    #[serde(default)]
    pub usd_per_step: f64,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// A block of thought.
    Thinking(String),
    /// A block of text.
    Text(String),
    /// A call and, unless it hangs, its result.
    Tool(Tool),
    /// A text block of this many words, each the milliseconds since 1970 when it was said, on a line.
    Clock(u32),
    /// A text block with the messages of the conversation before this one, a line each.
    Recall,
    /// Makes a file of its working directory, or changes it.
    Write(Written),
    /// Deletes one.
    Delete(String),
    /// A text block with what is in one.
    Read(String),
    /// A pause.
    SleepMs(u64),
    /// Retries, then the CLI's own words and a failed result; ends with exit code 1.
    ApiError(ApiError),
    /// A line as it is, with a newline.
    Raw(String),
    /// The same without a newline: a torn line, if it is the last.
    Torn(String),
    /// Bytes that are no UTF-8 inside a text block.
    InvalidUtf8,
    /// One text block of this many bytes.
    Huge(usize),
    /// The block before once more, under the same uuid.
    Repeat,
    /// Never goes on.
    Hang,
    /// Ends at once with this exit code, without a result.
    Exit(u8),
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// As the model calls it.
    pub name: String,
    /// Its parameters.
    #[serde(default)]
    pub input: Value,
    /// What comes back; without it the call never returns.
    pub result: Option<Value>,
    /// The result is an error.
    #[serde(default)]
    pub failed: bool,
}

/// What to write where.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// From the working directory; what is missing on the way is made.
    pub path: PathBuf,
    /// All that it holds then.
    pub text: String,
}

impl Step {
    /// Does what a step does to files; what there is to say then. Only who runs as a process has any.
    pub(super) fn act(&self) -> Option<Self> {
        let done = match self {
            Self::Write(Written { path, text }) => {
                path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text)).map(|()| String::new())
            }
            Self::Delete(path) => std::fs::remove_file(path).map(|()| String::new()),
            Self::Read(path) => std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            _ => return None,
        };
        match (self, done) {
            (Self::Read(_), Ok(text)) => Some(Self::Text(text)),
            (_, Ok(_)) => None,
            (_, Err(error)) => Some(Self::Text(error.to_string())),
        }
    }
}

/// A failure of the model's API.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiError {
    /// Claude Code's word for it.
    pub error: String,
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
}

impl Script {
    /// By name, from a file, or as JSON.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        if name.starts_with('{') {
            return serde_json::from_str(name).context("reading the script");
        }
        if let Some(script) = named(name) {
            return Ok(script);
        }
        let text = std::fs::read_to_string(name)
            .with_context(|| format!("there is no script and no file \"{name}\"; scripts are: {}", NAMES.join(", ")))?;
        serde_json::from_str(&text).with_context(|| format!("reading the script {name}"))
    }

    /// The pause before a step.
    pub fn pause_before(&self, step: &Step) -> Duration {
        Duration::from_millis(if matches!(step, Step::SleepMs(_)) { 0 } else { self.delay_ms })
    }
}

/// Names of the built-in scripts.
pub const NAMES: [&str; 9] = ["default", "noop", "tools", "long", "api-error", "hang", "crash", "garbage", "hostile"];

fn named(name: &str) -> Option<Script> {
    let script = |delay_ms, steps| Some(Script { delay_ms, foreign: name == "garbage", usd_per_step: 0.0, steps });
    let text = |text: &str| Step::Text(text.to_owned());
    match name {
        // The five blocks of the original proposal.
        "default" => script(
            500,
            vec![
                Step::Thinking("分析用户需求...".to_owned()),
                text("理解了，我来帮您..."),
                tool("read_file", json!({}), "File content..."),
                text("已完成任务。"),
            ],
        ),
        "noop" => script(0, vec![text("Done.")]),
        "tools" => script(
            100,
            vec![
                text("Let me look."),
                tool("Bash", json!({ "command": "ls" }), "Cargo.toml\nsrc"),
                Step::Tool(Tool {
                    name: "Read".to_owned(),
                    input: json!({ "file_path": "/nope" }),
                    result: Some("File does not exist.".into()),
                    failed: true,
                }),
                tool("Grep", json!({ "pattern": "fn main" }), "src/main.rs:9:fn main() -> ExitCode {"),
                text("There is one `main`."),
            ],
        ),
        "long" => script(250, long()),
        "api-error" => script(
            100,
            vec![
                text("Starting."),
                Step::ApiError(ApiError { error: "overloaded".to_owned(), status: 529, message: "API Error: 529 Overloaded".to_owned() }),
            ],
        ),
        "hang" => script(
            100,
            vec![
                text("I will be right back."),
                Step::Tool(Tool { name: "Bash".to_owned(), input: json!({ "command": "sleep infinity" }), result: None, failed: false }),
                Step::Hang,
            ],
        ),
        "crash" => script(100, vec![text("So far, so good."), Step::Exit(139)]),
        "garbage" => {
            script(0, vec![Step::Raw("Welcome to some other program!".to_owned()), Step::Raw("Press any key".to_owned()), Step::Exit(0)])
        }
        "hostile" => script(0, hostile()),
        _ => None,
    }
}

fn tool(name: &str, input: Value, result: &str) -> Step {
    Step::Tool(Tool { name: name.to_owned(), input, result: Some(result.into()), failed: false })
}

/// A quarter of a minute of plausible work.
fn long() -> Vec<Step> {
    let work = [
        (
            "src/session.rs",
            "expires_at is compared with the local clock",
            "The token's expiry is read as local time, but it is written as UTC.",
        ),
        ("src/login.rs", "fn renew(token: &Token) -> Result<Token>", "`renew` is only called when the page is loaded, never on a 401."),
        ("src/clock.rs", "pub fn now() -> DateTime<Local>", "There it is: `Local` where everybody else has `Utc`."),
        ("tests/login.rs", "#[test] fn an_expired_token_is_renewed()", "The test passes only because CI runs in UTC."),
        ("src/clock.rs", "pub fn now() -> DateTime<Utc>", "With `Utc` the comparison is right in every time zone."),
        ("src/login.rs", "if response.status() == 401 { renew(&token)? }", "Now a 401 renews the token once and tries again."),
        ("tests/login.rs", "TZ=America/New_York cargo test login", "I run the test in another time zone as well."),
        ("CHANGELOG.md", "## Fixed", "A line for the release notes."),
    ];
    let mut steps = vec![
        Step::Thinking("The user is logged out too early. Either the token's expiry is wrong or it is compared wrongly.".to_owned()),
        Step::Text("I'll look at how sessions expire.".to_owned()),
    ];
    for (file, found, meaning) in work {
        steps.push(Step::Thinking(format!("Next: {file}.")));
        steps.push(tool("Read", json!({ "file_path": file }), found));
        steps.push(Step::Text(meaning.to_owned()));
        steps.push(tool("Bash", json!({ "command": "cargo test login" }), "test result: ok. 12 passed; 0 failed"));
    }
    steps.push(Step::Text("Fixed: the expiry was compared in local time. All tests pass, also in another time zone.".to_owned()));
    steps
}

/// What has broken others.
fn hostile() -> Vec<Step> {
    vec![
        Step::Raw(String::new()),
        Step::Raw("this is no JSON".to_owned()),
        Step::Raw(r#"{"type":"system","subtype":"never_heard_of_it","x":[1,2,3]}"#.to_owned()),
        Step::Raw(r#"{"type":"assistant","message":{"content":[{"type":"text","text":"nul \u0000 lone \ud83d low \ude00 esc \\u0000"}]},"uuid":"11111111-0000-4000-8000-000000000001"}"#.to_owned()),
        Step::Text("\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7} bidi \u{202e}txt\r\n".to_owned()),
        Step::InvalidUtf8,
        Step::Text("'); DROP TABLE turnmill.blocks; -- $(rm -rf /) `x` \"quoted\" \\".to_owned()),
        Step::Repeat,
        Step::Raw(r#"{"type":"assistant","message":{"content":"a text where a list should be"},"uuid":17}"#.to_owned()),
        Step::Raw(format!("{}1{}", "[".repeat(5000), "]".repeat(5000))),
        Step::Huge(2 << 20),
        Step::Text("Still here.".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_help_is_a_script() {
        for name in NAMES {
            assert!(Script::find(name).is_ok(), "{name}");
        }
        let error = Script::find("nonsense").unwrap_err().to_string();
        assert!(error.contains("scripts are: default"), "{error}");
    }
}
