//! The files of a turn: what a new sandbox gets of the turns before, what came with the message, and what is kept when
//! the agent has ended. What can't be restored is said before the answer, never dropped in silence.

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tracing::warn;

use super::Worker;
use super::attempt::{LetGo, persist, persist_free};
use super::startup::{insist, look};
use crate::files::{self, Attachment, Damaged, FileRules, Listed, Parcel, seal_of_workspace};
use crate::keys::{Sealed, Vault};
use crate::sandbox::{AgentExit, AgentState, FilesExit, Sandbox, SandboxError};
use crate::store::{Artifact, Before, Claimed, TurnFiles, Workspace};

/// Turns whose files this process holds in memory at once; each may have twice the pool's `workspace_max_bytes`.
static HANDS: Semaphore = Semaphore::const_new(4);

/// Bytes of one ranged read.
const CHUNK: u64 = 4 << 20;

/// A snapshot may unpack to this many times its own limit (`unpacked_times` in e2b/files), and what tar itself adds.
const UNPACKED_TIMES: u64 = 32;
const TAR_ADDS: u64 = 32 << 20;

/// What goes along with an attempt.
#[derive(Debug, Default)]
pub(super) struct Luggage {
    /// The pool's.
    pub rules: FileRules,
    /// Came with the message.
    pub attachments: Vec<Attachment>,
    /// The same as the supervisor takes them; `None`: it has them, or there are none.
    pub attached: Option<Parcel>,
    /// The files of the turns before; `None`: they are there, or there are none.
    pub workspace: Option<Parcel>,
    /// What is missing of them.
    pub lost: Option<String>,
}

/// Finds what the sandbox must get before the agent starts.
pub(super) async fn gather(worker: &Worker, job: &Claimed, sandbox: &Sandbox) -> Result<Luggage, LetGo> {
    let (rules, attachments) = persist_free(|| worker.store.files_of(job)).await?;
    let mut luggage = Luggage { rules, attachments, ..Luggage::default() };
    let fresh = if job.unseen {
        // New, or kept since the turn before.
        job.sandbox_id.is_none()
    } else {
        // Who can't be asked gets it all: the supervisor takes each only once.
        let probe = look(worker, sandbox).await?;
        if probe.as_ref().is_some_and(|probe| probe.state != AgentState::None) {
            return Ok(luggage);
        }
        probe.is_none_or(|probe| probe.fresh)
    };
    // An attempt before this one has brought them, and its agent may have changed them.
    if !luggage.attachments.is_empty() && (fresh || job.agent_failures == 0) {
        luggage.attached = Some(Parcel::of_attachments(&luggage.attachments).unwrap_or_else(|error| {
            warn!(turn.id = %job.turn_id, %error, "The attachments of turn {} can't be packed", job.turn_id);
            // Which the supervisor refuses: no agent starts without what came with its message.
            Parcel { archive: Some(Bytes::new()), ..Parcel::default() }
        }));
    }
    // What an attempt before has left is no more so: should this one's sandbox be lost, nobody knows the files, nor what was said.
    if job.attempt > 1 {
        persist(|| worker.store.forget_attempt(job)).await?;
    }
    if fresh {
        let before = persist_free(|| worker.store.files_before(&job.turn_id)).await?;
        let (from, lost) = state_before(&before, &luggage.rules.policy);
        luggage.lost = lost;
        if let Some(from) = from {
            let saved = persist_free(|| worker.store.workspace(&from.turn_id)).await?;
            match unpackable(&worker.vault, &from.turn_id, saved, luggage.rules.archive_max_bytes).await {
                Ok(parcel) => luggage.workspace = Some(parcel),
                Err(why) => luggage.lost = Some(format!("the saved files of turn {} can't be restored: {why}", from.ordinal)),
            }
        }
    }
    Ok(luggage)
}

