//! Objects and their versions: committing a value, replacing one by a save, and the version check.

use super::context::Rewraps;
use super::error::{Error, Result};
use super::file::Table as OpenFiles;
use super::ids::{Ino, ObjectId, OrgNo, VersionId};
use super::records::Tx;
use super::row::{ContentRecord, Entry, Kind, Node, Object, Pending, Record, Task, Version};
use super::time::Time;
use super::{AuditEvent, Caller, Changed, Vault};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Within this time a new file takes over the id of the one that was moved away from its name and then removed.
const TUNNEL_TIME: Duration = Duration::from_secs(15);
const TUNNELS_MAX: usize = 4096;
/// Versions of one object, however long they are to be kept: they stand in one record.
const VERSIONS_MAX: usize = 1000;

/// Names that objects were moved away from a moment ago, by the object's inode.
#[derive(Default)]
pub struct Tunnels(Mutex<HashMap<Ino, Tunnel>>);

/// The folder and the name that an object had until this instant.
type Tunnel = ((Ino, Vec<u8>), Instant);

impl Tunnels {
    fn remember(&self, object: Ino, name: (Ino, Vec<u8>)) {
        let mut tunnels = self.0.lock();
        if tunnels.len() >= TUNNELS_MAX {
            tunnels.retain(|_, (_, since)| since.elapsed() < TUNNEL_TIME);
        }
        if tunnels.len() < TUNNELS_MAX {
            tunnels.insert(object, (name, Instant::now()));
        }
    }

    fn find(&self, object: Ino) -> Option<(Ino, Vec<u8>)> {
        let (name, since) = self.0.lock().get(&object)?.clone();
        (since.elapsed() < TUNNEL_TIME).then_some(name)
    }

    fn forget(&self, object: Ino) {
        self.0.lock().remove(&object);
    }
}

impl Vault {
    /// Commits the current value as a version, if it changed since the last one. A guard that does not hold
    /// is `VersionLost`, and nothing changes.
    pub(super) fn commit_version(&self, tx: &mut Tx, caller: &Caller, ino: Ino, created: bool) -> Result<()> {
        let mut node = (*tx.need::<Node>(ino)?).clone();
        let Some(id) = node.object() else { return Ok(()) };
        let org = ino.organization();
        let known = tx.get::<Object>((org, id))?;
        let detached = known.as_ref().is_some_and(|object| object.ino != ino);
        if let (true, Some(expected)) = (node.changed, node.guard) {
            let current = known.as_ref().and_then(|o| o.current()).map_or(VersionId(0), |v| v.id);
            let holds = if expected.belongs_to(id) {
                !detached && current == expected
            } else {
                // It is about the object that this file will replace, if there is such a one.
                self.owner_of(org, expected)?.is_some()
            };
            if !holds {
                return Err(Error::VersionLost { expected, current });
            }
        }
        if node.links == 0 && node.grave.is_none() {
            // It goes with its last handle: an object of it would outlive it.
            return Ok(());
        }
        let valueless = known.as_ref().is_none_or(|object| object.versions.is_empty());
        if detached || !(node.changed || (created && valueless)) {
            return Ok(());
        }
        let mut object = match known {
            Some(object) => (*object).clone(),
            None => self.new_object(tx, caller, ino, &node)?,
        };
        self.push_version(tx, caller, id, &mut object, &mut node, ino)?;
        tx.put((org, id), object);
        tx.put(ino, node);
        Ok(())
    }

    pub(super) fn new_object(&self, tx: &Tx, caller: &Caller, ino: Ino, node: &Node) -> Result<Object> {
        let organization = self.living(ino.organization())?;
        Ok(Object {
            ino,
            created: node.born,
            created_by: caller.author(),
            context: self.context_of(tx, &organization, ino)?,
            versions: Vec::new(),
        })
    }

