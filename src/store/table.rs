//! The tables, their keys, and the SQL of each.

use std::fmt;
use std::ops::Deref;

/// What a record is about. The numbers are part of the sealed format.
#[repr(u8)]
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    Organization = 1,
    Node = 2,
    Entry = 3,
    Attributes = 4,
    Content = 5,
    Extent = 6,
    Past = 7,
    Object = 8,
    Tombstone = 9,
    Buried = 10,
    Pending = 11,
    Segment = 12,
    Freed = 13,
    ApiKey = 14,
    Profile = 15,
    Kek = 16,
    Intent = 17,
}

/// The statements that one table needs; constant text, so that each connection prepares each once.
pub(super) struct Sql {
    pub create: &'static str,
    pub get: &'static str,
    pub scan: &'static str,
    pub scan_back: &'static str,
    pub count: &'static str,
    pub put: &'static str,
    pub delete: &'static str,
}

macro_rules! sql {
    ($name:literal) => {
        sql!($name, "(k BLOB PRIMARY KEY NOT NULL, v BLOB NOT NULL) WITHOUT ROWID")
    };
    ($name:literal, $columns:literal) => {
        Sql {
            create: concat!("CREATE TABLE IF NOT EXISTS ", $name, $columns),
            get: concat!("SELECT v FROM ", $name, " WHERE k = ?1"),
            scan: concat!("SELECT k, v FROM ", $name, " WHERE k >= ?1 AND k < ?2 ORDER BY k LIMIT ?3"),
            scan_back: concat!("SELECT k, v FROM ", $name, " WHERE k >= ?1 AND k < ?2 ORDER BY k DESC LIMIT ?3"),
            count: concat!("SELECT count(*) FROM ", $name),
            put: concat!("INSERT INTO ", $name, "(k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v"),
            delete: concat!("DELETE FROM ", $name, " WHERE k = ?1"),
        }
    };
}

/// In the order of [`Table::ALL`]. Extents are large (to about 17 KiB): in a b-tree of keys they would leave
/// four rows to an inner page, so they lie in a table of their own and the index holds keys only: measured,
/// 2 to 5 times as fast to put and 4 to 8 times as fast to get.
static SQL: [Sql; 17] = [
    sql!("organization"),
    sql!("node"),
    sql!("entry"),
    sql!("attributes"),
    sql!("content"),
    sql!("extent", "(id INTEGER PRIMARY KEY, k BLOB NOT NULL UNIQUE, v BLOB NOT NULL)"),
    sql!("past"),
    sql!("object"),
    sql!("tombstone"),
    sql!("buried"),
    sql!("pending"),
    sql!("segment"),
    sql!("freed"),
    sql!("api_key"),
    sql!("profile"),
    sql!("kek"),
    sql!("intent"),
];

impl Table {
    pub const ALL: [Table; 17] = [
        Table::Organization,
        Table::Node,
        Table::Entry,
        Table::Attributes,
        Table::Content,
        Table::Extent,
        Table::Past,
        Table::Object,
        Table::Tombstone,
        Table::Buried,
        Table::Pending,
        Table::Segment,
        Table::Freed,
        Table::ApiKey,
        Table::Profile,
        Table::Kek,
        Table::Intent,
    ];

    /// The word for it in SQL, findings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Table::Organization => "organization",
            Table::Node => "node",
            Table::Entry => "entry",
            Table::Attributes => "attributes",
            Table::Content => "content",
            Table::Extent => "extent",
            Table::Past => "past",
            Table::Object => "object",
            Table::Tombstone => "tombstone",
            Table::Buried => "buried",
            Table::Pending => "pending",
            Table::Segment => "segment",
            Table::Freed => "freed",
            Table::ApiKey => "api_key",
            Table::Profile => "profile",
            Table::Kek => "kek",
            Table::Intent => "intent",
        }
    }

    pub fn from_u8(number: u8) -> Option<Table> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    pub(super) fn sql(self) -> &'static Sql {
        &SQL[self as usize - 1]
    }
}

/// The key of a record: at most 24 bytes, ordered as `memcmp` orders them.
///
/// Bytes past the length are zero, which is what makes the derived order the order of the slices.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    bytes: [u8; Key::MAX],
    len: u8,
}

impl Key {
    pub const MAX: usize = 24;

    /// `None` when `bytes` are more than [`Key::MAX`].
    pub fn new(bytes: &[u8]) -> Option<Key> {
        let mut key = Key { bytes: [0; Key::MAX], len: bytes.len().try_into().ok()? };
        key.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(key)
    }

    /// The first key after this one.
    pub fn successor(&self) -> Key {
        let mut next = *self;
        if usize::from(self.len) < Key::MAX {
            next.len += 1;
            return next;
        }
        for byte in next.bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return next;
            }
        }
        // There is none after the last.
        *self
    }
}

impl From<&[u8]> for Key {
    /// # Panics
    /// When there are more than [`Key::MAX`] bytes; for keys of one's own making.
    fn from(bytes: &[u8]) -> Key {
        Key::new(bytes).expect("a key has at most 24 bytes")
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One row to be: put when there is a value (new or over the old one), deleted when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub table: Table,
    pub key: Key,
    pub value: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_table_has_its_number_name_and_sql() {
        for table in Table::ALL {
            assert_eq!(Table::from_u8(table as u8), Some(table));
            let created = format!("CREATE TABLE IF NOT EXISTS {}(", table.name());
            assert!(table.sql().create.starts_with(&created), "{created}");
        }
        assert_eq!(Table::from_u8(0), None);
        assert_eq!(Table::from_u8(Table::ALL.len() as u8 + 1), None);
    }

    proptest! {
        #[test]
        fn keys_are_ordered_as_their_bytes(
            a in proptest::collection::vec(0u8..3, 0..=24),
            b in proptest::collection::vec(0u8..3, 0..=24),
        ) {
            let (x, y) = (Key::from(&a[..]), Key::from(&b[..]));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(&*x, &a[..]);
        }
    }

    #[test]
    fn a_key_too_long_is_none() {
        assert_eq!(Key::new(&[0; 25]), None);
    }
}
