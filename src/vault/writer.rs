//! The writer thread: seals what was answered and stores it, batch by batch, in order.
//!
//! For each batch: contents' changes become extents in segments, the segments are synced, and one
//! transaction stores all rows. A batch that names no segment bytes commits at once. Batches reach the
//! disk each `commit_interval`, and when somebody waits in `fsync`; everybody waiting shares that flush.

use super::Vault;
use super::batch::Batch;
use super::error::{Error, Result};
use super::ids::OrgNo;
use super::row::VaultRecord;
use super::storing::Stored;
use crate::store::{Durability, StoreError, Table};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// File data in memory beyond which writers wait.
const ANSWERED_MAX: usize = 64 << 20;
/// File data at which a batch is stored without gathering more.
const BATCH_BYTES: usize = 16 << 20;
/// How often a batch that found the disk full is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// What somebody does who does not wait: told how waiting would have ended.
pub type Then = Box<dyn FnOnce(Result<()>) + Send>;

/// What writer and waiters tell each other.
#[derive(Default)]
pub struct Signals {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// Somebody changed something.
    work: bool,
    /// The writer looks for work only when it is woken.
    asleep: bool,
    /// A batch with this number, and all before, are to be stored / on the disk.
    stored_wanted: u64,
    synced_wanted: u64,
    stored: u64,
    synced: u64,
    /// What is to be done once a batch is on the disk.
    awaited: Vec<(u64, Then)>,
    /// File data of batches that are not stored yet.
    bytes: usize,
    /// Up to this batch destroyed keys are in the store's free pages and log still; 0 if none is.
    scrub: u64,
    /// Somebody waits for the end of that.
    scrub_now: bool,
    full: bool,
    stopped: bool,
    ending: bool,
}

impl State {
    /// How waiting for a batch ends, if it ends now.
    fn outcome(&self, batch: u64, durability: Durability) -> Option<Result<()>> {
        let reached = match durability {
            Durability::Ordered => self.stored,
            Durability::Synced => self.synced,
        };
        if reached >= batch {
            return Some(Ok(()));
        }
        match (self.stopped, self.full) {
            (true, _) => Some(Err(Error::Stopped)),
            (false, true) => Some(Err(Error::NoSpace)),
            (false, false) => None,
        }
    }

    fn want(&mut self, batch: u64, durability: Durability) {
        match durability {
            Durability::Ordered => self.stored_wanted = self.stored_wanted.max(batch),
            Durability::Synced => self.synced_wanted = self.synced_wanted.max(batch),
        }
    }

    /// Whether somebody waits until something is on the disk.
    fn is_awaited(&self) -> bool {
        self.synced_wanted > self.synced
    }

    /// Whether the writer has something to do that must not wait for more.
    fn is_urgent(&self) -> bool {
        self.ending || self.stored_wanted > self.stored || self.is_awaited() || self.bytes >= BATCH_BYTES
    }
}

impl Signals {
    pub fn starting_after(batch: u64) -> Self {
        let state = State { stored: batch, synced: batch, ..State::default() };
        Signals { state: Mutex::new(state), ..Signals::default() }
    }

