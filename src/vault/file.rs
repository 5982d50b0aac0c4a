//! Open files: reading and writing, sizes, holes, and what a close commits.

mod copying;
#[cfg(test)]
mod tests;

use super::changes::Run;
use super::content::Content;
use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::records::Tx;
use super::row::{ContentRecord, Node, Object, Pending, Task};
use super::time::Time;
use super::versions::VERSIONS_STAY;
use super::writer::Then;
use super::{Access, Allocate, Attr, Caller, Handle, Make, Seek, SetAttr, Vault};
use crate::crypto::LockedKey;
use crate::keys::Patience;
use crate::store::Durability;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest file: offsets are signed 64-bit numbers in the kernel.
const SIZE_MAX: u64 = i64::MAX as u64;

/// One open of one file.
pub struct OpenFile {
    pub ino: Ino,
    access: Access,
    content: Arc<Content>,
    /// Made by the open: at its end the empty value is a version too, if nothing was written.
    created: bool,
    /// Changed something since its last flush.
    wrote: AtomicBool,
    /// Emptied, and neither written nor closed since.
    emptied: AtomicBool,
    /// Who closed it emptied, when that was left to the next close.
    left: Mutex<Option<Caller>>,
}

impl OpenFile {
    fn new(ino: Ino, access: Access, content: Arc<Content>, created: bool) -> Self {
        let (wrote, emptied) = Default::default();
        OpenFile { ino, access, content, created, wrote, emptied, left: Mutex::default() }
    }

    /// Made without a name; who makes it commits its value by giving it one.
    pub fn nameless(ino: Ino, access: Access, content: Arc<Content>) -> Self {
        Self::new(ino, access, content, false)
    }

    fn note_write(&self) {
        self.wrote.store(true, Ordering::Relaxed);
        self.emptied.store(false, Ordering::Relaxed);
    }

    fn note_resize(&self, size: u64) {
        let wrote = self.wrote.swap(true, Ordering::Relaxed);
        self.emptied.store(size == 0 && !wrote, Ordering::Relaxed);
    }
}

/// Open files by handle, and by what each inode is open.
#[derive(Default)]
pub struct Handles(Mutex<Table>);

#[derive(Default)]
pub struct Table {
    last: u64,
    files: HashMap<Handle, Arc<OpenFile>>,
    open: HashMap<Ino, Opens>,
}

/// By what an inode is open, and whether one of the opens made it.
#[derive(Default)]
struct Opens {
    handles: Vec<Handle>,
    created: bool,
}

impl Table {
    pub fn is_open(&self, ino: Ino) -> bool {
        self.open.contains_key(&ino)
    }

    pub fn has_open_files_of(&self, org: OrgNo) -> bool {
        self.open.keys().any(|ino| ino.organization() == org)
    }

    /// The open files of an organization.
    pub fn of(&self, org: OrgNo) -> Vec<Handle> {
        self.files.iter().filter(|(_, file)| file.ino.organization() == org).map(|(handle, _)| *handle).collect()
    }

    /// The inodes of an organization that are open.
    pub fn open_in(&self, org: OrgNo) -> Vec<Ino> {
        self.open.keys().copied().filter(|ino| ino.organization() == org).collect()
    }

    pub fn add(&mut self, file: OpenFile) -> Handle {
        self.last += 1;
        let opens = self.open.entry(file.ino).or_default();
        opens.handles.push(Handle(self.last));
        opens.created |= file.created;
        self.files.insert(Handle(self.last), Arc::new(file));
        Handle(self.last)
    }

    fn writers(&self, ino: Ino) -> impl Iterator<Item = &Arc<OpenFile>> {
        let handles = self.open.get(&ino).map_or(&[][..], |opens| &opens.handles);
        handles.iter().filter_map(|handle| self.files.get(handle)).filter(|file| file.access.write)
    }

    /// Makes a change of the size one of everybody who has the inode open for writing; false if nobody has.
    fn leave_to_writers(&self, ino: Ino, size: u64) -> bool {
        self.writers(ino).map(|file| file.note_resize(size)).count() > 0
    }
}

impl Handles {
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }

    fn find(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        self.0.lock().files.get(&handle).cloned().ok_or(Error::BadHandle)
    }
}

