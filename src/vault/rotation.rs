//! Rotation: every KEK of an organization gets a new version, every DEK is wrapped anew, and the old versions end.
//!
//! No byte of a value is rewritten, and reads and writes go on. Each stage is on the disk before the next one begins,
//! so whatever ends the daemon, the next one goes on from there:
//! 1. the organization's record says that it rotates, and since when;
//! 2. each KEK older than that gets a new version (intent, key in the token, record), which wraps from then on;
//! 3. the metadata key, the keys behind data keys and every content that names an older version are wrapped anew;
//! 4. each older version leaves its record and becomes an intent to destroy it, is destroyed, and the intent goes.
//!
//! A content is never left behind: whoever stores a wrapped DEK looks in that transaction whether it is under what
//! wraps now (`kek.rs`), so after stage 2 nothing comes to be under an older version.

use super::content::rows_of;
use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::organization::{OWN_PAIR, Organization};
use super::row::{ContentRecord, Intent, Kek, KekVersion, Pair, Record, Rotation};
use super::time::Time;
use super::{AuditEvent, Caller, KekInfo, RotationInfo, Vault};
use crate::keys::{KekRef, KeyError, Patience, Residency};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Contents wrapped anew in one transaction.
const TOGETHER: usize = 64;
/// How often the thread looks whether a rotation is due by age.
const ROUND: Duration = Duration::from_secs(60);
/// How soon a rotation that a token did not serve is gone on with.
const RETRIES: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(5);

/// The rotations under way in this process, and what wakes their thread.
#[derive(Default)]
pub struct Rotations {
    wanted: Mutex<bool>,
    wake: Condvar,
    progress: Mutex<BTreeMap<OrgNo, Progress>>,
    /// Of the vault's move to another token.
    pub(super) migration: Mutex<super::migration::Progress>,
    /// Why a key was not destroyed, as it was last reported.
    lingers: Mutex<Option<String>>,
}

struct Progress {
    begun: Instant,
    done: u64,
    total: u64,
    error: Option<String>,
}

impl Rotations {
    pub fn wake(&self) {
        *self.wanted.lock() = true;
        self.wake.notify_all();
    }

    /// Why a key is not destroyed yet.
    pub(super) fn lingers(&self) -> Option<String> {
        self.lingers.lock().clone()
    }

    fn wait(&self, time: Duration) {
        let mut wanted = self.wanted.lock();
        if !*wanted {
            self.wake.wait_for(&mut wanted, time);
        }
        *wanted = false;
    }

    fn note(&self, org: OrgNo, change: impl FnOnce(&mut Progress)) {
        let mut all = self.progress.lock();
        change(all.entry(org).or_insert(Progress { begun: Instant::now(), done: 0, total: 0, error: None }));
    }
}

/// Runs until the vault is closed.
pub fn run(vault: Weak<Vault>) {
    let mut pause = Duration::ZERO;
    loop {
        let Some(vault) = vault.upgrade() else { return };
        vault.rotations.wait(pause);
        if vault.closing.is_set() {
            return;
        }
        pause = match vault.go_on_rotating() {
            true => ROUND,
            false if pause == ROUND => RETRIES.start,
            false => (2 * pause).clamp(RETRIES.start, RETRIES.end),
        };
    }
}

