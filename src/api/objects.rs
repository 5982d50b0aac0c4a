//! `/vault/v1/kv`: objects as what is known of them. Their values: `values.rs`.

use super::access::{Principal, Who};
use super::openapi::Refusals;
use super::percent::{self, Query};
use super::shape::{Deleted, List, ListMetadata, ObjectSummary, VaultObject, Version};
use super::{Api, Code, Problem, segment};
use crate::vault::{self, AuditEvent, ObjectId, ObjectQuery, Permission, Time};
use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Objects in one answer when the request does not say, and at most.
const LIMIT: usize = 10;
const LIMIT_MAX: usize = 1000;

#[utoipa::path(get, path = "/vault/v1/kv", tag = "objects",
    description = "Objects in the order of their ids, a page at a time.",
    params(
        ("limit" = Option<usize>, Query, minimum = 1, description = "10 if absent; more than 1000 are 1000"),
        ("after" = Option<String>, Query, description = "An object's id or name: the page that follows it"),
        ("before" = Option<String>, Query, description = "An object's id or name: the page that ends before it"),
        ("order" = Option<super::openapi::Order>, Query, description = "desc if absent"),
        ("search" = Option<String>, Query, description = "A part of the name, or {\"name\": …, \"key_context\": {…}}"),
        ("updatedAfter" = Option<String>, Query, description = "RFC 3339, or as JavaScript writes a Date; also updated_after"),
        ("organization" = Option<String>, Query, description = "An organization's id, name or external id"),
        ("prefix" = Option<String>, Query, description = "A folder"),
    ),
    responses((status = 200, body = List<ObjectSummary>), Refusals))]
pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<List<ObjectSummary>>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        who.may(api, Permission::Read)?;
        let wanted = wanted(api, &who, &query)?;
        let page = api.vault.list_objects(&wanted)?;
        api.note(&who, "vault.names.listed", |_| ());
        let edge = |object: Option<&vault::ObjectInfo>, there: bool| object.filter(|_| there).map(|o| o.id.clone());
        let list_metadata = ListMetadata {
            before: edge(page.objects.first(), page.earlier),
            after: edge(page.objects.last(), page.later),
        };
        Ok(Json(List { data: page.objects.into_iter().map(ObjectSummary::from).collect(), list_metadata }))
    })
    .await
}

fn wanted(api: &Api, who: &Principal, query: &Query) -> Result<ObjectQuery, Problem> {
    let organizations = match query.text("organization")? {
        Some(one) => {
            let organization = who.organization(api, Permission::Read, one)?;
            Some(vec![organization.id])
        }
        None => who.organizations(),
    };
    let cursor = |name| match query.given(name)? {
        Some(place) => place.parse().or_else(|()| the_only_one(api, who, place.as_bytes())).map(Some),
        None => Ok(None),
    };
    let updated_after =
        match query.given("updatedAfter")?.map_or_else(|| query.given("updated_after"), |t| Ok(Some(t)))? {
            Some(text) => Some(Time::parse(text).ok_or_else(|| Problem::invalid("updatedAfter: not a date"))?),
            None => None,
        };
    let (name, context) = search(query.text("search")?)?;
    let (after, before): (Option<ObjectId>, Option<ObjectId>) = (cursor("after")?, cursor("before")?);
    Ok(ObjectQuery {
        organizations,
        folder: query.bytes("prefix").unwrap_or_default().to_vec(),
        name,
        context,
        updated_after,
        descending: descending(query)?,
        after,
        // Some libraries send both; then the way forward counts.
        before: before.filter(|_| after.is_none()),
        limit: limit(query)?.min(LIMIT_MAX),
    })
}

pub fn limit(query: &Query) -> Result<usize, Problem> {
    match query.parsed("limit")?.unwrap_or(LIMIT) {
        0 => Err(Problem::invalid("limit: at least 1")),
        limit => Ok(limit),
    }
}

pub fn descending(query: &Query) -> Result<bool, Problem> {
    match query.text("order")? {
        None | Some("desc" | "normal") => Ok(true),
        Some("asc") => Ok(false),
        Some(_) => Err(Problem::invalid("order: asc or desc")),
    }
}

/// A search is a part of the name, or a JSON object that says more.
fn search(text: Option<&str>) -> Result<(Option<String>, BTreeMap<String, String>), Problem> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Search {
        name: Option<String>,
        #[serde(default)]
        key_context: BTreeMap<String, String>,
    }
    match text.filter(|text| !text.is_empty()) {
        Some(json) if json.starts_with('{') => {
            let search: Search = serde_json::from_str(json).map_err(|e| Problem::invalid(format!("search: {e}")))?;
            Ok((search.name, search.key_context))
        }
        plain => Ok((plain.map(str::to_owned), BTreeMap::new())),
    }
}

#[utoipa::path(get, path = "/vault/v1/kv/{object}/metadata", tag = "objects",
    params(("object" = String, Path, description = "An id, or ORG/PATH as one segment")),
    responses((status = 200, body = VaultObject), Refusals))]
pub async fn describe(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<VaultObject>, Problem> {
    let object = segment(&uri, 3)?;
    api.run(move |api| {
        let (_, info) = find(api, &who, Permission::Read, &object)?;
        api.note(&who, "vault.metadata.read", |event| about(event, &info));
        Ok(Json(api.object(info)))
    })
    .await
}

#[utoipa::path(get, path = "/vault/v1/kv/{object}/versions", tag = "objects",
    description = "All versions that are kept, newest first.",
    params(("object" = String, Path, description = "An id, or ORG/PATH as one segment")),
    responses((status = 200, body = List<Version>), Refusals))]
