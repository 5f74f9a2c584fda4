//! The key of a turn's agent: from the first source that has one.

use super::Worker;
use super::attempt::{LetGo, persist_free};
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
