//! The census: one pass over every table of a snapshot. Each row has to have its shape and, where its key is there,
//! to open; what the rows say of one another is noted for the judgement (`tree.rs`, `space.rs`).

use super::finding::{FindingCode as Code, FindingPlace};
use super::repair::Fix;
use super::{Check, Subject};
use crate::store::{Key, Place, Snapshot, Table};
use crate::vault::error::{Error, Result};
use crate::vault::extents;
use crate::vault::ids::{Ino, ObjectId, OrgNo};
use crate::vault::row::{
    Attributes, Buried, ContentRecord, Entry, Extent, Freed, Intent, Kek, Kind, Node, Object, OrgRecord, Past, Pending,
    Piece, Record, RowAt, Segment, Stored, Task, Tombstone, VaultRecord,
};
use crate::vault::{ApiKey, Profile};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Bytes in front of a row's ciphertext and behind it: organization, batch, salt, tag.
const SEALING: usize = 4 + 8 + 16 + 16;
const ROWS_AT_ONCE: usize = 500;

/// What the rows of all tables say. `None` stands for a row that is there and could not be opened.
#[derive(Default)]
pub struct Census {
    pub own: Option<VaultRecord>,
    pub organizations: BTreeMap<OrgNo, Option<OrgRecord>>,
    pub nodes: HashMap<Ino, Option<NodeSeen>>,
    pub attributes: HashSet<Ino>,
    /// How many names lead to an inode.
    pub names: HashMap<Ino, u32>,
    pub subfolders: HashMap<Ino, u32>,
    /// Owners of each content.
    pub contents: HashMap<Ino, Option<Vec<ObjectId>>>,
    /// The inode that an object says it is in.
    pub objects: HashMap<ObjectId, (OrgNo, Option<Ino>)>,
    /// Objects with a version that names a content.
    pub named: HashMap<Ino, Vec<ObjectId>>,
    /// Tombstones with the hash of their path.
    pub graves: HashMap<(OrgNo, u64), Option<GraveSeen>>,
    pub buried: HashMap<(OrgNo, [u8; 16]), Option<Vec<u64>>>,
    pub tasks: HashSet<(Ino, Task)>,
    /// Bytes that the live pieces of a content take; of one that has any piece.
    pub stored: HashMap<Ino, u64>,
    pub uses: BTreeMap<(OrgNo, u32), SegmentUse>,
    pub segments: BTreeMap<(OrgNo, u32), Option<Segment>>,
    pub freed: Vec<(OrgNo, Place, u64)>,
    /// Organizations that are gone, of which rows are left that a purge removes last.
    pub remains: BTreeSet<OrgNo>,
    /// Bytes of extents to be read.
    pub bytes: u64,
}

/// A tombstone's inode and the hash of its path.
type GraveSeen = (Ino, [u8; 16]);

#[derive(Clone, Copy)]
pub struct NodeSeen {
    pub kind: KindSeen,
    pub mode_bits: u32,
    pub links: u32,
    pub size: u64,
    pub stored: u64,
    pub grave: Option<u64>,
    pub attributes: bool,
    pub changed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum KindSeen {
    File(ObjectId),
    Directory { parent: Ino },
    Other,
}

impl Census {
    fn is_gone(&self, org: OrgNo) -> bool {
        org != OrgNo::VAULT && !self.organizations.contains_key(&org)
    }
}

/// What pieces need of one segment.
#[derive(Default)]
pub struct SegmentUse {
    /// One bit for each 4 KiB.
    units: Vec<u64>,
    /// Extents that pieces name: where each begins and how long it is.
    extents: BTreeMap<u64, u64>,
    /// The byte after the last one that a piece needs.
    pub last: u64,
}

impl SegmentUse {
    pub fn mark(&mut self, from: u64, to: u64) {
        for unit in from / extents::UNIT..to.div_ceil(extents::UNIT) {
            let word = (unit / 64) as usize;
            if self.units.len() <= word {
                self.units.resize(word + 1, 0);
            }
            self.units[word] |= 1 << (unit % 64);
        }
    }

