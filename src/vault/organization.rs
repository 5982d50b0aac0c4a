//! Organizations: their records, their metadata keys, and what `mkdir`, `mv` and `rmdir` in `/vault` mean.

use super::error::{Error, Result};
use super::ids::{Ino, OrgId, OrgNo};
use super::records::{Sealer, Tx};
use super::row::{Context, Entry, Intent, Kek, Kind, Node, OrgRecord, Pair, Record, Tombstone};
use super::time::Time;
use super::{Attr, AuditEvent, Caller, Changed, Vault};
use crate::crypto::{self, LockedKey, RecordKey};
use crate::keys::{FreshDek, Home, KekRef, Patience, Residency};
use crate::store::Durability;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;

/// The key of the pair that stands in every key context; its value is the organization's id.
pub const OWN_PAIR: &str = "organizationId";

/// An organization that the vault holds, deleted ones that can be restored included.
pub struct Organization {
    pub no: OrgNo,
    pub id: OrgId,
    pub record: Mutex<OrgRecord>,
}

impl Organization {
    pub fn context(&self) -> Context {
        vec![self.pair()]
    }

    pub fn name(&self) -> String {
        self.record.lock().name.clone()
    }

    /// The pair that stands in every key context in it.
    pub fn pair(&self) -> Pair {
        own_pair(self.id)
    }

    /// What wraps its metadata key.
    pub fn kek(&self) -> KekRef {
        self.record.lock().kek()
    }
}

fn own_pair(id: OrgId) -> Pair {
    (OWN_PAIR.to_owned(), id.to_string())
}

impl OrgRecord {
    pub fn kek(&self) -> KekRef {
        self.metadata_key.layers[0].kek
    }
}

/// All organizations, by number.
pub struct Organizations {
    by_number: RwLock<HashMap<OrgNo, Arc<Organization>>>,
    /// The next organization's and the next deleted organization's numbers.
    next: Mutex<(u32, u64)>,
}

impl Organizations {
    pub fn new(records: impl IntoIterator<Item = (OrgNo, OrgRecord)>, next: (u32, u64)) -> Self {
        let organization = |(no, record): (OrgNo, OrgRecord)| {
            (no, Arc::new(Organization { no, id: record.id, record: Mutex::new(record) }))
        };
        Organizations {
            by_number: RwLock::new(records.into_iter().map(organization).collect()),
            next: Mutex::new(next),
        }
    }

    pub fn find(&self, no: OrgNo) -> Option<Arc<Organization>> {
        self.by_number.read().get(&no).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Organization>> {
        let mut all: Vec<_> = self.by_number.read().values().cloned().collect();
        all.sort_by_key(|o| o.no);
        all
    }

    pub fn counters(&self) -> (u32, u64) {
        *self.next.lock()
    }

    fn next_number(&self) -> Result<OrgNo> {
        let mut next = self.next.lock();
        if next.0 > OrgNo::MAX {
            return Err(Error::NoSpace);
        }
        next.0 += 1;
        Ok(OrgNo(next.0 - 1))
    }

    pub fn next_grave(&self) -> u64 {
        let mut next = self.next.lock();
        next.1 += 1;
        next.1 - 1
    }

    /// Numbers below these are taken.
    pub(super) fn raise(&self, org: u32, grave: u64) {
        let mut next = self.next.lock();
        *next = (next.0.max(org), next.1.max(grave));
    }

    pub(super) fn remove(&self, no: OrgNo) {
        self.by_number.write().remove(&no);
    }
}

/// 1 to 255 bytes of UTF-8 without control characters and without a leading dot.
fn check_name(name: &[u8]) -> Result<&str> {
    if name.len() > 255 {
        return Err(Error::NameTooLong);
    }
    let text = std::str::from_utf8(name).map_err(|_| Error::Invalid("an organization's name is UTF-8"))?;
    if text.is_empty() || text.starts_with('.') || text.chars().any(char::is_control) {
        return Err(Error::Invalid(
            "an organization's name has 1 to 255 bytes, no control character and no dot at its start",
        ));
    }
    Ok(text)
}

impl Vault {
    /// The organization, if it is not deleted.
    pub(super) fn living(&self, no: OrgNo) -> Result<Arc<Organization>> {
        self.organizations.find(no).filter(|o| !o.record.lock().deleted).ok_or(Error::NotFound)
    }

