//! Data keys: keys for encryption at the client, under the same KEKs as contents.
//!
//! The vault does not keep them, so no rotation can wrap them anew. Each pair of a key context has a key for them
//! instead, which stands wrapped in the record of the pair's KEK; the keys of all pairs of a context, joined, seal the
//! data key. What a client keeps is `"VLTDEK" ‖ 1 ‖ organization id ‖ data key id ‖ sealed(context, sealed key)`; the outer
//! seal is the organization's metadata key, so that not even a context is to be read.

use super::error::{Error, Result};
use super::ids::{Ino, OrgId};
use super::organization::Organization;
use super::records::Sealer;
use super::row::{Context, Kek, Pair};
use super::{Caller, OrganizationInfo, Vault};
use crate::crypto::{LockedKey, RecordKey, RecordPlace, context_digest, joint_key, random};
use crate::keys::Patience;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"VLTDEK\x01";
/// Stand where records have the number of their table: the outer seal, and the one around the key.
const OUTER: u8 = 0xFF;
const INNER: u8 = 0xFE;
const BROKEN: Error = Error::Invalid("these encrypted keys are not this vault's, or were changed");

/// A data key, open and in the form in which the client keeps it.
pub struct DataKey {
    /// Its id as a UUID.
    pub id: String,
    pub key: Arc<LockedKey>,
    pub encrypted: Vec<u8>,
    pub context: BTreeMap<String, String>,
    /// The KEKs of its context's pairs, with commas: what an object's `key_id` is.
    pub key_id: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    context: Context,
    #[serde(with = "serde_bytes")]
    sealed: Vec<u8>,
}

impl Vault {
    /// A new data key under a key context of the organization.
    pub fn create_data_key(
        &self,
        caller: &Caller,
        organization: &OrganizationInfo,
        context: &BTreeMap<String, String>,
    ) -> Result<DataKey> {
        let organization = self.entered(caller, &organization.id)?;
        let context = self.stated_context(organization.no, context)?;
        self.kept(&organization, Arc::new(LockedKey::generate()?), random(), context)
    }

    /// The organization that encrypted keys say they belong to; only opening them proves it.
    pub fn organization_of_data_key(&self, encrypted: &[u8]) -> Result<OrganizationInfo> {
        let (id, ..) = parts(encrypted)?;
        self.organization(&id.to_string()).map_err(|_| BROKEN)
    }

    /// Opens encrypted keys.
    pub fn open_data_key(&self, caller: &Caller, encrypted: &[u8]) -> Result<DataKey> {
        let (organization, id, sealed) = parts(encrypted)?;
        let organization = self.entered(caller, &organization.to_string()).map_err(|error| match error {
            Error::Absent(_) | Error::NotFound => BROKEN,
            other => other,
        })?;
        let sealer = self.records.sealer(organization.no)?;
        let opened = sealer.records.open(&place(OUTER, &sealer, &id), sealed).map_err(|_| BROKEN)?;
        let Kept { context, sealed } = postcard::from_bytes(&opened).map_err(|_| BROKEN)?;
        let sealing = self.sealing_key(&organization, &context, |pair| self.pair_key(&organization, pair))?;
        let opened = sealing.open(&place(INNER, &sealer, &id), &sealed).map_err(|_| BROKEN)?;
        let mut key = Zeroizing::new(<[u8; 32]>::try_from(&opened[..]).map_err(|_| BROKEN)?);
        let (key, key_id) = (Arc::new(LockedKey::take(&mut key)?), self.kek_names(&organization, &context)?);
        Ok(DataKey {
            id: uuid(&id),
            key,
            encrypted: encrypted.to_vec(),
            context: context.into_iter().collect(),
            key_id,
        })
    }

    /// The same data key, encrypted under another key context.
    pub fn rekey_data_key(
        &self,
        caller: &Caller,
        encrypted: &[u8],
        organization: &OrganizationInfo,
        context: &BTreeMap<String, String>,
    ) -> Result<DataKey> {
        let DataKey { key, .. } = self.open_data_key(caller, encrypted)?;
        let (_, id, _) = parts(encrypted)?;
        let organization = self.entered(caller, &organization.id)?;
        let context = self.stated_context(organization.no, context)?;
        self.kept(&organization, key, id, context)
    }

