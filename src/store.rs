//! The store: sealed records in SQLite, sealed contents in segment files, one owner at a time.
//!
//! It never sees a plaintext byte; keys and values are whatever the vault sealed. Every change to the
//! state directory passes through one seam, [`Disk`], where a test can watch it, fail it or stop it.
//!
//! What holds after a crash rests on three rules, kept by the vault with what is offered here:
//! 1. [`Segments::sync`] returns before the [`Rows::commit`] whose records name the synced bytes begins;
//! 2. [`Segments::punch`] and [`Segments::remove`] begin after the commit that forgets the bytes is durable;
//! 3. after a failed sync nothing is written any more: the kernel may have dropped what it could not
//!    write, and a second `fsync` would report success.

mod disk;
mod lock;
mod reserve;
mod rows;
mod segments;
mod space;
mod table;

pub use disk::{Disk, Op, RealDisk};
pub use lock::StateLock;
pub use reserve::Reserve;
pub use rows::{Durability, Rows, Statistics};
pub use segments::{Place, SEGMENT_LIMIT, Segments};
pub use space::{Space, space};
pub use table::{Change, Key, Table};

use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space or quota left (`ENOSPC`, `EDQUOT`, `SQLITE_FULL`). Nothing was changed; the same call
    /// succeeds once there is space.
    #[error("no space left: {0}")]
    Full(String),
    /// The disk or the kernel refused, or an earlier sync failed and only a remount helps.
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// What is there is not what was written: not a database, another format, a segment that ends too early.
    #[error("corrupt store: {0}")]
    Corrupt(String),
    /// Another process owns the state directory.
    #[error("the state directory is in use{}; unmount that vault, or wait until the process has ended", pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Locked { pid: Option<u32> },
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

impl StoreError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => StoreError::Full(format!("{what} {}", path.display())),
            _ => StoreError::Io { what, path: path.to_owned(), source },
        }
    }

    /// For want of space too: what a failed sync was to write may be lost, and no second try would tell.
    fn failed_sync(path: &Path, source: io::Error) -> Self {
        StoreError::Io { what: "sync", path: path.to_owned(), source }
    }

    fn earlier_sync_failed(path: &Path) -> Self {
        StoreError::io("write to", path, io::Error::other("an earlier sync failed; remount"))
    }
}
