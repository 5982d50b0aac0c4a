//! Extended attributes: what applications set, and `user.vault.*`, which the vault says about itself.
//!
//! A copy (`cp -a`, `rsync -X`, `tar --xattrs`) brings the `user.vault.*` of its source along, and `rsync -X` removes those
//! that its source lacks, each time it runs. The rule that lets it end without an error and keeps identities apart:
//! setting one of those names to a value that a vault gives for it, and removing one, is accepted and changes nothing on
//! whatever a copy can make. Anything else about `user.vault.*` is EPERM; a folder's `user.vault.context.*` are set and
//! removed in earnest (`context.rs`), also by a copy.

use super::acl::{self, is_acl};
use super::context::PAIR_PREFIX;
use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgId, OrgNo, VersionId};
use super::organization::Organization;
use super::records::Tx;
use super::row::{Attributes, ContentRecord, Kind, Node, Object};
use super::time::Time;
use super::versions::VERSIONS_STAY;
use super::{Caller, SetXattr, Vault};
use crate::keys::KekState;
use serde_bytes::ByteBuf;
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub const PREFIX: &[u8] = b"user.vault.";
const VERSION_CHECK: &str = "version_check";
const VALUE_MAX: usize = 64 * 1024;
/// All names and values of one file: several of the largest.
const TOTAL_MAX: usize = 256 * 1024;
/// All names of one file, which together with the vault's own must fit into the 64 KiB that listxattr(2) can give.
const NAMES_MAX: usize = 56 * 1024;
const BELONGS_TO_THE_VAULT: Error = Error::NotPermitted("user.vault.* belongs to the vault");
const NO_ORGANIZATION: Error = Error::Absent("no such organization");

