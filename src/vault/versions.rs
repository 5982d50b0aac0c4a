//! Versions as something to read: who reads one keeps it, however many newer ones are made meanwhile.
//!
//! A version that nobody needs any more is pruned with the next save. While it is read it stays, in the object's record
//! too; a crash finds nothing unusual. Only a purge does not wait: then reading ends with an error and no wrong byte.

use super::Vault;
use super::error::{Error, Result};
use super::ids::{ObjectId, OrgNo, VersionId};
use super::row::{Object, Version};
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
    org: OrgNo,
    id: ObjectId,
    pub version: Version,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.vault.end_reading(self.org, self.id, self.version.id);
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
        // Nobody prunes between the look and the note.
        let version = self.at_rest(|| {
            let object = self.records.get::<Object>((org, id))?.ok_or(Error::NotFound)?;
            let version = choose(&object).ok_or(NO_VERSION)?.clone();
            self.readers.begin(version.id);
            Ok(version)
        })?;
        Ok(Reading { vault: self, org, id, version })
    }

    fn end_reading(&self, org: OrgNo, id: ObjectId, version: VersionId) {
        let current = |object: Option<Arc<Object>>| object.and_then(|o| o.current().map(|v| v.id)) == Some(version);
        if self.readers.end(version) && !self.records.get((org, id)).is_ok_and(current) {
            // What fails here is done by the next save.
            let _ = self.prune_object(org, id);
        }
    }

    /// Gives a committed value in parts of at most 1 MiB, each with its offset.
    pub(super) fn read_value(&self, reading: &Reading, out: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (mut offset, size) = (0, reading.version.size);
        while offset < size {
            let part = self.read_part(reading, offset, (size - offset).min(PART) as usize)?;
            out(offset, &part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// `len` bytes at `offset` of a committed value, which has as many.
    pub(super) fn read_part(&self, reading: &Reading, offset: u64, len: usize) -> Result<Vec<u8>> {
        let version = &reading.version;
        self.settle()?;
        let content = self.contents.get(version.content);
        // The writer thread frees nothing while this part is looked up and read.
        let _state = content.state.read();
        let pieces = self.pieces_of(version)?;
        let key = self.version_key(&content, || self.has_version(reading));
        // Looked up after the pieces: if it is there now, none of them was missing then.
        if !self.has_version(reading) {
            return Err(Error::Stale("the version was purged while it was read"));
        }
        let mut part = vec![0; len];
        self.read_version(version.content, &*key?, &pieces, offset, &mut part)?;
        Ok(part)
    }

    fn has_version(&self, reading: &Reading) -> bool {
        let object = self.records.get::<Object>((reading.org, reading.id));
        object.is_ok_and(|object| object.is_some_and(|o| o.versions.iter().any(|v| v.id == reading.version.id)))
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
