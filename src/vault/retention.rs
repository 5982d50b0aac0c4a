//! Retention by time: versions that an organization keeps for so long and no longer, also of objects that nobody saves.

use super::Vault;
use super::error::{Error, Result};
use super::ids::{ObjectId, OrgNo};
use super::row::{Object, Record};
use crate::store::{Key, Table};

/// The id from which a look through the objects begins.
pub const START: ObjectId = ObjectId(0);
/// Objects looked at in one round: a large vault takes many.
const AT_ONCE: usize = 4096;

impl Vault {
    /// Ends versions whose time is over, among the objects from `from` on; where the next round goes on. Only where an
    /// organization's keys are at hand anyway.
    pub(super) fn end_versions(&self, from: ObjectId) -> Result<ObjectId> {
        let keeps_for = |org: OrgNo| self.profiles.get(org).and_then(|profile| profile.keep_versions_for);
        if self.organizations.all().iter().all(|organization| keeps_for(organization.no).is_none()) {
            return Ok(START);
        }
        let (first, end) = (Object::at((OrgNo::VAULT, from)).key, Key::from(&[0xFF; 17][..]));
        let (claims, next) = self.records.claims(Table::Object, (first, end), false, AT_ONCE)?;
        for (key, org) in claims {
            let Some(time) = keeps_for(org).filter(|_| self.records.has_sealer(org)) else { continue };
            let id = ObjectId(u128::from_be_bytes((*key).try_into().expect("keys of objects are ids")));
            let object = match self.records.get::<Object>((org, id)) {
                Ok(Some(object)) => object,
                // A damaged row holds up nothing else, and `fsck` finds it; nor does an organization locked since.
                Ok(None) | Err(Error::Corrupt(_) | Error::Locked) => continue,
                Err(error) => return Err(error),
            };
            if object.versions.get(1).is_some_and(|second| second.at.age() > time) {
                self.prune_object(org, id)?;
            }
        }
        Ok(next.and_then(|next| next.get(..16)?.try_into().ok()).map_or(START, |id| ObjectId(u128::from_be_bytes(id))))
    }
}
