//! The reaper: a background thread that ends tombstones whose time is over, or whose space is needed.

use super::error::{Error, Result};
use super::ids::OrgNo;
use super::{Caller, Vault};
use std::sync::{Arc, Weak};
use std::time::Duration;

const ROUND: Duration = Duration::from_secs(10);
/// Below this share of free space (in percent), or this many bytes, tombstones go before their time.
const LOW_PERCENT: u64 = 5;
const LOW_BYTES: u64 = 256 << 20;
const AT_ONCE: usize = 256;

/// Runs until the vault is closed.
pub fn run(vault: Weak<Vault>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let Some(vault) = vault.upgrade() else { return };
        if vault.closing.wait_for(pause) {
            return;
        }
        if let Err(error) = round(&vault) {
            vault.report(&format!("tombstones were not reaped: {error}"));
        }
        pause = ROUND;
    }
}

fn round(vault: &Arc<Vault>) -> Result<()> {
    let short = is_short(vault)?;
    let nobody = Caller::daemon();
    for organization in vault.organizations.all() {
        // Only what is open anyway: reaping asks the token for nothing.
        if !vault.records.has_sealer(organization.no) {
            continue;
        }
        for (number, grave) in vault.graves(organization.no, 0, AT_ONCE)? {
            let age = grave.deleted.age();
            if age < vault.settings.tombstone_retention && (!short || age < vault.settings.tombstone_min_age) {
                break;
            }
            vault.purge_grave(&nobody, organization.no, number)?;
        }
    }
    for (number, grave) in vault.graves(OrgNo::VAULT, 0, AT_ONCE)? {
        let organization = vault.organizations.find(grave.ino.organization());
        let empty = organization.is_some_and(|o| o.record.lock().tombstones == 0);
        if empty && grave.deleted.age() >= vault.settings.tombstone_retention {
            match vault.purge_organization(&nobody, number) {
                // Its time comes when the last file is closed.
                Ok(()) | Err(Error::Busy(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn is_short(vault: &Vault) -> Result<bool> {
    let space = crate::store::space(&vault.state)?;
    Ok(space.available < (space.total / 100 * LOW_PERCENT).min(LOW_BYTES))
}
