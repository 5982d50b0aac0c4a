//! The records: sealed rows in one SQLite database, one writer, any number of readers.
//!
//! A commit is one SQLite transaction in write-ahead-log mode with `synchronous=NORMAL`: the log is
//! checksummed from its start, so whatever a power loss cuts off is its tail. [`Durability::Synced`] adds one
//! sync of the log after the commit, and that is the whole price of durability. Each commit that leaves more
//! than [`CHECKPOINT_PAGES`] in the log checkpoints as much as readers allow; readers never wait for either.

mod readers;
mod snapshot;
#[cfg(test)]
mod tests;
mod vfs;

use super::disk::sync_directory;
use super::{Change, Disk, Key, Op, Result, StoreError, Table};
use parking_lot::Mutex;
use readers::Readers;
use rusqlite::config::DbConfig;
use rusqlite::types::{FromSqlError, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, ffi};
use std::borrow::Borrow;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vfs::Vfs;

const FILE: &str = "records.db";
/// "VLTF": what `file(1)` and `PRAGMA application_id` say this database belongs to.
const APPLICATION: i32 = i32::from_be_bytes(*b"VLTF");
const FORMAT: i32 = 1;
const PAGE_SIZE: u32 = 4096;
/// 16 MiB of log.
const CHECKPOINT_PAGES: u32 = 4096;
const WRITER_CACHE_KIB: u32 = 16 << 10;
/// Room for all statements of all tables.
const STATEMENTS: usize = 64;
/// Only a truncating checkpoint waits, for readers that are in the middle of a scan.
const PATIENCE: Duration = Duration::from_secs(10);

pub use snapshot::Snapshot;

/// What must have happened when a commit returns.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Durability {
    /// It is in the log: survives the death of the process, and comes after every earlier commit and before
    /// every later one. A power loss may take it, with all that followed.
    Ordered,
    /// The log is on the platter: this commit and every earlier one survives a power loss.
    Synced,
}

/// Counters since the store was opened, for tests that assert exact costs.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Rows got, scans, counts, rows put and rows deleted; not `BEGIN`, `COMMIT` or pragmas.
    pub statements: u64,
    pub commits: u64,
    /// Files that SQLite or [`Rows::flush`] synced.
    pub syncs: u64,
}

/// `STATE/records.db`, open. Dropping it closes it as [`Rows::close`] does, with nobody to tell of errors.
pub struct Rows {
    // In the order of their drop: the last connection to close is the one that may write, and the VFS outlives both.
    readers: Readers,
    writer: Mutex<Connection>,
    vfs: Vfs,
    path: PathBuf,
    statements: AtomicU64,
    commits: AtomicU64,
}

