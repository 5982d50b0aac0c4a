//! `--repair`: what can be mended without guessing. Nothing that a damaged row could have named is given back: in
//! an organization with such a row the checks do not even propose it.

use super::super::row::{
    Attributes, Buried, ContentRecord, Entry, Freed, Kind, Node, Pending, Record, Segment, Task, VaultRecord,
};
use super::finding::Finding;
use crate::store::Place;
use crate::vault::Vault;
use crate::vault::error::Result;
use crate::vault::extents::FreeRun;
use crate::vault::ids::{Ino, ObjectId, OrgNo};
use crate::vault::records::Tx;
use std::time::Duration;

/// How a finding is mended.
pub enum Fix {
    Links(Ino, u32),
    Stored(Ino, u64),
    DropEntry(Ino, [u8; 16]),
    /// The name that the inode remembers.
    PutEntry(Ino),
    EntryKind(Ino, [u8; 16], u32),
    FolderParent(Ino, Ino, Vec<u8>),
    DropAttributes(Ino),
    Task(Ino, Task),
    DropTask(Ino, Task),
    Owner(Ino, ObjectId),
    DestroyContent(Ino),
    Buried(OrgNo, [u8; 16], Vec<u64>),
    /// Objects, bytes, tombstones.
    Counts(OrgNo, u64, u128, u64),
    /// The next inode and the next tombstone, at least.
    Numbers(OrgNo, u64, u64),
    /// The next organization and the next deleted organization, at least.
    VaultNumbers(u32, u64),
    Segment(OrgNo, u32, Segment),
    DropFreed(OrgNo, Place),
    RemoveSegment(OrgNo, u32),
    RemoveOrganization(OrgNo),
    Trim(OrgNo, u32, u64),
    Punch(OrgNo, Vec<FreeRun>),
    /// What a mount would finish.
    Finish,
}

impl Vault {
    /// Mends what has a fix, and says of each finding whether it did. The vault must have been opened by
    /// [`Vault::inspect`] and is to be closed afterwards.
    pub(super) fn mend(self: &std::sync::Arc<Self>, found: &mut [(Finding, Option<Fix>)]) -> Result<()> {
        self.start_writer()?;
        let mut finish = Vec::new();
        for (finding, fix) in found.iter_mut() {
            match fix {
                Some(Fix::Finish) => finish.push(finding),
                Some(fix) => finding.repaired = self.apply(fix)?,
                None => {}
            }
        }
        self.sync()?;
        if !finish.is_empty() {
            self.prepare_segments()?;
            self.finish_unfinished()?;
            while self.has_leftovers() {
                // Space is given back after a sync, and a sync needs something to store.
                self.finish(self.begin()?);
                self.sync()?;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        finish.into_iter().for_each(|finding| finding.repaired = true);
        Ok(())
    }

    fn apply(&self, fix: &Fix) -> Result<bool> {
        match fix {
            Fix::RemoveSegment(org, number) => self.segments.remove(org.0, *number)?,
            Fix::Trim(org, number, end) => self.segments.trim(org.0, *number, *end)?,
            Fix::Punch(org, runs) => {
                for run in runs {
                    self.segments.punch(org.0, run.at, run.len)?;
                }
            }
            Fix::RemoveOrganization(org) => self.remove_remains(*org)?,
            _ => {
                let mut tx = self.begin()?;
                if !self.apply_to_records(&mut tx, fix)? {
                    return Ok(false);
                }
                self.finish(tx);
            }
        }
        Ok(true)
    }

    fn apply_to_records(&self, tx: &mut Tx, fix: &Fix) -> Result<bool> {
        match fix {
            Fix::Links(ino, links) => self.change(tx, *ino, |node| node.links = *links)?,
            Fix::Stored(ino, stored) => self.change(tx, *ino, |node| node.stored = *stored)?,
            Fix::DropEntry(folder, hash) => tx.delete::<Entry>((*folder, *hash)),
            Fix::PutEntry(ino) => return self.put_entry(tx, *ino),
            Fix::EntryKind(folder, hash, kind) => {
                let entry = Entry { kind: *kind, ..(*tx.need::<Entry>((*folder, *hash))?).clone() };
                tx.put((*folder, *hash), entry);
            }
            Fix::FolderParent(ino, folder, name) => self.change(tx, *ino, |node| {
                node.kind = Kind::Directory { parent: *folder, name: name.clone() };
            })?,
            Fix::DropAttributes(ino) => tx.delete::<Attributes>(*ino),
            Fix::Task(ino, task) => tx.put((*ino, *task), Pending { epoch: 0 }),
            Fix::DropTask(ino, task) => tx.delete::<Pending>((*ino, *task)),
            Fix::Owner(content, id) => {
                let mut record = (*tx.need::<ContentRecord>(*content)?).clone();
                if !record.owners.contains(id) {
                    record.owners.push(*id);
                }
                tx.put(*content, record);
            }
            Fix::DestroyContent(content) => self.destroy_content(tx, *content)?,
            Fix::Buried(org, hash, numbers) if numbers.is_empty() => tx.delete::<Buried>((*org, *hash)),
            Fix::Buried(org, hash, numbers) => tx.put((*org, *hash), Buried(numbers.clone())),
            Fix::Counts(org, objects, bytes, tombstones) => {
                let right = (*objects, *bytes, *tombstones);
                self.count(tx, *org, move |record| (record.objects, record.bytes, record.tombstones) = right)?;
            }
            Fix::Numbers(org, local, grave) => {
                let (local, grave) = (*local, *grave);
                self.count(tx, *org, move |record| {
                    record.next_local = record.next_local.max(local).max(Ino::FIRST_LOCAL);
                    record.next_grave = record.next_grave.max(grave);
                })?;
            }
            Fix::VaultNumbers(org, grave) => {
                self.organizations.raise(*org, *grave);
                // Every batch writes them down.
                let own = (*tx.need::<VaultRecord>(())?).clone();
                tx.put((), own);
            }
            Fix::Segment(org, number, right) => tx.put((*org, *number), right.clone()),
            Fix::DropFreed(org, place) => tx.delete_at(Freed::at((*org, *place))),
            Fix::RemoveSegment(..) | Fix::RemoveOrganization(_) | Fix::Trim(..) | Fix::Punch(..) | Fix::Finish => {}
        }
        Ok(true)
    }

    /// Gives an inode the name back that it remembers, if its folder is there and nothing else has the name.
    fn put_entry(&self, tx: &mut Tx, ino: Ino) -> Result<bool> {
        let node = tx.need::<Node>(ino)?;
        let (Kind::File { parent, name, .. } | Kind::Directory { parent, name }) = &node.kind else { return Ok(false) };
        let Some(folder) = tx.get::<Node>(*parent)? else { return Ok(false) };
        let hash = self.records.name_hash(*parent, name)?;
        if !folder.kind.is_directory() || tx.get::<Entry>((*parent, hash))?.is_some() {
            return Ok(false);
        }
        tx.put((*parent, hash), Entry { name: name.clone(), ino, kind: node.kind.mode_bits() });
        Ok(true)
    }
}
