//! Typed records on sealed rows: a cache of decoded rows in front of the store, and transactions.
//!
//! There is one writer at a time (`Tx` holds its lock) and readers never wait for it. What a transaction
//! changes goes into the current batch (`batch.rs`), is seen at once by everybody, and is sealed and
//! stored later by the writer thread, batch by batch, in order.

use super::batch::{Batch, Rows as PendingRows};
use super::content::Content;
use super::error::{Error, Place, Result};
use super::ids::{Ino, OrgNo};
use super::row::{Record, Row, RowAt};
use crate::crypto::{NameKey, RecordKey, RecordPlace};
use crate::store::{Change, Key, Rows, Table};
use parking_lot::{Mutex, MutexGuard, RwLock};
use quick_cache::sync::Cache;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

type Decoded = Option<Arc<dyn Row>>;

/// How many changes may wait.
const WAITING: usize = 4096;

/// What opens and seals the records of one organization.
pub struct Sealer {
    pub id: [u8; 16],
    pub records: RecordKey,
    pub names: NameKey,
    /// Refuses whoever enters: it is about to be closed.
    refuses: AtomicBool,
    made: Instant,
    /// Milliseconds from `made` to its last use.
    used: AtomicU64,
}

impl Sealer {
    pub fn new(id: [u8; 16], records: RecordKey) -> Self {
        let names = records.name_key();
        let (refuses, made, used) = (AtomicBool::new(false), Instant::now(), AtomicU64::new(0));
        Sealer { id, records, names, refuses, made, used }
    }
}

pub struct Records {
    pub store: Rows,
    sealers: RwLock<HashMap<OrgNo, Arc<Sealer>>>,
    /// Held by the one transaction that is under way.
    writing: Mutex<()>,
    pub(super) pending: RwLock<PendingRows>,
    /// Changes that need not be stored soon, behind what is pending and in front of the cache and the store.
    waiting: RwLock<HashMap<RowAt, Arc<dyn Row>>>,
    cache: Cache<RowAt, Decoded>,
    /// Striped: a load from the store and a change of the same row exclude each other, so that no load
    /// puts an older row into the cache after the change.
    loading: [Mutex<()>; 64],
    hasher: RandomState,
}

impl Records {
    /// `cached`: how many decoded rows to keep in memory.
    pub fn new(store: Rows, vault: Sealer, batch: u64, cached: usize) -> Self {
        Records {
            store,
            sealers: RwLock::new(HashMap::from([(OrgNo::VAULT, Arc::new(vault))])),
            writing: Mutex::new(()),
            pending: RwLock::new(PendingRows::new(batch)),
            waiting: RwLock::default(),
            cache: Cache::new(cached),
            loading: [const { Mutex::new(()) }; 64],
            hasher: RandomState::new(),
        }
    }

    /// Batches are numbered on from the last one stored; called before anything is changed.
    pub fn start_after(&self, batch: u64) {
        *self.pending.write() = PendingRows::new(batch + 1);
    }

    pub fn add_sealer(&self, org: OrgNo, sealer: Sealer) {
        self.sealers.write().insert(org, Arc::new(sealer));
    }

    /// Whether the organization's records can be opened.
    pub fn has_sealer(&self, org: OrgNo) -> bool {
        self.sealers.read().get(&org).is_some_and(|sealer| !sealer.refuses.load(Relaxed))
    }

    /// As `has_sealer`, and it counts as use.
    pub fn use_sealer(&self, org: OrgNo) -> bool {
        self.sealers.read().get(&org).is_some_and(|sealer| {
            sealer.used.store(sealer.made.elapsed().as_millis() as u64, Relaxed);
            !sealer.refuses.load(Relaxed)
        })
    }

    /// The organization's sealer. Whoever enters an organization has loaded it before; without it, it was locked since.
    pub fn sealer(&self, org: OrgNo) -> Result<Arc<Sealer>> {
        self.sealers.read().get(&org).cloned().ok_or(Error::Locked)
    }