pub async fn versions(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<List<Version>>, Problem> {
    let object = segment(&uri, 3)?;
    api.run(move |api| {
        let (id, _) = find(api, &who, Permission::Read, &object)?;
        Ok(Json(List::whole(api.vault.versions(id)?)))
    })
    .await
}

#[utoipa::path(post, path = "/vault/v1/kv/{object}/versions/{version}/restore", tag = "objects",
    description = "A new version with the value of an earlier one.",
    params(
        ("object" = String, Path, description = "An id, or ORG/PATH as one segment"),
        ("version" = String, Path, description = "An ordinal or a version's id"),
        ("version_check" = Option<String>, Query, description = "The version that must be current"),
    ),
    responses((status = 200, body = VaultObject), Refusals))]
pub async fn revert(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<VaultObject>, Problem> {
    let (object, version, query) = (segment(&uri, 3)?, segment(&uri, 5)?, Query::of(&uri)?);
    api.run(move |api| {
        let (id, _) = find(api, &who, Permission::Write, &object)?;
        let version = ordinal(api, id, &version)?;
        let stored = api.vault.revert_object(&who.caller, id, version, query.text("version_check")?)?;
        Ok(Json(api.object(stored)))
    })
    .await
}

#[utoipa::path(delete, path = "/vault/v1/kv/{object}", tag = "objects",
    description = "The object becomes a tombstone, which can be restored.",
    params(
        ("object" = String, Path, description = "An id, or ORG/PATH as one segment"),
        ("version_check" = Option<String>, Query, description = "The version that must be current"),
    ),
    responses((status = 200, body = Deleted), Refusals))]
pub async fn delete(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let (object, query) = (segment(&uri, 3)?, Query::of(&uri)?);
    api.run(move |api| {
        let (id, info) = find(api, &who, Permission::Write, &object)?;
        api.vault.delete_object(&who.caller, id, query.text("version_check")?)?;
        Ok(Json(Deleted { success: true, name: info.path }))
    })
    .await
}

/// An object that the principal may do this to.
pub fn find(
    api: &Api,
    who: &Principal,
    what: Permission,
    reference: &[u8],
) -> Result<(ObjectId, vault::ObjectInfo), Problem> {
    who.may_at(api, what, reference)?;
    let id = api.vault.find_object(reference)?;
    let info = api.vault.describe(id)?;
    who.may_in(api, what, &info.organization_id)?;
    Ok((id, info))
}

pub fn about(event: &mut AuditEvent, info: &vault::ObjectInfo) {
    event.organization = Some(info.organization_id.clone());
    event.object = Some(info.id.clone());
    event.version.clone_from(&info.version_id);
    event.detail = Some(info.key_id.clone());
}

/// A version's ordinal, from it or from the version's id.
pub fn ordinal(api: &Api, object: ObjectId, version: &[u8]) -> Result<u64, Problem> {
    let text = std::str::from_utf8(version).map_err(|_| Problem::invalid("a version is named by ordinal or id"))?;
    match text.parse() {
        Ok(ordinal) if text.len() < 32 => Ok(ordinal),
        _ => {
            let known = api.vault.versions(object)?.into_iter().find(|version| version.id == text);
            known.map(|version| version.version).ok_or_else(|| vault::Error::Absent("no such version is kept").into())
        }
    }
}

/// The name after `/vault/v1/kv/name/`, with its slashes encoded or not.
pub fn name(uri: &Uri) -> Result<Vec<u8>, Problem> {
    percent::decode(uri.path().splitn(6, '/').nth(5).unwrap_or_default())
}

pub fn place(organization: &str, name: &[u8]) -> Vec<u8> {
    [organization.as_bytes(), b"/", name].concat()
}

/// The object with a name that only one organization has, of those that the principal sees.
pub fn the_only_one(api: &Api, who: &Principal, name: &[u8]) -> Result<ObjectId, Problem> {
    let seen = who.organizations();
    let (mut found, mut closed) = (Vec::new(), None);
    for organization in api.vault.organizations()? {
        if seen.as_ref().is_some_and(|seen| !seen.contains(&organization.id)) {
            continue;
        }
        match api.vault.find_object(&place(&organization.id, name)) {
            Ok(id) => found.push((id, organization.name)),
            Err(vault::Error::NotFound | vault::Error::NotADirectory) => {}
            // One organization's key that is not to be had closes no other.
            Err(error @ vault::Error::Key(_)) => closed = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match (found.as_slice(), closed) {
        ([], Some(error)) => Err(error.into()),
        ([], None) => Err(vault::Error::NotFound.into()),
        ([(id, _)], _) => Ok(*id),
        ([(_, first), (_, second), ..], _) => {
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

    #[test]
    fn a_search_is_text_or_json() {
        assert_eq!(search(Some("db")).unwrap().0.as_deref(), Some("db"));
        let (name, context) = search(Some(r#"{"name":"db","key_context":{"env":"prod"}}"#)).unwrap();
        assert_eq!((name.as_deref(), context["env"].as_str()), (Some("db"), "prod"));
        assert!(search(Some(r#"{"nam":"db"}"#)).is_err() && search(Some("{")).is_err());
    }
}
