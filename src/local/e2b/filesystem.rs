//! envd's filesystem service: what files and directories there are.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat};
use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::envd::{Refusal, answered, sandbox_of, unary, user_of};
use super::files::{inside, make_directories, place};
use super::sandboxes::Sandbox;

/// Under this a file's metadata is kept.
const XATTR: &str = "user.e2b.";

#[derive(Debug, Deserialize)]
struct At {
    #[serde(default)]
    path: String,
}

#[derive(Debug, Deserialize)]
struct ListDir {
    #[serde(default)]
    path: String,
    #[serde(default)]
    depth: usize,
}

#[derive(Debug, Deserialize)]
struct Move {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

/// Whose files a call means.
pub(super) struct Caller<'a> {
    pub sandbox: &'a Sandbox,
    pub user: String,
}

impl Caller<'_> {
    pub fn place(&self, path: &str) -> Result<PathBuf, Refusal> {
        place(self.sandbox, path, Some(&self.user)).ok_or_else(|| Refusal::new("invalid_argument", format!("invalid path '{path}'")))
    }

    fn owner(&self) -> Option<u32> {
        self.sandbox.record.uid.filter(|_| self.user != "root")
    }
}

fn called<T: for<'a> Deserialize<'a>>(
    app: &App,
    headers: &HeaderMap,
    body: &Bytes,
    act: impl FnOnce(&Caller<'_>, T) -> Result<Value, Refusal>,
) -> Response {
    match sandbox_of(app, headers) {
        Ok(sandbox) => answered(unary(body).and_then(|request| act(&Caller { sandbox: &sandbox, user: user_of(headers) }, request))),
        Err(refused) => refused,
    }
}

/// `Stat`.
pub(super) async fn stat(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    called(&app, &headers, &body, |caller, request: At| Ok(json!({ "entry": entry(caller.sandbox, &caller.place(&request.path)?)? })))
}

/// `MakeDir`, with those above it.
pub(super) async fn make_dir(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    called(&app, &headers, &body, |caller, request: At| {
        let place = caller.place(&request.path)?;
        if place.is_dir() {
            return Err(Refusal::new("already_exists", format!("directory already exists: {}", request.path)));
        }
        if place.exists() {
            return Err(Refusal::new("invalid_argument", format!("path already exists but it is not a directory: {}", request.path)));
        }
        make_directories(&place, caller.owner())?;
        Ok(json!({ "entry": entry(caller.sandbox, &place)? }))
    })
}

/// `Move`.
pub(super) async fn move_entry(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    called(&app, &headers, &body, |caller, request: Move| {
        let (from, to) = (caller.place(&request.source)?, caller.place(&request.destination)?);
        fs::symlink_metadata(&from).map_err(|_| missing(&request.source))?;
        if let Some(parent) = to.parent() {
            make_directories(parent, caller.owner())?;
        }
        fs::rename(&from, &to)?;
        Ok(json!({ "entry": entry(caller.sandbox, &to)? }))
    })
}

/// `ListDir`, as deep as asked.
pub(super) async fn list_dir(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    called(&app, &headers, &body, |caller, request: ListDir| {
        let place = caller.place(&request.path)?;
        let found = fs::metadata(&place).map_err(|_| missing(&request.path))?;
        if !found.is_dir() {
            return Err(Refusal::new("invalid_argument", format!("path is not a directory: {}", request.path)));
        }
        let mut entries = Vec::new();
        walk(caller.sandbox, &place, request.depth.max(1), &mut entries)?;
        Ok(json!({ "entries": entries }))
    })
}

fn walk(sandbox: &Sandbox, directory: &Path, depth: usize, entries: &mut Vec<Value>) -> Result<(), Refusal> {
    let mut names: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    for path in names {
        // Gone in the meantime is no error.
        let Ok(found) = entry(sandbox, &path) else { continue };
        let deeper = depth > 1 && found["type"] == "FILE_TYPE_DIRECTORY";
        entries.push(found);
        if deeper {
            walk(sandbox, &path, depth - 1, entries)?;
        }
    }
    Ok(())
}

/// `Remove`, with all that is in it; what isn't there is removed already.
pub(super) async fn remove(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    called(&app, &headers, &body, |caller, request: At| {
        let place = caller.place(&request.path)?;
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&place)?,
            Ok(_) => fs::remove_file(&place)?,
            Err(_) => {}
        }
        Ok(json!({}))
    })
}