    /// Organizations that nobody entered for this long.
    pub fn idle_for(&self, limit: Duration) -> Vec<OrgNo> {
        let idle = |sealer: &Sealer| {
            let used = Duration::from_millis(sealer.used.load(Relaxed));
            sealer.made.elapsed().saturating_sub(used) >= limit
        };
        let sealers = self.sealers.read();
        sealers.iter().filter(|(no, sealer)| **no != OrgNo::VAULT && idle(sealer)).map(|(no, _)| *no).collect()
    }

    /// Nobody enters the organization from now on.
    pub fn refuse(&self, org: OrgNo) {
        if let Some(sealer) = self.sealers.read().get(&org) {
            sealer.refuses.store(true, Relaxed);
        }
    }

    /// Drops the organization's sealer and decoded rows. False while something waits to be sealed with it: a batch
    /// that is being stored may still add rows of any organization.
    pub fn close(&self, org: OrgNo) -> bool {
        let _writing = self.writing.lock();
        {
            let pending = self.pending.read();
            let current = &pending.current;
            if pending.frozen.is_some()
                || current.rows.keys().any(|at| at.sealed_for == org)
                || current.contents.keys().any(|ino| ino.organization() == org)
            {
                return false;
            }
            self.sealers.write().remove(&org);
        }
        self.waiting.write().retain(|at, _| at.sealed_for != org);
        self.cache.retain(|at, _| at.sealed_for != org);
        true
    }

    pub fn name_hash(&self, folder: Ino, name: &[u8]) -> Result<[u8; 16]> {
        Ok(self.sealer(folder.organization())?.names.hash(folder.0, name))
    }

    /// One record; `None` if there is none.
    pub fn get<R: Record>(&self, id: R::Id) -> Result<Option<Arc<R>>> {
        self.get_at(R::at(id))
    }

    fn get_at<R: Record>(&self, at: RowAt) -> Result<Option<Arc<R>>> {
        if let Some(known) = self.known(&at) {
            return Ok(known.map(downcast));
        }
        let _loading = self.stripe(&at).lock();
        if let Some(known) = self.known(&at) {
            return Ok(known.map(downcast));
        }
        let loaded: Decoded = match self.store.get(at.table, &at.key)? {
            Some(sealed) => Some(Arc::new(self.open::<R>(&at, &sealed)?)),
            None => None,
        };
        self.cache.insert(at, loaded.clone());
        Ok(loaded.map(downcast))
    }

    /// The records whose keys lie in `from..to`, in order, at most about `limit`; and where to go on, if not at the end.
    pub fn scan<R: Record>(&self, like: RowAt, from: Key, to: Key, limit: usize) -> Result<Scan<R>> {
        // Pending rows first: what is committed between the two looks is then seen twice, not missed.
        let pending = self.pending.read().range(like, &from, &to);
        let stored = self.store.scan(like.table, &from, &to, limit)?;
        let next = (stored.len() == limit).then(|| stored.last().expect("limit is not 0").0.successor());
        let mut rows: BTreeMap<Key, Option<Arc<R>>> = BTreeMap::new();
        for (key, row) in pending.into_iter().filter(|(key, _)| next.is_none_or(|end| *key < end)) {
            rows.insert(key, row.map(downcast));
        }
        for (key, sealed) in stored {
            if rows.contains_key(&key) {
                continue;
            }
            let at = like.with_key(key);
            if R::TABLE == Table::Object && claimed(&sealed) != Some(like.sealed_for) {
                // Objects of all organizations share one order of ids.
                continue;
            }
            let row = match self.cache.peek(&at) {
                Some(Some(row)) => downcast(row),
                _ => Arc::new(self.open::<R>(&at, &sealed)?),
            };
            rows.insert(key, Some(row));
        }
        Ok(Scan { rows: rows.into_iter().filter_map(|(key, row)| Some((key, row?))).collect(), next })
    }