    /// Ends the node's epoch: its value becomes the object's next version.
    fn push_version(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        id: ObjectId,
        object: &mut Object,
        node: &mut Node,
        ino: Ino,
    ) -> Result<()> {
        object.versions.push(Version {
            ordinal: object.current().map_or(1, |v| v.ordinal + 1),
            id: VersionId::fresh(id),
            content: ino,
            epoch: node.epoch,
            size: node.size,
            at: Time::now(),
            by: caller.author(),
        });
        node.epoch += 1;
        node.changed = false;
        node.guard = node.guard.filter(|guard| !guard.belongs_to(id));
        tx.delete::<Pending>((ino, Task::Commit));
        self.audit_version(tx, caller, ino.organization(), id, object);
        self.prune_versions(tx, ino.organization(), id, object)
    }

    /// Tells the audit log of an object's new version, once it is so.
    fn audit_version(&self, tx: &mut Tx, caller: &Caller, org: OrgNo, id: ObjectId, object: &Object) {
        let (Some(current), Some(organization)) = (object.current(), self.organizations.find(org)) else { return };
        // The KEKs that hold this value.
        let content = tx.get::<ContentRecord>(current.content).ok().flatten();
        let event = if current.ordinal == 1 { "vault.data.created" } else { "vault.data.updated" };
        let event = AuditEvent {
            organization: Some(organization.id.to_string()),
            object: Some(id.to_string()),
            version: Some(current.id.to_string()),
            detail: Some(super::attributes::key_id(&organization, content.as_deref())),
            ..AuditEvent::by(caller, event)
        };
        let audited = self.audited.clone();
        tx.afterwards(move || audited.tell(&event));
    }

    /// Drops versions beyond `keep_versions`, or those that the organization's `keep_versions_for` is over for; the
    /// oldest first. One that is being read stays for as long.
    pub(super) fn prune_versions(&self, tx: &mut Tx, org: OrgNo, id: ObjectId, object: &mut Object) -> Result<()> {
        let keep_for = self.profiles.get(org).and_then(|profile| profile.keep_versions_for);
        let newer = object.versions.iter().skip(1).map(Some).chain([None]);
        let left = (0..object.versions.len()).rev().zip(newer);
        let surplus = left.zip(&object.versions).filter(|((newer, next), version)| {
            let over = match (keep_for, next) {
                (Some(time), Some(next)) => *newer >= VERSIONS_MAX || next.at.age() > time,
                (Some(_), None) => false,
                (None, _) => *newer >= self.settings.keep_versions,
            };
            over && !self.readers.has(version.id)
        });
        let surplus: Vec<Version> = surplus.map(|(_, version)| version.clone()).collect();
        for dropped in &surplus {
            self.drop_version(tx, org, id, object, dropped)?;
        }
        Ok(())
    }

    /// Drops a version that is not the current one.
    pub(super) fn drop_version(
        &self,
        tx: &mut Tx,
        org: OrgNo,
        id: ObjectId,
        object: &mut Object,
        dropped: &Version,
    ) -> Result<()> {
        object.versions.retain(|version| version.id != dropped.id);
        match object.versions.iter().find(|v| v.content == dropped.content) {
            Some(oldest) => self.prune_content(tx, dropped.content, id, oldest.epoch)?,
            None => self.disown(tx, dropped.content, id)?,
        }
        let event = AuditEvent {
            organization: self.organizations.find(org).map(|o| o.id.to_string()),
            object: Some(id.to_string()),
            version: Some(dropped.id.to_string()),
            ..AuditEvent::new("version.pruned")
        };
        let audited = self.audited.clone();
        tx.afterwards(move || audited.tell(&event));
        Ok(())
    }

    /// The object needs no version of the content below `epoch`.
    fn prune_content(&self, tx: &mut Tx, content: Ino, id: ObjectId, epoch: u64) -> Result<()> {
        let Some(record) = tx.get::<ContentRecord>(content)? else { return Ok(()) };
        if record.owners.iter().any(|owner| *owner != id) {
            // Another object's versions name it too: its past goes when that owner lets go.
            return Ok(());
        }
        tx.put((content, Task::Prune), Pending { epoch });
        Ok(())
    }

