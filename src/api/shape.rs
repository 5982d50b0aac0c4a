//! What stands in answers: the hosted object vault's shapes, with a few fields more.
//!
//! Shared by the server and the command line, so that `--json` prints what an API client sees.

use crate::vault::{self, ApiKeyId, ObjectInfo, OrganizationInfo, Permission, Scope, TombstoneInfo, VersionInfo};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct List<T> {
    pub data: Vec<T>,
    pub list_metadata: ListMetadata,
}

#[derive(Serialize, Deserialize, Debug, Default, ToSchema)]
pub struct ListMetadata {
    pub before: Option<String>,
    /// Where to go on: the `after` of the next request.
    pub after: Option<String>,
}

impl<T> List<T> {
    pub fn whole(data: impl IntoIterator<Item = impl Into<T>>) -> Self {
        List { data: data.into_iter().map(Into::into).collect(), list_metadata: ListMetadata::default() }
    }
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Organization {
    pub object: String,
    pub id: String,
    pub name: String,
    pub allow_profiles_outside_organization: bool,
    pub domains: Vec<Domain>,
    pub metadata: BTreeMap<String, String>,
    pub external_id: Option<String>,
    pub created_at: String,
    pub updated_at: String,
    // From here on more than the hosted vault says.
    pub key_id: String,
    pub key_state: String,
    pub objects: u64,
    /// Plaintext bytes of the current versions.
    pub bytes: u64,
    pub tombstones: u64,
    /// Seconds for which a version is kept after it was replaced; `null`: versions are kept by their number.
    pub keep_versions_for: Option<u64>,
    pub quota_bytes: Option<u64>,
    pub quota_objects: Option<u64>,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Domain {
    pub object: String,
    pub id: String,
    pub organization_id: String,
    pub domain: String,
    pub state: String,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct OrganizationList {
    pub object: String,
    pub data: Vec<Organization>,
    pub list_metadata: ListMetadata,
}

/// The body of `POST /organizations`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewOrganization {
    pub name: String,
    /// uid and gid of the directory; the caller's own without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>, min_items = 2, max_items = 2)]
    pub owner: Option<(u32, u32)>,
    /// Permission bits of the directory; 0700 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Where its keys live: `token`, `wrapped`, or the pkcs11: URI of a token of its own. As the vault's setting says without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<String>,
    /// Where the PIN of a token of its own is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_source: Option<String>,
    #[serde(flatten)]
    pub change: OrganizationChange,
}

/// The body of `POST /organizations/{organization}/move`: as in [`NewOrganization`].
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct KeyMove {
    /// `token`, `wrapped`, or the pkcs11: URI of a token of its own, which no API key may name.
    pub residency: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_source: Option<String>,
}

/// The body of `PUT /organizations/{organization}`: what is absent stays.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq, ToSchema)]
pub struct OrganizationChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub external_id: Option<Option<String>>,
    /// A value of `null` takes a pair away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, Option<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_data: Option<Vec<DomainData>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_profiles_outside_organization: Option<bool>,
    /// Seconds.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub keep_versions_for: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub quota_bytes: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub quota_objects: Option<Option<u64>>,
}

/// `null` is something else than nothing.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, ToSchema)]
pub struct DomainData {
    pub domain: String,
    #[serde(default)]
    pub state: String,
}

/// How a value stands in JSON.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
pub enum Encoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// The body of `POST /vault/v1/kv`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewObject {
    /// `organizationId` (or `organization_id`) names the organization by its id, external id or name.
    pub key_context: BTreeMap<String, String>,
    /// The path inside the organization.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    pub value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// The body of `PUT /vault/v1/kv/{object}`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NextValue {
    pub value: String,
    /// The version that must be current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_check: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// An object with its value.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Value {
    pub id: String,
    pub name: String,
    pub value: String,
    /// Absent for UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    pub metadata: Metadata,
}

