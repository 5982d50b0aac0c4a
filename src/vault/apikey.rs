//! API keys: who may use the vault over the network, and for what.
//!
//! A key is shown once, when it is made: `sk_`, the ULID of its id, and 256 random bits in hex. The vault keeps
//! the SHA-256 of those bits in a sealed row; they are random enough to need no slower hash.

use super::error::{Error, Result};
use super::ids::{ApiKeyId, OrgId, OrgNo};
use super::row::{Author, Record, RowAt};
use super::time::Time;
use super::{AuditEvent, Caller, Vault};
use crate::crypto;
use crate::store::{Key, Table};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// The first letters of every key.
const PREFIX: &str = "sk_";
const ULID: usize = 26;
const NAME_MAX: usize = 200;

/// What a key allows; each includes the ones before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// List, describe and read objects; decrypt data keys.
    Read,
    /// Create, update, delete and restore objects; make data keys.
    Write,
    /// Organizations, purges, events, metrics, API keys.
    Admin,
}

/// Which organizations a key is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Scope {
    Vault,
    Organizations(Vec<OrgId>),
}

impl Scope {
    pub fn holds(&self, organization: OrgId) -> bool {
        match self {
            Scope::Vault => true,
            Scope::Organizations(some) => some.contains(&organization),
        }
    }
}

/// What is kept of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiKey {
    pub name: String,
    pub created: Time,
    pub created_by: Author,
    pub scope: Scope,
    pub permission: Permission,
    hash: [u8; 32],
}

impl Record for ApiKey {
    type Id = ApiKeyId;
    const TABLE: Table = Table::ApiKey;
    fn at(id: ApiKeyId) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&id.0.to_be_bytes()])
    }
}

/// The key that asks, as versions and the audit log name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyIdentity {
    pub id: ApiKeyId,
    pub name: String,
}

/// The keys of a vault, in memory: each request asks for one.
#[derive(Default)]
pub struct ApiKeys(RwLock<HashMap<ApiKeyId, Arc<ApiKey>>>);

impl ApiKeys {
    pub fn new(rows: impl IntoIterator<Item = (Key, Arc<ApiKey>)>) -> Self {
        let id = |key: &Key| ApiKeyId(u128::from_be_bytes((**key).try_into().expect("keys of API keys are ids")));
        ApiKeys(RwLock::new(rows.into_iter().map(|(key, row)| (id(&key), row)).collect()))
    }
}

impl Vault {
    /// Makes a key; its secret is returned and never to be had again. Durable when it returns.
    pub fn create_api_key(
        &self,
        caller: &Caller,
        name: &str,
        scope: Scope,
        permission: Permission,
    ) -> Result<(ApiKeyId, Arc<ApiKey>, String)> {
        if name.is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
            return Err(Error::Invalid("an API key's name has 1 to 200 characters and no control character"));
        }
        let (id, bits) = (ApiKeyId::fresh(), zeroize::Zeroizing::new(crypto::random::<32>()));
        let secret = format!("{PREFIX}{}{}", &id.to_string()["key_".len()..], super::records::hex(&*bits));
        let key = ApiKey {
            name: name.to_owned(),
            created: Time::now(),
            created_by: caller.author(),
            scope,
            permission,
            hash: crypto::digest(secret.as_bytes()),
        };
        let mut tx = self.begin()?;
        tx.put_new(id, key.clone());
        self.finish(tx);
        self.sync()?;
        let key = Arc::new(key);
        self.api_keys.0.write().insert(id, key.clone());
        self.audit(AuditEvent { detail: Some(id.to_string()), ..AuditEvent::by(caller, "api_key.created") });
        Ok((id, key, secret))
    }

    /// All keys, oldest first.
    pub fn api_keys(&self) -> Vec<(ApiKeyId, Arc<ApiKey>)> {
        let mut all: Vec<_> = self.api_keys.0.read().iter().map(|(id, key)| (*id, key.clone())).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }

    /// Ends a key: the next request with it is refused. Durable when it returns.
    pub fn revoke_api_key(&self, caller: &Caller, id: ApiKeyId) -> Result<Arc<ApiKey>> {
        let key = self.api_keys.0.read().get(&id).cloned().ok_or(Error::Absent("no such API key"))?;
        // First of all what may fail, so that a key that could not be ended can be ended again.
        let mut tx = self.begin()?;
        tx.delete::<ApiKey>(id);
        self.finish(tx);
        self.api_keys.0.write().remove(&id);
        self.sync()?;
        self.audit(AuditEvent { detail: Some(id.to_string()), ..AuditEvent::by(caller, "api_key.revoked") });
        Ok(key)
    }

    /// The key with this secret. The time that it takes tells nothing about the secret.
    pub fn api_key(&self, secret: &str) -> Option<(ApiKeyId, Arc<ApiKey>)> {
        let ulid = secret.strip_prefix(PREFIX).and_then(|rest| rest.get(..ULID)).unwrap_or_default();
        let id: Option<ApiKeyId> = format!("key_{ulid}").parse().ok();
        let found = id.and_then(|id| Some((id, self.api_keys.0.read().get(&id).cloned()?)));
        let expected = found.as_ref().map_or([0; 32], |(_, key)| key.hash);
        let same = crypto::same_tag(&crypto::digest(secret.as_bytes()), &expected);
        found.filter(|_| same)
    }
}