impl Rows {
    /// A new, empty database in `dir`, durable when this returns; an error when there is one already.
    pub fn create(dir: &Path, disk: Arc<dyn Disk>) -> Result<Rows> {
        let path = dir.join(FILE);
        disk.before(&Op::Create { path: &path })
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path))
            .map_err(|error| StoreError::io("create", &path, error))?;
        let rows = Rows::connect(path, Arc::clone(&disk))?;
        rows.initialize().map_err(|error| rows.failed("create", error))?;
        rows.checkpoint_truncate()?;
        sync_directory(&*disk, dir)?;
        Ok(rows)
    }

    /// The database in `dir`, after rolling forward what its log holds. [`StoreError::Corrupt`] when it is not
    /// one of ours or of another format.
    pub fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<Rows> {
        let rows = Rows::connect(dir.join(FILE), disk)?;
        rows.recognize()?;
        Ok(rows)
    }

    fn connect(path: PathBuf, disk: Arc<dyn Disk>) -> Result<Rows> {
        let vfs = Vfs::new(disk);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let writer = Connection::open_with_flags_and_vfs(&path, flags, vfs.name())
            .and_then(|writer| configure(&writer).map(|()| writer))
            .map_err(|error| failed(&vfs, &path, "open", error))?;
        Ok(Rows {
            readers: Readers::new(&path, vfs.name()),
            writer: Mutex::new(writer),
            vfs,
            path,
            statements: AtomicU64::new(0),
            commits: AtomicU64::new(0),
        })
    }

    fn initialize(&self) -> rusqlite::Result<()> {
        let mut writer = self.writer.lock();
        writer.pragma_update(None, "page_size", PAGE_SIZE)?;
        writer.pragma_update(None, "journal_mode", "WAL")?;
        let transaction = writer.transaction()?;
        for table in Table::ALL {
            transaction.execute(table.sql().create, ())?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()
    }

    fn recognize(&self) -> Result<()> {
        let writer = self.writer.lock();
        let pragma = |name| {
            let value = writer.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            value.map_err(|error| self.failed("open", error))
        };
        let path = self.path.display();
        if pragma("application_id")? != APPLICATION {
            return Err(StoreError::Corrupt(format!("{path} holds no records of a vault")));
        }
        match pragma("user_version")? {
            FORMAT => {}
            other => {
                return Err(StoreError::Corrupt(format!("{path} has format {other}; this version reads {FORMAT}")));
            }
        }
        // Tables that this format got later are empty in a vault from before.
        for table in Table::ALL {
            writer.execute(table.sql().create, ()).map_err(|error| self.failed("open", error))?;
        }
        Ok(())
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.read(|reader| reader.prepare_cached(table.sql().get)?.query_row([key], |row| value(row, 0)).optional())
    }

    /// At most `limit` rows with `from <= key < to`, in the order of their keys.
    pub fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>> {
        self.read(|reader| scan(reader, table, from, to, limit))
    }

    /// The last `limit` rows with `from <= key < to`, the last one first.
    pub fn scan_back(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>> {
        self.read(|reader| scan_by(reader, table.sql().scan_back, from, to, limit))
    }

    /// How many rows the table has; reads all of its pages.
    pub fn count(&self, table: Table) -> Result<u64> {
        let count: i64 =
            self.read(|reader| reader.prepare_cached(table.sql().count)?.query_row((), |row| row.get(0)))?;
        Ok(count as u64)
    }

    /// All changes in one transaction, in their order; readers see all of them or none.
    ///
    /// After an error nothing is changed and the same call may be repeated. One exception: when the sync of a
    /// [`Durability::Synced`] commit fails, readers see it, nobody knows what is on the platter, and every later
    /// commit is refused.
    pub fn commit<C: Borrow<Change>>(
        &self,
        changes: impl IntoIterator<Item = C>,
        durability: Durability,
    ) -> Result<()> {
        let mut writer = self.writer_lock()?;
        self.transact(&mut writer, changes).map_err(|error| self.failed("commit to", error))?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        match durability {
            Durability::Ordered => Ok(()),
            Durability::Synced => self.sync_log(&writer),
        }
    }

    fn transact<C: Borrow<Change>>(
        &self,
        writer: &mut Connection,
        changes: impl IntoIterator<Item = C>,
    ) -> rusqlite::Result<()> {
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in changes {
            let Change { table, key, value } = change.borrow();
            self.statements.fetch_add(1, Ordering::Relaxed);
            match value {
                Some(value) => transaction.prepare_cached(table.sql().put)?.execute((&key[..], value))?,
                None => transaction.prepare_cached(table.sql().delete)?.execute([&key[..]])?,
            };
        }
        transaction.commit()
    }

    /// Makes every commit so far durable; costs nothing when it is already.
    pub fn flush(&self) -> Result<()> {
        self.sync_log(&*self.writer_lock()?)
    }

    /// Moves the whole log into the database and cuts it to nothing, so that no deleted row is left in either
    /// file (`secure_delete` has zeroed it in the database). Waits for running scans, not for later ones.
    pub fn checkpoint_truncate(&self) -> Result<()> {
        let writer = self.writer_lock()?;
        let busy: bool = writer
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))
            .map_err(|error| self.failed("checkpoint", error))?;
        if busy {
            let reading = io::Error::new(io::ErrorKind::ResourceBusy, "a reader has not finished");
            return Err(StoreError::io("checkpoint", &self.path, reading));
        }
        self.sync_log(&writer)
    }

    /// Checkpoints and closes; a clean close leaves one file.
    pub fn close(self) -> Result<()> {
        self.checkpoint_truncate()?;
        let Rows { readers, writer, vfs, path, .. } = self;
        drop(readers);
        writer.into_inner().close().map_err(|(_, error)| failed(&vfs, &path, "close", error))
    }

    /// What SQLite finds wrong with the file (`PRAGMA integrity_check`); nothing when it is sound.
    pub fn integrity_check(&self) -> Result<Vec<String>> {
        let findings: Vec<String> =
            self.read(|reader| reader.prepare("PRAGMA integrity_check")?.query_map((), |row| row.get(0))?.collect())?;
        Ok(findings.into_iter().filter(|finding| finding != "ok").collect())
    }

    pub fn statistics(&self) -> Statistics {
        Statistics {
            statements: self.statements.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            syncs: self.vfs.seam().syncs(),
        }
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.readers.read(query).map_err(|error| self.failed("read", error))
    }

    fn writer_lock(&self) -> Result<parking_lot::MutexGuard<'_, Connection>> {
        let writer = self.writer.lock();
        match self.vfs.seam().sync_failed() {
            true => Err(StoreError::earlier_sync_failed(&self.path)),
            false => Ok(writer),
        }
    }

    fn sync_log(&self, writer: &Connection) -> Result<()> {
        match self.vfs.seam().log_unsynced() {
            true => vfs::sync_log(writer).map_err(|error| self.failed("sync", error)),
            false => Ok(()),
        }
    }

    fn failed(&self, what: &'static str, error: rusqlite::Error) -> StoreError {
        failed(&self.vfs, &self.path, what, error)
    }
}

