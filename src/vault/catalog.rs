//! Objects by id and by path, for commands and services: describe, read, delete, restore.

use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgNo};
use super::organization::Organization;
use super::row::{ContentRecord, Kind, Node, Object, Record, Tombstone, Version};
use super::{AuditEvent, Caller, Make, Vault, at_most};
use super::{ObjectInfo, OrganizationInfo, Restored, TombstoneInfo, VersionInfo};
use crate::keys::{Patience, Residency};
use std::sync::Arc;

/// An object with the folder and the name that it stands under.
pub type Placed = (Arc<Object>, (Ino, Vec<u8>));

impl Vault {
    pub fn organizations(&self) -> Result<Vec<OrganizationInfo>> {
        let all = self.organizations.all();
        Ok(all.iter().filter(|o| !o.record.lock().deleted).map(|o| self.organization_info(o)).collect())
    }

    /// `which`: an id or a name.
    pub fn organization(&self, which: &str) -> Result<OrganizationInfo> {
        let organization = self.living(self.number_of(which)?)?;
        Ok(self.organization_info(&organization))
    }

    /// Mode 0700 and the caller as owner, unless told otherwise.
    pub fn create_organization(
        &self,
        caller: &Caller,
        name: &str,
        owner: Option<(u32, u32)>,
        mode: Option<u32>,
    ) -> Result<OrganizationInfo> {
        self.create_organization_at(caller, name, (owner, mode), None)
    }

    /// As [`Vault::create_organization`], with keys that live elsewhere than those of others.
    pub fn create_organization_at(
        &self,
        caller: &Caller,
        name: &str,
        (owner, mode): (Option<(u32, u32)>, Option<u32>),
        residency: Option<Residency>,
    ) -> Result<OrganizationInfo> {
        let owner = owner.unwrap_or((caller.uid, caller.gid));
        let mode = mode.unwrap_or(0o700);
        let (_, organization) = self.make_organization(caller, name.as_bytes(), mode, owner, residency)?;
        self.name_changed(Ino::ROOT, name.as_bytes());
        Ok(self.organization_info(&organization))
    }

    pub fn delete_organization(&self, caller: &Caller, which: &str) -> Result<()> {
        let name = self.living(self.number_of(which)?)?.name();
        self.bury_organization(caller, name.as_bytes())?;
        self.name_changed(Ino::ROOT, name.as_bytes());
        self.sync()
    }

