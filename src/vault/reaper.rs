//! The reaper: a background thread that ends tombstones whose time is over, sees to it that there is room, and locks
//! organizations that nobody uses.

use super::error::{Error, Result};
use super::ids::OrgNo;
use super::{Caller, Vault, retention};
use std::sync::{Arc, Weak};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 256;

/// Runs until the vault is closed.
pub fn run(vault: Weak<Vault>) {
    let Some(interval) = vault.upgrade().map(|vault| vault.settings.reap_interval) else { return };
    // What became due while it was not mounted need not wait long.
    let mut pause = interval / 10;
    let mut place = retention::START;
    loop {
        let Some(vault) = vault.upgrade() else { return };
        if vault.closing.wait_for(pause) {
            return;
        }
        if let Err(error) = round(&vault) {
            vault.report(&format!("tombstones were not reaped: {error}"));
        }
        match vault.end_versions(place) {
            Ok(next) => place = next,
            Err(error) => vault.report(&format!("versions were not reaped: {error}")),
        }
        vault.end_moments();
        if let Err(error) = vault.store_access_times() {
            vault.report(&format!("times of access were not stored: {error}"));
        }
        if let Err(error) = vault.lock_idle() {
            vault.report(&format!("an idle organization was not locked: {error}"));
        }
        pause = vault.settings.lock_idle.map_or(interval, |limit| (limit / 4).clamp(SHORTEST.min(interval), interval));
    }
}

fn round(vault: &Arc<Vault>) -> Result<()> {
    let nobody = Caller::daemon();
    for organization in vault.organizations.all() {
        // Only what is open anyway: reaping asks the token for nothing.
        if !vault.records.has_sealer(organization.no) {
            continue;
        }
        for (number, grave) in vault.graves(organization.no, 0, AT_ONCE)? {
            if grave.deleted.age() < vault.settings.tombstone_retention {
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
    if vault.is_short()? {
        vault.make_room(|| Ok(!vault.is_short()?))?;
    }
    Ok(())
}
