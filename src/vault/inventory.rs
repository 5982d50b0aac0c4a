//! Objects as a list: in the order of their ids, from any place in either direction, narrowed by what is asked for.

use super::error::{Error, Result};
use super::ids::{ObjectId, OrgNo};
use super::row::{Object, Record};
use super::time::Time;
use super::{ObjectInfo, Vault};
use crate::keys::Patience;
use crate::store::{Key, Table};
use std::collections::{BTreeMap, HashSet};

/// Rows looked at in one go, at least and at most.
const PART_MIN: usize = 16;
const PART: usize = 256;

/// Which objects to list, and which part of that list.
#[derive(Clone, Debug, Default)]
pub struct ObjectQuery {
    /// By name or id; all if `None`.
    pub organizations: Option<Vec<String>>,
    /// The folder that they stand below; empty for no such limit.
    pub folder: Vec<u8>,
    /// A part of the name.
    pub name: Option<String>,
    /// Pairs that the key context must hold.
    pub context: BTreeMap<String, String>,
    /// Changed later than this.
    pub updated_after: Option<Time>,
    pub descending: bool,
    /// The objects that follow this one in the list's order, or precede it; at most one of the two.
    pub after: Option<ObjectId>,
    pub before: Option<ObjectId>,
    pub limit: usize,
}

/// A part of a list of objects.
#[derive(Debug)]
pub struct ObjectPage {
    pub objects: Vec<ObjectInfo>,
    /// Whether the list goes on before and after this part.
    pub earlier: bool,
    pub later: bool,
}

impl Vault {
    /// One page. Where all organizations are asked for, one that is locked, or whose key is not to be had, is left out.
    pub fn list_objects(&self, query: &ObjectQuery) -> Result<ObjectPage> {
        let organizations = self.queried(query)?;
        let (mut from, mut to) = (key_of(0), Key::from(&[0xFF; 17][..]));
        // A page before a place is looked for from that place on backwards, and then turned round.
        let turned = query.before.is_some();
        let backwards = query.descending != turned;
        if let Some(place) = query.after.or(query.before) {
            if backwards { to = key_of(place.0) } else { from = key_of(place.0).successor() }
        }
        let mut objects = Vec::new();
        // A page of a list that is not narrowed is had in one go.
        let mut part = query.limit.saturating_add(1).clamp(PART_MIN, PART);
        loop {
            let (claims, next) = self.records.claims(Table::Object, (from, to), backwards, part)?;
            for (key, org) in claims.into_iter().filter(|(_, org)| organizations.contains(org)) {
                let id = ObjectId(u128::from_be_bytes((*key).try_into().expect("keys of objects are ids")));
                objects.extend(self.queried_object(query, org, id)?);
                if objects.len() > query.limit {
                    break;
                }
            }
            part = PART;
            match next.filter(|_| objects.len() <= query.limit) {
                Some(next) if backwards => to = next,
                Some(next) => from = next,
                None => break,
            }
        }
        let more = objects.len() > query.limit;
        objects.truncate(query.limit);
        let came_from = query.after.or(query.before).is_some();
        if turned {
            objects.reverse();
        }
        let (earlier, later) = if turned { (more, came_from) } else { (came_from, more) };
        Ok(ObjectPage { objects, earlier, later })
    }

    /// The organizations that are asked for and can be opened.
    fn queried(&self, query: &ObjectQuery) -> Result<HashSet<OrgNo>> {
        let mut found = HashSet::new();
        match &query.organizations {
            Some(some) => {
                for which in some {
                    let organization = self.living(self.number_of(which)?)?;
                    self.enter(super::Ino::graveyard_of(organization.no), Patience::Wait)?;
                    found.insert(organization.no);
                }
            }
            None => {
                for organization in self.organizations.all().iter().filter(|o| !o.record.lock().deleted) {
                    match self.enter(super::Ino::graveyard_of(organization.no), Patience::Wait) {
                        Ok(()) => drop(found.insert(organization.no)),
                        Err(Error::Key(_) | Error::Locked) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(found)
    }

    fn queried_object(&self, query: &ObjectQuery, org: OrgNo, id: ObjectId) -> Result<Option<ObjectInfo>> {
        let Some(organization) = self.organizations.find(org) else { return Ok(None) };
        let Some(object) = self.records.get::<Object>((org, id))? else { return Ok(None) };
        let pairs = |(key, value): (&String, &String)| object.context.iter().any(|(k, v)| k == key && v == value);
        let updated = object.current().map_or(object.created, |version| version.at);
        if query.updated_after.is_some_and(|time| updated <= time) || !query.context.iter().all(pairs) {
            return Ok(None);
        }
        // Its organization was entered for all of them. Where a save gets between the looks, it is asked for by itself.
        let info = match self.info(&organization, id, &object).or_else(|error| match error {
            Error::NotFound => self.describe(id),
            other => Err(other),
        }) {
            Ok(info) => info,
            // Deleted, or deleted since.
            Err(Error::NotFound | Error::Absent(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let named = query.name.as_ref().is_none_or(|part| info.path.contains(part.as_str()));
        Ok(Some(info).filter(|info| named && below(&info.path, &query.folder)))
    }
}

fn key_of(id: u128) -> Key {
    Object::at((OrgNo::VAULT, ObjectId(id))).key
}

/// Whether a path stands below a folder.
fn below(path: &str, folder: &[u8]) -> bool {
    folder.is_empty()
        || path
            .as_bytes()
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || folder.ends_with(b"/") || rest.starts_with(b"/"))
}