    /// Keys of rows in `from..to`, whosever they are, each with the organization that it says it belongs to; the
    /// last first if told so. At most about `limit`, and where to go on, if not at the end.
    pub fn claims(&self, table: Table, (from, to): (Key, Key), backwards: bool, limit: usize) -> Result<Claims> {
        // Pending rows first, as in `scan`.
        let pending = self.pending.read().organizations_in(table, &from, &to);
        let stored = match backwards {
            false => self.store.scan(table, &from, &to, limit)?,
            true => self.store.scan_back(table, &from, &to, limit)?,
        };
        let last = (stored.len() == limit).then(|| stored.last().expect("limit is not 0").0);
        let reached = |key: &Key| last.is_none_or(|last| if backwards { *key >= last } else { *key <= last });
        let mut found: BTreeMap<Key, Option<OrgNo>> =
            stored.iter().map(|(key, sealed)| (*key, claimed(sealed))).collect();
        found.extend(pending.into_iter().filter(|(key, _)| reached(key)));
        let found = found.into_iter().filter_map(|(key, org)| Some((key, org?)));
        let found = if backwards { found.rev().collect() } else { found.collect() };
        Ok((found, last.map(|last| if backwards { last } else { last.successor() })))
    }

    /// All records in `from..to`.
    pub fn scan_all<R: Record>(&self, like: RowAt, from: Key, to: Key) -> Result<Vec<(Key, Arc<R>)>> {
        let mut all = Vec::new();
        let mut from = Some(from);
        while let Some(start) = from {
            let part = self.scan(like, start, to, 1000)?;
            all.extend(part.rows);
            from = part.next;
        }
        Ok(all)
    }

    /// The batch that the transaction under way goes into.
    pub fn current_batch(&self) -> u64 {
        self.pending.read().current.number
    }

    /// The batch that holds the last thing answered.
    pub fn last_batch(&self) -> u64 {
        let pending = self.pending.read();
        let current = &pending.current;
        if current.is_empty() { current.number - 1 } else { current.number }
    }

    /// Begins a transaction; waits for the one under way.
    pub fn begin(&self) -> Tx<'_> {
        Tx {
            records: self,
            writing: self.writing.lock(),
            rows: BTreeMap::new(),
            fresh: Vec::new(),
            absent: Vec::new(),
            organizations: Vec::new(),
            contents: Vec::new(),
            bytes: 0,
            counts: Vec::new(),
            after: Vec::new(),
        }
    }

    /// The sealed form of a batch.
    pub fn seal(&self, batch: &Batch) -> Result<Vec<Change>> {
        let seal_one = |(at, row): (&RowAt, &Decoded)| {
            let value = match row {
                None => None,
                Some(row) => {
                    let sealer = self.sealer(at.sealed_for)?;
                    let mut value = Vec::with_capacity(512);
                    value.extend_from_slice(&at.sealed_for.0.to_be_bytes());
                    value.extend_from_slice(&batch.number.to_be_bytes());
                    sealer.records.seal(&record_place(at, &sealer, batch.number), &row.encode(), &mut value);
                    Some(value)
                }
            };
            Ok(Change { table: at.table, key: at.key, value })
        };
        batch.rows.iter().map(seal_one).collect()
    }

    /// Decodes a sealed row, which must be of the kind and at the place it is looked for.
    pub fn open<R: Record>(&self, at: &RowAt, sealed: &[u8]) -> Result<R> {
        let wrong = || Error::Corrupt(Place { what: at.table.name(), ino: None, object: None, at: hex(&at.key) });
        let (org, rest) = sealed.split_first_chunk::<4>().ok_or_else(wrong)?;
        let (version, body) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
        if u32::from_be_bytes(*org) != at.sealed_for.0 {
            return Err(wrong());
        }
        let sealer = self.sealer(at.sealed_for)?;
        let place = record_place(at, &sealer, u64::from_be_bytes(*version));
        let plain = sealer.records.open(&place, body).map_err(|_| wrong())?;
        postcard::from_bytes(&plain).map_err(|_| wrong())
    }

    /// The organization that a row says it belongs to; only opening the row proves it.
    pub fn claimed_organization(&self, at: RowAt) -> Result<Option<OrgNo>> {
        if let Some(org) = self.pending.read().organization_of(at.table, &at.key) {
            return Ok(Some(org));
        }
        let sealed = self.store.get(at.table, &at.key)?;
        Ok(sealed.and_then(|sealed| claimed(&sealed)))
    }

    fn known(&self, at: &RowAt) -> Option<Decoded> {
        // One lock at a time.
        if let Some(pending) = self.pending.read().find(at) {
            return Some(pending);
        }
        if let Some(waiting) = self.waiting.read().get(at).cloned() {
            return Some(Some(waiting));
        }
        self.cache.get(at)
    }

    fn stripe(&self, at: &RowAt) -> &Mutex<()> {
        &self.loading[self.hasher.hash_one(at) as usize % self.loading.len()]
    }

    /// A row was changed behind the cache's back, in the frozen batch.
    pub(super) fn forget(&self, at: &RowAt) {
        let _loading = self.stripe(at).lock();
        self.cache.remove(at);
    }

    pub(super) fn remember(&self, at: RowAt, row: Decoded) {
        let _loading = self.stripe(&at).lock();
        self.cache.insert(at, row);
    }
}