/// From what is known of the turns before, nearest first: the state to restore, and what is missing of the newest one.
fn state_before<'a>(before: &'a [Before], policy: &str) -> (Option<&'a Before>, Option<String>) {
    let mut gap: Option<String> = None;
    let mut from = None;
    for turn in before {
        let why = match (turn.kind.as_deref(), &turn.missing) {
            (Some("unchanged"), _) => continue,
            (Some("empty" | "carried"), _) => break,
            (Some("saved"), _) if matches!(policy, "hooks" | "none") => Some(not_kept(policy)),
            (Some("saved"), missing) => {
                from = Some(turn);
                if let (None, Some(why)) = (&gap, missing) {
                    gap = Some(format!("not all files of turn {} were saved: {why}", turn.ordinal));
                }
                break;
            }
            (Some(_), missing) => missing.clone(),
            (None, _) if turn.started => Some("its sandbox was lost before, or they were forgotten since".to_owned()),
            (None, _) => continue,
        };
        gap.get_or_insert_with(|| format!("the files of turn {} were not saved: {}", turn.ordinal, why.unwrap_or_default()));
    }
    let gap = match (gap, from) {
        (Some(gap), Some(from)) if from.missing.is_none() => Some(format!("{gap}; they are as they were after turn {}", from.ordinal)),
        (gap, _) => gap,
    };
    (from, gap)
}

fn not_kept(policy: &str) -> String {
    match policy {
        "hooks" => "the pool keeps them by its hooks only, and the hook finish has carried none".to_owned(),
        _ => "the pool keeps none".to_owned(),
    }
}

async fn unpackable(vault: &Vault, turn_id: &str, saved: Workspace, max_bytes: i64) -> Result<Parcel, String> {
    let gone = saved.deleted.unwrap_or_default();
    let Some(data) = saved.data else { return Ok(Parcel::of_state(None, &[], &gone)) };
    let data = vault.open(&seal_of_workspace(turn_id), Sealed { key_id: saved.key_id, data }).map_err(|why| why.to_string())?;
    // The limit may have been lowered since.
    let max = unpacked_max(max_bytes.max(i64::try_from(data.len()).unwrap_or(i64::MAX)));
    let looked = blocking(move || files::inspect(&data, max, 0, |_, _| {}).map(|members| (data, members))).await?;
    let (data, members) = looked.map_err(|damaged: Damaged| damaged.to_string())?;
    Ok(Parcel::of_state(Some(data.into()), &members, &gone))
}

fn unpacked_max(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0).saturating_mul(UNPACKED_TIMES).saturating_add(TAR_ADDS)
}

/// Apart from the runtime's own threads: it may take seconds.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Writes down what the agent has made of the files. What fails here costs readers and the next turn the files, and that
/// will be said; this turn's answer is there all the same.
pub(super) async fn keep(worker: &Worker, sandbox: &Sandbox, job: &Claimed, rules: &FileRules, exit: &AgentExit) -> Result<(), LetGo> {
    let Some(files) = &exit.files else { return Ok(()) };
    let Ok(_hand) = HANDS.acquire().await else { return Ok(()) };
    let mut kept =
        if exit.ran { collect(worker, sandbox, rules, files).await? } else { TurnFiles { kind: "unchanged", ..TurnFiles::default() } };
    if let Some(why) = kept.missing.as_ref().or(kept.unlisted.as_ref()) {
        warn!(turn.id = %job.turn_id, "Not all files of turn {} are kept: {why}", job.turn_id);
    }
    if let Some(archive) = kept.workspace.data.take() {
        let Sealed { key_id, data } = worker.vault.seal(&seal_of_workspace(&job.turn_id), archive);
        (kept.workspace.key_id, kept.workspace.data) = (key_id, Some(data));
    }
    match persist(|| worker.store.save_files(job, &kept)).await {
        Err(LetGo::Broken(fault)) => {
            warn!(turn.id = %job.turn_id, error = %fault, "The files of turn {} could not be saved", job.turn_id);
            Ok(())
        }
        done => done,
    }
}

