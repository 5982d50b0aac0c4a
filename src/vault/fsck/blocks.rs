//! Reading everything: each wrapped key and each block is opened once, and what does not open is traced to the
//! objects and versions that it is gone from.

use super::census::{ino_of, number};
use super::finding::{FindingCode as Code, FindingPlace, Lost, LostVersion};
use super::{Check, Subject};
use crate::crypto::{ExtentKey, LockedKey, Plain};
use crate::store::{Key, Table};
use crate::vault::Vault;
use crate::vault::error::{Error, Result};
use crate::vault::ids::{Ino, ObjectId, OrgNo};
use crate::vault::row::{ContentRecord, Extent, Object, Past, Piece, Record, RowAt, Stored};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

const ROWS_AT_ONCE: usize = 100;

/// A part of a content that cannot be read, and the epochs that it belongs to.
pub struct Gone {
    born: u64,
    died: Option<u64>,
    range: Range<u64>,
}

impl Check<'_> {
    /// Opens every wrapped key that the records name.
    pub fn open_keys(&mut self, vault: &Vault, contents: Vec<Ino>) {
        for ino in contents.into_iter().filter(|ino| vault.records.has_sealer(ino.organization())) {
            if let Err(error) = vault.checked_key(ino) {
                self.key_failed(vault, ino, error);
            }
        }
    }

    fn key_failed(&mut self, vault: &Vault, ino: Ino, error: Error) {
        // One content can have both current and past pieces.
        if self.gone.contains_key(&ino) {
            return;
        }
        let place = FindingPlace::row(Table::Content, &ContentRecord::at(ino).key);
        match error {
            Error::Corrupt(_) => {
                vault.corrupt("wrapped key", ino, String::new());
                let message = format!("the wrapped key of content {} does not open", ino.0);
                self.find(Code::WrappedKey, Subject::Inode(ino), place, message, None);
                self.all_is_gone(ino);
            }
            // Purged while this ran, or its row was found before.
            Error::NotFound => {}
            Error::Key(crate::keys::KeyError::NoSuchKey(_)) => {
                let org = ino.organization();
                self.find(Code::KekMissing, Subject::organization(org), place, error.to_string(), None);
            }
            error => {
                let message = format!("the bytes of content {} were not checked: {error}", ino.0);
                self.find(Code::NotChecked, Subject::Inode(ino), place, message, None);
            }
        }
    }

    /// Without its key nothing of a content can be read.
    pub fn all_is_gone(&mut self, content: Ino) {
        self.gone.entry(content).or_default().push(Gone { born: 0, died: None, range: 0..u64::MAX });
    }

    /// Opens every block of every extent, as the records name them now.
    pub fn open_blocks(&mut self, vault: &Vault) -> Result<()> {
        let mut key = None;
        self.pieces::<Extent>(vault, &mut key, |row| row.0)?;
        self.pieces::<Past>(vault, &mut key, |row| row.0)
    }

    fn pieces<R: Record>(
        &mut self,
        vault: &Vault,
        key: &mut Option<(Ino, Option<Arc<LockedKey>>)>,
        piece_of: fn(R) -> Piece,
    ) -> Result<()> {
        let mut from = Key::from(&[][..]);
        let end = Key::from(&[0xFF; Key::MAX][..]);
        loop {
            let rows = match vault.records.store.scan(R::TABLE, &from, &end, ROWS_AT_ONCE) {
                Ok(rows) => rows,
                // Told of by the census.
                Err(crate::store::StoreError::Corrupt(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = last.successor();
            for (at, sealed) in &rows {
                let ino = ino_of(at);
                if !vault.records.has_sealer(ino.organization()) {
                    continue;
                }
                let place = RowAt { table: R::TABLE, key: *at, sealed_for: ino.organization() };
                let Ok(piece) = vault.records.open::<R>(&place, sealed).map(piece_of) else { continue };
                if key.as_ref().is_none_or(|(known, _)| *known != ino) {
                    let opened = vault.checked_key(ino).map_err(|error| self.key_failed(vault, ino, error));
                    *key = Some((ino, opened.ok()));
                }
                if let Some((_, Some(key))) = key {
                    self.piece_of_content(vault, &place, ino, key, &piece);
                }
            }
        }
    }

    fn piece_of_content(&mut self, vault: &Vault, row: &RowAt, ino: Ino, key: &LockedKey, piece: &Piece) {
        let content = vault.contents.get(ino);
        // Reads and frees exclude each other through the content's lock.
        let _state = content.state.read();
        let bytes = piece.block_range(piece.blocks().start).start..piece.block_range(piece.blocks().end - 1).end;
        self.advance(bytes.len() as u64);
        let bad = vault.bad_blocks(ino, key, piece);
        // What a mount gave back since the row was read was no value's any more.
        if bad.is_empty() || !matches!(vault.records.store.get(row.table, &row.key), Ok(Some(_))) {
            return;
        }
        let at = number(&row.key[row.key.len() - 8..]);
        let died = (row.table == Table::Past).then(|| number(&row.key[8..16]));
        let mut parts = Vec::new();
        for block in &bad {
            let bytes = piece.block_range(*block);
            let (from, to) = (bytes.start.max(piece.skip as usize), bytes.end.min((piece.skip + piece.len) as usize));
            let range = at + (from - piece.skip as usize) as u64..at + (to - piece.skip as usize) as u64;
            match parts.last_mut() {
                Some(Range { end, .. }) if *end == range.start => *end = range.end,
                _ => parts.push(range),
            }
        }
        let place = match &piece.bytes {
            Stored::Segment(place) => {
                let offset = place.offset + piece.block_range(bad[0]).start as u64;
                FindingPlace::segment(ino.organization().0, place.segment, Some(offset))
            }
            Stored::Inline(_) => FindingPlace::row(row.table, &row.key),
        };
        vault.corrupt("block", ino, parts[0].start.to_string());
        let shown: Vec<String> = parts.iter().map(|part| format!("{}–{}", part.start, part.end - 1)).collect();
        let whose = if died.is_some() { "an earlier version" } else { "the value" };
        let message = format!("bytes {} of {whose} do not authenticate", shown.join(", "));
        self.find(Code::Block, Subject::Inode(ino), place, message, None);
        let gone = parts.into_iter().map(|range| Gone { born: piece.born, died, range });
        self.gone.entry(ino).or_default().extend(gone);
    }

    /// The objects of which something is gone, with what of each version is left.
    pub fn lost(&self, vault: &Vault) -> Result<Vec<Lost>> {
        let mut lost = Vec::new();
        if self.gone.is_empty() {
            return Ok(lost);
        }
        for organization in vault.organizations.all() {
            if !vault.records.has_sealer(organization.no) {
                continue;
            }
            let like = Object::at((organization.no, ObjectId(0)));
            let mut next = Some(like.key);
            while let Some(from) = next {
                let part = match vault.records.scan::<Object>(like, from, Key::from(&[0xFF; 17][..]), 1000) {
                    Ok(part) => part,
                    // A row that does not open was found; those behind it are looked for one by one no further.
                    Err(Error::Corrupt(_)) => break,
                    Err(error) => return Err(error),
                };
                for (key, object) in &part.rows {
                    let id = ObjectId(u128::from_be_bytes((**key).try_into().expect("keys of objects are ids")));
                    lost.extend(self.lost_of(vault, organization.no, id, object));
                }
                next = part.next;
            }
        }
        Ok(lost)
    }

    fn lost_of(&self, vault: &Vault, org: OrgNo, id: ObjectId, object: &Object) -> Option<Lost> {
        let gone = |content: Ino, epoch: u64, size: u64| -> Vec<(u64, u64)> {
            let parts = self.gone.get(&content).into_iter().flatten();
            let of_it = parts.filter(|gone| gone.born <= epoch && gone.died.is_none_or(|died| epoch < died));
            let mut parts: Vec<_> = of_it.map(|gone| (gone.range.start, gone.range.end.min(size))).collect();
            parts.retain(|(from, to)| from < to);
            parts.sort_unstable();
            parts
        };
        if !object.versions.iter().any(|version| self.gone.contains_key(&version.content)) {
            return None;
        }
        let versions = object.versions.iter().map(|version| {
            let gone = gone(version.content, version.epoch, version.size);
            LostVersion {
                version: version.ordinal,
                id: version.id.to_string(),
                size: version.size,
                readable: gone.is_empty(),
                gone,
            }
        });
        Some(Lost {
            organization: vault.organizations.find(org)?.id.to_string(),
            object: id.to_string(),
            path: self.path_of(object.ino),
            versions: versions.collect(),
        })
    }
}

/// What is gone of each content.
pub type AllGone = HashMap<Ino, Vec<Gone>>;

impl Vault {
    /// A content's key for the check alone: it is neither kept in the cache nor in the audit log.
    fn checked_key(&self, ino: Ino) -> Result<Arc<LockedKey>> {
        let record = self.records.get::<ContentRecord>(ino)?.ok_or(Error::NotFound)?;
        let key = self.keyring.unwrap_once(ino.organization().0, &record.wrapped, &record.context);
        let key = key.map_err(|error| match error {
            crate::keys::KeyError::Authentication => self.damaged("wrapped key", ino),
            other => other.into(),
        })?;
        let id = self.organization_id(ino.organization())?;
        let expected = crate::crypto::commitment(&key, &id, ino.0, &record.wrapped.dek_id);
        match crate::crypto::same_tag(&expected, &record.commitment) {
            true => Ok(key),
            false => Err(self.damaged("commitment", ino)),
        }
    }

    fn damaged(&self, what: &'static str, ino: Ino) -> Error {
        Error::Corrupt(crate::vault::Place { what, ino: Some(ino), object: None, at: String::new() })
    }

    /// The numbers of the blocks that the piece touches and that do not open.
    fn bad_blocks(&self, ino: Ino, key: &LockedKey, piece: &Piece) -> Vec<usize> {
        let org = ino.organization();
        let Ok(id) = self.organization_id(org) else { return piece.blocks().collect() };
        let cipher = ExtentKey::new(key, &piece.salt, &id, ino.0, piece.block, piece.extent_len as usize);
        let opens = |blocks: Range<usize>| {
            let bytes = piece.block_range(blocks.start).start..piece.block_range(blocks.end - 1).end;
            let first = piece.blocks().start;
            let Some(tags) = piece.tags.get(blocks.start - first..blocks.end - first) else { return false };
            let mut data = Plain::zeroed(bytes.len());
            self.stored_part(org, piece, bytes.start, &mut data).is_ok()
                && cipher.open(blocks.start, tags, &mut data).is_ok()
        };
        if opens(piece.blocks()) {
            return Vec::new();
        }
        piece.blocks().filter(|block| !opens(*block..block + 1)).collect()
    }
}
