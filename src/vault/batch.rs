//! Batches: what was answered and is not stored yet, in front of the store.
//!
//! The current batch collects transactions and dirty contents; the writer thread freezes it, stores it
//! and drops it. Batches are stored in order, so a crash leaves a prefix of what was answered.

use super::content::Content;
use super::ids::{Ino, OrgNo};
use super::row::{Row, RowAt};
use crate::store::{Key, Table};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// One batch.
pub struct Batch {
    pub number: u64,
    /// `None` deletes.
    pub rows: BTreeMap<RowAt, Option<Arc<dyn Row>>>,
    /// Rows that were not in the store when this batch put them there.
    pub fresh: HashSet<RowAt>,
    /// Organizations whose own record changed.
    pub organizations: BTreeSet<OrgNo>,
    /// Contents with changes that belong to this batch.
    pub contents: BTreeMap<Ino, Arc<Content>>,
    /// Bytes of file data that it holds in memory.
    pub bytes: usize,
    /// Whether anything was answered in it, even if it came to nothing: somebody may wait for it.
    pub touched: bool,
}

impl Batch {
    fn new(number: u64) -> Self {
        Batch {
            number,
            rows: BTreeMap::new(),
            fresh: HashSet::new(),
            organizations: BTreeSet::new(),
            contents: BTreeMap::new(),
            bytes: 0,
            touched: false,
        }
    }

    pub fn put(&mut self, at: RowAt, row: Option<Arc<dyn Row>>) {
        if row.is_none() && self.fresh.remove(&at) {
            self.rows.remove(&at);
        } else {
            self.rows.insert(at, row);
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.touched
    }
}

/// The current batch and the one that is being stored.
pub struct Rows {
    pub current: Batch,
    pub frozen: Option<Batch>,
}

impl Rows {
    pub fn new(number: u64) -> Self {
        Rows { current: Batch::new(number), frozen: None }
    }

    /// The newest pending state of a row; `None` if no batch has it.
    pub fn find(&self, at: &RowAt) -> Option<Option<Arc<dyn Row>>> {
        self.current.rows.get(at).or_else(|| self.frozen.as_ref()?.rows.get(at)).cloned()
    }

    /// Pending rows like `like` in a range of keys, the newest state of each.
    pub fn range(&self, like: RowAt, from: &Key, to: &Key) -> BTreeMap<Key, Option<Arc<dyn Row>>> {
        let bound = |key: &Key| RowAt { key: *key, sealed_for: OrgNo::VAULT, ..like };
        let rows = self.frozen.iter().chain([&self.current]).flat_map(|b| b.rows.range(bound(from)..bound(to)));
        rows.filter(|(at, _)| at.sealed_for == like.sealed_for).map(|(at, row)| (at.key, row.clone())).collect()
    }

    /// The organizations of pending rows in a range of keys; `None` where the newest state is that it is gone.
    pub fn organizations_in(&self, table: Table, from: &Key, to: &Key) -> BTreeMap<Key, Option<OrgNo>> {
        let bound = |key: &Key| RowAt { table, key: *key, sealed_for: OrgNo::VAULT };
        let rows = self.frozen.iter().chain([&self.current]).flat_map(|b| b.rows.range(bound(from)..bound(to)));
        rows.map(|(at, row)| (at.key, row.is_some().then_some(at.sealed_for))).collect()
    }

    /// Which organization seals the pending row with this key, if there is one.
    pub fn organization_of(&self, table: Table, key: &Key) -> Option<OrgNo> {
        let range = RowAt { table, key: *key, sealed_for: OrgNo::VAULT }..=RowAt {
            table,
            key: *key,
            sealed_for: OrgNo(OrgNo::MAX),
        };
        let found =
            |batch: &Batch| batch.rows.range(range.clone()).find(|(_, row)| row.is_some()).map(|(at, _)| at.sealed_for);
        found(&self.current).or_else(|| found(self.frozen.as_ref()?))
    }

    /// Ends the current batch and begins the next; false if there is nothing to store.
    pub fn freeze(&mut self) -> bool {
        assert!(self.frozen.is_none(), "batches are stored one after another");
        if self.current.is_empty() {
            return false;
        }
        let next = Batch::new(self.current.number + 1);
        self.frozen = Some(std::mem::replace(&mut self.current, next));
        true
    }
}