    /// No version of the object names the content any more: without other owners and without an inode its key is destroyed.
    pub(super) fn disown(&self, tx: &mut Tx, content: Ino, id: ObjectId) -> Result<()> {
        let Some(record) = tx.get::<ContentRecord>(content)? else { return Ok(()) };
        let mut record = (*record).clone();
        record.owners.retain(|owner| *owner != id);
        if record.owners.is_empty() && tx.get::<Node>(content)?.is_none() {
            self.destroy_content(tx, content)?;
        } else {
            tx.put(content, record);
        }
        Ok(())
    }

    /// The inode of a content that was made for the object `id` is gone: unless a version still names it, its key goes too.
    pub(super) fn destroy_unneeded(&self, tx: &mut Tx, content: Ino, id: ObjectId) -> Result<()> {
        let Some(record) = tx.get::<ContentRecord>(content)? else { return Ok(()) };
        for owner in record.owners.iter().chain([&id]) {
            let object = tx.get::<Object>((content.organization(), *owner))?;
            if object.is_some_and(|object| object.versions.iter().any(|version| version.content == content)) {
                return Ok(());
            }
        }
        self.destroy_content(tx, content)
    }

    /// Destroys a content's key; its extents are given back in the background.
    pub(super) fn destroy_content(&self, tx: &mut Tx, content: Ino) -> Result<()> {
        if let Some(record) = tx.get::<ContentRecord>(content)? {
            self.keyring.forget(&record.wrapped.dek_id);
            tx.delete::<ContentRecord>(content);
            tx.delete::<Pending>((content, Task::Prune));
            tx.put((content, Task::Reclaim), Pending { epoch: 0 });
            self.signals.scrub(self.records.current_batch());
        }
        Ok(())
    }

    /// Finishes a rename onto an existing name: `old` lost it to `new`.
    pub(super) fn replace(
        &self,
        mut tx: Tx,
        caller: &Caller,
        rewraps: &Rewraps,
        old: Ino,
        new: Ino,
        at: (Ino, &[u8]),
    ) -> Result<()> {
        let old_node = less_a_link(&*tx.need::<Node>(old)?);
        let new_node = tx.need::<Node>(new)?;
        if old_node.links == 0 && old_node.object().is_some() && new_node.object().is_some() {
            let open = self.handles.lock();
            self.replace_file(&mut tx, &open, caller, rewraps, old, new)?;
            self.finish(tx);
            return Ok(());
        }
        if old_node.links > 0 {
            tx.put(old, old_node);
            self.finish(tx);
            return Ok(());
        }
        match old_node.object() {
            Some(_) => self.delete_object_node(tx, caller, rewraps, old, old_node, at),
            None => {
                self.remove_node(&mut tx, old, &old_node, false)?;
                self.finish(tx);
                Ok(())
            }
        }
    }

    /// As [`Self::replace`], for two regular files, of which `old` has no other name.
    pub(super) fn replace_file(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        rewraps: &Rewraps,
        old: Ino,
        new: Ino,
    ) -> Result<ObjectId> {
        let old_node = less_a_link(&*tx.need::<Node>(old)?);
        let id = old_node.object().ok_or(Error::Invalid("not a regular file"))?;
        self.succeed(tx, open, caller, rewraps, (id, old, &old_node), new)?;
        let stays = self.stays(tx, open, caller, old) || self.stays_for_a_moment(tx, old);
        self.remove_node(tx, old, &old_node, stays)?;
        if !stays {
            self.destroy_unneeded(tx, old, id)?;
        }
        self.uncount(tx, old, old_node.size)?;
        Ok(id)
    }