/// A bound value must not change a statement's plan: SQLite (built with `STAT4`) would else prepare every scan anew, 7 % of a
/// first read.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn configure(writer: &Connection) -> rusqlite::Result<()> {
    keep_plans(writer)?;
    writer.busy_timeout(PATIENCE)?;
    writer.set_prepared_statement_cache_capacity(STATEMENTS);
    writer.pragma_update(None, "synchronous", "NORMAL")?;
    writer.pragma_update(None, "secure_delete", "ON")?;
    writer.pragma_update(None, "temp_store", "MEMORY")?;
    writer.pragma_update(None, "mmap_size", 0)?;
    writer.pragma_update(None, "cache_size", -i64::from(WRITER_CACHE_KIB))?;
    writer.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
}

/// The meaning of SQLite's codes (<https://sqlite.org/rescode.html>), with the seam's word on the cause.
fn failed(vfs: &Vfs, path: &Path, what: &'static str, error: rusqlite::Error) -> StoreError {
    let Some(ffi::Error { extended_code, .. }) = error.sqlite_error().copied() else {
        return StoreError::Corrupt(format!("{}: {error}", path.display()));
    };
    if let Some(cause) = vfs.seam().take_cause(extended_code) {
        return match vfs.seam().sync_failed() {
            true => StoreError::failed_sync(path, cause),
            false => StoreError::io(what, path, cause),
        };
    }
    match extended_code & 0xff {
        ffi::SQLITE_FULL => StoreError::Full(format!("{what} {}", path.display())),
        // An SQL error can only mean a table that should be there and is not.
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB | ffi::SQLITE_ERROR => {
            StoreError::Corrupt(format!("{}: {error}", path.display()))
        }
        _ => StoreError::io(what, path, io::Error::other(error)),
    }
}

fn scan(
    reader: &Connection,
    table: Table,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> rusqlite::Result<Vec<(Key, Vec<u8>)>> {
    scan_by(reader, table.sql().scan, from, to, limit)
}

fn scan_by(
    reader: &Connection,
    sql: &'static str,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> rusqlite::Result<Vec<(Key, Vec<u8>)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = reader.prepare_cached(sql)?;
    let rows = statement.query_map((from, to, limit), |row| {
        let key = row.get_ref(0)?.as_blob()?;
        let too_long = FromSqlError::InvalidBlobSize { expected_size: Key::MAX, blob_size: key.len() };
        Ok((Key::new(key).ok_or(too_long)?, value(row, 1)?))
    })?;
    rows.collect()
}

/// A value as its bytes. What is no blob was not written here, and does not authenticate either.
fn value(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Vec<u8>> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Ok(bytes.to_vec()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Ok(Vec::new()),
    }
}
