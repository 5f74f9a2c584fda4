//! The data plane's files and directories.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::RANGE;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::envd::{Envd, EnvdError, ok, unreachable};

/// A file, a directory, or something else in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without its directory.
    pub name: String,
    /// Absolute.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, or newer than us.
    Other,
}

/// protobuf-JSON: 64-bit numbers are strings, defaults are left out.
#[derive(Deserialize)]
struct WireEntry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    size: Value,
}

impl From<WireEntry> for Entry {
    fn from(entry: WireEntry) -> Self {
        let kind = match entry.kind.as_str() {
            "FILE_TYPE_FILE" => EntryKind::File,
            "FILE_TYPE_DIRECTORY" => EntryKind::Directory,
            _ => EntryKind::Other,
        };
        let size = entry.size.as_str().and_then(|size| size.parse().ok()).or_else(|| entry.size.as_u64()).unwrap_or(0);
        Self { name: entry.name, path: entry.path, kind, size }
    }
}

fn entry(value: &Value) -> Result<Entry, EnvdError> {
    let entry = WireEntry::deserialize(value).map_err(|error| EnvdError::Rejected(format!("an entry can't be read: {error}")))?;
    Ok(entry.into())
}

impl Envd {
    /// Writes a file, making its directories.
    pub async fn upload(&self, path: &str, user: &str, body: Bytes, deadline: Duration) -> Result<(), EnvdError> {
        let length = body.len() as u64;
        // Multipart, which every version of envd takes.
        let part = reqwest::multipart::Part::stream_with_length(body, length).file_name("file");
        let form = reqwest::multipart::Form::new().part("file", part);
        let call = self.files(reqwest::Method::POST, path, user).multipart(form).timeout(deadline);
        ok(call.send().await.map_err(unreachable)?).await.map(drop)
    }

    /// Bytes of a file; fewer, or none, where it is shorter.
    pub async fn download(&self, path: &str, user: &str, range: Range<u64>, deadline: Duration) -> Result<Bytes, EnvdError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let call = self
            .files(reqwest::Method::GET, path, user)
            .header(RANGE, format!("bytes={}-{}", range.start, range.end - 1))
            .timeout(deadline);
        let response = call.send().await.map_err(unreachable)?;
        // The range begins at the end of the file, or behind it.
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Bytes::new());
        }
        let response = ok(response).await?;
        // A server that doesn't know ranges sends it all.
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { range.start };
        let bytes = response.bytes().await.map_err(unreachable)?;
        let start = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        Ok(bytes.slice(start..start.saturating_add(wanted).min(bytes.len())))
    }

    /// What is at a path; `None`: nothing.
    pub async fn stat(&self, path: &str, user: &str, deadline: Duration) -> Result<Option<Entry>, EnvdError> {
        match self.ask("filesystem.Filesystem/Stat", user, &json!({ "path": path }), deadline).await {
            Ok(answer) => entry(&answer["entry"]).map(Some),
            Err(EnvdError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is in a directory, down to `depth` levels below it.
    pub async fn list_dir(&self, path: &str, depth: u32, user: &str, deadline: Duration) -> Result<Vec<Entry>, EnvdError> {
        let answer = self.ask("filesystem.Filesystem/ListDir", user, &json!({ "path": path, "depth": depth }), deadline).await?;
        answer["entries"].as_array().into_iter().flatten().map(entry).collect()
    }

    /// Makes a directory and those above it; one that is there is fine.
    pub async fn make_dir(&self, path: &str, user: &str, deadline: Duration) -> Result<(), EnvdError> {
        match self.ask("filesystem.Filesystem/MakeDir", user, &json!({ "path": path }), deadline).await {
            // 409 as well; the other one is of a sandbox between two states.
            Err(EnvdError::NotReady(text)) if text.contains("exist") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Moves a file or a directory.
    pub async fn rename(&self, from: &str, to: &str, user: &str, deadline: Duration) -> Result<(), EnvdError> {
        self.ask("filesystem.Filesystem/Move", user, &json!({ "source": from, "destination": to }), deadline).await.map(drop)
    }

    /// Removes a file, or a directory with all in it; what isn't there is fine.
    pub async fn remove(&self, path: &str, user: &str, deadline: Duration) -> Result<(), EnvdError> {
        self.ask("filesystem.Filesystem/Remove", user, &json!({ "path": path }), deadline).await.map(drop)
    }

    fn files(&self, method: reqwest::Method, path: &str, user: &str) -> RequestBuilder {
        let plain = format!("{}/files", self.base);
        let url = Url::parse_with_params(&plain, [("path", path), ("username", user)]).map_or(plain, String::from);
        self.http.request(method, url).headers(self.headers.clone())
    }
}