    /// The object `id`, which `old` held, goes on in the inode `new`, whose value becomes its next version.
    /// `open`: locked by the caller, so that nobody opens what a decision here takes for closed.
    pub(super) fn succeed(
        &self,
        tx: &mut Tx,
        open: &OpenFiles,
        caller: &Caller,
        rewraps: &Rewraps,
        (id, old, old_node): (ObjectId, Ino, &Node),
        new: Ino,
    ) -> Result<()> {
        let org = new.organization();
        let mut node = (*tx.need::<Node>(new)?).clone();
        let replacing = node.object().ok_or(Error::Invalid("not a regular file"))?;
        let mut object = match tx.get::<Object>((org, id))? {
            Some(object) => (*object).clone(),
            None => self.new_object(tx, caller, old, old_node)?,
        };
        let current = object.current().map(|v| v.id);
        if let Some(expected) = node.guard
            && current != Some(expected)
        {
            return Err(Error::VersionLost { expected, current: current.unwrap_or(VersionId(0)) });
        }
        if old_node.changed && old_node.guard.is_none() {
            // What open writers changed before it was replaced is a version too; but not under a version check,
            // which is lost now.
            let mut ended = old_node.clone();
            self.push_version(tx, caller, id, &mut object, &mut ended, old)?;
        }
        let history = tx.get::<Object>((org, replacing))?;
        match history.as_ref().and_then(|h| h.current()).filter(|_| !node.changed) {
            Some(value) => {
                let next = object.current().map_or(1, |v| v.ordinal + 1);
                object.versions.push(Version {
                    ordinal: next,
                    id: VersionId::fresh(id),
                    at: Time::now(),
                    ..value.clone()
                });
                node.guard = None;
                self.audit_version(tx, caller, org, id, &object);
                self.prune_versions(tx, org, id, &mut object)?;
            }
            None => self.push_version(tx, caller, id, &mut object, &mut node, new)?,
        }
        object.ino = new;
        if let Kind::File { object, .. } = &mut node.kind {
            *object = id;
        }
        let keeps_history = history.as_ref().is_some_and(|h| h.versions.len() > 1);
        // A history that stays behind owns the content too, which therefore needs a key also where it never had a byte.
        if let Some(mut record) = self.under_context(tx, rewraps, new, &object.context, keeps_history)? {
            record.owners.retain(|owner| ![id, replacing].contains(owner));
            record.owners.push(id);
            record.owners.extend(keeps_history.then_some(replacing));
            tx.put(new, record);
        }
        tx.put((org, id), object);
        tx.put(new, node.clone());
        if keeps_history {
            let history = (*history.expect("it has versions")).clone();
            self.bury_history(tx, open, caller, replacing, history, &node)?;
        } else {
            tx.delete::<Object>((org, replacing));
        }
        Ok(())
    }

    /// An inode of a regular file lost its last name.
    pub(super) fn delete_object_node(
        &self,
        mut tx: Tx,
        caller: &Caller,
        rewraps: &Rewraps,
        ino: Ino,
        node: Node,
        path: (Ino, &[u8]),
    ) -> Result<()> {
        let org = ino.organization();
        let id = node.object().expect("the caller has looked");
        let handles = self.handles.lock();
        let stays = self.stays(&mut tx, &handles, caller, ino);
        self.uncount(&mut tx, ino, node.size)?;
        if let Some(successor) = self.tunnel_successor(&tx, ino)? {
            self.succeed(&mut tx, &handles, caller, rewraps, (id, ino, &node), successor)?;
            self.remove_node(&mut tx, ino, &node, stays)?;
            if !stays {
                self.destroy_unneeded(&mut tx, ino, id)?;
            }
        } else {
            let object = tx.get::<Object>((org, id))?;
            let held_bytes = node.size > 0 || object.as_ref().is_some_and(|o| o.versions.iter().any(|v| v.size > 0));
            if held_bytes && object.as_ref().is_none_or(|o| o.ino == ino) {
                self.bury(&mut tx, &handles, caller, id, (ino, node), path)?;
            } else {
                self.remove_node(&mut tx, ino, &node, stays)?;
                if let Some(object) = object.filter(|o| o.ino == ino) {
                    tx.delete::<Object>((org, id));
                    for version in &object.versions {
                        self.disown(&mut tx, version.content, id)?;
                    }
                }
                if !stays {
                    self.destroy_unneeded(&mut tx, ino, id)?;
                }
            }
        }
        self.finish(tx);
        self.tunnels.forget(ino);
        Ok(())
    }

    /// Whether a file outlives its last name: with a handle, or in the kernel, which will say when it is forgotten.
    fn stays(&self, tx: &mut Tx, open: &OpenFiles, caller: &Caller, ino: Ino) -> bool {
        if caller.kernel {
            self.remember_file(tx, ino);
        }
        caller.kernel || open.is_open(ino)
    }

