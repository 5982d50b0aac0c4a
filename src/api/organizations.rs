//! `/organizations`: POST is `mkdir`, a PUT with another name `mv`, DELETE `rmdir`.

use super::access::{Principal, Who};
use super::body;
use super::objects::{descending, limit};
use super::openapi::Refusals;
use super::percent::Query;
use super::replay::Once;
use super::shape::{Deleted, ListMetadata, NewOrganization, Organization, OrganizationChange, OrganizationList};
use super::{Api, Code, Problem, segment};
use crate::vault::{OrganizationInfo, Permission, Profile, Residency};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::{Extension, Json};
use std::sync::Arc;
use std::time::Duration;

const LIMIT_MAX: usize = 1000;

#[utoipa::path(get, path = "/organizations", tag = "organizations",
    description = "Organizations in the order in which they were made, the youngest first, a page at a time.",
    params(
        ("limit" = Option<usize>, Query, minimum = 1, description = "10 if absent; more than 1000 are 1000"),
        ("after" = Option<String>, Query, description = "An organization's id: the page that follows it"),
        ("before" = Option<String>, Query, description = "An organization's id: the page that ends before it"),
        ("order" = Option<super::openapi::Order>, Query, description = "desc if absent"),
        ("search" = Option<String>, Query, description = "A part of the name"),
        ("domains" = Option<String>, Query, description = "A domain of the organization; may come more than once"),
    ),
    responses((status = 200, body = OrganizationList), Refusals))]
pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<OrganizationList>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        who.may(api, Permission::Read)?;
        let seen = who.organizations();
        let search = query.text("search")?.unwrap_or_default();
        let domains: Vec<_> = query.all("domains")?.into_iter().filter(|domain| !domain.is_empty()).collect();
        let wanted = |o: &OrganizationInfo| {
            seen.as_ref().is_none_or(|seen| seen.contains(&o.id))
                && o.name.contains(search)
                && (domains.is_empty() || o.domains.iter().any(|(domain, _)| domains.contains(&domain.as_str())))
        };
        let mut all: Vec<_> = api.vault.organizations()?.into_iter().filter(wanted).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        if descending(&query)? {
            all.reverse();
        }
        let limit = limit(&query)?.min(LIMIT_MAX);
        let place = |name| match query.given(name)? {
            Some(id) => {
                let known = all.iter().position(|organization| organization.id == id);
                known.map(Some).ok_or_else(|| Problem::invalid(format!("{name}: no such organization in this list")))
            }
            None => Ok(None),
        };
        let (from, to) = match (place("after")?, place("before")?) {
            (Some(after), _) => (after + 1, (after + 1 + limit).min(all.len())),
            (None, Some(before)) => (before.saturating_sub(limit), before),
            (None, None) => (0, limit.min(all.len())),
        };
        let edge = |at: usize, there: bool| all.get(at).filter(|_| there && from < to).map(|o| o.id.clone());
        let list_metadata =
            ListMetadata { before: edge(from, from > 0), after: edge(to.saturating_sub(1), to < all.len()) };
        let data = all.drain(from..to).map(Into::into).collect();
        Ok(Json(OrganizationList { object: "list".into(), data, list_metadata }))
    })
    .await
}

#[utoipa::path(post, path = "/organizations", tag = "organizations",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, description = "A repetition is answered as the first request was")),
    request_body = NewOrganization,
    responses((status = 201, body = Organization), Refusals))]
pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let text = body::read(&api.room, body).await?;
    let new: NewOrganization = text.parse()?;
    let once = Once::of(&who, &headers, "POST /organizations", &text.bytes)?;
    api.run(move |api| {
        api.replays.answer(once, || {
            who.may_in_vault(api, Permission::Admin)?;
            if let Some(Some(id)) = &new.change.external_id
                && api.vault.organization(id).is_ok_and(|other| other.external_id.as_ref() == Some(id))
            {
                return Err(Problem::new(Code::Exists, "an organization with this external id is there already"));
            }
            let named = new.residency.as_deref();
            let residency = named.map(|named| residency(api, &who, named, new.pin_source.as_deref())).transpose()?;
            let rights = (new.owner, new.mode);
            let made = api.vault.create_organization_at(&who.caller, &new.name, rights, residency);
            let mut made = made.map_err(refused)?;
            if new.change != OrganizationChange::default() {
                let id = made.id;
                made =
                    api.vault.update_organization(&who.caller, &id, None, |p| new.change.apply(p)).map_err(refused)?;
            }
            Ok((StatusCode::CREATED, serde_json::to_value(Organization::from(made)).expect("plain data")))
        })
    })
    .await
}

/// Where keys are to live.
pub fn residency(api: &Api, who: &Principal, named: &str, pin_source: Option<&str>) -> Result<Residency, Problem> {
    let residency = Residency::parse(named, pin_source).map_err(|error| Problem::invalid(error.to_string()))?;
    if let Residency::External(_) = residency {
        who.may_name_tokens(api)?;
    }
    Ok(residency)
}

fn refused(error: crate::vault::Error) -> Problem {
    match Problem::from(error) {
        problem if problem.code == Code::Invalid => Problem { code: Code::Unprocessable, ..problem },
        problem => problem,
    }
}

