//! The extent map of one content: which piece of which extent holds each byte, now and in kept versions.
//!
//! Pieces are immutable. Overwriting cuts the live pieces: what an earlier version still needs becomes a
//! past piece, the rest is dropped, and blocks of a segment that no piece touches any more are freed. Several
//! pieces may name the same blocks: parts of one extent, or copies inside the file.

use super::row::{Piece, Stored};
use crate::store;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// The unit in which a segment's bytes are laid out and given back.
pub const UNIT: u64 = 4096;

/// A run of a segment that nothing needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeRun {
    pub at: store::Place,
    /// Bytes, a multiple of `UNIT`.
    pub len: u64,
}

/// What a change of the map means for the stored records.
#[derive(Default, Debug)]
pub struct MapChanges {
    /// Live pieces by offset; `None` where one went.
    pub live: BTreeMap<u64, Option<Piece>>,
    /// Past pieces by (epoch in which they died, offset).
    pub past: BTreeMap<(u64, u64), Option<Piece>>,
    pub freed: Vec<FreeRun>,
    /// By how many bytes of the store past pieces take more.
    pub held: i64,
}

/// Live pieces by offset, past pieces by (epoch of death, offset), and how many pieces touch each block.
#[derive(Default)]
pub struct ExtentMap {
    live: BTreeMap<u64, Piece>,
    /// Bytes that the live pieces take in the store.
    stored: u64,
    /// Where those of them begin that are inline.
    inline: BTreeSet<u64>,
    past: BTreeMap<(u64, u64), Piece>,
    uses: HashMap<store::Place, Vec<u32>>,
    /// Whether past pieces are here too.
    complete: bool,
    /// Whether `uses` counts all uses of the blocks that live pieces touch, which changing the map needs.
    counted: bool,
}

impl ExtentMap {
    /// A map for reading the current value.
    pub fn of_live(live: impl IntoIterator<Item = (u64, Piece)>) -> Self {
        let mut map = ExtentMap::default();
        live.into_iter().for_each(|(at, piece)| map.add(at, piece));
        // No past piece touches the blocks of an extent that is yet to be made.
        map.counted = map.inline.len() == map.live.len();
        map
    }

    /// Adds the past pieces, and counts the uses of all blocks.
    pub fn complete_with(&mut self, past: impl IntoIterator<Item = ((u64, u64), Piece)>) {
        self.past = past.into_iter().collect();
        self.uses.clear();
        for piece in self.live.values().chain(self.past.values()) {
            count(&mut self.uses, piece, 1);
        }
        (self.complete, self.counted) = (true, true);
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether it can be cut and added to: it is complete, or nothing but inline pieces was live when it was loaded.
    pub fn is_changeable(&self) -> bool {
        self.counted
    }

    /// Live pieces that touch `range`, with their offsets.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.live.range(..=range.start).next_back().map_or(range.start, |(at, _)| *at);
        self.live
            .range(first..range.end.max(first))
            .map(|(at, piece)| (*at, piece))
            .filter(move |(at, piece)| at + u64::from(piece.len) > range.start)
    }

    /// The live piece that begins at `offset`.
    pub fn piece(&self, offset: u64) -> Option<&Piece> {
        self.live.get(&offset)
    }

    /// Where the live pieces begin that begin in `range`, if there are more than `limit`.
    pub fn beyond(&self, limit: usize, range: Range<u64>) -> Vec<u64> {
        match self.live.range(range.clone()).nth(limit) {
            Some(_) => self.live.range(range).map(|(at, _)| *at).collect(),
            None => Vec::new(),
        }
    }

