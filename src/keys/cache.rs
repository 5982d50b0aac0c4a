//! DEKs that the token has opened, in locked memory, bounded in number and in age.
//!
//! An entry past the soft age is still served and asked for again in the background; past the hard age it
//! is gone. So the path of a read never waits for a refresh, a token that is away is bridged until the
//! hard age, and a KEK that was taken away closes what it wrapped at the first refresh.

use super::WrappedDek;
use crate::crypto::LockedKey;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A refresh that brought nothing is tried again after this long.
const REFRESH_AGAIN: Duration = Duration::from_secs(1);

/// How many DEKs are kept, and for how long after the token opened them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheLimits {
    /// 32 bytes of locked memory each.
    pub entries: usize,
    /// The age from which an entry is refreshed.
    pub soft: Duration,
    /// The age at which it goes, refreshed or not.
    pub hard: Duration,
}

/// What a caller presents for a key. A hit takes all of it, so that memory never opens what the token would refuse.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    pub organization: u32,
    /// The digest of the key context.
    pub context: [u8; 32],
    pub wrapped: WrappedDek,
}

pub struct Cache {
    limits: CacheLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<[u8; 16], Entry>,
    /// DEK ids by their last use.
    used: BTreeMap<u64, [u8; 16]>,
    tick: u64,
    epoch: Epoch,
}

struct Entry {
    claim: Claim,
    key: Arc<LockedKey>,
    opened: Instant,
    refresh_at: Instant,
    used: u64,
}

/// Changes with everything that is forgotten: a key that was asked for before that is not put in after it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch(u64);

pub struct Hit {
    pub key: Arc<LockedKey>,
    /// The caller is to ask the token for the key again, in the background.
    pub refresh: bool,
}

impl Cache {
    pub fn new(limits: CacheLimits) -> Self {
        Cache { limits, state: Mutex::default() }
    }

    pub fn epoch(&self) -> Epoch {
        self.state.lock().epoch
    }

    pub fn get(&self, claim: &Claim) -> Option<Hit> {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let id = &claim.wrapped.dek_id;
        let entry = state.entries.get_mut(id).filter(|entry| entry.claim == *claim)?;
        if now >= entry.opened + self.limits.hard {
            state.remove(id);
            return None;
        }
        state.tick += 1;
        state.used.remove(&entry.used);
        state.used.insert(state.tick, *id);
        entry.used = state.tick;
        let refresh = now >= entry.refresh_at;
        if refresh {
            entry.refresh_at = now + REFRESH_AGAIN;
        }
        Some(Hit { key: entry.key.clone(), refresh })
    }

    /// Puts in what the token opened, unless something was forgotten since `asked`.
    pub fn insert(&self, claim: Claim, key: Arc<LockedKey>, asked: Epoch) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.epoch != asked {
            return;
        }
        let id = claim.wrapped.dek_id;
        state.remove(&id);
        while state.entries.len() >= self.limits.entries.max(1) {
            let Some((_, oldest)) = state.used.pop_first() else { break };
            state.entries.remove(&oldest);
        }
        state.tick += 1;
        let used = state.tick;
        state.used.insert(used, id);
        state.entries.insert(id, Entry { claim, key, opened: now, refresh_at: now + self.limits.soft, used });
    }

    /// The token opened it again: the entry is as good as new, if it is still there.
    pub fn refreshed(&self, claim: &Claim) {
        let now = Instant::now();
        if let Some(entry) = self.state.lock().entries.get_mut(&claim.wrapped.dek_id)
            && entry.claim == *claim
        {
            (entry.opened, entry.refresh_at) = (now, now + self.limits.soft);
        }
    }

    /// The DEK has another wrapping now. Only what is there already is changed: a re-wrap of many is no use of them.
    pub fn rewrapped(&self, claim: Claim) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(&claim.wrapped.dek_id) {
            entry.claim = claim;
        }
    }

    pub fn forget(&self, dek_id: &[u8; 16]) {
        let mut state = self.state.lock();
        state.epoch.0 += 1;
        state.remove(dek_id);
    }

    pub fn forget_where(&self, goes: impl Fn(&Claim) -> bool) {
        let mut state = self.state.lock();
        state.epoch.0 += 1;
        state.keep(|entry| !goes(&entry.claim));
    }

    /// Drops what is past the hard age and was not asked for since.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.state.lock().keep(|entry| now < entry.opened + self.limits.hard);
    }

    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }
}