async fn collect(worker: &Worker, sandbox: &Sandbox, rules: &FileRules, exit: &FilesExit) -> Result<TurnFiles, LetGo> {
    let unlisted = exit.unlisted.as_deref().map(|word| why(word, rules));
    let fetched = match fetch(worker, sandbox, "changes", exit.list_bytes).await? {
        Ok(list) => fetch(worker, sandbox, "archive", exit.archive_bytes).await?.map(|archive| (list, archive)),
        Err(error) => Err(error),
    };
    let (list, archive) = match fetched {
        Ok(both) => both,
        Err(error) => {
            let why = format!("they could not be fetched from the sandbox: {error}");
            return Ok(TurnFiles { kind: "lost", missing: Some(why.clone()), unlisted: Some(why), ..TurnFiles::default() });
        }
    };
    let (listed, gone) = files::changes(&list);
    let (limits, packed) = (rules.clone(), exit.archive.is_some());
    let opened = blocking(move || open(archive, packed, listed, &limits)).await;
    let (archive, members, artifacts, damage) = match opened {
        Ok(opened) => opened,
        Err(error) => (Bytes::new(), 0, Vec::new(), Some(error)),
    };
    let (kind, missing) = match damage {
        Some(damage) if exit.archive.as_deref() == Some("all") => ("lost", Some(format!("their archive was damaged on its way: {damage}"))),
        _ => state_after(exit, rules),
    };
    let mut kept = TurnFiles { kind, missing, artifacts, unlisted, ..TurnFiles::default() };
    if kind == "saved" {
        let deleted: Vec<u8> = gone.into_iter().flat_map(|path| path.into_iter().chain([0])).collect();
        kept.workspace.deleted = (!deleted.is_empty()).then_some(deleted);
        kept.workspace.data = (!archive.is_empty()).then(|| archive.into());
        kept.files = members;
    }
    Ok(kept)
}

/// What the next turn in a new sandbox can have of the files, and why not all.
fn state_after(exit: &FilesExit, rules: &FileRules) -> (&'static str, Option<String>) {
    match (exit.unsaved.as_deref(), exit.archive.as_deref()) {
        // With a snapshot beside it nothing is asked of the hook in the next sandbox.
        _ if exit.carried && rules.policy != "snapshot" && rules.policy != "none" => ("carried", None),
        (None, _) if exit.changed == 0 => ("empty", None),
        (None, _) if matches!(rules.policy.as_str(), "hooks" | "none") => ("lost", Some(not_kept(&rules.policy))),
        (None, _) => ("saved", None),
        (Some(word), Some("all")) => ("saved", Some(why(word, rules))),
        (Some(word), _) => ("lost", Some(why(word, rules))),
    }
}

/// The supervisor's words for why there is no list or no archive, for people.
fn why(word: &str, rules: &FileRules) -> String {
    match word {
        "unfit" => "the template lacks GNU find, tar or another tool that this needs; see e2b/README.md".to_owned(),
        "unlisted" => "the workspace could not be listed".to_owned(),
        "too_many" => "there are more than 10,000 of them".to_owned(),
        "truncated" => "only the first 10,000 are listed".to_owned(),
        "too_large" => format!("they are larger than the pool's workspace_max_bytes of {}", rules.archive_max_bytes),
        "timeout" => "packing them took too long".to_owned(),
        "incomplete" => "some could not be read".to_owned(),
        // Whatever else failed.
        _ => "they could not be listed or packed whole; the sandbox's disk may be full".to_owned(),
    }
}

/// Takes the contents of what is listed out of the archive; the archive itself, its members, and what is wrong with it.
fn open(archive: Bytes, packed: bool, listed: Vec<Listed>, rules: &FileRules) -> (Bytes, i32, Vec<Artifact>, Option<String>) {
    let each_max = u64::try_from(rules.each_max_bytes).unwrap_or(0);
    let mut room = u64::try_from(rules.archive_max_bytes).unwrap_or(0);
    let mut artifacts: Vec<Artifact> = listed.iter().map(unread).collect();
    if !packed {
        return (Bytes::new(), 0, artifacts, None);
    }
    let looked = files::inspect(&archive, unpacked_max(rules.archive_max_bytes), each_max, |path, content| {
        let found = listed.binary_search_by(|listed| listed.path.as_slice().cmp(path));
        if let (Ok(nth), true) = (found, each_max > 0 && content.len() as u64 <= room) {
            room -= content.len() as u64;
            artifacts[nth].read(content);
        }
    });
    match looked {
        Ok(members) => (archive, i32::try_from(members.len()).unwrap_or(i32::MAX), artifacts, None),
        Err(damaged) => (Bytes::new(), 0, listed.iter().map(unread).collect(), Some(damaged.to_string())),
    }
}

fn unread(listed: &Listed) -> Artifact {
    let there = listed.change != files::Change::Deleted;
    Artifact {
        path: files::readable(&listed.path),
        change: listed.change,
        bytes: there.then(|| i64::try_from(listed.bytes).unwrap_or(i64::MAX)),
        sha256: listed.sha256.clone(),
        content: None,
    }
}