    /// Bytes that the live pieces take in the store.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> u64 {
        const PIECE: usize = 160;
        let weight = |piece: &Piece| {
            let inline = if let Stored::Inline(bytes) = &piece.bytes { bytes.len() } else { 0 };
            (PIECE + size_of_val(&piece.tags[..]) + inline) as u64
        };
        self.live.values().chain(self.past.values()).map(weight).sum()
    }

    /// Where inline pieces begin, if there are more than `limit`: then they are to be folded into a segment.
    pub fn inline_beyond(&self, limit: usize) -> Vec<u64> {
        if self.inline.len() <= limit { Vec::new() } else { self.inline.iter().copied().collect() }
    }

    /// Makes `range` a hole as of `epoch`.
    pub fn cut(&mut self, range: Range<u64>, epoch: u64, changes: &mut MapChanges) {
        assert!(self.counted, "uses are counted before the map changes");
        let touched: Vec<u64> = self.overlapping(range.clone()).map(|(at, _)| at).collect();
        for at in touched {
            let piece = self.take(at).expect("found above");
            let end = at + u64::from(piece.len);
            changes.live.insert(at, None);
            let lost = range.start.max(at)..range.end.min(end);
            for kept in [at..lost.start, lost.end..end] {
                if !kept.is_empty() {
                    self.put_live(kept.start, piece.part(at, kept), changes);
                }
            }
            if piece.born < epoch {
                let part = piece.part(at, lost.clone());
                count(&mut self.uses, &part, 1);
                changes.past.insert((epoch, lost.start), Some(part.clone()));
                changes.held += stored_bytes(&part) as i64;
                if self.complete {
                    self.past.insert((epoch, lost.start), part);
                }
            }
            release(&mut self.uses, &piece, changes);
        }
    }

    /// Lays a new piece over the map; its range has been cut.
    pub fn insert(&mut self, at: u64, piece: Piece, changes: &mut MapChanges) {
        self.put_live(at, piece, changes);
    }

    /// Counts a piece as used by a change that is not in the map yet, which will lay it down a second time.
    pub fn pin(&mut self, piece: &Piece) {
        assert!(self.complete, "a map is completed before it changes");
        count(&mut self.uses, piece, 1);
    }

    /// The change is in the map.
    pub fn unpin(&mut self, piece: &Piece, changes: &mut MapChanges) {
        release(&mut self.uses, piece, changes);
    }

    /// Drops past pieces that died in `epoch` or before.
    pub fn prune(&mut self, epoch: u64, changes: &mut MapChanges) {
        assert!(self.complete, "a map is completed before it changes");
        let kept = self.past.split_off(&(epoch + 1, 0));
        for (key, piece) in std::mem::replace(&mut self.past, kept) {
            changes.past.insert(key, None);
            changes.held -= stored_bytes(&piece) as i64;
            release(&mut self.uses, &piece, changes);
        }
    }

    /// Drops past pieces that are all inline, given by their keys: for that no map is needed.
    pub fn prune_inline<'p>(past: impl Iterator<Item = ((u64, u64), &'p Piece)>, changes: &mut MapChanges) {
        for (key, piece) in past {
            changes.past.insert(key, None);
            changes.held -= stored_bytes(piece) as i64;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, changes: &mut MapChanges) {
        self.prune(u64::MAX - 1, changes);
        self.stored = 0;
        self.inline.clear();
        for (at, piece) in std::mem::take(&mut self.live) {
            changes.live.insert(at, None);
            release(&mut self.uses, &piece, changes);
        }
    }

    fn put_live(&mut self, at: u64, piece: Piece, changes: &mut MapChanges) {
        count(&mut self.uses, &piece, 1);
        changes.live.insert(at, Some(piece.clone()));
        self.add(at, piece);
    }

    fn add(&mut self, at: u64, piece: Piece) {
        self.stored += stored_bytes(&piece);
        if piece.is_inline() {
            self.inline.insert(at);
        }
        let replaced = self.live.insert(at, piece);
        debug_assert!(replaced.is_none(), "the range of a new piece was cut");
    }

    fn take(&mut self, at: u64) -> Option<Piece> {
        let piece = self.live.remove(&at)?;
        self.stored -= stored_bytes(&piece);
        self.inline.remove(&at);
        Some(piece)
    }
}

impl Piece {
    pub fn is_inline(&self) -> bool {
        matches!(self.bytes, Stored::Inline(_))
    }

    /// The part of a piece at file offset `at` that holds the file range `part`, which is not empty.
    pub fn part(&self, at: u64, part: Range<u64>) -> Piece {
        let (skip, len) = (self.skip + (part.start - at) as u32, (part.end - part.start) as u32);
        let kept = self.block.covering(skip as usize..(skip + len) as usize);
        let first = self.blocks().start;
        let tags = self.tags[kept.start - first..kept.end - first].to_vec();
        let bytes = match &self.bytes {
            Stored::Segment(place) => Stored::Segment(*place),
            Stored::Inline(bytes) => {
                let begin = self.inline_from();
                let range = self.block_range(kept.start).start - begin..self.block_range(kept.end - 1).end - begin;
                // Bytes that are not there are found when they are read.
                Stored::Inline(bytes.get(range).unwrap_or_default().to_vec())
            }
        };
        Piece { len, skip, tags, bytes, ..*self }
    }

