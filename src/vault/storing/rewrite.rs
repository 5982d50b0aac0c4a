//! A content in too many pieces is written again: the parts that were written just now, and what stands with the records.

use super::Stored;
use crate::crypto::LockedKey;
use crate::vault::Vault;
use crate::vault::changes::EXTENT_MAX;
use crate::vault::error::Result;
use crate::vault::extents::{ExtentMap, MapChanges};
use crate::vault::ids::Ino;
use std::collections::BTreeSet;

/// Inline pieces of a content, beyond which they go to a segment.
const INLINE_PIECES: usize = 64;
/// A part of a value, and how many pieces may make it up before it is written again as one: each costs a record, and small
/// ones a unit of a segment, so that without end random writes of a few bytes would take many times the value's size.
pub const WINDOW: u64 = EXTENT_MAX as u64;
const WINDOW_PIECES: usize = 384;

/// What it takes to change a map while a batch is stored.
pub struct Rewrite<'a> {
    pub vault: &'a Vault,
    pub ino: Ino,
    pub map: &'a mut ExtentMap,
    pub key: &'a LockedKey,
    pub epoch: u64,
    pub changes: &'a mut MapChanges,
    pub stored: &'a mut Stored,
}

impl Rewrite<'_> {
    /// The parts of the value that were written now, if in too many pieces, and everything inline.
    pub fn gather_pieces(&mut self, touched: BTreeSet<u64>) -> Result<()> {
        for window in touched {
            let pieces = self.map.beyond(WINDOW_PIECES, window * WINDOW..(window + 1) * WINDOW);
            self.rewrite(&pieces)?;
        }
        let inline = self.map.inline_beyond(INLINE_PIECES);
        self.rewrite(&inline)
    }

    /// Pieces, given by their offsets in order, as extents of a segment.
    fn rewrite(&mut self, pieces: &[u64]) -> Result<()> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (at, piece) in pieces.iter().filter_map(|at| Some((*at, self.map.piece(*at)?))) {
            let mut bytes = vec![0; piece.len as usize];
            self.vault.open_part(self.ino, self.key, at, piece, &(at..at + u64::from(piece.len)), &mut bytes)?;
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == at && run.len() + bytes.len() <= EXTENT_MAX => {
                    run.extend_from_slice(&bytes);
                }
                _ => runs.push((at, bytes)),
            }
        }
        for (at, bytes) in runs {
            let len = bytes.len() as u64;
            let piece = self.vault.seal_extent(self.ino, self.key, bytes, self.epoch, 0, self.stored)?;
            self.map.cut(at..at + len, self.epoch, self.changes);
            self.map.insert(at, piece, self.changes);
        }
        Ok(())
    }
}
