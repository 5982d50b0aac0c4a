//! `fsck`: opens every record and block that it has keys for, and follows what they name.

use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgNo};
use super::records::hex;
use super::row::{
    Attributes, Buried, ContentRecord, Entry, Extent, Freed, Kind, Node, Object, OrgRecord, Past, Pending, Piece,
    Record, RowAt, Segment, Stored, Tombstone, VaultRecord,
};
use super::types::Finding;
use super::{Patience, Vault};
use crate::store::{Key, Table};
use std::sync::Arc;

/// What fsck tells while it works.
struct Check<'a> {
    vault: &'a Vault,
    found: &'a mut dyn FnMut(Finding),
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl Vault {
    /// Calls `found` for each finding and `progress` with records checked so far and in total.
    pub fn fsck(&self, found: &mut dyn FnMut(Finding), progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.sync()?;
        let mut total = 0;
        for table in Table::ALL {
            total += self.records.store.count(table)?;
        }
        let mut check = Check { vault: self, found, progress, done: 0, total };
        for problem in self.records.store.integrity_check()? {
            check.find("fatal", "database", None, "records.db".into(), problem);
        }
        for organization in self.organizations.all() {
            if let Err(error) = self.enter(Ino::graveyard_of(organization.no), Patience::Wait) {
                let message = format!("its records were not checked: {error}");
                let severity = if matches!(error, Error::Corrupt(_)) { "error" } else { "warning" };
                check.find(severity, "organization key", None, organization.id.to_string(), message);
            }
        }
        for table in Table::ALL {
            check.table(table)?;
        }
        check.segments()
    }
}

