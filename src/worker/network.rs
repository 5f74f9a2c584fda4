//! What an agent's sandbox may reach, and the key on its way out: told to E2B before each start of an agent.

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::attempt::{LetGo, persist};
use super::credentials::no_key;
use super::{Worker, startup};
use crate::e2b::ApiError;
use crate::keys::Credentials;
use crate::sandbox::{Launch, Sandbox, SandboxError};
use crate::store::Claimed;
use crate::turn::{Happened, StartupFailure, TurnError};

/// Says what the sandbox may reach, and adds the key to what leaves it, before the agent is there; why that failed. An agent that
/// runs keeps what it was started with.
pub(super) async fn limit(
    worker: &Worker,
    job: &Claimed,
    sandbox: &Sandbox,
    credentials: &Credentials,
    launch: &Launch,
) -> Result<Option<Happened>, LetGo> {
    let network = match job.egress.network(credentials, &launch.environment) {
        Ok(network) => network,
        Err(trouble) => return Ok(Some(no_key(trouble))),
    };
    let told = job.create_request.get("network").is_some();
    // What a sandbox from before was told it has still, though its pool says nothing about it any more.
    let Some(network) = network.or_else(|| (told && job.holds.is_some()).then(|| json!({}))) else { return Ok(None) };
    if !job.unseen && !startup::never_started(worker, sandbox).await? {
        return Ok(None);
    }
    if !told {
        persist(|| worker.store.note_network(job)).await?;
    }
    let act = async || tell(worker, sandbox, &network).await;
    let error = match startup::insist(sandbox, worker.config.worker.ready_deadline, act).await? {
        Ok(()) => return Ok(None),
        Err(error) => error,
    };
    let text = without_secrets(&format!("what its sandbox may reach can't be set: {error}"), credentials);
    Ok(Some(match &job.sandbox_id {
        None if matches!(error, SandboxError::Refused(_)) => {
            Happened::StartupFailed(StartupFailure::Config(TurnError::new("sandbox_config", text)))
        }
        Some(_) if job.unseen => Happened::StartupFailed(StartupFailure::NotKept(TurnError::new("sandbox_not_kept", text))),
        Some(_) => Happened::SandboxLost(text),
        None => Happened::StartupFailed(StartupFailure::Retry(TurnError::new("sandbox_network", text))),
    }))
}

/// A server may repeat what it does not take.
fn without_secrets(text: &str, credentials: &Credentials) -> String {
    credentials.secrets().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "***"))
}

async fn tell(worker: &Worker, sandbox: &Sandbox, network: &Value) -> Result<(), SandboxError> {
    match worker.e2b.set_network(sandbox.id(), network).await {
        Ok(true) => Ok(()),
        Ok(false) if sandbox.exists().await? => Err(SandboxError::Refused(
            "the server knows no PUT /sandboxes/{id}/network; turnmill pool set NAME --inject-key off --egress-allow all".to_owned(),
        )),
        Ok(false) => Err(SandboxError::Gone),
        Err(error @ (ApiError::Refused(_) | ApiError::Unauthorized(_))) => Err(SandboxError::Refused(error.to_string())),
        Err(error) => Err(SandboxError::Unreachable(error.to_string())),
    }
}
