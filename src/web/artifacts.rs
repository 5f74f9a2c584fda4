//! The files that a turn has made: listed, and one of them.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, TurnsRead};
use super::problem::Problem;
use super::request::{Id, Query};
use crate::store::ArtifactRow;

/// A file that a turn created, modified or deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Artifact {
    /// From the agent's working directory.
    path: String,
    /// What became of it.
    #[schema(pattern = "^(created|modified|deleted)$")]
    change: String,
    /// Its size; null: it is deleted.
    bytes: Option<i64>,
    /// Of its content, in hex; null where it was not read.
    sha256: Option<String>,
    /// Whether its content can be had.
    kept: bool,
}

/// What a turn has changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Artifacts {
    /// By path; at most 10,000. Empty until the turn has ended.
    data: Vec<Artifact>,
    /// Why these are not all; null: they are.
    unlisted: Option<String>,
}

impl From<ArtifactRow> for Artifact {
    fn from(row: ArtifactRow) -> Self {
        Self { path: row.path, change: row.change, bytes: row.bytes, sha256: row.sha256, kept: row.kept }
    }
}

/// List a turn's files
///
/// What its agent has created, modified and deleted.
#[utoipa::path(get, path = "/v1/turns/{turn_id}/artifacts", tag = "Read", operation_id = "list_artifacts",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255)),
    responses((status = 200, description = "All of them", body = Artifacts)))]
pub async fn list(caller: Caller<TurnsRead>, State(app): State<App>, Id(id): Id) -> Result<Json<Artifacts>, Problem> {
    app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let found = app.store.artifacts(&id).await?.ok_or_else(Problem::not_found)?;
    Ok(Json(Artifacts { data: found.rows.into_iter().map(Artifact::from).collect(), unlisted: found.unlisted }))
}

/// Which file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// Its path, as it is listed
    #[param(min_length = 1, max_length = 4096, pattern = "^[^\\u0000]+$", example = "report.pdf")]
    path: String,
}

/// Read a file
///
/// The content of a file that the turn created or modified, where it was kept; always as something to be saved, never shown.
#[utoipa::path(get, path = "/v1/turns/{turn_id}/artifacts/content", tag = "Read", operation_id = "read_artifact",
    params(("turn_id" = String, Path, description = "The turn", max_length = 255), FileQuery),
    responses((status = 200, description = "Byte for byte", body = Vec<u8>, content_type = "application/octet-stream")))]
pub async fn read(
    caller: Caller<TurnsRead>,
    State(app): State<App>,
    Id(id): Id,
    Query(query): Query<FileQuery>,
) -> Result<Response, Problem> {
    if query.path.contains('\0') || query.path.is_empty() {
        return Err(Problem::parameter("path", "path must not be empty, and have no NUL in it"));
    }
    app.store.place_of(&id, &caller.bounds).await?.ok_or_else(Problem::not_found)?;
    let content = app.store.artifact(&id, &query.path).await?;
    // What an agent has written must not run as a page of ours.
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
    ];
    Ok((headers, content).into_response())
}
