//! Locking an organization: its keys and records leave memory, the kernel's copies too, and it answers ENOKEY.
//!
//! First everything that is dirty is stored, so that nothing needs the keys any more; a write that comes between
//! is refused. Whoever holds a file open keeps the handle, which works again once the organization is unlocked.

use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::organization::Organization;
use super::{AuditEvent, Caller, Changed, Vault};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// How long writers of other organizations are waited for, each time between two batches.
const BETWEEN_BATCHES: Duration = Duration::from_millis(2);
const TRIES: usize = 2000;

impl Vault {
    /// `vaultfs org lock ORG`; it stays locked until it is unlocked, over mounts too.
    pub fn lock_organization(&self, caller: &Caller, which: &str) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        self.lock_now(caller, &organization)
    }

    fn lock_now(&self, caller: &Caller, organization: &Arc<Organization>) -> Result<()> {
        if organization.record.lock().locked {
            return Ok(());
        }
        // The kernel gives dirty pages back while they can still be sealed.
        self.forget_in_kernel(organization);
        self.commit_open_files(caller, organization.no)?;
        self.store_access_times()?;
        self.shut(organization)?;
        self.forget_in_kernel(organization);
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.locked")
        });
        Ok(())
    }

    /// Nobody enters it any more, and its keys and records are out of memory when this returns.
    pub(super) fn shut(&self, organization: &Organization) -> Result<()> {
        let no = organization.no;
        self.set_locked(organization, true)?;
        self.records.refuse(no);
        let mut tries = TRIES;
        loop {
            self.sync()?;
            if self.records.close(no) {
                break;
            }
            tries -= 1;
            if tries == 0 {
                return Err(Error::Invalid("it has work that does not end: it refuses new operations; lock it again"));
            }
            std::thread::sleep(BETWEEN_BATCHES);
        }
        self.keyring.forget_organization(no.0);
        Ok(())
    }

    pub fn unlock_organization(&self, caller: &Caller, which: &str) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        if !organization.record.lock().locked {
            return Ok(());
        }
        self.set_locked(&organization, false)?;
        self.sync()?;
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.unlocked")
        });
        self.finish_tasks(&organization)?;
        self.rotations.wake();
        Ok(())
    }

    /// Locks what nobody has used for as long as `lock_idle` says.
    pub(super) fn lock_idle(&self) -> Result<()> {
        let Some(limit) = self.settings.lock_idle else { return Ok(()) };
        for no in self.records.idle_for(limit) {
            if let Some(organization) = self.organizations.find(no).filter(|o| !o.record.lock().deleted) {
                self.lock_now(&Caller::daemon(), &organization)?;
            }
        }
        Ok(())
    }

    fn set_locked(&self, organization: &Organization, locked: bool) -> Result<()> {
        let mut tx = self.begin()?;
        tx.touch_organization(organization.no);
        organization.record.lock().locked = locked;
        self.finish(tx);
        Ok(())
    }

    /// What open files hold that no version does.
    fn commit_open_files(&self, caller: &Caller, org: OrgNo) -> Result<()> {
        let open = self.handles.lock().of(org);
        for handle in open {
            match self.flush(caller, handle) {
                // Closed since; or its version check was lost, which its writer hears of.
                Ok(()) | Err(Error::BadHandle | Error::VersionLost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes names, attributes and pages of an organization from the kernel; done when this returns. Not while the kernel
    /// waits for an answer about the folders that its names stand in.
    pub(super) fn forget_in_kernel(&self, organization: &Organization) {
        // Without its name the kernel drops all below it that nobody holds open; earlier versions and tombstones too.
        for parent in [Ino::ROOT, Ino::VERSIONS, Ino::GRAVEYARD] {
            self.changed(Changed::Entry { parent, name: organization.name().into_bytes() });
        }
        let open = self.handles.lock().open_in(organization.no);
        for ino in open.into_iter().chain(self.versions.shown_in(organization.no)) {
            self.changed(Changed::Inode { ino, data: true });
        }
        let (told, heard) = mpsc::channel();
        self.changed(Changed::Told(told));
        // Nobody listens where nothing is mounted.
        let _ = heard.recv();
    }
}
