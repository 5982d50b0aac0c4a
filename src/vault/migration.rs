//! Moving a vault to another token: every key that the vault has in its token gets a new version in the other one.
//!
//! Keys do not leave a token, so this is a rotation of everything whose new versions are made elsewhere. Each stage is on
//! the disk before the next one begins, so whatever ends the daemon, the next one goes on from there:
//! 1. the header names the other token, where all keys are made from then on, and a new root key there, if there is one;
//! 2. every organization that has a KEK in the old token rotates, and its old versions are destroyed there;
//! 3. the vault's own KEK gets a version in the new token, and in the same instant that is the token that the header names;
//! 4. what is left in the old token, the vault's earlier KEK and root key, is destroyed, and the header forgets that token.
//!
//! Both tokens are needed up to stage 3; after it the old one only so that keys can be destroyed in it. Each home names its
//! token by number, so nothing has to be written anew at the end. Organizations with tokens of their own stay there.

use super::error::{Error, Result};
use super::ids::OrgNo;
use super::opening::{parse_pin, parse_token};
use super::row::{Intent, Intention, Kek};
use super::{AuditEvent, Caller, MigrationInfo, Vault};
use crate::keys::{Home, KekRef, TokenPlace};
use std::time::Instant;

/// How far it is, as this process knows.
#[derive(Default)]
pub struct Progress {
    begun: Option<Instant>,
    total: u64,
    /// Why it waits, as it was last reported.
    waits: Option<String>,
}

impl Vault {
    /// `vaultfs key migrate`: durable when it returns; the rest follows in the background. A token that keys cannot be made
    /// on is refused, and nothing has changed. Repeated for the same token it goes on, with this source of the PIN.
    pub fn migrate(&self, caller: &Caller, token: &str, pin_source: &str) -> Result<()> {
        // As the header will have it: without what the URI may say of a PIN.
        let uri = parse_token(&parse_token(token)?.to_string())?;
        let place = TokenPlace { uri, pin: parse_pin(pin_source)? };
        {
            let _one_at_a_time = self.making_keks.lock();
            let (other, numbers) = {
                let header = self.header.lock();
                (header.other(), header.numbers())
            };
            match other {
                None => self.begin_migration(&place)?,
                Some((_, other)) if other.uri == place.uri && numbers.moves() => {
                    self.keyring.reach(&place)?;
                    self.change_header(|header| {
                        let root = header.root();
                        header.moving_to(&self.keyring, place.clone(), root)
                    })?;
                    self.know_tokens();
                }
                Some(_) if numbers.moves() => {
                    return Err(Error::Busy("the vault moves to another token already: `vaultfs status` names it"));
                }
                Some(_) => {
                    return Err(Error::Busy(
                        "old keys of the last move are still to be destroyed: `vaultfs status` says what it waits for",
                    ));
                }
            }
        }
        self.audit(AuditEvent { detail: Some(place.uri.to_string()), ..AuditEvent::by(caller, "key.migration_begun") });
        self.rotations.wake();
        Ok(())
    }

    /// Tries the token with keys that are thrown away, and has the header name it. The caller holds `making_keks`.
    fn begin_migration(&self, place: &TokenPlace) -> Result<()> {
        self.keyring.reach(place)?;
        self.clear_own_intents()?;
        let home = Home::External(Box::new(place.clone()));
        self.make_own(KekRef::fresh(), &home, false).map(|kek| self.discard_kek(kek, &home))?;
        let old = self.header.lock().root();
        let root = old.map(|old| KekRef { version: old.version + 1, ..old });
        root.map_or(Ok(()), |root| self.make_own(root, &home, true).map(drop))?;
        // Whoever is about to make a key where the youngest token was has said so, or will make it on the new one.
        let _nobody_chooses = self.homing.write();
        self.change_header(|header| header.moving_to(&self.keyring, place.clone(), root))?;
        self.know_tokens();
        let mut tx = self.begin()?;
        root.into_iter().for_each(|root| self.supersede(&mut tx, root, &self.root_pair()));
        self.finish(tx);
        self.sync()
    }

