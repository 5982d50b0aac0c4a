//! Contents in use: the bytes behind one inode, stored pieces below and answered changes on top.

use super::Vault;
use super::changes::Changes;
use super::error::{Error, Place, Result};
use super::extents::{self, ExtentMap, MapChanges};
use super::ids::{Ino, OrgNo};
use super::row::{ContentRecord, Extent, Node, Past, Piece, Record, RowAt, Stored, Version};
use crate::crypto::{self, ExtentKey, LockedKey, Plain};
use crate::keys::{KeyError, Patience};
use crate::store::Key;
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// A content that a handle or a batch holds on to.
pub struct Content {
    pub ino: Ino,
    pub state: RwLock<State>,
    /// The key whose commitment was checked, so that it is checked once for each unwrapping.
    verified: Mutex<Weak<LockedKey>>,
}

#[derive(Default)]
pub struct State {
    /// Loaded when first needed; follows what the writer thread stores.
    pub map: Option<ExtentMap>,
    /// Oldest first; at most one for each batch and epoch.
    pub dirty: Vec<Dirty>,
    /// Held while there are changes to seal, past its age in the cache.
    pub key: Option<Arc<LockedKey>>,
}

/// Changes that belong to one batch and one epoch.
pub struct Dirty {
    pub batch: u64,
    pub epoch: u64,
    /// Shared with the writer thread once the batch is frozen; until then it changes in place.
    pub changes: Arc<Changes>,
    /// Pieces that the changes name, counted as used until the changes are in the map.
    pub pins: Vec<Piece>,
}

impl State {
    /// The changes that an operation of this batch and epoch adds to.
    pub fn changes(&mut self, batch: u64, epoch: u64) -> &mut Changes {
        Arc::make_mut(&mut self.dirty(batch, epoch).changes)
    }

    /// Keeps a piece's bytes, whatever becomes of its present place, for a change of this batch and epoch that names it.
    pub fn pin(&mut self, batch: u64, epoch: u64, piece: Piece) {
        self.map.as_mut().expect("a change completes the map").pin(&piece);
        self.dirty(batch, epoch).pins.push(piece);
    }

    fn dirty(&mut self, batch: u64, epoch: u64) -> &mut Dirty {
        if self.dirty.last().is_none_or(|d| (d.batch, d.epoch) != (batch, epoch)) {
            self.dirty.push(Dirty { batch, epoch, changes: Arc::default(), pins: Vec::new() });
        }
        self.dirty.last_mut().expect("pushed above")
    }

    /// Bytes of file data that are answered and not stored.
    pub fn unstored(&self) -> u64 {
        self.dirty.iter().map(|dirty| dirty.changes.bytes()).sum()
    }

    /// About how much memory it takes, once everything is stored.
    fn weight(&self) -> u64 {
        EMPTY + self.map.as_ref().map_or(0, ExtentMap::weight) + self.unstored().min(super::storing::INLINE_MAX as u64)
    }
}

impl Content {
    /// It was made just now: nothing is stored of it, and nobody has to look.
    pub fn is_new(&self) {
        let mut map = ExtentMap::default();
        map.complete_with([]);
        self.state.write().map = Some(map);
    }
}

/// Bytes of maps that are kept for the next open after the last close.
const RECENT: u64 = 16 << 20;
/// What a content of nothing takes.
const EMPTY: u64 = 512;

/// The contents in use, and those that were a short time ago.
pub struct Contents {
    table: Mutex<HashMap<Ino, Weak<Content>>>,
    recent: Cache<Ino, Recent, ByWeight>,
}

/// A closed content, and what its map took then.
#[derive(Clone)]
struct Recent {
    _content: Arc<Content>,
    weight: u64,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Ino, Recent> for ByWeight {
    fn weight(&self, _: &Ino, recent: &Recent) -> u64 {
        recent.weight
    }
}

impl Default for Contents {
    fn default() -> Self {
        let typical = EMPTY + super::storing::INLINE_MAX as u64;
        let mut options = OptionsBuilder::new();
        // One shard: the map of one large file may take all of it.
        options.estimated_items_capacity((RECENT / typical) as usize).weight_capacity(RECENT).shards(1);
        let options = options.build().expect("both capacities are given");
        let recent = Cache::with_options(options, ByWeight, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Contents { table: Mutex::default(), recent }
    }
}

impl Contents {
    pub fn get(&self, ino: Ino) -> Arc<Content> {
        let mut table = self.table.lock();
        if let Some(content) = table.get(&ino).and_then(Weak::upgrade) {
            return content;
        }
        if table.len() == table.capacity() {
            table.retain(|_, content| content.strong_count() > 0);
        }
        let content = Arc::new(Content { ino, state: RwLock::default(), verified: Mutex::default() });
        table.insert(ino, Arc::downgrade(&content));
        content
    }

