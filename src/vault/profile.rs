//! What is kept of an organization for the API beside its record: external id, metadata, domains, limits.

use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::row::{Record, RowAt};
use super::time::Time;
use super::{AuditEvent, Caller, OrganizationInfo, Vault};
use crate::store::{Key, Table};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

const TEXT_MAX: usize = 500;
const METADATA_MAX: usize = 50;

/// Sealed by the vault itself, as the organization's record is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Profile {
    pub external_id: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Names of domains and their states; the vault verifies none.
    pub domains: Vec<(String, String)>,
    pub allow_profiles_outside_organization: bool,
    pub updated: Time,
    /// Versions are kept for this long after they were replaced, instead of by their number.
    pub keep_versions_for: Option<Duration>,
    pub quota_bytes: Option<u64>,
    pub quota_objects: Option<u64>,
}

impl Record for Profile {
    type Id = OrgNo;
    const TABLE: Table = Table::Profile;
    fn at(org: OrgNo) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&org.0.to_be_bytes()])
    }
}

/// The profiles of all organizations that have one, in memory.
#[derive(Default)]
pub struct Profiles(RwLock<HashMap<OrgNo, Arc<Profile>>>);

impl Profiles {
    pub fn new(rows: impl IntoIterator<Item = (Key, Arc<Profile>)>) -> Self {
        let number = |key: &Key| OrgNo(u32::from_be_bytes((**key).try_into().expect("keys of profiles are numbers")));
        Profiles(RwLock::new(rows.into_iter().map(|(key, row)| (number(&key), row)).collect()))
    }

    pub fn get(&self, org: OrgNo) -> Option<Arc<Profile>> {
        self.0.read().get(&org).cloned()
    }

    /// The organization with this external id.
    pub fn with_external_id(&self, id: &str) -> Option<OrgNo> {
        let found = |(_, profile): &(&OrgNo, &Arc<Profile>)| profile.external_id.as_deref() == Some(id);
        self.0.read().iter().find(found).map(|(org, _)| *org)
    }

    pub fn forget(&self, org: OrgNo) {
        self.0.write().remove(&org);
    }
}

impl Vault {
    /// Changes an organization's name and what else is known of it; durable when it returns.
    pub fn update_organization(
        &self,
        caller: &Caller,
        which: &str,
        name: Option<&str>,
        change: impl FnOnce(&mut Profile),
    ) -> Result<OrganizationInfo> {
        let organization = self.living(self.number_of(which)?)?;
        let mut profile = self.profiles.get(organization.no).map_or_else(Profile::default, |p| (*p).clone());
        change(&mut profile);
        profile.updated = Time::now();
        check(&profile)?;
        if let Some(id) = &profile.external_id
            && self.profiles.with_external_id(id).is_some_and(|other| other != organization.no)
        {
            return Err(Error::Exists);
        }
        let old = organization.name();
        if let Some(name) = name.filter(|name| *name != old) {
            self.relabel_organization(caller, old.as_bytes(), name.as_bytes())?;
            self.name_changed(Ino::ROOT, old.as_bytes());
            self.name_changed(Ino::ROOT, name.as_bytes());
        }
        let mut tx = self.begin()?;
        tx.put(organization.no, profile.clone());
        self.finish(tx);
        self.profiles.0.write().insert(organization.no, Arc::new(profile));
        self.sync()?;
        self.audit(AuditEvent {
            organization: Some(organization.id.to_string()),
            ..AuditEvent::by(caller, "organization.updated")
        });
        self.organization(&organization.id.to_string())
    }

    /// Refuses what the organization's quotas have no room for.
    pub(super) fn check_quota(&self, org: OrgNo, objects: u64, bytes: u64) -> Result<()> {
        let Some(profile) = self.profiles.get(org) else { return Ok(()) };
        if profile.quota_objects.is_none() && profile.quota_bytes.is_none() {
            return Ok(());
        }
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        let record = organization.record.lock();
        let over = |quota: Option<u64>, used: u128, more: u64| {
            more > 0 && quota.is_some_and(|quota| used + u128::from(more) > quota.into())
        };
        if over(profile.quota_objects, record.objects.into(), objects) {
            return Err(Error::Quota("the organization's quota of objects is used up"));
        }
        if over(profile.quota_bytes, record.bytes, bytes) {
            return Err(Error::Quota("the organization's quota of bytes is used up"));
        }
        Ok(())
    }
}

fn check(profile: &Profile) -> Result<()> {
    let long = |text: &str| text.chars().count() > TEXT_MAX;
    if profile.external_id.as_ref().is_some_and(|id| id.is_empty() || long(id)) {
        return Err(Error::Invalid("an external id has 1 to 500 characters"));
    }
    let pairs = profile.metadata.iter().chain(profile.domains.iter().map(|(name, state)| (name, state)));
    if profile.metadata.len() + profile.domains.len() > METADATA_MAX
        || pairs.into_iter().any(|(k, v)| k.is_empty() || long(k) || long(v))
    {
        return Err(Error::Invalid("metadata and domains are at most 50 pairs of texts of up to 500 characters"));
    }
    Ok(())
}