/// Keys of rows and the organizations that they claim, and where to go on.
pub type Claims = (Vec<(Key, OrgNo)>, Option<Key>);

/// A part of a range of records.
pub struct Scan<R> {
    pub rows: Vec<(Key, Arc<R>)>,
    pub next: Option<Key>,
}

/// Changes that become visible together, or not at all when dropped.
pub struct Tx<'a> {
    records: &'a Records,
    writing: MutexGuard<'a, ()>,
    rows: BTreeMap<RowAt, Decoded>,
    fresh: Vec<RowAt>,
    absent: Vec<RowAt>,
    organizations: Vec<OrgNo>,
    contents: Vec<Arc<Content>>,
    bytes: usize,
    counts: Vec<Box<dyn FnOnce()>>,
    after: Vec<Box<dyn FnOnce()>>,
}

impl<'a> Tx<'a> {
    pub fn get<R: Record>(&self, id: R::Id) -> Result<Option<Arc<R>>> {
        let at = R::at(id);
        match self.rows.get(&at) {
            Some(row) => Ok(row.clone().map(downcast)),
            None => self.records.get_at(at),
        }
    }

    /// The record, which something else names and so must be there.
    pub fn need<R: Record>(&self, id: R::Id) -> Result<Arc<R>> {
        self.get(id)?.ok_or(Error::NotFound)
    }

    pub fn put<R: Record>(&mut self, id: R::Id, row: R) {
        self.rows.insert(R::at(id), Some(Arc::new(row)));
    }

    /// Puts a record at a place that holds none: if it goes again before its batch is stored, the store never hears of it.
    pub fn put_new<R: Record>(&mut self, id: R::Id, row: R) {
        if !self.rows.contains_key(&R::at(id)) {
            self.fresh.push(R::at(id));
        }
        self.put(id, row);
    }

    /// There is no such record, because what it would be about is made now: nobody has to look in the store.
    pub fn absent<R: Record>(&mut self, id: R::Id) {
        self.absent.push(R::at(id));
    }

    pub fn delete<R: Record>(&mut self, id: R::Id) {
        self.rows.insert(R::at(id), None);
    }

    pub fn delete_at(&mut self, at: RowAt) {
        self.rows.insert(at, None);
    }

