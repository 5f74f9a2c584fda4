//! The key of a turn's agent: from the first source that has one.

use secrecy::{ExposeSecret as _, SecretString};
use tracing::error;

use super::Worker;
use super::attempt::{LetGo, persist, persist_free};
use crate::keys::{Bedrock, Credentials, KeyTrouble, Source, seal_of_secrets};
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

/// What this worker would give it without asking anybody for it: what an agent that runs was started with is likely the same.
pub(super) async fn at_hand(worker: &Worker, job: &Claimed) -> Result<Credentials, LetGo> {
    let key = match worker.keyring.fixed() {
        None => of_user(worker, job).await?.and_then(Result::ok),
        fixed => fixed,
    };
    Ok(worker.keyring.for_hooks(key.unwrap_or_default()))
}

/// What may be in the sandbox from before.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Secrets that processes there were given.
    secrets: Vec<SecretString>,
    /// Whether all of what is noted could be opened.
    whole: bool,
}

/// What the attempts of this turn so far were given, and the turns before it in a sandbox that was kept: whoever adopts it, starts
/// the agent again or goes on there has to know that too.
pub(super) async fn given_before(worker: &Worker, job: &Claimed) -> Result<Before, LetGo> {
    let mut before = Before { secrets: Vec::new(), whole: true };
    if job.unseen && job.sandbox_id.is_none() {
        return Ok(before);
    }
    for (turn_id, sealed) in persist_free(|| worker.store.noted_secrets(&job.session_id)).await? {
        match worker.vault.open(&seal_of_secrets(&turn_id), sealed) {
            Ok(packed) => before.secrets.extend(Credentials::unpack(&packed)),
            Err(closed) => {
                before.whole = false;
                error!(turn.id = %job.turn_id, "What turn {turn_id} was started with is not masked in what {} says: {closed}", job.turn_id);
            }
        }
    }
    Ok(before)
}

impl Before {
    /// With what the attempt is given now. Notes that for those to come, where there is a key to seal it and it is not noted yet.
    pub async fn and(self, worker: &Worker, job: &Claimed, now: Credentials) -> Result<Credentials, LetGo> {
        let noted = now.secrets().all(|new| self.secrets.iter().any(|old| old.expose_secret() == new.expose_secret()));
        let all = now.and_known(self.secrets);
        if !noted && worker.vault.sealing().is_some() {
            let sealed = worker.vault.seal(&seal_of_secrets(&job.turn_id), all.pack());
            persist(|| worker.store.note_secrets(job, &sealed, self.whole)).await?;
        }
        Ok(all)
    }
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
