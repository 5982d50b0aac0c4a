//! Key contexts: the pairs that a folder gives to what is created below it, and what an object carries for ever.
//!
//! A folder's pairs stand among its extended attributes under their full name. An object's context is settled when
//! it is created: with more pairs than its organization's own its content gets a key there and then, and a content
//! without a key has the organization's pair alone. Where a content goes over to an object of another context (a
//! save by rename, a restored history), its DEK is wrapped anew, before the transaction that needs it.

use super::attributes::{note_attributes, put_attributes};
use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::organization::{OWN_PAIR, Organization};
use super::records::Tx;
use super::row::{Attributes, ContentRecord, Context, Kind, Node};
use super::{Caller, SetXattr, Vault};
use crate::keys::{FreshDek, Patience};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, HashMap};

/// What a folder's attribute that sets a pair is called.
pub const PAIR_PREFIX: &[u8] = b"user.vault.context.";
/// Another spelling of an organization's own pair, which services use.
pub const OWN_PAIR_ALIAS: &str = "organization_id";
const PAIRS_MAX: usize = 10;
/// Bytes of a folder's pair: an extended attribute's name has 255.
const TEXT_MAX: usize = 255;
/// Characters of what a service gives, as in the hosted vault.
const KEY_MAX: usize = 120;
const VALUE_MAX: usize = 500;
const TOO_MANY: Error = Error::Invalid("a key context has at most 10 pairs");

/// The context that a new object is to have, and its key where that is needed at once.
pub struct Birth {
    context: Context,
    key: Option<FreshDek>,
}

/// Contents' records under another key context, made ready outside of the transaction that needs them.
#[derive(Default)]
pub struct Rewraps(HashMap<Ino, (Option<ContentRecord>, ContentRecord)>);

impl Rewraps {
    /// The record of a content under `context`, or the error that asks for it.
    fn find(&self, content: Ino, now: Option<&ContentRecord>, context: &Context) -> Result<ContentRecord> {
        let fits = |(before, after): &&(Option<ContentRecord>, ContentRecord)| {
            before.as_ref().map(|r| &r.wrapped) == now.map(|r| &r.wrapped) && after.context == *context
        };
        let ready = self.0.get(&content).filter(fits);
        ready.map(|(_, after)| after.clone()).ok_or_else(|| Error::OtherContext { content, context: context.clone() })
    }
}

impl Vault {
    /// The context of what is created in a folder now: the pairs of the nearest folders, and the organization's own.
    pub(super) fn context_below(&self, mut folder: Ino) -> Result<Context> {
        let organization = self.organizations.find(folder.organization()).ok_or(Error::NotFound)?;
        if organization.record.lock().context_folders == 0 {
            return Ok(organization.context());
        }
        let mut pairs = BTreeMap::from([organization.pair()]);
        loop {
            let node = self.records.get::<Node>(folder)?.ok_or(Error::NotFound)?;
            for (key, value) in self.own_pairs(folder, &node)? {
                pairs.entry(key).or_insert(value);
            }
            match node.kind {
                Kind::Directory { parent, .. } if !folder.is_top() => folder = parent,
                _ => break,
            }
        }
        checked(pairs)
    }

    /// A key context that a service gives: its organization by id, its pairs in order.
    pub(super) fn stated_context(&self, org: OrgNo, pairs: &BTreeMap<String, String>) -> Result<Context> {
        let long = |text: &str, max| text.chars().count() > max;
        if pairs.iter().any(|(key, value)| key.is_empty() || long(key, KEY_MAX) || long(value, VALUE_MAX)) {
            return Err(Error::Invalid("a key context's keys have 1 to 120 characters, its values at most 500"));
        }
        let (own, id) = self.organizations.find(org).ok_or(Error::NotFound)?.pair();
        let mut pairs = pairs.clone();
        if let Some(alias) = pairs.get_mut(OWN_PAIR_ALIAS) {
            alias.clone_from(&id);
        }
        pairs.insert(own, id);
        checked(pairs)
    }

    /// The context of an object that a service makes in a folder: what it states, and the pairs of the folders that it
    /// does not.
    pub(super) fn context_in(&self, folder: Ino, pairs: &BTreeMap<String, String>) -> Result<Context> {
        let mut all: BTreeMap<_, _> = self.context_below(folder)?.into_iter().collect();
        all.extend(self.stated_context(folder.organization(), pairs)?);
        checked(all)
    }