/// A pair of a key context: the body of `POST /organizations/{organization}/revoke`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct KeyPair {
    pub key: String,
    pub value: String,
}

/// Where a vault moves: the body of `POST /keys/migrate`, which no API key may send.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewToken {
    /// A pkcs11: URI.
    pub token: String,
    pub pin_source: String,
}

/// Where a PIN is read: the body of `POST /keys/pin`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewPin {
    pub pin_source: String,
}

/// The body of `POST /vault/v1/keys/data-key`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewDataKey {
    pub context: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct DataKey {
    pub id: String,
    pub context: BTreeMap<String, String>,
    /// 32 bytes in base64.
    pub data_key: String,
    /// The same key encrypted, in base64.
    pub encrypted_keys: String,
}

/// The body of `POST /vault/v1/keys/decrypt`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct OpenDataKey {
    pub keys: String,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct OpenedDataKey {
    pub id: String,
    pub data_key: String,
}

/// The body of `POST /vault/v1/keys/rekey`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Rekey {
    pub encrypted_keys: String,
    pub context: BTreeMap<String, String>,
}

/// Something that happened; `data` depends on `event`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Event {
    pub object: String,
    pub id: String,
    pub event: String,
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    pub created_at: String,
    #[schema(value_type = Object)]
    pub context: serde_json::Value,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct EventList {
    pub object: String,
    pub data: Vec<Event>,
    pub list_metadata: ListMetadata,
}

/// The body of `POST /api_keys`.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct NewApiKey {
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// By id, name or external id; the whole vault without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1)]
    pub organizations: Option<Vec<String>>,
    #[schema(value_type = String, example = "write")]
    pub permission: Permission,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct ApiKey {
    pub id: String,
    pub name: String,
    /// The key itself: only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Ids; `null` is the whole vault.
    pub organizations: Option<Vec<String>>,
    #[schema(value_type = String, example = "write")]
    pub permission: Permission,
    pub created_at: String,
    pub created_by: String,
}

