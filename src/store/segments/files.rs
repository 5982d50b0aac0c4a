//! The files of the segments: their names, the few that are open, and those that a sync has still to reach.

use crate::store::disk::sync_directory;
use crate::store::{Disk, Op, Result, StoreError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Open descriptors that are kept for their next use.
const KEPT: usize = 32;
/// Files written to and not yet synced. Each keeps its descriptor, because a writeback error is reported only to
/// those that were open when it happened; a file more makes all of them sync at once.
const UNSYNCED: usize = 32;
/// `IOV_MAX` of Linux.
const PARTS: usize = 1024;

/// One segment file, by its numbers.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Segment {
    pub org: u32,
    pub number: u32,
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}/{:08x}", self.org, self.number)
    }
}

pub struct Files {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    kept: Cache<Segment, Arc<File>>,
    unsynced: Mutex<Unsynced>,
    /// Directories that are there, and so are their names: now, or after the next sync.
    named: Mutex<BTreeSet<PathBuf>>,
    /// Held during a sync: a second one must not return before the first has done what it took over.
    syncing: Mutex<()>,
    sync_failed: AtomicBool,
}

#[derive(Default)]
struct Unsynced {
    files: BTreeMap<Segment, Arc<File>>,
    directories: BTreeSet<PathBuf>,
}

impl Files {
    /// Creates `root` when it is missing.
    pub fn open(root: PathBuf, disk: Arc<dyn Disk>) -> Result<Self> {
        let files = Files {
            root,
            disk,
            kept: Cache::new(KEPT),
            unsynced: Mutex::default(),
            named: Mutex::default(),
            syncing: Mutex::default(),
            sync_failed: AtomicBool::new(false),
        };
        files.create_directory(&files.root)?;
        Ok(files)
    }

    pub fn failed(&self, what: &'static str, segment: Segment, error: io::Error) -> StoreError {
        StoreError::io(what, &self.path(segment), error)
    }