    /// The pairs that are set on a folder itself.
    pub(super) fn own_pairs(&self, folder: Ino, node: &Node) -> Result<Context> {
        let attributes = if node.attributes { self.attributes_of(folder)? } else { None };
        let pair = |(name, value): (&Vec<u8>, &ByteBuf)| {
            let key = name.strip_prefix(PAIR_PREFIX)?;
            Some((String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(value).into_owned()))
        };
        Ok(attributes.map_or_else(Vec::new, |a| a.0.iter().filter_map(pair).collect()))
    }

    /// What an object of this context needs before it is created; may ask the token.
    pub(super) fn birth_with(&self, org: OrgNo, context: Context, patience: Patience) -> Result<Birth> {
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        let alone = context.len() == 1;
        let key = if alone { None } else { Some(self.fresh_dek(&organization, &context, patience)?) };
        Ok(Birth { context, key })
    }

    /// Begins the transaction that makes an object in `folder`.
    pub(super) fn begin_birth(&self, caller: &Caller, folder: Ino) -> Result<(Tx<'_>, Option<Birth>)> {
        loop {
            let birth = self.birth_with(folder.organization(), self.context_below(folder)?, caller.patience)?;
            let tx = self.begin()?;
            // Asking the token took its time.
            if birth.key.is_none()
                || (birth.context == self.context_below(folder)?
                    && self.wraps_still(&tx, &birth, folder.organization())?)
            {
                return Ok((tx, Some(birth)));
            }
        }
    }

    pub(super) fn wraps_still(&self, tx: &Tx, birth: &Birth, org: OrgNo) -> Result<bool> {
        birth.key.as_ref().map_or(Ok(true), |dek| self.wraps_now(tx, org, &dek.wrapped, &birth.context))
    }

    /// Gives the new object's content its key, if it has to have one from the start.
    pub(super) fn bear(&self, tx: &mut Tx, birth: Birth, ino: Ino, node: &Node) -> Result<()> {
        let Some(dek) = birth.key else { return Ok(()) };
        let organization = self.organizations.find(ino.organization()).ok_or(Error::NotFound)?;
        let record = self.content_record(&organization, ino, &dek, birth.context);
        tx.put_new(ino, ContentRecord { owners: node.object().into_iter().collect(), ..record });
        Ok(())
    }

    /// The context of the object that a content was made for.
    pub(super) fn context_of(&self, tx: &Tx, organization: &Organization, content: Ino) -> Result<Context> {
        let record = tx.get::<ContentRecord>(content)?;
        Ok(record.map_or_else(|| organization.context(), |record| record.context.clone()))
    }

    /// Sees to it that a content is under `context`: its record in this transaction, or none if it needs none. `keyed`:
    /// it needs one in any case.
    pub(super) fn under_context(
        &self,
        tx: &Tx,
        rewraps: &Rewraps,
        content: Ino,
        context: &Context,
        keyed: bool,
    ) -> Result<Option<ContentRecord>> {
        let record = tx.get::<ContentRecord>(content)?;
        match record.as_deref() {
            None if context.len() == 1 && !keyed => Ok(None),
            Some(record) if record.context == *context => Ok(Some(record.clone())),
            other => {
                let ready = rewraps.find(content, other, context)?;
                if !self.wraps_now(tx, content.organization(), &ready.wrapped, context)? {
                    return Err(Error::OtherContext { content, context: context.clone() });
                }
                let owners = other.map_or_else(Vec::new, |record| record.owners.clone());
                Ok(Some(ContentRecord { owners, ..ready }))
            }
        }
    }

    /// Does something in a transaction that may find a content under another context than its object's: then the
    /// content is wrapped anew, and it is done again.
    pub(super) fn across_contexts<T>(&self, caller: &Caller, act: impl Fn(&Rewraps) -> Result<T>) -> Result<T> {
        let mut ready = Rewraps::default();
        loop {
            match act(&ready) {
                Err(Error::OtherContext { content, context }) => {
                    let rewrapped = self.rewrapped(caller, content, context)?;
                    ready.0.insert(content, rewrapped);
                }
                done => return done,
            }
        }
    }

