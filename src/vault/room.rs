//! Room on a disk that runs short: the oldest tombstones and earlier versions go before their time.
//!
//! Never one younger than `tombstone_min_age`, and only where an organization's keys are at hand anyway. The reaper makes
//! room ahead; a write that would find the disk full does it there and then.

use super::error::{Error, Result};
use super::ids::{ObjectId, OrgNo};
use super::row::{Object, Record};
use super::time::Time;
use super::{Caller, KEPT_FREE, Vault};
use crate::keys::Patience;
use crate::store::{Durability, Key, Table};
use parking_lot::Mutex;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Below this share of free space (in percent), or this many bytes, the reaper makes room.
const LOW_PERCENT: u64 = 5;
const LOW_BYTES: u64 = 256 << 20;
/// How many a look through the vault remembers: the oldest.
const REMEMBERED: usize = 4096;
/// How many go before the disk is asked again.
const AT_ONCE: usize = 32;
/// Rows looked at in one go.
const PART: usize = 256;
/// After a look that found nothing old enough, the next is not worth its while for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// When there was last nothing to be had. Held by the one who makes room.
#[derive(Default)]
pub struct Room(Mutex<Option<Instant>>);

/// What can go, and since when it is only held for somebody who might want it back.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    since: Time,
    org: OrgNo,
    what: What,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Tombstone(u64),
    /// The oldest version of an object that has others and is not being read.
    Version(ObjectId),
}

impl Vault {
    /// Refuses what the disk has no room for, even after what can go has gone; deleting needs none of this.
    pub(super) fn check_space(&self, caller: &Caller, bytes: u64) -> Result<()> {
        if self.has_room(bytes)? {
            return Ok(());
        }
        if self.held() == 0 {
            return Err(Error::NoSpace);
        }
        if caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        self.make_room(|| self.has_room(bytes))?;
        if self.has_room(bytes)? { Ok(()) } else { Err(Error::NoSpace) }
    }

    /// Whether the disk takes `bytes` more as it is.
    pub(super) fn has_room(&self, bytes: u64) -> Result<bool> {
        self.available.take(&self.state, bytes, self.signals.pending_bytes() + KEPT_FREE)
    }

    pub(super) fn is_short(&self) -> Result<bool> {
        let space = crate::store::space(&self.state)?;
        Ok(space.available < (space.total / 100 * LOW_PERCENT).min(LOW_BYTES))
    }

    /// Bytes of the store that tombstones and earlier versions take.
    pub(super) fn held(&self) -> u64 {
        self.organizations.all().iter().map(|organization| organization.record.lock().held).sum()
    }

    /// Purges the oldest first, until there is enough or nothing more that may go.
    pub(super) fn make_room(&self, enough: impl Fn() -> Result<bool>) -> Result<()> {
        let mut in_vain = self.room.0.lock();
        if in_vain.is_some_and(|at| at.elapsed() < PAUSE) {
            return Ok(());
        }
        loop {
            let oldest = self.oldest()?;
            if oldest.is_empty() {
                *in_vain = Some(Instant::now());
                return Ok(());
            }
            for some in oldest.chunks(AT_ONCE) {
                if enough()? {
                    return Ok(());
                }
                some.iter().try_for_each(|candidate| self.give_up(candidate))?;
                // Blocks are given back once what dropped them is on the disk.
                self.signals.wait_for(self.records.last_batch(), Durability::Synced)?;
                self.available.forget();
            }
        }
    }

    /// The oldest of what may go, in that order.
    fn oldest(&self) -> Result<Vec<Candidate>> {
        let mut oldest = BinaryHeap::new();
        let mut consider = |candidate: Candidate| {
            if candidate.since.age() >= self.settings.tombstone_min_age {
                oldest.push(candidate);
                if oldest.len() > REMEMBERED {
                    oldest.pop();
                }
            }
        };
        for organization in self.organizations.all().iter().filter(|o| self.records.has_sealer(o.no)) {
            for (number, grave) in self.graves(organization.no, 0, REMEMBERED)? {
                consider(Candidate { since: grave.deleted, org: organization.no, what: What::Tombstone(number) });
            }
        }
        let (mut from, to) = (Object::at((OrgNo::VAULT, ObjectId(0))).key, Key::from(&[0xFF; 17][..]));
        loop {
            let (claims, next) = self.records.claims(Table::Object, (from, to), false, PART)?;
            for (key, org) in claims.into_iter().filter(|(_, org)| self.records.has_sealer(*org)) {
                let id = ObjectId(u128::from_be_bytes((*key).try_into().expect("keys of objects are ids")));
                let object = match self.records.get::<Object>((org, id)) {
                    Ok(Some(object)) => object,
                    // A damaged row holds up nothing else, and `fsck` finds it; nor does an organization locked since.
                    Ok(None) | Err(Error::Corrupt(_) | Error::Locked) => continue,
                    Err(error) => return Err(error),
                };
                for superseded_by in object.versions.iter().skip(1) {
                    consider(Candidate { since: superseded_by.at, org, what: What::Version(id) });
                }
            }
            match next {
                Some(next) => from = next,
                None => return Ok(oldest.into_sorted_vec()),
            }
        }
    }

    fn give_up(&self, candidate: &Candidate) -> Result<()> {
        let Candidate { org, what, .. } = candidate;
        match what {
            What::Tombstone(number) => match self.purge_grave(&Caller::daemon(), *org, *number) {
                // Restored or purged since, or its organization was locked.
                Err(Error::NotFound | Error::Locked) => Ok(()),
                purged => purged,
            },
            What::Version(id) => {
                let mut tx = self.begin()?;
                let Some(object) = tx.get::<Object>((*org, *id))? else { return Ok(()) };
                let mut object = (*object).clone();
                let Some((_current, earlier)) = object.versions.split_last() else { return Ok(()) };
                let Some(oldest) = earlier.iter().find(|version| !self.readers.has(version.id)).cloned() else {
                    return Ok(());
                };
                self.drop_version(&mut tx, *org, *id, &mut object, &oldest)?;
                tx.put((*org, *id), object);
                self.finish(tx);
                Ok(())
            }
        }
    }
}
