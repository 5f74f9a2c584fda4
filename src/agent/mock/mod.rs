//! A program that speaks like Claude Code, from a script: what tests and the demo run instead of a model.
//!
//! It reads one message of stream-json from stdin, prints events to stdout, stops at SIGINT as the real one does,
//! and makes the same events again for the same message, uuids included. `--session-id` and `--resume` work as there:
//! a resumed script goes on behind the step where it failed.

mod memory;
mod script;
mod speech;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use memory::Memory;
use script::Step;
pub use script::{NAMES, Script};
use speech::Speech;

/// Plays the agent: `--script=NAME|FILE|JSON`, else `TURNMILL_MOCK_SCRIPT`, else `/mock SCRIPT` in the message.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    match prepare(args) {
        Ok((script, message, memory)) => {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return fail("can't start its runtime");
            };
            let code = runtime.block_on(perform(&script, &message, memory));
            drop(note("end", &message, json!({})));
            code
        }
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// What a script makes of a message when nothing stops it.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// Each line as the program prints it, with the time since its start.
    pub lines: Vec<(Duration, Vec<u8>)>,
    /// When it ends and its exit code; `None`: it hangs.
    pub end: Option<(Duration, u8)>,
}

/// Plays a script without waiting.
pub fn timeline(script: &Script, message_uuid: &str) -> Timeline {
    let mut speech = Speech::new(message_uuid);
    let mut at = Duration::ZERO;
    let mut lines = if script.foreign { Vec::new() } else { vec![(at, speech.init())] };
    for step in &script.steps {
        at += script.pause_before(step);
        speech.spend(script.usd_per_step, None);
        match speech.step(step) {
            speech::Act::Say(said) => lines.extend(said.into_iter().map(|line| (at, line))),
            speech::Act::Sleep(time) => at += time,
            speech::Act::Hang => return Timeline { lines, end: None },
            speech::Act::Exit { code, last } => {
                lines.extend(last.into_iter().map(|line| (at, line)));
                return Timeline { lines, end: Some((at, code)) };
            }
        }
    }
    lines.push((at, speech.result()));
    Timeline { lines, end: Some((at, 0)) }
}

/// The lines of a script's timeline.
pub fn lines(script: &Script, message_uuid: &str) -> Vec<Vec<u8>> {
    timeline(script, message_uuid).lines.into_iter().map(|(_, line)| line).collect()
}

/// The script that a message's first line asks for.
pub fn script_in(prompt: &str) -> Option<String> {
    prompt.lines().next()?.strip_prefix("/mock ").map(|name| name.trim().to_owned())
}

#[derive(Debug)]
struct Message {
    uuid: String,
}

fn prepare(args: impl Iterator<Item = OsString>) -> anyhow::Result<(Script, Message, Memory)> {
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let first = input.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let event: Value =
        serde_json::from_slice(first).map_err(|error| anyhow::anyhow!("Error: Input must be one JSON message a line: {error}"))?;
    let prompt = event["message"]["content"][0]["text"].as_str().or_else(|| event["message"]["content"].as_str()).unwrap_or_default();
    let given = args.iter().find_map(|arg| arg.strip_prefix("--script=").map(str::to_owned));
    let name =
        given.or_else(|| script_in(prompt)).or_else(|| std::env::var("TURNMILL_MOCK_SCRIPT").ok()).unwrap_or_else(|| "default".to_owned());
    let message = Message { uuid: event["uuid"].as_str().unwrap_or("00000000-0000-0000-0000-000000000000").to_owned() };
    let resumes = args.iter().any(|arg| arg.starts_with("--resume="));
    // Its journal is its standard output: the path says which attempt this is.
    let journal = std::fs::read_link("/proc/self/fd/1").ok();
    note("start", &message, json!({ "resumes": resumes, "sandbox": std::env::var("E2B_SANDBOX_ID").ok(), "journal": journal }))?;
    let memory = Memory::open(&args, &message.uuid, prompt)?;
    Ok((Script::find(name.trim())?, message, memory))
}

