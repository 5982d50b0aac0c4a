//! The end of KEKs, and of organizations: the keys in the token first, then the records, then the bytes.
//!
//! An organization leaves the vault in one transaction: its name or tombstone, its record and those of its KEKs go, and
//! there is an intent for each version of each KEK. Once that is on the disk the keys are destroyed; from then on nothing
//! of it can be opened, in whatever copy of the state directory. What is left is unreadable and is removed part by
//! part. The intent that says so goes last, so whatever ends the daemon, the next one goes on from there.

use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::organization::{OWN_PAIR, Organization};
use super::profile::Profile;
use super::row::{Entry, Intent, Intention, Kek, KekVersion, Node, OrgRecord, RowAt, Tombstone};
use super::{AuditEvent, Caller, Changed, Vault};
use crate::keys::{Home, KekRef, KekState, KeyError, Patience};
use crate::store::{Durability, Key, Table};
use std::sync::Arc;

/// Rows removed in one transaction.
const TOGETHER: usize = 256;

impl Vault {
    /// `rmdir /vault/.tombstones/ORG~…`: a deleted organization in which nothing is left to be restored.
    pub(super) fn purge_organization(&self, caller: &Caller, number: u64) -> Result<()> {
        let grave = self.records.get::<Tombstone>((OrgNo::VAULT, number))?.ok_or(Error::NotFound)?;
        let organization = self.organizations.find(grave.ino.organization()).ok_or(Error::NotFound)?;
        if organization.record.lock().tombstones > 0 {
            return Err(Error::NotEmpty);
        }
        if self.handles.lock().has_open_files_of(organization.no) {
            return Err(Error::Busy("deleted files of this organization are still open"));
        }
        self.end_organization(caller, &organization)
    }