impl Vault {
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        access: Access,
    ) -> Result<(Attr, Handle)> {
        self.check_writable_folder(parent)?;
        self.enter(parent, caller.patience)?;
        self.signals.admit(caller.patience == Patience::Wait)?;
        self.check_space(caller, 0)?;
        let (tx, ino, node) = self.make_in(caller, parent, name, mode, Make::File)?;
        let content = self.contents.get(ino);
        content.is_new();
        let handle = self.handles.lock().add(OpenFile::new(ino, access, content, true));
        self.finish(tx);
        Ok((Attr::of(ino, &node), handle))
    }

    /// Opens a file. Its key is unwrapped now, so that reading does not fail later for want of it.
    pub fn open_file(&self, caller: &Caller, ino: Ino, access: Access) -> Result<Handle> {
        if ino.is_in_versions() {
            return self.open_version(caller, ino, access);
        }
        self.enter(ino, caller.patience)?;
        let content = self.contents.get(ino);
        self.openable(ino, || self.handles.lock().is_open(ino))?;
        if self.records.get::<ContentRecord>(ino)?.is_some() {
            self.content_key(&content, caller.patience)?;
        }
        let handle = {
            let mut handles = self.handles.lock();
            // Again, now that nobody can take its last name away.
            self.openable(ino, || handles.is_open(ino))?;
            handles.add(OpenFile::new(ino, access, content, false))
        };
        if access.truncate
            && let Err(error) = self.set_size(caller, ino, 0, Some(handle))
        {
            self.release(handle)?;
            return Err(error);
        }
        Ok(handle)
    }

    fn openable(&self, ino: Ino, is_open: impl Fn() -> bool) -> Result<()> {
        // A save, or a put, may have replaced it since its name was looked up.
        let node = self.records.get::<Node>(ino)?.ok_or(Error::Stale("the file is gone"))?;
        if node.object().is_none() {
            return Err(if node.kind.is_directory() {
                Error::IsADirectory
            } else {
                Error::Invalid("not a regular file")
            });
        }
        self.check_no_tombstone(ino, &node, is_open, Error::Denied("deleted: restore it to read it"))
    }

    /// Whether somebody has the file open for writing: the kernel may hold data of it that the vault has not seen.
    pub fn has_writers(&self, ino: Ino) -> bool {
        self.handles.lock().writers(ino).next().is_some()
    }

    pub fn read(&self, caller: &Caller, handle: Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        if handle.is_of_version() {
            return self.read_view(caller, handle, offset, len);
        }
        let file = self.handles.find(handle)?;
        self.enter(file.ino, caller.patience)?;
        let size = self.records.get::<Node>(file.ino)?.ok_or(Error::NotFound)?.size;
        let len = size.saturating_sub(offset).min(len as u64) as usize;
        let mut buffer = vec![0; len];
        if len > 0 {
            self.read_content(&file.content, offset, &mut buffer, caller.patience)?;
        }
        Ok(buffer)
    }

    /// Writes as the handle was opened: at `offset`, or at the end.
    pub fn write(&self, caller: &Caller, handle: Handle, offset: u64, data: &[u8]) -> Result<()> {
        let append = self.handles.find(handle)?.access.append;
        self.write_at(caller, handle, if append { None } else { Some(offset) }, data)
    }

    /// `None`: at the end, wherever that is by then.
    pub fn write_at(&self, caller: &Caller, handle: Handle, offset: Option<u64>, data: &[u8]) -> Result<()> {
        let file = self.handles.find(handle)?;
        if !file.access.write {
            return Err(Error::BadHandle);
        }
        self.enter(file.ino, caller.patience)?;
        self.signals.admit(caller.patience == Patience::Wait)?;
        self.check_space(caller, data.len() as u64)?;
        let mut state = file.content.state.write();
        self.changeable_map(file.ino, &mut state)?;
        let mut tx = self.begin()?;
        let node = tx.need::<Node>(file.ino)?;
        let offset = offset.unwrap_or(node.size);
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX).ok_or(Error::TooBig)?;
        let mut key = state.key.clone();
        while key.is_none() {
            // Asking the token may take long; nobody may wait for that in the transaction.
            drop(tx);
            let (brought, fresh) = self.bring_key(caller, &file.content)?;
            tx = self.begin()?;
            if let Some(record) = fresh {
                let first = tx.get::<ContentRecord>(file.ino)?.is_none();
                if !(first && self.wraps_now(&tx, file.ino.organization(), &record.wrapped, &record.context)?) {
                    continue;
                }
                // Who it is for is asked here: a rename may have given the file to another object meanwhile.
                let owners = tx.need::<Node>(file.ino)?.object().into_iter().collect();
                tx.put_new(file.ino, ContentRecord { owners, ..record });
            }
            key = Some(brought);
        }
        let node = tx.need::<Node>(file.ino)?;
        let epoch = node.epoch;
        let strip = stripped(caller, &node);
        self.change_value(&mut tx, file.ino, &node, node.size.max(end), strip)?;
        state.key = key;
        self.change_content(tx, &file.content, data.len(), |batch| state.changes(batch, epoch).write(offset, data));
        file.note_write();
        Ok(())
    }

    /// The content's key; for a content that has none a new one, and the record that has to be stored with it, which
    /// names no owner yet.
    fn bring_key(&self, caller: &Caller, content: &Content) -> Result<(Arc<LockedKey>, Option<ContentRecord>)> {
        if self.records.get::<ContentRecord>(content.ino)?.is_some() {
            return Ok((self.content_key(content, caller.patience)?, None));
        }
        let organization = self.organizations.find(content.ino.organization()).ok_or(Error::NotFound)?;
        let (fresh, record) = self.new_key(&organization, content.ino, organization.context(), caller.patience)?;
        Ok((fresh.key, Some(record)))
    }

    /// The value changes: size, times, and that no version holds it yet.
    fn change_value(&self, tx: &mut Tx, ino: Ino, node: &Node, size: u64, strip: u32) -> Result<()> {
        let now = Time::now();
        if !node.changed {
            tx.put_new((ino, Task::Commit), Pending { epoch: 0 });
        }
        if size != node.size && node.links > 0 {
            let old = node.size;
            self.check_quota(ino.organization(), 0, size.saturating_sub(old))?;
            self.count(tx, ino.organization(), move |org| {
                org.bytes = (org.bytes + u128::from(size)).saturating_sub(old.into());
            })?;
        }
        tx.put(ino, Node { size, mtime: now, ctime: now, changed: true, mode: node.mode & !strip, ..node.clone() });
        Ok(())
    }

    /// Commits a transaction and makes its changes of a content, whose state the caller holds locked.
    fn change_content(&self, mut tx: Tx, content: &Arc<Content>, bytes: usize, change: impl FnOnce(u64)) {
        tx.change_content(content.clone(), bytes);
        let batch = self.finish(tx);
        change(batch);
    }

    /// A close of one descriptor: commits a version if this writer changed the value.
    pub fn flush(&self, caller: &Caller, handle: Handle) -> Result<()> {
        if handle.is_of_version() {
            return Ok(());
        }
        let file = self.handles.find(handle)?;
        self.signals.check()?;
        if !file.access.write || !file.wrote.load(Ordering::Relaxed) {
            return Ok(());
        }
        if file.emptied.swap(false, Ordering::Relaxed) && !self.settings.sync_on_close && !self.is_guarded(file.ino)? {
            // `> file` in a shell: it closes one of two descriptors before anything is written. The other's close
            // commits, or the release.
            *file.left.lock() = Some(caller.clone());
            return Ok(());
        }
        if self.settings.sync_on_close && caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        let batch = self.commit_open(caller, &file)?;
        file.wrote.store(false, Ordering::Relaxed);
        match batch {
            Some(batch) if self.settings.sync_on_close => self.signals.wait_for(batch, Durability::Synced),
            _ => Ok(()),
        }
    }

    fn is_guarded(&self, ino: Ino) -> Result<bool> {
        Ok(self.records.get::<Node>(ino)?.is_some_and(|node| node.guard.is_some()))
    }

    fn commit_open(&self, caller: &Caller, file: &OpenFile) -> Result<Option<u64>> {
        let mut tx = self.begin()?;
        let Some(node) = tx.get::<Node>(file.ino)? else { return Ok(None) };
        if node.links == 0 && node.grave.is_none() && node.guard.is_none() {
            return Ok(None);
        }
        self.commit_version(&mut tx, caller, file.ino, false)?;
        Ok(Some(self.finish(tx)))
    }

    /// The last reference to an open file is gone.
    pub fn release(&self, handle: Handle) -> Result<()> {
        if handle.is_of_version() {
            return self.close_version(handle);
        }
        let file = self.handles.find(handle)?;
        if let Some(caller) = file.left.lock().take()
            && file.wrote.load(Ordering::Relaxed)
        {
            // If it fails, the last release tries again, or the next mount.
            let _ = self.commit_open(&caller, &file);
        }
        let created = {
            let mut handles = self.handles.lock();
            handles.files.remove(&handle);
            let opens = handles.open.get_mut(&file.ino).expect("every handle is counted");
            opens.handles.retain(|open| *open != handle);
            let (last, created) = (opens.handles.is_empty(), opens.created);
            if !last {
                return Ok(());
            }
            handles.open.remove(&file.ino);
            created
        };
        self.contents.closed(file.content.clone());
        let mut tx = self.begin()?;
        if let Some(opens) = self.handles.lock().open.get_mut(&file.ino) {
            // Opened again since: what that writer is in the middle of is no version yet.
            opens.created |= created;
            return Ok(());
        }
        let Some(node) = tx.get::<Node>(file.ino)? else { return Ok(()) };
        if node.links > 0 || node.grave.is_some() {
            if node.changed || created {
                // What a mapping wrote after the last close. A lost version check was reported there.
                let committed = self.commit_version(&mut tx, &Caller::owner(&node), file.ino, created);
                if committed.is_ok() {
                    self.finish(tx);
                }
            }
            return Ok(());
        }
        if self.is_known(file.ino) {
            return Ok(());
        }
        self.end_orphan(&mut tx, file.ino, &node)?;
        self.finish(tx);
        Ok(())
    }

    /// Removes an inode that lost its last name and its last handle, and that the kernel has forgotten.
    pub(super) fn end_orphan(&self, tx: &mut Tx, ino: Ino, node: &Node) -> Result<()> {
        tx.delete::<Pending>((ino, Task::Orphan));
        tx.delete::<Pending>((ino, Task::Commit));
        self.remove_node(tx, ino, node, false)?;
        match node.object() {
            Some(id) => self.destroy_unneeded(tx, ino, id),
            None => Ok(()),
        }
    }

    pub fn fsync(&self, handle: Handle) -> Result<()> {
        self.check_value(handle)?;
        self.sync()
    }

    /// As [`Vault::fsync`], or for a directory without a handle, for a caller who has no time: `then` is told of the outcome,
    /// perhaps on another thread.
    pub fn fsync_then(&self, handle: Option<Handle>, then: Then) {
        match handle.map_or(Ok(()), |handle| self.check_value(handle)) {
            Ok(()) => self.signals.once_synced(self.records.last_batch(), then),
            Err(error) => then(Err(error)),
        }
    }

    /// Refuses to vouch for a value that its version check has lost.
    fn check_value(&self, handle: Handle) -> Result<()> {
        if handle.is_of_version() {
            return Ok(());
        }
        let file = self.handles.find(handle)?;
        if let Some(node) = self.records.get::<Node>(file.ino)?
            && node.changed
            && let (Some(expected), Some(id)) = (node.guard, node.object())
            && let Some(object) = self.records.get::<Object>((file.ino.organization(), id))?
            && let Some(current) = object.current()
            && expected.belongs_to(id)
            && (object.ino != file.ino || current.id != expected)
        {
            return Err(Error::VersionLost { expected, current: current.id });
        }
        Ok(())
    }

    /// Everything answered so far is on the disk when this returns.
    pub fn sync(&self) -> Result<()> {
        self.signals.wait_for(self.records.last_batch(), Durability::Synced)
    }

    /// Everything answered so far is stored when this returns.
    pub(super) fn settle(&self) -> Result<()> {
        self.signals.wait_for(self.records.last_batch(), Durability::Ordered)
    }

    pub fn set_attr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        if ino == Ino::ROOT || ino.is_graveyard() {
            return Err(Error::NotPermitted("the mount's owner and mode are its own"));
        }
        if ino.is_in_versions() {
            return Err(VERSIONS_STAY);
        }
        self.enter(ino, caller.patience)?;
        if let Some(size) = set.size {
            self.set_size(caller, ino, size, set.handle)?;
        }
        let mut tx = self.begin()?;
        let Some(node) = tx.get::<Node>(ino)? else {
            let changed = self.change_removed(ino, |last| {
                set_in(caller, &mut last.node, set);
                Ok(Attr::of(ino, &last.node))
            });
            return changed.unwrap_or(Err(Error::NotFound));
        };
        let mut node = (*node).clone();
        let refusal = Error::ReadOnly("tombstones can be restored or purged, nothing else");
        self.check_no_tombstone(ino, &node, || self.handles.lock().is_open(ino), refusal)?;
        let takes_set_ids = !node.kind.is_directory() && set_ids(caller, &node) != 0;
        if set.changes_nothing() && !set.written && !caller.owns(&node) && takes_set_ids {
            // Where somebody may be about to write, the write itself sees to it.
            return match self.has_writers(ino) {
                true => Ok(Attr::of(ino, &node)),
                false => Err(Error::NotPermitted("only its owner takes a file's set-id bits without changing it")),
            };
        }
        set_in(caller, &mut node, set);
        if set.mode.is_some() {
            self.follow_mode(&mut tx, ino, &node)?;
        }
        let attr = Attr::of(ino, &node);
        tx.put(ino, node);
        self.finish(tx);
        Ok(attr)
    }

    fn set_size(&self, caller: &Caller, ino: Ino, size: u64, handle: Option<Handle>) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Error::TooBig);
        }
        let file = handle.and_then(|handle| self.handles.find(handle).ok());
        let content = self.contents.get(ino);
        let mut state = content.state.write();
        self.changeable_map(ino, &mut state)?;
        let mut tx = self.begin()?;
        let node = tx.need::<Node>(ino)?;
        match node.object() {
            None if node.kind.is_directory() => return Err(Error::IsADirectory),
            None => return Err(Error::Invalid("not a regular file")),
            Some(_) => {
                self.check_no_tombstone(ino, &node, || file.is_some(), Error::Denied("deleted: restore it first"))?
            }
        }
        let strip = stripped(caller, &node);
        if size == node.size {
            // Truncating to its own size changes the times, not the value.
            let now = Time::now();
            self.change(&mut tx, ino, |node| (node.mtime, node.ctime, node.mode) = (now, now, node.mode & !strip))?;
            self.finish(tx);
            return Ok(());
        }
        self.change_value(&mut tx, ino, &node, size, strip)?;
        match &file {
            Some(file) => file.note_resize(size),
            // open(2) with O_TRUNC: the kernel truncates after the open. Or truncate(2) beside a writer.
            None if self.handles.lock().leave_to_writers(ino, size) => {}
            // truncate(2): nobody closes it.
            None => {
                self.commit_version(&mut tx, caller, ino, false)?;
            }
        }
        if size < node.size {
            let epoch = node.epoch;
            self.change_content(tx, &content, 0, |batch| state.changes(batch, epoch).punch(size..u64::MAX));
        } else {
            self.finish(tx);
        }
        Ok(())
    }

    pub fn allocate(&self, caller: &Caller, handle: Handle, mode: Allocate, offset: u64, len: u64) -> Result<()> {
        let file = self.handles.find(handle)?;
        if !file.access.write {
            return Err(Error::BadHandle);
        }
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Error::TooBig)?;
        if len == 0 {
            return Err(Error::Invalid("nothing to allocate"));
        }
        self.enter(file.ino, caller.patience)?;
        if matches!(mode, Allocate::Extend | Allocate::KeepSize) {
            self.check_space(caller, len)?;
        }
        let mut state = file.content.state.write();
        self.changeable_map(file.ino, &mut state)?;
        let mut tx = self.begin()?;
        let node = tx.need::<Node>(file.ino)?;
        let size = match mode {
            Allocate::Extend | Allocate::ZeroRange => node.size.max(end),
            Allocate::KeepSize | Allocate::PunchHole | Allocate::ZeroRangeKeepSize => node.size,
        };
        let strip = stripped(caller, &node);
        self.change_value(&mut tx, file.ino, &node, size, strip)?;
        file.note_write();
        match mode {
            Allocate::Extend | Allocate::KeepSize => {
                self.finish(tx);
            }
            Allocate::PunchHole | Allocate::ZeroRange | Allocate::ZeroRangeKeepSize => {
                let epoch = node.epoch;
                self.change_content(tx, &file.content, 0, |batch| state.changes(batch, epoch).punch(offset..end));
            }
        }
        Ok(())
    }

    /// The next data or hole at or after `offset`; a file ends in a hole.
    pub fn seek(&self, caller: &Caller, handle: Handle, offset: u64, whence: Seek) -> Result<u64> {
        if handle.is_of_version() {
            return self.seek_view(handle, offset, whence);
        }
        let file = self.handles.find(handle)?;
        self.enter(file.ino, caller.patience)?;
        let size = self.records.get::<Node>(file.ino)?.ok_or(Error::NotFound)?.size;
        if offset >= size {
            return Err(Error::NoSuchOffset);
        }
        let data = self.data_ranges(&file.content, offset..size)?;
        let inside = data.iter().find(|range| range.end > offset);
        match whence {
            Seek::Data => inside.map(|range| range.start.max(offset)).ok_or(Error::NoSuchOffset),
            Seek::Hole => match inside {
                Some(range) if range.start <= offset => Ok(range.end.min(size)),
                _ => Ok(offset),
            },
        }
    }

    /// The parts of `within` that hold data, joined where they touch.
    fn data_ranges(&self, content: &Content, within: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.load_map(content)?;
        let state = content.state.read();
        let map = state.map.as_ref().expect("loaded above, and never unloaded");
        let mut ranges: Vec<Range<u64>> =
            map.overlapping(within.clone()).map(|(at, piece)| at..at + u64::from(piece.len)).collect();
        for dirty in &state.dirty {
            for (start, end, run) in dirty.changes.overlapping(within.clone()) {
                let outside = |range: Range<u64>| [range.start..range.end.min(start), range.start.max(end)..range.end];
                ranges = ranges.into_iter().flat_map(outside).filter(|range| !range.is_empty()).collect();
                if !matches!(run, Run::Hole { .. }) {
                    ranges.push(start..end);
                }
            }
        }
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }

    /// Bytes of a content that are answered and not stored.
    pub(super) fn unstored_bytes(&self, ino: Ino) -> u64 {
        let Some(content) = self.contents.find(ino) else { return 0 };
        // A writer may hold it for long; `du` can wait for the next look.
        content.state.try_read().map_or(0, |state| state.unstored())
    }
}

