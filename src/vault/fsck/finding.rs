//! What `fsck` can find: a code for each class, how bad it is, where it is, and what to do about it.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is damaged: space, a count or an index is not as it should be, or something was not checked.
    Warning,
    /// Something is damaged or cannot be read.
    Error,
    /// The vault as a whole cannot be opened or trusted.
    Fatal,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        })
    }
}

/// Something that `fsck` found.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Finding {
    pub code: FindingCode,
    pub severity: Severity,
    /// `org_…`
    pub organization: Option<String>,
    /// `secret_…`
    pub object: Option<String>,
    /// Inside the organization; as far as it is known.
    pub path: Option<String>,
    pub place: FindingPlace,
    pub message: String,
    /// What a person may do.
    pub remedy: String,
    /// `--repair` has mended it.
    pub repaired: bool,
}

/// A place in the state directory.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct FindingPlace {
    /// Relative to the state directory; `token` for what is in the token.
    pub file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The row's key in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
    /// Bytes from the file's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl fmt::Display for FindingPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(table) = &self.table {
            write!(f, " {table}")?;
        }
        if let Some(row) = &self.row {
            write!(f, " {row}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at {offset}")?;
        }
        Ok(())
    }
}

macro_rules! codes {
    ($($name:ident $word:literal $severity:ident $mends:literal $remedy:literal;)*) => {
        /// The classes of findings. Scripts compare the words: they stay.
        #[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[serde(rename_all = "kebab-case")]
        pub enum FindingCode { $($name,)* }

        impl FindingCode {
            pub const ALL: &[FindingCode] = &[$(FindingCode::$name,)*];

            pub fn word(self) -> &'static str {
                match self { $(FindingCode::$name => $word,)* }
            }

            pub fn severity(self) -> Severity {
                match self { $(FindingCode::$name => Severity::$severity,)* }
            }

            /// Whether `--repair` mends it, as long as nothing else speaks against it.
            pub fn is_repairable(self) -> bool {
                match self { $(FindingCode::$name => $mends,)* }
            }

            pub fn remedy(self) -> &'static str {
                match self { $(FindingCode::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    Header "header" Fatal false "restore vault.json from a backup; it changes only with `init`";
    Database "database" Fatal false "restore the state directory from a backup, and look at the disk";
    VaultRecord "vault-record" Fatal false "restore the state directory from a backup";
    KekMissing "kek-missing" Error false "restore the token from its backup; no key is ever made in its place";
    RowShape "row-shape" Error false "restore the state directory from a backup";
    RowOwner "row-owner" Error false "restore the state directory from a backup";
    RowNotAuthentic "row-not-authentic" Error false "restore the state directory from a backup";
    WrappedKey "wrapped-key" Error false "restore the object from a backup";
    WrappedKeyMissing "wrapped-key-missing" Error false "restore the object from a backup";
    Block "block" Error false "restore the object from a backup; `--report` names the bytes that are gone";
    SegmentMissing "segment-missing" Error false "put the file back from a backup";
    SegmentShort "segment-short" Error false "put the file back from a backup";
    SegmentRecord "segment-record" Error true "`vaultfs fsck --repair` makes the record anew from what names the segment";
    SegmentOverlap "segment-overlap" Error false "restore the objects from a backup";
    ExtentOverlap "extent-overlap" Error false "restore the object from a backup";
    ExtentMissing "extent-missing" Error false "restore the object from a backup; it is not read, because the missing part would read as zeros";
    FreedInUse "freed-in-use" Error true "do not mount; `vaultfs fsck --repair` keeps the bytes";
    EntryDangling "entry-dangling" Error true "restore the object from a backup; `vaultfs fsck --repair` removes the name";
    EntryName "entry-name" Error false "restore the state directory from a backup";
    EntryKind "entry-kind" Error true "`vaultfs fsck --repair` takes the kind from the inode";
    EntryMissing "entry-missing" Error true "`vaultfs fsck --repair` puts the name back that the inode remembers";
    FolderMissing "folder-missing" Error false "restore the state directory from a backup";
    FolderCycle "folder-cycle" Error false "restore the state directory from a backup";
    FolderParent "folder-parent" Error true "`vaultfs fsck --repair` takes the folder from the entry";
    AttributesMissing "attributes-missing" Error false "set the extended attributes again";
    ObjectMissing "object-missing" Error false "read the value through the mount, put it elsewhere; its history is gone";
    ObjectInode "object-inode" Error false "restore the object from a backup";
    ContentOwner "content-owner" Error true "`vaultfs fsck --repair` adds the owner";
    TombstoneInode "tombstone-inode" Error false "restore the state directory from a backup";
    TombstoneMissing "tombstone-missing" Error false "restore the state directory from a backup";
    TaskMissing "task-missing" Error true "`vaultfs fsck --repair` notes the task again";
    NumberReused "number-reused" Error true "do not mount; `vaultfs fsck --repair` raises the number";
    NotChecked "not-checked" Warning false "bring the token back and check again";
    OrphanedSegment "orphaned-segment" Warning true "a mount or `vaultfs fsck --repair` removes it";
    OrphanedBytes "orphaned-bytes" Warning true "a mount or `vaultfs fsck --repair` cuts them off";
    OrphanedKey "orphaned-key" Warning true "`vaultfs fsck --repair` destroys it";
    OrphanedExtents "orphaned-extents" Warning true "`vaultfs fsck --repair` gives their space back";
    OrphanedAttributes "orphaned-attributes" Warning true "`vaultfs fsck --repair` removes them";
    LeakedSpace "leaked-space" Warning true "`vaultfs fsck --repair` gives it back";
    SegmentCount "segment-count" Warning true "`vaultfs fsck --repair` counts anew";
    StoredCount "stored-count" Warning true "`vaultfs fsck --repair` counts anew";
    LinkCount "link-count" Warning true "`vaultfs fsck --repair` counts anew";
    OrganizationCount "organization-count" Warning true "`vaultfs fsck --repair` counts anew";
    TombstoneIndex "tombstone-index" Warning true "`vaultfs fsck --repair` makes the index anew";
    TaskStale "task-stale" Warning true "`vaultfs fsck --repair` removes it";
    Unfinished "unfinished" Warning true "a mount or `vaultfs fsck --repair` finishes it";
}

impl Finding {
    pub(super) fn new(code: FindingCode, place: FindingPlace, message: String) -> Self {
        Finding {
            code,
            severity: code.severity(),
            organization: None,
            object: None,
            path: None,
            place,
            message,
            remedy: code.remedy().into(),
            repaired: false,
        }
    }
}

impl FindingPlace {
    pub(super) fn file(name: &str) -> Self {
        FindingPlace { file: name.into(), ..Self::default() }
    }

    pub(super) fn row(table: crate::store::Table, key: &[u8]) -> Self {
        FindingPlace {
            table: Some(table.name().into()),
            row: Some(super::super::records::hex(key)),
            ..Self::file("records.db")
        }
    }

    pub(super) fn segment(org: u32, number: u32, offset: Option<u64>) -> Self {
        FindingPlace { offset, ..Self::file(&format!("segments/{org:08x}/{number:08x}")) }
    }
}

/// An object of which something is gone.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Lost {
    pub organization: String,
    pub object: String,
    pub path: Option<String>,
    /// Oldest first.
    pub versions: Vec<LostVersion>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct LostVersion {
    pub version: u64,
    pub id: String,
    pub size: u64,
    /// Whether all of it can still be read.
    pub readable: bool,
    /// First byte and first byte after it of each part that cannot be read.
    pub gone: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_word_that_travels() {
        for code in FindingCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{}\"", code.word()));
        }
    }
}