    fn entered(&self, caller: &Caller, which: &str) -> Result<Arc<Organization>> {
        let organization = self.living(self.number_of(which)?)?;
        self.enter(Ino::graveyard_of(organization.no), caller.patience)?;
        Ok(organization)
    }

    fn kept(
        &self,
        organization: &Organization,
        key: Arc<LockedKey>,
        id: [u8; 16],
        context: Context,
    ) -> Result<DataKey> {
        let sealer = self.records.sealer(organization.no)?;
        let sealing = self.sealing_key(organization, &context, |pair| self.make_pair_key(organization, pair))?;
        // What it needs to be opened is on the disk before the client has it.
        self.sync()?;
        let mut kept = Kept { context, sealed: Vec::new() };
        sealing.seal(&place(INNER, &sealer, &id), key.expose(), &mut kept.sealed);
        let mut encrypted = [MAGIC, &organization.id.bytes(), &id].concat();
        let plain = postcard::to_stdvec(&kept).expect("made of encodable types");
        sealer.records.seal(&place(OUTER, &sealer, &id), &plain, &mut encrypted);
        let key_id = self.kek_names(organization, &kept.context)?;
        Ok(DataKey { id: uuid(&id), key, encrypted, context: kept.context.into_iter().collect(), key_id })
    }

    fn kek_names(&self, organization: &Organization, context: &Context) -> Result<String> {
        let keks = self.keks(organization, context, Patience::Wait)?;
        Ok(keks.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }

    fn sealing_key(
        &self,
        organization: &Organization,
        context: &Context,
        key: impl Fn(&Pair) -> Result<Option<Arc<LockedKey>>>,
    ) -> Result<RecordKey> {
        let keys = context.iter().map(|pair| key(pair)?.ok_or(BROKEN)).collect::<Result<Vec<_>>>()?;
        debug_assert!(context.contains(&organization.pair()));
        Ok(RecordKey::new(joint_key(&keys, &context_digest(context))?))
    }

    /// A pair's key for data keys, if it has one.
    fn pair_key(&self, organization: &Organization, pair: &Pair) -> Result<Option<Arc<LockedKey>>> {
        let Some(kek) = self.records.get::<Kek>(self.kek_place(organization.no, pair)?)? else { return Ok(None) };
        if kek.versions.is_empty() {
            return Err(Error::Revoked);
        }
        let Some(wrapped) = &kek.data_keys else { return Ok(None) };
        let key = self.keyring.unwrap(organization.no.0, wrapped, std::slice::from_ref(pair), Patience::Wait);
        key.map(Some).map_err(|error| self.key_error(error, Ino::top_of(organization.no)))
    }

    /// The same, made if there is none.
    fn make_pair_key(&self, organization: &Organization, pair: &Pair) -> Result<Option<Arc<LockedKey>>> {
        let (place, context) = (self.kek_place(organization.no, pair)?, vec![pair.clone()]);
        loop {
            if let Some(key) = self.pair_key(organization, pair)? {
                return Ok(Some(key));
            }
            let made = self.fresh_dek(organization, &context, Patience::Wait)?;
            let mut tx = self.begin()?;
            let kek = tx.need::<Kek>(place)?;
            // Somebody else may have been faster, or the KEK rotated.
            if kek.data_keys.is_none() && self.wraps_now(&tx, organization.no, &made.wrapped, &context)? {
                tx.put(place, Kek { data_keys: Some(made.wrapped), ..(*kek).clone() });
                self.finish(tx);
                return Ok(Some(made.key));
            }
        }
    }
}

fn parts(encrypted: &[u8]) -> Result<(OrgId, [u8; 16], &[u8])> {
    let rest = encrypted.strip_prefix(MAGIC).ok_or(BROKEN)?;
    let (organization, rest) = rest.split_first_chunk::<16>().ok_or(BROKEN)?;
    let (id, sealed) = rest.split_first_chunk::<16>().ok_or(BROKEN)?;
    Ok((OrgId(u128::from_be_bytes(*organization)), *id, sealed))
}

fn place<'a>(table: u8, sealer: &'a Sealer, id: &'a [u8; 16]) -> RecordPlace<'a> {
    RecordPlace { table, organization: &sealer.id, key: id, version: 0 }
}

fn uuid(id: &[u8; 16]) -> String {
    let hex = super::records::hex(id);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
