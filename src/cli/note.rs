//! The file by which other commands of this user find a running `turnmill dev`.
//!
//! Whoever wrote it has it locked for as long as it runs, so a note that nobody holds is one of the dead.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

/// A reader holds the lock for a moment, too: tried again this often before somebody else is believed to run.
const TRIES: usize = 10;

/// Our own note; removed when it is dropped.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    _locked: File,
}

/// What a note says to who looks for a `turnmill dev`.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It runs, with this database.
    Running(String),
    /// It has ended without taking its note along.
    Gone,
    /// There is none.
    Nothing,
}

impl Note {
    /// Leaves one, for this user's eyes only. `None`: another has one here and runs; its note stays.
    pub fn leave(url: &str) -> anyhow::Result<Option<Self>> {
        Self::leave_at(path(), url)
    }

    fn leave_at(path: PathBuf, url: &str) -> anyhow::Result<Option<Self>> {
        let written = || format!("writing {}", path.display());
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).with_context(written)?;
        anyhow::ensure!(is_ours(&file)?, "{} is somebody else's file; remove it, or set XDG_RUNTIME_DIR", path.display());
        if !(0..TRIES).any(|_| lock(&file) || pause()) {
            return Ok(None);
        }
        if std::fs::metadata(&path).ok().map(|there| there.ino()) != Some(file.metadata()?.ino()) {
            // Its writer took it away just now: what we have locked nobody would find.
            return Self::leave_at(path, url);
        }
        file.set_len(0)?;
        file.write_all(url.as_bytes()).with_context(written)?;
        Ok(Some(Self { path, _locked: file }))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// The `turnmill dev` that this user runs on this machine.
pub fn find() -> Found {
    find_at(&path()).unwrap_or(Found::Nothing)
}

fn find_at(path: &Path) -> std::io::Result<Found> {
    let mut file = File::open(path)?;
    // In a shared /tmp anybody could put a file of that name: only our own counts.
    if !is_ours(&file)? {
        return Ok(Found::Nothing);
    }
    if lock(&file) {
        return Ok(Found::Gone);
    }
    let mut url = String::new();
    file.read_to_string(&mut url)?;
    // Empty: it is being written.
    Ok(if url.is_empty() { Found::Nothing } else { Found::Running(url) })
}

fn is_ours(file: &File) -> std::io::Result<bool> {
    Ok(file.metadata()?.uid() == rustix::process::getuid().as_raw())
}

fn lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn pause() -> bool {
    std::thread::sleep(Duration::from_millis(10));
    false
}

fn path() -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    dir.join(format!("turnmill-dev-{}.url", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_its_writer_s_own_and_tells_when_that_has_died() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        assert!(find_at(&path).is_err());
        let first = Note::leave_at(path.clone(), "postgres://a-long-first-one").unwrap().unwrap();
        assert!(Note::leave_at(path.clone(), "postgres://second").unwrap().is_none(), "the first runs");
        assert_eq!(find_at(&path).unwrap(), Found::Running("postgres://a-long-first-one".to_owned()));
        drop(first);
        assert!(!path.exists());
        // As kill -9 leaves it.
        std::fs::write(&path, "postgres://a-long-dead-one").unwrap();
        assert_eq!(find_at(&path).unwrap(), Found::Gone);
        let next = Note::leave_at(path.clone(), "postgres://next").unwrap().unwrap();
        assert_eq!(find_at(&path).unwrap(), Found::Running("postgres://next".to_owned()));
        drop(next);
    }
}