/// Sets all but the size.
fn set_in(caller: &Caller, node: &mut Node, set: &SetAttr) {
    if (set.changes_nothing() || set.uid.is_some() || set.gid.is_some()) && !node.kind.is_directory() {
        node.mode &= !set_ids(caller, node);
    }
    (node.uid, node.gid) = (set.uid.unwrap_or(node.uid), set.gid.unwrap_or(node.gid));
    if let Some(mode) = set.mode {
        node.mode = mode & 0o7777;
    }
    node.atime = set.atime.unwrap_or(node.atime);
    node.mtime = set.mtime.unwrap_or(node.mtime);
    node.ctime = set.ctime.unwrap_or_else(Time::now);
}

/// The set-id bits that a change of the value takes away, as Linux does: none from root.
fn stripped(caller: &Caller, node: &Node) -> u32 {
    if caller.uid == 0 { 0 } else { set_ids(caller, node) }
}

/// The set-user-id bit; and set-group-id where the group may execute, and from who is not in the group.
fn set_ids(caller: &Caller, node: &Node) -> u32 {
    let held = node.mode & (libc::S_ISUID | libc::S_ISGID);
    let keeps = held & libc::S_ISGID != 0 && node.mode & libc::S_IXGRP == 0 && caller.keeps_set_gid(node.gid);
    if keeps { held & !libc::S_ISGID } else { held }
}
