//! Connections that only read: as many as there are threads reading, a few kept for the next.

use super::{PATIENCE, STATEMENTS};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

/// Kept while nobody reads; opening one costs some hundred microseconds.
const IDLE: usize = 16;
/// Small, because each commit empties it: a reader cannot know which of its pages have changed. The vault
/// caches what it decrypted and the kernel caches the file.
const CACHE_KIB: i64 = 2 << 10;

pub struct Readers {
    path: PathBuf,
    vfs: CString,
    /// The last one used is the first one used again: its cache is the warmest.
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub fn new(path: &Path, vfs: &CStr) -> Self {
        Readers { path: path.to_owned(), vfs: vfs.to_owned(), idle: Mutex::default() }
    }

    /// Runs `query` on a connection of its own. One that failed is not used again.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.idle.lock().pop();
        let reader = match idle {
            Some(reader) => reader,
            None => self.connect()?,
        };
        let answer = query(&reader)?;
        let mut idle = self.idle.lock();
        if idle.len() < IDLE {
            idle.push(reader);
        }
        Ok(answer)
    }

    pub fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags_and_vfs(&self.path, flags, self.vfs.as_c_str())?;
        super::keep_plans(&reader)?;
        reader.busy_timeout(PATIENCE)?;
        reader.set_prepared_statement_cache_capacity(STATEMENTS);
        reader.pragma_update(None, "temp_store", "MEMORY")?;
        reader.pragma_update(None, "mmap_size", 0)?;
        reader.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(reader)
    }
}
