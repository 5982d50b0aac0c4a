//! `copy_file_range`: inside one content extents are shared; between contents bytes are opened and sealed again here,
//! without a round trip through the caller.

use super::{OpenFile, SIZE_MAX, stripped};
use crate::crypto::LockedKey;
use crate::keys::Patience;
use crate::vault::changes::{Changes, Run};
use crate::vault::content::{Content, State};
use crate::vault::error::{Error, Result};
use crate::vault::extents::UNIT;
use crate::vault::row::{ContentRecord, Node};
use crate::vault::{Allocate, Caller, Handle, Seek, Vault};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Bytes opened and sealed again at a time.
const PART: u64 = 1 << 20;
/// What one call seals again before it returns, so that it ends soon; callers ask for the rest.
const SEALED_AT_MOST: u64 = 4 << 20;

impl Vault {
    /// Copies up to `len` bytes between open files of any organizations; how many, 0 at the end of the source. Holes stay
    /// holes.
    pub fn copy_range(&self, caller: &Caller, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<u64> {
        if from.0.is_of_version() {
            // The kernel then reads and writes by itself.
            return Err(Error::Unsupported("copying a range of a version inside the vault"));
        }
        let (source, target) = (self.handles.find(from.0)?, self.handles.find(to.0)?);
        if !source.access.read || !target.access.write {
            return Err(Error::BadHandle);
        }
        if source.ino == target.ino {
            return self.share_range(caller, &target, from.1, to.1, len);
        }
        let (mut copied, mut sealed) = (0, 0);
        while copied < len && sealed < SEALED_AT_MOST {
            let part = self.copy_part(caller, (from.0, from.1 + copied), (to.0, to.1 + copied), len - copied);
            match part {
                Ok(Part { length: 0, .. }) => break,
                Ok(part) => (copied, sealed) = (copied + part.length, sealed + part.sealed),
                // What was copied is told; the failure meets the next call, which begins there.
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }

    /// Copies the hole or the data that begins at `from`, or a part of it.
    fn copy_part(&self, caller: &Caller, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<Part> {
        let source = self.handles.find(from.0)?.ino;
        let size = self.records.get::<Node>(source)?.ok_or(Error::NotFound)?.size;
        if from.1 >= size {
            return Ok(Part { length: 0, sealed: 0 });
        }
        let hole = match self.seek(caller, from.0, from.1, Seek::Data) {
            Ok(data) => data - from.1,
            Err(Error::NoSuchOffset) => size - from.1,
            Err(error) => return Err(error),
        };
        if hole > 0 {
            let length = hole.min(len);
            self.allocate(caller, to.0, Allocate::ZeroRange, to.1, length)?;
            return Ok(Part { length, sealed: 0 });
        }
        let end = self.seek(caller, from.0, from.1, Seek::Hole)?;
        let bytes = self.read(caller, from.0, from.1, (end - from.1).min(len).min(PART) as usize)?;
        self.write_at(caller, to.0, Some(to.1), &bytes)?;
        Ok(Part { length: bytes.len() as u64, sealed: bytes.len() as u64 })
    }

    /// Copies inside one content: what is stored is named a second time, what is not is written again.
    fn share_range(&self, caller: &Caller, file: &OpenFile, from: u64, to: u64, len: u64) -> Result<u64> {
        self.enter(file.ino, caller.patience)?;
        self.signals.admit(caller.patience == Patience::Wait)?;
        self.check_space(caller, 0)?;
        let content = &file.content;
        let mut state = content.state.write();
        self.complete_map(file.ino, &mut state)?;
        let size = self.records.get::<Node>(file.ino)?.ok_or(Error::NotFound)?.size;
        let len = len.min(size.saturating_sub(from));
        if len == 0 {
            return Ok(0);
        }
        let end = to.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Error::TooBig)?;
        if from < end && to < from + len {
            return Err(Error::Invalid("the ranges overlap"));
        }
        let key = match &state.key {
            Some(key) => Some(key.clone()),
            None if self.records.get::<ContentRecord>(file.ino)?.is_none() => None,
            None => Some(self.content_key(content, caller.patience)?),
        };
        let copy = self.range_of(content, &state, key.as_deref(), from..from + len)?;
        let new: usize = copy.runs().map(|(_, run)| if let Run::Data(bytes) = run { bytes.len() } else { 0 }).sum();
        // Making room would wait for the writer thread, which may want this content.
        if !self.has_room(new as u64)? {
            return Err(Error::NoSpace);
        }
        let mut tx = self.begin()?;
        let node = tx.need::<Node>(file.ino)?;
        let epoch = node.epoch;
        let strip = stripped(caller, &node);
        self.change_value(&mut tx, file.ino, &node, node.size.max(end), strip)?;
        self.change_content(tx, content, new, |batch| {
            state.key = key;
            for (at, run) in copy.runs() {
                if let Run::Stored(piece) = run {
                    state.pin(batch, epoch, piece.clone());
                }
                state.changes(batch, epoch).lay(at - from + to, run.moved(at, at - from + to));
            }
        });
        file.wrote.store(true, Ordering::Relaxed);
        Ok(len)
    }

    /// What a range holds now. Of a piece less than a unit of the store is taken as bytes: to name it would cost more.
    fn range_of(
        &self,
        content: &Content,
        state: &State,
        key: Option<&LockedKey>,
        range: Range<u64>,
    ) -> Result<Changes> {
        let mut held = Changes::default();
        held.punch(range.clone());
        let map = state.map.as_ref().expect("the caller completed it");
        for (at, piece) in map.overlapping(range.clone()) {
            let part = range.start.max(at)..range.end.min(at + u64::from(piece.len));
            held.lay(part.start, Run::Stored(piece.part(at, part.clone())));
        }
        for dirty in &state.dirty {
            for (start, end, run) in dirty.changes.overlapping(range.clone()) {
                let part = range.start.max(start)..range.end.min(end);
                held.lay(part.start, run.part(start, part.clone()));
            }
        }
        let mut small = Changes::default();
        for (at, run) in held.runs() {
            if let Run::Stored(piece) = run
                && u64::from(piece.len) < UNIT
            {
                let range = at..at + u64::from(piece.len);
                let mut bytes = vec![0; piece.len as usize];
                let key = key.ok_or_else(|| self.missing_key(content.ino))?;
                self.open_part(content.ino, key, at, piece, &range, &mut bytes)?;
                small.write(at, &bytes);
            }
        }
        for (at, run) in small.runs() {
            held.lay(at, run.clone());
        }
        Ok(held)
    }
}

/// What one step copied, and how much of that was sealed again.
struct Part {
    length: u64,
    sealed: u64,
}
