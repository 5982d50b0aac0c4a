//! `/vault/v1/keys`: data keys for encryption at the client.

use super::access::Who;
use super::body;
use super::openapi::Refusals;
use super::shape::{DataKey, NewDataKey, OpenDataKey, OpenedDataKey, Rekey};
use super::{Api, Problem};
use crate::vault::{self, AuditEvent, Permission};
use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::sync::Arc;

#[utoipa::path(post, path = "/vault/v1/keys/data-key", tag = "keys",
    description = "A new data key, in the open and encrypted.",
    request_body = NewDataKey, responses((status = 200, body = DataKey), Refusals))]
pub async fn create(State(api): State<Arc<Api>>, Extension(who): Who, body: Body) -> Result<Json<DataKey>, Problem> {
    let new: NewDataKey = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        let organization = api.organization_of(&who, Permission::Write, &new.context)?;
        let key = api.vault.create_data_key(&who.caller, &organization, &new.context).map_err(unprocessable)?;
        api.note(&who, "vault.dek.read", |event| about(event, organization.id, &key));
        Ok(Json(shape(key)))
    })
    .await
}

#[utoipa::path(post, path = "/vault/v1/keys/decrypt", tag = "keys",
    description = "The data key that encrypted keys hold.",
    request_body = OpenDataKey, responses((status = 200, body = OpenedDataKey), Refusals))]
pub async fn decrypt(
    State(api): State<Arc<Api>>,
    Extension(who): Who,
    body: Body,
) -> Result<Json<OpenedDataKey>, Problem> {
    let asked: OpenDataKey = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may(api, Permission::Read)?;
        let encrypted = decoded(&asked.keys)?;
        let organization = api.vault.organization_of_data_key(&encrypted)?.id;
        who.may_in(api, Permission::Read, &organization)?;
        let key = api.vault.open_data_key(&who.caller, &encrypted)?;
        api.note(&who, "vault.dek.decrypted", |event| about(event, organization, &key));
        Ok(Json(OpenedDataKey { id: key.id, data_key: BASE64_STANDARD.encode(key.key.expose()) }))
    })
    .await
}

#[utoipa::path(post, path = "/vault/v1/keys/rekey", tag = "keys",
    description = "The same data key, encrypted under another key context.",
    request_body = Rekey, responses((status = 200, body = DataKey), Refusals))]
pub async fn rekey(State(api): State<Arc<Api>>, Extension(who): Who, body: Body) -> Result<Json<DataKey>, Problem> {
    let asked: Rekey = body::read(&api.room, body).await?.parse()?;
    api.run(move |api| {
        who.may(api, Permission::Write)?;
        let encrypted = decoded(&asked.encrypted_keys)?;
        who.may_in(api, Permission::Write, &api.vault.organization_of_data_key(&encrypted)?.id)?;
        let organization = api.organization_of(&who, Permission::Write, &asked.context)?;
        let key = api.vault.rekey_data_key(&who.caller, &encrypted, &organization, &asked.context);
        let key = key?;
        api.note(&who, "vault.dek.rekeyed", |event| about(event, organization.id, &key));
        Ok(Json(shape(key)))
    })
    .await
}

fn about(event: &mut AuditEvent, organization: String, key: &vault::DataKey) {
    (event.organization, event.object) = (Some(organization), Some(key.id.clone()));
    event.detail = Some(key.key_id.clone());
}

fn decoded(keys: &str) -> Result<Vec<u8>, Problem> {
    BASE64_STANDARD.decode(keys).map_err(|_| Problem::invalid("these encrypted keys are not base64"))
}

fn unprocessable(error: vault::Error) -> Problem {
    match error {
        vault::Error::Invalid(why) => Problem::new(super::Code::Unprocessable, why),
        other => other.into(),
    }
}

fn shape(key: vault::DataKey) -> DataKey {
    DataKey {
        data_key: BASE64_STANDARD.encode(key.key.expose()),
        encrypted_keys: BASE64_STANDARD.encode(&key.encrypted),
        id: key.id,
        context: key.context,
    }
}
