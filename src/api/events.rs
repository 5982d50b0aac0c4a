//! `/events`: what happened, in the hosted vault's names and shapes, read from the audit log.
//!
//! The log names ids. Names and key contexts are looked up when they are asked for, so that none lies in the open: they
//! are those of now, and empty where nothing is left that could be asked.

use super::access::Who;
use super::objects::{descending, limit};
use super::openapi::Refusals;
use super::percent::Query;
use super::shape::{Event, EventList, ListMetadata};
use super::{Api, Problem};
use crate::audit::{Part, Record};
use crate::vault::{self, ObjectInfo, Permission, Time};
use axum::extract::State;
use axum::http::Uri;
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const LIMIT_MAX: usize = 100;

#[utoipa::path(get, path = "/events", tag = "vault",
    description = "Events in the order in which they happened, a page at a time.",
    params(
        ("events" = Option<String>, Query, description = "Their names, with commas, or more than once; all if absent"),
        ("after" = Option<String>, Query, description = "An event's id: the page that follows it"),
        ("before" = Option<String>, Query, description = "An event's id: the page that ends before it"),
        ("order" = Option<super::openapi::Order>, Query, description = "asc if absent"),
        ("limit" = Option<usize>, Query, minimum = 1, description = "10 if absent; more than 100 are 100"),
        ("range_start" = Option<String>, Query, description = "RFC 3339: nothing before this"),
        ("range_end" = Option<String>, Query, description = "RFC 3339: nothing from this on"),
        ("organization_id" = Option<String>, Query, description = "An organization's id, name or external id"),
    ),
    responses((status = 200, body = EventList), Refusals))]
pub async fn list(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<Json<EventList>, Problem> {
    let query = Query::of(&uri)?;
    api.run(move |api| {
        who.may_in_vault(api, Permission::Admin)?;
        let wanted = Wanted::of(api, &query)?;
        let limit = limit(&query)?.min(LIMIT_MAX);
        let descending = query.text("order")?.is_some() && descending(&query)?;
        let (after, before) = (query.given("after")?, query.given("before")?);
        // The part of the log that lies behind a place in the list's order is the one before it where the list turns round.
        let forwards = (after.is_some() || before.is_none()) != descending;
        let part = match (after.or(before), forwards) {
            (place, true) => Part::From(place),
            (place, false) => Part::UpTo(place),
        };
        let found = api.audit.read(part, limit + 1, &mut |record| wanted.is(record));
        let mut found = found.map_err(|e| Problem::new(super::Code::Failure, format!("the audit log: {e}")))?;
        let more = found.len() > limit;
        if more && forwards {
            found.truncate(limit);
        } else if more {
            found.remove(0);
        }
        if descending {
            found.reverse();
        }
        let edge = |record: Option<&Record>, there: bool| record.filter(|_| there).map(|record| record.id.clone());
        let turned = after.is_none() && before.is_some();
        let list_metadata = ListMetadata {
            before: edge(found.first(), if turned { more } else { after.is_some() }),
            after: edge(found.last(), turned || more),
        };
        let mut known = Known { api, objects: HashMap::new(), pairs: HashMap::new(), closed: HashSet::new() };
        let data = found.into_iter().map(|record| known.event(record)).collect();
        Ok(Json(EventList { object: "list".into(), data, list_metadata }))
    })
    .await
}

/// Which events are asked for.
struct Wanted<'a> {
    names: Vec<&'a str>,
    start: Option<String>,
    end: Option<String>,
    organization: Option<String>,
}

impl<'a> Wanted<'a> {
    fn of(api: &Api, query: &'a Query) -> Result<Self, Problem> {
        let time = |name| match query.given(name)? {
            Some(text) => {
                let time = Time::parse(text).ok_or_else(|| Problem::invalid(format!("{name}: not a date")))?;
                Ok::<_, Problem>(Some(time.rfc3339()))
            }
            None => Ok(None),
        };
        // One that is purged has events still.
        let organization = query.given("organization_id")?;
        let organization = organization.map(|o| api.vault.organization(o).map_or_else(|_| o.to_owned(), |o| o.id));
        Ok(Wanted {
            names: query
                .all("events")?
                .into_iter()
                .flat_map(|names| names.split(','))
                .filter(|n| !n.is_empty())
                .collect(),
            start: time("range_start")?,
            end: time("range_end")?,
            organization,
        })
    }

    fn is(&self, record: &Record) -> bool {
        record.event.starts_with("vault.")
            && (self.names.is_empty() || self.names.contains(&record.event.as_str()))
            && self.start.as_ref().is_none_or(|start| record.time >= *start)
            && self.end.as_ref().is_none_or(|end| record.time < *end)
            && (self.organization.is_none() || self.organization == record.organization)
    }
}