    /// A key of the vault's own on a token that is not the vault's yet; on failure there is none.
    fn make_own(&self, key: KekRef, home: &Home, root: bool) -> Result<KekRef> {
        let pair = if root { self.root_pair() } else { self.own_pair() };
        self.intend(key, OrgNo::VAULT, pair.clone(), home.clone())?;
        let made = match root {
            true => self.keyring.create_root_at(home, key),
            false => self.keyring.create(home, key, &pair),
        };
        made.inspect_err(|_| self.discard_kek(key, home))?;
        Ok(key)
    }

    /// What a rotation of the vault's own keys was cut short with is given up: its names are needed.
    fn clear_own_intents(&self) -> Result<()> {
        let mut tx = self.begin()?;
        for (key, intent) in self.intents()?.into_iter().filter(|(_, intent)| intent.org == OrgNo::VAULT) {
            if intent.what == Intention::Make {
                tx.put(key, Intent { what: Intention::Destroy, ..(*intent).clone() });
            }
        }
        self.finish(tx);
        // What lingers of others is no hindrance.
        self.go_on_destroying();
        let (kek, root) = {
            let header = self.header.lock();
            (header.kek(), header.root())
        };
        for key in root.into_iter().chain([kek]) {
            if self.records.get::<Intent>(KekRef { version: key.version + 1, ..key })?.is_some() {
                return Err(Error::Busy(
                    "a key of the vault's own is still to be destroyed: `vaultfs status` says how its token is",
                ));
            }
        }
        Ok(())
    }

    fn know_tokens(&self) {
        let (numbers, other) = {
            let header = self.header.lock();
            (header.numbers(), header.other())
        };
        self.keyring.number_tokens(numbers.own, other);
    }

    /// Whether nothing of it is left to be done.
    pub(super) fn go_on_migrating(&self) -> bool {
        let numbers = self.numbers();
        let Some(other) = numbers.other else { return true };
        let done = match numbers.moves() {
            true => match self.has_left_token(numbers.own) {
                Ok(true) => self.change_token().map(|()| self.go_on_destroying()),
                left => left,
            },
            false => Ok(true),
        };
        let done =
            done.and_then(|done| Ok(done && self.forget_token(if numbers.moves() { numbers.own } else { other })?));
        // Rotations and keys that are to be destroyed say themselves what they wait for.
        let (done, waits) = match done {
            Ok(done) => (done, None),
            Err(Error::Stopped) => (false, None),
            Err(error) => (false, Some(error.to_string())),
        };
        let said = std::mem::replace(&mut self.rotations.migration.lock().waits, waits.clone());
        if let Some(waits) = waits.filter(|waits| Some(waits) != said.as_ref()) {
            self.report(&format!("the move to another token waits: {waits}"));
        }
        done
    }

    /// Whether no key of an organization is on this token any more; those that have one there begin to rotate.
    fn has_left_token(&self, number: u32) -> Result<bool> {
        let mut left = true;
        {
            let _one_at_a_time = self.making_keks.lock();
            for (name, intent) in self.intents()? {
                if intent.what != Intention::Make || intent.home.number() != Some(number) || intent.org == OrgNo::VAULT
                {
                    continue;
                }
                // An organization comes to be in one transaction, with its record and without its intent.
                let mut tx = self.begin()?;
                let place = self.kek_place(intent.org, &intent.pair)?;
                let unused = self.organizations.find(intent.org).is_some()
                    && tx.get::<Intent>(name)?.is_some()
                    && tx.get::<Kek>(place)?.is_none();
                if unused {
                    // A pair's first use was cut short: the next one makes the key on the new token.
                    tx.put(name, Intent { what: Intention::Destroy, ..(*intent).clone() });
                    self.finish(tx);
                }
                left &= unused;
            }
        }
        // After the intents: a key goes from its intent to its record, and never back.
        let all = self.organizations.all();
        let mut kept = None;
        for organization in all {
            let keks = self.keks_of(organization.no)?;
            let on = |version: &super::row::KekVersion| version.home.number() == Some(number);
            if !keks.iter().flat_map(|kek| &kek.versions).any(on) {
                continue;
            }
            left = false;
            if organization.record.lock().rotation.is_some() {
                continue;
            }
            if keks.iter().filter_map(|kek| kek.versions.last()).any(on) {
                self.begin_rotation(&organization, None)?;
                self.rotations.wake();
            } else {
                kept = Some(organization);
            }
        }
        if let Some(organization) = kept {
            return Err(Error::Setting(format!(
                "{}: some of its wrapped keys could not be opened, so their KEK stays on the old token: `vaultfs fsck` names them; \
                 restore or purge those objects, then `vaultfs key rotate`",
                organization.name()
            )));
        }
        Ok(left)
    }

