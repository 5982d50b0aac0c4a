//! Objects by id and by path, for commands and services: list, describe, read, put, delete, restore.

use super::error::{Error, Result};
use super::file::OpenFile;
use super::ids::{Ino, ObjectId, OrgNo, VersionId};
use super::organization::Organization;
use super::row::{Attributes, ContentRecord, Entry, Kind, Node, Object, Pending, Record, Task, Tombstone, Version};
use super::time::Time;
use super::{Access, AuditEvent, Caller, Handle, Make, Vault};
use super::{ObjectInfo, OrganizationInfo, Restored, TombstoneInfo, VersionInfo};
use crate::keys::Patience;
use std::sync::Arc;

const PART: usize = 1 << 20;

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
        let owner = owner.unwrap_or((caller.uid, caller.gid));
        let (_, organization) = self.make_organization(caller, name.as_bytes(), mode.unwrap_or(0o700), owner)?;
        self.name_changed(Ino::ROOT, name.as_bytes());
        Ok(self.organization_info(&organization))
    }

    pub fn delete_organization(&self, caller: &Caller, which: &str) -> Result<()> {
        let name = self.living(self.number_of(which)?)?.name();
        self.bury_organization(caller, name.as_bytes())?;
        self.name_changed(Ino::ROOT, name.as_bytes());
        self.sync()
    }

    fn organization_info(&self, organization: &Organization) -> OrganizationInfo {
        let key_state = self.key_state(organization).to_owned();
        let record = organization.record.lock();
        OrganizationInfo {
            id: record.id.to_string(),
            name: record.name.clone(),
            created_at: record.created.rfc3339(),
            key_id: record.kek.to_string(),
            key_state,
            objects: record.objects,
            bytes: record.bytes,
            tombstones: record.tombstones,
        }
    }

    /// `ORG/PATH`, the organization by name or id, or an object's id.
    pub fn find_object(&self, reference: &[u8]) -> Result<ObjectId> {
        if let Some(id) = std::str::from_utf8(reference).ok().and_then(|text| text.parse().ok()) {
            self.object(id)?;
            return Ok(id);
        }
        let (folder, name) = self.walk(&Caller::daemon(), reference, false)?;
        let entry = self.find_entry(folder, &name)?.ok_or(Error::NotFound)?;
        let node = self.records.get::<Node>(entry.ino)?.ok_or(Error::NotFound)?;
        match node.kind {
            Kind::File { object, .. } => Ok(object),
            Kind::Directory { .. } => Err(Error::IsADirectory),
            _ => Err(Error::Invalid("not an object: only regular files are")),
        }
    }

    /// The folder that a path's last name stands in, and that name; missing folders are made if told so.
    fn walk(&self, caller: &Caller, reference: &[u8], make: bool) -> Result<(Ino, Vec<u8>)> {
        let mut parts = reference.split(|b| *b == b'/');
        let organization = parts.next().and_then(|p| std::str::from_utf8(p).ok()).ok_or(Error::NotFound)?;
        let organization = self.living(self.number_of(organization)?)?;
        let mut folder = Ino::top_of(organization.no);
        self.enter(Ino::graveyard_of(organization.no), Patience::Wait)?;
        let names: Vec<&[u8]> = parts.collect();
        let (name, folders) = names.split_last().ok_or(Error::Invalid("an object is named as ORG/PATH"))?;
        for part in folders {
            self.check_name(folder, part)?;
            folder = match self.find_entry(folder, part)? {
                Some(entry) if entry.kind == libc::S_IFDIR => entry.ino,
                Some(_) => return Err(Error::NotADirectory),
                None if make => {
                    let made = self.make(caller, folder, part, 0o755, Make::Directory)?;
                    self.name_changed(folder, part);
                    made.ino
                }
                None => return Err(Error::NotFound),
            };
        }
        self.check_name(folder, name)?;
        Ok((folder, name.to_vec()))
    }

    /// An object and the organization that it is in.
    fn object(&self, id: ObjectId) -> Result<(Arc<Organization>, Arc<Object>)> {
        let org = self.records.claimed_organization(Object::at((OrgNo::VAULT, id)))?.ok_or(Error::NotFound)?;
        self.enter(Ino::graveyard_of(org), Patience::Wait)?;
        let object = self.records.get::<Object>((org, id))?.ok_or(Error::NotFound)?;
        Ok((self.organizations.find(org).ok_or(Error::NotFound)?, object))
    }

    /// An object that is not deleted, with its inode's record.
    fn living_object(&self, id: ObjectId) -> Result<(Arc<Organization>, Arc<Object>, Arc<Node>)> {
        let (organization, object) = self.object(id)?;
        let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
        if node.grave.is_some() || organization.record.lock().deleted {
            return Err(Error::Absent("deleted; `vaultfs tombstone restore` brings it back"));
        }
        Ok((organization, object, node))
    }

    /// Objects below a folder (`""`: the whole organization) in the order of their ids, from the one after `after` on.
    pub fn list_objects(
        &self,
        organization: &str,
        prefix: &[u8],
        after: Option<ObjectId>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>> {
        let organization = self.living(self.number_of(organization)?)?;
        self.enter(Ino::graveyard_of(organization.no), Patience::Wait)?;
        let like = Object::at((organization.no, ObjectId(0)));
        let start = after.map_or(0, |id| id.0.saturating_add(1));
        let mut next = Some(Object::at((organization.no, ObjectId(start))).key);
        let end = crate::store::Key::from(&[0xFF; 17][..]);
        let mut found = Vec::new();
        while let Some(from) = next.filter(|_| found.len() < limit) {
            let part = self.records.scan::<Object>(like, from, end, 1000)?;
            for (key, object) in &part.rows {
                let id = ObjectId(u128::from_be_bytes((**key).try_into().expect("keys of objects are ids")));
                match self.object_info(&organization, id, object) {
                    Ok(info) if below(&info.path, prefix) => found.push(info),
                    // Deleted, or deleted since.
                    Ok(_) | Err(Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            next = part.next;
        }
        found.truncate(limit);
        Ok(found)
    }

    pub fn describe(&self, id: ObjectId) -> Result<ObjectInfo> {
        let (organization, object, _) = self.living_object(id)?;
        self.object_info(&organization, id, &object)
    }

    fn object_info(&self, organization: &Organization, id: ObjectId, object: &Object) -> Result<ObjectInfo> {
        let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
        if node.grave.is_some() {
            return Err(Error::NotFound);
        }
        let (folder, name) = self.home(object.ino, &node)?;
        let path = self.path_of(&self.records.begin(), folder, &name)?;
        let content = self.records.get::<ContentRecord>(object.ino)?;
        let kek = content.and_then(|c| c.wrapped.layers.first().map(|l| l.kek)).unwrap_or_else(|| organization.kek());
        let current = object.current();
        Ok(ObjectInfo {
            id: id.to_string(),
            organization: organization.name(),
            organization_id: organization.id.to_string(),
            path: String::from_utf8_lossy(&path).into_owned(),
            size: node.size,
            version: current.map_or(0, |v| v.ordinal),
            version_id: current.map(|v| v.id.to_string()),
            versions: object.versions.len() as u64,
            context: object.context.iter().cloned().collect(),
            key_id: kek.to_string(),
            cipher: super::attributes::CIPHER.to_owned(),
            created_at: object.created.rfc3339(),
            updated_at: current.map_or(object.created, |v| v.at).rfc3339(),
            updated_by: current.map_or(&object.created_by, |v| &v.by).to_string(),
        })
    }

    /// A name that leads to a file: the one it got last, or else any.
    fn home(&self, ino: Ino, node: &Node) -> Result<(Ino, Vec<u8>)> {
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
        let (_, object, _) = self.living_object(id)?;
        let version = match version {
            None => object.current(),
            Some(ordinal) => Some(
                object
                    .versions
                    .iter()
                    .find(|v| v.ordinal == ordinal)
                    .ok_or(Error::Absent("no such version is kept"))?,
            ),
        };
        let Some(version) = version else { return Ok(()) };
        self.read_value(version, &mut |_, part| out(part).map_err(|_| Error::Invalid("the reader went away")))
    }

    /// Gives a committed value in parts, each with its offset.
    pub(super) fn read_value(&self, version: &Version, out: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.settle()?;
        let content = self.contents.get(version.content);
        let mut offset = 0;
        while offset < version.size {
            let mut part = vec![0; (version.size - offset).min(PART as u64) as usize];
            {
                // The writer thread frees nothing while this part is looked up and read.
                let _state = content.state.read();
                let pieces = self.pieces_of(version)?;
                self.read_version(&content, version, &pieces, offset, &mut part)?;
            }
            out(offset, &part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Gives `ORG/PATH` or an id the value that `input` holds, as a new content; folders are made as needed.
    /// Durable when it returns. `if_version`: the id or ordinal that must be current.
    pub fn put_object(
        &self,
        caller: &Caller,
        reference: &[u8],
        if_version: Option<&str>,
        input: &mut dyn std::io::Read,
    ) -> Result<ObjectInfo> {
        let (folder, name) = match std::str::from_utf8(reference).ok().and_then(|t| t.parse::<ObjectId>().ok()) {
            Some(id) => {
                let (_, object, node) = self.living_object(id)?;
                self.home(object.ino, &node)?
            }
            None => self.walk(caller, reference, true)?,
        };
        self.check_writable_folder(folder)?;
        // Before the value is read, so that a lost check costs nothing; checked again when it counts.
        self.expected_version(folder, &name, if_version)?;
        let (ino, handle) = self.make_nameless(caller, folder, &name)?;
        let filled = self.fill(caller, handle, input);
        let installed = filled.and_then(|()| self.install(caller, ino, (folder, &name), if_version));
        self.release(handle)?;
        let id = installed?;
        self.name_changed(folder, &name);
        self.sync()?;
        self.describe(id)
    }

    fn fill(&self, caller: &Caller, handle: Handle, input: &mut dyn std::io::Read) -> Result<()> {
        let mut part = zeroize::Zeroizing::new(vec![0; PART]);
        let mut offset = 0;
        loop {
            let mut filled = 0;
            while filled < PART {
                match input.read(&mut part[filled..]) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return Err(Error::Invalid("the value could not be read to its end")),
                }
            }
            if filled > 0 {
                self.write(caller, handle, offset, &part[..filled])?;
                offset += filled as u64;
            }
            if filled < PART {
                return Ok(());
            }
        }
    }

    /// A new open file that has no name yet; after a crash it is gone.
    pub(super) fn make_nameless(&self, caller: &Caller, folder: Ino, name: &[u8]) -> Result<(Ino, Handle)> {
        let mut tx = self.begin()?;
        let parent = self.folder(&tx, folder)?;
        let made = self.inherit(&tx, caller, (folder, &parent), 0o666, false)?;
        let ino = self.next_ino(&mut tx, folder.organization())?;
        let node = Node {
            kind: Kind::File { object: ObjectId::fresh(), parent: folder, name: name.to_vec() },
            mode: made.mode,
            uid: caller.uid,
            gid: if parent.mode & libc::S_ISGID != 0 { parent.gid } else { caller.gid },
            links: 0,
            attributes: made.attributes.is_some(),
            ..Node::new(Time::now())
        };
        tx.put_new(ino, node);
        if let Some(attributes) = made.attributes {
            tx.put_new(ino, attributes);
        }
        tx.put_new((ino, Task::Orphan), Pending { epoch: 0 });
        let access = Access { read: true, write: true, ..Access::default() };
        let content = self.contents.get(ino);
        content.is_new();
        let handle = self.handles.lock().add(OpenFile::nameless(ino, access, content));
        self.finish(tx);
        Ok((ino, handle))
    }

    /// Gives the nameless file its name, over what stands there.
    fn install(&self, caller: &Caller, ino: Ino, at: (Ino, &[u8]), if_version: Option<&str>) -> Result<ObjectId> {
        let expected = self.expected_version(at.0, at.1, if_version)?;
        let org = ino.organization();
        let mut tx = self.begin()?;
        self.folder(&tx, at.0)?;
        let hash = self.check_name(at.0, at.1)?;
        let standing = tx.get::<Entry>((at.0, hash))?;
        let mut node = (*tx.need::<Node>(ino)?).clone();
        let own = node.object().expect("it was made as a file");
        (node.links, node.guard) = (1, expected);
        tx.delete::<Pending>((ino, Task::Orphan));
        tx.put((at.0, hash), Entry { name: at.1.to_vec(), ino, kind: libc::S_IFREG });
        self.touch_folder(&mut tx, at.0, 0, Time::now())?;
        let Some(standing) = standing else {
            let size = node.size;
            tx.put(ino, node);
            self.commit_version(&mut tx, caller, ino, true)?;
            self.count(&mut tx, org, move |org| (org.objects, org.bytes) = (org.objects + 1, org.bytes + size))?;
            self.finish(tx);
            return Ok(own);
        };
        let old = tx.need::<Node>(standing.ino)?;
        let Some(id) = old.object() else {
            return Err(Error::Invalid("something else than an object has this name"));
        };
        if old.links > 1 {
            return Err(Error::NotPermitted("this object has several names: write it through the mount"));
        }
        (node.mode, node.uid, node.gid, node.attributes) = (old.mode, old.uid, old.gid, old.attributes);
        match tx.get::<Attributes>(standing.ino)? {
            Some(attributes) => tx.put(ino, (*attributes).clone()),
            None => tx.delete::<Attributes>(ino),
        }
        let size = node.size;
        tx.put(ino, node);
        // `replace` counts one object and its bytes less.
        self.count(&mut tx, org, move |org| (org.objects, org.bytes) = (org.objects + 1, org.bytes + size))?;
        self.replace(tx, caller, standing.ino, ino, at).map(|()| id)
    }

    /// The version that `if_version` asks for, which must be current.
    fn expected_version(&self, folder: Ino, name: &[u8], if_version: Option<&str>) -> Result<Option<VersionId>> {
        let Some(wanted) = if_version else { return Ok(None) };
        let entry = self.find_entry(folder, name)?.ok_or(Error::NotFound)?;
        let node = self.records.get::<Node>(entry.ino)?.ok_or(Error::NotFound)?;
        let id = node.object().ok_or(Error::Invalid("not an object: only regular files are"))?;
        let object = self.records.get::<Object>((folder.organization(), id))?;
        self.check_version(object.as_deref(), wanted).map(Some)
    }

    fn check_version(&self, object: Option<&Object>, wanted: &str) -> Result<VersionId> {
        let current = object.and_then(|o| o.current());
        let lost = |expected| Error::VersionLost { expected, current: current.map_or(VersionId(0), |v| v.id) };
        let ordinal = wanted.parse::<u64>().ok().filter(|_| wanted.len() < 32);
        let expected: VersionId = match ordinal {
            Some(ordinal) => {
                let known = object.and_then(|o| o.versions.iter().find(|v| v.ordinal == ordinal));
                known.map(|v| v.id).ok_or_else(|| lost(VersionId(0)))?
            }
            None => wanted.parse().map_err(|()| Error::Invalid("not a version id or ordinal"))?,
        };
        if current.map(|v| v.id) == Some(expected) { Ok(expected) } else { Err(lost(expected)) }
    }

    pub fn delete_object(&self, caller: &Caller, id: ObjectId, if_version: Option<&str>) -> Result<()> {
        let (_, object, node) = self.living_object(id)?;
        if let Some(wanted) = if_version {
            self.check_version(Some(&object), wanted)?;
        }
        let (folder, name) = self.home(object.ino, &node)?;
        self.unlink(caller, folder, &name)?;
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
            self.enter(Ino::graveyard_of(org), Patience::Wait)?;
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

    /// Ends a tombstone: its wrapped key is destroyed, then its bytes.
    pub fn purge(&self, caller: &Caller, which: &[u8]) -> Result<()> {
        let (org, number) = self.find_tombstone(which)?;
        if org == OrgNo::VAULT {
            self.purge_organization(caller, number)?;
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

/// Whether a path stands below a folder.
fn below(path: &str, folder: &[u8]) -> bool {
    folder.is_empty()
        || path
            .as_bytes()
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || folder.ends_with(b"/") || rest.starts_with(b"/"))
}