    /// The end of an organization with all that is in it, deleted or not. Nothing of it opens when this returns.
    pub(super) fn end_organization(&self, caller: &Caller, organization: &Arc<Organization>) -> Result<()> {
        if caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        // Without the token nothing is begun: better a vault that still has it than one that only seems to have lost it.
        if let KekState::Unavailable(why) = self.keyring.state_of(organization.no.0, organization.kek()) {
            return Err(KeyError::Unavailable(why).into());
        }
        let shown = self.graveyard_name(organization)?;
        self.shut(organization)?;
        self.take_out(organization)?;
        // The kernel itself asks only for one that is empty, and forgets it when it is answered.
        if !caller.kernel {
            self.changed(Changed::Entry { parent: Ino::GRAVEYARD, name: shown });
            self.forget_in_kernel(organization);
        }
        self.destroy_intended()?;
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.purged")
        });
        Ok(())
    }

    /// Takes an organization out of the vault, and intends the rest.
    fn take_out(&self, organization: &Organization) -> Result<()> {
        let (no, top) = (organization.no, Ino::top_of(organization.no));
        let _one_at_a_time = self.making_keks.lock();
        let mut tx = self.begin()?;
        if !organization.record.lock().locked {
            return Err(Error::Busy("this organization was unlocked meanwhile"));
        }
        let node = tx.need::<Node>(top)?;
        match node.grave {
            Some(number) => tx.delete::<Tombstone>((OrgNo::VAULT, number)),
            None => {
                let hash = self.records.name_hash(Ino::ROOT, organization.name().as_bytes())?;
                tx.delete::<Entry>((Ino::ROOT, hash));
                self.touch_folder(&mut tx, Ino::ROOT, -1, super::time::Time::now())?;
            }
        }
        let mut own = Home::Token(self.numbers().own);
        for kek in self.keks_of(no)? {
            for version in &kek.versions {
                if kek.named(version) == organization.kek() {
                    own = version.home.clone();
                }
                self.doom(&mut tx, no, (&kek.pair, kek.id), version);
            }
            tx.delete::<Kek>(self.kek_place(no, &kek.pair)?);
        }
        tx.put(organization.kek(), Intent { org: no, pair: organization.pair(), what: Intention::Purge, home: own });
        tx.delete::<Node>(top);
        tx.delete::<super::row::Attributes>(top);
        tx.delete::<OrgRecord>(no);
        tx.delete::<Profile>(no);
        self.profiles.forget(no);
        self.organizations.remove(no);
        self.newest_segment.lock().remove(&no);
        let batch = self.finish(tx);
        self.own_tokens.forget();
        self.signals.scrub(batch);
        Ok(())
    }

    /// Destroys in the token what no record names any more, and removes what only those keys opened. One that cannot be
    /// destroyed now does not hold up the others.
    pub(super) fn destroy_intended(&self) -> Result<()> {
        let _one_at_a_time = self.ending.lock();
        let mut doomed: Vec<_> =
            self.intents()?.into_iter().filter(|(_, intent)| intent.what != Intention::Make).collect();
        if doomed.is_empty() {
            return Ok(());
        }
        // The intents, and what went over to another KEK, are on the disk before the first key is gone.
        self.signals.wait_for(self.records.last_batch(), Durability::Synced)?;
        doomed.sort_by_key(|(_, intent)| intent.what == Intention::Purge);
        // When it closes, the rest is done at the next mount; the token may be slow.
        let now = doomed.into_iter().take_while(|_| !self.closing.is_set());
        let all = now.map(|(name, intent)| self.destroy(name, &intent)).collect::<Vec<_>>();
        all.into_iter().collect()
    }

    fn destroy(&self, name: KekRef, intent: &Intent) -> Result<()> {
        let named = match intent.org {
            OrgNo::VAULT => {
                let (kek, root) = {
                    let header = self.header.lock();
                    (header.kek(), header.root())
                };
                if root.is_some_and(|root| root.id == name.id && root != name) && !self.has_left_root(name)? {
                    // It ends after the rotations that it waits for.
                    return Ok(());
                }
                kek == name || root == Some(name)
            }
            org => self.keks_of(org)?.iter().any(|kek| kek.versions.iter().any(|v| kek.named(v) == name)),
        };
        if named {
            return Err(Error::Header(format!("{name} is to be destroyed and is in use: restore the state directory")));
        }
        match self.keyring.destroy(&intent.home, name) {
            Ok(()) | Err(KeyError::NoSuchKey(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if intent.what == Intention::Purge {
            self.keyring.forget_organization(intent.org.0);
            self.remove_remains(intent.org)?;
        }
        let mut tx = self.begin()?;
        tx.delete::<Intent>(name);
        let batch = self.finish(tx);
        if matches!(intent.home, Home::Wrapped(..)) {
            self.signals.scrub(batch);
        }
        let gone = || Some(intent.pair.1.clone()).filter(|_| intent.pair.0 == OWN_PAIR);
        self.audit(AuditEvent {
            organization: self.organizations.find(intent.org).map(|o| o.id.to_string()).or_else(gone),
            detail: Some(name.to_string()),
            ..AuditEvent::new("key.destroyed")
        });
        Ok(())
    }

    /// Whether nothing is under a root key any more that was replaced; organizations that are begin to rotate. Nobody looks
    /// while others do: there may be 100,000.
    fn has_left_root(&self, root: KekRef) -> Result<bool> {
        let all = self.organizations.all();
        if all.iter().any(|organization| self.is_rotating(organization)) {
            return Ok(false);
        }
        let under = |version: &KekVersion| matches!(&version.home, Home::Wrapped(_, wrapped) if wrapped.root == root);
        let mut left = true;
        for organization in all {
            let keks = self.keks_of(organization.no)?;
            left &= !keks.iter().flat_map(|kek| &kek.versions).any(under);
            // One that kept an older version, because something under it does not open, is not rotated again and again.
            let rotates = organization.record.lock().rotation.is_some();
            if !rotates && keks.iter().filter_map(|kek| kek.versions.last()).any(under) {
                self.begin_rotation(&organization, None)?;
                self.rotations.wake();
            }
        }
        Ok(left)
    }

    /// Removes the unreadable rows and segments of an organization that is gone.
    pub(super) fn remove_remains(&self, no: OrgNo) -> Result<()> {
        let by_number = |no: u32| Key::from(&no.to_be_bytes()[..]);
        let by_inode = |no| Key::from(&Ino::new(OrgNo(no), 0).0.to_be_bytes()[..]);
        for table in [Table::Segment, Table::Freed, Table::Buried, Table::Tombstone] {
            self.remove_rows(table, no, by_number(no.0), by_number(no.0 + 1))?;
        }
        let of_inodes = [Table::Node, Table::Entry, Table::Attributes, Table::Content, Table::Extent, Table::Past];
        for table in of_inodes.into_iter().chain([Table::Pending]) {
            self.remove_rows(table, no, by_inode(no.0), by_inode(no.0 + 1))?;
        }
        // Objects of all organizations share one order of ids.
        self.remove_rows(Table::Object, no, Key::from(&[][..]), Key::from(&[0xFF; 17][..]))?;
        Ok(self.segments.remove_organization(no.0)?)
    }

    fn remove_rows(&self, table: Table, no: OrgNo, mut from: Key, to: Key) -> Result<()> {
        loop {
            let (rows, next) = self.records.claims(table, (from, to), false, TOGETHER)?;
            let mut tx = self.begin()?;
            let ours: Vec<_> = rows.into_iter().filter(|(_, org)| *org == no).collect();
            ours.iter().for_each(|(key, _)| tx.delete_at(RowAt { table, key: *key, sealed_for: no }));
            if !ours.is_empty() {
                let batch = self.finish(tx);
                self.signals.wait_for(batch, Durability::Ordered)?;
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}
