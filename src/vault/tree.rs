//! The tree: names in folders, making, linking and removing them.

use super::context::Rewraps;
use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgNo};
use super::records::Tx;
use super::row::{Attributes, ContentRecord, Entry, Kind, Node, Object, Pending, Record, Task};
use super::time::Time;
use super::versions::{VERSIONS, VERSIONS_STAY};
use super::{Attr, Caller, Make, Vault};
use crate::keys::Patience;
use crate::store::Key;
use std::sync::Arc;

/// As many links as ext4 allows.
const LINKS_MAX: u32 = 65_000;
pub const TOMBSTONES: &[u8] = b".tombstones";

/// How something new begins that is made in a folder.
pub struct Made {
    /// 07777.
    pub mode: u32,
    pub attributes: Option<Attributes>,
}

impl Node {
    /// A node to fill in: times are `now`, everything else is zero.
    pub fn new(now: Time) -> Node {
        Node {
            kind: Kind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            size: 0,
            stored: 0,
            atime: now,
            mtime: now,
            ctime: now,
            born: now,
            attributes: false,
            epoch: 1,
            changed: false,
            grave: None,
            guard: None,
        }
    }

    /// The object of a regular file.
    pub fn object(&self) -> Option<ObjectId> {
        match self.kind {
            Kind::File { object, .. } => Some(object),
            _ => None,
        }
    }
}