    /// The content if it is in use.
    pub fn find(&self, ino: Ino) -> Option<Arc<Content>> {
        self.table.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// Its last handle was closed: what is stored of it need not be looked up again soon.
    pub fn closed(&self, content: Arc<Content>) {
        let weight = content.state.read().weight();
        self.recent.insert(content.ino, Recent { _content: content, weight });
    }
}

/// The keys of a content's rows: everything below `org ‖ ino`.
pub fn rows_of<R: Record>(ino: Ino, like: RowAt) -> (RowAt, Key, Key) {
    debug_assert_eq!(like.table, R::TABLE);
    (like, Key::from(&ino.0.to_be_bytes()[..]), Key::from(&(ino.0 + 1).to_be_bytes()[..]))
}

/// Epoch of death and offset.
fn past_key(key: &Key) -> (u64, u64) {
    (number(&key[8..16]), number(&key[16..]))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("keys are made of 8-byte numbers"))
}

impl Vault {
    /// The content's key, from the cache or the token; its commitment is checked.
    pub(super) fn content_key(&self, content: &Content, patience: Patience) -> Result<Arc<LockedKey>> {
        loop {
            let record =
                self.records.get::<ContentRecord>(content.ino)?.ok_or_else(|| self.missing_key(content.ino))?;
            let key = self.key_of(content, &record, patience);
            // A rotation may have wrapped it anew and ended the old KEK version between the two looks.
            let rotated = |now: Option<Arc<ContentRecord>>| now.is_some_and(|now| now.wrapped != record.wrapped);
            match key {
                Err(Error::Key(KeyError::NoSuchKey(_))) if rotated(self.records.get(content.ino)?) => {}
                key => return key,
            }
        }
    }

    pub(super) fn key_of(
        &self,
        content: &Content,
        record: &ContentRecord,
        patience: Patience,
    ) -> Result<Arc<LockedKey>> {
        let org = content.ino.organization();
        let key = self
            .keyring
            .unwrap(org.0, &record.wrapped, &record.context, patience)
            .map_err(|error| self.key_error(error, content.ino))?;
        if Weak::as_ptr(&content.verified.lock()) != Arc::as_ptr(&key) {
            let expected = crypto::commitment(&key, &self.organization_id(org)?, content.ino.0, &record.wrapped.dek_id);
            if !crypto::same_tag(&expected, &record.commitment) {
                return Err(self.corrupt("commitment", content.ino, String::new()));
            }
            *content.verified.lock() = Arc::downgrade(&key);
        }
        Ok(key)
    }

    pub(super) fn missing_key(&self, ino: Ino) -> Error {
        self.corrupt("wrapped key", ino, "missing".into())
    }

    pub(super) fn key_error(&self, error: KeyError, ino: Ino) -> Error {
        match error {
            KeyError::Authentication => self.corrupt("wrapped key", ino, String::new()),
            other => other.into(),
        }
    }

    /// Fills `buffer` with the bytes at `offset` of the current value; what no piece or change holds is zero.
    pub(super) fn read_content(
        &self,
        content: &Content,
        offset: u64,
        buffer: &mut [u8],
        patience: Patience,
    ) -> Result<()> {
        let range = offset..offset + buffer.len() as u64;
        self.load_map(content)?;
        // Held until the bytes are opened: the writer thread frees no piece that is being read.
        let state = content.state.read();
        let covering = state.dirty.iter().rposition(|d| d.changes.cover(range.clone()));
        let mut key = state.key.clone();
        let mut open = |at: u64, piece: &Piece, buffer: &mut [u8]| {
            let key = match &key {
                Some(key) => key.clone(),
                None => key.insert(self.content_key(content, patience)?).clone(),
            };
            self.open_part(content.ino, &key, at, piece, &range, buffer)
        };
        if covering.is_none() {
            let map = state.map.as_ref().expect("loaded above, and never unloaded");
            for (at, piece) in map.overlapping(range.clone()) {
                open(at, piece, buffer)?;
            }
        }
        for dirty in &state.dirty[covering.unwrap_or(0)..] {
            dirty.changes.overlay(offset, buffer, &mut open)?;
        }
        Ok(())
    }

