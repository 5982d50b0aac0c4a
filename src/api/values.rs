//! Values: in JSON as the hosted vault has them, or as raw bytes of any length, for whoever asks for those.

use super::access::{Principal, Who};
use super::body::{self, Held, Pace, Text};
use super::objects::{about, find, name, ordinal, place, the_only_one};
use super::openapi::Refusals;
use super::percent::Query;
use super::replay::Once;
use super::shape::{self, Encoding, NewObject, NextValue, Value, VaultObject};
use super::stream::{BodyReader, pieces, takes_trailers, trailer_header};
use super::{Api, Code, Problem, segment};
use crate::vault::{ObjectId, ObjectInfo, Permission};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io::{self, Read};
use std::sync::Arc;

pub const RAW: &str = "application/octet-stream";
const NAME_MAX: usize = 200;
/// What is read of a value that is refused, so that its sender comes to hear of it.
const UNHEARD: u64 = 64 << 20;

#[utoipa::path(post, path = "/vault/v1/kv", tag = "objects",
    description = "Creates an object. Its name is its path in the organization that the key context names.",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, description = "A repetition is answered as the first request was")),
    request_body = NewObject,
    responses((status = 201, body = shape::Metadata), Refusals))]
pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let text = body::read(&api.room, body).await?;
    let new: NewObject = text.parse()?;
    let once = Once::of(&who, &headers, "POST /vault/v1/kv", &text.bytes)?;
    api.run(move |api| {
        let _held = &text.held;
        api.replays.answer(once, || {
            who.may(api, Permission::Write)?;
            let value = bytes(new.value, new.encoding)?;
            check_name(&new.name)?;
            let organization = api.organization_of(&who, Permission::Write, &new.key_context)?;
            let place = place(&organization.id, new.name.as_bytes());
            let made = api.vault.create_object(&who.caller, &place, &new.key_context, &mut &value[..]);
            let made = made.map_err(|error| match Problem::from(error) {
                // What a key context or a name may not be, and a folder that is an object.
                problem if problem.code == Code::Invalid => Problem { code: Code::Unprocessable, ..problem },
                problem => problem,
            })?;
            Ok((StatusCode::CREATED, serde_json::to_value(api.object(made).metadata).expect("plain data")))
        })
    })
    .await
}

#[utoipa::path(get, path = "/vault/v1/kv/{object}", tag = "objects",
    description = "The object with its value: in JSON, or with Accept: application/octet-stream the bytes alone.",
    params(
        ("object" = String, Path, description = "An id, or ORG/PATH as one segment"),
        ("encoding" = Option<Encoding>, Query, description = "base64 for a value that is not UTF-8"),
    ),
    responses((status = 200, content((Value = "application/json"), (Vec<u8> = "application/octet-stream"))), Refusals))]
pub async fn read(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let object = segment(&uri, 3)?;
    value(api, who, &uri, &headers, move |api, who| Ok((find(api, who, Permission::Read, &object)?, None))).await
}

#[utoipa::path(get, path = "/vault/v1/kv/{object}/versions/{version}", tag = "objects",
    description = "The object with the value of one version.",
    params(
        ("object" = String, Path, description = "An id, or ORG/PATH as one segment"),
        ("version" = String, Path, description = "An ordinal or a version's id"),
        ("encoding" = Option<Encoding>, Query, description = "base64 for a value that is not UTF-8"),
    ),
    responses((status = 200, content((Value = "application/json"), (Vec<u8> = "application/octet-stream"))), Refusals))]
pub async fn read_version(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (object, version) = (segment(&uri, 3)?, segment(&uri, 5)?);
    let find = move |api: &Api, who: &Principal| {
        let found = find(api, who, Permission::Read, &object)?;
        let version = ordinal(api, found.0, &version)?;
        Ok((found, Some(version)))
    };
    value(api, who, &uri, &headers, find).await
}

#[utoipa::path(get, path = "/vault/v1/kv/name/{name}", tag = "objects",
    description = "The object with this name. Where several organizations have it, say which.",
    params(
        ("name" = String, Path, description = "The path inside its organization; slashes encoded or not"),
        ("organization" = Option<String>, Query, description = "An organization's id, name or external id"),
        ("encoding" = Option<Encoding>, Query, description = "base64 for a value that is not UTF-8"),
    ),
    responses((status = 200, content((Value = "application/json"), (Vec<u8> = "application/octet-stream"))), Refusals))]