    /// Lets a change of a record wait until [`Tx::put_waiting`]: a crash before takes it back, any other change of the
    /// record takes it along. False where a batch has the record anyway, or too many wait: then it is to be put.
    pub fn let_wait<R: Record>(&self, id: R::Id, row: R) -> bool {
        let at = R::at(id);
        if self.records.pending.read().find(&at).is_some() {
            return false;
        }
        let mut waiting = self.records.waiting.write();
        let may = waiting.len() < WAITING;
        if may {
            waiting.insert(at, Arc::new(row));
        }
        may
    }

    /// Puts everything that waits; whether there was anything.
    pub fn put_waiting(&mut self) -> bool {
        let waiting = self.records.waiting.read();
        self.rows.extend(waiting.iter().map(|(at, row)| (*at, Some(row.clone()))));
        !waiting.is_empty()
    }

    /// The organization's own record changed in memory and is to be written with the batch.
    pub fn touch_organization(&mut self, org: OrgNo) {
        self.organizations.push(org);
    }

    /// The content gets changes of about `bytes` in this transaction's batch. The caller holds the content's
    /// state locked from before `commit` until the changes are in it.
    pub fn change_content(&mut self, content: Arc<Content>, bytes: usize) {
        self.contents.push(content);
        self.bytes += bytes;
    }

    /// Changes something in memory that the batch writes down, if the transaction is committed.
    pub fn count(&mut self, change: impl FnOnce() + 'static) {
        self.counts.push(Box::new(change));
    }

    /// Does something after the commit, when others may begin transactions again.
    pub fn afterwards(&mut self, act: impl FnOnce() + 'static) {
        self.after.push(Box::new(act));
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the changes visible; returns the number of their batch.
    pub fn commit(self) -> u64 {
        self.counts.into_iter().for_each(|change| change());
        let number = {
            let mut pending = self.records.pending.write();
            let current = &mut pending.current;
            current.touched = true;
            // A name that this batch removed and makes again is in the store all the same.
            let fresh = self.fresh.into_iter().filter(|at| !current.rows.contains_key(at));
            current.fresh.extend(fresh);
            current.organizations.extend(self.organizations);
            current.contents.extend(self.contents.into_iter().map(|content| (content.ino, content)));
            current.bytes += self.bytes;
            for (at, row) in &self.rows {
                current.put(*at, row.clone());
            }
            current.number
        };
        // Last, when everybody finds the change elsewhere.
        let superseded: Vec<RowAt> = match self.records.waiting.read() {
            waiting if waiting.is_empty() => Vec::new(),
            waiting => self.rows.keys().filter(|at| waiting.contains_key(at)).copied().collect(),
        };
        for (at, row) in self.absent.into_iter().map(|at| (at, None)).chain(self.rows) {
            self.records.remember(at, row);
        }
        if !superseded.is_empty() {
            let mut waiting = self.records.waiting.write();
            superseded.iter().for_each(|at| drop(waiting.remove(at)));
        }
        drop(self.writing);
        self.after.into_iter().for_each(|act| act());
        number
    }

    /// Ends the current batch while no transaction is under way (the writer thread does).
    pub(super) fn freeze(self, add: impl FnOnce(&mut Batch)) -> bool {
        let mut pending = self.records.pending.write();
        add(&mut pending.current);
        pending.freeze()
    }
}

fn downcast<R: Record>(row: Arc<dyn Row>) -> Arc<R> {
    let row: Arc<dyn Any + Send + Sync> = row;
    row.downcast().expect("a table holds one kind of record")
}

fn claimed(sealed: &[u8]) -> Option<OrgNo> {
    sealed.first_chunk().map(|org| OrgNo(u32::from_be_bytes(*org)))
}

fn record_place<'a>(at: &'a RowAt, sealer: &'a Sealer, version: u64) -> RecordPlace<'a> {
    RecordPlace { table: at.table as u8, organization: &sealer.id, key: &at.key, version }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
