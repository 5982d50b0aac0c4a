//! Wrapped KEKs that are in the token now, as session objects: a bounded number, of which the one that was used longest
//! ago goes first.
//!
//! They belong to one session, the owner, since a token forgets a session's objects with it; that session unwraps and
//! destroys and does nothing else. A KEK that somebody uses is never destroyed: the token may give its handle to the next
//! one, and what was wrapped under that would open no more.

use super::fault::Fault;
use super::seat::At;
use crate::keys::{KekRef, unavailable};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// About 8 MiB in SoftHSM.
const MOST: usize = 1024;
/// How long one waits for another who is loading.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Loaded {
    table: Mutex<Table>,
    /// Held during calls.
    owner: Mutex<Option<Owner>>,
}

struct Owner {
    generation: u64,
    session: Session,
}

#[derive(Default)]
struct Table {
    generation: u64,
    keys: HashMap<KekRef, Entry>,
    /// Names by their last use.
    used: BTreeMap<u64, KekRef>,
    tick: u64,
}

struct Entry {
    key: Arc<InUse>,
    used: u64,
}

/// Keeps a loaded KEK where it is.
pub struct InUse(pub ObjectHandle);

impl Loaded {
    pub fn find(&self, kek: KekRef, generation: u64) -> Option<Arc<InUse>> {
        self.table.lock().of(generation).touch(kek)
    }

    /// Loads a KEK with the owner's session, unless somebody else just did.
    pub fn load(
        &self,
        at: &At,
        kek: KekRef,
        unwrap: impl FnOnce(&Session) -> Result<ObjectHandle, Fault>,
    ) -> Result<Arc<InUse>, Fault> {
        let generation = at.entered.generation();
        let mut owner = self.owner.try_lock_for(PATIENCE).ok_or_else(|| unavailable("it does not load a key"))?;
        if let Some(key) = self.find(kek, generation) {
            return Ok(key);
        }
        let session = match owner.take().filter(|owner| owner.generation == generation) {
            Some(held) => &owner.insert(held).session,
            None => &owner.insert(Owner { generation, session: at.link.open_session(at.entered)? }).session,
        };
        let handle = match unwrap(session) {
            Err(Fault::Refused(reason)) => {
                // The session is gone, and with it what it owned.
                *owner = None;
                *self.table.lock() = Table::default();
                return Err(Fault::Refused(reason));
            }
            unwrapped => unwrapped?,
        };
        let (key, idle) = self.table.lock().of(generation).insert(kek, handle);
        for (kek, key) in idle {
            at.link.forget_key(&kek);
            // Should it stay, it goes with the session.
            let _ = session.destroy_object(key.0);
        }
        Ok(key)
    }

    /// Takes a KEK out of the token, unless it is in use.
    pub fn unload(&self, at: &At, kek: KekRef) {
        let generation = at.entered.generation();
        let Some(owner) = self.owner.try_lock_for(PATIENCE) else { return };
        at.link.forget_key(&kek);
        let Some(key) = self.table.lock().of(generation).take_idle(kek) else { return };
        if let Some(owner) = owner.as_ref().filter(|owner| owner.generation == generation) {
            let _ = owner.session.destroy_object(key.0);
        }
    }

    /// Its handle turned out to be of no use.
    pub fn drop_handle(&self, kek: KekRef, key: &Arc<InUse>) {
        let mut table = self.table.lock();
        if table.keys.get(&kek).is_some_and(|entry| Arc::ptr_eq(&entry.key, key)) {
            table.remove(kek);
        }
    }
}

impl Table {
    /// The table of this generation: handles of an earlier one mean nothing.
    fn of(&mut self, generation: u64) -> &mut Table {
        if self.generation != generation {
            *self = Table { generation, ..Table::default() };
        }
        self
    }

    fn touch(&mut self, kek: KekRef) -> Option<Arc<InUse>> {
        let entry = self.keys.get_mut(&kek)?;
        self.tick += 1;
        self.used.remove(&entry.used);
        self.used.insert(self.tick, kek);
        entry.used = self.tick;
        Some(entry.key.clone())
    }

    /// Puts a key in; it, and those that have to go.
    fn insert(&mut self, kek: KekRef, handle: ObjectHandle) -> (Arc<InUse>, Vec<(KekRef, Arc<InUse>)>) {
        let key = Arc::new(InUse(handle));
        self.tick += 1;
        self.used.insert(self.tick, kek);
        self.keys.insert(kek, Entry { key: key.clone(), used: self.tick });
        let over = self.keys.len().saturating_sub(MOST);
        let candidates: Vec<KekRef> =
            self.used.values().take(2 * over).copied().filter(|other| *other != kek).collect();
        let idle = candidates.into_iter().filter_map(|kek| Some((kek, self.take_idle(kek)?))).take(over).collect();
        (key, idle)
    }

    fn take_idle(&mut self, kek: KekRef) -> Option<Arc<InUse>> {
        // Nobody comes to use it meanwhile: that takes this table.
        if Arc::strong_count(&self.keys.get(&kek)?.key) > 1 {
            return None;
        }
        self.remove(kek)
    }

    fn remove(&mut self, kek: KekRef) -> Option<Arc<InUse>> {
        let entry = self.keys.remove(&kek)?;
        self.used.remove(&entry.used);
        Some(entry.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(number: u32) -> KekRef {
        KekRef { id: [0; 16], version: number }
    }

    fn handle(number: u32) -> ObjectHandle {
        // SAFETY: nobody hands it to a token.
        unsafe { ObjectHandle::new_from_raw(number.into()) }
    }

    #[test]
    fn the_oldest_goes_but_never_one_in_use() {
        let mut table = Table::default();
        let held = table.insert(kek(0), handle(0)).0;
        for number in 1..MOST as u32 {
            assert!(table.insert(kek(number), handle(number)).1.is_empty());
        }
        drop(table.touch(kek(1)));
        let gone: Vec<_> =
            (0..3).flat_map(|n| table.insert(kek(5000 + n), handle(5000 + n)).1).map(|(kek, _)| kek.version).collect();
        assert_eq!(gone, [2, 3, 4]);
        assert_eq!((table.keys.len(), table.used.len()), (MOST, MOST));
        assert!(table.touch(kek(0)).is_some());
        drop(held);
        assert!(table.of(1).touch(kek(0)).is_none(), "another generation");
    }
}