/// What the events of one page are about, each looked up once.
struct Known<'a> {
    api: &'a Api,
    objects: HashMap<String, Option<Arc<ObjectInfo>>>,
    /// The pairs of an organization's KEKs, by the KEKs' ids.
    pairs: HashMap<String, BTreeMap<String, (String, String)>>,
    /// Organizations whose key was not to be had: nobody waits for it again.
    closed: HashSet<String>,
}

impl Known<'_> {
    fn event(&mut self, record: Record) -> Event {
        let mut data = self.actor(&record);
        let object = self.object(&record);
        let organization = record.organization.clone().unwrap_or_default();
        // The KEKs, as they were then.
        let key_id = record.detail.clone().unwrap_or_default();
        let mut put = |name: &str, value: Value| drop(data.insert(name.into(), value));
        match record.event.as_str() {
            "vault.data.created"
            | "vault.data.updated"
            | "vault.data.read"
            | "vault.data.deleted"
            | "vault.metadata.read" => {
                put("kv_name", json!(object.as_ref().map_or("", |o| &o.path)));
                if matches!(record.event.as_str(), "vault.data.created" | "vault.data.updated" | "vault.data.read") {
                    put("key_id", json!(key_id));
                }
                if matches!(record.event.as_str(), "vault.data.created" | "vault.data.updated") {
                    let own = || BTreeMap::from([("organizationId".to_owned(), organization.clone())]);
                    put("key_context", json!(object.as_ref().map_or_else(own, |o| o.context.clone())));
                }
                // Beyond the hosted vault's: which object and which value it was.
                put("object_id", json!(record.object));
                put("version_id", json!(record.version));
            }
            "vault.dek.read" | "vault.dek.rekeyed" => {
                put("key_ids", json!(key_id.split(',').collect::<Vec<_>>()));
                put("key_context", json!(self.context(&organization, &key_id)));
                put("data_key_id", json!(record.object));
            }
            "vault.dek.decrypted" => {
                put("key_id", json!(key_id));
                put("data_key_id", json!(record.object));
            }
            "vault.kek.created" | "vault.kek.deleted" => {
                let pair = self.context(&organization, &key_id).into_iter().next();
                put("key_name", json!(pair.map_or(organization, |(key, value)| format!("{key}={value}"))));
                put("key_id", json!(key_id));
            }
            _ => {}
        }
        Event {
            object: "event".into(),
            id: record.id,
            event: record.event,
            data: Value::Object(data),
            created_at: record.time,
            context: json!({}),
        }
    }

    /// The hosted vault knows API keys and people at a dashboard; who works on the mount is of the second kind.
    fn actor(&self, record: &Record) -> Map<String, Value> {
        let (id, name, source) = match &record.actor {
            Some(actor) => match &actor.key {
                Some(key) => (key.clone(), actor.name.clone(), "api"),
                None => (format!("uid:{}", actor.uid), actor.comm.clone(), "dashboard"),
            },
            // What the vault does by itself, as rotating its keys.
            None => (self.api.vault_id.clone(), Some("vaultfs".into()), "api"),
        };
        let name = name.unwrap_or_else(|| id.clone());
        let pairs = [("actor_id", id), ("actor_name", name), ("actor_source", source.to_owned())];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
    }

    fn object(&mut self, record: &Record) -> Option<Arc<ObjectInfo>> {
        let id = record.object.as_ref()?;
        if let Some(known) = self.objects.get(id) {
            return known.clone();
        }
        let organization = record.organization.as_deref().unwrap_or_default();
        let found = id.parse().ok().filter(|_| !self.closed.contains(organization));
        let found = match found.map(|id| self.api.vault.recall(id)) {
            Some(Ok(found)) => Some(Arc::new(found)),
            Some(Err(vault::Error::Key(_) | vault::Error::Locked)) => {
                self.closed.insert(organization.to_owned());
                None
            }
            Some(Err(_)) | None => None,
        };
        self.objects.insert(id.clone(), found.clone());
        found
    }

    /// The pairs of a key context, by their KEKs of whatever version.
    fn context(&mut self, organization: &str, key_id: &str) -> BTreeMap<String, String> {
        let pairs = self.pairs.entry(organization.to_owned()).or_insert_with(|| {
            let keks = self.api.vault.list_keks(Some(organization)).unwrap_or_default();
            let pair = |text: &str| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            keks.into_iter()
                .filter_map(|kek| Some((without_version(&kek.key_id).to_owned(), pair(&kek.pair)?)))
                .collect()
        });
        key_id.split(',').filter_map(|kek| pairs.get(without_version(kek)).cloned()).collect()
    }
}

fn without_version(kek: &str) -> &str {
    kek.rsplit_once(":v").map_or(kek, |(id, _)| id)
}