    /// Deletes an organization with all that is in it, for ever: its keys first.
    pub fn purge_living_organization(&self, caller: &Caller, which: &str) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        self.end_organization(caller, &organization)?;
        self.name_changed(Ino::ROOT, organization.name().as_bytes());
        self.sync()
    }

    pub(super) fn organization_info(&self, organization: &Organization) -> OrganizationInfo {
        let key_state = self.key_state(organization).to_owned();
        let profile = self.profiles.get(organization.no).unwrap_or_default();
        let record = organization.record.lock();
        OrganizationInfo {
            id: record.id.to_string(),
            name: record.name.clone(),
            created_at: record.created.rfc3339(),
            updated_at: profile.updated.max(record.created).rfc3339(),
            key_id: record.kek().to_string(),
            key_state,
            objects: record.objects,
            bytes: at_most(record.bytes),
            tombstones: record.tombstones,
            external_id: profile.external_id.clone(),
            metadata: profile.metadata.clone(),
            domains: profile.domains.clone(),
            allow_profiles_outside_organization: profile.allow_profiles_outside_organization,
            keep_versions_for: profile.keep_versions_for.map(|time| time.as_secs()),
            quota_bytes: profile.quota_bytes,
            quota_objects: profile.quota_objects,
        }
    }

    /// `ORG/PATH`, the organization by name or id, or an object's id.
    pub fn find_object(&self, reference: &[u8]) -> Result<ObjectId> {
        if let Some(id) = std::str::from_utf8(reference).ok().and_then(|text| text.parse().ok()) {
            self.object(id)?;
            return Ok(id);
        }
        let (folder, name) = self.walk(&Caller::daemon(), reference, false)?;
        match self.node_named(folder, &name)?.kind {
            Kind::File { object, .. } => Ok(object),
            Kind::Directory { .. } => Err(Error::IsADirectory),
            _ => Err(Error::Invalid("not an object: only regular files are")),
        }
    }

    /// The folder that a path's last name stands in, and that name; missing folders are made if told so.
    pub(super) fn walk(&self, caller: &Caller, reference: &[u8], make: bool) -> Result<(Ino, Vec<u8>)> {
        let mut parts = reference.split(|b| *b == b'/');
        let organization = parts.next().and_then(|p| std::str::from_utf8(p).ok()).ok_or(Error::NotFound)?;
        let organization = self.living(self.number_of(organization)?)?;
        let mut folder = Ino::top_of(organization.no);
        self.enter(Ino::graveyard_of(organization.no), Patience::Wait)?;
        let names: Vec<&[u8]> = parts.collect();
        let (name, folders) = names.split_last().ok_or(Error::Invalid("an object is named as ORG/PATH"))?;
        for part in folders {
            folder = self.folder_named(caller, folder, part, make)?;
        }
        self.check_name(folder, name)?;
        Ok((folder, name.to_vec()))
    }

    fn folder_named(&self, caller: &Caller, parent: Ino, name: &[u8], make: bool) -> Result<Ino> {
        self.check_name(parent, name)?;
        loop {
            match self.find_entry(parent, name)? {
                Some(entry) if entry.kind == libc::S_IFDIR => return Ok(entry.ino),
                Some(_) => return Err(Error::NotADirectory),
                None if !make => return Err(Error::NotFound),
                None => {}
            }
            match self.make(caller, parent, name, 0o755, Make::Directory) {
                Ok(made) => {
                    self.name_changed(parent, name);
                    return Ok(made.ino);
                }
                // Another request that needs it was first.
                Err(Error::Exists) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// An object and the organization that it is in.
    fn object(&self, id: ObjectId) -> Result<(Arc<Organization>, Arc<Object>)> {
        let org = self.records.claimed_organization(Object::at((OrgNo::VAULT, id)))?.ok_or(Error::NotFound)?;
        self.enter(Ino::graveyard_of(org), Patience::Wait)?;
        let object = self.records.get::<Object>((org, id))?.ok_or(Error::NotFound)?;
        Ok((self.organizations.find(org).ok_or(Error::NotFound)?, object))
    }

    /// What a name leads to. A save may replace the inode between the two looks: then the name leads to another.
    pub(super) fn node_named(&self, folder: Ino, name: &[u8]) -> Result<Arc<Node>> {
        let look = || {
            let entry = self.find_entry(folder, name)?.ok_or(Error::NotFound)?;
            self.records.get::<Node>(entry.ino)
        };
        match look()? {
            Some(node) => Ok(node),
            None => self.at_rest(look)?.ok_or(Error::NotFound),
        }
    }

    /// Looks while nothing changes: several records, each of which says where the next one is.
    pub(super) fn at_rest<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let _others_wait = self.records.begin();
        look()
    }

    /// What is looked up of an object by its id, in several records. A save may replace its inode, and a rename its
    /// place, in the middle of that; then it is done again while nothing changes, so that an object that is there is found.
    pub(super) fn of_object<T>(&self, id: ObjectId, look: impl Fn() -> Result<T>) -> Result<T> {
        match look() {
            Err(Error::NotFound) if self.object(id).is_ok() => self.at_rest(look),
            found => found,
        }
    }

    pub(super) fn living_object(&self, id: ObjectId) -> Result<(Arc<Organization>, Arc<Object>, Arc<Node>)> {
        self.of_object(id, || self.living_object_now(id))
    }

    /// An object that is not deleted, with its inode's record.
    fn living_object_now(&self, id: ObjectId) -> Result<(Arc<Organization>, Arc<Object>, Arc<Node>)> {
        let (organization, object) = self.object(id)?;
        let node = self.living_node(&organization, &object)?;
        Ok((organization, object, node))
    }

    fn living_node(&self, organization: &Organization, object: &Object) -> Result<Arc<Node>> {
        let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
        if node.grave.is_some() || organization.record.lock().deleted {
            return Err(Error::Absent("deleted; `vaultfs tombstone restore` brings it back"));
        }
        Ok(node)
    }

    /// An object that is not deleted, with its place.
    pub(super) fn place_of(&self, id: ObjectId) -> Result<Placed> {
        self.of_object(id, || self.place_now(id))
    }

    /// As [`Self::place_of`], for who keeps others from changing anything meanwhile.
    pub(super) fn place_now(&self, id: ObjectId) -> Result<Placed> {
        let (_, object, node) = self.living_object_now(id)?;
        let place = self.home(object.ino, &node)?;
        Ok((object, place))
    }

    pub fn describe(&self, id: ObjectId) -> Result<ObjectInfo> {
        self.of_object(id, || {
            let (organization, object) = self.object(id)?;
            self.info(&organization, id, &object)
        })
    }

    /// What is known of an object that is not deleted, in one look.
    pub(super) fn info(&self, organization: &Organization, id: ObjectId, object: &Object) -> Result<ObjectInfo> {
        let node = self.living_node(organization, object)?;
        let (folder, name) = self.home(object.ino, &node)?;
        let path = self.path_in(folder, &name)?;
        let content = self.records.get::<ContentRecord>(object.ino)?;
        Ok(Self::object_info(organization, id, object, (&node, &path), content.as_deref()))
    }

    /// What is known of an object, also of one that is deleted: then under the name that it had.
    pub fn recall(&self, id: ObjectId) -> Result<ObjectInfo> {
        self.of_object(id, || {
            let (organization, object) = self.object(id)?;
            let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
            let path = match node.grave {
                Some(number) => {
                    let grave = self.records.get::<Tombstone>((organization.no, number))?.ok_or(Error::NotFound)?;
                    grave.original_path.clone()
                }
                None => {
                    let (folder, name) = self.home(object.ino, &node)?;
                    self.path_in(folder, &name)?
                }
            };
            let content = self.records.get::<ContentRecord>(object.ino)?;
            Ok(Self::object_info(&organization, id, &object, (&node, &path), content.as_deref()))
        })
    }

    pub(super) fn object_info(
        organization: &Organization,
        id: ObjectId,
        object: &Object,
        (node, path): (&Node, &[u8]),
        content: Option<&ContentRecord>,
    ) -> ObjectInfo {
        let current = object.current();
        ObjectInfo {
            id: id.to_string(),
            organization: organization.name(),
            organization_id: organization.id.to_string(),
            path: String::from_utf8_lossy(path).into_owned(),
            size: node.size,
            version: current.map_or(0, |v| v.ordinal),
            version_id: current.map(|v| v.id.to_string()),
            versions: object.versions.len() as u64,
            context: object.context.iter().cloned().collect(),
            key_id: super::attributes::key_id(organization, content),
            cipher: super::attributes::CIPHER.to_owned(),
            created_at: object.created.rfc3339(),
            updated_at: current.map_or(object.created, |v| v.at).rfc3339(),
            updated_by: current.map_or(&object.created_by, |v| &v.by).info(),
        }
    }

    /// A name that leads to a file: the one it got last, or else any.
    pub(super) fn home(&self, ino: Ino, node: &Node) -> Result<(Ino, Vec<u8>)> {
        if let Kind::File { parent, name, .. } = &node.kind
            && self.find_entry(*parent, name)?.is_some_and(|entry| entry.ino == ino)
        {
            return Ok((*parent, name.clone()));
        }
        let mut folders = vec![Ino::top_of(ino.organization())];
        while let Some(folder) = folders.pop() {
            let mut found = None;
            self.read_directory(&Caller::daemon(), folder, 0, &mut |entry| {
                if entry.kind == libc::S_IFDIR {
                    folders.push(entry.ino);
                }
                if entry.ino == ino {
                    found = Some(entry.name);
                }
                found.is_none()
            })?;
            if let Some(name) = found {
                return Ok((folder, name));
            }
        }
        Err(Error::NotFound)
    }

    /// An object's versions, newest first.
    pub fn versions(&self, id: ObjectId) -> Result<Vec<VersionInfo>> {
        let (_, object, _) = self.living_object(id)?;
        let current = object.current().map(|v| v.id);
        let info = |v: &Version| VersionInfo {
            id: v.id.to_string(),
            version: v.ordinal,
            size: v.size,
            created_at: v.at.rfc3339(),
            created_by: v.by.to_string(),
            current: Some(v.id) == current,
        };
        Ok(object.versions.iter().rev().map(info).collect())
    }

    /// Streams a committed value, the current one or that of an ordinal, in parts of at most 1 MiB.
    pub fn read_object(
        &self,
        id: ObjectId,
        version: Option<u64>,
        out: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let (organization, object, _) = self.living_object(id)?;
        if version.is_none() && object.versions.is_empty() {
            return Ok(());
        }
        let reading = self.begin_reading(organization.no, id, |object| match version {
            None => object.current(),
            Some(ordinal) => object.version(ordinal),
        })?;
        self.read_value(&reading, &mut |_, part| out(part).map_err(|_| Error::Invalid("the reader went away")))
    }

    pub fn delete_object(&self, caller: &Caller, id: ObjectId, if_version: Option<&str>) -> Result<()> {
        self.living_object(id)?;
        let (folder, name) = self.across_contexts(caller, |rewraps| {
            let tx = self.begin()?;
            // Where it is now, and at which version: nobody can change either before it is gone.
            let (object, (folder, name)) = self.place_now(id)?;
            if let Some(wanted) = if_version {
                self.check_version(Some(&object), wanted)?;
            }
            self.unlink_in(tx, caller, rewraps, folder, &name)?;
            Ok((folder, name))
        })?;
        self.name_changed(folder, &name);
        self.sync()
    }

    /// Tombstones of one organization or of all, deleted organizations among them, oldest first.
    pub fn tombstones(&self, organization: Option<&str>) -> Result<Vec<TombstoneInfo>> {
        let numbers: Vec<OrgNo> = match organization {
            Some(which) => vec![self.number_of(which)?],
            None => self.organizations.all().iter().map(|o| o.no).chain([OrgNo::VAULT]).collect(),
        };
        let mut all = Vec::new();
        for org in numbers {
            match self.enter(Ino::graveyard_of(org), Patience::Wait) {
                // Of all organizations, those that can be seen.
                Err(Error::Locked) if organization.is_none() => continue,
                entered => entered?,
            }
            for (_, grave) in self.graves(org, 0, usize::MAX)? {
                all.push(self.tombstone_info(&grave)?);
            }
        }
        Ok(all)
    }

    fn tombstone_info(&self, grave: &Tombstone) -> Result<TombstoneInfo> {
        let organization = self.organizations.find(grave.ino.organization()).ok_or(Error::NotFound)?;
        let node = self.records.get::<Node>(grave.ino)?.ok_or(Error::NotFound)?;
        Ok(TombstoneInfo {
            id: node.object().map_or_else(|| organization.id.to_string(), |id| id.to_string()),
            organization: organization.name(),
            entry: String::from_utf8_lossy(&grave.name).into_owned(),
            original_path: String::from_utf8_lossy(&grave.original_path).into_owned(),
            size: node.size,
            deleted_at: grave.deleted.rfc3339(),
            deleted_by: grave.deleted_by.to_string(),
            purge_after: self.purge_after(grave).rfc3339(),
        })
    }

    /// The tombstone of an object's id, an organization's id, or `ORG/ENTRY`.
    fn find_tombstone(&self, which: &[u8]) -> Result<(OrgNo, u64)> {
        let text = std::str::from_utf8(which).unwrap_or_default();
        if let Ok(id) = text.parse::<ObjectId>() {
            let (organization, object) = self.object(id)?;
            let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
            return Ok((organization.no, node.grave.ok_or(Error::NotFound)?));
        }
        if let Some(slash) = which.iter().position(|b| *b == b'/') {
            let org = self.graveyard_named(&which[..slash])?.0.organization();
            self.enter(Ino::graveyard_of(org), Patience::Wait)?;
            return Ok((org, self.find_grave(org, &which[slash + 1..])?.0));
        }
        if text.starts_with("org_") {
            let top = Ino::top_of(self.number_of(text)?);
            let node = self.records.get::<Node>(top)?.ok_or(Error::NotFound)?;
            return Ok((OrgNo::VAULT, node.grave.ok_or(Error::NotFound)?));
        }
        Ok((OrgNo::VAULT, self.find_grave(OrgNo::VAULT, which)?.0))
    }

    /// The organization that a tombstone is in, or is of.
    pub fn organization_of_tombstone(&self, which: &[u8]) -> Result<super::OrgId> {
        let (org, number) = self.find_tombstone(which)?;
        let grave = self.records.get::<Tombstone>((org, number))?.ok_or(Error::NotFound)?;
        Ok(self.organizations.find(grave.ino.organization()).ok_or(Error::NotFound)?.id)
    }

    /// Back to its original path, or to another inside the same organization; an organization to its name or another.
    pub fn restore(&self, caller: &Caller, which: &[u8], to: Option<&[u8]>) -> Result<Restored> {
        let (org, number) = self.find_tombstone(which)?;
        let grave = self.records.get::<Tombstone>((org, number))?.ok_or(Error::NotFound)?;
        let path = to.unwrap_or(&grave.original_path);
        if org == OrgNo::VAULT {
            self.restore_organization(caller, number, path)?;
            self.name_changed(Ino::ROOT, path);
            self.sync()?;
            let organization = self.living(grave.ino.organization())?;
            return Ok(Restored::Organization(self.organization_info(&organization)));
        }
        let organization = self.living(org)?;
        let full = [organization.id.to_string().as_bytes(), b"/", path].concat();
        let (folder, name) = self.walk(caller, &full, true)?;
        let node = self.records.get::<Node>(grave.ino)?.ok_or(Error::NotFound)?;
        let id = node.object().ok_or(Error::NotFound)?;
        self.restore_grave(caller, org, number, (folder, &name))?;
        self.name_changed(folder, &name);
        self.sync()?;
        self.describe(id).map(Restored::Object)
    }

    /// Ends a tombstone: its wrapped key is destroyed, then its bytes; a deleted organization with the tombstones in it.
    pub fn purge(&self, caller: &Caller, which: &[u8]) -> Result<()> {
        let (org, number) = self.find_tombstone(which)?;
        if org == OrgNo::VAULT {
            let grave = self.records.get::<Tombstone>((org, number))?.ok_or(Error::NotFound)?;
            let organization = self.organizations.find(grave.ino.organization()).ok_or(Error::NotFound)?;
            self.end_organization(caller, &organization)?;
        } else {
            self.purge_grave(caller, org, number)?;
        }
        self.sync()
    }

    /// An authentication that failed or was refused, for the audit log.
    pub fn denied(&self, caller: &Caller, detail: &str) {
        self.audit(AuditEvent { detail: Some(detail.to_owned()), ..AuditEvent::by(caller, "access.denied") });
    }
}
