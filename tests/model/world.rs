//! The real vault under the generated operations, and what can be seen of it.

use super::operation::{ORGANIZATIONS, Op, Path, SLOTS, bytes};
use super::reference::{KEEP_VERSIONS, Outcome, TOMBSTONES_PER_NAME, restored_path};
use super::view::{Fact, View, line};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tempfile::TempDir;
use vaultfs::store::{Disk, Op as DiskOp};
use vaultfs::vault::{
    Access, Allocate, Caller, DirEntry, Error, Handle, Ino, Make, ObjectId, ObjectQuery, Options, SetAttr, SetXattr,
    Vault,
};

/// A disk that can be told to stop: from then on every change is refused, as for a process that is dead.
#[derive(Default)]
pub struct MortalDisk {
    mortal: AtomicBool,
    left: AtomicI64,
    beneath: Option<Arc<dyn Disk>>,
}

impl MortalDisk {
    pub fn above(disk: Arc<dyn Disk>) -> MortalDisk {
        MortalDisk { beneath: Some(disk), ..MortalDisk::default() }
    }

    pub fn stop_after(&self, changes: usize) {
        self.left.store(changes as i64, Ordering::SeqCst);
        self.mortal.store(true, Ordering::SeqCst);
    }
}

impl Disk for MortalDisk {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let refused = self.mortal.load(Ordering::SeqCst) && self.left.fetch_sub(1, Ordering::SeqCst) <= 0;
        match &self.beneath {
            _ if refused => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(disk) => disk.before(op),
            None => Ok(()),
        }
    }
}

pub struct World {
    state: PathBuf,
    vault: Option<Arc<Vault>>,
    pub disk: Arc<MortalDisk>,
    slots: [Option<(Handle, Ino)>; SLOTS],
    beneath: Option<Arc<dyn Disk>>,
    _directory: Option<TempDir>,
}

pub fn options() -> Options {
    let settings = [
        ("keep_versions", KEEP_VERSIONS.to_string()),
        ("tombstones_per_name", TOMBSTONES_PER_NAME.to_string()),
        // Only what is asked for is synced, so that a kill finds much undone.
        ("commit_interval", "1h".to_owned()),
        // So small that a few values fill one.
        ("segment_size", "128K".to_owned()),
    ];
    Options { settings: settings.map(|(name, value)| (name.to_owned(), value)).into(), ..Options::default() }
}

pub fn copy_tree(from: &FilePath, to: &FilePath) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.unwrap(), to.to_owned());
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A vault with both organizations, to be copied for each case.
pub fn template(token: &str, pin_source: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    Vault::init(&state, token, pin_source).unwrap();
    let vault = Vault::open(&state, Options::default()).unwrap();
    for name in ORGANIZATIONS {
        vault.create_organization(&Caller::daemon(), name, None, None).unwrap();
    }
    vault.close().unwrap();
    directory
}