    /// Something was answered.
    pub fn work(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes += bytes;
        let wakes = (state.asleep && !state.work) || state.bytes >= BATCH_BYTES;
        state.work = true;
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Whether an operation that changes something may begin.
    pub fn check(&self) -> Result<()> {
        if self.state.lock().stopped { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Room for `bytes` more of answered data; waits for it only if told to.
    pub fn admit(&self, wait: bool) -> Result<()> {
        let mut state = self.state.lock();
        while state.bytes > ANSWERED_MAX {
            if state.stopped {
                return Err(Error::Stopped);
            }
            if state.full {
                return Err(Error::NoSpace);
            }
            if !wait {
                return Err(Error::WouldWait);
            }
            self.done.wait(&mut state);
        }
        if state.stopped { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Waits until `batch` is stored, or on the disk.
    pub fn wait_for(&self, batch: u64, durability: Durability) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if let Some(outcome) = state.outcome(batch, durability) {
                return outcome;
            }
            state.want(batch, durability);
            self.wake.notify_one();
            self.done.wait(&mut state);
        }
    }

    /// Does `then` once `batch` is on the disk, or when that cannot be: on the writer's thread, or here if there is
    /// nothing to wait for.
    pub fn once_synced(&self, batch: u64, then: Then) {
        let mut state = self.state.lock();
        if let Some(outcome) = state.outcome(batch, Durability::Synced) {
            drop(state);
            return then(outcome);
        }
        state.want(batch, Durability::Synced);
        state.awaited.push((batch, then));
        self.wake.notify_one();
    }

    /// Tells everybody who waits what has become of the batches.
    fn tell(&self) {
        let mut told = Vec::new();
        {
            let mut state = self.state.lock();
            for (batch, then) in std::mem::take(&mut state.awaited) {
                match state.outcome(batch, Durability::Synced) {
                    Some(outcome) => told.push((then, outcome)),
                    None => state.awaited.push((batch, then)),
                }
            }
        }
        self.done.notify_all();
        told.into_iter().for_each(|(then, outcome): (Then, _)| then(outcome));
    }

    /// A key was destroyed in this batch: remove its traces soon after that is on the disk, with those of others, since
    /// that takes longer than a sync.
    pub fn scrub(&self, batch: u64) {
        let mut state = self.state.lock();
        state.scrub = state.scrub.max(batch);
    }

    /// What is to be removed goes with the next sync: a purge says that it is done.
    pub fn scrub_now(&self) {
        self.state.lock().scrub_now = true;
    }

    pub fn end(&self) {
        self.state.lock().ending = true;
        self.wake.notify_one();
    }

    pub fn pending_bytes(&self) -> u64 {
        self.state.lock().bytes as u64
    }

    /// Why nothing is written any more, if so.
    pub fn trouble(&self) -> Option<&'static str> {
        let state = self.state.lock();
        match (state.stopped, state.full) {
            (true, _) => Some("stopped after a disk failure"),
            (false, true) => Some("the disk is full"),
            (false, false) => None,
        }
    }
}

/// What the writer thread does until it is told to end.
pub fn run(vault: &Arc<Vault>) {
    let mut writer = Writer::new(vault);
    let work = std::panic::AssertUnwindSafe(|| while writer.round() {});
    if std::panic::catch_unwind(work).is_err() {
        // Nobody may wait for a thread that is gone.
        Writer::new(vault)
            .stop("writing stops after an internal error: unmount and mount again", vault.signals.state.lock());
    }
    // Whoever comes to wait now would wait for ever.
    vault.signals.state.lock().stopped = true;
    vault.signals.tell();
}

struct Writer<'a> {
    vault: &'a Arc<Vault>,
    last_sync: Instant,
    last_scrub: Instant,
    /// Whether stored batches are not on the disk yet.
    dirty_log: bool,
}

impl<'a> Writer<'a> {
    fn new(vault: &'a Arc<Vault>) -> Self {
        Writer { vault, last_sync: Instant::now(), last_scrub: Instant::now(), dirty_log: false }
    }

    /// Waits for work, stores one batch; false at the end.
    fn round(&mut self) -> bool {
        let signals = &self.vault.signals;
        let (ending, idle) = self.wait();
        // Rows of space that was given back go when there is nothing else to do, and at the end.
        let frozen = self.freeze((ending || idle) && self.vault.has_punched());
        if frozen && !self.store_until_done() {
            return false;
        }
        self.sync_if_due(ending);
        let more = !self.vault.chores.lock().is_empty() || (ending && self.vault.has_punched());
        let mut state = signals.state.lock();
        state.work |= more;
        !ending || state.work
    }

    /// Waits until there is something to store or to sync. Whether the end has come, and whether nobody had work.
    fn wait(&self) -> (bool, bool) {
        let signals = &self.vault.signals;
        let mut state = signals.state.lock();
        // While there is work, nobody has to wake the writer for more.
        self.gather(&mut state);
        while !state.work && !state.is_urgent() {
            let syncs = self.dirty_log || self.vault.has_punched();
            let waits = syncs || (state.scrub > 0 && state.synced >= state.scrub);
            let since = if syncs { self.last_sync } else { self.last_scrub };
            let left = self.vault.settings.commit_interval.saturating_sub(since.elapsed());
            let idle = if waits { left } else { Duration::from_secs(3600) };
            state.asleep = true;
            let timed_out = signals.wake.wait_for(&mut state, idle).timed_out();
            state.asleep = false;
            if timed_out {
                break;
            }
            self.gather(&mut state);
        }
        let idle = !state.work && !state.is_urgent();
        state.work = false;
        (state.ending, idle)
    }

    /// Lets work come together, unless somebody waits for it. Never longer than what is stored may stay off the disk.
    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        let settings = &self.vault.settings;
        let until = Instant::now() + settings.gather.min(settings.commit_interval);
        while !state.is_urgent() && !self.vault.signals.wake.wait_until(state, until).timed_out() {}
    }

    /// Ends the current batch and adds what every batch carries.
    fn freeze(&self, rest: bool) -> bool {
        let vault = self.vault;
        let tx = vault.records.begin();
        tx.freeze(|batch| {
            // Work on extents goes on from batch to batch until none is left.
            batch.touched |= rest || !vault.chores.lock().is_empty();
            if !batch.is_empty() {
                let (next_org, next_grave) = vault.organizations.counters();
                let record = VaultRecord { next_org, next_grave, batch: batch.number };
                batch.put(<VaultRecord as super::row::Record>::at(()), Some(Arc::new(record)));
                let changing = batch.contents.keys().map(|ino| ino.organization());
                let chores = vault.chores.lock();
                let chores = chores.iter().map(|(ino, ..)| ino.organization());
                let tasks = batch.rows.keys().filter(|at| at.table == Table::Pending).map(|at| at.sealed_for);
                // What storing them leaves of earlier versions is counted there.
                let counting: Vec<OrgNo> = changing.chain(chores).chain(tasks).collect();
                batch.organizations.extend(counting);
                for org in std::mem::take(&mut batch.organizations) {
                    if let Some(organization) = vault.organizations.find(org) {
                        let record = organization.record.lock().clone();
                        batch.put(<super::row::OrgRecord as super::row::Record>::at(org), Some(Arc::new(record)));
                    }
                }
            }
        })
    }

