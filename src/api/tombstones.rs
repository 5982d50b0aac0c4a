//! `/vault/v1/tombstones`: what was deleted and can still be had back.

use super::access::{Principal, Who};
use super::openapi::Refusals;
use super::percent::Query;
use super::shape::{Deleted, List, Restored, Tombstone};
use super::{Api, Problem, segment};
use crate::vault::{self, Permission};
use axum::extract::State;
use axum::http::Uri;
use axum::{Extension, Json};
use std::sync::Arc;

#[utoipa::path(get, path = "/vault/v1/tombstones", tag = "tombstones",
    params(("organization" = Option<String>, Query, description = "An organization's id, name or external id")),
    responses((status = 200, body = List<Tombstone>), Refusals))]
pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<List<Tombstone>>, Problem> {
    let organization = Query::of(&uri)?.text("organization")?.map(str::to_owned);
    api.run(move |api| {
        match &organization {
            Some(one) => drop(who.organization(api, Permission::Read, one)?),
            None => who.may_in_vault(api, Permission::Read)?,
        }
        Ok(Json(List::whole(api.vault.tombstones(organization.as_deref())?)))
    })
    .await
}

/// Whether the principal may do this to a tombstone.
fn may(api: &Api, who: &Principal, what: Permission, tombstone: &[u8]) -> Result<(), Problem> {
    who.may_at(api, what, tombstone)?;
    match who.organizations() {
        None => Ok(()),
        Some(_) => who.may_in(api, what, &api.vault.organization_of_tombstone(tombstone)?.to_string()),
    }
}

#[utoipa::path(post, path = "/vault/v1/tombstones/{tombstone}/restore", tag = "tombstones",
    description = "The object or organization is there again, with its id and its history.",
    params(
        ("tombstone" = String, Path, description = "ORG/ENTRY as one segment, or the deleted object's or organization's id"),
        ("to" = Option<String>, Query, description = "Another path inside the same organization"),
    ),
    responses((status = 200, body = Restored), Refusals))]
pub async fn restore(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<Restored>, Problem> {
    let (which, query) = (segment(&uri, 3)?, Query::of(&uri)?);
    api.run(move |api| {
        may(api, &who, Permission::Write, &which)?;
        Ok(Json(match api.vault.restore(&who.caller, &which, query.bytes("to"))? {
            vault::Restored::Object(object) => Restored::Object(api.object(object)),
            vault::Restored::Organization(organization) => Restored::Organization(organization.into()),
        }))
    })
    .await
}

#[utoipa::path(delete, path = "/vault/v1/tombstones/{tombstone}", tag = "tombstones",
    description = "Destroys the wrapped key, then the bytes.",
    params(("tombstone" = String, Path, description = "ORG/ENTRY as one segment, or the deleted object's or organization's id")),
    responses((status = 200, body = Deleted), Refusals))]
pub async fn purge(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let which = segment(&uri, 3)?;
    api.run(move |api| {
        may(api, &who, Permission::Admin, &which)?;
        api.vault.purge(&who.caller, &which)?;
        Ok(Json(Deleted { success: true, name: String::from_utf8_lossy(&which).into_owned() }))
    })
    .await
}