    /// The vault's own KEK gets its version on the new token, and that is the vault's token from then on.
    fn change_token(&self) -> Result<()> {
        // That nothing is on the old one any more is on the disk.
        self.sync()?;
        let _one_at_a_time = self.making_keks.lock();
        let (old, recorded, youngest) = {
            let header = self.header.lock();
            (header.kek(), header.pin_source.clone(), header.numbers().youngest())
        };
        let new = KekRef { version: old.version + 1, ..old };
        let left = self.keyring.place();
        // What was handed over to this process alone cannot be read again.
        let left = TokenPlace { pin: if left.pin.is_private() { recorded } else { left.pin }, ..left };
        let home = Home::Token(youngest);
        if self.records.get::<Intent>(new)?.is_none() {
            self.intend(new, OrgNo::VAULT, self.own_pair(), home.clone())?;
        }
        self.make_intended(new, &self.own_pair(), &home)?;
        self.change_header(|header| header.moved(&self.keyring, new, left.clone()))?;
        // The keyring knows it: a key was just made there.
        self.keyring.change_token(left)?;
        let mut tx = self.begin()?;
        self.supersede(&mut tx, new, &self.own_pair());
        self.finish(tx);
        self.audit(AuditEvent { detail: Some(new.to_string()), ..AuditEvent::new("key.created") });
        Ok(())
    }

    /// Has the header forget the token that the vault has left, once nothing is to be destroyed there.
    fn forget_token(&self, number: u32) -> Result<bool> {
        if self.intents()?.iter().any(|(_, intent)| intent.home.number() == Some(number)) {
            return Ok(false);
        }
        // An intent that came back would name a token that nobody knows.
        self.sync()?;
        let _one_at_a_time = self.making_keks.lock();
        self.change_header(|header| header.alone(&self.keyring))?;
        self.know_tokens();
        *self.rotations.migration.lock() = Progress::default();
        let token = self.keyring.place().uri.to_string();
        self.audit(AuditEvent { detail: Some(token), ..AuditEvent::new("key.migrated") });
        Ok(true)
    }

    /// The vault's move to another token, while there is one.
    pub(super) fn migration(&self) -> Option<MigrationInfo> {
        let (other, numbers) = {
            let header = self.header.lock();
            (header.other()?.1.uri.to_string(), header.numbers())
        };
        let own = self.keyring.place().uri.to_string();
        let (from, to) = if numbers.moves() { (own, other) } else { (other, own) };
        let (left, rotation_waits) = if numbers.moves() { self.rotations_left() } else { (0, None) };
        let lingers = self.rotations.lingers();
        let mut progress = self.rotations.migration.lock();
        progress.total = progress.total.max(left);
        let begun = *progress.begun.get_or_insert_with(Instant::now);
        Some(MigrationInfo {
            from,
            to,
            stage: if numbers.moves() { "moving" } else { "clearing" }.into(),
            done: progress.total - left,
            total: progress.total,
            milliseconds: begun.elapsed().as_millis() as u64,
            waits: progress.waits.clone().or(rotation_waits).or(lingers),
        })
    }
}