fn missing(path: &str) -> Refusal {
    Refusal::new("not_found", format!("path not found: {path}"))
}

/// One entry as envd describes it.
pub(super) fn entry(sandbox: &Sandbox, place: &Path) -> Result<Value, Refusal> {
    let found = fs::symlink_metadata(place).map_err(|_| missing(&inside(sandbox, place)))?;
    let kind = match found.file_type() {
        kind if kind.is_symlink() => ("FILE_TYPE_SYMLINK", 'l'),
        kind if kind.is_dir() => ("FILE_TYPE_DIRECTORY", 'd'),
        _ => ("FILE_TYPE_FILE", '-'),
    };
    // A link is described by what it points to, where that exists.
    let followed = fs::metadata(place).unwrap_or_else(|_| found.clone());
    let kind_followed = if followed.is_dir() {
        "FILE_TYPE_DIRECTORY"
    } else if followed.is_symlink() {
        "FILE_TYPE_SYMLINK"
    } else {
        "FILE_TYPE_FILE"
    };
    let owner = if found.uid() == 0 { "root" } else { "user" };
    let mut entry = json!({
        "name": place.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy()),
        "type": kind_followed,
        "path": inside(sandbox, place),
        "size": followed.len().to_string(),
        "mode": followed.permissions().mode() & 0o7777,
        "permissions": permissions(&found, kind.1),
        "owner": owner,
        "group": owner,
        "modifiedTime": modified(&followed),
    });
    if kind.1 == 'l'
        && let Ok(target) = fs::read_link(place)
    {
        entry["symlinkTarget"] = inside(sandbox, &target).into();
        entry["isSymlink"] = true.into();
    }
    let labels = metadata(place);
    if !labels.is_empty() {
        entry["metadata"] = labels.into_iter().collect();
    }
    Ok(entry)
}

fn permissions(found: &Metadata, kind: char) -> String {
    let bits = found.permissions().mode();
    let letters = (0..9).map(|nth| if bits & (0o400 >> nth) == 0 { '-' } else { ['r', 'w', 'x'][nth % 3] });
    std::iter::once(kind).chain(letters).collect()
}

fn modified(found: &Metadata) -> Option<String> {
    let at = DateTime::from_timestamp(found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0))?;
    Some(at.to_rfc3339_opts(SecondsFormat::Nanos, true))
}

/// What the `X-Metadata-*` headers of an upload say.
pub(super) fn metadata_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let pairs = headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix("x-metadata-")?, value.to_str().ok()?)));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Keeps a file's metadata as extended attributes.
pub(super) fn set_metadata(place: &Path, labels: &[(String, String)]) -> io::Result<()> {
    labels.iter().try_for_each(|(name, value)| Ok(setxattr(place, format!("{XATTR}{name}"), value.as_bytes(), XattrFlags::empty())?))
}

fn metadata(place: &Path) -> BTreeMap<String, Value> {
    let mut names = vec![0; 4096];
    let length = listxattr(place, &mut names[..]).unwrap_or(0);
    names[..length]
        .split(|&byte| byte == 0)
        .filter_map(|name| {
            let name = std::str::from_utf8(name).ok()?;
            let mut value = vec![0; 4096];
            let length = getxattr(place, name, &mut value[..]).ok()?;
            Some((name.strip_prefix(XATTR)?.to_owned(), String::from_utf8_lossy(&value[..length]).into_owned().into()))
        })
        .collect()
}
