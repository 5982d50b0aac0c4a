//! `/api_keys`: who may use the vault over the network.

use super::access::Who;
use super::body;
use super::openapi::Refusals;
use super::shape::{ApiKey, List, NewApiKey};
use super::{Api, Problem, segment};
use crate::vault::{Permission, Scope};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use std::sync::Arc;

#[utoipa::path(get, path = "/api_keys", tag = "API keys", responses((status = 200, body = List<ApiKey>), Refusals))]
pub async fn list(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<Json<List<ApiKey>>, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(Json(List::whole(api.vault.api_keys().iter().map(|(id, key)| ApiKey::of(*id, key, None)))))
    })
    .await
}

#[utoipa::path(post, path = "/api_keys", tag = "API keys",
    description = "Makes an API key; `value` is shown this once.",
    request_body = NewApiKey, responses((status = 201, body = ApiKey), Refusals))]
pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    body: Body,
) -> Result<(StatusCode, Json<ApiKey>), Problem> {
    let new: NewApiKey = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let scope = match new.organizations {
            None => Scope::Vault,
            Some(some) if some.is_empty() => {
                return Err(Problem::invalid("organizations: at least one, or leave it out"));
            }
            Some(some) => {
                let id = |which: &String| Ok(api.vault.organization(which)?.id.parse().expect("an organization's id"));
                Scope::Organizations(some.iter().map(id).collect::<Result<_, Problem>>()?)
            }
        };
        let (id, key, secret) = api.vault.create_api_key(&who.caller, &new.name, scope, new.permission)?;
        Ok((StatusCode::CREATED, Json(ApiKey::of(id, &key, Some(secret)))))
    })
    .await
}

#[utoipa::path(delete, path = "/api_keys/{id}", tag = "API keys",
    params(("id" = String, Path, description = "key_…")),
    responses((status = 200, body = ApiKey), Refusals))]
pub async fn revoke(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<ApiKey>, Problem> {
    let id = segment(&uri, 1)?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let id = std::str::from_utf8(&id).ok().and_then(|id| id.parse().ok());
        let id = id.ok_or_else(|| Problem::new(super::Code::NotFound, "an API key's id is key_…"))?;
        let key = api.vault.revoke_api_key(&who.caller, id)?;
        Ok(Json(ApiKey::of(id, &key, None)))
    })
    .await
}