impl Vault {
    pub fn get_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino.is_in_versions() {
            let known = self.version_attributes(caller, ino)?;
            return known.into_iter().find(|(n, _)| n == name).map(|(_, v)| v).ok_or(Error::NoAttribute);
        }
        if let Some(own) = name.strip_prefix(PREFIX) {
            let known = self.vault_attributes(caller, ino)?;
            return known.into_iter().find(|(n, _)| n.as_bytes() == own).map(|(_, v)| v).ok_or(Error::NoAttribute);
        }
        check_namespace(name)?;
        let attributes = self.own_attributes(caller, ino)?;
        attributes.and_then(|a| a.0.get(name).map(|v| v.to_vec())).ok_or(Error::NoAttribute)
    }

    pub fn list_xattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if ino.is_in_versions() {
            return Ok(self.version_attributes(caller, ino)?.into_iter().map(|(name, _)| name).collect());
        }
        let named = |(name, _): (String, Vec<u8>)| [PREFIX, name.as_bytes()].concat();
        let mut names: Vec<_> = self.vault_attributes(caller, ino)?.into_iter().map(named).collect();
        if let Some(attributes) = self.own_attributes(caller, ino)? {
            // A folder's pairs are among the vault's own already.
            let shown =
                |name: &&Vec<u8>| (caller.uid == 0 || !name.starts_with(b"trusted.")) && !name.starts_with(PREFIX);
            names.extend(attributes.0.keys().filter(shown).cloned());
        }
        Ok(names)
    }

    pub fn set_xattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        if ino.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        if let Some(own) = name.strip_prefix(PREFIX) {
            return self.set_vault_attribute(caller, ino, own, value, how);
        }
        check_namespace(name)?;
        if value.len() > VALUE_MAX {
            return Err(Error::AttributesFull);
        }
        self.check_space(caller, value.len() as u64)?;
        self.change_attributes(caller, ino, |node, attributes| {
            if is_acl(name) {
                return acl::set(caller, node, attributes, name, value);
            }
            how.check(attributes.0.contains_key(name))?;
            attributes.0.insert(name.to_vec(), ByteBuf::from(value));
            Ok(())
        })
    }

    pub fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        if ino.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        if let Some(key) = name.strip_prefix(PAIR_PREFIX).and_then(|key| std::str::from_utf8(key).ok())
            && !ino.is_graveyard()
            && self.attr(caller, ino)?.mode & libc::S_IFMT == libc::S_IFDIR
        {
            return self.remove_pair(caller, ino, key);
        }
        if let Some(own) = name.strip_prefix(PREFIX) {
            let listed =
                ino != Ino::ROOT && self.vault_attributes(caller, ino)?.iter().any(|(n, _)| n.as_bytes() == own);
            return if listed { self.check_copyable(caller, ino).map(drop) } else { Err(BELONGS_TO_THE_VAULT) };
        }
        check_namespace(name)?;
        let remove = |_: &mut Node, attributes: &mut Attributes| match attributes.0.remove(name) {
            Some(_) => Ok(()),
            None => Err(Error::NoAttribute),
        };
        match self.change_attributes(caller, ino, remove) {
            // Where there is no list there need be none to remove, as on ext4.
            Err(Error::NoAttribute) if is_acl(name) => Ok(()),
            removed => removed,
        }
    }

    fn own_attributes(&self, caller: &Caller, ino: Ino) -> Result<Option<Arc<Attributes>>> {
        if ino.is_graveyard() {
            return Ok(None);
        }
        if !ino.is_top() {
            self.enter(ino, caller.patience)?;
        }
        match self.records.get::<Node>(ino)? {
            Some(_) => self.attributes_of(ino),
            None => self.last_attributes(ino).map(Some).ok_or(Error::NotFound),
        }
    }

    /// The attributes of an inode. Where it says that it has some and the row is gone, an access control list or a key
    /// context may have gone with it: an error, not "none".
    pub(super) fn attributes_of(&self, ino: Ino) -> Result<Option<Arc<Attributes>>> {
        let mut node = self.records.get::<Node>(ino)?;
        while node.as_ref().is_some_and(|node| node.attributes) {
            if let Some(attributes) = self.records.get::<Attributes>(ino)? {
                return Ok(Some(attributes));
            }
            // Each change of the attributes is one of the inode too: the same inode still means that nobody removed them.
            let before = std::mem::replace(&mut node, self.records.get::<Node>(ino)?);
            if let (Some(before), Some(now)) = (before, &node)
                && Arc::ptr_eq(&before, now)
            {
                return Err(self.missing_attributes(ino));
            }
        }
        Ok(None)
    }

    /// As [`Self::attributes_of`], for an inode that the transaction holds.
    pub(super) fn attributes_in(&self, tx: &Tx, ino: Ino, node: &Node) -> Result<Option<Arc<Attributes>>> {
        if !node.attributes {
            return Ok(None);
        }
        tx.get::<Attributes>(ino)?.ok_or_else(|| self.missing_attributes(ino)).map(Some)
    }

    fn missing_attributes(&self, ino: Ino) -> Error {
        self.corrupt("attributes", ino, "missing".into())
    }

    fn change_attributes(
        &self,
        caller: &Caller,
        ino: Ino,
        change: impl FnOnce(&mut Node, &mut Attributes) -> Result<()>,
    ) -> Result<()> {
        if ino == Ino::ROOT || ino.is_graveyard() {
            return Err(Error::NotPermitted("a vault's root takes no attributes"));
        }
        self.enter(ino, caller.patience)?;
        let change = |node: &mut Node, attributes: &mut Attributes| {
            change(node, attributes)?;
            note_attributes(node, attributes)
        };
        let mut tx = self.begin()?;
        let Some(node) = tx.get::<Node>(ino)? else {
            let changed = self.change_removed(ino, |last| change(&mut last.node, &mut last.attributes));
            return changed.unwrap_or(Err(Error::NotFound));
        };
        let mut node = (*node).clone();
        let refusal = Error::ReadOnly("tombstones can be restored or purged, nothing else");
        self.check_no_tombstone(ino, &node, || self.handles.lock().is_open(ino), refusal)?;
        let mut attributes = self.attributes_in(&tx, ino, &node)?.map_or_else(Attributes::default, |a| (*a).clone());
        change(&mut node, &mut attributes)?;
        put_attributes(&mut tx, ino, node, attributes);
        self.finish(tx);
        Ok(())
    }

    fn set_vault_attribute(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let (Ok(name), Ok(text)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return Err(BELONGS_TO_THE_VAULT);
        };
        if name == VERSION_CHECK {
            let version: VersionId = text.parse().map_err(|()| Error::Invalid("not a version id"))?;
            return self.set_guard(caller, ino, version);
        }
        let node = self.check_copyable(caller, ino)?;
        if let Some(key) = name.strip_prefix("context.")
            && node.kind.is_directory()
        {
            return self.set_pair(caller, ino, (key, text), how);
        }
        if is_given(name, text) { Ok(()) } else { Err(BELONGS_TO_THE_VAULT) }
    }

    /// Refuses what no copy can make: the root, graveyards and tombstones.
    fn check_copyable(&self, caller: &Caller, ino: Ino) -> Result<std::sync::Arc<Node>> {
        if ino == Ino::ROOT || ino.is_graveyard() {
            return Err(BELONGS_TO_THE_VAULT);
        }
        self.enter(ino, caller.patience)?;
        let node = self.records.get::<Node>(ino)?.ok_or(Error::NotFound)?;
        if node.grave.is_some() { Err(BELONGS_TO_THE_VAULT) } else { Ok(node) }
    }

    /// `user.vault.*` without the prefix, as `mount.md` lists them.
    fn vault_attributes(&self, caller: &Caller, ino: Ino) -> Result<Vec<(String, Vec<u8>)>> {
        let mut list = AttributeList::default();
        match ino {
            Ino::ROOT => {
                list.add("id", self.id);
                list.add("organizations", self.organizations.all().iter().filter(|o| !o.record.lock().deleted).count());
                list.add("token", self.keyring.status().label);
                list.add("format", super::header::FORMAT);
            }
            _ if ino.is_graveyard() => {}
            _ if ino.is_top() => self.organization_attributes(ino, &mut list)?,
            _ => {
                self.enter(ino, caller.patience)?;
                let node = self.node(ino)?;
                if let Kind::File { object, .. } = node.kind {
                    self.object_attributes(ino, &node, object, &mut list)?;
                }
                self.pair_attributes(ino, &node, &mut list)?;
            }
        }
        Ok(list.0)
    }

    fn organization_attributes(&self, ino: Ino, list: &mut AttributeList) -> Result<()> {
        let organization = self.organizations.find(ino.organization()).ok_or(Error::NotFound)?;
        let record = organization.record.lock().clone();
        list.add("id", record.id);
        list.add("created_at", record.created.rfc3339());
        list.add("key_id", record.kek());
        list.add("key_state", self.key_state(&organization));
        list.add("objects", record.objects);
        list.add("bytes", record.bytes);
        list.add("tombstones", record.tombstones);
        let node = self.records.get::<Node>(ino)?.ok_or(Error::NotFound)?;
        self.pair_attributes(ino, &node, list)?;
        self.grave_attributes(ino, &node, list)
    }

    fn pair_attributes(&self, ino: Ino, node: &Node, list: &mut AttributeList) -> Result<()> {
        if node.kind.is_directory() {
            self.own_pairs(ino, node)?.into_iter().for_each(|(key, value)| list.add(&format!("context.{key}"), value));
        }
        Ok(())
    }

    /// `active`, `locked`, `unavailable` or `destroyed`; asks the token unless it is locked.
    pub(super) fn key_state(&self, organization: &Organization) -> &'static str {
        if organization.record.lock().locked {
            return "locked";
        }
        match self.keyring.state_of(organization.no.0, organization.kek()) {
            KekState::Active => "active",
            KekState::Unavailable(_) => "unavailable",
            KekState::Missing => "destroyed",
        }
    }

    fn object_attributes(
        &self,
        ino: Ino,
        node: &Node,
        id: super::ids::ObjectId,
        list: &mut AttributeList,
    ) -> Result<()> {
        let org = ino.organization();
        let object = self.records.get::<Object>((org, id))?;
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        list.add("id", id);
        let versions = object.as_ref().map_or(&[][..], |o| &o.versions);
        if let Some(current) = versions.last() {
            list.add("version_id", current.id);
            list.add("version", current.ordinal);
        }
        list.add("versions", versions.len());
        let content = self.records.get::<ContentRecord>(ino)?;
        let made_for = || content.as_ref().map_or_else(|| organization.context(), |c| c.context.clone());
        let context = object.as_ref().map_or_else(made_for, |o| o.context.clone());
        for (key, value) in context {
            list.add(&format!("context.{key}"), value);
        }
        list.add("key_id", key_id(&organization, content.as_deref()));
        list.add("cipher", CIPHER);
        list.add("created_at", object.as_ref().map_or(node.born, |o| o.created).rfc3339());
        list.add("updated_at", versions.last().map_or(node.mtime, |v| v.at).rfc3339());
        if let Some(current) = versions.last() {
            list.add("updated_by", &current.by);
        }
        self.grave_attributes(ino, node, list)
    }

    fn grave_attributes(&self, ino: Ino, node: &Node, list: &mut AttributeList) -> Result<()> {
        if let Some(grave) = self.grave_of(ino, node)? {
            list.add("deleted_at", grave.deleted.rfc3339());
            list.add("deleted_by", &grave.deleted_by);
            list.add("purge_after", self.purge_after(&grave).rfc3339());
            list.0.push(("original_path".into(), grave.original_path.clone()));
        }
        Ok(())
    }

    /// The number by which records find an organization: by its id, its name, or else its external id.
    pub(super) fn number_of(&self, which: &str) -> Result<OrgNo> {
        if let Ok(id) = which.parse() {
            let found = self.organizations.all().into_iter().find(|o| o.id == id);
            return found.map(|o| o.no).ok_or(NO_ORGANIZATION);
        }
        match self.find_entry(Ino::ROOT, which.as_bytes())? {
            Some(entry) => Ok(entry.ino.organization()),
            None => self.profiles.with_external_id(which).ok_or(NO_ORGANIZATION),
        }
    }
}

