//! What an attempt's agent is started with.

use std::collections::BTreeMap;

use serde_json::json;

use super::Worker;
use super::context::Memory;
use super::files::Luggage;
use crate::files::message;
use crate::keys::Credentials;
use crate::sandbox::{Launch, Restore};
use crate::store::Claimed;

/// Stands in a pool's command line for the file with what is to be added to the system prompt.
const INSTRUCTIONS: &str = "{instructions}";

/// The agent's command line, environment and input. The prompt is in the input only.
pub(super) fn launch(worker: &Worker, job: &Claimed, credentials: &Credentials, memory: &Memory, luggage: &Luggage) -> Launch {
    let mut command: Vec<String> = job.agent.iter().flat_map(|word| session_words(job, memory, word)).collect();
    let takes_file = command.iter().any(|word| word.contains(INSTRUCTIONS));
    let mut instructions = None;
    for (key, value) in job.options.as_object().into_iter().flatten().filter(|(key, _)| *key != "max_budget_usd") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if takes_file && key == "append_system_prompt" {
            instructions = Some(value);
        } else {
            command.push(format!("--{}={value}", key.replace('_', "-")));
        }
    }
    // It counts what its own process spends: an attempt gets what those before have left.
    if let Some(left) = job.budget_left_usd() {
        command.push(format!("--max-budget-usd={left}"));
    }
    add_servers(job, &mut command);
    if job.previews {
        command.push("--include-partial-messages".to_owned());
    }
    let mut environment: BTreeMap<String, String> = job
        .agent_env
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    if job.resumes {
        // Claude Code answers a message that it has seen with nothing, unless told to go on where it stopped.
        environment.insert("CLAUDE_CODE_RESUME_INTERRUPTED_TURN".to_owned(), "1".to_owned());
    }
    credentials.add_to(&mut environment, job.egress.inject_key);
    let input = json!({
        "type": "user",
        "uuid": job.message_uuid,
        "message": { "role": "user", "content": message(&job.prompt, &luggage.attachments) },
        "parent_tool_use_id": null,
        // Literal text: a slash command or @path in it is not interpreted.
        "client_composed": true,
    });
    let transcript_of = |session: &str| job.transcript.as_ref().map(|pattern| pattern.replace("{session}", session));
    let mut hook_environment = BTreeMap::from([("PROJECT_ID".to_owned(), job.project_id.clone())]);
    credentials.add_project_token_to(&mut hook_environment);
    Launch {
        command,
        environment,
        hooks: job.hooks.clone(),
        hook_environment,
        input: input.to_string(),
        instructions,
        servers: job.mcp_servers.as_ref().map(|servers| json!({ "mcpServers": servers }).to_string()),
        trusts_project: job.trust_project,
        workdir: job.workdir.clone(),
        journal_max_bytes: worker.config.worker.journal_max_bytes,
        transcript: transcript_of(&job.agent_session_id),
        transcript_max_bytes: u64::try_from(job.transcript_max_bytes).unwrap_or(0),
        forget: job.forgets && !job.resumes,
        files: luggage.rules.clone(),
        workspace: luggage.workspace.clone(),
        attached: luggage.attached.clone(),
        restore: match memory {
            Memory::Saved(saved) => transcript_of(&saved.of).map(|file| Restore { conversation: saved.conversation.clone(), file }),
            _ => None,
        },
    }
}

/// The pool's MCP servers, and what the project brings where the pool trusts it. Added here, not in the pools' default command line:
/// workers of before know nothing of it.
fn add_servers(job: &Claimed, command: &mut Vec<String>) {
    if job.mcp_servers.is_some() {
        command.push("--mcp-config={servers}".to_owned());
    }
    if job.trust_project {
        for word in command.iter_mut().filter(|word| *word == "--setting-sources=") {
            word.push_str("project");
        }
        command.push("--mcp-config={project-servers}".to_owned());
    }
}

/// Where a conversation goes on, `--session-id={session}` becomes the flags for that.
fn session_words(job: &Claimed, memory: &Memory, word: &str) -> Vec<String> {
    let own = |word: &str| word.replace("{session}", &job.agent_session_id);
    match memory {
        Memory::Saved(saved) if word == "--session-id={session}" && saved.of != job.agent_session_id => {
            vec![format!("--resume={}", saved.of), "--fork-session".to_owned(), own(word)]
        }
        Memory::Saved(_) | Memory::InSandbox if word == "--session-id={session}" => vec![own("--resume={session}")],
        _ => vec![own(word)],
    }
}