impl Vault {
    pub fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if parent == Ino::ROOT && name == TOMBSTONES {
            return self.attr(caller, Ino::GRAVEYARD);
        }
        if parent == Ino::ROOT && name == VERSIONS {
            return self.attr(caller, Ino::VERSIONS);
        }
        if parent.is_in_versions() {
            return self.lookup_version(caller, parent, name);
        }
        if parent.is_graveyard() {
            return self.lookup_grave(caller, parent, name);
        }
        self.enter(parent, caller.patience)?;
        let entry = self.find_entry(parent, name)?.ok_or(Error::NotFound)?;
        match self.attr(caller, entry.ino) {
            // A put replaced it between the two looks: the name leads to another.
            Err(Error::NotFound) => {
                let caller = Caller { patience: Patience::Never, ..caller.clone() };
                self.at_rest(|| {
                    let entry = self.find_entry(parent, name)?.ok_or(Error::NotFound)?;
                    self.attr(&caller, entry.ino)
                })
            }
            found => found,
        }
    }

    pub fn attr(&self, caller: &Caller, ino: Ino) -> Result<Attr> {
        if ino.is_graveyard() {
            return self.graveyard_attr(ino);
        }
        if ino.is_in_versions() {
            return self.version_attr(caller, ino);
        }
        if !ino.is_top() {
            self.enter(ino, caller.patience)?;
        }
        let node = self.node(ino)?;
        let mut attr = Attr::of(ino, &node);
        if ino == Ino::ROOT {
            (attr.uid, attr.gid) = self.owner;
        }
        if node.object().is_some() {
            attr.stored += self.unstored_bytes(ino);
        }
        Ok(attr)
    }

    pub fn read_link(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        self.enter(ino, caller.patience)?;
        match &self.node(ino)?.kind {
            Kind::Symlink { target } => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// A folder's parent.
    pub fn parent(&self, caller: &Caller, directory: Ino) -> Result<Ino> {
        if [Ino::ROOT, Ino::GRAVEYARD, Ino::VERSIONS].contains(&directory) {
            return Ok(Ino::ROOT);
        }
        if directory.is_in_versions() {
            return self.parent_in_versions(caller, directory);
        }
        if directory.is_graveyard() {
            return Ok(Ino::GRAVEYARD);
        }
        if !directory.is_top() {
            self.enter(directory, caller.patience)?;
        }
        match self.node(directory)?.kind {
            Kind::Directory { parent, .. } => Ok(parent),
            _ => Err(Error::NotADirectory),
        }
    }

    pub fn make(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, what: Make) -> Result<Attr> {
        if parent == Ino::ROOT {
            return match what {
                Make::Directory => {
                    let mode = mode & !caller.umask;
                    Ok(self.make_organization(caller, name, mode, (caller.uid, caller.gid), None)?.0)
                }
                _ => Err(Error::NotPermitted("only organizations (directories) stand in a vault's root")),
            };
        }
        self.check_writable_folder(parent)?;
        self.enter(parent, caller.patience)?;
        self.signals.admit(caller.patience == Patience::Wait)?;
        self.check_space(caller, 0)?;
        let (tx, ino, node) = self.make_in(caller, parent, name, mode, what)?;
        self.finish(tx);
        Ok(Attr::of(ino, &node))
    }

    /// Makes an inode and its name in a transaction, which the caller finishes.
    pub(super) fn make_in(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        what: Make,
    ) -> Result<(Tx<'_>, Ino, Node)> {
        let hash = self.check_name(parent, name)?;
        let (mut tx, birth) = match what {
            Make::File => self.begin_birth(caller, parent)?,
            _ => (self.begin()?, None),
        };
        let folder = self.folder(&tx, parent)?;
        if tx.get::<Entry>((parent, hash))?.is_some() {
            return Err(Error::Exists);
        }
        if let Make::File = what {
            self.check_quota(parent.organization(), 1, 0)?;
        }
        let now = Time::now();
        let kind = match what {
            Make::File => Kind::File { object: ObjectId::fresh(), parent, name: name.to_vec() },
            Make::Directory => Kind::Directory { parent, name: name.to_vec() },
            Make::Symlink(target) => Kind::Symlink { target: target.to_vec() },
            Make::Fifo => Kind::Fifo,
            Make::Socket => Kind::Socket,
            Make::CharDevice(device) => Kind::CharDevice(device),
            Make::BlockDevice(device) => Kind::BlockDevice(device),
        };
        let directory = kind.is_directory();
        let (uid, gid) = caller.owner_in(&folder);
        let inherits = folder.mode & libc::S_ISGID != 0;
        let made = match &kind {
            Kind::Symlink { .. } => Made { mode: 0o777, attributes: None },
            _ => self.inherit(&tx, caller, (parent, &folder), mode & 0o7777, directory)?,
        };
        let mut node = Node {
            mode: made.mode,
            attributes: made.attributes.is_some(),
            size: match &kind {
                Kind::Symlink { target } => target.len() as u64,
                Kind::Directory { .. } => 4096,
                _ => 0,
            },
            kind,
            uid,
            gid: if inherits { folder.gid } else { gid },
            links: if directory { 2 } else { 1 },
            ..Node::new(now)
        };
        if inherits && directory {
            node.mode |= libc::S_ISGID;
        }
        let ino = self.next_ino(&mut tx, parent.organization())?;
        tx.put_new((parent, hash), Entry { name: name.to_vec(), ino, kind: node.kind.mode_bits() });
        tx.put_new(ino, node.clone());
        if let Some(attributes) = made.attributes {
            tx.put_new(ino, attributes);
        }
        self.touch_folder(&mut tx, parent, i32::from(directory), now)?;
        if let Some(object) = node.object() {
            tx.absent::<ContentRecord>(ino);
            tx.absent::<Object>((ino.organization(), object));
            self.count(&mut tx, parent.organization(), |org| org.objects += 1)?;
        }
        if let Some(birth) = birth {
            self.bear(&mut tx, birth, ino, &node)?;
        }
        Ok((tx, ino, node))
    }

    pub fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.check_writable_folder(parent)?;
        if ino.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        if ino.organization() != parent.organization() {
            return Err(Error::OtherOrganization);
        }
        self.enter(parent, caller.patience)?;
        self.check_space(caller, 0)?;
        let mut tx = self.begin()?;
        let hash = self.check_name(parent, name)?;
        self.folder(&tx, parent)?;
        if tx.get::<Entry>((parent, hash))?.is_some() {
            return Err(Error::Exists);
        }
        let mut node = (*tx.need::<Node>(ino)?).clone();
        if node.kind.is_directory() {
            return Err(Error::NotPermitted("a directory cannot be linked"));
        }
        if node.links == 0 {
            return Err(Error::NotFound);
        }
        if node.links >= LINKS_MAX {
            return Err(Error::TooManyLinks);
        }
        let now = Time::now();
        (node.links, node.ctime) = (node.links + 1, now);
        let attr = Attr::of(ino, &node);
        tx.put_new((parent, hash), Entry { name: name.to_vec(), ino, kind: node.kind.mode_bits() });
        tx.put(ino, node);
        self.touch_folder(&mut tx, parent, 0, now)?;
        self.finish(tx);
        Ok(attr)
    }

    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if parent.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        if parent.is_graveyard() {
            return self.purge_entry(caller, parent, name);
        }
        if parent == Ino::ROOT {
            return Err(self.root_refusal(name)?);
        }
        self.enter(parent, caller.patience)?;
        self.across_contexts(caller, |rewraps| self.unlink_in(self.begin()?, caller, rewraps, parent, name))
    }

    pub(super) fn unlink_in(
        &self,
        mut tx: Tx,
        caller: &Caller,
        rewraps: &Rewraps,
        parent: Ino,
        name: &[u8],
    ) -> Result<()> {
        let hash = self.check_name(parent, name)?;
        let entry = tx.need::<Entry>((parent, hash))?;
        if entry.kind == libc::S_IFDIR {
            return Err(Error::IsADirectory);
        }
        let now = Time::now();
        tx.delete::<Entry>((parent, hash));
        self.touch_folder(&mut tx, parent, 0, now)?;
        self.drop_link(tx, caller, rewraps, entry.ino, (parent, name), now)
    }

    /// What removing a name in the root, which holds organizations only, is refused with.
    fn root_refusal(&self, name: &[u8]) -> Result<Error> {
        if name == TOMBSTONES || name == VERSIONS || self.find_entry(Ino::ROOT, name)?.is_some() {
            return Ok(Error::IsADirectory);
        }
        Ok(Error::NotFound)
    }

    /// Finishes a transaction that took a name from an inode.
    fn drop_link(
        &self,
        mut tx: Tx,
        caller: &Caller,
        rewraps: &Rewraps,
        ino: Ino,
        path: (Ino, &[u8]),
        now: Time,
    ) -> Result<()> {
        let mut node = (*tx.need::<Node>(ino)?).clone();
        node.links = node.links.saturating_sub(1);
        node.ctime = now;
        if node.links > 0 {
            tx.put(ino, node);
            self.finish(tx);
            return Ok(());
        }
        if node.object().is_some() {
            return self.delete_object_node(tx, caller, rewraps, ino, node, path);
        }
        self.remove_node(&mut tx, ino, &node, false)?;
        self.finish(tx);
        Ok(())
    }

    /// Removes an inode without names, or leaves it to its last handle.
    pub(super) fn remove_node(&self, tx: &mut Tx, ino: Ino, node: &Node, open: bool) -> Result<()> {
        if open {
            tx.put(ino, Node { links: 0, ..node.clone() });
            tx.put((ino, Task::Orphan), Pending { epoch: 0 });
            return Ok(());
        }
        if node.object().is_none() {
            self.remember_removed(tx, ino, node)?;
        }
        tx.delete::<Node>(ino);
        if node.kind.is_directory() && !self.own_pairs(ino, node)?.is_empty() {
            self.count(tx, ino.organization(), |org| org.context_folders = org.context_folders.saturating_sub(1))?;
        }
        if node.attributes {
            tx.delete::<Attributes>(ino);
        }
        Ok(())
    }

    pub fn remove_directory(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if parent == Ino::GRAVEYARD {
            return self.purge_organization_entry(caller, name);
        }
        if parent.is_in_versions() || (parent == Ino::ROOT && name == VERSIONS) {
            return Err(VERSIONS_STAY);
        }
        if parent.is_graveyard() {
            return Err(Error::NotADirectory);
        }
        if parent == Ino::ROOT {
            if name == TOMBSTONES {
                return Err(Error::NotPermitted(".tombstones stays"));
            }
            return self.bury_organization(caller, name);
        }
        self.enter(parent, caller.patience)?;
        let mut tx = self.begin()?;
        let hash = self.check_name(parent, name)?;
        let entry = tx.need::<Entry>((parent, hash))?;
        if entry.kind != libc::S_IFDIR {
            return Err(Error::NotADirectory);
        }
        if !self.is_empty(entry.ino)? {
            return Err(Error::NotEmpty);
        }
        let node = tx.need::<Node>(entry.ino)?;
        tx.delete::<Entry>((parent, hash));
        self.remove_node(&mut tx, entry.ino, &node, false)?;
        self.touch_folder(&mut tx, parent, -1, Time::now())?;
        self.finish(tx);
        Ok(())
    }

    /// Refuses folders in which nothing can be made.
    pub(super) fn check_writable_folder(&self, folder: Ino) -> Result<()> {
        if folder.is_graveyard() {
            return Err(Error::ReadOnly("tombstones can be restored or purged, nothing else"));
        }
        if folder.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        if folder == Ino::ROOT {
            return Err(Error::NotPermitted("only organizations (directories) stand in a vault's root"));
        }
        Ok(())
    }

    /// A name's hash in a folder; refuses what no file can be called.
    pub(super) fn check_name(&self, folder: Ino, name: &[u8]) -> Result<[u8; 16]> {
        if name.len() > 255 {
            return Err(Error::NameTooLong);
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Invalid("not a file name"));
        }
        self.records.name_hash(folder, name)
    }

    pub(super) fn find_entry(&self, folder: Ino, name: &[u8]) -> Result<Option<Arc<Entry>>> {
        if name.len() > 255 {
            return Err(Error::NameTooLong);
        }
        let hash = self.records.name_hash(folder, name)?;
        self.records.get::<Entry>((folder, hash))
    }

    /// The folder's node, which must be a directory that still has a name.
    pub(super) fn folder(&self, tx: &Tx, folder: Ino) -> Result<Arc<Node>> {
        let node = tx.need::<Node>(folder)?;
        match node.kind {
            Kind::Directory { .. } if node.links > 0 && node.grave.is_none() => Ok(node),
            Kind::Directory { .. } => Err(Error::NotFound),
            _ => Err(Error::NotADirectory),
        }
    }

    /// Whether a directory has no entry.
    pub(super) fn is_empty(&self, directory: Ino) -> Result<bool> {
        let mut from = Some(first_entry(directory));
        while let Some(start) = from {
            let part =
                self.records.scan::<Entry>(Entry::at((directory, [0; 16])), start, end_of_entries(directory), 16)?;
            if !part.rows.is_empty() {
                return Ok(false);
            }
            from = part.next;
        }
        Ok(true)
    }

    /// A directory changed: its times, and its links if a subdirectory came or went.
    pub(super) fn touch_folder(&self, tx: &mut Tx, folder: Ino, subdirectories: i32, now: Time) -> Result<()> {
        self.change(tx, folder, |node| {
            (node.mtime, node.ctime) = (now, now);
            node.links = node.links.saturating_add_signed(subdirectories);
        })
    }

    pub(super) fn change(&self, tx: &mut Tx, ino: Ino, change: impl FnOnce(&mut Node)) -> Result<()> {
        let mut node = (*tx.need::<Node>(ino)?).clone();
        change(&mut node);
        tx.put(ino, node);
        Ok(())
    }

    pub(super) fn next_ino(&self, tx: &mut Tx, org: OrgNo) -> Result<Ino> {
        let local = self.number(tx, org, |record| {
            record.next_local += 1;
            record.next_local - 1
        })?;
        Ok(Ino::new(org, local))
    }
}

/// The smallest and the first impossible key of a directory's entries.
pub(super) fn first_entry(directory: Ino) -> Key {
    Key::from(&directory.0.to_be_bytes()[..])
}

pub(super) fn end_of_entries(directory: Ino) -> Key {
    Key::from(&(directory.0 + 1).to_be_bytes()[..])
}
