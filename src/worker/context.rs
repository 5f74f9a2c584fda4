//! What the agent remembers: the conversation of the turns before goes into a new sandbox, and what it has become is
//! kept when its process has ended. What can't be restored is said before the answer, never dropped in silence.

use bytes::Bytes;
use tracing::warn;

use super::Worker;
use super::attempt::{LetGo, persist_free};
use super::files::fetch;
use crate::block::Block;
use crate::keys::{Mask, Sealed, Vault};
use crate::sandbox::{AgentExit, Sandbox};
use crate::store::{Claimed, Past, SavedBy};
use crate::transcript;

/// What an attempt begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nothing was said before, or the pool's agent keeps no conversations.
    None,
    /// In the sandbox already: of the attempt before, or of the turn before.
    InSandbox,
    /// To be brought in.
    Saved(Saved),
}

/// A conversation as it was saved.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// The agent's own file.
    pub conversation: Bytes,
    /// The agent's id of it: another session's where that one was forked.
    pub of: String,
}

/// Whether the sandbox, if one was kept, is as the turn that this one continues has left it.
pub(super) fn is_as_left(job: &Claimed, past: &Past) -> bool {
    job.holds.is_none() || job.holds == past.from
}

/// Finds what was said before, and why not all of it.
pub(super) async fn recall(worker: &Worker, job: &Claimed, past: Past) -> Result<(Memory, Option<String>), LetGo> {
    if job.resumes {
        return Ok((Memory::InSandbox, None));
    }
    if job.transcript.is_none() {
        return Ok((Memory::None, None));
    }
    if job.holds.is_some() && job.holds == past.from && past.bytes != Some(0) && !job.forgets {
        return Ok((Memory::InSandbox, None));
    }
    Ok(if job.forgets && past.saved.is_none() && past.missing == 0 {
        // Nothing was said before: it was this turn's own beginning that is lost.
        (Memory::None, None)
    } else if job.forgets {
        (Memory::None, Some("the agent could not read the conversation that was saved".to_owned()))
    } else {
        let saved = match &past.saved {
            Some(by) => persist_free(|| worker.store.transcript(&by.turn_id)).await?.map(|sealed| opened(&worker.vault, by, sealed)),
            None => None,
        };
        remembered(&past, saved, job.transcript_max_bytes)
    })
}

/// Says before the answer what of the turns before can't be restored: each with why, all in one block.
pub(super) async fn tell(worker: &Worker, job: &Claimed, lost: &[(&str, Option<&str>)]) -> Result<(), LetGo> {
    let (what, why): (Vec<&str>, Vec<&str>) = lost.iter().filter_map(|(what, why)| Some((*what, (*why)?))).unzip();
    if what.is_empty() {
        return Ok(());
    }
    let why = why.join("; ");
    warn!(turn.id = %job.turn_id, "Turn {} begins with a gap: {why}", job.turn_id);
    let block = Block::context_lost(&what, &why);
    persist_free(|| worker.store.tell_context_lost(job, &block)).await
}

/// From what is there of the past: what the agent can be given, and what is missing of it.
fn remembered(past: &Past, saved: Option<Result<Saved, String>>, max: i64) -> (Memory, Option<String>) {
    let why = match past.bytes {
        Some(bytes) if bytes > max => format!("the conversation was larger than the pool's limit of {max} bytes and was not saved"),
        _ if past.missing == 1 => "the conversation was not saved after the turn before this one".to_owned(),
        _ => format!("the conversation was not saved after the {} turns before this one", past.missing),
    };
    match saved {
        Some(Ok(saved)) => (Memory::Saved(saved), (past.missing > 0).then_some(why)),
        Some(Err(why)) => (Memory::None, Some(why)),
        None => (Memory::None, (past.missing > 0).then_some(why)),
    }
}

fn opened(vault: &Vault, by: &SavedBy, sealed: Sealed) -> Result<Saved, String> {
    let conversation = transcript::unpack(vault, &by.turn_id, sealed)?;
    Ok(Saved { conversation: conversation.into(), of: by.agent_session_id.clone() })
}

/// Keeps the conversation as it is now that the agent has ended. What fails here costs the next turn its memory, and
/// that will be said; this turn's answer is there all the same.
pub(super) async fn keep(worker: &Worker, sandbox: &Sandbox, job: &Claimed, exit: &AgentExit, mask: &Mask) -> Result<(), LetGo> {
    if job.transcript.is_none() {
        return Ok(());
    }
    if !exit.transcript_kept {
        // Nothing is written down: a size of 0 would say that there was none.
        warn!(turn.id = %job.turn_id, "No whole copy of turn {}'s conversation could be made in its sandbox", job.turn_id);
        return Ok(());
    }
    let bytes = i64::try_from(exit.transcript_bytes).unwrap_or(i64::MAX);
    if bytes == 0 || bytes > job.transcript_max_bytes {
        return persist_free(|| worker.store.save_transcript(job, bytes, None)).await;
    }
    match fetch(worker, sandbox, "transcript", exit.transcript_bytes).await? {
        Ok(conversation) => {
            let sealed = transcript::pack(&worker.vault, &job.turn_id, &mask.bytes(&conversation));
            persist_free(|| worker.store.save_transcript(job, bytes, Some(&sealed))).await
        }
        Err(error) => {
            warn!(turn.id = %job.turn_id, %error, "The conversation of turn {} could not be saved", job.turn_id);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_and_what_is_there_is_used() {
        let by = |turn: &str| SavedBy { turn_id: turn.to_owned(), agent_session_id: "a".to_owned() };
        let past = |missing, saved: Option<SavedBy>| Past { from: Some("t".to_owned()), bytes: None, saved, missing };
        let vault = Vault::default();
        let read = |data: Vec<u8>| opened(&vault, &by("t"), Sealed { key_id: None, data });
        let (good, whole) =
            (transcript::pack(&vault, "t", b"{}\n").data, Saved { conversation: Bytes::from_static(b"{}\n"), of: "a".to_owned() });
        let said = |past: &Past, data: Option<Vec<u8>>| remembered(past, data.map(read), 100);
        assert_eq!(said(&past(0, None), None), (Memory::None, None), "nothing was said");
        assert_eq!(said(&past(0, Some(by("t"))), Some(good.clone())), (Memory::Saved(whole), None));
        let (memory, why) = said(&past(2, Some(by("t"))), Some(good.clone()));
        assert!(matches!(memory, Memory::Saved(_)) && why.unwrap().contains("after the 2 turns before"));
        let (memory, why) = said(&past(0, Some(by("t"))), Some(good[..10].to_vec()));
        assert!(memory == Memory::None && why.unwrap().contains("damaged"));
        assert!(said(&past(1, None), None).1.unwrap().contains("after the turn before this one"));
        assert!(said(&Past { bytes: Some(101), ..past(1, None) }, None).1.unwrap().contains("larger than the pool's limit of 100"));
    }
}