    pub fn is_used(&self, unit: u64) -> bool {
        self.units.get((unit / 64) as usize).is_some_and(|word| word & 1 << (unit % 64) != 0)
    }

    /// Bytes, as a segment's record counts them.
    pub fn live(&self) -> u64 {
        self.units.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * extents::UNIT
    }

    /// Notes an extent; false if it overlaps another.
    fn extent(&mut self, at: u64, len: u64) -> bool {
        if self.extents.get(&at) == Some(&len) {
            return true;
        }
        let before = self.extents.range(..=at).next_back().is_none_or(|(other, len)| other + len <= at);
        let after = self.extents.range(at..).next().is_none_or(|(other, _)| at + len <= *other);
        self.extents.insert(at, len);
        before && after
    }
}

impl NodeSeen {
    fn of(node: &Node) -> Self {
        NodeSeen {
            kind: match node.kind {
                Kind::File { object, .. } => KindSeen::File(object),
                Kind::Directory { parent, .. } => KindSeen::Directory { parent },
                _ => KindSeen::Other,
            },
            mode_bits: node.kind.mode_bits(),
            links: node.links,
            size: node.size,
            stored: node.stored,
            grave: node.grave,
            attributes: node.attributes,
            changed: node.changed,
        }
    }
}

/// The organization that a row's key names, if it does.
fn owner_by_key(table: Table, key: &Key) -> Option<OrgNo> {
    let number = || OrgNo(key.first_chunk().map_or(u32::MAX, |org| u32::from_be_bytes(*org)));
    match table {
        Table::Organization | Table::ApiKey | Table::Profile | Table::Kek | Table::Intent => Some(OrgNo::VAULT),
        Table::Node | Table::Attributes if ino_of(key).is_top() => Some(OrgNo::VAULT),
        Table::Node
        | Table::Attributes
        | Table::Entry
        | Table::Content
        | Table::Extent
        | Table::Past
        | Table::Pending => Some(ino_of(key).organization()),
        Table::Tombstone | Table::Buried | Table::Segment | Table::Freed => Some(number()),
        Table::Object => None,
    }
}

fn key_length(table: Table) -> usize {
    match table {
        Table::Organization | Table::Profile => 4,
        Table::Node | Table::Attributes | Table::Content | Table::Segment => 8,
        Table::Pending => 9,
        Table::Tombstone => 12,
        Table::Extent | Table::Object | Table::Freed | Table::ApiKey => 16,
        Table::Buried | Table::Kek | Table::Intent => 20,
        Table::Entry | Table::Past => 24,
    }
}

pub fn ino_of(key: &[u8]) -> Ino {
    Ino(key.first_chunk().map_or(0, |ino| u64::from_be_bytes(*ino)))
}

pub fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("the key's length was checked"))
}