impl Check<'_> {
    fn find(&mut self, severity: &str, kind: &str, object: Option<ObjectId>, place: String, message: String) {
        (self.found)(Finding {
            severity: severity.into(),
            kind: kind.into(),
            object: object.map(|id| id.to_string()),
            place,
            message,
        });
    }

    fn table(&mut self, table: Table) -> Result<()> {
        let mut from = Key::from(&[][..]);
        let end = Key::from(&[0xFF; 24][..]);
        loop {
            let rows = self.vault.records.store.scan(table, &from, &end, 500)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = last.successor();
            for (key, sealed) in &rows {
                self.row(table, *key, sealed);
            }
            self.done += rows.len() as u64;
            (self.progress)(self.done.min(self.total), self.total);
        }
    }

    fn row(&mut self, table: Table, key: Key, sealed: &[u8]) {
        let org = OrgNo(sealed.first_chunk().map_or(u32::MAX, |org| u32::from_be_bytes(*org)));
        if !self.vault.records.has_sealer(org) {
            let known = self.vault.organizations.find(org).is_some();
            if !known {
                let message = "it names an organization that is not there".into();
                self.find("error", "record", None, format!("{} {}", table.name(), hex(&key)), message);
            }
            return;
        }
        let at = RowAt { table, key, sealed_for: org };
        let result = match table {
            Table::Organization if *key == *OrgRecord::at(OrgNo::VAULT).key => {
                self.open::<VaultRecord>(&at, sealed).map(drop)
            }
            Table::Organization => self.open::<OrgRecord>(&at, sealed).map(drop),
            Table::Node => self.open::<Node>(&at, sealed).map(|node| self.node(&key, &node)),
            Table::Entry => self.open::<Entry>(&at, sealed).map(|entry| self.entry(&key, &entry)),
            Table::Attributes => self.open::<Attributes>(&at, sealed).map(drop),
            Table::Content => self.open::<ContentRecord>(&at, sealed).map(|_| self.content(&key)),
            Table::Extent => self.open::<Extent>(&at, sealed).map(|e| self.piece(&key, 8, &e.0)),
            Table::Past => self.open::<Past>(&at, sealed).map(|p| self.piece(&key, 16, &p.0)),
            Table::Object => self.open::<Object>(&at, sealed).map(|object| self.object(&key, org, &object)),
            Table::Tombstone => self.open::<Tombstone>(&at, sealed).map(|grave| self.grave(&key, &grave)),
            Table::Buried => self.open::<Buried>(&at, sealed).map(drop),
            Table::Pending => self.open::<Pending>(&at, sealed).map(drop),
            Table::Segment => self.open::<Segment>(&at, sealed).map(drop),
            Table::Freed => self.open::<Freed>(&at, sealed).map(drop),
        };
        if let Err(error) = result {
            let ino = matches!(
                table,
                Table::Node | Table::Entry | Table::Attributes | Table::Content | Table::Extent | Table::Past
            );
            let object = ino.then(|| self.object_of(ino_of(&key))).flatten();
            self.find("error", "record", object, format!("{} {}", table.name(), hex(&key)), error.to_string());
        }
    }

    fn open<R: Record>(&self, at: &RowAt, sealed: &[u8]) -> Result<R> {
        self.vault.records.open(at, sealed)
    }

    /// A record that another one names; what does not open is found when its own row is checked.
    fn missing<R: Record>(&self, id: R::Id) -> bool {
        matches!(self.vault.records.get::<R>(id), Ok(None))
    }

    fn object_of(&self, ino: Ino) -> Option<ObjectId> {
        self.vault.records.get::<Node>(ino).ok().flatten().and_then(|node| node.object())
    }

    fn node(&mut self, key: &Key, node: &Node) {
        let ino = ino_of(key);
        if let Kind::Directory { parent, .. } = node.kind
            && self.missing::<Node>(parent)
        {
            self.find(
                "error",
                "folder",
                None,
                format!("inode {}", ino.0),
                "the folder that it is in is missing".into(),
            );
        }
        if let Some(id) = node.object()
            && node.stored > 0
            && node.links > 0
            && self.missing::<ContentRecord>(ino)
        {
            let message = "its wrapped key is missing".into();
            self.find("error", "wrapped key", Some(id), format!("inode {}", ino.0), message);
        }
    }

    fn entry(&mut self, key: &Key, entry: &Entry) {
        if self.missing::<Node>(entry.ino) && !self.missing_now(key, entry) {
            let message = format!("the name leads to inode {}, which is missing", entry.ino.0);
            self.find("error", "entry", None, format!("entry {}", hex(key)), message);
        }
    }

    /// Whether the entry went away while this ran.
    fn missing_now(&self, key: &Key, entry: &Entry) -> bool {
        let hash = key[8..].try_into().expect("keys of entries end in a hash");
        let now: Option<Arc<Entry>> = self.vault.records.get((ino_of(key), hash)).ok().flatten();
        now.is_none_or(|now| now.ino != entry.ino)
    }

    fn content(&mut self, key: &Key) {
        let ino = ino_of(key);
        let content = self.vault.contents.get(ino);
        if let Err(error) = self.vault.content_key(&content, Patience::Wait)
            && !self.missing::<ContentRecord>(ino)
        {
            let severity = if matches!(error, Error::Corrupt(_)) { "error" } else { "warning" };
            let object = self.object_of(ino);
            self.find(severity, "wrapped key", object, format!("content {}", ino.0), error.to_string());
        }
    }

    fn piece(&mut self, key: &Key, offset_at: usize, piece: &Piece) {
        let ino = ino_of(key);
        let at = u64::from_be_bytes(key[offset_at..].try_into().expect("keys of extents end in an offset"));
        let content = self.vault.contents.get(ino);
        // Reads and frees exclude each other through the content's lock.
        let _state = content.state.read();
        let Ok(dek) = self.vault.content_key(&content, Patience::Wait) else { return };
        let mut bytes = vec![0; piece.len as usize];
        let range = at..at + u64::from(piece.len);
        let still_there = || match offset_at {
            8 => !self.missing::<Extent>((ino, at)),
            _ => true,
        };
        if let Err(error) = self.vault.open_part(ino, &dek, at, piece, &range, &mut bytes)
            && still_there()
        {
            let place = match &piece.bytes {
                Stored::Segment(place) => format!(
                    "segment {:08x}/{:08x} at {}, file offset {at}",
                    ino.organization().0,
                    place.segment,
                    place.offset
                ),
                Stored::Inline(_) => format!("{} {}", if offset_at == 8 { "extent" } else { "past" }, hex(key)),
            };
            self.find("error", "block", self.object_of(ino), place, error.to_string());
        }
    }

    fn object(&mut self, key: &Key, org: OrgNo, object: &Object) {
        let id = ObjectId(u128::from_be_bytes((**key).try_into().unwrap_or_default()));
        for version in object.versions.iter().filter(|v| v.size > 0) {
            if self.missing::<ContentRecord>(version.content) && !self.missing::<Object>((org, id)) {
                let has_bytes = self.vault.pieces_of(version).is_ok_and(|pieces| !pieces.is_empty());
                if has_bytes {
                    let message = format!("the key of version {} is missing", version.ordinal);
                    self.find("error", "wrapped key", Some(id), format!("content {}", version.content.0), message);
                }
            }
        }
    }

    fn grave(&mut self, key: &Key, grave: &Tombstone) {
        if self.missing::<Node>(grave.ino) {
            let message = "the tombstone's inode is missing".into();
            self.find("error", "tombstone", None, format!("tombstone {}", hex(key)), message);
        }
    }

    /// Segment files that no record names hold nothing that could be read.
    fn segments(&mut self) -> Result<()> {
        for org in self.vault.segments.organizations()? {
            let place = |number: u32| format!("segments/{org:08x}/{number:08x}");
            if self.vault.organizations.find(OrgNo(org)).is_none() {
                let message = "no record names this organization's segments".into();
                self.find("warning", "orphaned segment", None, format!("segments/{org:08x}"), message);
                continue;
            }
            if !self.vault.records.has_sealer(OrgNo(org)) {
                continue;
            }
            for (number, size) in self.vault.segments.list(org)? {
                match self.vault.records.get::<Segment>((OrgNo(org), number)) {
                    Ok(None) => {
                        let message = "no record names this segment".into();
                        self.find("warning", "orphaned segment", None, place(number), message);
                    }
                    Ok(Some(segment)) if segment.live > 0 && size + super::extents::UNIT <= segment.end => {
                        let message = format!("{size} bytes long, but records name bytes up to {}", segment.end);
                        self.find("error", "segment", None, place(number), message);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn ino_of(key: &Key) -> Ino {
    Ino(key.first_chunk().map_or(0, |ino| u64::from_be_bytes(*ino)))
}