    /// The id that binds keys and records of an organization; the vault's own for number 0.
    pub(super) fn organization_id(&self, no: OrgNo) -> Result<[u8; 16]> {
        if no == OrgNo::VAULT {
            return Ok(self.id.0.to_be_bytes());
        }
        self.organizations.find(no).map(|o| o.id.bytes()).ok_or(Error::NotFound)
    }

    /// Makes sure that the organization's records can be opened; asks the token at the first time.
    pub(super) fn enter(&self, ino: Ino, patience: Patience) -> Result<()> {
        let no = ino.organization();
        if no == OrgNo::VAULT || self.records.use_sealer(no) {
            return Ok(());
        }
        let organization = self.organizations.find(no).ok_or(Error::NotFound)?;
        let (wrapped, expected) = {
            let record = organization.record.lock();
            if record.locked {
                return Err(Error::Locked);
            }
            (record.metadata_key.clone(), record.metadata_commitment)
        };
        let key = self.keyring.unwrap(no.0, &wrapped, &organization.context(), patience).map_err(|e| match e {
            crate::keys::KeyError::Authentication => self.corrupt("wrapped key", Ino::top_of(no), String::new()),
            other => other.into(),
        })?;
        let seen = crypto::commitment(&key, &organization.id.bytes(), 0, &wrapped.dek_id);
        if !crypto::same_tag(&seen, &expected) {
            return Err(self.corrupt("commitment", Ino::top_of(no), String::new()));
        }
        let sealer = sealer(&organization, &key)?;
        // Whoever locks it meanwhile closes what is added before, and nothing is added after.
        let record = organization.record.lock();
        if record.locked {
            return Err(Error::Locked);
        }
        self.records.add_sealer(no, sealer);
        Ok(())
    }

