//! One look at all tables at the same instant, while others go on writing.

use super::{Rows, scan};
use crate::store::{Key, Result, Table};
use rusqlite::Connection;

/// A read transaction on a connection of its own: what commits after it began is not seen. As long as it lasts
/// the log is not cut, so it is not to be kept for longer than it takes to read the tables.
pub struct Snapshot<'a> {
    rows: &'a Rows,
    reader: Connection,
}

impl Rows {
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        let begin = || {
            let reader = self.readers.connect()?;
            // The transaction begins with its first read.
            reader.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
            Ok(reader)
        };
        let reader = begin().map_err(|error| self.failed("read", error))?;
        Ok(Snapshot { rows: self, reader })
    }
}

impl Snapshot<'_> {
    /// As [`Rows::scan`].
    pub fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Vec<u8>)>> {
        scan(&self.reader, table, from, to, limit).map_err(|error| self.rows.failed("read", error))
    }

    /// Bytes of the database, its free pages included.
    pub fn size(&self) -> Result<u64> {
        let pragma = |name| self.reader.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let size = || Ok(pragma("page_count")? as u64 * pragma("page_size")? as u64);
        size().map_err(|error| self.rows.failed("read", error))
    }
}