/// One line per start, and one per end that is not a SIGKILL, in `TURNMILL_MOCK_LEDGER`: how tests and the demo know
/// what ran, whatever the database says.
fn note(act: &str, message: &Message, detail: Value) -> anyhow::Result<()> {
    let Some(path) = std::env::var_os("TURNMILL_MOCK_LEDGER") else { return Ok(()) };
    let mut line = json!({ "act": act, "at_ms": now_ms(), "pid": std::process::id(), "message_uuid": message.uuid });
    for (key, value) in detail.as_object().into_iter().flatten() {
        line[key] = value.clone();
    }
    let mut ledger = std::fs::File::options().create(true).append(true).open(path)?;
    Ok(ledger.write_all(format!("{line}\n").as_bytes())?)
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a note for people and tests, which decides nothing")]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn perform(script: &Script, message: &Message, mut memory: Memory) -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return fail("can't listen for signals");
    };
    if memory.lost() {
        say(&Speech::new(&message.uuid).no_conversation());
        return ExitCode::FAILURE;
    }
    let mut speech = Speech::going_on(&message.uuid, memory.events());
    let partial = std::env::args().any(|arg| arg == "--include-partial-messages");
    let most_usd = std::env::args().find_map(|arg| arg.strip_prefix("--max-budget-usd=")?.parse().ok());
    if !script.foreign {
        say(&[speech.init()]);
    }
    let play = async {
        for (done, step) in script.steps.iter().enumerate().skip(memory.steps()) {
            let pause = script.pause_before(step);
            let pieces = if partial { speech.pieces(step) } else { Vec::new() };
            match u32::try_from(pieces.len()) {
                Ok(count @ 1..) => {
                    for piece in pieces {
                        say(&[piece]);
                        tokio::time::sleep(pause / count).await;
                    }
                }
                _ if matches!(step, Step::Clock(_)) => {}
                _ => tokio::time::sleep(pause).await,
            }
            memory.note(done + 1, speech.events());
            let acted = match step {
                Step::Recall => Some(Step::Text(memory.earlier())),
                Step::Clock(words) => Some(tell_the_time(&speech, *words, pause, partial).await),
                _ => step.act(),
            };
            let over = speech.spend(script.usd_per_step, most_usd);
            match speech.step(acted.as_ref().unwrap_or(step)) {
                // Like the real one, which leaves the last call without its result.
                speech::Act::Say(lines) if over => {
                    say(&lines[..lines.len().min(1)]);
                    say(&[speech.budget_spent(most_usd.unwrap_or_default())]);
                    return ExitCode::FAILURE;
                }
                speech::Act::Say(lines) => say(&lines),
                speech::Act::Sleep(time) => tokio::time::sleep(time).await,
                speech::Act::Hang => std::future::pending::<()>().await,
                speech::Act::Exit { code, last } => {
                    say(&last);
                    return ExitCode::from(code);
                }
            }
        }
        say(&[speech.result()]);
        ExitCode::SUCCESS
    };
    tokio::select! {
        code = play => code,
        _ = interrupt.recv() => {
            let mut speech = Speech::new(&format!("{}/interrupted", message.uuid));
            say(&speech.interrupted(&message.uuid));
            // Like the real one.
            ExitCode::SUCCESS
        }
        _ = terminate.recv() => ExitCode::from(143),
    }
}

/// A text of so many words within a pause: what time it is when each is said.
async fn tell_the_time(speech: &Speech, words: u32, pause: Duration, partial: bool) -> Step {
    let mut text = String::new();
    if partial {
        say(&speech.opening(&json!({ "type": "text", "text": "" })));
    }
    for _ in 0..words {
        tokio::time::sleep(pause / words).await;
        let word = format!("{}\n", now_ms());
        if partial {
            say(&[speech.piece("text", &word)]);
        }
        text.push_str(&word);
    }
    Step::Text(text)
}

/// One write a line, so that whoever kills us tears at most one.
fn say(lines: &[Vec<u8>]) {
    let mut stdout = std::io::stdout().lock();
    for line in lines {
        // Nobody to tell.
        drop(stdout.write_all(line));
        drop(stdout.flush());
    }
}

fn fail(text: &str) -> ExitCode {
    anstream::eprintln!("{text}");
    ExitCode::FAILURE
}
