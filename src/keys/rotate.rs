//! Another master key: what older ones have sealed is opened and sealed anew under the newest, a few rows at a time, while the
//! fleet works. It can be stopped and begun again at any time, and two may run at once.

use super::{Sealed, Vault, seal_of_own, seal_of_secrets};
use crate::files::seal_of_workspace;
use crate::store::{SealedKind, SealedRow, Store};
use crate::transcript::seal_of_conversation;
use crate::webhooks::seal_of_endpoint;

/// What has been done of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// Of what.
    pub kind: SealedKind,
    /// Sealed anew so far.
    pub done: u64,
    /// Could not be opened: sealed under a key that is not configured, or damaged.
    pub closed: u64,
}

/// Seals everything anew, and tells of every batch.
pub async fn rotate(store: &Store, vault: &Vault, newest: &str, mut tell: impl FnMut(Rotated)) -> sqlx::Result<Vec<Rotated>> {
    let mut all = Vec::new();
    for kind in SealedKind::ALL {
        let mut so_far = Rotated { kind, done: 0, closed: 0 };
        let mut after = String::new();
        loop {
            let batch = store.reseal(kind, newest, &after, batch_of(kind), |row| again(vault, kind, row)).await?;
            so_far.done += batch.done;
            so_far.closed += batch.closed;
            let Some(last) = batch.last else { break };
            after = last;
            tell(so_far);
        }
        all.push(so_far);
    }
    Ok(all)
}

/// A batch is held in memory, and its rows are held against others until it is written.
const fn batch_of(kind: SealedKind) -> i64 {
    match kind {
        SealedKind::Workspace => 1,
        SealedKind::Conversation => 10,
        SealedKind::WebhookSecret | SealedKind::OldWebhookSecret | SealedKind::OwnKey | SealedKind::TurnSecrets => 100,
    }
}

/// `None`: it can't be opened.
fn again(vault: &Vault, kind: SealedKind, row: SealedRow) -> Option<Sealed> {
    let (of, and) = row.of;
    let belongs_to = match kind {
        SealedKind::Conversation => seal_of_conversation(&of),
        SealedKind::Workspace => seal_of_workspace(&of),
        SealedKind::WebhookSecret | SealedKind::OldWebhookSecret => seal_of_endpoint(&of),
        SealedKind::OwnKey => seal_of_own(&of, &and),
        SealedKind::TurnSecrets => seal_of_secrets(&of),
    };
    Some(vault.seal(&belongs_to, vault.open(&belongs_to, row.sealed).ok()?))
}