impl Vault {
    /// `vaultfs key rotate ORG`: durable when it returns; the rest follows in the background.
    pub fn rotate(&self, caller: &Caller, which: &str) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        self.begin_rotation(&organization, None)?;
        self.sync()?;
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "key.rotation_begun")
        });
        self.rotations.wake();
        Ok(())
    }

    /// `vaultfs key move ORG`: a rotation whose new KEK versions live elsewhere. Refused where none can be made there.
    pub fn move_keys(&self, caller: &Caller, which: &str, to: Residency) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        self.check_residency(&to)?;
        self.begin_rotation(&organization, Some(to.clone()))?;
        self.sync()?;
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            detail: Some(to.to_string()),
            ..AuditEvent::by(caller, "key.move_begun")
        });
        self.rotations.wake();
        Ok(())
    }

    /// Tries with a key that is thrown away.
    fn check_residency(&self, to: &Residency) -> Result<()> {
        if *to == Residency::Token {
            return Ok(());
        }
        let _one_at_a_time = self.making_keks.lock();
        let scratch = KekRef::fresh();
        let home = self.make_key((scratch, None), OrgNo::VAULT, &self.own_pair(), to)?;
        self.discard_kek(scratch, &home);
        Ok(())
    }

    /// `vaultfs key rotate --all`: deleted organizations that can be restored, too.
    pub fn rotate_all(&self, caller: &Caller) -> Result<()> {
        for organization in self.organizations.all() {
            self.begin_rotation(&organization, None)?;
        }
        self.sync()?;
        self.audit(AuditEvent::by(caller, "key.rotation_begun"));
        self.rotations.wake();
        Ok(())
    }

    pub(super) fn begin_rotation(&self, organization: &Organization, to: Option<Residency>) -> Result<()> {
        let mut tx = self.begin()?;
        tx.touch_organization(organization.no);
        let started = Time::now();
        {
            let mut record = organization.record.lock();
            // A move that is under way goes on.
            let to = to.or_else(|| record.rotation.take()?.to);
            (record.rotation, record.rotated) = (Some(Rotation { started, to }), started);
        }
        self.finish(tx);
        self.rotations.note(organization.no, |progress| progress.begun = Instant::now());
        Ok(())
    }

    /// `vaultfs key rotate --root`: a new version of the vault's own KEK, and the end of the old one; and a new root key, if
    /// there is one, with new versions of all KEKs that are wrapped. The old root goes when nothing is under it any more.
    pub fn rotate_root(&self, caller: &Caller) -> Result<()> {
        let new = {
            let _one_at_a_time = self.making_keks.lock();
            if self.numbers().other.is_some() {
                return Err(Error::Busy(
                    "the vault moves to another token, which makes new keys of the vault's own: wait for its end",
                ));
            }
            let (old, root) = {
                let header = self.header.lock();
                (header.kek(), header.root())
            };
            let new = KekRef { version: old.version + 1, ..old };
            let left = self.records.get::<Intent>(new)?.map(|intent| intent.home.clone());
            self.make_key((new, left), OrgNo::VAULT, &self.own_pair(), &Residency::Token)?;
            self.change_header(|header| header.rewrap(&self.keyring, new))?;
            let mut tx = self.begin()?;
            self.supersede(&mut tx, new, &self.own_pair());
            self.finish(tx);
            if let Some(root) = root {
                self.make_root(KekRef { version: root.version + 1, ..root })?;
            }
            new
        };
        self.audit(AuditEvent { detail: Some(new.to_string()), ..AuditEvent::by(caller, "key.created") });
        // The old root's end begins with the rotation of what is under it.
        self.destroy_intended()
    }

    /// `vaultfs key revoke ORG KEY=VALUE`: ends the KEK of a pair for good, and with it every object that carries the pair.
    pub fn revoke(&self, caller: &Caller, which: &str, pair: &Pair) -> Result<()> {
        let organization = self.living(self.number_of(which)?)?;
        if pair.0 == OWN_PAIR {
            return Err(Error::NotPermitted("an organization's own KEK ends with it: delete it and purge it"));
        }
        {
            let _one_at_a_time = self.making_keks.lock();
            let place = self.kek_place(organization.no, pair)?;
            let mut tx = self.begin()?;
            let kek = tx.get::<Kek>(place)?.ok_or(Error::Absent("no object carries this pair"))?;
            for version in &kek.versions {
                self.doom(&mut tx, organization.no, (pair, kek.id), version);
            }
            tx.put(place, Kek { versions: Vec::new(), data_keys: None, ..(*kek).clone() });
            self.finish(tx);
            self.own_tokens.forget();
        }
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "key.revoked")
        });
        self.destroy_intended()?;
        self.sync()
    }

    /// The rotations that are not at their end.
    pub fn rotations(&self) -> Vec<RotationInfo> {
        let progress = self.rotations.progress.lock();
        let all = self.organizations.all().into_iter().filter(|o| o.record.lock().rotation.is_some());
        let info = |organization: Arc<Organization>| {
            let known = progress.get(&organization.no);
            RotationInfo {
                organization: organization.name(),
                organization_id: organization.id.to_string(),
                done: known.map_or(0, |p| p.done),
                total: known.map_or(0, |p| p.total),
                milliseconds: known.map_or(0, |p| p.begun.elapsed().as_millis() as u64),
                error: known.and_then(|p| p.error.clone()),
            }
        };
        all.map(info).collect()
    }

    /// Every KEK of one organization or of all, the vault's own first, oldest version first.
    pub fn list_keks(&self, which: Option<&str>) -> Result<Vec<KekInfo>> {
        let organizations = match which {
            Some(which) => vec![self.living(self.number_of(which)?)?],
            None => self.organizations.all(),
        };
        let mut list = Vec::new();
        if which.is_none() {
            list.push(KekInfo {
                key_id: self.header.lock().kek().to_string(),
                organization: String::new(),
                organization_id: String::new(),
                pair: format!("vaultId={}", self.id),
                state: "current".into(),
                residency: "token".into(),
                made_at: None,
            });
        }
        for organization in organizations {
            for kek in self.keks_of(organization.no)? {
                if kek.versions.is_empty() {
                    list.push(KekInfo {
                        key_id: KekRef { id: kek.id, version: 0 }.to_string(),
                        organization: organization.name(),
                        organization_id: organization.id.to_string(),
                        pair: format!("{}={}", kek.pair.0, kek.pair.1),
                        state: "revoked".into(),
                        residency: "-".into(),
                        made_at: None,
                    });
                }
                list.extend(kek.versions.iter().map(|version| KekInfo {
                    key_id: kek.named(version).to_string(),
                    organization: organization.name(),
                    organization_id: organization.id.to_string(),
                    pair: format!("{}={}", kek.pair.0, kek.pair.1),
                    state: if kek.current() == Some(kek.named(version)) { "current" } else { "old" }.into(),
                    residency: version.home.residency().to_string(),
                    made_at: Some(version.made.rfc3339()),
                }));
            }
        }
        Ok(list)
    }

    /// Whether everything that was to be done is done.
    fn go_on_rotating(&self) -> bool {
        let mut done = self.go_on_destroying();
        // Its rotations are begun here, and gone on with below.
        self.go_on_migrating();
        for organization in self.organizations.all() {
            if self.closing.is_set() {
                return true;
            }
            let age = organization.record.lock().rotated.age();
            if age >= self.settings.key_rotation
                && let Err(error) = self.begin_rotation(&organization, None)
            {
                self.report(&format!("{}: no rotation was begun: {error}", organization.id));
            }
            let rotation = organization.record.lock().rotation.clone();
            let Some(rotation) = rotation else { continue };
            match self.rotate_organization(&organization, &rotation) {
                Ok(()) => {}
                Err(Error::Stopped) => return true,
                Err(error) => {
                    done = false;
                    let said = error.to_string();
                    let news = self.rotations.progress.lock().get(&organization.no).and_then(|p| p.error.clone());
                    if news.as_ref() != Some(&said) {
                        self.report(&format!("{}: its rotation waits: {said}", organization.id));
                    }
                    self.rotations.note(organization.no, |progress| progress.error = Some(said));
                }
            }
        }
        let migrated = self.go_on_migrating();
        // A root key goes when the last organization has left it.
        self.go_on_destroying() && migrated && done
    }

    /// Whether a rotation is under way that waits for nothing.
    pub(super) fn is_rotating(&self, organization: &Organization) -> bool {
        let waits = self.rotations.progress.lock().get(&organization.no).is_some_and(|p| p.error.is_some());
        !waits && organization.record.lock().rotation.is_some()
    }

    /// Contents that rotations have still to look at, of about so many; and why the first that waits does.
    pub(super) fn rotations_left(&self) -> (u64, Option<String>) {
        let progress = self.rotations.progress.lock();
        let (mut left, mut waits) = (0, None);
        for organization in self.organizations.all() {
            let record = organization.record.lock();
            if record.rotation.is_none() {
                continue;
            }
            let known = progress.get(&organization.no);
            // One that is empty has a KEK as well.
            left += (record.objects + 1).saturating_sub(known.map_or(0, |p| p.done));
            let error = known.and_then(|p| p.error.as_ref());
            waits = waits.or_else(|| Some(format!("{}: {}", record.name, error?)));
        }
        (left, waits)
    }

    pub(super) fn go_on_destroying(&self) -> bool {
        let destroyed = self.destroy_intended();
        let why = destroyed.as_ref().err().map(|error| error.to_string());
        let said = std::mem::replace(&mut *self.rotations.lingers.lock(), why.clone());
        if let Some(why) = why.filter(|why| Some(why) != said.as_ref()) {
            self.report(&format!("a key is not destroyed yet: {why}"));
        }
        destroyed.is_ok()
    }

    fn rotate_organization(&self, organization: &Organization, rotation: &Rotation) -> Result<()> {
        let no = organization.no;
        self.enter(Ino::graveyard_of(no), Patience::Wait)?;
        for kek in self.keks_of(no)? {
            if kek.versions.last().is_some_and(|last| last.made < rotation.started) {
                self.add_version(organization, &kek, rotation.to.as_ref())?;
            }
        }
        self.rewrap_metadata_key(organization)?;
        let left = self.rewrap_data_keys(organization)? + self.rewrap_contents(organization)?;
        if self.closing.is_set() {
            return Ok(());
        }
        self.sync()?;
        if left == 0 {
            self.retire_old_versions(no)?;
            self.destroy_intended()?;
        } else {
            self.report(&format!(
                "{}: {left} wrapped keys could not be opened, so the KEK versions that they name are kept: vaultfs fsck names them",
                organization.id
            ));
        }
        let mut tx = self.begin()?;
        tx.touch_organization(no);
        {
            let mut record = organization.record.lock();
            // A rotation that was asked for meanwhile begins anew.
            if record.rotation.as_ref().is_some_and(|current| current.started == rotation.started) {
                record.rotation = None;
            } else {
                self.rotations.wake();
            }
        }
        self.finish(tx);
        self.rotations.progress.lock().remove(&no);
        self.audit(AuditEvent { organization: Some(organization.id.to_string()), ..AuditEvent::new("key.rotated") });
        Ok(())
    }

    fn add_version(&self, organization: &Organization, kek: &Kek, to: Option<&Residency>) -> Result<()> {
        let _one_at_a_time = self.making_keks.lock();
        let Some(last) = kek.versions.last() else { return Ok(()) };
        let new = KekRef { id: kek.id, version: last.version + 1 };
        // What was intended before a crash may be there already.
        let left = self.records.get::<Intent>(new)?.map(|intent| intent.home.clone());
        let residency = to.cloned().unwrap_or_else(|| last.home.residency());
        let home = self.make_key((new, left), organization.no, &kek.pair, &residency)?;
        let place = self.kek_place(organization.no, &kek.pair)?;
        let mut tx = self.begin()?;
        let mut kek = (*tx.need::<Kek>(place)?).clone();
        kek.versions.push(KekVersion::new(new.version, home));
        tx.put(place, kek);
        tx.delete::<Intent>(new);
        self.finish(tx);
        self.own_tokens.forget();
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            detail: Some(new.to_string()),
            ..AuditEvent::new("key.created")
        });
        Ok(())
    }

    fn rewrap_metadata_key(&self, organization: &Organization) -> Result<()> {
        let context = organization.context();
        let keks = self.keks(organization, &context, Patience::Wait)?;
        let old = organization.record.lock().metadata_key.clone();
        if keks[..] == [organization.kek()] {
            return Ok(());
        }
        let new = self.keyring.rewrap(organization.no.0, &old, &context, &keks, &context)?;
        let mut tx = self.begin()?;
        tx.touch_organization(organization.no);
        organization.record.lock().metadata_key = new;
        self.finish(tx);
        Ok(())
    }

    /// What seals data keys goes over as well, so that those that clients keep open as before; how much could not.
    fn rewrap_data_keys(&self, organization: &Organization) -> Result<u64> {
        let (no, mut left) = (organization.no, 0);
        for kek in self.keks_of(no)? {
            let (Some(old), Some(current)) = (&kek.data_keys, kek.current()) else { continue };
            if old.layers.iter().all(|layer| layer.kek == current) {
                continue;
            }
            let context = vec![kek.pair.clone()];
            let new = match self.keyring.rewrap(no.0, old, &context, &[current], &context) {
                Ok(new) => new,
                Err(KeyError::Authentication) => {
                    self.corrupt("wrapped key", Ino::top_of(no), String::new());
                    left += 1;
                    continue;
                }
                Err(KeyError::NoSuchKey(_)) => {
                    left += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let place = self.kek_place(no, &kek.pair)?;
            let mut tx = self.begin()?;
            let now = tx.need::<Kek>(place)?;
            // Else it was revoked meanwhile.
            if now.data_keys.as_ref() == Some(old) {
                tx.put(place, Kek { data_keys: Some(new), ..(*now).clone() });
                self.finish(tx);
            }
        }
        Ok(left)
    }

    /// Wraps every content anew that names an older version; how many could not be, for good.
    fn rewrap_contents(&self, organization: &Organization) -> Result<u64> {
        let range = |local| Ino::new(OrgNo(organization.no.0 + local), 0);
        let (like, from, _) = rows_of::<ContentRecord>(range(0), ContentRecord::at(range(0)));
        let end = rows_of::<ContentRecord>(range(1), like).1;
        let (total, mut left) = (organization.record.lock().objects, 0);
        self.rotations.note(organization.no, |progress| (progress.done, progress.total) = (0, total));
        let mut next = Some(from);
        while let Some(start) = next.filter(|_| !self.closing.is_set()) {
            let part = self.records.scan::<ContentRecord>(like, start, end, TOGETHER)?;
            let mut ready = Vec::new();
            for (key, record) in &part.rows {
                let ino = Ino(u64::from_be_bytes((**key).try_into().expect("keys of contents are inode numbers")));
                let keks = match self.keks(organization, &record.context, Patience::Wait) {
                    // Closed for good: it needs no old version either.
                    Err(Error::Revoked) => continue,
                    keks => keks?,
                };
                if record.wrapped.layers.iter().map(|layer| layer.kek).eq(keks.iter().copied()) {
                    continue;
                }
                let (context, org) = (&record.context, organization.no.0);
                match self.keyring.rewrap(org, &record.wrapped, context, &keks, context) {
                    Ok(wrapped) => ready.push((ino, record.clone(), wrapped)),
                    Err(KeyError::Authentication) => {
                        self.corrupt("wrapped key", ino, String::new());
                        left += 1;
                    }
                    // The token's backup may have it.
                    Err(KeyError::NoSuchKey(_)) => left += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            if !ready.is_empty() {
                let mut tx = self.begin()?;
                for (ino, old, wrapped) in ready {
                    // What changed meanwhile is under what wraps now, or looked at again: its owners may be others.
                    if let Some(record) = tx.get::<ContentRecord>(ino)?.filter(|now| now.wrapped == old.wrapped) {
                        tx.put(ino, ContentRecord { wrapped, ..(*record).clone() });
                    }
                }
                self.finish(tx);
            }
            let seen = part.rows.len() as u64;
            self.rotations.note(organization.no, |progress| {
                progress.done += seen;
                (progress.total, progress.error) = (progress.total.max(progress.done), None);
            });
            next = part.next;
        }
        Ok(left)
    }

    /// Nothing is wrapped under them any more, and that is on the disk.
    fn retire_old_versions(&self, org: OrgNo) -> Result<()> {
        let mut tx = self.begin()?;
        for kek in self.keks_of(org)? {
            let Some((_, old)) = kek.versions.split_last() else { continue };
            for version in old {
                self.doom(&mut tx, org, (&kek.pair, kek.id), version);
            }
            if !old.is_empty() {
                let versions = kek.versions.last().cloned().into_iter().collect();
                tx.put(self.kek_place(org, &kek.pair)?, Kek { versions, ..(*kek).clone() });
            }
        }
        self.finish(tx);
        self.own_tokens.forget();
        Ok(())
    }
}