    /// Where in the extent the bytes of an inline piece begin: it holds the blocks that it touches.
    pub fn inline_from(&self) -> usize {
        self.block_range(self.blocks().start).start
    }

    /// The numbers of the extent's blocks that the piece touches.
    pub fn blocks(&self) -> Range<usize> {
        self.block.covering(self.skip as usize..(self.skip + self.len) as usize)
    }

    /// The bytes of the extent that block `number` holds.
    pub fn block_range(&self, number: usize) -> Range<usize> {
        let size = self.block.bytes();
        number * size..((number + 1) * size).min(self.extent_len as usize)
    }
}

/// What a piece costs: whole blocks of a segment, or its ciphertext in a row.
pub fn stored_bytes(piece: &Piece) -> u64 {
    match &piece.bytes {
        Stored::Segment(_) => u64::from(piece.len).div_ceil(UNIT) * UNIT,
        Stored::Inline(_) => u64::from(piece.len).div_ceil(512) * 512,
    }
}

fn count(uses: &mut HashMap<store::Place, Vec<u32>>, piece: &Piece, by: u32) {
    if let Stored::Segment(place) = piece.bytes {
        let counts = uses.entry(place).or_insert_with(|| vec![0; piece.block.count(piece.extent_len as usize)]);
        piece.blocks().for_each(|block| counts[block] += by);
    }
}

