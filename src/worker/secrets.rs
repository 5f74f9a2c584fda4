//! What nobody may see of what a turn's agent says: the secrets that it was given, by this worker or by one before, whose keys
//! may have been others.

use secrecy::{ExposeSecret as _, SecretString};
use tracing::warn;

use super::Worker;
use super::attempt::{LetGo, persist};
use crate::keys::{Mask, Vault};
use crate::store::Claimed;

/// The secrets of one turn, as far as they are known.
#[derive(Debug)]
pub(super) struct Secrets {
    all: Vec<SecretString>,
    mask: Mask,
    /// With those of this process: what errors may repeat.
    errors: Mask,
}

impl Secrets {
    /// Those on record.
    pub fn of(worker: &Worker, job: &Claimed) -> Self {
        let all = opened(&worker.vault, job).unwrap_or_else(|why| {
            warn!(turn.id = %job.turn_id, "What the agent of turn {} was given before can't be masked: {why}", job.turn_id);
            Vec::new()
        });
        Self { mask: Mask::new(&all), errors: with_own(worker, &all), all }
    }

    /// Takes note of what the next agent gets. It is on record before any agent has it, where there is a master key.
    pub async fn add<'a>(&mut self, worker: &Worker, job: &Claimed, secrets: impl Iterator<Item = &'a SecretString>) -> Result<(), LetGo> {
        let known = self.all.len();
        for new in secrets {
            if !self.all.iter().any(|one| one.expose_secret() == new.expose_secret()) {
                self.all.push(new.clone());
            }
        }
        if self.all.len() == known {
            return Ok(());
        }
        (self.mask, self.errors) = (Mask::new(&self.all), with_own(worker, &self.all));
        if worker.vault.sealing().is_some() {
            let texts: Vec<&str> = self.all.iter().map(SecretString::expose_secret).collect();
            let sealed = worker.vault.seal(&seal_of(job), serde_json::json!(texts).to_string().into_bytes());
            persist(|| worker.store.note_secrets(job, &sealed)).await?;
        }
        Ok(())
    }

    /// What hides all of them in what an agent says.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// What hides them in errors, which may repeat what a server was sent.
    pub fn in_errors(&self) -> &Mask {
        &self.errors
    }
}

fn with_own(worker: &Worker, all: &[SecretString]) -> Mask {
    Mask::new(all.iter().chain(&worker.config.secrets()))
}

fn opened(vault: &Vault, job: &Claimed) -> Result<Vec<SecretString>, String> {
    let Some(sealed) = job.secrets.clone() else { return Ok(Vec::new()) };
    let json = vault.open(&seal_of(job), sealed).map_err(|closed| closed.to_string())?;
    let texts: Vec<String> = serde_json::from_slice(&json).map_err(|_| "they are no list".to_owned())?;
    Ok(texts.into_iter().map(SecretString::from).collect())
}

fn seal_of(job: &Claimed) -> String {
    format!("secrets/{}", job.turn_id)
}
