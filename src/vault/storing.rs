//! How a frozen batch's contents become extents: sealing, placing, and what that frees.

mod rewrite;

use super::Vault;
use super::changes::{EXTENT_MAX, Run};
use super::content::Content;
use super::error::{Error, Result};
use super::extents::{FreeRun, MapChanges, UNIT};
use super::ids::{Ino, OrgNo};
use super::row::{self, Extent, Freed, Node, OrgRecord, Past, Pending, Piece, Record, Row, RowAt, Task};
use crate::crypto::{BlockSize, ExtentKey, LockedKey, Salt};
use crate::store::{self, Table};
use rewrite::{Rewrite, WINDOW};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A value up to this many bytes stands with the records.
pub const INLINE_MAX: usize = 4096;
/// The same where somebody waits until it is on the disk: a longer record costs less than flushing a segment first.
const AWAITED_INLINE_MAX: usize = 16 * 1024;
/// Small runs of one content in one batch, beyond which they go to a segment together.
const INLINE_BATCH: usize = 64 * 1024;
/// Rows that background work may change in one batch.
const CHORES: usize = 4096;

/// What storing one batch has done so far; a try that found the disk full goes on from here.
#[derive(Default)]
pub struct Stored {
    /// Up to this many bytes together stand with the records.
    inline_max: usize,
    /// Contents whose extents are placed and rows are in the batch.
    done: BTreeSet<Ino>,
    /// Appended, not yet named by a row of the batch.
    placed: HashMap<Ino, Vec<(u64, u64, Placed)>>,
    segments: BTreeMap<(OrgNo, u32), row::Segment>,
    /// By how many bytes past pieces of an organization take more.
    held: BTreeMap<OrgNo, i64>,
    chores_done: bool,
    appended: bool,
    pub freed: Vec<(OrgNo, FreeRun)>,
    /// Segments that hold nothing any more.
    pub empty: Vec<(OrgNo, u32)>,
}

impl Stored {
    /// `awaited`: somebody waits until the batch is on the disk.
    pub fn nothing_yet(awaited: bool) -> Self {
        Stored { inline_max: if awaited { AWAITED_INLINE_MAX } else { INLINE_MAX }, ..Stored::default() }
    }

    pub fn names_segments(&self) -> bool {
        self.appended
    }

    /// Whether all bytes are where they belong, and only records are left to store.
    pub fn is_placed(&self) -> bool {
        self.chores_done
    }
}

/// One change of a content on its way into the map: its epoch is beside it.
enum Placed {
    Piece(Piece),
    Hole { end: u64 },
}

/// Runs of segments that wait to be punched.
#[derive(Default)]
pub struct FreedRuns {
    /// Named by a stored batch that may not be on the disk yet.
    pub waiting: Vec<(OrgNo, FreeRun)>,
    /// Punched; their rows go with the next batch.
    pub punched: Vec<(OrgNo, store::Place)>,
    /// Segments without a row, to be removed.
    pub empty: Vec<(OrgNo, u32)>,
}

impl Vault {
    /// Turns the frozen batch's changes into extents and adds their rows to it.
    pub(super) fn store_contents(&self, stored: &mut Stored) -> Result<()> {
        let (number, contents) = {
            let pending = self.records.pending.read();
            let batch = pending.frozen.as_ref().expect("the writer froze it");
            (batch.number, batch.contents.values().cloned().collect::<Vec<_>>())
        };
        for content in contents {
            if !stored.done.contains(&content.ino) {
                self.place(&content, number, stored)?;
                self.map_placed(&content, number, stored)?;
                stored.done.insert(content.ino);
            }
        }
        if !stored.chores_done {
            self.do_chores(stored)?;
            stored.chores_done = true;
        }
        let newest = self.newest_segment.lock();
        let mut rows = Vec::new();
        for ((org, number), segment) in std::mem::take(&mut stored.segments) {
            let over = segment.live == 0 && newest.get(&org).is_some_and(|newest| number < *newest);
            if over {
                stored.empty.push((org, number));
            }
            rows.push((row::Segment::at((org, number)), if over { None } else { boxed(segment) }));
        }
        self.add_rows(rows);
        for (org, more) in std::mem::take(&mut stored.held) {
            self.note_held(org, more);
        }
        Ok(())
    }