/// A file of this attempt, in pieces; each is asked for again while the sandbox does not answer.
pub(super) async fn fetch(worker: &Worker, sandbox: &Sandbox, name: &str, size: u64) -> Result<Result<Bytes, SandboxError>, LetGo> {
    let mut all = BytesMut::new();
    while (all.len() as u64) < size {
        let from = all.len() as u64;
        let to = size.min(from + CHUNK);
        match insist(sandbox, worker.config.worker.call_deadline, || sandbox.download(name, from..to)).await? {
            Ok(bytes) if bytes.is_empty() => return Ok(Err(SandboxError::Refused(format!("{name} is shorter than it was")))),
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(all.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(ordinal: i32, kind: Option<&str>, missing: Option<&str>) -> Before {
        let started = true;
        Before { turn_id: format!("t{ordinal}"), ordinal, started, kind: kind.map(str::to_owned), missing: missing.map(str::to_owned) }
    }

    #[test]
    fn the_newest_saved_state_is_restored_and_what_came_after_it_is_said() {
        let idle = Before { started: false, ..turn(9, None, None) };
        let said = |before: &[Before], policy| {
            let (from, lost) = state_before(before, policy);
            (from.map(|turn| turn.ordinal), lost.unwrap_or_default())
        };
        let none = || String::new();
        assert_eq!(said(&[], "auto"), (None, none()));
        assert_eq!(said(std::slice::from_ref(&idle), "auto"), (None, none()), "nothing was done");
        assert_eq!(said(&[turn(2, Some("saved"), None), turn(1, None, None)], "auto"), (Some(2), none()));
        assert_eq!(
            said(&[idle, turn(3, Some("unchanged"), None), turn(2, Some("empty"), None), turn(1, None, None)], "auto"),
            (None, none())
        );
        assert_eq!(said(&[turn(2, Some("carried"), None), turn(1, Some("saved"), None)], "hooks"), (None, none()));
        let (from, why) = said(&[turn(3, None, None), turn(2, Some("lost"), Some("huge")), turn(1, Some("saved"), None)], "auto");
        assert_eq!(from, Some(1));
        assert_eq!(
            why,
            "the files of turn 3 were not saved: its sandbox was lost before, or they were forgotten since; they are as they were after turn 1"
        );
        assert_eq!(said(&[turn(1, Some("lost"), Some("huge"))], "auto"), (None, "the files of turn 1 were not saved: huge".to_owned()));
        assert_eq!(said(&[turn(1, Some("saved"), Some("odd"))], "auto").1, "not all files of turn 1 were saved: odd");
        assert_eq!(said(&[turn(1, Some("saved"), None)], "none").1, "the files of turn 1 were not saved: the pool keeps none");
    }

    #[test]
    fn what_the_supervisor_says_of_the_files_decides_what_the_next_turn_can_have() {
        let after = |policy: &str, carried, changed, unsaved: Option<&str>, archive: Option<&str>| {
            let rules = FileRules { policy: policy.to_owned(), ..FileRules::default() };
            let (unsaved, archive) = (unsaved.map(str::to_owned), archive.map(str::to_owned));
            let (kind, missing) = state_after(&FilesExit { changed, archive, unsaved, carried, ..FilesExit::default() }, &rules);
            (kind, missing.is_some())
        };
        assert_eq!(after("auto", false, 2, None, Some("all")), ("saved", false));
        assert_eq!(after("auto", false, 2, None, None), ("saved", false), "only deletions");
        assert_eq!(after("auto", false, 0, None, None), ("empty", false));
        assert_eq!(after("auto", true, 2, None, Some("turn")), ("carried", false));
        assert_eq!(after("auto", false, 2, Some("incomplete"), Some("all")), ("saved", true));
        assert_eq!(after("auto", false, 2, Some("too_large"), Some("turn")), ("lost", true));
        assert_eq!(after("auto", false, 0, Some("unfit"), None), ("lost", true), "nobody knows");
        assert_eq!(after("auto", false, 2, Some("failed"), None), ("lost", true));
        assert_eq!(after("snapshot", true, 2, None, Some("all")), ("saved", false));
        assert_eq!(after("hooks", false, 2, None, Some("turn")), ("lost", true));
        assert_eq!(after("none", false, 2, None, None), ("lost", true));
        assert_eq!(after("none", false, 0, None, None), ("empty", false));
    }
}