pub async fn read_by_name(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (name, query) = (name(&uri)?, Query::of(&uri)?);
    let find = move |api: &Api, who: &Principal| {
        who.may(api, Permission::Read)?;
        let reference = match query.text("organization")? {
            Some(organization) => place(organization, &name),
            None => the_only_one(api, who, &name)?.to_string().into_bytes(),
        };
        Ok((find(api, who, Permission::Read, &reference)?, None))
    };
    value(api, who, &uri, &headers, find).await
}

/// An object, and the version that is asked for; `None` is the current one.
type Found = ((ObjectId, ObjectInfo), Option<u64>);

async fn value(
    api: Arc<Api>,
    who: Principal,
    uri: &Uri,
    headers: &HeaderMap,
    find: impl FnOnce(&Api, &Principal) -> Result<Found, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let noted = move |api: &Api| {
        let found = find(api, &who)?;
        api.note(&who, "vault.data.read", |event| about(event, &found.0.1));
        Ok((who, found))
    };
    if is_raw(headers, ACCEPT.as_str()) {
        let (who, ((id, _), version)) = api.run(noted).await?;
        return raw(api, &who, headers, id, version).await;
    }
    let wanted = match Query::of(uri)?.text("encoding")? {
        None => None,
        Some("base64") => Some(Encoding::Base64),
        Some("utf-8") => Some(Encoding::Utf8),
        Some(_) => return Err(Problem::invalid("encoding: utf-8 or base64")),
    };
    // Most values are small, and there is memory for them: then it is all done in one go.
    let at_once = api.run(move |api| {
        let (_, found) = noted(api)?;
        match api.room.hold_now(found.0.1.size as usize) {
            Some(held) => in_json(api, found, wanted, held).map(Ok),
            None => Ok(Err(found)),
        }
    });
    match at_once.await? {
        Ok(response) => Ok(response),
        Err(found) => {
            let held = api.room.hold(found.0.1.size as usize).await?;
            api.run(move |api| in_json(api, found, wanted, held)).await
        }
    }
}

fn in_json(api: &Api, ((id, info), version): Found, wanted: Option<Encoding>, held: Held) -> Result<Response, Problem> {
    let mut bytes = Vec::new();
    let mut long = false;
    let read = api.vault.read_object(id, version, &mut |part| {
        long = bytes.len() + part.len() > body::LONGEST;
        bytes.extend_from_slice(part);
        if long { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    });
    if long {
        let why = format!("the value has more than {} bytes: ask for it with Accept: {RAW}", body::LONGEST);
        return Err(Problem::new(Code::Unprocessable, why));
    }
    read?;
    let (value, encoding) = match wanted {
        Some(Encoding::Base64) => (BASE64_STANDARD.encode(&bytes), wanted),
        _ => match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(_) => {
                let why = "the value is not UTF-8: ask for it with ?encoding=base64, or with Accept: application/octet-stream";
                return Err(Problem::new(Code::Unprocessable, why));
            }
        },
    };
    let VaultObject { id, name, metadata } = api.object(info);
    // A little for the metadata; where much has to be escaped it grows.
    let about = value.len() + value.len() / 16 + 1024;
    Ok(body::answer(&Value { id, name, value, encoding, metadata }, about, held))
}

/// Streams a value. It is checked block by block, so a problem may come after its beginning.
async fn raw(
    api: Arc<Api>,
    who: &Principal,
    headers: &HeaderMap,
    id: ObjectId,
    version: Option<u64>,
) -> Result<Response, Problem> {
    let (to, body) = pieces(takes_trailers(headers));
    let place = place_on_the_network(&api, who).await?;
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the client went away");
        let mut send = |piece: &[u8]| to.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(|_| gone());
        if let Err(error) = api.vault.read_object(id, version, &mut send) {
            // Nobody is left to tell if the client went away.
            let _ = to.blocking_send(Err(error.into()));
        }
    });
    Ok(([(CONTENT_TYPE.as_str(), RAW)], trailer_header(), body.begun().await?).into_response())
}

#[utoipa::path(put, path = "/vault/v1/kv/{object}", tag = "objects",
    description = "A new version, durable when this answers. With Content-Type: application/octet-stream the body is the \
        value, of any length, and a new ORG/PATH is created.",
    params(
        ("object" = String, Path, description = "An id, or ORG/PATH as one segment"),
        ("version_check" = Option<String>, Query, description = "For a raw value: the version that must be current"),
    ),
    request_body(content((NextValue = "application/json"), (Vec<u8> = "application/octet-stream"))),
    responses((status = 201, body = VaultObject), Refusals))]