/// Takes a piece's uses back and frees the blocks that nothing uses now.
fn release(uses: &mut HashMap<store::Place, Vec<u32>>, piece: &Piece, changes: &mut MapChanges) {
    let Stored::Segment(place) = piece.bytes else { return };
    let Some(counts) = uses.get_mut(&place) else { return };
    for block in piece.blocks() {
        counts[block] -= 1;
        if counts[block] > 0 {
            continue;
        }
        let bytes = piece.block_range(block);
        let at = store::Place { offset: place.offset + bytes.start as u64, ..place };
        let len = (bytes.len() as u64).div_ceil(UNIT) * UNIT;
        match changes.freed.last_mut() {
            Some(run) if run.at.segment == at.segment && run.at.offset + run.len == at.offset => run.len += len,
            _ => changes.freed.push(FreeRun { at, len }),
        }
    }
    if counts.iter().all(|count| *count == 0) {
        uses.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{BlockSize, Salt};
    use proptest::prelude::*;

    fn piece(len: u32, epoch: u64, offset: u64) -> Piece {
        let block = BlockSize::OF_NEW_EXTENTS;
        Piece {
            len,
            born: epoch,
            salt: Salt::fresh(),
            block,
            extent_len: len,
            skip: 0,
            tags: vec![[0; 16]; block.count(len as usize)],
            bytes: Stored::Segment(store::Place { segment: 1, offset }),
        }
    }

    proptest! {
        /// After any overwrites, copies inside the file and commits: every byte is where it was written, kept versions
        /// are whole, and exactly the blocks that nothing uses were freed.
        #[test]
        fn overwrites_keep_versions_and_free_the_rest(
            ops in proptest::collection::vec(
                (0u64..40_000, 1u32..30_000, proptest::option::of(0u64..70_000), any::<bool>()), 1..30,
            ),
            keep_last in 0u64..4,
        ) {
            let mut map = ExtentMap::default();
            map.complete_with([]);
            let mut changes = MapChanges::default();
            let mut models: Vec<Vec<u64>> = vec![vec![0; 70_000]];
            let (mut epoch, mut tail, mut allocated) = (1, 0, std::collections::BTreeSet::new());
            for (at, len, copied_from, commit) in ops {
                if let Some(from) = copied_from {
                    let source = from..(from + u64::from(len)).min(70_000);
                    let pieces: Vec<(u64, Piece)> = map.overlapping(source.clone()).map(|(start, p)| {
                        let part = source.start.max(start)..source.end.min(start + u64::from(p.len));
                        (at + part.start - from, Piece { born: epoch, ..p.part(start, part) })
                    }).collect();
                    pieces.iter().for_each(|(_, piece)| map.pin(piece));
                    map.cut(at..at + source.end - from, epoch, &mut changes);
                    let current = models.last_mut().unwrap();
                    current.copy_within(from as usize..source.end as usize, at as usize);
                    for (to, piece) in pieces {
                        map.insert(to, piece.clone(), &mut changes);
                        map.unpin(&piece, &mut changes);
                    }
                    continue;
                }
                map.cut(at..at + u64::from(len), epoch, &mut changes);
                map.insert(at, piece(len, epoch, tail), &mut changes);
                let padded = u64::from(len).div_ceil(UNIT) * UNIT;
                allocated.extend((tail..tail + padded).step_by(UNIT as usize));
                // The model holds for each byte the extent's place plus the offset in it, plus one.
                let current = models.last_mut().unwrap();
                for i in 0..u64::from(len) {
                    current[(at + i) as usize] = tail * 100_000 + i + 1;
                }
                tail += padded;
                if commit {
                    epoch += 1;
                    models.push(models.last().unwrap().clone());
                }
            }
            let oldest = epoch.saturating_sub(keep_last).max(1);
            map.prune(oldest, &mut changes);
            for (version, model) in (1..=epoch).zip(&models).filter(|(v, _)| *v >= oldest) {
                let mut seen = vec![0u64; 70_000];
                let past = map.past.iter().filter(|((died, _), p)| p.born <= version && version < *died).map(|((_, at), p)| (*at, p));
                let live = map.live.iter().filter(|(_, p)| p.born <= version).map(|(at, p)| (*at, p));
                for (at, piece) in past.chain(live) {
                    let Stored::Segment(place) = &piece.bytes else { unreachable!() };
                    prop_assert_eq!(piece.tags.len(), piece.blocks().len());
                    for i in 0..u64::from(piece.len) {
                        prop_assert_eq!(seen[(at + i) as usize], 0, "two pieces for one byte");
                        seen[(at + i) as usize] = place.offset * 100_000 + u64::from(piece.skip) + i + 1;
                    }
                }
                prop_assert_eq!(&seen, model, "version {}", version);
            }
            let mut freed = std::collections::BTreeSet::new();
            for run in &changes.freed {
                for unit in (run.at.offset..run.at.offset + run.len).step_by(UNIT as usize) {
                    prop_assert!(freed.insert(unit), "freed twice");
                }
            }
            map.clear(&mut changes);
            for run in &changes.freed {
                freed.extend((run.at.offset..run.at.offset + run.len).step_by(UNIT as usize));
            }
            prop_assert_eq!(freed, allocated, "everything comes back in the end");
        }
    }

    /// Else each of many small overwrites would leave a copy of the whole extent behind.
    #[test]
    fn a_part_of_an_inline_piece_holds_the_blocks_that_it_touches() {
        let bytes: Vec<u8> = (0..10_000).map(|n| (n / 4096) as u8).collect();
        let whole = Piece { bytes: Stored::Inline(bytes), ..piece(10_000, 1, 0) };
        let held = |piece: &Piece| match &piece.bytes {
            Stored::Inline(bytes) => (piece.inline_from(), bytes.clone()),
            Stored::Segment(_) => unreachable!(),
        };
        let middle = whole.part(500, 500 + 5000..500 + 9000);
        assert_eq!(held(&middle), (4096, [vec![1; 4096], vec![2; 1808]].concat()));
        let last = middle.part(500 + 5000, 500 + 8500..500 + 9000);
        assert_eq!(held(&last), (8192, vec![2; 1808]));
        assert_eq!((last.skip, last.len, last.tags.len()), (8500, 500, 1));
    }

    #[test]
    fn a_map_of_inline_pieces_changes_without_its_past() {
        let inline = |len: u32, born| Piece { bytes: Stored::Inline(vec![0; len as usize]), ..piece(len, born, 0) };
        let mut small = ExtentMap::of_live([(0, inline(100, 1))]);
        let mut whole = ExtentMap::of_live([(0, inline(100, 1))]);
        assert!(small.is_changeable() && !small.is_complete());
        whole.complete_with([((1, 0), piece(8192, 0, 4096))]);
        let (mut of_small, mut of_whole) = (MapChanges::default(), MapChanges::default());
        for (map, changes) in [(&mut small, &mut of_small), (&mut whole, &mut of_whole)] {
            map.cut(50..9000, 2, changes);
            map.insert(50, piece(8192, 2, 65536), changes);
            map.cut(50..9000, 2, changes);
        }
        let keys =
            |changes: &MapChanges| (changes.live.keys().copied().collect(), changes.past.keys().copied().collect());
        let (live, past): (Vec<u64>, Vec<(u64, u64)>) = keys(&of_small);
        assert_eq!((live, past), keys(&of_whole));
        assert_eq!((of_small.held, &of_small.freed), (of_whole.held, &of_whole.freed));
        assert_eq!(of_small.freed.len(), 1, "the extent that came and went");
        assert!(!ExtentMap::of_live([(0, piece(100, 1, 0))]).is_changeable());
    }
}
