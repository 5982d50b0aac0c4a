//! What stands in answers: the hosted object vault's shapes, with a few fields more.
//!
//! Shared by the server and the command line, so that `--json` prints what an API client sees.

use crate::vault::{ObjectInfo, OrganizationInfo, TombstoneInfo, VersionInfo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize, Debug)]
pub struct List<T> {
    pub data: Vec<T>,
    pub list_metadata: ListMetadata,
}

#[derive(Serialize, Deserialize, Debug, Default)]
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

#[derive(Serialize, Deserialize, Debug)]
pub struct Organization {
    pub object: String,
    pub id: String,
    pub name: String,
    pub allow_profiles_outside_organization: bool,
    pub domains: Vec<()>,
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
}

/// The body of `POST /organizations`.
#[derive(Serialize, Deserialize, Debug)]
pub struct NewOrganization {
    pub name: String,
    /// uid and gid of the directory; the caller's own without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// Permission bits of the directory; 0700 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Object {
    pub id: String,
    /// The path inside the organization, lossy where it is not UTF-8.
    pub name: String,
    pub metadata: Metadata,
}

#[derive(Serialize, Deserialize, Debug)]
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

#[derive(Serialize, Deserialize, Debug)]
pub struct Actor {
    pub id: String,
    pub name: String,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct ObjectSummary {
    pub id: String,
    pub name: String,
    pub updated_at: String,
    // From here on more than the hosted vault says.
    pub organization: String,
    pub version: u64,
    pub size: u64,
}

#[derive(Serialize, Deserialize, Debug)]
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
#[derive(Serialize, Deserialize, Debug)]
#[serde(untagged)]
pub enum Restored {
    Object(Object),
    Organization(Organization),
}

#[derive(Serialize, Deserialize, Debug)]
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
    pub mount_point: String,
}

impl From<OrganizationInfo> for Organization {
    fn from(info: OrganizationInfo) -> Self {
        Organization {
            object: "organization".into(),
            id: info.id,
            name: info.name,
            allow_profiles_outside_organization: false,
            domains: Vec::new(),
            metadata: BTreeMap::new(),
            external_id: None,
            updated_at: info.created_at.clone(),
            created_at: info.created_at,
            key_id: info.key_id,
            key_state: info.key_state,
            objects: info.objects,
            bytes: info.bytes,
            tombstones: info.tombstones,
        }
    }
}

impl Object {
    pub fn of(info: ObjectInfo, vault: &str) -> Self {
        let metadata = Metadata {
            id: info.id.clone(),
            environment_id: vault.into(),
            context: info.context,
            key_id: info.key_id,
            updated_at: info.updated_at,
            updated_by: Actor { id: info.updated_by.clone(), name: info.updated_by },
            version_id: info.version_id,
            organization: info.organization,
            version: info.version,
            versions: info.versions,
            size: info.size,
            cipher: info.cipher,
            created_at: info.created_at,
        };
        Object { id: info.id, name: info.path, metadata }
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

/// A tombstone is as the vault tells it: the hosted API has none.
pub type Tombstone = TombstoneInfo;
