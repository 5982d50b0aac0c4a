//! `/events`: what happened, in the hosted vault's names and shapes, read from the audit log.
//!
//! The log names ids. Names and key contexts are looked up when they are asked for, so that none lies in the open.

use super::access::Who;
use super::objects::limit;
use super::openapi::Refusals;
use super::percent::Query;
use super::shape::{Event, EventList, ListMetadata};
use super::{Api, Problem};
use crate::audit::Record;
use crate::vault::{ObjectId, Permission, Time};
use axum::extract::State;
use axum::http::Uri;
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const LIMIT_MAX: usize = 100;

#[utoipa::path(get, path = "/events", tag = "vault",
    description = "Events in the order in which they happened, a page at a time.",
    params(
        ("events" = Option<String>, Query, description = "Their names, with commas, or more than once; all if absent"),
        ("after" = Option<String>, Query, description = "An event's id: the events that follow it"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "10 if absent; more than 100 are 100"),
        ("range_start" = Option<String>, Query, description = "RFC 3339: nothing before this"),
    ),
    responses((status = 200, body = EventList), Refusals))]
pub async fn list(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<EventList>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let names: Vec<&str> = query.all("events")?.into_iter().flat_map(|names| names.split(',')).collect();
        let limit = limit(&query)?.min(LIMIT_MAX);
        let start = match query.text("range_start")? {
            Some(text) => {
                let start = Time::parse(text).ok_or_else(|| Problem::invalid("range_start: not a date"))?;
                Some(start.rfc3339())
            }
            None => None,
        };
        let mut wanted = |record: &Record| {
            typed(&record.event).is_some_and(|name| names.is_empty() || names.contains(&name))
                && start.as_ref().is_none_or(|start| record.time >= *start)
        };
        let found = api.audit.read(query.text("after")?, limit + 1, &mut wanted);
        let mut found = found.map_err(|e| Problem::new(super::Code::Failure, format!("the audit log: {e}")))?;
        let more = found.len() > limit;
        found.truncate(limit);
        let after = found.last().filter(|_| more).map(|last| last.id.clone());
        let data = found.into_iter().map(|record| event(api, record)).collect();
        Ok(Json(EventList { object: "list".into(), data, list_metadata: ListMetadata { before: None, after } }))
    })
    .await
}

/// The hosted vault's name for what the audit log calls by its own.
fn typed(event: &str) -> Option<&str> {
    match event {
        "key.created" => Some("vault.kek.created"),
        "key.destroyed" => Some("vault.kek.deleted"),
        "object.deleted" => Some("vault.data.deleted"),
        own => own.starts_with("vault.").then_some(own),
    }
}

fn event(api: &Api, record: Record) -> Event {
    let name = typed(&record.event).unwrap_or(&record.event).to_owned();
    let mut data = Map::new();
    let actor = record.actor.unwrap_or_default();
    let uid = format!("uid:{}", actor.uid);
    data.insert("actor_id".into(), json!(actor.key.as_ref().unwrap_or(&uid)));
    data.insert("actor_name".into(), json!(actor.name.as_ref().or(actor.comm.as_ref()).unwrap_or(&uid)));
    data.insert("actor_source".into(), json!("api"));
    let id: Option<ObjectId> = record.object.as_ref().and_then(|id| id.parse().ok());
    let object = id.and_then(|id| api.vault.describe(id).ok());
    let context = || match (&object, &record.organization) {
        (Some(object), _) => json!(object.context),
        (None, Some(organization)) => json!({ "organizationId": organization }),
        (None, None) => json!({}),
    };
    let mut put = |name: &str, value: Value| drop(data.insert(name.into(), value));
    match name.as_str() {
        "vault.data.created"
        | "vault.data.updated"
        | "vault.data.read"
        | "vault.data.deleted"
        | "vault.metadata.read" => {
            put("kv_name", json!(object.as_ref().map_or_else(|| buried_name(api, &record.object), |o| o.path.clone())));
            if name != "vault.data.deleted" && name != "vault.metadata.read" {
                put("key_id", json!(object.as_ref().map(|o| &o.key_id)));
            }
            if name == "vault.data.created" || name == "vault.data.updated" {
                put("key_context", context());
                // Beyond the hosted vault's: which value it was.
                put("object_id", json!(record.object));
                put("version_id", json!(record.version));
            }
        }
        "vault.dek.read" | "vault.dek.rekeyed" => {
            put("key_ids", json!([record.detail]));
            put("key_context", context());
        }
        "vault.dek.decrypted" => put("key_id", json!(record.detail)),
        "vault.kek.created" | "vault.kek.deleted" => {
            put("key_name", json!(record.organization));
            put("key_id", json!(record.detail));
        }
        _ => {}
    }
    Event {
        object: "event".into(),
        id: record.id,
        event: name,
        data: Value::Object(data),
        created_at: record.time,
        context: json!({}),
    }
}

/// The name that a deleted object had; empty once it is purged.
fn buried_name(api: &Api, object: &Option<String>) -> String {
    let graves = api.vault.tombstones(None).unwrap_or_default();
    let grave = graves.into_iter().find(|grave| Some(&grave.id) == object.as_ref());
    grave.map(|grave| grave.original_path).unwrap_or_default()
}