    /// Seals the content's changes of this batch and appends them, without holding up its readers.
    fn place(&self, content: &Content, batch: u64, stored: &mut Stored) -> Result<()> {
        let (dirty, key) = {
            let state = content.state.read();
            let dirty: Vec<_> =
                state.dirty.iter().filter(|d| d.batch == batch).map(|d| (d.epoch, d.changes.clone())).collect();
            (dirty, state.key.clone())
        };
        // A try before this one may have got part of the way.
        let mut placed = stored.placed.remove(&content.ino).unwrap_or_default();
        let mut skip = placed.len();
        for (epoch, changes) in dirty {
            let small: usize = changes
                .runs()
                .map(|(_, run)| match run {
                    Run::Data(bytes) if bytes.len() <= stored.inline_max => bytes.len(),
                    _ => 0,
                })
                .sum();
            let inline_max = if small <= INLINE_BATCH { stored.inline_max } else { 0 };
            for (at, what) in merged(changes.runs()) {
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                let change = match what {
                    Merged::Hole { end } => Ok(Placed::Hole { end }),
                    Merged::Stored(piece) => Ok(Placed::Piece(Piece { born: epoch, ..piece })),
                    Merged::Data(bytes) => {
                        let key = key.as_ref().expect("a writer brought the key");
                        self.seal_extent(content.ino, key, bytes, epoch, inline_max, stored).map(Placed::Piece)
                    }
                };
                match change {
                    Ok(change) => placed.push((epoch, at, change)),
                    Err(error) => {
                        stored.placed.insert(content.ino, placed);
                        return Err(error);
                    }
                }
            }
        }
        stored.placed.insert(content.ino, placed);
        Ok(())
    }

    /// Moves what was placed from the content's changes into its map, and the map's changes into the batch.
    fn map_placed(&self, content: &Arc<Content>, batch: u64, stored: &mut Stored) -> Result<()> {
        let mut state = content.state.write();
        let state = &mut *state;
        let mut changes = MapChanges::default();
        self.changeable_map(content.ino, state)?;
        let last_epoch = state.dirty.iter().filter(|d| d.batch == batch).map(|d| d.epoch).max();
        let key = state.key.clone();
        let map = state.map.as_mut().expect("completed above");
        let mut touched = BTreeSet::new();
        for (epoch, at, what) in stored.placed.remove(&content.ino).unwrap_or_default() {
            touched.insert(at / WINDOW);
            match what {
                Placed::Hole { end } => map.cut(at..end, epoch, &mut changes),
                Placed::Piece(piece) => {
                    map.cut(at..at + u64::from(piece.len), epoch, &mut changes);
                    map.insert(at, piece, &mut changes);
                }
            }
        }
        for pin in state.dirty.iter().filter(|d| d.batch == batch).flat_map(|d| &d.pins) {
            map.unpin(pin, &mut changes);
        }
        if let (Some(epoch), Some(key)) = (last_epoch, &key) {
            let mut rewrite = Rewrite { vault: self, ino: content.ino, map, key, epoch, changes: &mut changes, stored };
            match rewrite.gather_pieces(touched) {
                // What was rewritten so far is in the map, and the rest stays as it is.
                Err(Error::Store(store::StoreError::Full(_)) | Error::Corrupt(_)) => {}
                gathered => gathered?,
            }
        }
        let bytes = map.stored();
        self.add_map_rows(content.ino, changes, stored)?;
        self.note_stored(content.ino, bytes);
        state.dirty.retain(|d| d.batch != batch);
        if state.dirty.is_empty() {
            state.key = None;
        }
        Ok(())
    }

    fn seal_extent(
        &self,
        ino: Ino,
        key: &LockedKey,
        mut bytes: Vec<u8>,
        epoch: u64,
        inline_max: usize,
        stored: &mut Stored,
    ) -> Result<Piece> {
        let org = ino.organization();
        let (salt, block) = (Salt::fresh(), BlockSize::OF_NEW_EXTENTS);
        let len = bytes.len() as u32;
        let tags = ExtentKey::new(key, &salt, &self.organization_id(org)?, ino.0, block, bytes.len()).seal(&mut bytes);
        let bytes = if bytes.len() <= inline_max {
            row::Stored::Inline(bytes)
        } else {
            let place = self.segments.append(org.0, &[&bytes])?;
            stored.appended = true;
            self.newest_segment.lock().insert(org, place.segment);
            let padded = (bytes.len() as u64).div_ceil(UNIT) * UNIT;
            if let Some(segment) = self.segment(org, place.segment, place.offset == 0, stored)? {
                segment.end = place.offset + padded;
                segment.live += padded;
            }
            row::Stored::Segment(place)
        };
        Ok(Piece { len, born: epoch, salt, block, extent_len: len, skip: 0, tags, bytes })
    }

