//! `/vault/.versions/ORG/any/folder/OBJECT/ORDINAL`: every version that is kept, the current one among them, to be read
//! and nothing else.
//!
//! A folder in there is the folder itself, seen without what can be changed in it; an object is a folder of its versions,
//! which who may read the object may list. Mode, owner and access control list are those of today, as with a snapshot:
//! the versions of an object are no more open than it is. Tombstones have no place here until they are restored.
//!
//! Folders are known to the kernel by their own number with a bit set. Objects and versions, of which an inode number
//! holds too little to name one, get numbers as they are looked up, for as long as the kernel knows them.

use super::acl::{self, Acl, searchable};
use super::attributes::{AttributeList, CIPHER, PREFIX};
use super::content::Pieces;
use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgNo, VersionId};
use super::listing::FIRST_COOKIE;
use super::reading::Kept;
use super::row::{ContentRecord, Kind, Node, Object, Version};
use super::{Access, Attr, Caller, DirEntry, Handle, Seek, Vault};
use crate::keys::Patience;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

pub const VERSIONS: &[u8] = b".versions";
pub const VERSIONS_STAY: Error = Error::ReadOnly("versions can be read, nothing else");
/// Names and values of extended attributes.
type NamedValues = Vec<(Vec<u8>, Vec<u8>)>;

/// What the kernel knows of `.versions`, and what is open in there.
#[derive(Default)]
pub struct Versions {
    numbers: Mutex<Numbers>,
    views: Mutex<(u64, HashMap<Handle, Arc<View>>)>,
}

/// What a number that was given out stands for.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Given {
    /// An object under one of its names.
    Object {
        id: ObjectId,
        folder: Ino,
        name: Vec<u8>,
    },
    Version {
        id: ObjectId,
        version: VersionId,
    },
}

#[derive(Default)]
struct Numbers {
    last: u64,
    /// Numbers up to this one that the kernel was never told are given up.
    swept: u64,
    given: HashMap<Ino, (Given, u64)>,
    found: HashMap<(OrgNo, Given), Ino>,
}

impl Numbers {
    fn of(&mut self, org: OrgNo, what: Given) -> Ino {
        if let Some(known) = self.found.get(&(org, what.clone())) {
            return *known;
        }
        if self.found.len() == self.found.capacity() {
            self.sweep();
        }
        self.last += 1;
        let ino = Ino::given(org, self.last);
        self.given.insert(ino, (what.clone(), 0));
        self.found.insert((org, what), ino);
        ino
    }

    /// What was given out for a listing, and never told in one.
    fn sweep(&mut self) {
        let (before, given) = (self.swept, &mut self.given);
        given.retain(|ino, (_, told)| *told > 0 || *ino > Ino::given(ino.organization(), before));
        self.found.retain(|_, ino| given.contains_key(ino));
        self.swept = self.last;
    }
}

impl Versions {
    pub fn forget(&self, ino: Ino, times: u64) {
        let mut numbers = self.numbers.lock();
        let Some((what, told)) = numbers.given.get_mut(&ino) else { return };
        *told = told.saturating_sub(times);
        if *told == 0 {
            let key = (ino.organization(), what.clone());
            numbers.found.remove(&key);
            numbers.given.remove(&ino);
        }
    }

    /// What the kernel may hold of an organization.
    pub fn shown_in(&self, org: OrgNo) -> Vec<Ino> {
        self.numbers.lock().given.keys().copied().filter(|ino| ino.organization() == org).collect()
    }

    fn number(&self, org: OrgNo, what: Given) -> Ino {
        self.numbers.lock().of(org, what)
    }

    fn given(&self, ino: Ino) -> Result<Given> {
        let given = self.numbers.lock().given.get(&ino).map(|(what, _)| what.clone());
        given.ok_or(Error::Stale("not known any more"))
    }

    fn view(&self, handle: Handle) -> Result<Arc<View>> {
        self.views.lock().1.get(&handle).cloned().ok_or(Error::BadHandle)
    }
}

/// One open of one version.
struct View {
    of: Kept,
    pieces: Pieces,
}

