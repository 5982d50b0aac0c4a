//! `/keys`: the KEKs, their rotation and their end.

use super::access::Who;
use super::body;
use super::openapi::Refusals;
use super::organizations::residency;
use super::percent::Query;
use super::shape::{KeyMove, KeyPair, List, NewPin, NewToken};
use super::{Api, Problem, segment};
use crate::vault::{KekInfo, Permission, RotationInfo, TokenCheck};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use std::sync::Arc;

#[utoipa::path(get, path = "/keys", tag = "operation",
    description = "The KEKs of one organization, or of the whole vault.",
    params(("organization" = Option<String>, Query, description = "An organization's id, name or external id")),
    responses((status = 200, body = List<KekInfo>), Refusals))]
pub async fn list(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<List<KekInfo>>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        let which = query.text("organization")?;
        match which {
            Some(which) => drop(who.organization(api, Permission::Admin, which)?),
            None => who.may_in_vault(api, Permission::Admin)?,
        }
        Ok(Json(List::whole(api.vault.list_keks(which)?)))
    })
    .await
}

#[utoipa::path(get, path = "/keys/rotations", tag = "operation",
    description = "The rotations under way.",
    responses((status = 200, body = List<RotationInfo>), Refusals))]
pub async fn rotations(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<Json<List<RotationInfo>>, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(Json(List::whole(api.vault.rotations())))
    })
    .await
}

#[utoipa::path(post, path = "/keys/rotate", tag = "operation",
    description = "Begins to rotate all organizations: `/keys/rotations` shows how far they are.",
    responses((status = 202), Refusals))]
pub async fn rotate_all(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<StatusCode, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(api.vault.rotate_all(&who.caller).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

#[utoipa::path(post, path = "/keys/root/rotate", tag = "operation",
    description = "Rotates the vault's own KEK, from beginning to end.",
    responses((status = 204), Refusals))]
pub async fn rotate_root(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<StatusCode, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(api.vault.rotate_root(&who.caller).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

#[utoipa::path(post, path = "/organizations/{organization}/rotate", tag = "operation",
    description = "Begins to rotate the keys of one organization.",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    responses((status = 202), Refusals))]
pub async fn rotate(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<StatusCode, Problem> {
    let which = organization(&uri)?;
    api.run(move |api| {
        who.organization(api, Permission::Admin, &which)?;
        Ok(api.vault.rotate(&who.caller, &which).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

#[utoipa::path(post, path = "/organizations/{organization}/move", tag = "operation",
    description = "Begins to move the organization's keys to another residency; values are not rewritten.",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    request_body = KeyMove, responses((status = 202), Refusals))]
pub async fn relocate(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Problem> {
    let which = organization(&uri)?;
    let to: KeyMove = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let to = residency(api, &who, &to.residency, to.pin_source.as_deref())?;
        Ok(api.vault.move_keys(&who.caller, &which, to).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

#[utoipa::path(post, path = "/organizations/{organization}/revoke", tag = "operation",
    description = "Destroys the KEK of a pair for good: what carries the pair is closed for ever.",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    request_body = KeyPair, responses((status = 204), Refusals))]
pub async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Problem> {
    let which = organization(&uri)?;
    let pair: KeyPair = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.organization(api, Permission::Admin, &which)?;
        Ok(api.vault.revoke(&who.caller, &which, &(pair.key, pair.value)).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

#[utoipa::path(get, path = "/keys/check", tag = "operation",
    description = "What `vaultfs key check --json` prints: what the token does and lets others do, tried on scratch keys.",
    params(("organization" = Option<String>, Query, description = "The token that holds its keys; the vault's own without")),
    responses((status = 200, body = serde_json::Value), Refusals))]
pub async fn check(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<TokenCheck>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(Json(api.vault.check_token(query.text("organization")?)?))
    })
    .await
}

#[utoipa::path(post, path = "/keys/migrate", tag = "operation",
    description = "Begins to move the vault to another token: `/status` shows how far it is. Only on the machine itself.",
    request_body = NewToken, responses((status = 202), Refusals))]
pub async fn migrate(State(api): State<Arc<Api>>, Extension(who): Who, body: Body) -> Result<StatusCode, Problem> {
    let new: NewToken = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        who.may_name_tokens(api)?;
        is_readable(api, &new.pin_source)?;
        Ok(api.vault.migrate(&who.caller, &new.token, &new.pin_source).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

#[utoipa::path(post, path = "/keys/pin", tag = "operation",
    description = "Gives the token the PIN that the daemon reads from this source, now and at every start from then on.",
    request_body = NewPin, responses((status = 204), Refusals))]
pub async fn set_pin(State(api): State<Arc<Api>>, Extension(who): Who, body: Body) -> Result<StatusCode, Problem> {
    let new: NewPin = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        is_readable(api, &new.pin_source)?;
        Ok(api.vault.set_pin(&who.caller, &new.pin_source).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

/// Refuses what a daemon cannot read.
fn is_readable(api: &Api, pin_source: &str) -> Result<(), Problem> {
    if api.daemon.is_some() && !["file:", "credential:"].iter().any(|kind| pin_source.starts_with(kind)) {
        return Err(Problem::invalid(
            "the daemon reads the new PIN itself, and at every start: name a file: or a credential: that it can read",
        ));
    }
    Ok(())
}

fn organization(uri: &Uri) -> Result<String, Problem> {
    String::from_utf8(segment(uri, 1)?).map_err(|_| Problem::invalid("an organization's name is UTF-8"))
}
