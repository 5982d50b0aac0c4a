//! Data keys: DEKs for encryption at the client, from the same hierarchy as those of contents.
//!
//! What a client keeps is `"VLTDEK" ‖ 1 ‖ organization id ‖ DEK id ‖ sealed(context, wrapped key)`. It is sealed under the
//! organization's metadata key, so that no wrapped key of a content can be brought here to be opened.

use super::error::{Error, Result};
use super::ids::{Ino, OrgId, OrgNo};
use super::organization::Organization;
use super::records::Sealer;
use super::row::Context;
use super::{Caller, OrganizationInfo, Vault};
use crate::crypto::{LockedKey, RecordPlace};
use crate::keys::{FreshDek, KeyError, WrappedDek};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const MAGIC: &[u8] = b"VLTDEK\x01";
/// Stands where records have the number of their table.
const PLACE: u8 = 0xFF;
const BROKEN: Error = Error::Invalid("these encrypted keys are not this vault's, or were changed");

/// A data key, open and in the form in which the client keeps it.
pub struct DataKey {
    /// The DEK's id as a UUID.
    pub id: String,
    pub key: Arc<LockedKey>,
    pub encrypted: Vec<u8>,
    pub context: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    context: Context,
    wrapped: WrappedDek,
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
        let context = self.checked_context(organization.no, context)?;
        let FreshDek { key, wrapped } =
            self.keyring.fresh(organization.no.0, organization.kek(), &context, caller.patience)?;
        self.kept(&organization, key, Kept { context, wrapped })
    }

    /// The organization that encrypted keys say they belong to; only opening them proves it.
    pub fn organization_of_data_key(&self, encrypted: &[u8]) -> Result<OrganizationInfo> {
        let (id, ..) = parts(encrypted)?;
        self.organization(&id.to_string()).map_err(|_| BROKEN)
    }

    /// Opens encrypted keys.
    pub fn open_data_key(&self, caller: &Caller, encrypted: &[u8]) -> Result<DataKey> {
        let (id, dek_id, sealed) = parts(encrypted)?;
        let organization = self.entered(caller, &id.to_string()).map_err(|error| match error {
            Error::Absent(_) | Error::NotFound => BROKEN,
            other => other,
        })?;
        let sealer = self.records.sealer(organization.no)?;
        let opened = sealer.records.open(&place(&sealer, &dek_id), sealed).map_err(|_| BROKEN)?;
        let kept: Kept = postcard::from_bytes(&opened).map_err(|_| BROKEN)?;
        let key = self.keyring.unwrap(organization.no.0, &kept.wrapped, &kept.context, caller.patience);
        let key = key.map_err(|error| match error {
            KeyError::Authentication => BROKEN,
            other => other.into(),
        })?;
        let context = kept.context.into_iter().collect();
        Ok(DataKey { id: uuid(&dek_id), key, encrypted: encrypted.to_vec(), context })
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
        let (_, dek_id, _) = parts(encrypted)?;
        let organization = self.entered(caller, &organization.id)?;
        let context = self.checked_context(organization.no, context)?;
        let wrapped = self.keyring.rewrap(organization.kek(), &context, dek_id, key.clone())?;
        self.kept(&organization, key, Kept { context, wrapped })
    }

    fn entered(&self, caller: &Caller, which: &str) -> Result<Arc<Organization>> {
        let organization = self.living(self.number_of(which)?)?;
        self.enter(Ino::graveyard_of(organization.no), caller.patience)?;
        Ok(organization)
    }

    fn kept(&self, organization: &Organization, key: Arc<LockedKey>, kept: Kept) -> Result<DataKey> {
        debug_assert_ne!(organization.no, OrgNo::VAULT);
        let dek_id = kept.wrapped.dek_id;
        let sealer = self.records.sealer(organization.no)?;
        let mut encrypted = [MAGIC, &organization.id.bytes(), &dek_id].concat();
        let plain = postcard::to_stdvec(&kept).expect("made of encodable types");
        sealer.records.seal(&place(&sealer, &dek_id), &plain, &mut encrypted);
        Ok(DataKey { id: uuid(&dek_id), key, encrypted, context: kept.context.into_iter().collect() })
    }
}

fn parts(encrypted: &[u8]) -> Result<(OrgId, [u8; 16], &[u8])> {
    let rest = encrypted.strip_prefix(MAGIC).ok_or(BROKEN)?;
    let (organization, rest) = rest.split_first_chunk::<16>().ok_or(BROKEN)?;
    let (dek_id, sealed) = rest.split_first_chunk::<16>().ok_or(BROKEN)?;
    Ok((OrgId(u128::from_be_bytes(*organization)), *dek_id, sealed))
}

fn place<'a>(sealer: &'a Sealer, dek_id: &'a [u8; 16]) -> RecordPlace<'a> {
    RecordPlace { table: PLACE, organization: &sealer.id, key: dek_id, version: 0 }
}

fn uuid(id: &[u8; 16]) -> String {
    let hex = super::records::hex(id);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