/// What an inode of `.versions` shows.
enum Shown {
    All,
    Folder(Ino),
    Object { id: ObjectId, folder: Ino },
    Version { id: ObjectId, version: VersionId },
}

impl Vault {
    /// The kernel was told of this inode once more; it will forget it as often.
    pub fn told(&self, ino: Ino) {
        if ino.is_in_versions()
            && let Some((_, told)) = self.versions.numbers.lock().given.get_mut(&ino)
        {
            *told += 1;
        }
    }

    fn shown(&self, caller: &Caller, ino: Ino) -> Result<Shown> {
        if ino == Ino::VERSIONS {
            return Ok(Shown::All);
        }
        self.living(ino.organization())?;
        match ino.shown_folder() {
            Some(folder) if folder.is_top() => Ok(Shown::Folder(folder)),
            Some(folder) => self.enter(ino, caller.patience).map(|()| Shown::Folder(folder)),
            None => {
                self.enter(ino, caller.patience)?;
                Ok(match self.versions.given(ino)? {
                    Given::Object { id, folder, .. } => Shown::Object { id, folder },
                    Given::Version { id, version } => Shown::Version { id, version },
                })
            }
        }
    }

    /// An object that is not deleted and has a version, with the node that says who may read it.
    fn shown_object(&self, org: OrgNo, id: ObjectId) -> Result<(Arc<Object>, Arc<Node>)> {
        let (object, node) = self.object_and_node(org, id)?;
        if node.grave.is_some() || node.links == 0 || object.versions.is_empty() {
            return Err(Error::NotFound);
        }
        Ok((object, node))
    }

    /// The object of a version. Who has the version open goes on with it when the object is deleted.
    fn object_of_version(&self, org: OrgNo, id: ObjectId, version: VersionId) -> Result<(Arc<Object>, Arc<Node>)> {
        if self.readers.has(version) { self.object_and_node(org, id) } else { self.shown_object(org, id) }
    }

    fn object_and_node(&self, org: OrgNo, id: ObjectId) -> Result<(Arc<Object>, Arc<Node>)> {
        let look = || {
            let object = self.records.get::<Object>((org, id))?.ok_or(Error::NotFound)?;
            let node = self.records.get::<Node>(object.ino)?.ok_or(Error::NotFound)?;
            Ok((object, node))
        };
        // A save may replace the inode between the two looks.
        match look() {
            Err(Error::NotFound) => self.at_rest(look),
            found => found,
        }
    }

    fn shown_folder(&self, folder: Ino) -> Result<Arc<Node>> {
        let node = self.node(folder)?;
        if node.kind.is_directory() && node.links > 0 { Ok(node) } else { Err(Error::NotFound) }
    }

    pub(super) fn lookup_version(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        let ino = match self.shown(caller, parent)? {
            Shown::All => {
                let entry = self.find_entry(Ino::ROOT, name)?.ok_or(Error::NotFound)?;
                Ino::versions_of(entry.ino)
            }
            Shown::Folder(folder) => {
                self.enter(parent, caller.patience)?;
                let node = self.node_named(folder, name)?;
                match node.kind {
                    Kind::Directory { .. } => {
                        let entry = self.find_entry(folder, name)?.ok_or(Error::NotFound)?;
                        Ino::versions_of(entry.ino)
                    }
                    Kind::File { object: id, .. } => {
                        let what = Given::Object { id, folder, name: name.to_vec() };
                        self.versions.number(parent.organization(), what)
                    }
                    _ => return Err(Error::NotFound),
                }
            }
            Shown::Object { id, .. } => {
                let (object, _) = self.shown_object(parent.organization(), id)?;
                let ordinal = std::str::from_utf8(name).ok().and_then(|text| text.parse::<u64>().ok());
                let ordinal = ordinal.filter(|ordinal| ordinal.to_string().as_bytes() == name);
                let version = ordinal.and_then(|ordinal| object.version(ordinal)).ok_or(Error::NotFound)?;
                self.versions.number(parent.organization(), Given::Version { id, version: version.id })
            }
            Shown::Version { .. } => return Err(Error::NotADirectory),
        };
        self.version_attr(caller, ino)
    }

