//! envd's files.

use std::io;
use std::os::unix::fs::chown;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use futures::{Stream, TryStreamExt as _};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_util::io::StreamReader;
use tower_http::services::ServeFile;

use super::acts::now_ms;
use super::sandboxes::Sandbox;
use super::{App, envd, fault, filesystem};

#[derive(Debug, Deserialize)]
pub(super) struct FileQuery {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<u64>,
}

/// The sandbox that a request is for, by its token or by a signature over path, operation and user.
fn sandbox_signed(app: &App, query: &FileQuery, headers: &HeaderMap, operation: &str) -> Result<Arc<Sandbox>, Response> {
    let Some(signature) = &query.signature else { return envd::sandbox_of(app, headers) };
    let sandbox = envd::sandbox_named(app, headers)?;
    let path = query.path.as_deref().unwrap_or_default();
    let user = query.username.as_deref().unwrap_or_default();
    let until = query.signature_expiration.map(|until| format!(":{until}")).unwrap_or_default();
    let digest = Sha256::digest(format!("{path}:{operation}:{user}:{}{until}", sandbox.record.token));
    if query.signature_expiration.is_some_and(|until| until < now_ms() / 1000) {
        return Err(fault(StatusCode::UNAUTHORIZED, "signature is already expired"));
    }
    if *signature != format!("v1_{}", STANDARD_NO_PAD.encode(digest)) {
        return Err(fault(StatusCode::UNAUTHORIZED, "invalid signature"));
    }
    Ok(sandbox)
}

/// `GET /files`, with ranges.
pub(super) async fn download(State(app): State<App>, Query(query): Query<FileQuery>, request: Request) -> Response {
    let sandbox = match sandbox_signed(&app, &query, request.headers(), "read") {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let path = query.path.unwrap_or_default();
    let serve = async {
        if let Some(simulation) = &sandbox.simulation {
            return simulation.download(&path, request.headers());
        }
        let Some(place) = place(&sandbox, &path, query.username.as_deref()) else { return fault(StatusCode::BAD_REQUEST, "invalid path") };
        match tokio::fs::metadata(&place).await {
            Ok(found) if found.is_dir() => return fault(StatusCode::BAD_REQUEST, &format!("path '{path}' is a directory")),
            Ok(_) => {}
            Err(_) => return fault(StatusCode::NOT_FOUND, &format!("path '{path}' does not exist")),
        }
        match ServeFile::new(place).try_call(request).await {
            Ok(response) => response.map(Body::new),
            Err(error) => fault(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    };
    app.acts.perform("download", serve).await
}

/// `POST /files`: multipart or raw. A file is there whole or not at all.
pub(super) async fn upload(State(app): State<App>, Query(query): Query<FileQuery>, request: Request) -> Response {
    let sandbox = match sandbox_signed(&app, &query, request.headers(), "write") {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    app.acts.perform("upload", uploaded(&sandbox, &query, request)).await
}

async fn uploaded(sandbox: &Sandbox, query: &FileQuery, request: Request) -> Response {
    let labels = filesystem::metadata_headers(request.headers());
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let mut written = Vec::new();
    if kind.starts_with("multipart/form-data") {
        let mut parts = match Multipart::from_request(request, &()).await {
            Ok(parts) => parts,
            Err(rejection) => return fault(StatusCode::BAD_REQUEST, &rejection.body_text()),
        };
        loop {
            let part = match parts.next_field().await {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(error) => return fault(StatusCode::BAD_REQUEST, &error.body_text()),
            };
            let path = query.path.clone().or_else(|| part.file_name().map(str::to_owned)).unwrap_or_default();
            match write(sandbox, &path, query.username.as_deref(), part.map_err(io::Error::other), &labels).await {
                Ok(entry) => written.push(entry),
                Err(refused) => return refused,
            }
        }
    } else {
        let path = query.path.clone().unwrap_or_default();
        match write(sandbox, &path, query.username.as_deref(), request.into_body().into_data_stream().map_err(io::Error::other), &labels)
            .await
        {
            Ok(entry) => written.push(entry),
            Err(refused) => return refused,
        }
    }
    // text/plain is what the real envd says here, too.
    json!(written).to_string().into_response()
}

async fn write(
    sandbox: &Sandbox,
    path: &str,
    user: Option<&str>,
    content: impl Stream<Item = io::Result<bytes::Bytes>>,
    labels: &[(String, String)],
) -> Result<serde_json::Value, Response> {
    let Some(place) = place(sandbox, path, user) else { return Err(fault(StatusCode::BAD_REQUEST, "invalid path")) };
    if let Some(simulation) = &sandbox.simulation {
        return Ok(simulation.upload(path, content).await);
    }
    let write = async {
        let directory = place.parent().unwrap_or(&place);
        let owner = sandbox.record.uid.filter(|_| user != Some("root"));
        make_directories(directory, owner)?;
        let (file, new) =
            tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).tempfile_in(directory)?.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        tokio::io::copy(&mut std::pin::pin!(StreamReader::new(content)), &mut file).await?;
        tokio::io::AsyncWriteExt::flush(&mut file).await?;
        if let Some(uid) = owner {
            chown(&new, Some(uid), Some(uid))?;
        }
        filesystem::set_metadata(&new, labels)?;
        new.persist(&place).map_err(|error| error.error)
    };
    match write.await {
        Ok(()) => {
            let mut entry =
                json!({ "name": place.file_name().map(|name| name.to_string_lossy()), "path": inside(sandbox, &place), "type": "file" });
            if !labels.is_empty() {
                entry["metadata"] = labels.iter().cloned().collect::<std::collections::BTreeMap<_, _>>().into_iter().collect();
            }
            Ok(entry)
        }
        Err(error) => Err(fault(StatusCode::INTERNAL_SERVER_ERROR, &format!("writing '{path}': {error}"))),
    }
}

/// Makes a directory and those above it, for their owner.
pub(super) fn make_directories(directory: &Path, owner: Option<u32>) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|place| !place.exists()).collect();
    std::fs::create_dir_all(directory)?;
    if let Some(uid) = owner {
        missing.into_iter().try_for_each(|place| chown(place, Some(uid), Some(uid)))?;
    }
    Ok(())
}

/// Where a path of the sandbox is on this machine; a process in it may also name that place itself.
pub(super) fn place(sandbox: &Sandbox, path: &str, user: Option<&str>) -> Option<PathBuf> {
    let path = Path::new(path);
    let path = path.strip_prefix("~").unwrap_or(path);
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    Some(match path.strip_prefix("/") {
        Ok(_) if path.starts_with(&sandbox.root) => path.to_owned(),
        Ok(inside) => sandbox.root.join(inside),
        Err(_) => sandbox.root.join(if user == Some("root") { "root" } else { "home/user" }).join(path),
    })
}

/// The path by which the sandbox knows a place.
pub(super) fn inside(sandbox: &Sandbox, place: &Path) -> String {
    place.strip_prefix(&sandbox.root).map_or_else(|_| place.display().to_string(), |path| format!("/{}", path.display()))
}
