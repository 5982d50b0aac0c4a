//! `/vault/v1/kv`: objects, by id, by `ORG/PATH` and by name.

use super::access::From;
use super::percent::{self, Query};
use super::shape::{Deleted, List, ListMetadata, Object, ObjectSummary, Version};
use super::stream::{BodyReader, pieces, takes_trailers, trailer_header};
use super::{Api, Code, Problem, segment};
use crate::vault::{self, Caller, ObjectId};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use std::io;
use std::sync::Arc;

const RAW: &str = "application/octet-stream";
/// Objects in one answer when the request does not say.
const LIMIT: usize = 10;

/// Query: `organization` (all without it), `prefix` (a folder), `after` (an id), `limit`.
pub async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<List<ObjectSummary>>, Problem> {
    let query = Query::of(&uri)?;
    let limit = query.parsed("limit")?.unwrap_or(LIMIT);
    if limit == 0 {
        return Err(Problem::invalid("limit: at least 1"));
    }
    let after: Option<ObjectId> = query.parsed("after")?;
    let organization = query.text("organization")?.map(str::to_owned);
    api.run(move |api| {
        let organizations = match organization {
            Some(one) => vec![one],
            None => api.vault.organizations()?.into_iter().map(|o| o.id).collect(),
        };
        let prefix = query.bytes("prefix").unwrap_or_default();
        let mut found = Vec::new();
        for organization in &organizations {
            found.extend(api.vault.list_objects(organization, prefix, after, limit)?);
        }
        // Each organization answered in the order of ids; so must all of them together.
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let more = found.len() >= limit;
        found.truncate(limit);
        let after = found.last().filter(|_| more).map(|last| last.id.clone());
        let data = found.into_iter().map(ObjectSummary::from).collect();
        Ok(Json(List { data, list_metadata: ListMetadata { before: None, after } }))
    })
    .await
}

