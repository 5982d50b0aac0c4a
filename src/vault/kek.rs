//! The KEKs of organizations: which pair of a key context has which, and making one on first use.
//!
//! A KEK is never made because the token lacks it: it is made for a pair that no record names yet, after an
//! intent that says so is on the disk. What a crash leaves of that is taken up by the next use of the pair.

use super::error::{Error, Result};
use super::header::{Header, Numbers};
use super::ids::{Ino, OrgNo};
use super::organization::Organization;
use super::records::Tx;
use super::row::{ContentRecord, Context, Intent, Intention, Kek, KekVersion, Pair, Record};
use super::time::Time;
use super::{AuditEvent, Vault};
use crate::crypto;
use crate::keys::{FreshDek, Home, KekRef, KeyError, Lodging, Patience, Residency, WrappedDek};
use crate::store::{Durability, Key};
use std::sync::Arc;

impl Kek {
    /// A KEK of one version.
    pub fn first(name: KekRef, pair: Pair, home: Home) -> Kek {
        Kek { pair, id: name.id, versions: vec![KekVersion::new(name.version, home)], data_keys: None }
    }

    /// What wraps from now on; `None` when there is no version left.
    pub fn current(&self) -> Option<KekRef> {
        self.versions.last().map(|v| self.named(v))
    }

    pub fn named(&self, version: &KekVersion) -> KekRef {
        KekRef { id: self.id, version: version.version }
    }
}

impl KekVersion {
    pub fn new(version: u32, home: Home) -> KekVersion {
        KekVersion { version, made: Time::now(), home }
    }
}

impl Vault {
    /// Where the record of a pair's KEK stands.
    pub(super) fn kek_place(&self, org: OrgNo, (key, value): &Pair) -> Result<(OrgNo, [u8; 16])> {
        let encoded = [&(key.len() as u32).to_be_bytes()[..], key.as_bytes(), value.as_bytes()].concat();
        let hash = self.records.sealer(OrgNo::VAULT)?.names.hash(Ino::top_of(org).0, &encoded);
        Ok((org, hash))
    }