impl World {
    pub fn new(template: &FilePath) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        copy_tree(&template.join("state"), &state);
        Self::opened(state, None, Some(directory))
    }

    /// A vault in `state` whose every change passes `disk`, until and unless it is killed.
    pub fn on(state: &FilePath, disk: Arc<dyn Disk>) -> Self {
        Self::opened(state.to_owned(), Some(disk), None)
    }

    fn opened(state: PathBuf, beneath: Option<Arc<dyn Disk>>, directory: Option<TempDir>) -> Self {
        let slots = [None; SLOTS];
        let mut world = World { state, vault: None, disk: Arc::default(), slots, beneath, _directory: directory };
        world.open();
        world
    }

    fn open(&mut self) {
        self.disk = Arc::new(MortalDisk { beneath: self.beneath.clone(), ..MortalDisk::default() });
        let vault = Vault::open_on(&self.state, options(), self.disk.clone()).unwrap();
        // A dead disk has its reports, and they are expected.
        vault.on_report(Box::new(|_| ()));
        self.vault = Some(vault);
    }

    pub fn vault(&self) -> &Arc<Vault> {
        self.vault.as_ref().expect("open between operations")
    }

    /// What a kill leaves is opened again.
    pub fn kill(&mut self) {
        self.disk.stop_after(0);
        let vault = self.vault.take().expect("open between operations");
        let _ = vault.close();
        drop(vault);
        self.slots = [None; SLOTS];
        self.open();
    }

    /// `version`: the id that stands for the one the operation names.
    pub fn apply(&mut self, op: &Op, version: Option<&str>) -> Outcome {
        self.try_apply(op, version).map_err(|error| match error {
            Failure::Vault(error) => error.errno(),
            Failure::Errno(errno) => errno,
        })
    }

    fn try_apply(&mut self, op: &Op, version: Option<&str>) -> Result<(), Failure> {
        let vault = self.vault().clone();
        let caller = Caller::daemon();
        match op {
            Op::Create { slot, path } => {
                self.free(*slot)?;
                let (folder, name) = self.parent(path)?;
                let access = Access { read: true, write: true, ..Access::default() };
                let (attr, handle) = vault.create(&caller, folder, name, 0o644, access)?;
                self.slots[*slot] = Some((handle, attr.ino));
            }
            Op::Open { slot, path, truncate, append } => {
                self.free(*slot)?;
                let access = Access { read: true, write: true, append: *append, truncate: *truncate };
                let node = self.at(path)?;
                self.slots[*slot] = Some((vault.open_file(&caller, node, access)?, node));
            }
            Op::Write { slot, at, len, fill } => {
                vault.write(&caller, self.slot(*slot)?, *at as u64, &bytes(*fill, *len))?;
            }
            Op::Punch { slot, at, len } => {
                vault.allocate(&caller, self.slot(*slot)?, Allocate::PunchHole, *at as u64, *len as u64)?;
            }
            Op::Zero { slot, at, len } => {
                vault.allocate(&caller, self.slot(*slot)?, Allocate::ZeroRange, *at as u64, *len as u64)?;
            }
            Op::Allocate { slot, at, len } => {
                vault.allocate(&caller, self.slot(*slot)?, Allocate::Extend, *at as u64, *len as u64)?;
            }
            Op::Copy { from, at, to, to_at, len } => {
                let (from, to) = (self.slot(*from)?, self.slot(*to)?);
                vault.copy_range(&caller, (from, *at as u64), (to, *to_at as u64), *len as u64)?;
            }
            Op::Resize { slot, size } => {
                let (handle, node) = self.slots[*slot].ok_or(Failure::Errno(libc::EBADF))?;
                let set = SetAttr { size: Some(*size as u64), handle: Some(handle), ..SetAttr::default() };
                vault.set_attr(&caller, node, &set)?;
            }
            Op::Truncate { path, size } => {
                let node = self.at(path)?;
                vault.set_attr(&caller, node, &SetAttr { size: Some(*size as u64), ..SetAttr::default() })?;
            }
            Op::Flush { slot } => vault.flush(&caller, self.slot(*slot)?)?,
            Op::Close { slot } => {
                let handle = self.slot(*slot)?;
                self.slots[*slot] = None;
                let flushed = vault.flush(&caller, handle);
                vault.release(handle)?;
                flushed?;
            }
            Op::Fsync { slot } => vault.fsync(self.slot(*slot)?)?,
            Op::Save { path, len, fill } => {
                let access = Access { read: true, write: true, truncate: true, append: false };
                let handle = match self.at(path) {
                    Ok(node) => vault.open_file(&caller, node, access)?,
                    Err(_) => {
                        let (folder, name) = self.parent(path)?;
                        vault.create(&caller, folder, name, 0o644, access)?.1
                    }
                };
                let written = vault.write(&caller, handle, 0, &bytes(*fill, *len));
                let flushed = written.and_then(|()| vault.flush(&caller, handle));
                vault.release(handle)?;
                flushed?;
            }
            Op::Rename { from, to, mode } => {
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                vault.rename(&caller, (from.0, from.1), (to.0, to.1), *mode)?;
            }
            Op::Link { from, to } => {
                let node = self.at(from)?;
                let (folder, name) = self.parent(to)?;
                vault.link(&caller, node, folder, name)?;
            }
            Op::Unlink { path } => {
                let (folder, name) = self.parent(path)?;
                vault.unlink(&caller, folder, name)?;
            }
            Op::MakeFolder { path } => {
                let (folder, name) = self.parent(path)?;
                vault.make(&caller, folder, name, 0o755, Make::Directory)?;
            }
            Op::RemoveFolder { path } => {
                let (folder, name) = self.parent(path)?;
                vault.remove_directory(&caller, folder, name)?;
            }
            Op::Symlink { path, target } => {
                let (folder, name) = self.parent(path)?;
                vault.make(&caller, folder, name, 0o777, Make::Symlink(target.as_bytes()))?;
            }
            Op::Mode { path, mode } => {
                vault.set_attr(&caller, self.at(path)?, &SetAttr { mode: Some(*mode), ..SetAttr::default() })?;
            }
            Op::SetAttribute { path, name, value } => {
                let value = value.to_string();
                vault.set_xattr(&caller, self.at(path)?, name.as_bytes(), value.as_bytes(), SetXattr::Any)?;
            }
            Op::RemoveAttribute { path, name } => vault.remove_xattr(&caller, self.at(path)?, name.as_bytes())?,
            Op::Guard { path, .. } => {
                let node = self.at(path)?;
                let check = b"user.vault.version_check";
                let version = match version {
                    Some(version) => version,
                    None if vault.attr(&caller, node)?.mode & libc::S_IFMT != libc::S_IFREG => {
                        return Err(Failure::Errno(libc::EPERM));
                    }
                    None => "no version",
                };
                vault.set_xattr(&caller, node, check, version.as_bytes(), SetXattr::Any)?;
            }
            Op::Put { path, len, fill, .. } => {
                let reference = format!("{}/{}", ORGANIZATIONS[path.organization], path.parts.join("/"));
                vault.put_object(&caller, reference.as_bytes(), version, &mut &bytes(*fill, *len)[..])?;
            }
            Op::Restore { organization, index, to } => {
                let name = ORGANIZATIONS[*organization];
                let graves = vault.tombstones(Some(name))?;
                let grave = graves.get(*index).ok_or(Failure::Errno(libc::ENOENT))?;
                let original = (!is_history(&grave.original_path)).then_some(&*grave.original_path);
                let entry = format!("{name}/{}", grave.entry);
                let to = restored_path(*organization, original, to.as_ref()).parts.join("/");
                vault.restore(&caller, entry.as_bytes(), Some(to.as_bytes()))?;
            }
            Op::Purge { organization, index } => {
                let name = ORGANIZATIONS[*organization];
                let graves = vault.tombstones(Some(name))?;
                let grave = graves.get(*index).ok_or(Failure::Errno(libc::ENOENT))?;
                vault.purge(&caller, format!("{name}/{}", grave.entry).as_bytes())?;
            }
            Op::Sync => vault.sync()?,
            Op::Remount => {
                for slot in &mut self.slots {
                    if let Some((handle, _)) = slot.take() {
                        let _ = vault.flush(&caller, handle);
                        vault.release(handle)?;
                    }
                }
                drop(vault);
                self.vault.take().expect("open between operations").close()?;
                self.open();
            }
            Op::Kill { .. } => {}
        }
        Ok(())
    }

    fn free(&self, slot: usize) -> Result<(), Failure> {
        if self.slots[slot].is_some() { Err(Failure::Errno(libc::EBUSY)) } else { Ok(()) }
    }

    fn slot(&self, slot: usize) -> Result<Handle, Failure> {
        self.slots[slot].map(|(handle, _)| handle).ok_or(Failure::Errno(libc::EBADF))
    }

    fn walk(&self, organization: usize, parts: &[&str]) -> Result<Ino, Failure> {
        let (vault, caller) = (self.vault(), Caller::daemon());
        let mut attr = vault.lookup(&caller, Ino::ROOT, ORGANIZATIONS[organization].as_bytes())?;
        for part in parts {
            // What the kernel does before it asks.
            if attr.mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(Failure::Errno(libc::ENOTDIR));
            }
            attr = vault.lookup(&caller, attr.ino, part.as_bytes())?;
        }
        Ok(attr.ino)
    }

    fn at(&self, path: &Path) -> Result<Ino, Failure> {
        self.walk(path.organization, &path.parts)
    }

    fn parent<'p>(&self, path: &'p Path) -> Result<(Ino, &'p [u8]), Failure> {
        let (name, folders) = path.parts.split_last().expect("a path has a name");
        let folder = self.walk(path.organization, folders)?;
        if self.vault().attr(&Caller::daemon(), folder)?.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Failure::Errno(libc::ENOTDIR));
        }
        Ok((folder, name.as_bytes()))
    }

    /// Everything that can be seen; `values`: of earlier versions too, which waits until all is stored.
    pub fn view(&self, values: bool) -> View {
        let (vault, caller) = (self.vault(), Caller::daemon());
        let mut view = view_of(vault, values);
        for (number, slot) in self.slots.iter().enumerate() {
            if let Some((handle, _)) = slot {
                let data = vault.read(&caller, *handle, 0, 1 << 30).unwrap();
                view.push(line(format!("slot {number}"), vec![("data", Fact::Is(data))]));
            }
        }
        view
    }
}