impl Check<'_> {
    pub fn take_census(&mut self, snapshot: &Snapshot) -> Result<Census> {
        let mut census = Census::default();
        let c = &mut census;
        self.pass(snapshot, c, Table::Organization, |check, c, key, org, sealed| {
            if **key == *OrgRecord::at(OrgNo::VAULT).key {
                c.own = check.open::<VaultRecord>(key, org, sealed);
            } else {
                let no = OrgNo(u32::from_be_bytes((**key).try_into().expect("the key's length was checked")));
                c.organizations.insert(no, check.open::<OrgRecord>(key, org, sealed));
            }
        })?;
        self.pass(snapshot, c, Table::ApiKey, |check, _, key, org, sealed| {
            drop(check.open::<ApiKey>(key, org, sealed))
        })?;
        self.pass(snapshot, c, Table::Profile, |check, _, key, org, sealed| {
            drop(check.open::<Profile>(key, org, sealed))
        })?;
        self.pass(snapshot, c, Table::Node, |check, c, key, org, sealed| {
            let node = check.open::<Node>(key, org, sealed);
            c.nodes.insert(ino_of(key), node.as_ref().map(NodeSeen::of));
        })?;
        self.pass(snapshot, c, Table::Attributes, |check, c, key, org, sealed| {
            check.open::<Attributes>(key, org, sealed);
            c.attributes.insert(ino_of(key));
        })?;
        self.pass(snapshot, c, Table::Entry, Self::entry)?;
        self.pass(snapshot, c, Table::Content, |check, c, key, org, sealed| {
            let record = check.open::<ContentRecord>(key, org, sealed);
            c.contents.insert(ino_of(key), record.map(|record| record.owners));
        })?;
        self.pass(snapshot, c, Table::Object, |check, c, key, org, sealed| {
            let id = ObjectId(u128::from_be_bytes((**key).try_into().expect("the key's length was checked")));
            let object = check.open::<Object>(key, org, sealed);
            for version in object.iter().flat_map(|object| &object.versions) {
                let named = c.named.entry(version.content).or_default();
                if !named.contains(&id) {
                    named.push(id);
                }
            }
            c.objects.insert(id, (org, object.map(|object| object.ino)));
        })?;
        self.pass(snapshot, c, Table::Tombstone, |check, c, key, org, sealed| {
            let grave = check.open::<Tombstone>(key, org, sealed).and_then(|grave| {
                let hash = check.vault?.records.name_hash(Ino::graveyard_of(org), &grave.original_path).ok()?;
                Some((grave.ino, hash))
            });
            c.graves.insert((org, number(&key[4..])), grave);
        })?;
        self.pass(snapshot, c, Table::Buried, |check, c, key, org, sealed| {
            let hash = key[4..].try_into().expect("the key's length was checked");
            c.buried.insert((org, hash), check.open::<Buried>(key, org, sealed).map(|buried| buried.0));
        })?;
        self.pass(snapshot, c, Table::Pending, |check, c, key, org, sealed| {
            check.open::<Pending>(key, org, sealed);
            match Pending::task_of(key) {
                Some(task) => drop(c.tasks.insert(task)),
                None => {
                    let place = FindingPlace::row(Table::Pending, key);
                    check.find(Code::RowShape, Subject::organization(org), place, "no such task is known".into(), None);
                }
            }
        })?;
        let mut before = (Ino(0), 0);
        self.pass(snapshot, c, Table::Extent, |check, c, key, org, sealed| {
            let (ino, at) = (ino_of(key), number(&key[8..]));
            c.stored.entry(ino).or_default();
            let Some(Extent(piece)) = check.open(key, org, sealed) else { return };
            if before.0 == ino && at < before.1 {
                let message = format!("it overlaps the extent before it, which ends at byte {} of the value", before.1);
                check.find(
                    Code::ExtentOverlap,
                    Subject::Inode(ino),
                    FindingPlace::row(Table::Extent, key),
                    message,
                    None,
                );
            }
            before = (ino, at + u64::from(piece.len));
            *c.stored.entry(ino).or_default() += extents::stored_bytes(&piece);
            check.piece(c, key, org, &piece);
        })?;
        self.pass(snapshot, c, Table::Past, |check, c, key, org, sealed| {
            c.stored.entry(ino_of(key)).or_default();
            if let Some(Past(piece)) = check.open(key, org, sealed) {
                check.piece(c, key, org, &piece);
            }
        })?;
        self.pass(snapshot, c, Table::Segment, |check, c, key, org, sealed| {
            let no = u32::from_be_bytes(key[4..].try_into().expect("the key's length was checked"));
            c.segments.insert((org, no), check.open::<Segment>(key, org, sealed));
        })?;
        self.pass(snapshot, c, Table::Freed, |check, c, key, org, sealed| {
            if let (Some(freed), Some(place)) = (check.open::<Freed>(key, org, sealed), Freed::place_of(key)) {
                c.freed.push((org, place, freed.len));
            }
        })?;
        self.pass(snapshot, c, Table::Kek, |check, _, key, org, sealed| drop(check.open::<Kek>(key, org, sealed)))?;
        self.pass(snapshot, c, Table::Intent, |check, _, key, org, sealed| {
            drop(check.open::<Intent>(key, org, sealed));
        })?;
        Ok(census)
    }

    /// Goes through a table; `each` gets the rows that have the shape of one.
    fn pass(
        &mut self,
        snapshot: &Snapshot,
        census: &mut Census,
        table: Table,
        mut each: impl FnMut(&mut Self, &mut Census, &Key, OrgNo, &[u8]),
    ) -> Result<()> {
        let mut from = Key::from(&[][..]);
        let end = Key::from(&[0xFF; Key::MAX][..]);
        loop {
            let rows = match snapshot.scan(table, &from, &end, ROWS_AT_ONCE) {
                Ok(rows) => rows,
                Err(crate::store::StoreError::Corrupt(why)) => {
                    let place = FindingPlace { table: Some(table.name().into()), ..FindingPlace::file("records.db") };
                    self.find(Code::Database, Subject::Vault, place, why, None);
                    self.everything_is_damaged = true;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = last.successor();
            for (key, sealed) in &rows {
                self.advance((key.len() + sealed.len()) as u64);
                match self.owner_of_row(census, table, key, sealed) {
                    Ok(org) if census.is_gone(org) => drop(census.remains.insert(org)),
                    Ok(org) => each(self, census, key, org, sealed),
                    Err((code, org, why)) => {
                        self.find(code, Subject::organization(org), FindingPlace::row(table, key), why, None);
                        if let Some(owner) = owner_by_key(table, key) {
                            self.damaged.insert(owner);
                        }
                        self.note_unopened(census, table, key);
                    }
                }
            }
        }
    }

    /// A row that is there, though nothing can be said of what it holds.
    fn note_unopened(&mut self, c: &mut Census, table: Table, key: &Key) {
        if key.len() != key_length(table) {
            return;
        }
        match table {
            Table::Node => drop(c.nodes.entry(ino_of(key)).or_insert(None)),
            Table::Content => drop(c.contents.entry(ino_of(key)).or_insert(None)),
            Table::Organization if **key != *OrgRecord::at(OrgNo::VAULT).key => {
                let no = OrgNo(u32::from_be_bytes((**key).try_into().expect("the key's length was checked")));
                c.organizations.entry(no).or_insert(None);
            }
            Table::Attributes => drop(c.attributes.insert(ino_of(key))),
            _ => {}
        }
    }

    /// Which organization's key seals a row, as far as that can be said without opening it.
    fn owner_of_row(
        &self,
        census: &Census,
        table: Table,
        key: &Key,
        sealed: &[u8],
    ) -> std::result::Result<OrgNo, (Code, OrgNo, String)> {
        let claimed = OrgNo(sealed.first_chunk().map_or(u32::MAX, |org| u32::from_be_bytes(*org)));
        if key.len() != key_length(table) {
            return Err((Code::RowShape, claimed, format!("its key has {} bytes", key.len())));
        }
        let owner = owner_by_key(table, key).unwrap_or(claimed);
        if sealed.len() < SEALING {
            return Err((Code::RowShape, owner, format!("it has {} bytes, too few for any row", sealed.len())));
        }
        if claimed != owner {
            let why = format!("it says it is of organization {}, and its key says {}", claimed.0, owner.0);
            return Err((Code::RowOwner, owner, why));
        }
        let goes_last = matches!(table, Table::Segment | Table::Freed | Table::Buried | Table::Pending);
        if census.is_gone(owner) && !goes_last {
            return Err((Code::RowOwner, owner, format!("it names organization {}, which is not there", owner.0)));
        }
        Ok(owner)
    }

    /// A row's record, if its key is there; one that does not open is found.
    fn open<R: Record>(&mut self, key: &Key, org: OrgNo, sealed: &[u8]) -> Option<R> {
        let vault = self.vault.filter(|vault| vault.records.has_sealer(org))?;
        match vault.records.open(&RowAt { table: R::TABLE, key: *key, sealed_for: org }, sealed) {
            Ok(record) => Some(record),
            Err(error) => {
                let by_inode = matches!(
                    R::TABLE,
                    Table::Node | Table::Attributes | Table::Content | Table::Extent | Table::Past | Table::Pending
                );
                let subject = if by_inode && ino_of(key).organization() != OrgNo::VAULT {
                    Subject::Inode(ino_of(key))
                } else {
                    Subject::organization(org)
                };
                let why = match error {
                    Error::Corrupt(_) => "it was changed, or belongs elsewhere: it does not authenticate".to_owned(),
                    other => other.to_string(),
                };
                if let Some(owner) = owner_by_key(R::TABLE, key).filter(|_| by_inode) {
                    self.damaged.insert(owner);
                    self.damaged.insert(ino_of(key).organization());
                }
                self.find(Code::RowNotAuthentic, subject, FindingPlace::row(R::TABLE, key), why, None);
                None
            }
        }
    }

    fn entry(&mut self, c: &mut Census, key: &Key, org: OrgNo, sealed: &[u8]) {
        let folder = ino_of(key);
        let place = || FindingPlace::row(Table::Entry, key);
        if !c.nodes.contains_key(&folder) {
            let message = format!("its folder, inode {}, is missing", folder.0);
            self.find(Code::FolderMissing, Subject::organization(org), place(), message, None);
        }
        let Some(entry) = self.open::<Entry>(key, org, sealed) else { return };
        let hash: [u8; 16] = key[8..].try_into().expect("the key's length was checked");
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let vault = self.vault.expect("it opened");
        if vault.records.name_hash(folder, &entry.name).is_ok_and(|right| right != hash) {
            let message = format!("it is found under another name than its own, {name:?}");
            self.find(Code::EntryName, Subject::Inode(entry.ino), place(), message, None);
        }
        let Some(node) = c.nodes.get(&entry.ino) else {
            let message = format!("the name {name:?} leads to inode {}, which is missing", entry.ino.0);
            let path = self.path_below(folder, &entry.name);
            let subject = Subject::Path(org, path);
            self.find(Code::EntryDangling, subject, place(), message, Some(Fix::DropEntry(folder, hash)));
            return;
        };
        *c.names.entry(entry.ino).or_default() += 1;
        let Some(node) = node else { return };
        if node.mode_bits != entry.kind {
            let message = format!("the name {name:?} leads to another kind of file than it says");
            let fix = Fix::EntryKind(folder, hash, node.mode_bits);
            self.find(Code::EntryKind, Subject::Inode(entry.ino), place(), message, Some(fix));
        }
        if let KindSeen::Directory { parent } = node.kind {
            *c.subfolders.entry(folder).or_default() += 1;
            if parent != folder {
                let message = format!("the folder {name:?} takes another for the one that it is in");
                let fix = Fix::FolderParent(entry.ino, folder, entry.name);
                self.find(Code::FolderParent, Subject::Inode(entry.ino), place(), message, Some(fix));
            }
        }
    }

    /// What a piece needs of its segment.
    fn piece(&mut self, c: &mut Census, key: &Key, org: OrgNo, piece: &Piece) {
        let range = piece.block_range(piece.blocks().start).start..piece.block_range(piece.blocks().end - 1).end;
        c.bytes += range.len() as u64;
        let Stored::Segment(place) = piece.bytes else { return };
        let used = c.uses.entry((org, place.segment)).or_default();
        used.mark(place.offset + range.start as u64, place.offset + range.end as u64);
        used.last = used.last.max(place.offset + range.end as u64);
        if !used.extent(place.offset, u64::from(piece.extent_len)) {
            let message = format!("bytes of its extent at {} belong to another extent too", place.offset);
            let at = FindingPlace::segment(org.0, place.segment, Some(place.offset));
            self.find(Code::SegmentOverlap, Subject::Inode(ino_of(key)), at, message, None);
        }
    }
}