    /// The record of a segment that this batch changes. None where there should be one and it is lost: what is in
    /// that segment is not counted, so that it is never taken for empty.
    fn segment<'s>(
        &self,
        org: OrgNo,
        number: u32,
        new: bool,
        stored: &'s mut Stored,
    ) -> Result<Option<&'s mut row::Segment>> {
        use std::collections::btree_map::Entry;
        match stored.segments.entry((org, number)) {
            Entry::Occupied(known) => Ok(Some(known.into_mut())),
            Entry::Vacant(free) => match self.records.get::<row::Segment>((org, number)) {
                Ok(Some(record)) => Ok(Some(free.insert((*record).clone()))),
                Ok(None) if new => Ok(Some(free.insert(row::Segment { end: 0, live: 0 }))),
                Ok(None) | Err(Error::Corrupt(_)) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    fn add_map_rows(&self, ino: Ino, changes: MapChanges, stored: &mut Stored) -> Result<()> {
        let org = ino.organization();
        let mut rows: Vec<(RowAt, Option<Arc<dyn Row>>)> = Vec::new();
        rows.extend(changes.live.into_iter().map(|(at, p)| (Extent::at((ino, at)), p.and_then(|p| boxed(Extent(p))))));
        rows.extend(
            changes.past.into_iter().map(|((died, at), p)| (Past::at((ino, died, at)), p.and_then(|p| boxed(Past(p))))),
        );
        *stored.held.entry(org).or_default() += changes.held;
        for run in changes.freed {
            if let Some(segment) = self.segment(org, run.at.segment, false, stored)? {
                segment.live = segment.live.saturating_sub(run.len);
            }
            rows.push((Freed::at((org, run.at)), boxed(Freed { len: run.len })));
            stored.freed.push((org, run));
        }
        self.add_rows(rows);
        Ok(())
    }

    /// Adds rows to the frozen batch.
    fn add_rows(&self, rows: Vec<(RowAt, Option<Arc<dyn Row>>)>) {
        let changed: Vec<RowAt> = rows.iter().map(|(at, _)| *at).collect();
        {
            let mut pending = self.records.pending.write();
            let batch = pending.frozen.as_mut().expect("the writer froze it");
            for (at, row) in rows {
                // Not `put`: these rows are not known to be new.
                batch.rows.insert(at, row);
            }
        }
        // Else a row that was looked at before, such as a segment's, would come back as it was then once this batch is stored.
        changed.iter().for_each(|at| self.records.forget(at));
    }

    /// Writes what the value takes in the store into the pending attributes of its inode.
    fn note_stored(&self, ino: Ino, bytes: u64) {
        let at = Node::at(ino);
        let tx = self.records.begin();
        let mut newest = None;
        {
            let mut pending = self.records.pending.write();
            let pending = &mut *pending;
            for batch in pending.frozen.iter_mut().chain([&mut pending.current]) {
                let Some(pending) = batch.rows.get_mut(&at) else { continue };
                if let Some(row) = pending {
                    let any: &dyn std::any::Any = &**row;
                    let mut node = any.downcast_ref::<Node>().expect("a table holds one kind of record").clone();
                    node.stored = bytes;
                    *row = Arc::new(node);
                }
                // A node that was removed since must not come back.
                newest = pending.clone();
            }
        }
        if let Some(row) = newest {
            self.records.remember(at, Some(row));
        }
        drop(tx);
    }

    /// Writes what past pieces take into the organization's record, which the writer put into the frozen batch.
    fn note_held(&self, org: OrgNo, more: i64) {
        let Some(organization) = self.organizations.find(org).filter(|_| more != 0) else { return };
        let add = |record: &mut OrgRecord| record.held = record.held.saturating_add_signed(more);
        add(&mut organization.record.lock());
        let mut pending = self.records.pending.write();
        let batch = pending.frozen.as_mut().expect("the writer froze it");
        if let Some(Some(row)) = batch.rows.get_mut(&OrgRecord::at(org)) {
            let any: &dyn std::any::Any = &**row;
            let mut frozen = any.downcast_ref::<OrgRecord>().expect("a table holds one kind of record").clone();
            add(&mut frozen);
            *row = Arc::new(frozen);
        }
    }

    /// Background work on extents, a bounded part in each batch. It begins in the batch that asks for it and not
    /// before: what a version or a key still needs after a crash is there.
    fn do_chores(&self, stored: &mut Stored) -> Result<()> {
        {
            let pending = self.records.pending.read();
            let batch = pending.frozen.as_ref().expect("the writer froze it");
            let asked = batch.rows.iter().filter(|(at, _)| at.table == Table::Pending).filter_map(|(at, row)| {
                let (ino, task) = Pending::task_of(&at.key)?;
                let any: &dyn std::any::Any = &**row.as_ref()?;
                Some((ino, task, any.downcast_ref::<Pending>()?.epoch))
            });
            let on_extents = asked.filter(|(_, task, _)| matches!(task, Task::Reclaim | Task::Prune));
            self.chores.lock().extend(on_extents);
        }
        let mut rows_left = CHORES;
        while rows_left > 0 {
            let Some((ino, task, epoch)) = self.chores.lock().pop_front() else { break };
            // Of a locked organization: its task stays in the records until it is unlocked.
            if !self.records.has_sealer(ino.organization()) {
                continue;
            }
            let content = self.contents.get(ino);
            let mut state = content.state.write();
            let mut changes = MapChanges::default();
            let done = match task {
                Task::Reclaim => self.complete_map(ino, &mut state).map(|map| map.clear(&mut changes)),
                Task::Prune => self.prune_map(ino, &mut state, epoch, &mut changes),
                Task::Commit | Task::Orphan => continue,
            };
            match done {
                Ok(()) => {}
                // Its task stays in the records; what cannot be read does not hold up what can.
                Err(Error::Corrupt(place)) => {
                    self.report(&format!("space is not given back: {}", place));
                    continue;
                }
                Err(error) => return Err(error),
            }
            rows_left = rows_left.saturating_sub(1 + changes.live.len() + changes.past.len());
            self.add_map_rows(ino, changes, stored)?;
            self.add_rows(vec![(Pending::at((ino, task)), None)]);
        }
        let mut freed = self.freed.lock();
        let rows = freed.punched.drain(..).map(|(org, place)| (Freed::at((org, place)), None));
        self.add_rows(rows.collect());
        Ok(())
    }

    /// Whether rows of runs that are punched wait for a batch.
    pub(super) fn has_punched(&self) -> bool {
        !self.freed.lock().punched.is_empty()
    }

    /// Whether work on extents, or rows of runs that are punched, wait for a batch.
    pub(super) fn has_leftovers(&self) -> bool {
        let freed = self.freed.lock();
        let waiting = freed.waiting.len() + freed.punched.len() + freed.empty.len();
        drop(freed);
        waiting > 0 || !self.chores.lock().is_empty()
    }

    /// Punches what batches on the disk have dropped, and removes segments that hold nothing.
    pub(super) fn give_back(&self) {
        let (runs, empty) = {
            let mut freed = self.freed.lock();
            (std::mem::take(&mut freed.waiting), std::mem::take(&mut freed.empty))
        };
        for (org, run) in runs {
            match self.segments.punch(org.0, run.at, run.len) {
                Ok(()) => self.freed.lock().punched.push((org, run.at)),
                // Its row stays: the next mount tries again.
                Err(error) => self.report(&format!("space in a segment was not given back: {error}")),
            }
        }
        for (org, number) in empty {
            if let Err(error) = self.segments.remove(org.0, number) {
                self.report(&format!("an empty segment was not removed: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;

fn boxed(row: impl Record) -> Option<Arc<dyn Row>> {
    Some(Arc::new(row))
}

/// Runs with neighbouring data joined up to the longest extent.
enum Merged {
    Data(Vec<u8>),
    Hole { end: u64 },
    Stored(Piece),
}

fn merged<'a>(runs: impl Iterator<Item = (u64, &'a Run)>) -> Vec<(u64, Merged)> {
    let mut joined: Vec<(u64, Merged)> = Vec::new();
    for (at, run) in runs {
        match (run, joined.last_mut()) {
            (Run::Data(bytes), Some((start, Merged::Data(last))))
                if *start + last.len() as u64 == at && last.len() + bytes.len() <= EXTENT_MAX =>
            {
                last.extend_from_slice(bytes);
            }
            (Run::Data(bytes), _) => joined.push((at, Merged::Data(bytes.clone()))),
            (Run::Hole { end }, _) => joined.push((at, Merged::Hole { end: *end })),
            (Run::Stored(piece), _) => joined.push((at, Merged::Stored(piece.clone()))),
        }
    }
    joined
}
