//! `turnmill watch`: a turn's blocks, while they come.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use super::{paint, store};
use crate::config::Config;
use crate::store::{BlockRow, Reading, Store};

/// Between two reads; a block is on the screen this long after its commit at most.
const POLL: Duration = Duration::from_millis(80);

/// Blocks of one read.
const BATCH: i64 = 500;

/// Lines of a tool's result that are shown.
const RESULT_LINES: usize = 6;

/// Stream a turn's blocks into the terminal.
#[derive(Debug, Args)]
pub struct Watch {
    /// The turn
    turn: String,
    /// A JSON line for each block, and a last one with the status
    #[arg(long)]
    json: bool,
}

impl Watch {
    /// Runs it. Exit code 0 when the turn completed, 1 otherwise.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        follow(&store(config).await?, &self.turn, self.json).await
    }
}

/// Prints blocks until the turn has ended.
pub async fn follow(store: &Store, turn_id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (mut after, mut generation, mut said_waiting, mut said_failures, mut said_error) = (-1, None, None, 0, None);
    loop {
        let reading = match store.read(turn_id, after, BATCH).await {
            Ok(Some(reading)) => reading,
            Ok(None) => anyhow::bail!("there is no turn \"{turn_id}\"; list turns with: turnmill turns"),
            Err(error) if crate::store::is_outage(&error) => {
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for block in &reading.blocks {
            after = block.seq;
            if generation.replace(block.generation).is_some_and(|before| before != block.generation) && !json {
                anstream::println!("{}── the sandbox was lost; the turn starts over ──{}", paint::WARN, paint::OFF);
            }
            if block.content["kind"] == "error" {
                said_error = block.content["text"].as_str().map(str::to_owned);
            }
            if json { anstream::println!("{}", paint::json(block)?) } else { print(block) }
        }
        if matches!(reading.status.as_str(), "completed" | "failed" | "cancelled") && reading.blocks.is_empty() {
            return finish(&reading, said_error.as_deref(), json);
        }
        if reading.failures > said_failures && !json {
            said_failures = reading.failures;
            let (code, message) = (reading.error_code.as_deref().unwrap_or("failed"), reading.error_message.as_deref().unwrap_or_default());
            anstream::eprintln!("{}! {code}: {}; it is tried again{}", paint::WARN, paint::safe(message), paint::OFF);
        }
        if reading.waits_for != said_waiting && !json {
            if let Some(why) = &reading.waits_for {
                anstream::eprintln!("{}waiting: {why}{}", paint::DIM, paint::OFF);
            }
            said_waiting.clone_from(&reading.waits_for);
        }
        if reading.blocks.is_empty() {
            sleep(POLL).await;
        }
    }
}

/// The last line; with the error only if its block has not said it.
fn finish(reading: &Reading, said_error: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        let end = serde_json::json!({ "status": reading.status, "error_code": reading.error_code, "error_message": reading.error_message });
        anstream::println!("{}", paint::json(&end)?);
    } else {
        let why = match (&reading.error_code, &reading.error_message) {
            (Some(code), Some(message)) if said_error == Some(message) => format!(": {code}"),
            (Some(code), Some(message)) => format!(": {code}: {}", paint::safe(message)),
            _ => String::new(),
        };
        anstream::println!("{}{}{}{why}", paint::status(&reading.status), reading.status, paint::OFF);
    }
    Ok(if reading.status == "completed" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One block, for people. Its text is foreign: nothing of it may steer the terminal.
pub fn print(block: &BlockRow) {
    let indent = if block.parent_tool_use_id.is_some() { "  │ " } else { "" };
    let text = |key: &str| paint::safe(block.content[key].as_str().unwrap_or_default());
    let lines = |text: &str, style: anstyle::Style, mark: &str| {
        for (nth, line) in text.lines().enumerate() {
            let mark = if nth == 0 { mark } else { "  " };
            anstream::println!("{indent}{style}{mark}{line}{}", paint::OFF);
        }
    };
    match block.kind.as_str() {
        "thinking" => lines(&text("text"), paint::DIM, "· "),
        "tool_use" => {
            let parameters = paint::short(&block.content["parameters"].to_string(), 100);
            lines(&format!("{} {parameters}", text("tool_name")), paint::TOOL, "▸ ");
        }
        "tool_result" if block.content["error"].is_string() => lines(&head(&text("error")), paint::WARN, "✗ "),
        "tool_result" => lines(&head(&text("result")), paint::DIM, "  "),
        _ if block.content["kind"] == "error" => lines(&text("text"), paint::BAD, "! "),
        _ if block.content["kind"] == "warning" => lines(&text("text"), paint::WARN, "! "),
        _ if block.content["kind"] == "retraction" => {
            let blocks = block.content["places_back"].as_array().map_or(0, Vec::len);
            lines(&format!("the agent takes back {blocks} of the blocks above"), paint::WARN, "! ");
        }
        _ => lines(&text("text"), anstyle::Style::new(), ""),
    }
}

fn head(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let more = lines.len().saturating_sub(RESULT_LINES);
    lines.truncate(RESULT_LINES);
    let mut shown = lines.iter().map(|line| line.chars().take(200).collect::<String>()).collect::<Vec<_>>().join("\n");
    if more > 0 {
        shown = format!("{shown}\n… {more} more lines");
    }
    shown
}