impl State {
    fn remove(&mut self, id: &[u8; 16]) {
        if let Some(entry) = self.entries.remove(id) {
            self.used.remove(&entry.used);
        }
    }

    fn keep(&mut self, stays: impl Fn(&Entry) -> bool) {
        let State { entries, used, .. } = self;
        entries.retain(|_, entry| {
            let kept = stays(entry);
            if !kept {
                used.remove(&entry.used);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    const LONG: Duration = Duration::from_secs(60);

    fn cache(entries: usize, soft: Duration, hard: Duration) -> Cache {
        Cache::new(CacheLimits { entries, soft, hard })
    }

    fn claim(organization: u32, number: u8) -> Claim {
        let wrapped = WrappedDek { dek_id: [number; 16], layers: Vec::new(), ciphertext: Vec::new() };
        Claim { organization, context: [0; 32], wrapped }
    }

    fn put(cache: &Cache, claim: &Claim) {
        cache.insert(claim.clone(), Arc::new(LockedKey::generate().unwrap()), cache.epoch());
    }

    #[test]
    fn the_oldest_used_goes_first() {
        let cache = cache(2, LONG, LONG);
        let [a, b, c] = [1, 2, 3].map(|number| claim(1, number));
        put(&cache, &a);
        put(&cache, &b);
        assert!(cache.get(&a).is_some());
        put(&cache, &c);
        assert!(cache.get(&b).is_none());
        assert!(cache.get(&a).is_some() && cache.get(&c).is_some());
        assert_eq!((cache.len(), cache.state.lock().used.len()), (2, 2));
    }

    #[test]
    fn only_the_same_claim_hits() {
        let cache = cache(2, LONG, LONG);
        put(&cache, &claim(1, 1));
        assert!(cache.get(&claim(2, 1)).is_none());
        assert!(cache.get(&Claim { context: [1; 32], ..claim(1, 1) }).is_none());
        let mut other = claim(1, 1);
        other.wrapped.ciphertext.push(2);
        assert!(cache.get(&other).is_none());
        assert!(cache.get(&claim(1, 1)).is_some());
    }

    #[test]
    fn a_soft_entry_is_served_and_refreshed_once_at_a_time() {
        let cache = cache(2, Duration::ZERO, LONG);
        put(&cache, &claim(1, 1));
        assert!(cache.get(&claim(1, 1)).unwrap().refresh);
        assert!(!cache.get(&claim(1, 1)).unwrap().refresh);
    }

    #[test]
    fn a_hard_entry_goes_asked_for_or_not() {
        let cache = cache(2, Duration::ZERO, Duration::from_millis(20));
        put(&cache, &claim(1, 1));
        put(&cache, &claim(1, 2));
        sleep(Duration::from_millis(25));
        assert!(cache.get(&claim(1, 1)).is_none());
        assert_eq!(cache.len(), 1);
        cache.sweep();
        assert_eq!((cache.len(), cache.state.lock().used.len()), (0, 0));
    }

    #[test]
    fn what_was_asked_for_before_forgetting_stays_out() {
        let cache = cache(8, LONG, LONG);
        [(1, 1), (1, 2), (2, 3)].iter().for_each(|&(organization, number)| put(&cache, &claim(organization, number)));
        let asked = cache.epoch();
        cache.forget_where(|claim| claim.organization == 1);
        cache.insert(claim(1, 1), Arc::new(LockedKey::generate().unwrap()), asked);
        assert_eq!(cache.len(), 1);
        cache.forget(&[3; 16]);
        assert_eq!(cache.len(), 0);
    }
}