pub async fn put(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let object = segment(&uri, 3)?;
    if is_raw(&headers, CONTENT_TYPE.as_str()) {
        return store(api, who, &uri, object, body).await;
    }
    let text = body::read(&api.room, body).await?;
    let next: NextValue = text.parse()?;
    api.run(move |api| update(api, &who, &object, next, text)).await
}

fn update(api: &Api, who: &Principal, object: &[u8], next: NextValue, text: Text) -> Result<Response, Problem> {
    let _held = text.held;
    let (id, _) = find(api, who, Permission::Write, object)?;
    let value = bytes(next.value, next.encoding)?;
    let check = next.version_check.as_deref();
    let reference = id.to_string().into_bytes();
    let stored = api.vault.put_object(&who.caller, &reference, check, &mut &value[..]).map_err(Problem::from);
    let stored = match (stored, check) {
        (Err(lost), Some(on)) if matches!(lost.code, Code::VersionLost | Code::Invalid) => {
            // Sent again because its answer was lost: it is done.
            if api.vault.is_retry(&who.caller, id, on, &value)? {
                api.vault.describe(id)?
            } else {
                return Err(Problem { code: Code::VersionLost, ..lost });
            }
        }
        (stored, _) => stored?,
    };
    Ok((StatusCode::CREATED, Json(api.object(stored))).into_response())
}

/// A raw value, for `ORG/PATH` or an id.
async fn store(api: Arc<Api>, who: Principal, uri: &Uri, object: Vec<u8>, body: Body) -> Result<Response, Problem> {
    let query = Query::of(uri)?;
    let place = place_on_the_network(&api, &who).await?;
    let remote = who.caller.key.is_some();
    let mut input = BodyReader::new(body, remote.then(Pace::default));
    let stored = api.run(move |api| {
        let _place = place;
        let stored: Result<_, Problem> = (|| {
            may_store(api, &who, &object)?;
            Ok(api.vault.put_object(&who.caller, &object, query.text("version_check")?, &mut input)?)
        })();
        if let Some(problem) = input.problem() {
            return Err(problem.clone());
        }
        if stored.is_err() {
            // A client hears the answer only once it has sent everything. If it broke off, nobody hears it.
            let most = if remote { UNHEARD } else { u64::MAX };
            let _ = io::copy(&mut input.by_ref().take(most), &mut io::sink());
        }
        Ok(api.object(stored?))
    });
    Ok((StatusCode::CREATED, Json(stored.await?)).into_response())
}

/// Who comes over the network may be slow on purpose; a command's pipe may be slow as well, and is waited for.
async fn place_on_the_network(api: &Api, who: &Principal) -> Result<Option<Held>, Problem> {
    match who.caller.key {
        Some(_) => api.room.stream().await.map(Some),
        None => Ok(None),
    }
}

fn may_store(api: &Api, who: &Principal, object: &[u8]) -> Result<(), Problem> {
    who.may_at(api, Permission::Write, object)?;
    match std::str::from_utf8(object).ok().and_then(|text| text.parse::<ObjectId>().ok()) {
        Some(id) => who.may_in(api, Permission::Write, &api.vault.describe(id)?.organization_id),
        None => Ok(()),
    }
}

pub fn is_raw(headers: &HeaderMap, header: &str) -> bool {
    headers.get(header).is_some_and(|value| value.as_bytes() == RAW.as_bytes())
}

fn bytes(value: String, encoding: Option<Encoding>) -> Result<Vec<u8>, Problem> {
    match encoding {
        None | Some(Encoding::Utf8) => Ok(value.into_bytes()),
        Some(Encoding::Base64) => BASE64_STANDARD.decode(value).map_err(|e| Problem::invalid(format!("value: {e}"))),
    }
}

/// A name that a new object can have: a path of names that a file system takes.
fn check_name(name: &str) -> Result<(), Problem> {
    let wrong = |why: String| Err(Problem::new(Code::Unprocessable, format!("name: {why}")));
    if name.chars().count() > NAME_MAX {
        return wrong(format!("at most {NAME_MAX} characters"));
    }
    for part in name.split('/') {
        match part {
            "" => return wrong("it is a path: not empty, no slash at its ends, no two in a row".into()),
            "." | ".." => return wrong(format!("{part} is no name of a folder or an object")),
            _ if part.contains('\0') => return wrong("no NUL character".into()),
            _ if part.len() > 255 => return wrong("each part of the path has at most 255 bytes".into()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_of_file_names() {
        for good in ["a", "prod/db pass:wörd?#%2F", "…", "a.b/..c"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", &"x".repeat(201), &"ü".repeat(150)] {
            assert_eq!(check_name(bad).unwrap_err().code, Code::Unprocessable, "{bad}");
        }
    }
}