    /// The file, or `None` when there is none.
    pub fn existing(&self, segment: Segment) -> Result<Option<Arc<File>>> {
        let open = || File::options().read(true).write(true).open(self.path(segment)).map(Arc::new);
        match self.kept.get_or_insert_with(&segment, open) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("open", segment, error)),
        }
    }

    pub fn open_or_create(&self, segment: Segment) -> Result<Arc<File>> {
        let (directory, path) = (self.directory(segment.org), self.path(segment));
        self.create_directory(&directory)?;
        if let Some(file) = self.existing(segment)? {
            return Ok(file);
        }
        self.ask("create", &Op::Create { path: &path }, &path)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = Arc::new(file.map_err(|error| StoreError::io("create", &path, error))?);
        self.kept.insert(segment, Arc::clone(&file));
        self.unsynced.lock().directories.insert(directory);
        Ok(file)
    }

    pub fn size(&self, segment: Segment, file: &File) -> Result<u64> {
        Ok(file.metadata().map_err(|error| self.failed("look at", segment, error))?.len())
    }

    pub fn write(&self, segment: Segment, file: &Arc<File>, offset: u64, parts: &[&[u8]]) -> Result<()> {
        let crowded = {
            let unsynced = &self.unsynced.lock().files;
            unsynced.len() >= UNSYNCED && !unsynced.contains_key(&segment)
        };
        if crowded {
            self.sync()?;
        }
        let path = self.path(segment);
        self.ask("write to", &Op::Write { path: &path, offset, parts }, &path)?;
        write_all(file, offset, parts).map_err(|error| StoreError::io("write to", &path, error))?;
        self.unsynced.lock().files.insert(segment, Arc::clone(file));
        Ok(())
    }

    pub fn truncate(&self, segment: Segment, file: &File, len: u64) -> Result<()> {
        let path = self.path(segment);
        self.ask("truncate", &Op::Truncate { path: &path, len }, &path)?;
        file.set_len(len).map_err(|error| StoreError::io("truncate", &path, error))
    }

    pub fn punch(&self, segment: Segment, file: &File, offset: u64, len: u64) -> Result<()> {
        let path = self.path(segment);
        self.ask("punch", &Op::Punch { path: &path, offset, len }, &path)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: an open descriptor and integers.
        match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) } {
            0 => Ok(()),
            _ => Err(StoreError::io("punch", &path, io::Error::last_os_error())),
        }
    }

    /// Fine when it is gone already.
    pub fn remove(&self, segment: Segment) -> Result<()> {
        let path = self.path(segment);
        self.ask("remove", &Op::Remove { path: &path }, &path)?;
        self.kept.remove(&segment);
        self.unsynced.lock().files.remove(&segment);
        gone(fs::remove_file(&path)).map_err(|error| StoreError::io("remove", &path, error))
    }

    /// Durable when it returns.
    pub fn remove_directory(&self, org: u32) -> Result<()> {
        let path = self.directory(org);
        self.ask("remove", &Op::Remove { path: &path }, &path)?;
        self.named.lock().remove(&path);
        self.unsynced.lock().directories.remove(&path);
        gone(fs::remove_dir(&path)).map_err(|error| StoreError::io("remove", &path, error))?;
        self.sync_directory(&self.root)
    }

    /// How many files were synced; the directories of new ones are synced too, but not counted.
    pub fn sync(&self) -> Result<u32> {
        let _syncing = self.syncing.lock();
        self.refuse_after_failed_sync(&self.root)?;
        let Unsynced { files, directories } = std::mem::take(&mut *self.unsynced.lock());
        let synced = files.iter().try_for_each(|(segment, file)| {
            let path = self.path(*segment);
            let asked = self.disk.before(&Op::Sync { path: &path });
            asked.and_then(|()| file.sync_data()).map_err(|error| StoreError::failed_sync(&path, error))
        });
        let synced = synced.and_then(|()| directories.iter().try_for_each(|path| self.sync_directory(path)));
        synced.inspect_err(|_| self.sync_failed.store(true, Ordering::SeqCst))?;
        Ok(files.len() as u32)
    }

    /// In order, with their sizes.
    pub fn segments(&self, org: u32) -> Result<Vec<(u32, u64)>> {
        numbered(&self.directory(org), |entry| Ok(entry.metadata()?.len()))
    }

    /// In order.
    pub fn organizations(&self) -> Result<Vec<u32>> {
        Ok(numbered(&self.root, |_| Ok(()))?.into_iter().map(|(org, ())| org).collect())
    }

    fn directory(&self, org: u32) -> PathBuf {
        self.root.join(format!("{org:08x}"))
    }

    fn path(&self, segment: Segment) -> PathBuf {
        self.root.join(segment.to_string())
    }

    fn create_directory(&self, path: &Path) -> Result<()> {
        if self.named.lock().contains(path) {
            return Ok(());
        }
        if !path.is_dir() {
            self.ask("create", &Op::CreateDirectory { path }, path)?;
            DirBuilder::new().mode(0o700).create(path).map_err(|error| StoreError::io("create", path, error))?;
        }
        // What is there already, in it too, may have been made by a process that was killed before its sync.
        self.unsynced.lock().directories.extend(path.parent().into_iter().chain([path]).map(Path::to_owned));
        self.named.lock().insert(path.to_owned());
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> Result<()> {
        match sync_directory(&*self.disk, path) {
            // Its organization was removed while the sync was under way.
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    fn ask(&self, what: &'static str, op: &Op<'_>, path: &Path) -> Result<()> {
        self.refuse_after_failed_sync(path)?;
        self.disk.before(op).map_err(|error| StoreError::io(what, path, error))
    }

    fn refuse_after_failed_sync(&self, path: &Path) -> Result<()> {
        match self.sync_failed.load(Ordering::SeqCst) {
            true => Err(StoreError::earlier_sync_failed(path)),
            false => Ok(()),
        }
    }
}

/// Asks the kernel to begin writing; it may decline, and errors are for the sync to find.
pub fn start_writeback(file: &File, offset: u64, len: u64) {
    // SAFETY: an open descriptor and integers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE) };
}

fn write_all(file: &File, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    // Empty parts at the front would make a write of nothing look like a full disk.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let count = left.len().min(PARTS) as i32;
        // SAFETY: an `IoSlice` is an `iovec` of readable bytes (std promises the layout), and there are `count`.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), left.as_ptr().cast(), count, offset as i64) };
        match usize::try_from(written) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut left, written);
                offset += written as u64;
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Ranges that hold data; where a file system cannot tell, all of it.
pub fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
    let seek = |from: u64, whence| -> io::Result<Option<u64>> {
        // SAFETY: an open descriptor and integers. Nobody uses the descriptor's position.
        let at = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
        match u64::try_from(at) {
            Ok(at) => Ok(Some(at)),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    };
    let (mut ranges, mut from) = (Vec::new(), 0);
    while let Some(start) = seek(from, libc::SEEK_DATA)? {
        let Some(end) = seek(start, libc::SEEK_HOLE)?.filter(|end| *end > start) else { break };
        ranges.push(start..end);
        from = end;
    }
    Ok(ranges)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The entries of a directory whose names are 8 hex digits, in order; none when there is no directory.
fn numbered<T>(directory: &Path, value: impl Fn(&DirEntry) -> io::Result<T>) -> Result<Vec<(u32, T)>> {
    let list = || -> io::Result<_> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| u32::from_str_radix(name, 16).ok());
            if let Some(number) = number.filter(|number| entry.file_name() == format!("{number:08x}").as_str()) {
                entries.push((number, value(&entry)?));
            }
        }
        entries.sort_unstable_by_key(|(number, _)| *number);
        Ok(entries)
    };
    match list() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(|error| StoreError::io("list", directory, error)),
    }
}
