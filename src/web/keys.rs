//! Users' own keys to the model: give one, forget it, see that there is one. Nothing gives it back.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Caller, KeysWrite};
use super::problem::Problem;
use super::request::{Id, Json, Query, is_id};
use crate::keys::{OwnKey, check_own};
use crate::store::{Bounds, OwnKeyInfo};

/// Whose user.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfTenant {
    /// The tenant whose user it is; a token that is bound to one need not say it. Without one: of sessions without a tenant
    #[param(min_length = 1, max_length = 255, pattern = "^[^\\u0000]+$")]
    tenant_id: Option<String>,
}

/// A user's key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GiveKey {
    /// Of Anthropic's API, or of a subscription (sk-ant-oat…).
    #[schema(value_type = String, min_length = 15, max_length = 1024, pattern = "^sk-ant-[A-Za-z0-9_-]+$", example = "sk-ant-api03-aaaaaaaaaaaa")]
    key: SecretString,
}

/// That a user has a key. The key itself can't be read.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserKey {
    /// Whose.
    user_id: String,
    /// Of which tenant; null: of none.
    tenant_id: Option<String>,
    /// The master key under which it is sealed.
    key_id: String,
    /// When it was last given.
    set_at: DateTime<Utc>,
}

impl From<OwnKeyInfo> for UserKey {
    fn from(row: OwnKeyInfo) -> Self {
        let tenant_id = Some(row.tenant_id).filter(|tenant| !tenant.is_empty());
        Self { user_id: row.user_id, tenant_id, key_id: row.key_id, set_at: row.set_at }
    }
}

/// The tenant's id as keys have it. A key serves its user in all projects: so who sees one of them only has no say in it.
fn tenant(bounds: &Bounds, query: OfTenant) -> Result<String, Problem> {
    if bounds.project_id.is_some() {
        return Err(Problem::new("insufficient_scope", "The token is bound to a project, and a user's key serves all of them."));
    }
    if query.tenant_id.as_deref().is_some_and(|id| !is_id(id)) {
        return Err(Problem::parameter("tenant_id", "tenant_id must be a text of 1 to 255 characters, without NUL"));
    }
    match (&bounds.tenant_id, query.tenant_id) {
        (Some(bound), Some(said)) if *bound != said => {
            Err(Problem::parameter("tenant_id", "tenant_id is not the one that this token is bound to"))
        }
        (Some(bound), _) => Ok(bound.clone()),
        (None, said) => Ok(said.unwrap_or_default()),
    }
}

/// Give a user's key
///
/// From the user's next turn on it runs with this key, where keys.order lets it. It takes the place of the one before, is stored
/// sealed, and can't be read again.
#[utoipa::path(put, path = "/v1/users/{user_id}/key", tag = "Keys", operation_id = "give_user_key", request_body = GiveKey,
    params(("user_id" = String, Path, description = "The user, as sessions name them", max_length = 255), OfTenant),
    responses((status = 200, description = "It is stored", body = UserKey),
        (status = 409, description = "no_master_key", body = Problem, content_type = "application/problem+json")))]
pub async fn give(
    caller: Caller<KeysWrite>,
    State(app): State<App>,
    Id(user_id): Id,
    Query(query): Query<OfTenant>,
    Json(body): Json<GiveKey>,
) -> Result<Answer<UserKey>, Problem> {
    let tenant_id = tenant(&caller.bounds, query)?;
    check_own(body.key.expose_secret()).map_err(|wrong| Problem::body("/key", wrong))?;
    let own = OwnKey::seal(&app.vault, &tenant_id, &user_id, &body.key)
        .ok_or_else(|| Problem::new("no_master_key", "This server has no master key to seal it with."))?;
    Ok(Answer(app.store.set_own_key(&own).await?.into()))
}

/// See that a user has a key
#[utoipa::path(get, path = "/v1/users/{user_id}/key", tag = "Keys", operation_id = "read_user_key",
    params(("user_id" = String, Path, description = "The user", max_length = 255), OfTenant),
    responses((status = 200, description = "There is one", body = UserKey)))]
pub async fn read(
    caller: Caller<KeysWrite>,
    State(app): State<App>,
    Id(user_id): Id,
    Query(query): Query<OfTenant>,
) -> Result<Answer<UserKey>, Problem> {
    let tenant_id = tenant(&caller.bounds, query)?;
    let found = app.store.own_key_info(&tenant_id, &user_id).await?.ok_or_else(Problem::not_found)?;
    Ok(Answer(found.into()))
}

/// Forget a user's key
///
/// Turns that run go on with it; the next ones have none of it.
#[utoipa::path(delete, path = "/v1/users/{user_id}/key", tag = "Keys", operation_id = "forget_user_key",
    params(("user_id" = String, Path, description = "The user", max_length = 255), OfTenant),
    responses((status = 204, description = "It is gone")))]
pub async fn forget(
    caller: Caller<KeysWrite>,
    State(app): State<App>,
    Id(user_id): Id,
    Query(query): Query<OfTenant>,
) -> Result<StatusCode, Problem> {
    let tenant_id = tenant(&caller.bounds, query)?;
    if app.store.forget_own_key(&tenant_id, &user_id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found()) }
}
