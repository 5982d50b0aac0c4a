//! `/keys`: the KEKs, their rotation and their end.

use super::access::Who;
use super::body;
use super::percent::Query;
use super::shape::{KeyPair, List};
use super::{Api, Problem, segment};
use crate::vault::{KekInfo, Permission, RotationInfo};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use std::sync::Arc;

/// The KEKs of the organization that `?organization=` names, or of the whole vault.
pub async fn list(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<List<KekInfo>>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        let which = query.text("organization")?;
        match which {
            Some(which) => who.may_in(api, Permission::Admin, &api.vault.organization(which)?.id)?,
            None => who.may_in_vault(api, Permission::Admin)?,
        }
        Ok(Json(List::whole(api.vault.list_keks(which)?)))
    })
    .await
}

/// The rotations under way.
pub async fn rotations(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<Json<List<RotationInfo>>, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(Json(List::whole(api.vault.rotations())))
    })
    .await
}

/// Begins to rotate all organizations.
pub async fn rotate_all(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<StatusCode, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(api.vault.rotate_all(&who.caller).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

/// Rotates the vault's own KEK, from beginning to end.
pub async fn rotate_root(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<StatusCode, Problem> {
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        Ok(api.vault.rotate_root(&who.caller).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

/// Begins to rotate one organization.
pub async fn rotate(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<StatusCode, Problem> {
    let which = organization(&uri)?;
    api.run(move |api| {
        who.may_in(api, Permission::Admin, &api.vault.organization(&which)?.id)?;
        Ok(api.vault.rotate(&who.caller, &which).map(|()| StatusCode::ACCEPTED)?)
    })
    .await
}

pub async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Problem> {
    let which = organization(&uri)?;
    let pair: KeyPair = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may_in(api, Permission::Admin, &api.vault.organization(&which)?.id)?;
        Ok(api.vault.revoke(&who.caller, &which, &(pair.key, pair.value)).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

fn organization(uri: &Uri) -> Result<String, Problem> {
    String::from_utf8(segment(uri, 1)?).map_err(|_| Problem::invalid("an organization's name is UTF-8"))
}