    /// Fills `buffer` with the bytes at `offset` of a committed version, which is made of `pieces`.
    pub(super) fn read_version(
        &self,
        content: Ino,
        key: &LockedKey,
        pieces: &Pieces,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let range = offset..offset + buffer.len() as u64;
        let touched = |(at, p): &&(u64, Arc<PieceOf>)| *at < range.end && at + u64::from(p.piece().len) > range.start;
        for (at, piece) in pieces.iter().filter(touched) {
            self.open_part(content, key, *at, piece.piece(), &range, buffer)?;
        }
        Ok(())
    }

    /// The pieces that make up a committed version; what it holds must have been stored. The caller holds the content's
    /// state, so that no rows change meanwhile.
    pub(super) fn pieces_of(&self, version: &Version) -> Result<Pieces> {
        let ino = version.content;
        let mut pieces = Vec::new();
        for (key, row) in self.live_rows(ino)? {
            if row.0.born <= version.epoch {
                pieces.push((number(&key[8..]), Arc::new(PieceOf::Live(row))));
            }
        }
        for (key, row) in self.past_rows(ino)? {
            let died = number(&key[8..16]);
            if row.0.born <= version.epoch && version.epoch < died {
                pieces.push((number(&key[16..]), Arc::new(PieceOf::Past(row))));
            }
        }
        pieces.sort_by_key(|(at, _)| *at);
        Ok(pieces)
    }

    /// Loads the map of the current value if it is not there yet.
    pub(super) fn load_map(&self, content: &Content) -> Result<()> {
        if content.state.read().map.is_some() {
            return Ok(());
        }
        let mut state = content.state.write();
        if state.map.is_none() {
            state.map = Some(self.stored_map(content.ino)?);
        }
        Ok(())
    }

    /// Loads everything that changing the map needs: before a change is answered, so that what cannot be read
    /// refuses the change and does not hold up the writer thread. The earlier versions of a small value are not among it.
    pub(super) fn changeable_map<'a>(&self, ino: Ino, state: &'a mut State) -> Result<&'a mut ExtentMap> {
        if state.map.is_none() {
            state.map = Some(self.stored_map(ino)?);
        }
        if state.map.as_ref().is_some_and(ExtentMap::is_changeable) {
            return Ok(state.map.as_mut().expect("set above"));
        }
        self.complete_map(ino, state)
    }