    /// One object, and the bytes of its value, more.
    pub(super) fn count_one(&self, tx: &mut Tx, org: OrgNo, size: u64) -> Result<()> {
        self.count(tx, org, move |org| (org.objects, org.bytes) = (org.objects + 1, org.bytes + u128::from(size)))
    }

    /// One object, and the bytes of its value, less.
    fn uncount(&self, tx: &mut Tx, ino: Ino, size: u64) -> Result<()> {
        self.count(tx, ino.organization(), move |org| {
            org.objects = org.objects.saturating_sub(1);
            org.bytes = org.bytes.saturating_sub(size.into());
        })
    }

    /// An object was moved away from a name: what is made there now may take over its id.
    pub(super) fn remember_tunnel(&self, from: (Ino, &[u8]), ino: Ino) {
        self.tunnels.remember(ino, (from.0, from.1.to_vec()));
    }

    /// The file that was made where this one was moved away from, if that was a moment ago.
    fn tunnel_successor(&self, tx: &Tx, ino: Ino) -> Result<Option<Ino>> {
        let Some((folder, name)) = self.tunnels.find(ino) else { return Ok(None) };
        let hash = self.records.name_hash(folder, &name)?;
        let Some(entry) = tx.get::<Entry>((folder, hash))?.filter(|e| e.kind == libc::S_IFREG) else { return Ok(None) };
        let young = |node: &Node| node.born.age() < TUNNEL_TIME && node.links == 1;
        Ok(tx.get::<Node>(entry.ino)?.filter(|node| young(node)).map(|_| entry.ino))
    }

    /// `user.vault.version_check`: the next commit is valid only on top of this version.
    pub(super) fn set_guard(&self, caller: &Caller, ino: Ino, expected: VersionId) -> Result<()> {
        self.enter(ino, caller.patience)?;
        let mut tx = self.begin()?;
        let mut node = (*tx.need::<Node>(ino)?).clone();
        let id = node.object().ok_or(Error::NotPermitted("a version check stands on an object"))?;
        if let Some(object) = tx.get::<Object>((ino.organization(), id))? {
            let current = object.current().map_or(VersionId(0), |v| v.id);
            // An id that no object has cannot be about one that this file will replace, unless the file is new.
            let about_another = self.owner_of(ino.organization(), expected)?.is_some_and(|owner| owner != id);
            let about_itself = !about_another && (expected.belongs_to(id) || object.versions.len() > 1);
            if about_itself && current != expected {
                return Err(Error::VersionLost { expected, current });
            }
        }
        node.guard = Some(expected);
        tx.put(ino, node);
        self.finish(tx);
        Ok(())
    }

    /// The object that a version belongs to.
    fn owner_of(&self, org: OrgNo, version: VersionId) -> Result<Option<ObjectId>> {
        let (first, end) = version.owners();
        let like = Object::at((org, ObjectId(first)));
        let found = self.records.scan::<Object>(like, like.key, Object::at((org, ObjectId(end))).key, 1)?;
        Ok(found.rows.first().map(|(key, _)| ObjectId(u128::from_be_bytes((**key).try_into().expect("16 bytes")))))
    }

    /// Waits until the kernel has forgotten what it was told to forget; only for a moment where it is slow.
    pub(super) fn kernel_knows(&self) {
        const AT_MOST: Duration = Duration::from_secs(2);
        let (told, hear) = std::sync::mpsc::channel();
        // Without a mount the sender is gone at once.
        self.changed(Changed::Told(told));
        let _ = hear.recv_timeout(AT_MOST);
    }

    /// Tells the kernel that an object's name leads elsewhere now.
    pub(super) fn name_changed(&self, folder: Ino, name: &[u8]) {
        self.changed(Changed::Entry { parent: folder, name: name.to_vec() });
        self.changed(Changed::Inode { ino: folder, data: false });
    }
}

fn less_a_link(node: &Node) -> Node {
    Node { links: node.links.saturating_sub(1), ctime: Time::now(), ..node.clone() }
}
