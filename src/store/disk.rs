//! The seam between the store and the disk: every change is announced before it happens.
//!
//! SQLite's changes come through its VFS (`rows/vfs.rs`), the segments' and the header's directly. What means
//! nothing after a crash stays outside: SQLite's `-shm` index, which the first connection rebuilds, `STATE/lock`
//! and the audit log.

#[cfg(test)]
pub(super) mod recording;

use super::{Result, StoreError};
use std::fs::File;
use std::io;
use std::path::Path;

/// One change to the state directory.
///
/// Replaying all of them, up to any of them, gives what a kill leaves behind. A power loss may also undo
/// each one that no later [`Op::Sync`] of its file (or [`Op::SyncDirectory`] of its parent, for names) covers.
#[derive(Debug)]
pub enum Op<'a> {
    /// A new, empty file; its directory's entry too.
    Create {
        path: &'a Path,
    },
    CreateDirectory {
        path: &'a Path,
    },
    /// `parts`, one after the other, from byte `offset` on.
    Write {
        path: &'a Path,
        offset: u64,
        parts: &'a [&'a [u8]],
    },
    /// The file is `len` bytes long afterwards.
    Truncate {
        path: &'a Path,
        len: u64,
    },
    /// These bytes read as zero afterwards and take no blocks; the file's length stays.
    Punch {
        path: &'a Path,
        offset: u64,
        len: u64,
    },
    /// Everything written to this file, and its length, is on the platter afterwards.
    Sync {
        path: &'a Path,
    },
    /// The names in this directory are on the platter afterwards.
    SyncDirectory {
        path: &'a Path,
    },
    /// A file gets another name, in the place of whatever had it.
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    /// A file, or an empty directory.
    Remove {
        path: &'a Path,
    },
}

/// Is asked before each change.
///
/// An error is returned in place of the change, which then does not happen; `ENOSPC` and `EDQUOT` count as
/// a full disk. It is called from inside SQLite's C code, so it must not panic: a test that wants the
/// world to stop returns errors from there on.
pub trait Disk: Send + Sync {
    fn before(&self, op: &Op<'_>) -> io::Result<()>;
}

/// Lets everything happen.
pub struct RealDisk;

impl Disk for RealDisk {
    fn before(&self, _: &Op<'_>) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn sync_directory(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.before(&Op::SyncDirectory { path })
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| StoreError::failed_sync(path, error))
}