    pub(super) fn parent_in_versions(&self, caller: &Caller, directory: Ino) -> Result<Ino> {
        match self.shown(caller, directory)? {
            Shown::All => Ok(Ino::ROOT),
            Shown::Folder(folder) if folder.is_top() => Ok(Ino::VERSIONS),
            Shown::Folder(folder) => Ok(Ino::versions_of(self.parent(caller, folder)?)),
            Shown::Object { folder, .. } => Ok(Ino::versions_of(folder)),
            Shown::Version { .. } => Err(Error::NotADirectory),
        }
    }

    pub(super) fn version_attr(&self, caller: &Caller, ino: Ino) -> Result<Attr> {
        match self.shown(caller, ino)? {
            Shown::All => {
                let vault = self.records.get::<Node>(Ino::ROOT)?.ok_or(Error::NotFound)?;
                let mode = libc::S_IFDIR | 0o755;
                Ok(Attr { mode, uid: self.owner.0, gid: self.owner.1, ..Attr::of(ino, &vault) })
            }
            Shown::Folder(folder) => Ok(Attr::of(ino, &*self.shown_folder(folder)?)),
            Shown::Object { id, .. } => {
                let (object, node) = self.shown_object(ino.organization(), id)?;
                let current = object.current().ok_or(Error::NotFound)?;
                let bits = [6, 3, 0].map(|class| searchable(node.mode >> class & 7) << class);
                let mode = libc::S_IFDIR | bits.into_iter().sum::<u32>();
                Ok(Attr { mode, links: 2, size: 4096, stored: 0, ..dated(Attr::of(ino, &node), current) })
            }
            Shown::Version { id, version } => {
                let (object, node) = self.object_of_version(ino.organization(), id, version)?;
                let version = find(&object, version)?;
                // An earlier program does not get the rights of its owner back.
                let mode = libc::S_IFREG | node.mode & 0o777;
                let (size, stored) = (version.size, version.size.next_multiple_of(512));
                Ok(Attr { mode, links: 1, size, stored, ..dated(Attr::of(ino, &node), version) })
            }
        }
    }

    pub(super) fn list_versions(
        &self,
        caller: &Caller,
        ino: Ino,
        cookie: u64,
        f: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let org = ino.organization();
        match self.shown(caller, ino)? {
            Shown::All => self.read_directory(caller, Ino::ROOT, cookie, &mut |entry| {
                let organization = entry.ino.is_top();
                !organization || f(DirEntry { ino: Ino::versions_of(entry.ino), ..entry })
            }),
            Shown::Folder(folder) => {
                self.shown_folder(folder)?;
                self.enter(ino, caller.patience)?;
                self.read_directory(caller, folder, cookie, &mut |entry| match entry.kind {
                    libc::S_IFDIR => f(DirEntry { ino: Ino::versions_of(entry.ino), ..entry }),
                    libc::S_IFREG => match self.object_with_versions(entry.ino) {
                        Some(id) => {
                            let what = Given::Object { id, folder, name: entry.name.clone() };
                            f(DirEntry { ino: self.versions.number(org, what), kind: libc::S_IFDIR, ..entry })
                        }
                        None => true,
                    },
                    _ => true,
                })
            }
            Shown::Object { id, .. } => {
                let (object, _) = self.shown_object(org, id)?;
                let after = |version: &&Version| version.ordinal + FIRST_COOKIE > cookie;
                for version in object.versions.iter().filter(after) {
                    let ino = self.versions.number(org, Given::Version { id, version: version.id });
                    let (name, cookie) = (version.ordinal.to_string().into_bytes(), version.ordinal + FIRST_COOKIE);
                    if !f(DirEntry { ino, kind: libc::S_IFREG, name, cookie }) {
                        break;
                    }
                }
                Ok(())
            }
            Shown::Version { .. } => Err(Error::NotADirectory),
        }
    }

    /// The object of a file that has a version: one that is being made has none yet.
    fn object_with_versions(&self, ino: Ino) -> Option<ObjectId> {
        let id = self.records.get::<Node>(ino).ok()??.object()?;
        self.shown_object(ino.organization(), id).ok().map(|_| id)
    }

