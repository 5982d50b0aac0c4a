//! Tombstones: deleted objects and organizations until they are purged, and `/vault/.tombstones`, which shows them.

use super::error::{Error, Result};
use super::file::Table as OpenFiles;
use super::ids::{Ino, ObjectId, OrgNo};
use super::organization::Organization;
use super::records::Tx;
use super::row::{Attributes, Buried, ContentRecord, Entry, Kind, Node, Object, Pending, Task, Tombstone};
use super::time::Time;
use super::{Attr, AuditEvent, Caller, Handle, RenameMode, Vault};
use crate::store::Key;
use std::sync::Arc;

/// `NAME~20261123T164100Z~1f3a`; the last part is the tombstone's number. A long name is cut to keep within 255 bytes.
pub fn grave_name(name: &[u8], at: Time, number: u64) -> Vec<u8> {
    let suffix = format!("~{}~{number:04x}", at.compact());
    let kept = name.len().min(255 - suffix.len());
    [&name[..kept], suffix.as_bytes()].concat()
}

fn grave_number(name: &[u8]) -> Option<u64> {
    let digits = name.rsplit(|b| *b == b'~').next()?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

impl Vault {
    /// The object that lost its last name becomes a tombstone.
    pub(super) fn bury(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        id: ObjectId,
        (ino, mut node): (Ino, Node),
        (folder, name): (Ino, &[u8]),
    ) -> Result<()> {
        // Deleting is no commit that a version check could refuse.
        (node.links, node.guard, node.ctime) = (1, None, Time::now());
        tx.put(ino, node);
        // The value at the moment of deletion is a version, also if its writer has not closed yet.
        self.commit_version(tx, caller, ino, true)?;
        self.change(tx, ino, |node| node.links = 0)?;
        let path = self.path_of(tx, folder, name)?;
        self.dig(tx, open, caller, (id, ino), name, path)
    }

    /// A replaced file's own history stays behind as a tombstone, with an inode of its own.
    pub(super) fn bury_history(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        id: ObjectId,
        mut object: Object,
        node: &Node,
    ) -> Result<()> {
        let org = object.ino.organization();
        let ino = self.next_ino(tx, org)?;
        let size = object.current().map_or(0, |v| v.size);
        let name = id.to_string().into_bytes();
        let kind = Kind::File { object: id, parent: Ino::top_of(org), name: name.clone() };
        tx.put_new(ino, Node { kind, links: 0, size, attributes: false, guard: None, ..node.clone() });
        object.ino = ino;
        tx.put((org, id), object);
        self.dig(tx, open, caller, (id, ino), &name, name.clone())
    }

    fn dig(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        (id, ino): (ObjectId, Ino),
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<()> {
        let (org, now) = (ino.organization(), Time::now());
        let number = self.number(tx, org, |record| {
            record.next_grave += 1;
            record.next_grave - 1
        })?;
        // A replaced file's history has no content of its own: its value is in the content of the file that went on.
        let held = match tx.get::<ContentRecord>(ino)? {
            Some(_) => tx.need::<Node>(ino)?.stored,
            None => 0,
        };
        self.count(tx, org, move |record| {
            record.tombstones += 1;
            record.held += held;
        })?;
        self.change(tx, ino, |node| node.grave = Some(number))?;
        let hash = self.records.name_hash(Ino::graveyard_of(org), &path)?;
        tx.put_new(
            (org, number),
            Tombstone {
                ino,
                name: grave_name(name, now, number),
                original_path: path,
                deleted: now,
                deleted_by: caller.author(),
                held,
            },
        );
        let mut buried = tx.get::<Buried>((org, hash))?.map_or_else(Buried::default, |b| (*b).clone());
        buried.0.push(number);
        while buried.0.len() > self.settings.tombstones_per_name {
            let oldest = buried.0.remove(0);
            self.purge_in(tx, open, caller, org, oldest)?;
        }
        tx.put((org, hash), buried);
        self.audit_object(tx, caller, "object.deleted", org, id);
        Ok(())
    }

    /// Ends a tombstone inside a transaction. The path's list of tombstones is the caller's affair.
    fn purge_in(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        org: OrgNo,
        number: u64,
    ) -> Result<Option<Arc<Tombstone>>> {
        let Some(grave) = tx.get::<Tombstone>((org, number))? else { return Ok(None) };
        let node = tx.need::<Node>(grave.ino)?;
        let id = node.object().ok_or(Error::Invalid("a tombstone holds an object"))?;
        tx.delete::<Tombstone>((org, number));
        if open.is_open(grave.ino) {
            // Its bytes go with the last handle.
            let orphan = Node { grave: None, ..(*node).clone() };
            self.remove_node(tx, grave.ino, &orphan, true)?;
        } else {
            tx.delete::<Node>(grave.ino);
            tx.delete::<Attributes>(grave.ino);
        }
        if let Some(object) = tx.get::<Object>((org, id))? {
            tx.delete::<Object>((org, id));
            for version in &object.versions {
                self.disown(tx, version.content, id)?;
            }
        }
        let held = grave.held;
        self.count(tx, org, move |record| {
            record.tombstones = record.tombstones.saturating_sub(1);
            record.held = record.held.saturating_sub(held);
        })?;
        self.audit_object(tx, caller, "object.purged", org, id);
        Ok(Some(grave))
    }

    /// Ends a tombstone: its wrapped key is destroyed, then its bytes.
    pub(super) fn purge_grave(&self, caller: &Caller, org: OrgNo, number: u64) -> Result<()> {
        self.enter(Ino::graveyard_of(org), caller.patience)?;
        let mut tx = self.begin()?;
        let open = self.handles.lock();
        let grave = self.purge_in(&mut tx, &open, caller, org, number)?.ok_or(Error::NotFound)?;
        self.forget_grave(&mut tx, org, number, &grave)?;
        self.signals.scrub_now();
        self.finish(tx);
        Ok(())
    }

    fn forget_grave(&self, tx: &mut Tx, org: OrgNo, number: u64, grave: &Tombstone) -> Result<()> {
        let hash = self.records.name_hash(Ino::graveyard_of(org), &grave.original_path)?;
        if let Some(buried) = tx.get::<Buried>((org, hash))? {
            let left: Vec<u64> = buried.0.iter().copied().filter(|n| *n != number).collect();
            if left.is_empty() { tx.delete::<Buried>((org, hash)) } else { tx.put((org, hash), Buried(left)) }
        }
        Ok(())
    }

    /// Gives a tombstone its name back: same id, same history.
    pub(super) fn restore_grave(&self, caller: &Caller, org: OrgNo, number: u64, to: (Ino, &[u8])) -> Result<()> {
        self.check_writable_folder(to.0)?;
        self.enter(to.0, caller.patience)?;
        let buried = self.records.get::<Tombstone>((org, number))?.ok_or(Error::NotFound)?.ino;
        let copy = self.copy_history(caller, buried, to)?;
        let restored = self.restore_as(caller, org, number, to, copy.map(|(ino, _)| ino));
        if let Some((_, handle)) = copy {
            // Without a name it ends here.
            self.release(handle)?;
        }
        restored
    }

    /// The value of a replaced file's history is in the content of the file that went on: a restored one needs
    /// a copy of its own. A file without a name, until the restoring transaction gives it one.
    fn copy_history(&self, caller: &Caller, buried: Ino, to: (Ino, &[u8])) -> Result<Option<(Ino, Handle)>> {
        let node = self.records.get::<Node>(buried)?.ok_or(Error::NotFound)?;
        let id = node.object().ok_or(Error::Invalid("a tombstone holds an object"))?;
        let object = self.records.get::<Object>((buried.organization(), id))?.ok_or(Error::NotFound)?;
        if object.current().is_none_or(|v| v.content == buried) {
            return Ok(None);
        }
        let value = self.begin_reading(buried.organization(), id, Object::current)?;
        let (ino, handle) = self.make_nameless(caller, to.0, to.1, object.context.clone())?;
        let copied = self.read_value(&value, &mut |at, part| self.write(caller, handle, at, part));
        match copied {
            Ok(()) => Ok(Some((ino, handle))),
            Err(error) => {
                self.release(handle)?;
                Err(error)
            }
        }
    }

    /// `copy`: the inode that takes the buried one's place.
    fn restore_as(&self, caller: &Caller, org: OrgNo, number: u64, to: (Ino, &[u8]), copy: Option<Ino>) -> Result<()> {
        let mut tx = self.begin()?;
        let grave = tx.need::<Tombstone>((org, number))?;
        let hash = self.check_name(to.0, to.1)?;
        self.folder(&tx, to.0)?;
        if tx.get::<Entry>((to.0, hash))?.is_some() {
            return Err(Error::Exists);
        }
        let now = Time::now();
        let node = tx.need::<Node>(grave.ino)?;
        let id = node.object().ok_or(Error::Invalid("a tombstone holds an object"))?;
        tx.delete::<Tombstone>((org, number));
        self.forget_grave(&mut tx, org, number, &grave)?;
        let ino = copy.unwrap_or(grave.ino);
        tx.put((to.0, hash), Entry { name: to.1.to_vec(), ino, kind: libc::S_IFREG });
        let kind = Kind::File { object: id, parent: to.0, name: to.1.to_vec() };
        let restored = Node { kind, links: 1, grave: None, ctime: now, ..(*node).clone() };
        match copy {
            None => tx.put(ino, restored),
            Some(copy) => self.move_history(&mut tx, id, grave.ino, copy, restored)?,
        }
        self.touch_folder(&mut tx, to.0, 0, now)?;
        let (size, held) = (node.size, grave.held);
        self.count(&mut tx, org, move |record| {
            record.tombstones = record.tombstones.saturating_sub(1);
            record.held = record.held.saturating_sub(held);
        })?;
        self.count_one(&mut tx, org, size)?;
        self.audit_object(&mut tx, caller, "object.restored", org, id);
        self.finish(tx);
        self.known_as_file(grave.ino);
        Ok(())
    }

    /// The history's last version is from now on in the content of the file that holds its copy.
    fn move_history(&self, tx: &mut Tx, id: ObjectId, buried: Ino, copy: Ino, node: Node) -> Result<()> {
        let org = copy.organization();
        let held = tx.need::<Node>(copy)?;
        let mut object = (*tx.need::<Object>((org, id))?).clone();
        let last = object.versions.last_mut().ok_or(Error::NotFound)?;
        let source = std::mem::replace(&mut last.content, copy);
        (last.epoch, object.ino) = (held.epoch, copy);
        tx.put(copy, Node { epoch: held.epoch + 1, changed: false, stored: held.stored, ..node });
        tx.delete::<Pending>((copy, Task::Orphan));
        tx.delete::<Pending>((copy, Task::Commit));
        tx.delete::<Node>(buried);
        if let Some(record) = tx.get::<ContentRecord>(copy)? {
            tx.put(copy, ContentRecord { owners: vec![id], ..(*record).clone() });
        }
        let named = object.versions.iter().any(|v| v.content == source);
        tx.put((org, id), object);
        if named { Ok(()) } else { self.disown(tx, source, id) }
    }

    /// Tells the audit log of it, once it is so.
    fn audit_object(&self, tx: &mut Tx, caller: &Caller, event: &'static str, org: OrgNo, id: ObjectId) {
        let event = AuditEvent {
            organization: self.organizations.find(org).map(|o| o.id.to_string()),
            object: Some(id.to_string()),
            ..AuditEvent::by(caller, event)
        };
        let audited = self.audited.clone();
        tx.afterwards(move || audited.tell(&event));
    }

    /// The path of a name inside its organization.
    pub(super) fn path_of(&self, tx: &Tx, folder: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Self::path_by(|ino| tx.need::<Node>(ino), folder, name)
    }

    /// As [`Self::path_of`], outside of a transaction.
    pub(super) fn path_in(&self, folder: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Self::path_by(|ino| self.records.get::<Node>(ino)?.ok_or(Error::NotFound), folder, name)
    }

    fn path_by(node: impl Fn(Ino) -> Result<Arc<Node>>, mut folder: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut parts = vec![name.to_vec()];
        while !folder.is_top() {
            let Kind::Directory { parent, name } = node(folder)?.kind.clone() else {
                return Err(Error::NotADirectory);
            };
            parts.push(name);
            folder = parent;
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    // --- `.tombstones` as a directory ---

    pub(super) fn graveyard_attr(&self, ino: Ino) -> Result<Attr> {
        let org = ino.organization();
        let since = match org {
            OrgNo::VAULT => self.records.get::<Node>(Ino::ROOT)?.ok_or(Error::NotFound)?.born,
            _ => self.organizations.find(org).ok_or(Error::NotFound)?.record.lock().created,
        };
        let node = Node {
            kind: Kind::Directory { parent: Ino::ROOT, name: Vec::new() },
            mode: 0o700,
            uid: self.owner.0,
            gid: self.owner.1,
            links: 2,
            size: 4096,
            ..Node::new(since)
        };
        Ok(Attr::of(ino, &node))
    }

    pub(super) fn lookup_grave(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if parent == Ino::GRAVEYARD {
            return self.graveyard_attr(self.graveyard_named(name)?.0);
        }
        self.enter(parent, caller.patience)?;
        let (_, grave) = self.find_grave(parent.organization(), name)?;
        self.known_as_tombstone(grave.ino);
        self.attr(caller, grave.ino)
    }

    /// The graveyard directory of an organization by its name, or of a deleted one by its tombstone's.
    pub(super) fn graveyard_named(&self, name: &[u8]) -> Result<(Ino, Option<u64>)> {
        if let Some(entry) = self.find_entry(Ino::ROOT, name)? {
            return Ok((Ino::graveyard_of(entry.ino.organization()), None));
        }
        let (number, grave) = self.find_grave(OrgNo::VAULT, name)?;
        Ok((Ino::graveyard_of(grave.ino.organization()), Some(number)))
    }

    pub(super) fn find_grave(&self, org: OrgNo, name: &[u8]) -> Result<(u64, Arc<Tombstone>)> {
        let number = grave_number(name).ok_or(Error::NotFound)?;
        let grave = self.records.get::<Tombstone>((org, number))?.filter(|g| g.name == name);
        Ok((number, grave.ok_or(Error::NotFound)?))
    }

    /// Tombstones of one organization (or the deleted organizations), oldest first, from number `from` on.
    pub(super) fn graves(&self, org: OrgNo, from: u64, limit: usize) -> Result<Vec<(u64, Arc<Tombstone>)>> {
        use super::row::Record;
        let key = |n: u64| Tombstone::at((org, n)).key;
        let mut found = Vec::new();
        let mut next = Some(key(from));
        while let Some(start) = next.filter(|_| found.len() < limit) {
            let part =
                self.records.scan::<Tombstone>(Tombstone::at((org, 0)), start, key(u64::MAX), limit.min(1000))?;
            let number =
                |key: &Key| u64::from_be_bytes(key[4..12].try_into().expect("keys of tombstones end in a number"));
            found.extend(part.rows.into_iter().map(|(key, row)| (number(&key), row)));
            next = part.next;
        }
        found.truncate(limit);
        Ok(found)
    }

    /// `mv /vault/.tombstones/… /vault/…`
    pub(super) fn restore_by_rename(
        &self,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        if mode == RenameMode::Exchange || mode.leaves_whiteout() || to.0.is_graveyard() {
            return Err(Error::ReadOnly("tombstones can be restored or purged, nothing else"));
        }
        if from.0 == Ino::GRAVEYARD {
            let (_, number) = self.graveyard_named(from.1)?;
            let number = number.ok_or(Error::NotPermitted("this organization is not deleted"))?;
            return match to.0 {
                Ino::ROOT => self.restore_organization(caller, number, to.1),
                _ => Err(Error::NotPermitted("an organization is restored into the vault's root")),
            };
        }
        let org = from.0.organization();
        if to.0 == Ino::ROOT {
            return Err(Error::NotPermitted("an object is restored into its organization"));
        }
        if to.0.organization() != org {
            return Err(Error::OtherOrganization);
        }
        self.enter(from.0, caller.patience)?;
        let (number, _) = self.find_grave(org, from.1)?;
        self.restore_grave(caller, org, number, to)
    }

    /// `rm /vault/.tombstones/ORG/ENTRY`
    pub(super) fn purge_entry(&self, caller: &Caller, graveyard: Ino, name: &[u8]) -> Result<()> {
        if graveyard == Ino::GRAVEYARD {
            self.graveyard_named(name)?;
            return Err(Error::IsADirectory);
        }
        self.enter(graveyard, caller.patience)?;
        let org = graveyard.organization();
        let (number, _) = self.find_grave(org, name)?;
        self.purge_grave(caller, org, number)
    }

    /// `rmdir /vault/.tombstones/ORG~…`
    pub(super) fn purge_organization_entry(&self, caller: &Caller, name: &[u8]) -> Result<()> {
        match self.graveyard_named(name)? {
            (_, Some(number)) => self.purge_organization(caller, number),
            (_, None) => Err(Error::NotPermitted("this organization is not deleted")),
        }
    }

    /// The tombstone's record of a deleted object's inode.
    pub(super) fn grave_of(&self, ino: Ino, node: &Node) -> Result<Option<Arc<Tombstone>>> {
        match node.grave {
            Some(number) if ino.is_top() => self.records.get((OrgNo::VAULT, number)),
            Some(number) => self.records.get((ino.organization(), number)),
            None => Ok(None),
        }
    }

    pub(super) fn purge_after(&self, grave: &Tombstone) -> Time {
        grave.deleted + self.settings.tombstone_retention
    }

    /// Names of an organization's graveyard in `.tombstones`.
    pub(super) fn graveyard_name(&self, organization: &Organization) -> Result<Vec<u8>> {
        let deleted = organization.record.lock().deleted;
        if deleted {
            let node = self.records.get::<Node>(Ino::top_of(organization.no))?.ok_or(Error::NotFound)?;
            if let Some(grave) = self.grave_of(Ino::top_of(organization.no), &node)? {
                return Ok(grave.name.clone());
            }
        }
        Ok(organization.name().into_bytes())
    }
}
