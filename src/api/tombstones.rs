//! `/vault/v1/tombstones`: what was deleted and can still be had back.

use super::access::From;
use super::percent::Query;
use super::shape::{Deleted, List, Restored, Tombstone};
use super::{Api, Problem, segment};
use crate::vault;
use axum::extract::State;
use axum::http::Uri;
use axum::{Extension, Json};
use std::sync::Arc;

/// Query: `organization`.
pub async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<List<Tombstone>>, Problem> {
    let organization = Query::of(&uri)?.text("organization")?.map(str::to_owned);
    api.run(move |api| Ok(Json(List::whole(api.vault.tombstones(organization.as_deref())?)))).await
}

/// Query: `to`, another path inside the same organization.
pub async fn restore(
    State(api): State<Arc<Api>>,
    Extension(caller): From,
    uri: Uri,
) -> Result<Json<Restored>, Problem> {
    let (which, query) = (segment(&uri, 3)?, Query::of(&uri)?);
    api.run(move |api| {
        Ok(Json(match api.vault.restore(&caller, &which, query.bytes("to"))? {
            vault::Restored::Object(object) => Restored::Object(api.object(object)),
            vault::Restored::Organization(organization) => Restored::Organization(organization.into()),
        }))
    })
    .await
}

pub async fn purge(State(api): State<Arc<Api>>, Extension(caller): From, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let which = segment(&uri, 3)?;
    api.run(move |api| {
        api.vault.purge(&caller, &which)?;
        Ok(Json(Deleted { success: true, name: String::from_utf8_lossy(&which).into_owned() }))
    })
    .await
}