enum Failure {
    Vault(Error),
    Errno(i32),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Vault(error)
    }
}

fn is_history(original_path: &str) -> bool {
    original_path.parse::<ObjectId>().is_ok()
}

/// Everything that can be seen of a vault, open handles aside.
pub fn view_of(vault: &Vault, values: bool) -> View {
    let caller = Caller::daemon();
    let mut view = View::new();
    for name in ORGANIZATIONS {
        let organization = vault.organization(name).unwrap();
        let mut paths: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut tree = View::new();
        let top = vault.lookup(&caller, Ino::ROOT, name.as_bytes()).unwrap().ino;
        view_folder(vault, top, name, values, &mut tree, &mut paths);
        let all = ObjectQuery { organizations: Some(vec![name.to_owned()]), limit: usize::MAX, ..Default::default() };
        let listed = vault.list_objects(&all).unwrap().objects;
        for object in &listed {
            let names = paths.get(&object.id).unwrap_or_else(|| panic!("{} is listed, but not there", object.id));
            assert!(names.contains(&format!("{name}/{}", object.path)), "{} is not at {}", object.id, object.path);
            let versions = vault.versions(object.id.parse().unwrap()).unwrap();
            assert_eq!((object.version, object.versions), (versions[0].version, versions.len() as u64));
            assert_eq!(object.version_id.as_ref(), Some(&versions[0].id));
        }
        let facts = vec![
            ("objects", Fact::number(organization.objects as usize)),
            ("bytes", Fact::number(organization.bytes as usize)),
            ("tombstones", Fact::number(organization.tombstones as usize)),
            ("listed", Fact::number(listed.len())),
        ];
        view.push(line(format!("organization {name}"), facts));
        view.append(&mut tree);
        for (number, grave) in vault.tombstones(Some(name)).unwrap().iter().enumerate() {
            let path = if is_history(&grave.original_path) { "a history" } else { &grave.original_path };
            let facts = vec![
                ("object", Fact::Named(grave.id.clone())),
                ("path", Fact::text(path)),
                ("size", Fact::number(grave.size as usize)),
            ];
            view.push(line(format!("tombstone {number} of {name}"), facts));
        }
    }
    view
}

