//! Versions as something to read: who reads one keeps it, however many newer ones are made meanwhile.
//!
//! A version that nobody needs any more is pruned with the next save. While it is read it stays, in the object's record
//! too; a crash finds nothing unusual. Only a purge does not wait: then reading ends with an error and no wrong byte.

use super::Vault;
use super::content::Pieces;
use super::error::{Error, Result};
use super::ids::{ObjectId, OrgNo, VersionId};
use super::row::{ContentRecord, Object, Version};
use crate::keys::Patience;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const PART: u64 = 1 << 20;
const NO_VERSION: Error = Error::Absent("no such version is kept");

/// How many read each version.
#[derive(Default)]
pub struct Readers(Mutex<HashMap<VersionId, usize>>);

impl Readers {
    pub fn has(&self, version: VersionId) -> bool {
        self.0.lock().contains_key(&version)
    }

    fn begin(&self, version: VersionId) {
        *self.0.lock().entry(version).or_default() += 1;
    }

    /// Whether it was the last.
    fn end(&self, version: VersionId) -> bool {
        let mut readers = self.0.lock();
        let left = readers.get_mut(&version).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            readers.remove(&version);
        }
        left == 0
    }
}

/// A version that is being read, and kept for as long.
pub struct Reading<'a> {
    vault: &'a Vault,
    pub of: Kept,
}

/// A version that is kept for a reader.
pub struct Kept {
    pub org: OrgNo,
    pub id: ObjectId,
    pub version: Version,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.vault.end_keeping(&self.of);
    }
}

impl Vault {
    /// The version of an object that `choose` finds, kept until the reading ends.
    pub(super) fn begin_reading(
        &self,
        org: OrgNo,
        id: ObjectId,
        choose: impl Fn(&Object) -> Option<&Version>,
    ) -> Result<Reading<'_>> {
        Ok(Reading { vault: self, of: self.keep_version(org, id, choose)? })
    }

    /// As [`Self::begin_reading`], until [`Self::end_keeping`].
    pub(super) fn keep_version(
        &self,
        org: OrgNo,
        id: ObjectId,
        choose: impl Fn(&Object) -> Option<&Version>,
    ) -> Result<Kept> {
        // Nobody prunes between the look and the note.
        let version = self.at_rest(|| {
            let object = self.records.get::<Object>((org, id))?.ok_or(Error::NotFound)?;
            let version = choose(&object).ok_or(NO_VERSION)?.clone();
            self.readers.begin(version.id);
            Ok(version)
        })?;
        Ok(Kept { org, id, version })
    }

    pub(super) fn end_keeping(&self, kept: &Kept) {
        let (at, version) = ((kept.org, kept.id), kept.version.id);
        let current = |object: Option<Arc<Object>>| object.and_then(|o| o.current().map(|v| v.id)) == Some(version);
        if self.readers.end(version) && !self.records.get(at).is_ok_and(current) {
            // What fails here is done by the next save.
            let _ = self.prune_object(kept.org, kept.id);
        }
    }

    /// Gives a committed value in parts of at most 1 MiB, each with its offset.
    pub(super) fn read_value(&self, reading: &Reading, out: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (mut offset, size) = (0, reading.of.version.size);
        while offset < size {
            let part = self.read_part(reading, offset, (size - offset).min(PART) as usize)?;
            out(offset, &part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// `len` bytes at `offset` of a committed value, which has as many.
    pub(super) fn read_part(&self, reading: &Reading, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read_pieces(&reading.of, &self.kept_pieces(&reading.of)?, offset, len, Patience::Wait)
    }

    /// The pieces that make up a version. They stay where they are while it is kept.
    pub(super) fn kept_pieces(&self, kept: &Kept) -> Result<Pieces> {
        self.settle()?;
        let content = self.contents.get(kept.version.content);
        // The writer thread frees nothing while they are looked up.
        let _state = content.state.read();
        let pieces = self.pieces_of(&kept.version)?;
        // Looked up after the pieces: if it is there now, none of them was missing then.
        self.check_kept(kept).map(|()| pieces)
    }

    /// `len` bytes at `offset` of a version that has as many and is made of `pieces`.
    pub(super) fn read_pieces(
        &self,
        kept: &Kept,
        pieces: &Pieces,
        offset: u64,
        len: usize,
        patience: Patience,
    ) -> Result<Vec<u8>> {
        let content = self.contents.get(kept.version.content);
        let _state = content.state.read();
        // From here on nothing is freed, and before nothing was if it is kept.
        self.check_kept(kept)?;
        let key = match self.records.get::<ContentRecord>(content.ino)? {
            Some(record) => self.key_of(&content, &record, patience)?,
            None if pieces.is_empty() => return Ok(vec![0; len]),
            // A key that is missing is no sign of anything where the version was purged just now.
            None => return Err(self.check_kept(kept).err().unwrap_or_else(|| self.missing_key(content.ino))),
        };
        let mut part = vec![0; len];
        self.read_version(content.ino, &key, pieces, offset, &mut part)?;
        Ok(part)
    }

    fn check_kept(&self, kept: &Kept) -> Result<()> {
        let object = self.records.get::<Object>((kept.org, kept.id))?;
        let there = object.is_some_and(|object| object.versions.iter().any(|v| v.id == kept.version.id));
        if there { Ok(()) } else { Err(Error::Stale("the version was purged while it was read")) }
    }

    /// Drops what is not to be kept of an object any more.
    pub(super) fn prune_object(&self, org: OrgNo, id: ObjectId) -> Result<()> {
        let mut tx = self.begin()?;
        let Some(object) = tx.get::<Object>((org, id))? else { return Ok(()) };
        let mut pruned = (*object).clone();
        self.prune_versions(&mut tx, org, id, &mut pruned)?;
        if pruned.versions.len() < object.versions.len() {
            tx.put((org, id), pruned);
            self.finish(tx);
        }
        Ok(())
    }
}