/// Whether a vault gives this value for this name, on whatever it may be.
fn is_given(name: &str, text: &str) -> bool {
    let is_time = || OffsetDateTime::parse(text, &Rfc3339).is_ok();
    let is_number = || text.parse::<u128>().is_ok_and(|n| n.to_string() == text);
    match name {
        "id" => text.parse::<ObjectId>().is_ok() || text.parse::<OrgId>().is_ok(),
        "version_id" => text.parse::<VersionId>().is_ok(),
        "version" | "versions" | "objects" | "bytes" | "tombstones" => is_number(),
        "key_id" => text.starts_with("kek_"),
        "key_state" => ["active", "locked", "unavailable", "destroyed"].contains(&text),
        "cipher" => text == CIPHER,
        "created_at" | "updated_at" | "deleted_at" | "purge_after" => is_time(),
        "updated_by" | "deleted_by" => {
            text.strip_prefix("uid:").is_some_and(|uid| uid.parse::<u32>().is_ok()) || text.starts_with("key_")
        }
        "original_path" => !text.is_empty(),
        "context.organizationId" => text.parse::<OrgId>().is_ok(),
        _ => name.strip_prefix("context.").is_some_and(|key| !key.is_empty()),
    }
}

/// Refuses what no attribute can be called: another namespace, or a namespace without a name in it.
fn check_namespace(name: &[u8]) -> Result<()> {
    let spaces = [&b"user."[..], b"trusted.", b"security."];
    match spaces.iter().find_map(|space| name.strip_prefix(*space)) {
        Some(b"") => Err(Error::Invalid("an attribute without a name")),
        Some(_) => Ok(()),
        None if is_acl(name) => Ok(()),
        None => Err(Error::Unsupported("this namespace of attributes")),
    }
}