fn view_folder(
    vault: &Vault,
    folder: Ino,
    path: &str,
    values: bool,
    view: &mut View,
    paths: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let caller = Caller::daemon();
    let mut entries: BTreeMap<String, DirEntry> = BTreeMap::new();
    let mut add = |entry: DirEntry| entries.insert(String::from_utf8(entry.name.clone()).unwrap(), entry).is_none();
    vault.read_directory(&caller, folder, 0, &mut add).unwrap();
    for (name, entry) in entries {
        let path = format!("{path}/{name}");
        let looked_up = vault.lookup(&caller, folder, name.as_bytes());
        let attr = looked_up.unwrap_or_else(|error| panic!("{path} is listed, but: {error}"));
        assert_eq!((attr.ino, attr.mode & libc::S_IFMT), (entry.ino, entry.kind), "{path}");
        let mut facts = vec![
            ("inode", Fact::Named(attr.ino.0.to_string())),
            ("links", Fact::number(attr.links as usize)),
            ("mode", Fact::text(&format!("{:o}", attr.mode & 0o7777))),
            ("attributes", Fact::text(&attributes(vault, attr.ino))),
        ];
        match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => {
                view.push(line(path.clone(), facts));
                view_folder(vault, attr.ino, &path, values, view, paths);
                continue;
            }
            libc::S_IFLNK => {
                let target = vault.read_link(&caller, attr.ino).unwrap();
                facts.push(("target", Fact::Is(target)));
            }
            _ => {
                let id = vault.find_object(path.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"));
                paths.entry(id.to_string()).or_default().insert(path.clone());
                facts.push(("object", Fact::Named(id.to_string())));
                facts.push(("size", Fact::number(attr.size as usize)));
                let access = Access { read: true, ..Access::default() };
                let handle = vault.open_file(&caller, attr.ino, access).unwrap();
                let data = vault.read(&caller, handle, 0, attr.size as usize + 10);
                facts.push(("data", Fact::Is(data.unwrap_or_else(|error| panic!("{path}: {error}")))));
                vault.release(handle).unwrap();
                match vault.versions(id) {
                    Ok(versions) => {
                        for version in versions.iter().rev() {
                            facts.push(("version", Fact::number(version.version as usize)));
                            facts.push(("version id", Fact::Named(version.id.clone())));
                            facts.push(("version's size", Fact::number(version.size as usize)));
                            if values {
                                let value = old_value(vault, id, version.version);
                                facts.push(("version's value", Fact::Is(value)));
                            }
                        }
                    }
                    Err(Error::NotFound) => {}
                    Err(error) => panic!("{path}: {error}"),
                }
            }
        }
        view.push(line(path, facts));
    }
}

fn attributes(vault: &Vault, ino: Ino) -> String {
    let caller = Caller::daemon();
    let names = vault.list_xattr(&caller, ino).unwrap();
    let own = names.into_iter().filter(|name| !name.starts_with(b"user.vault."));
    let shown = own.map(|name| {
        let value = vault.get_xattr(&caller, ino, &name).unwrap();
        format!("{}={}", String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap())
    });
    shown.collect::<Vec<_>>().join(" ")
}

pub fn old_value(vault: &Vault, id: ObjectId, ordinal: u64) -> Vec<u8> {
    let mut value = Vec::new();
    let read = vault.read_object(id, Some(ordinal), &mut |part| {
        value.extend_from_slice(part);
        Ok(())
    });
    read.unwrap_or_else(|error| panic!("version {ordinal} of {id}: {error}"));
    value
}