    /// `mkdir /vault/NAME`: makes the organization and its KEK; durable when it returns.
    pub(super) fn make_organization(
        &self,
        caller: &Caller,
        name: &[u8],
        mode: u32,
        owner: (u32, u32),
        residency: Option<Residency>,
    ) -> Result<(Attr, Arc<Organization>)> {
        let name = check_name(name)?;
        if self.find_entry(Ino::ROOT, name.as_bytes())?.is_some() {
            return Err(Error::Exists);
        }
        if caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        self.check_space(caller, 0)?;
        let (id, kek) = (OrgId::fresh(), KekRef::fresh());
        let pair = own_pair(id);
        let no = self.organizations.next_number()?;
        let chosen = residency.or_else(|| self.settings.residency.clone());
        let residency = chosen.unwrap_or_else(|| self.header.lock().residency());
        // Until its record says so, a KEK under a root key is nobody's whom a rotation of that root would look at.
        let under_root = (residency == Residency::Wrapped).then(|| self.making_keks.lock());
        let home = self.make_own_key(kek, no, &pair, &residency)?;
        let made = self.keyring.fresh(no.0, &[kek], std::slice::from_ref(&pair), Patience::Wait);
        let FreshDek { key, wrapped } = made.inspect_err(|_| self.discard_kek(kek, &home))?;
        let now = Time::now();
        let organization = Arc::new(Organization {
            no,
            id,
            record: Mutex::new(OrgRecord {
                id,
                name: name.to_owned(),
                created: now,
                metadata_commitment: crypto::commitment(&key, &id.bytes(), 0, &wrapped.dek_id),
                metadata_key: wrapped,
                next_local: Ino::FIRST_LOCAL,
                next_grave: 1,
                objects: 0,
                bytes: 0,
                tombstones: 0,
                held: 0,
                context_folders: 0,
                deleted: false,
                locked: false,
                rotation: None,
                rotated: now,
            }),
        });
        let mut tx = self.begin()?;
        let hash = self.records.name_hash(Ino::ROOT, name.as_bytes())?;
        if tx.get::<Entry>((Ino::ROOT, hash))?.is_some() {
            drop(tx);
            self.discard_kek(kek, &home);
            return Err(Error::Exists);
        }
        self.records.add_sealer(no, sealer(&organization, &key)?);
        self.organizations.by_number.write().insert(no, organization.clone());
        let top = Ino::top_of(no);
        let node = Node {
            kind: Kind::Directory { parent: Ino::ROOT, name: name.as_bytes().to_vec() },
            mode: mode & 0o7777,
            uid: owner.0,
            gid: owner.1,
            links: 2,
            size: 4096,
            ..Node::new(now)
        };
        let attr = Attr::of(top, &node);
        tx.put(top, node);
        tx.put((Ino::ROOT, hash), Entry { name: name.as_bytes().to_vec(), ino: top, kind: libc::S_IFDIR });
        tx.put(self.kek_place(no, &pair)?, Kek::first(kek, pair, home));
        tx.delete::<Intent>(kek);
        self.touch_folder(&mut tx, Ino::ROOT, 1, now)?;
        tx.touch_organization(no);
        let batch = self.finish(tx);
        self.own_tokens.forget();
        drop(under_root);
        self.signals.wait_for(batch, Durability::Synced)?;
        let event =
            |event, detail| AuditEvent { organization: Some(id.to_string()), detail, ..AuditEvent::by(caller, event) };
        self.audit(event("key.created", Some(kek.to_string())));
        self.audit(event("organization.created", self.settings.audit_names.then(|| name.to_owned())));
        Ok((attr, organization))
    }

    /// The first KEK of an organization that is being made.
    fn make_own_key(&self, kek: KekRef, no: OrgNo, pair: &Pair, residency: &Residency) -> Result<Home> {
        self.make_key((kek, None), no, pair, residency).inspect_err(|_| {
            // Where it was to be made is in its intent; of a wrapped one there is none.
            if let Ok(Some(intent)) = self.records.get::<Intent>(kek) {
                self.discard_kek(kek, &intent.home);
            }
        })
    }