    /// Stores the frozen batch, trying again while the disk is full; false if writing has stopped for good.
    fn store_until_done(&mut self) -> bool {
        let signals = &self.vault.signals;
        let mut stored = Stored::nothing_yet(signals.state.lock().is_awaited());
        loop {
            let due = self.last_sync.elapsed() >= self.vault.settings.commit_interval;
            let synced = due || signals.state.lock().is_awaited();
            match self.store(&mut stored, if synced { Durability::Synced } else { Durability::Ordered }) {
                Ok(()) => {
                    signals.state.lock().full = false;
                    return true;
                }
                // Deletes, and what else takes no more than records, go on in the room that is kept for them.
                Err(Error::Store(StoreError::Full(_))) if stored.is_placed() && self.vault.reserve.release() => {}
                Err(Error::Store(StoreError::Full(_)) | Error::NoSpace) => {
                    self.vault.report("the state directory's disk is full: free some space; deleting works");
                    signals.state.lock().full = true;
                    signals.tell();
                    let mut state = signals.state.lock();
                    if state.ending {
                        return self.stop("the last operations could not be stored: the disk is full", state);
                    }
                    signals.wake.wait_for(&mut state, RETRY);
                }
                Err(error) => {
                    self.vault.report(&format!("writing stops: {error}"));
                    let state = signals.state.lock();
                    return self.stop("unmount, check the disk, mount again", state);
                }
            }
        }
    }

    fn stop(&self, why: &str, mut state: MutexGuard<'_, State>) -> bool {
        state.stopped = true;
        drop(state);
        self.vault.signals.tell();
        self.vault.report(why);
        false
    }

    /// One try. What was appended to segments is remembered across tries.
    fn store(&mut self, stored: &mut Stored, durability: Durability) -> Result<()> {
        let vault = self.vault;
        vault.store_contents(stored)?;
        if stored.names_segments() {
            vault.segments.sync()?;
        }
        let (number, bytes, changes) = {
            let pending = vault.records.pending.read();
            let batch: &Batch = pending.frozen.as_ref().expect("the writer froze it");
            (batch.number, batch.bytes, vault.records.seal(batch)?)
        };
        vault.records.store.commit(changes, durability)?;
        vault.records.pending.write().frozen = None;
        {
            let mut freed = vault.freed.lock();
            freed.waiting.append(&mut stored.freed);
            freed.empty.append(&mut stored.empty);
        }
        self.dirty_log |= durability == Durability::Ordered;
        let mut state = vault.signals.state.lock();
        state.bytes -= bytes;
        state.stored = number;
        if durability == Durability::Synced {
            state.synced = number;
        }
        drop(state);
        if durability == Durability::Synced {
            self.synced();
        }
        vault.signals.tell();
        Ok(())
    }

    fn sync_if_due(&mut self, ending: bool) {
        let vault = self.vault;
        let (due, stored) = {
            let state = vault.signals.state.lock();
            let asked = state.is_awaited() && state.stored > state.synced;
            (asked || ending || self.last_sync.elapsed() >= vault.settings.commit_interval, state.stored)
        };
        if !(self.dirty_log && due) {
            // What was destroyed is on the disk by now.
            if !self.dirty_log {
                self.scrub(ending);
            }
            return;
        }
        match vault.records.store.flush() {
            Ok(()) => {
                vault.signals.state.lock().synced = stored;
                self.synced();
                vault.signals.tell();
            }
            Err(error) => {
                vault.report(&format!("writing stops: {error}"));
                self.stop("unmount, check the disk, mount again", vault.signals.state.lock());
            }
        }
    }

    /// Everything stored is on the disk: what it dropped can be given back now.
    fn synced(&mut self) {
        self.dirty_log = false;
        self.last_sync = Instant::now();
        self.vault.give_back();
        self.vault.reserve.fill(super::KEPT_FREE);
        self.scrub(false);
    }

    /// Removes the traces of destroyed keys, if it is time.
    fn scrub(&mut self, ending: bool) {
        let batch = {
            let mut state = self.vault.signals.state.lock();
            let due = state.scrub_now || ending || self.last_scrub.elapsed() >= self.vault.settings.commit_interval;
            if state.scrub == 0 || state.synced < state.scrub || !due {
                return;
            }
            state.scrub_now = false;
            std::mem::take(&mut state.scrub)
        };
        self.last_scrub = Instant::now();
        if let Err(error) = self.vault.records.store.checkpoint_truncate() {
            // A long look at the records, as fsck's, keeps the log from being cut: again after the next sync.
            self.vault.signals.scrub(batch);
            self.vault.report(&format!("a purged key lingers in the write-ahead log for now: {error}"));
        }
    }
}