    /// A content's record as it is, and under another context.
    fn rewrapped(
        &self,
        caller: &Caller,
        content: Ino,
        context: Context,
    ) -> Result<(Option<ContentRecord>, ContentRecord)> {
        if caller.patience == Patience::Never {
            return Err(Error::WouldWait);
        }
        let organization = self.organizations.find(content.organization()).ok_or(Error::NotFound)?;
        let Some(record) = self.records.get::<ContentRecord>(content)? else {
            let (_, made) = self.new_key(&organization, content, context, Patience::Wait)?;
            return Ok((None, made));
        };
        let keks = self.keks(&organization, &context, Patience::Wait)?;
        let wrapped = self
            .keyring
            .rewrap(organization.no.0, &record.wrapped, &record.context, &keks, &context)
            .map_err(|error| self.key_error(error, content))?;
        let before = (*record).clone();
        Ok((Some(before.clone()), ContentRecord { wrapped, context, ..before }))
    }

    /// `setfattr -n user.vault.context.KEY -v VALUE` on a folder or an organization.
    pub(super) fn set_pair(
        &self,
        caller: &Caller,
        folder: Ino,
        (key, value): (&str, &str),
        how: SetXattr,
    ) -> Result<()> {
        let sound = |text: &str| (1..=TEXT_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if !(sound(key) && sound(value)) {
            return Err(Error::Invalid("a pair has a key and a value of 1 to 255 bytes without control characters"));
        }
        self.change_pairs(caller, folder, key, |pairs| {
            how.check(pairs.contains_key(key))?;
            if !pairs.contains_key(key) && pairs.len() + 1 >= PAIRS_MAX {
                return Err(TOO_MANY);
            }
            pairs.insert(key.to_owned(), value.to_owned());
            Ok(())
        })
    }

    /// `setfattr -x user.vault.context.KEY`: objects that carry the pair keep it.
    pub(super) fn remove_pair(&self, caller: &Caller, folder: Ino, key: &str) -> Result<()> {
        self.change_pairs(caller, folder, key, |pairs| pairs.remove(key).map(drop).ok_or(Error::NoAttribute))
    }

    fn change_pairs(
        &self,
        caller: &Caller,
        folder: Ino,
        key: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<()>,
    ) -> Result<()> {
        if key == OWN_PAIR {
            return Err(Error::NotPermitted("an organization's own pair stands in every key context by itself"));
        }
        self.enter(folder, caller.patience)?;
        let mut tx = self.begin()?;
        let mut node = (*tx.need::<Node>(folder)?).clone();
        if !node.kind.is_directory() || node.grave.is_some() {
            return Err(Error::NotPermitted("an object's key context never changes"));
        }
        if caller.uid != 0 && caller.uid != node.uid {
            return Err(Error::NotPermitted("a key context is set by the folder's owner"));
        }
        let mut pairs: BTreeMap<String, String> = self.own_pairs(folder, &node)?.into_iter().collect();
        let before = pairs.len();
        change(&mut pairs)?;
        let mut attributes = self.attributes_in(&tx, folder, &node)?.map_or_else(Attributes::default, |a| (*a).clone());
        let name = [PAIR_PREFIX, key.as_bytes()].concat();
        match pairs.get(key) {
            Some(value) => attributes.0.insert(name, ByteBuf::from(value.as_bytes())),
            None => attributes.0.remove(&name),
        };
        note_attributes(&mut node, &attributes)?;
        if (before == 0) != pairs.is_empty() {
            self.count(&mut tx, folder.organization(), move |org| {
                let more = i64::from(before == 0) - i64::from(before > 0);
                org.context_folders = org.context_folders.saturating_add_signed(more);
            })?;
        }
        put_attributes(&mut tx, folder, node, attributes);
        self.finish(tx);
        Ok(())
    }
}

/// The pairs of a key context; the organization's own counts once, however it is spelt.
fn checked(pairs: BTreeMap<String, String>) -> Result<Context> {
    let others = pairs.keys().filter(|key| *key != OWN_PAIR && *key != OWN_PAIR_ALIAS).count();
    if others + 1 > PAIRS_MAX { Err(TOO_MANY) } else { Ok(pairs.into_iter().collect()) }
}