    /// The KEKs of all pairs that were used in an organization.
    pub(super) fn keks_of(&self, org: OrgNo) -> Result<Vec<Arc<Kek>>> {
        let key = |org: u32| Key::from(&org.to_be_bytes()[..]);
        let rows = self.records.scan_all::<Kek>(Kek::at((org, [0; 16])), key(org.0), key(org.0 + 1))?;
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// What wraps for each pair of a key context now; the KEK of a new pair is made.
    pub(super) fn keks(&self, org: &Organization, context: &Context, patience: Patience) -> Result<Vec<KekRef>> {
        let one = |pair| match self.records.get::<Kek>(self.kek_place(org.no, pair)?)? {
            Some(kek) => kek.current().ok_or(Error::Revoked),
            None if patience == Patience::Never => Err(Error::WouldWait),
            None => self.make_kek(org, pair),
        };
        context.iter().map(one).collect()
    }

    /// A new DEK under a key context, as the record of a content.
    pub(super) fn new_key(
        &self,
        org: &Organization,
        content: Ino,
        context: Context,
        patience: Patience,
    ) -> Result<(FreshDek, ContentRecord)> {
        let fresh = self.fresh_dek(org, &context, patience)?;
        let record = self.content_record(org, content, &fresh, context);
        Ok((fresh, record))
    }

    pub(super) fn fresh_dek(&self, org: &Organization, context: &Context, patience: Patience) -> Result<FreshDek> {
        let keks = self.keks(org, context, patience)?;
        Ok(self.keyring.fresh(org.no.0, &keks, context, patience)?)
    }

    /// The record of a content that nobody owns yet.
    pub(super) fn content_record(
        &self,
        org: &Organization,
        content: Ino,
        fresh: &FreshDek,
        context: Context,
    ) -> ContentRecord {
        let FreshDek { key, wrapped } = fresh;
        let commitment = crypto::commitment(key, &org.id.bytes(), content.0, &wrapped.dek_id);
        ContentRecord { wrapped: wrapped.clone(), commitment, context, owners: Vec::new() }
    }

    /// Whether a DEK is wrapped under what wraps now. Asked in the transaction that stores it: a KEK that was
    /// rotated since may have been looked through for the last time.
    pub(super) fn wraps_now(&self, tx: &Tx, org: OrgNo, wrapped: &WrappedDek, context: &Context) -> Result<bool> {
        for (layer, pair) in wrapped.layers.iter().zip(context) {
            let kek = tx.get::<Kek>(self.kek_place(org, pair)?)?;
            if kek.and_then(|kek| kek.current()) != Some(layer.kek) {
                return Ok(false);
            }
        }
        Ok(wrapped.layers.len() == context.len())
    }

    /// Where a KEK of an organization lives, for the keyring.
    pub(super) fn lodging(&self, org: OrgNo, name: KekRef) -> Option<Lodging> {
        let keks = self.keks_of(org).ok()?;
        let kek = keks.iter().find(|kek| kek.id == name.id)?;
        let version = kek.versions.iter().find(|version| version.version == name.version)?;
        Some(Lodging { home: version.home.clone(), pair: kek.pair.clone() })
    }

    /// Where new KEKs of an organization are to live: where its own one does.
    fn residency(&self, org: &Organization) -> Result<Residency> {
        let own = self.records.get::<Kek>(self.kek_place(org.no, &org.pair())?)?;
        let current = own.as_ref().and_then(|kek| kek.versions.last());
        Ok(current.map_or(Residency::Token, |version| version.home.residency()))
    }

    /// Makes the KEK of a pair that has none.
    fn make_kek(&self, org: &Organization, pair: &Pair) -> Result<KekRef> {
        let _one_at_a_time = self.making_keks.lock();
        let place = self.kek_place(org.no, pair)?;
        if let Some(kek) = self.records.get::<Kek>(place)? {
            return kek.current().ok_or(Error::Revoked);
        }
        let home = |(left, intent): (KekRef, Arc<Intent>)| (left, Some(intent.home.clone()));
        let (name, left) = self.intended(org.no, pair)?.map_or_else(|| (KekRef::fresh(), None), home);
        let home = self.make_key((name, left), org.no, pair, &self.residency(org)?)?;
        let mut tx = self.begin()?;
        tx.put(place, Kek::first(name, pair.clone(), home));
        tx.delete::<Intent>(name);
        self.finish(tx);
        self.own_tokens.forget();
        self.audit(AuditEvent {
            organization: Some(org.id.to_string()),
            detail: Some(name.to_string()),
            ..AuditEvent::new("key.created")
        });
        Ok(name)
    }

    /// Makes a KEK, for a record that is to name it next. One that a token is to hold is intended before, unless it was
    /// already, with this home; of a wrapped one there is nothing but that record.
    pub(super) fn make_key(
        &self,
        (name, intended): (KekRef, Option<Home>),
        org: OrgNo,
        pair: &Pair,
        residency: &Residency,
    ) -> Result<Home> {
        let home = match (intended, residency) {
            (Some(home), _) => home,
            (None, Residency::Wrapped) => {
                let root = self.root()?;
                let youngest = self.numbers().youngest();
                let wrapped = self.keyring.create_wrapped_kek(youngest, name, root, pair.clone())?;
                return Ok(Home::Wrapped(youngest, wrapped));
            }
            (None, Residency::Token) => {
                let _it_stays_the_youngest = self.homing.read();
                let home = Home::Token(self.numbers().youngest());
                self.intend(name, org, pair.clone(), home.clone())?;
                home
            }
            (None, Residency::External(place)) => {
                // What is intended at a token that refuses the PIN would have each mount present that PIN again.
                self.keyring.is_usable(place)?;
                let home = Home::External(place.clone());
                self.intend(name, org, pair.clone(), home.clone())?;
                home
            }
        };
        self.make_intended(name, pair, &home)?;
        Ok(home)
    }

    /// What a try that was cut short was to make for this pair.
    fn intended(&self, org: OrgNo, pair: &Pair) -> Result<Option<(KekRef, Arc<Intent>)>> {
        let ours = |intent: &Intent| intent.org == org && intent.pair == *pair && intent.what == Intention::Make;
        Ok(self.intents()?.into_iter().find(|(_, intent)| ours(intent)))
    }

    /// KEKs that are being made or destroyed, or were when the vault was cut short.
    pub(super) fn intents(&self) -> Result<Vec<(KekRef, Arc<Intent>)>> {
        let (from, to) = (Key::from(&[][..]), Key::from(&[0xFF; 21][..]));
        let like = Intent::at(KekRef { id: [0; 16], version: 0 });
        let rows = self.records.scan_all::<Intent>(like, from, to)?;
        Ok(rows.into_iter().filter_map(|(key, row)| Some((KekRef::from_key(&key)?, row))).collect())
    }

    /// Writes down, on the disk when it returns, that this key will be made.
    pub(super) fn intend(&self, name: KekRef, org: OrgNo, pair: Pair, home: Home) -> Result<()> {
        let mut tx = self.begin()?;
        tx.put_new(name, Intent { org, pair, what: Intention::Make, home });
        let batch = self.finish(tx);
        self.signals.wait_for(batch, Durability::Synced)
    }

    /// Makes a KEK that was intended, or takes what an earlier try made of it.
    pub(super) fn make_intended(&self, name: KekRef, pair: &Pair, home: &Home) -> Result<()> {
        match self.keyring.create(home, name, pair) {
            Err(KeyError::KekExists(_)) => Ok(self.keyring.adopt(home, name)?),
            made => Ok(made?),
        }
    }

    /// Gives up a KEK that was made for nothing, and its intent; later, when the token does not serve now.
    pub(super) fn discard_kek(&self, kek: KekRef, home: &Home) {
        let gone = self.keyring.destroy(home, kek);
        let noted = self.begin().and_then(|mut tx| {
            match (&gone, tx.get::<Intent>(kek)?) {
                (Ok(()) | Err(KeyError::NoSuchKey(_)), _) => tx.delete::<Intent>(kek),
                (Err(_), Some(intent)) => tx.put(kek, Intent { what: Intention::Destroy, ..(*intent).clone() }),
                (Err(_), None) => {}
            }
            self.finish(tx);
            Ok(())
        });
        if let Err(error) = noted {
            self.report(&format!("{kek} was made for nothing and may still be in the token: {error}"));
        }
        self.rotations.wake();
    }

    /// At start: the KEKs of organizations that a crash kept from coming to be are to be destroyed, and what a key of the
    /// vault's own has replaced.
    pub(super) fn doom_orphaned_keks(&self) -> Result<()> {
        let (own, root) = {
            let header = self.header.lock();
            (header.kek(), header.root())
        };
        for (kek, intent) in self.intents()?.into_iter().filter(|(_, intent)| intent.what == Intention::Make) {
            let mut tx = self.begin()?;
            if intent.org == OrgNo::VAULT && (kek == own || Some(kek) == root) {
                self.supersede(&mut tx, kek, &intent.pair);
            } else if match intent.org {
                // The next try goes on with these, but not with what a token was tried with.
                OrgNo::VAULT => intent.home.number().is_none() || (kek.id != own.id && intent.pair != self.root_pair()),
                org => self.organizations.find(org).is_none(),
            } {
                tx.put(kek, Intent { what: Intention::Destroy, ..(*intent).clone() });
            }
            self.finish(tx);
        }
        Ok(())
    }

    /// The header names this version of a key of the vault's own: it is made, and the one before is to be destroyed.
    pub(super) fn supersede(&self, tx: &mut Tx, new: KekRef, pair: &Pair) {
        tx.delete::<Intent>(new);
        if new.version > 1 {
            // They are replaced when the vault moves, or when it does not.
            let before = Home::Token(self.numbers().oldest());
            self.doom(tx, OrgNo::VAULT, (pair, new.id), &KekVersion::new(new.version - 1, before));
        }
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.header.lock().numbers()
    }

    /// In the transaction that takes a KEK version from its record: it is to be destroyed.
    pub(super) fn doom(&self, tx: &mut Tx, org: OrgNo, (pair, id): (&Pair, [u8; 16]), version: &KekVersion) {
        let (pair, home) = (pair.clone(), version.home.clone());
        let name = KekRef { id, version: version.version };
        tx.put(name, Intent { org, pair, what: Intention::Destroy, home });
    }

    /// The root key that wraps KEKs; made when it is needed first.
    fn root(&self) -> Result<KekRef> {
        let known = self.header.lock().root();
        match known {
            Some(root) => Ok(root),
            None => {
                let left = self.intended(OrgNo::VAULT, &self.root_pair())?;
                self.make_root(left.map_or_else(KekRef::fresh, |(name, _)| name))
            }
        }
    }

    /// Makes a root key and has the header name it. The caller holds `making_keks`.
    pub(super) fn make_root(&self, root: KekRef) -> Result<KekRef> {
        let home = match self.records.get::<Intent>(root)? {
            Some(intent) => intent.home.clone(),
            None => {
                let home = Home::Token(self.numbers().youngest());
                self.intend(root, OrgNo::VAULT, self.root_pair(), home.clone())?;
                home
            }
        };
        match self.keyring.create_root_at(&home, root) {
            // Nothing is under it yet, and a kill may have left one that does not work.
            Err(KeyError::KekExists(_)) => {
                self.keyring.destroy(&home, root)?;
                self.keyring.create_root_at(&home, root)?;
            }
            made => made?,
        }
        self.change_header(|header| header.with_root(&self.keyring, root))?;
        let mut tx = self.begin()?;
        self.supersede(&mut tx, root, &self.root_pair());
        self.finish(tx);
        self.audit(AuditEvent { detail: Some(root.to_string()), ..AuditEvent::new("key.created") });
        Ok(root)
    }

    pub(super) fn own_pair(&self) -> Pair {
        ("vaultId".to_owned(), self.id.to_string())
    }

    /// Stands where a KEK has its pair.
    pub(super) fn root_pair(&self) -> Pair {
        ("rootOf".to_owned(), self.id.to_string())
    }

    /// Replaces the header, on the disk when it returns.
    pub(super) fn change_header(&self, change: impl FnOnce(Header) -> Result<Header>) -> Result<()> {
        let mut header = self.header.lock();
        let changed = change(header.clone())?;
        changed.write(&self.state, &*self.disk)?;
        *header = changed;
        Ok(())
    }
}
