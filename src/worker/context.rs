//! What the agent remembers: the conversation of the turns before goes into a new sandbox, and what it has become is
//! kept when its process has ended. What can't be restored is said before the answer, never dropped in silence.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tracing::warn;

use super::Worker;
use super::attempt::{LetGo, persist_free};
use crate::block::Block;
use crate::sandbox::{AgentExit, Sandbox};
use crate::store::{Claimed, Past};

/// What an attempt begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// The session's first turn, or a pool whose agent keeps no conversations.
    None,
    /// In the sandbox already: the attempt goes on in the conversation of the one before.
    InSandbox,
    /// To be brought in.
    Saved(Bytes),
}

/// Finds what was said before, and says what can't be found.
pub(super) async fn recall(worker: &Worker, job: &Claimed) -> Result<Memory, LetGo> {
    if job.resumes {
        return Ok(Memory::InSandbox);
    }
    if job.transcript.is_none() || job.ordinal == 1 {
        return Ok(Memory::None);
    }
    let past = persist_free(|| worker.store.past(job)).await?;
    let (memory, lost) = if job.forgets {
        (Memory::None, Some("the agent could not read the conversation that was saved".to_owned()))
    } else {
        remembered(past)
    };
    if let Some(why) = lost {
        warn!(turn.id = %job.turn_id, "Turn {} begins with a gap: {why}", job.turn_id);
        let block = Block::context_lost(&["conversation"], &why);
        persist_free(|| worker.store.tell_context_lost(job, &block)).await?;
    }
    Ok(memory)
}

/// From what is there of the session: what the agent can be given, and what is missing of it.
fn remembered(past: Past) -> (Memory, Option<String>) {
    let Some(spoke) = past.spoke else { return (Memory::None, None) };
    let Some((saved, gzip)) = past.saved else {
        return (Memory::None, Some("the conversation was not saved after the turns before".to_owned()));
    };
    let mut conversation = Vec::new();
    if let Err(error) = GzDecoder::new(gzip.as_slice()).read_to_end(&mut conversation) {
        return (Memory::None, Some(format!("the saved conversation is damaged ({error})")));
    }
    let gap = (saved < spoke).then(|| match spoke - saved {
        1 => format!("the conversation was not saved after turn {spoke} of this session"),
        _ => format!("the conversation was not saved after turns {} to {spoke} of this session", saved + 1),
    });
    (Memory::Saved(conversation.into()), gap)
}

/// Keeps the conversation as it is now that the agent has ended. What fails here costs the next turn its memory, and
/// that will be said; this turn's answer is there all the same.
pub(super) async fn keep(worker: &Worker, sandbox: &Sandbox, job: &Claimed, exit: &AgentExit) -> Result<(), LetGo> {
    if exit.transcript_bytes == 0 {
        return Ok(());
    }
    let bytes = i64::try_from(exit.transcript_bytes).unwrap_or(i64::MAX);
    if bytes > job.transcript_max_bytes {
        let max = job.transcript_max_bytes;
        warn!(turn.id = %job.turn_id, "The conversation of turn {} has more than {max} bytes and is not saved", job.turn_id);
        return Ok(());
    }
    match sandbox.transcript(exit.transcript_bytes).await {
        Ok(conversation) => {
            let gzip = compressed(&conversation);
            persist_free(|| worker.store.save_transcript(job, &gzip, bytes)).await
        }
        Err(error) => {
            warn!(turn.id = %job.turn_id, %error, "The conversation of turn {} could not be saved", job.turn_id);
            Ok(())
        }
    }
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    // Into memory: neither can fail.
    let _ = gzip.write_all(bytes);
    gzip.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_and_what_is_there_is_used() {
        let said = |spoke, saved: Option<(i32, Vec<u8>)>| remembered(Past { spoke, saved });
        let good = compressed(b"{}\n");
        assert_eq!(said(None, None), (Memory::None, None), "nothing was said");
        assert_eq!(said(Some(2), Some((2, good.clone()))), (Memory::Saved(Bytes::from_static(b"{}\n")), None));
        let (memory, why) = said(Some(4), Some((2, good.clone())));
        assert_eq!((memory, why.unwrap().contains("turns 3 to 4")), (Memory::Saved(Bytes::from_static(b"{}\n")), true));
        let (memory, why) = said(Some(1), Some((1, good[..10].to_vec())));
        assert!(memory == Memory::None && why.unwrap().contains("damaged"));
        assert!(said(Some(1), None).1.unwrap().contains("not saved"));
    }
}
