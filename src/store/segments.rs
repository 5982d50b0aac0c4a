//! The contents: for each organization, append-only files of immutable extents.
//!
//! `STATE/segments/<organization>/<number>`, both as 8 hex digits, mode 0600. An extent begins at a multiple
//! of 4 KiB, just after the one before it; the bytes between are never written. When the next extent would
//! reach past the limit the next number begins. Nothing is ever written twice: what no record names any more
//! is punched out, and an empty segment is removed. None of this is durable before [`Segments::sync`], and
//! removals not even then, which is harmless: the vault removes again what its records do not name.

mod files;
#[cfg(test)]
mod tests;

use super::{Disk, Result, StoreError};
use files::{Files, Segment};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// How large a segment file becomes, unless asked otherwise, in bytes.
pub const SEGMENT_LIMIT: u64 = 256 << 20;
/// What extents are aligned to and punched in: a block of every file system this runs on.
const ALIGNMENT: u64 = 4096;
/// From here on the kernel is asked to write at once rather than in the middle of the next sync.
const EARLY_WRITEBACK: u64 = 1 << 20;

/// Where an extent begins; `offset` is a multiple of 4 KiB.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Place {
    pub segment: u32,
    pub offset: u64,
}

/// `STATE/segments`, for any number of threads; appends to one organization wait for each other.
pub struct Segments {
    files: Files,
    tails: Mutex<HashMap<u32, Arc<Mutex<Tail>>>>,
    limit: u64,
}

/// Where the next append goes.
#[derive(Copy, Clone, Default)]
struct Tail {
    number: u32,
    /// The first byte that is free, before alignment.
    end: u64,
    /// Whether `end` has been compared with the file.
    seen: bool,
}

impl Segments {
    /// Looks at nothing yet, but creates the directory `dir/segments` when it is missing. `limit`: bytes in one
    /// segment file, at most ([`SEGMENT_LIMIT`], if nothing speaks for another one); a single larger extent gets a
    /// segment of its own.
    pub fn open(dir: &Path, disk: Arc<dyn Disk>, limit: u64) -> Result<Segments> {
        Ok(Segments { files: Files::open(dir.join("segments"), disk)?, tails: Mutex::default(), limit })
    }

    /// Where the records say that the organization's last extent ends. Told once, before its first append.
    ///
    /// Should the file reach further, because a crash left bytes that no record names or because the records
    /// are wrong, the first append goes after its end: it never overwrites.
    pub fn set_tail(&self, org: u32, segment: u32, end: u64) {
        *self.tail(org).lock() = Tail { number: segment, end, seen: false };
    }

    /// Writes `parts`, one after the other, as one extent at the end of the organization's last segment.
    ///
    /// On a full disk ([`StoreError::Full`]) what was written is cut off again, and the next append starts where
    /// this one did.
    pub fn append(&self, org: u32, parts: &[&[u8]]) -> Result<Place> {
        let tail = self.tail(org);
        let mut tail = tail.lock();
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let (segment, file, offset) = loop {
            let segment = Segment { org, number: tail.number };
            let file = self.files.open_or_create(segment)?;
            if !tail.seen {
                *tail = Tail { end: tail.end.max(self.files.size(segment, &file)?), seen: true, ..*tail };
            }
            let offset = tail.end.next_multiple_of(ALIGNMENT);
            if offset == 0 || offset + len <= self.limit {
                break (segment, file, offset);
            }
            *tail = tail.after()?;
        };
        if let Err(error) = self.files.write(segment, &file, offset, parts) {
            // Should this fail too, the bytes are in nobody's way: the next append writes over them.
            let _ = self.files.truncate(segment, &file, tail.end);
            return Err(error);
        }
        tail.end = offset + len;
        if len >= EARLY_WRITEBACK {
            files::start_writeback(&file, offset, len);
        }
        Ok(Place { segment: segment.number, offset })
    }

    /// Fills `buf` from `place` on. [`StoreError::Corrupt`] when the segment is missing or ends too early.
    pub fn read(&self, org: u32, place: Place, buf: &mut [u8]) -> Result<()> {
        let segment = Segment { org, number: place.segment };
        let Some(file) = self.files.existing(segment)? else {
            return Err(StoreError::Corrupt(format!("segment {segment} is missing")));
        };
        file.read_exact_at(buf, place.offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::Corrupt(format!(
                "segment {segment} ends within the {} bytes at offset {}",
                buf.len(),
                place.offset
            )),
            _ => self.files.failed("read", segment, error),
        })
    }

    /// Makes every append that has returned durable; how many files that took.
    ///
    /// After an error everything that writes is refused until the store is opened anew.
    pub fn sync(&self) -> Result<u32> {
        self.files.sync()
    }

    /// Gives the blocks of an extent of `len` bytes back; they read as zero afterwards. A segment that is gone
    /// has none.
    pub fn punch(&self, org: u32, place: Place, len: u64) -> Result<()> {
        let segment = Segment { org, number: place.segment };
        match self.files.existing(segment)? {
            Some(file) => self.files.punch(segment, &file, place.offset, len.next_multiple_of(ALIGNMENT)),
            None => Ok(()),
        }
    }

    /// Removes a segment of which no record names anything. Its number is not used again before a remount.
    pub fn remove(&self, org: u32, segment: u32) -> Result<()> {
        let tail = self.tail(org);
        let mut tail = tail.lock();
        self.files.remove(Segment { org, number: segment })?;
        if tail.number == segment {
            *tail = tail.after()?;
        }
        Ok(())
    }

    /// Removes the organization's segments and its directory.
    pub fn remove_organization(&self, org: u32) -> Result<()> {
        for (number, _) in self.list(org)? {
            self.remove(org, number)?;
        }
        self.files.remove_directory(org)
    }

    /// Cuts off what lies past `end`: bytes that a crash left and no record names. Never makes a file longer.
    pub fn trim(&self, org: u32, segment: u32, end: u64) -> Result<()> {
        let tail = self.tail(org);
        let mut tail = tail.lock();
        let place = Segment { org, number: segment };
        let Some(file) = self.files.existing(place)? else { return Ok(()) };
        if self.files.size(place, &file)? > end {
            self.files.truncate(place, &file, end)?;
        }
        if tail.number == segment {
            tail.end = tail.end.min(end);
        }
        Ok(())
    }

    /// The organization's segments and their sizes in bytes (holes included), in order; none when it has no
    /// directory. Files with other names are passed over.
    pub fn list(&self, org: u32) -> Result<Vec<(u32, u64)>> {
        self.files.segments(org)
    }

    /// Where the file system keeps blocks for a segment (`SEEK_DATA`), in order; nothing when there is no file.
    pub fn data(&self, org: u32, segment: u32) -> Result<Vec<Range<u64>>> {
        let segment = Segment { org, number: segment };
        match self.files.existing(segment)? {
            Some(file) => files::data_ranges(&file).map_err(|error| self.files.failed("look at", segment, error)),
            None => Ok(Vec::new()),
        }
    }

    /// The organizations that have a directory, in order.
    pub fn organizations(&self) -> Result<Vec<u32>> {
        self.files.organizations()
    }

    fn tail(&self, org: u32) -> Arc<Mutex<Tail>> {
        Arc::clone(self.tails.lock().entry(org).or_default())
    }
}

impl Tail {
    fn after(self) -> Result<Tail> {
        match self.number.checked_add(1) {
            Some(number) => Ok(Tail { number, ..Tail::default() }),
            None => Err(StoreError::Full("every segment number is taken".into())),
        }
    }
}