#[utoipa::path(get, path = "/organizations/{organization}", tag = "organizations",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    responses((status = 200, body = Organization), Refusals))]
pub async fn show(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<Organization>, Problem> {
    let which = text(&uri, 1)?;
    api.run(move |api| Ok(Json(who.organization(api, Permission::Read, &which)?.into()))).await
}

#[utoipa::path(get, path = "/organizations/external_id/{external_id}", tag = "organizations",
    params(("external_id" = String, Path)),
    responses((status = 200, body = Organization), Refusals))]
pub async fn by_external_id(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
) -> Result<Json<Organization>, Problem> {
    let wanted = text(&uri, 2)?;
    api.run(move |api| {
        who.may(api, Permission::Read)?;
        let found = api.vault.organizations()?.into_iter().find(|o| o.external_id.as_ref() == Some(&wanted));
        match found {
            Some(found) => Ok(Json(who.organization(api, Permission::Read, &found.id)?.into())),
            // Refused where it would be refused for one that is there.
            None => {
                who.may_in_vault(api, Permission::Read)?;
                Err(Problem::new(Code::NotFound, "no organization has this external id"))
            }
        }
    })
    .await
}

#[utoipa::path(put, path = "/organizations/{organization}", tag = "organizations",
    description = "Changes what is given; null takes an external id or a limit away.",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    request_body = OrganizationChange,
    responses((status = 200, body = Organization), Refusals))]
pub async fn change(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    body: Body,
) -> Result<Json<Organization>, Problem> {
    let which = text(&uri, 1)?;
    let change: OrganizationChange = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        let found = who.organization(api, Permission::Admin, &which)?;
        let name = change.name.clone();
        let changed = api.vault.update_organization(&who.caller, &found.id, name.as_deref(), |p| change.apply(p));
        Ok(Json(changed.map_err(refused)?.into()))
    })
    .await
}

#[utoipa::path(delete, path = "/organizations/{organization}", tag = "organizations",
    description = "An empty organization becomes a tombstone. With `purge` it ends for ever, with all that is in it: first its keys are destroyed, then its bytes.",
    params(
        ("organization" = String, Path, description = "An organization's id, name or external id"),
        ("purge" = Option<bool>, Query, description = "false if absent"),
    ),
    responses((status = 200, body = Deleted), Refusals))]
pub async fn delete(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<Deleted>, Problem> {
    let which = text(&uri, 1)?;
    let purge = match Query::of(&uri)?.text("purge")? {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Problem::invalid("purge: true or false")),
    };
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let name = api.vault.organization(&which)?.name;
        match purge {
            true => api.vault.purge_living_organization(&who.caller, &which)?,
            false => api.vault.delete_organization(&who.caller, &which)?,
        }
        Ok(Json(Deleted { success: true, name }))
    })
    .await
}

#[utoipa::path(post, path = "/organizations/{organization}/lock", tag = "operation",
    description = "Takes an organization's keys out of memory; until it is unlocked nothing of it is answered.",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    responses((status = 204), Refusals))]
pub async fn lock(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<StatusCode, Problem> {
    let which = text(&uri, 1)?;
    api.run(move |api| {
        who.organization(api, Permission::Admin, &which)?;
        Ok(api.vault.lock_organization(&who.caller, &which).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

#[utoipa::path(post, path = "/organizations/{organization}/unlock", tag = "operation",
    params(("organization" = String, Path, description = "An organization's id, name or external id")),
    responses((status = 204), Refusals))]
pub async fn unlock(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<StatusCode, Problem> {
    let which = text(&uri, 1)?;
    api.run(move |api| {
        who.organization(api, Permission::Admin, &which)?;
        Ok(api.vault.unlock_organization(&who.caller, &which).map(|()| StatusCode::NO_CONTENT)?)
    })
    .await
}

impl OrganizationChange {
    fn apply(self, profile: &mut Profile) {
        profile.external_id = self.external_id.unwrap_or(profile.external_id.take());
        if let Some(metadata) = self.metadata {
            // As in the hosted API: a value of null takes the pair away.
            for (key, value) in metadata {
                match value {
                    Some(value) => profile.metadata.insert(key, value),
                    None => profile.metadata.remove(&key),
                };
            }
        }
        if let Some(domains) = self.domain_data {
            profile.domains = domains.into_iter().map(|d| (d.domain, d.state)).collect();
        }
        if let Some(allow) = self.allow_profiles_outside_organization {
            profile.allow_profiles_outside_organization = allow;
        }
        if let Some(seconds) = self.keep_versions_for {
            profile.keep_versions_for = seconds.map(Duration::from_secs);
        }
        profile.quota_bytes = self.quota_bytes.unwrap_or(profile.quota_bytes);
        profile.quota_objects = self.quota_objects.unwrap_or(profile.quota_objects);
    }
}

fn text(uri: &Uri, number: usize) -> Result<String, Problem> {
    String::from_utf8(segment(uri, number)?).map_err(|_| Problem::invalid("an organization's name is UTF-8"))
}
