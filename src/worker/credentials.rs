//! The key of a turn's agent: from the first source that has one.

use secrecy::SecretString;
use tracing::warn;

use super::Worker;
use super::attempt::{LetGo, persist, persist_free};
use crate::keys::{Bedrock, Credentials, KeyTrouble, Source};
use crate::store::Claimed;
use crate::turn::{Happened, TurnError};

/// What the turn's processes get; or why there is no key, where the turn can't do without. A source that has one and can't
/// give it is an error: the next may be another's bill.
pub(super) async fn find(worker: &Worker, job: &Claimed) -> Result<Result<Credentials, Happened>, LetGo> {
    for source in worker.keyring.order() {
        let found = match source {
            Source::Fixed => worker.keyring.fixed().map(Ok),
            Source::Bedrock => match worker.keyring.bedrock() {
                Some(bedrock) => Some(of_bedrock(bedrock, job).await),
                None => None,
            },
            Source::User => of_user(worker, job).await?,
        };
        match found {
            Some(Ok(credentials)) => return Ok(Ok(worker.keyring.for_hooks(credentials))),
            Some(Err(trouble)) => return Ok(Err(no_key(trouble))),
            None => {}
        }
    }
    if worker.keyring.requires(&job.agent, &job.agent_env) {
        return Ok(Err(no_key(nowhere(worker.keyring.order()))));
    }
    Ok(Ok(worker.keyring.for_hooks(Credentials::default())))
}

/// What the attempts of this turn so far were given: whoever adopts it, or starts the agent again, has to know that too.
pub(super) async fn given_before(worker: &Worker, job: &Claimed) -> Result<Vec<SecretString>, LetGo> {
    if job.unseen {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for sealed in persist_free(|| worker.store.noted_secrets(&job.turn_id)).await? {
        match worker.vault.open(&seal_of(job), sealed) {
            Ok(packed) => all.extend(Credentials::unpack(&packed)),
            Err(closed) => warn!(turn.id = %job.turn_id, "What turn {} was started with is not known: {closed}", job.turn_id),
        }
    }
    Ok(all)
}

/// Notes what this attempt is started with, where there is a key to seal it; beside what it was started with by others.
pub(super) async fn note(worker: &Worker, job: &Claimed, credentials: &Credentials) -> Result<(), LetGo> {
    if worker.vault.sealing().is_none() || credentials.secrets().next().is_none() {
        return Ok(());
    }
    let sealed = worker.vault.seal(&seal_of(job), credentials.pack());
    persist(|| worker.store.note_secrets(job, &sealed)).await
}

fn seal_of(job: &Claimed) -> String {
    format!("turn_secrets/{}", job.turn_id)
}

async fn of_bedrock(bedrock: &Bedrock, job: &Claimed) -> Result<Credentials, KeyTrouble> {
    bedrock.credentials(job.options.get("model").and_then(|model| model.as_str()), job.time_left).await
}

async fn of_user(worker: &Worker, job: &Claimed) -> Result<Option<Result<Credentials, KeyTrouble>>, LetGo> {
    let Some(own) = persist_free(|| worker.store.own_key(&job.session_id)).await? else { return Ok(None) };
    Ok(Some(match own.open(&worker.vault) {
        Ok((kind, key)) => Ok(Credentials::with_key(kind, key)),
        Err(closed) => Err(KeyTrouble::passing("key_sealed", format!("the user's own key is there, but {closed}"))),
    }))
}

fn nowhere(order: &[Source]) -> KeyTrouble {
    let places: Vec<&str> = order
        .iter()
        .map(|source| match source {
            Source::Fixed => "ANTHROPIC_API_KEY or another fixed key in the workers' environment",
            Source::Bedrock => "Bedrock (BEDROCK_MODEL_ID, AWS_REGION, AWS_ROLE_ARN)",
            Source::User => "a key of the session's user or tenant (turnmill keys set)",
        })
        .collect();
    KeyTrouble::lasting("no_credentials", format!("there is none: give one of {}", places.join("; ")))
}

/// What it means for the turn.
pub(super) fn no_key(trouble: KeyTrouble) -> Happened {
    Happened::NoKey { error: TurnError::new(trouble.code, trouble.text), passing: trouble.passing }
}