pub async fn describe(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Object>, Problem> {
    let object = segment(&uri, 3)?;
    api.run(move |api| Ok(Json(api.object(api.vault.describe(api.vault.find_object(&object)?)?)))).await
}

pub async fn versions(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<List<Version>>, Problem> {
    let object = segment(&uri, 3)?;
    api.run(move |api| Ok(Json(List::whole(api.vault.versions(api.vault.find_object(&object)?)?)))).await
}

pub async fn read(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let object = segment(&uri, 3)?;
    value(api, headers, None, move |api| Ok(api.vault.find_object(&object)?)).await
}

pub async fn read_version(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let (object, version) = (segment(&uri, 3)?, segment(&uri, 5)?);
    let version = std::str::from_utf8(&version).ok().and_then(|v| v.parse().ok());
    let version = version.ok_or_else(|| Problem::invalid("a version is named by its ordinal: 1, 2, 3 …"))?;
    value(api, headers, Some(version), move |api| Ok(api.vault.find_object(&object)?)).await
}

/// Query: `organization`. Without it the name must be unique in the vault.
pub async fn read_by_name(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let (name, query) = (name(&uri)?, Query::of(&uri)?);
    let organization = query.text("organization")?.map(str::to_owned);
    value(api, headers, None, move |api| match organization {
        Some(organization) => Ok(api.vault.find_object(&place(&organization, &name))?),
        None => the_only_one(api, &name),
    })
    .await
}

/// Query: `version_check`, a version's id or ordinal. Creates the object if `{object}` is a new `ORG/PATH`.
pub async fn put(
    State(api): State<Arc<Api>>,
    Extension(caller): From,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let object = segment(&uri, 3)?;
    store(api, caller, &uri, headers, object, body).await
}

/// Query: `organization`, `version_check`.
pub async fn put_by_name(
    State(api): State<Arc<Api>>,
    Extension(caller): From,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let query = Query::of(&uri)?;
    let organization = query.text("organization")?.ok_or_else(|| Problem::invalid("organization: missing"))?;
    let object = place(organization, &name(&uri)?);
    store(api, caller, &uri, headers, object, body).await
}

/// Query: `version_check`.
pub async fn delete(State(api): State<Arc<Api>>, Extension(caller): From, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let (object, query) = (segment(&uri, 3)?, Query::of(&uri)?);
    api.run(move |api| {
        let id = api.vault.find_object(&object)?;
        let name = api.vault.describe(id)?.path;
        api.vault.delete_object(&caller, id, query.text("version_check")?)?;
        Ok(Json(Deleted { success: true, name }))
    })
    .await
}

/// Streams a value. It is checked block by block, so a problem may come after its beginning.
async fn value(
    api: Arc<Api>,
    headers: HeaderMap,
    version: Option<u64>,
    find: impl FnOnce(&Api) -> Result<ObjectId, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    if !named(&headers, ACCEPT.as_str()) {
        return Err(Problem::invalid(format!("values are answered as {RAW}: ask with Accept: {RAW}")));
    }
    let id = api.run(find).await?;
    let (to, body) = pieces(takes_trailers(&headers));
    tokio::task::spawn_blocking(move || {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client went away");
        let mut send = |piece: &[u8]| to.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(|_| gone());
        if let Err(error) = api.vault.read_object(id, version, &mut send) {
            // Nobody is left to tell if the client went away.
            let _ = to.blocking_send(Err(error.into()));
        }
    });
    Ok(([(CONTENT_TYPE.as_str(), RAW)], trailer_header(), body.begun().await?).into_response())
}

async fn store(
    api: Arc<Api>,
    caller: Caller,
    uri: &Uri,
    headers: HeaderMap,
    object: Vec<u8>,
    body: Body,
) -> Result<Response, Problem> {
    if !named(&headers, CONTENT_TYPE.as_str()) {
        return Err(Problem::invalid(format!("values are taken as {RAW}: send Content-Type: {RAW}")));
    }
    let query = Query::of(uri)?;
    let mut input = BodyReader::new(body);
    let stored = api.run(move |api| {
        let stored = api.vault.put_object(&caller, &object, query.text("version_check")?, &mut input);
        if stored.is_err() {
            // A client hears the answer only once it has sent everything. If it broke off, nobody hears it.
            let _ = io::copy(&mut input, &mut io::sink());
        }
        Ok(api.object(stored?))
    });
    Ok((StatusCode::CREATED, Json(stored.await?)).into_response())
}

fn named(headers: &HeaderMap, header: &str) -> bool {
    headers.get(header).is_some_and(|value| value.as_bytes() == RAW.as_bytes())
}

/// The name after `/vault/v1/kv/name/`, with its slashes encoded or not.
fn name(uri: &Uri) -> Result<Vec<u8>, Problem> {
    percent::decode(uri.path().splitn(6, '/').nth(5).unwrap_or_default())
}

fn place(organization: &str, name: &[u8]) -> Vec<u8> {
    [organization.as_bytes(), b"/", name].concat()
}

fn the_only_one(api: &Api, name: &[u8]) -> Result<ObjectId, Problem> {
    let mut found = Vec::new();
    for organization in api.vault.organizations()? {
        match api.vault.find_object(&place(&organization.id, name)) {
            Ok(id) => found.push((id, organization.name)),
            Err(vault::Error::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match found.as_slice() {
        [] => Err(vault::Error::NotFound.into()),
        [(id, _)] => Ok(*id),
        [(_, first), (_, second), ..] => {
            let both = format!("{first} and {second} both have an object of this name: say which organization");
            Err(Problem::new(Code::Exists, both))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_with_slashes_encoded_or_not() {
        for path in ["/vault/v1/kv/name/prod%2Fdb%20pass", "/vault/v1/kv/name/prod/db%20pass"] {
            assert_eq!(name(&path.parse().unwrap()).unwrap(), b"prod/db pass");
        }
        assert_eq!(place("acme", b"prod/db"), b"acme/prod/db");
    }
}