    /// Loads the past pieces too.
    pub(super) fn complete_map<'a>(&self, ino: Ino, state: &'a mut State) -> Result<&'a mut ExtentMap> {
        if state.map.is_none() {
            state.map = Some(self.stored_map(ino)?);
        }
        let map = state.map.as_mut().expect("set above");
        if !map.is_complete() {
            let past = self.past_rows(ino)?;
            map.complete_with(past.iter().map(|(key, row)| (past_key(key), row.0.clone())));
        }
        Ok(map)
    }

    /// Drops the pieces that died in `epoch` or before.
    pub(super) fn prune_map(&self, ino: Ino, state: &mut State, epoch: u64, changes: &mut MapChanges) -> Result<()> {
        if !state.map.as_ref().is_some_and(ExtentMap::is_complete) {
            let (like, from, _) = rows_of::<Past>(ino, Past::at((ino, 0, 0)));
            let past = self.records.scan_all::<Past>(like, from, Past::at((ino, epoch + 1, 0)).key)?;
            if past.iter().all(|(_, row)| row.0.is_inline()) {
                ExtentMap::prune_inline(past.iter().map(|(key, row)| (past_key(key), &row.0)), changes);
                return Ok(());
            }
        }
        self.complete_map(ino, state)?.prune(epoch, changes);
        Ok(())
    }

    fn stored_map(&self, ino: Ino) -> Result<ExtentMap> {
        let rows = self.live_rows(ino)?;
        Ok(ExtentMap::of_live(rows.into_iter().map(|(key, row)| (number(&key[8..]), row.0.clone()))))
    }

    /// Where the inode counts more than its rows hold, one was taken away: what it held must not read as a hole. The
    /// count and the rows change together, while the writer thread holds the content's state.
    fn live_rows(&self, ino: Ino) -> Result<Vec<(Key, Arc<Extent>)>> {
        let (like, from, to) = rows_of::<Extent>(ino, Extent::at((ino, 0)));
        let rows = self.records.scan_all::<Extent>(like, from, to)?;
        let held: u64 = rows.iter().map(|(_, row)| extents::stored_bytes(&row.0)).sum();
        match self.records.get::<Node>(ino)? {
            Some(node) if held < node.stored => Err(self.corrupt("extent", ino, "missing".into())),
            _ => Ok(rows),
        }
    }

    fn past_rows(&self, ino: Ino) -> Result<Vec<(Key, Arc<Past>)>> {
        let (like, from, to) = rows_of::<Past>(ino, Past::at((ino, 0, 0)));
        self.records.scan_all(like, from, to)
    }

    /// Opens what `piece` (at file offset `at`) has of `range` into `buffer`, which stands at `range.start`.
    pub(super) fn open_part(
        &self,
        ino: Ino,
        key: &LockedKey,
        at: u64,
        piece: &Piece,
        range: &Range<u64>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let org = ino.organization();
        let wanted = range.start.max(at)..range.end.min(at + u64::from(piece.len));
        let target = &mut buffer[(wanted.start - range.start) as usize..(wanted.end - range.start) as usize];
        let inside = (wanted.start - at) as usize + piece.skip as usize;
        let blocks = piece.block.covering(inside..inside + target.len());
        let bytes = piece.block_range(blocks.start).start..piece.block_range(blocks.end - 1).end;
        let tags = blocks.start - piece.blocks().start..blocks.end - piece.blocks().start;
        let tags = piece.tags.get(tags).ok_or_else(|| self.corrupt("extent", ino, at.to_string()))?;
        let cipher = ExtentKey::new(
            key,
            &piece.salt,
            &self.organization_id(org)?,
            ino.0,
            piece.block,
            piece.extent_len as usize,
        );
        let open = |data: &mut [u8]| {
            self.stored_part(org, piece, bytes.start, data)?;
            let opened = cipher.open(blocks.start, tags, data);
            opened.map_err(|_| self.corrupt("block", ino, wanted.start.to_string()))
        };
        if bytes.start == inside && bytes.len() == target.len() {
            return open(target);
        }
        let mut whole = Plain::zeroed(bytes.len());
        open(&mut whole)?;
        target.copy_from_slice(&whole[inside - bytes.start..][..target.len()]);
        Ok(())
    }

    /// Fills `data` with the ciphertext of a piece's extent from `start` on.
    pub(super) fn stored_part(&self, org: OrgNo, piece: &Piece, start: usize, data: &mut [u8]) -> Result<()> {
        match &piece.bytes {
            Stored::Inline(bytes) => {
                let start = start - piece.inline_from();
                let part = bytes.get(start..start + data.len());
                let too_short = Place { what: "extent", ino: None, object: None, at: "inline".into() };
                data.copy_from_slice(part.ok_or(Error::Corrupt(too_short))?);
            }
            Stored::Segment(place) => {
                let at = crate::store::Place { offset: place.offset + start as u64, ..*place };
                self.segments.read(org.0, at, data)?;
            }
        }
        Ok(())
    }
}

/// The pieces of a version with their offsets, in order.
pub type Pieces = Vec<(u64, Arc<PieceOf>)>;

/// A piece as its row holds it.
pub enum PieceOf {
    Live(Arc<Extent>),
    Past(Arc<Past>),
}

impl PieceOf {
    fn piece(&self) -> &Piece {
        match self {
            PieceOf::Live(row) => &row.0,
            PieceOf::Past(row) => &row.0,
        }
    }
}