    /// What a version says of itself, and who may read it. What else the object carries has no versions.
    pub(super) fn version_attributes(&self, caller: &Caller, ino: Ino) -> Result<NamedValues> {
        let mut known = Vec::new();
        match self.shown(caller, ino)? {
            Shown::All => {}
            Shown::Folder(folder) => known.extend(self.access_list(folder, &*self.shown_folder(folder)?)?),
            Shown::Object { id, .. } => {
                let (object, node) = self.shown_object(ino.organization(), id)?;
                if let Some((name, list)) = self.access_list(object.ino, &node)? {
                    known.push((name, Acl::decode(&list)?.searchable().encode()));
                }
            }
            Shown::Version { id, version } => {
                let (object, node) = self.object_of_version(ino.organization(), id, version)?;
                let version = find(&object, version)?;
                let mut list = AttributeList::default();
                list.add("id", id);
                list.add("version_id", version.id);
                list.add("version", version.ordinal);
                for (key, value) in &object.context {
                    list.add(&format!("context.{key}"), value);
                }
                if let Some(content) = self.records.get::<ContentRecord>(version.content)?
                    && let Some(layer) = content.wrapped.layers.first()
                {
                    list.add("key_id", layer.kek);
                }
                list.add("cipher", CIPHER);
                list.add("created_at", version.at.rfc3339());
                list.add("updated_at", version.at.rfc3339());
                list.add("updated_by", &version.by);
                known.extend(list.0.into_iter().map(|(name, value)| ([PREFIX, name.as_bytes()].concat(), value)));
                known.extend(self.access_list(object.ino, &node)?);
            }
        }
        Ok(known)
    }

    fn access_list(&self, ino: Ino, node: &Node) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let attributes = if node.attributes { self.attributes_of(ino)? } else { None };
        let list = attributes.and_then(|attributes| attributes.0.get(acl::ACCESS).map(|list| list.to_vec()));
        Ok(list.map(|list| (acl::ACCESS.to_vec(), list)))
    }

    pub(super) fn open_version(&self, caller: &Caller, ino: Ino, access: Access) -> Result<Handle> {
        let Shown::Version { id, version } = self.shown(caller, ino)? else { return Err(Error::IsADirectory) };
        if access.write || access.truncate || access.append {
            return Err(VERSIONS_STAY);
        }
        self.shown_object(ino.organization(), id)?;
        // Its pieces may have to be stored first.
        if caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        let of = self.keep_version(ino.organization(), id, |object| find(object, version).ok())?;
        let pieces = match self.kept_pieces(&of) {
            Ok(pieces) => pieces,
            Err(error) => {
                self.end_keeping(&of);
                return Err(error);
            }
        };
        let mut views = self.versions.views.lock();
        views.0 += 1;
        let handle = Handle::of_version(views.0);
        views.1.insert(handle, Arc::new(View { of, pieces }));
        Ok(handle)
    }

    pub(super) fn close_version(&self, handle: Handle) -> Result<()> {
        let view = self.versions.views.lock().1.remove(&handle).ok_or(Error::BadHandle)?;
        self.end_keeping(&view.of);
        Ok(())
    }

    pub(super) fn read_view(&self, caller: &Caller, handle: Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let view = self.versions.view(handle)?;
        let len = view.of.version.size.saturating_sub(offset).min(len as u64) as usize;
        if len == 0 {
            return Ok(Vec::new());
        }
        // It may have been locked, and unlocked, since the open.
        self.enter(view.of.version.content, caller.patience)?;
        self.read_pieces(&view.of, &view.pieces, offset, len, caller.patience)
    }

    /// All of a version is data, and a hole its end.
    pub(super) fn seek_view(&self, handle: Handle, offset: u64, whence: Seek) -> Result<u64> {
        let size = self.versions.view(handle)?.of.version.size;
        match whence {
            _ if offset >= size => Err(Error::NoSuchOffset),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
}

fn find(object: &Object, version: VersionId) -> Result<&Version> {
    object.versions.iter().find(|known| known.id == version).ok_or(Error::NotFound)
}

/// All times of a version are that of its commit.
fn dated(attr: Attr, version: &Version) -> Attr {
    Attr { atime: version.at, mtime: version.at, ctime: version.at, born: version.at, ..attr }
}