/// Notes on the node that its attributes changed, if there is room for them.
pub(super) fn note_attributes(node: &mut Node, attributes: &Attributes) -> Result<()> {
    let names: usize = attributes.0.keys().map(|name| name.len() + 1).sum();
    let values: usize = attributes.0.values().map(|value| value.len()).sum();
    if names > NAMES_MAX || names + values > TOTAL_MAX {
        return Err(Error::AttributesFull);
    }
    (node.attributes, node.ctime) = (!attributes.0.is_empty(), Time::now());
    Ok(())
}

/// Puts an inode with its attributes.
pub(super) fn put_attributes(tx: &mut Tx, ino: Ino, node: Node, attributes: Attributes) {
    if node.attributes {
        tx.put(ino, attributes);
    } else {
        tx.delete::<Attributes>(ino);
    }
    tx.put(ino, node);
}

/// The KEKs that wrap a content's DEK, in the order of the pairs; of an empty object its organization's.
pub(super) fn key_id(organization: &Organization, content: Option<&ContentRecord>) -> String {
    match content {
        Some(content) => content.wrapped.layers.iter().map(|l| l.kek.to_string()).collect::<Vec<_>>().join(","),
        None => organization.kek().to_string(),
    }
}

/// Suite 1: the DEK wrapped by AES-256-GCM in the token, contents sealed by AES-256-GCM under keys from HKDF-SHA256.
pub const CIPHER: &str = "AES-256-GCM";

#[derive(Default)]
pub struct AttributeList(pub Vec<(String, Vec<u8>)>);

impl AttributeList {
    pub fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_owned(), value.to_string().into_bytes()));
    }
}