    /// `mv /vault/A /vault/B`: a new label; id, keys and objects stay.
    pub(super) fn relabel_organization(&self, caller: &Caller, from: &[u8], to: &[u8]) -> Result<()> {
        let name = check_name(to)?;
        let mut tx = self.begin()?;
        let (old, new) = (self.records.name_hash(Ino::ROOT, from)?, self.records.name_hash(Ino::ROOT, to)?);
        let entry = tx.need::<Entry>((Ino::ROOT, old))?;
        if old == new {
            return Ok(());
        }
        if tx.get::<Entry>((Ino::ROOT, new))?.is_some() {
            return Err(Error::Exists);
        }
        let organization = self.living(entry.ino.organization())?;
        let now = Time::now();
        tx.delete::<Entry>((Ino::ROOT, old));
        tx.put((Ino::ROOT, new), Entry { name: to.to_vec(), ..(*entry).clone() });
        self.change(&mut tx, entry.ino, |node| {
            node.kind = Kind::Directory { parent: Ino::ROOT, name: to.to_vec() };
            node.ctime = now;
        })?;
        self.touch_folder(&mut tx, Ino::ROOT, 0, now)?;
        organization.record.lock().name = name.to_owned();
        tx.touch_organization(organization.no);
        self.finish(tx);
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.renamed")
        });
        Ok(())
    }

    /// `rmdir /vault/NAME`: an empty organization becomes a tombstone.
    pub(super) fn bury_organization(&self, caller: &Caller, name: &[u8]) -> Result<()> {
        let entry = self.find_entry(Ino::ROOT, name)?.ok_or(Error::NotFound)?;
        self.enter(entry.ino, caller.patience)?;
        let organization = self.living(entry.ino.organization())?;
        let mut tx = self.begin()?;
        let hash = self.records.name_hash(Ino::ROOT, name)?;
        tx.need::<Entry>((Ino::ROOT, hash))?;
        if !self.is_empty(entry.ino)? {
            return Err(Error::NotEmpty);
        }
        let (now, number) = (Time::now(), self.organizations.next_grave());
        tx.delete::<Entry>((Ino::ROOT, hash));
        tx.put(
            (OrgNo::VAULT, number),
            Tombstone {
                ino: entry.ino,
                name: super::graveyard::grave_name(name, now, number),
                original_path: name.to_vec(),
                deleted: now,
                deleted_by: caller.author(),
                held: 0,
            },
        );
        self.change(&mut tx, entry.ino, |node| (node.grave, node.ctime) = (Some(number), now))?;
        self.touch_folder(&mut tx, Ino::ROOT, -1, now)?;
        organization.record.lock().deleted = true;
        tx.touch_organization(organization.no);
        self.finish(tx);
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.deleted")
        });
        Ok(())
    }

    /// `mv /vault/.tombstones/ORG~… /vault/NAME`
    pub(super) fn restore_organization(&self, caller: &Caller, number: u64, to: &[u8]) -> Result<()> {
        let name = check_name(to)?;
        let mut tx = self.begin()?;
        let grave = tx.need::<Tombstone>((OrgNo::VAULT, number))?;
        let hash = self.records.name_hash(Ino::ROOT, to)?;
        if tx.get::<Entry>((Ino::ROOT, hash))?.is_some() {
            return Err(Error::Exists);
        }
        let organization = self.organizations.find(grave.ino.organization()).ok_or(Error::NotFound)?;
        let now = Time::now();
        tx.delete::<Tombstone>((OrgNo::VAULT, number));
        tx.put((Ino::ROOT, hash), Entry { name: to.to_vec(), ino: grave.ino, kind: libc::S_IFDIR });
        self.change(&mut tx, grave.ino, |node| {
            node.kind = Kind::Directory { parent: Ino::ROOT, name: to.to_vec() };
            (node.grave, node.ctime) = (None, now);
        })?;
        self.touch_folder(&mut tx, Ino::ROOT, 1, now)?;
        {
            let mut record = organization.record.lock();
            (record.deleted, record.name) = (false, name.to_owned());
        }
        tx.touch_organization(organization.no);
        self.finish(tx);
        self.changed(Changed::Entry { parent: Ino::ROOT, name: to.to_vec() });
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.restored")
        });
        Ok(())
    }

    /// Counts in an organization's record, if the transaction is committed.
    pub(super) fn count(&self, tx: &mut Tx, org: OrgNo, change: impl FnOnce(&mut OrgRecord) + 'static) -> Result<()> {
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        tx.count(move || change(&mut organization.record.lock()));
        tx.touch_organization(org);
        Ok(())
    }

    /// Takes a number that is never given out again.
    pub(super) fn number<T>(&self, tx: &mut Tx, org: OrgNo, take: impl FnOnce(&mut OrgRecord) -> T) -> Result<T> {
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        tx.touch_organization(org);
        Ok(take(&mut organization.record.lock()))
    }
}

fn sealer(organization: &Organization, key: &LockedKey) -> Result<Sealer> {
    let own = LockedKey::take(&mut key.expose().to_owned())?;
    Ok(Sealer::new(organization.id.bytes(), RecordKey::new(own)))
}

/// Whether this is an organization's record rather than the vault's own.
pub(super) fn is_organization(key: &crate::store::Key) -> bool {
    **key != *OrgRecord::at(OrgNo::VAULT).key
}
