//! `/organizations`: POST is `mkdir`, DELETE is `rmdir`.

use super::access::From;
use super::shape::{Deleted, List, NewOrganization, Organization};
use super::{Api, Problem, segment};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use std::sync::Arc;

/// Organizations are few enough for one answer.
pub async fn list(State(api): State<Arc<Api>>) -> Result<Json<List<Organization>>, Problem> {
    api.run(|api| Ok(Json(List::whole(api.vault.organizations()?)))).await
}

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): From,
    body: Bytes,
) -> Result<(StatusCode, Json<Organization>), Problem> {
    let new: NewOrganization = serde_json::from_slice(&body)
        .map_err(|e| Problem::invalid(format!("the request's body is not a new organization: {e}")))?;
    api.run(move |api| {
        let made = api.vault.create_organization(&caller, &new.name, new.owner, new.mode)?;
        Ok((StatusCode::CREATED, Json(made.into())))
    })
    .await
}

pub async fn show(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Organization>, Problem> {
    let which = organization(&uri)?;
    api.run(move |api| Ok(Json(api.vault.organization(&which)?.into()))).await
}

pub async fn delete(State(api): State<Arc<Api>>, Extension(caller): From, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let which = organization(&uri)?;
    api.run(move |api| {
        let name = api.vault.organization(&which)?.name;
        api.vault.delete_organization(&caller, &which)?;
        Ok(Json(Deleted { success: true, name }))
    })
    .await
}

fn organization(uri: &Uri) -> Result<String, Problem> {
    String::from_utf8(segment(uri, 1)?).map_err(|_| Problem::invalid("an organization's name is UTF-8"))
}