impl ApiKey {
    pub fn of(id: ApiKeyId, key: &vault::ApiKey, value: Option<String>) -> Self {
        let organizations = match &key.scope {
            Scope::Vault => None,
            Scope::Organizations(some) => Some(some.iter().map(ToString::to_string).collect()),
        };
        ApiKey {
            id: id.to_string(),
            name: key.name.clone(),
            value,
            organizations,
            permission: key.permission,
            created_at: key.created.rfc3339(),
            created_by: key.created_by.info().id,
        }
    }
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct VaultObject {
    pub id: String,
    /// The path inside the organization, lossy where it is not UTF-8.
    pub name: String,
    pub metadata: Metadata,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Metadata {
    pub id: String,
    /// The vault's id.
    pub environment_id: String,
    pub context: BTreeMap<String, String>,
    pub key_id: String,
    pub updated_at: String,
    pub updated_by: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    // From here on more than the hosted vault says.
    pub organization: String,
    pub version: u64,
    /// Versions kept, the current one among them.
    pub versions: u64,
    pub size: u64,
    pub cipher: String,
    pub created_at: String,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Actor {
    pub id: String,
    pub name: String,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct ObjectSummary {
    pub id: String,
    pub name: String,
    pub updated_at: String,
    // From here on more than the hosted vault says.
    pub organization: String,
    pub version: u64,
    pub size: u64,
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Version {
    pub id: String,
    pub created_at: String,
    pub current_version: bool,
    /// The version's id in quotes: a version never changes.
    pub etag: String,
    /// Plaintext bytes.
    pub size: u64,
    // From here on more than the hosted vault says.
    pub version: u64,
    pub created_by: String,
}

/// What a restored tombstone is again.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
#[serde(untagged)]
pub enum Restored {
    Object(VaultObject),
    Organization(Organization),
}

#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Deleted {
    pub success: bool,
    pub name: String,
}

/// One line of what `POST /fsck` answers; the last one is `Done` or `Failed`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum FsckLine {
    /// Bytes.
    Progress {
        done: u64,
        total: u64,
    },
    Finding(Box<crate::vault::Finding>),
    Lost(crate::vault::Lost),
    Failed(super::Problem),
    Done,
}

/// The answer of `GET /status`: the vault's state, and whether a daemon gave it.
#[derive(Serialize, Deserialize, Debug)]
pub struct Status {
    #[serde(flatten)]
    pub vault: crate::vault::Status,
    /// None: the command opened the state directory itself.
    pub daemon: Option<Daemon>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Daemon {
    pub pid: u32,
    pub version: String,
    /// Absent where the vault is served without a mount.
    pub mount_point: Option<String>,
    /// Where it listens on TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listens: Option<String>,
}

impl Domain {
    fn of(organization: &str, domain: &str, state: &str) -> Self {
        Domain {
            object: "organization_domain".into(),
            id: format!("org_domain_{domain}"),
            organization_id: organization.into(),
            domain: domain.into(),
            state: state.into(),
        }
    }
}

impl From<OrganizationInfo> for Organization {
    fn from(info: OrganizationInfo) -> Self {
        Organization {
            object: "organization".into(),
            name: info.name,
            allow_profiles_outside_organization: info.allow_profiles_outside_organization,
            domains: info.domains.iter().map(|(domain, state)| Domain::of(&info.id, domain, state)).collect(),
            id: info.id,
            metadata: info.metadata,
            external_id: info.external_id,
            updated_at: info.updated_at,
            keep_versions_for: info.keep_versions_for,
            quota_bytes: info.quota_bytes,
            quota_objects: info.quota_objects,
            created_at: info.created_at,
            key_id: info.key_id,
            key_state: info.key_state,
            objects: info.objects,
            bytes: info.bytes,
            tombstones: info.tombstones,
        }
    }
}

impl VaultObject {
    pub fn of(info: ObjectInfo, vault: &str) -> Self {
        let metadata = Metadata {
            id: info.id.clone(),
            environment_id: vault.into(),
            context: info.context,
            key_id: info.key_id,
            updated_at: info.updated_at,
            updated_by: Actor { id: info.updated_by.id, name: info.updated_by.name },
            version_id: info.version_id,
            organization: info.organization,
            version: info.version,
            versions: info.versions,
            size: info.size,
            cipher: info.cipher,
            created_at: info.created_at,
        };
        VaultObject { id: info.id, name: info.path, metadata }
    }
}

impl From<ObjectInfo> for ObjectSummary {
    fn from(info: ObjectInfo) -> Self {
        ObjectSummary {
            id: info.id,
            name: info.path,
            updated_at: info.updated_at,
            organization: info.organization,
            version: info.version,
            size: info.size,
        }
    }
}

impl From<VersionInfo> for Version {
    fn from(info: VersionInfo) -> Self {
        Version {
            etag: format!("\"{}\"", info.id),
            id: info.id,
            created_at: info.created_at,
            current_version: info.current,
            size: info.size,
            version: info.version,
            created_by: info.created_by,
        }
    }
}

/// A deleted object, or a deleted organization.
#[derive(Serialize, Deserialize, Debug, ToSchema)]
pub struct Tombstone {
    /// The deleted object's or organization's.
    pub id: String,
    pub organization: String,
    pub entry: String,
    pub original_path: String,
    pub size: u64,
    pub deleted_at: String,
    pub deleted_by: String,
    pub purge_after: String,
}

impl From<TombstoneInfo> for Tombstone {
    fn from(info: TombstoneInfo) -> Self {
        Tombstone {
            id: info.id,
            organization: info.organization,
            entry: info.entry,
            original_path: info.original_path,
            size: info.size,
            deleted_at: info.deleted_at,
            deleted_by: info.deleted_by,
            purge_after: info.purge_after,
        }
    }
}
