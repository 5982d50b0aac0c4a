//! What operations take and give: shapes shared by the mount, the API and the commands.

use super::apikey::KeyIdentity;
use super::error::{Error, Result};
use super::ids::Ino;
use super::row::{Author, Kind, Node};
use super::time::Time;
use crate::keys::Patience;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who asks, and whether the calling thread may wait for the token or the disk.
#[derive(Clone, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub umask: u32,
    /// Asks for the supplementary groups of a caller by its pid: few operations have to know them.
    pub groups: fn(u32) -> Vec<u32>,
    pub patience: Patience,
    /// The kernel asks: it knows the inodes whose names it removes, and says when it has forgotten them.
    pub kernel: bool,
    /// The API key that asks, if it is one.
    pub key: Option<Arc<KeyIdentity>>,
}

impl Caller {
    /// The daemon itself.
    pub fn daemon() -> Self {
        Caller {
            uid: 0,
            gid: 0,
            pid: std::process::id(),
            umask: 0o022,
            groups: |_| Vec::new(),
            patience: Patience::Wait,
            kernel: false,
            key: None,
        }
    }

    /// A file's owner, where the kernel does not say who closed it last.
    pub(super) fn owner(node: &Node) -> Self {
        Caller {
            uid: node.uid,
            gid: node.gid,
            pid: 0,
            umask: 0,
            groups: |_| Vec::new(),
            patience: Patience::Wait,
            kernel: false,
            key: None,
        }
    }

    /// Whether a file of this group keeps its set-group-ID bit when this caller changes what it allows.
    pub(super) fn keeps_set_gid(&self, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid || (self.groups)(self.pid).contains(&gid)
    }

    /// Whether what only a file's owner may do is this caller's to do.
    pub(super) fn owns(&self, node: &Node) -> bool {
        self.uid == 0 || self.uid == node.uid
    }

    /// Who owns what this caller makes in a folder. An API key is no user of the machine: the folder's owner does.
    pub(super) fn owner_in(&self, folder: &Node) -> (u32, u32) {
        match self.key {
            Some(_) => (folder.uid, folder.gid),
            None => (self.uid, self.gid),
        }
    }

    /// `uid:1000`, or an API key's id.
    pub fn actor(&self) -> String {
        self.author().info().id
    }

    pub(super) fn author(&self) -> Author {
        match &self.key {
            Some(key) => Author::Key { id: key.id, name: key.name.clone() },
            None => Author::Uid(self.uid),
        }
    }
}

/// The attributes of an inode, as `stat` gives them.
#[derive(Clone, Debug)]
pub struct Attr {
    pub ino: Ino,
    /// `st_mode`, type bits included.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    /// Bytes for `st_blocks`.
    pub stored: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub born: Time,
}

impl Attr {
    pub(super) fn of(ino: Ino, node: &Node) -> Self {
        let rdev = match node.kind {
            Kind::CharDevice(device) | Kind::BlockDevice(device) => device,
            _ => 0,
        };
        Attr {
            ino,
            mode: node.kind.mode_bits() | node.mode,
            links: node.links,
            uid: node.uid,
            gid: node.gid,
            rdev,
            size: node.size,
            stored: node.stored,
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
            born: node.born,
        }
    }
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
    pub ctime: Option<Time>,
    /// The open file, for `ftruncate`.
    pub handle: Option<Handle>,
    /// The caller writes to the file, with data that the kernel brings later and not as this caller.
    pub written: bool,
}

impl SetAttr {
    /// What the kernel makes of a chown to the owner and the group that there are; but also, just before a write, of that
    /// the write takes set-id bits.
    pub(super) fn changes_nothing(&self) -> bool {
        let times = self.atime.is_some() || self.mtime.is_some();
        !times && self.mode.is_none() && self.uid.is_none() && self.gid.is_none() && self.size.is_none()
    }
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    File,
    Directory,
    Symlink(&'a [u8]),
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
}

/// `renameat2(2)`'s flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
    /// As `Replace`, leaving at the old name the device 0:0 by which overlay file systems know that it is gone.
    Whiteout,
    WhiteoutNoReplace,
}

impl RenameMode {
    pub(super) fn leaves_whiteout(self) -> bool {
        matches!(self, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
}

/// One open of one file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

impl Handle {
    const OF_VERSION: u64 = 1 << 63;

    /// One open of one version.
    pub(super) fn of_version(number: u64) -> Self {
        Handle(Self::OF_VERSION | number)
    }

    pub(super) fn is_of_version(self) -> bool {
        self.0 & Self::OF_VERSION != 0
    }
}

/// `fallocate(2)`'s modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    Extend,
    KeepSize,
    PunchHole,
    ZeroRange,
    ZeroRangeKeepSize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    Data,
    Hole,
}

/// `setxattr(2)`'s flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetXattr {
    Any,
    Create,
    Replace,
    /// Both at once, which nothing satisfies.
    CreateAndReplace,
}

impl SetXattr {
    /// Refuses to set an attribute that is there, or is not.
    pub(super) fn check(self, known: bool) -> Result<()> {
        match (self, known) {
            (SetXattr::Create | SetXattr::CreateAndReplace, true) => Err(Error::Exists),
            (SetXattr::Replace | SetXattr::CreateAndReplace, false) => Err(Error::NoAttribute),
            _ => Ok(()),
        }
    }
}

/// A name in a directory.
pub struct DirEntry {
    pub ino: Ino,
    /// `st_mode` type bits.
    pub kind: u32,
    pub name: Vec<u8>,
    /// Where to go on after this entry; above 2.
    pub cookie: u64,
}

/// `statvfs(2)` of the state directory.
pub struct FsSpace {
    pub block: u32,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// What changed behind the kernel's back: by a command, the API or the vault itself.
#[derive(Clone, Debug)]
pub enum Changed {
    Entry {
        parent: Ino,
        name: Vec<u8>,
    },
    Inode {
        ino: Ino,
        /// Cached pages too.
        data: bool,
    },
    /// Nothing: to be answered once the kernel has been told of all before.
    Told(std::sync::mpsc::Sender<()>),
}

/// How to open a vault.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Instead of the URI and the PIN source in the header.
    pub token: Option<String>,
    pub pin_source: Option<String>,
    /// Who owns `/vault`.
    pub owner_uid: u32,
    pub owner_gid: u32,
    /// Whether `.tombstones` and `.versions` are listed.
    pub show_hidden: bool,
    /// Settings by name (`settings.rs`).
    pub settings: Vec<(String, String)>,
    pub audit: AuditHook,
}

/// Who is told of audit events; nobody by default.
#[derive(Clone, Default)]
pub struct AuditHook(Option<Arc<Listener>>);

type Listener = dyn Fn(&AuditEvent) + Send + Sync;

impl AuditHook {
    pub fn new(hook: impl Fn(&AuditEvent) + Send + Sync + 'static) -> Self {
        AuditHook(Some(Arc::new(hook)))
    }

    pub(super) fn tell(&self, event: &AuditEvent) {
        if let Some(hook) = &self.0 {
            hook(event);
        }
    }
}

impl std::fmt::Debug for AuditHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditHook(..)")
    }
}

/// One line of the audit log; never a value, names only where configured.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub event: &'static str,
    pub caller: Option<Caller>,
    pub organization: Option<String>,
    pub object: Option<String>,
    pub version: Option<String>,
    pub detail: Option<String>,
}

impl AuditEvent {
    pub fn new(event: &'static str) -> Self {
        AuditEvent { event, caller: None, organization: None, object: None, version: None, detail: None }
    }

    pub fn by(caller: &Caller, event: &'static str) -> Self {
        AuditEvent { caller: Some(caller.clone()), ..Self::new(event) }
    }
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Status {
    pub vault: String,
    pub format: u32,
    pub state_directory: String,
    pub token: TokenInfo,
    /// Tokens of organizations' own.
    #[serde(default)]
    pub own_tokens: Vec<OwnTokenInfo>,
    /// While the vault moves to another token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationInfo>,
    pub organizations: u64,
    pub objects: u64,
    pub bytes: u64,
    pub tombstones: u64,
    /// Answered and not stored yet.
    pub pending_bytes: u64,
    /// `ok`, or why nothing is written any more.
    pub writing: String,
    pub records: RecordsInfo,
}

/// What the records have cost since the vault was opened.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct RecordsInfo {
    /// Rows got, scanned, put and deleted.
    pub statements: u64,
    pub commits: u64,
    /// Syncs of SQLite's files.
    pub syncs: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct TokenInfo {
    pub uri: String,
    pub label: String,
    pub state: String,
    /// The suite of the KEKs that are made.
    pub suite: Option<u8>,
    pub calls: u64,
    /// PINs presented.
    pub logins: u64,
    /// Times the module was started over because the token did not serve.
    pub recoveries: u64,
    pub cached_keys: u64,
    pub last_error: Option<String>,
}

/// A token that organizations brought.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct OwnTokenInfo {
    pub uri: String,
    /// As the vault's token's; `not asked` when nobody needed it since the vault was opened.
    pub state: String,
    pub last_error: Option<String>,
    /// Whose KEKs it holds.
    pub organizations: Vec<TokenOwner>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct TokenOwner {
    pub id: String,
    pub name: String,
}

/// The vault's move to another token.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct MigrationInfo {
    /// The tokens' URIs.
    pub from: String,
    pub to: String,
    /// `moving`: both are needed. `clearing`: the vault is on the new one, and old keys are destroyed.
    pub stage: String,
    /// Contents looked at, of about so many.
    pub done: u64,
    pub total: u64,
    /// Since it was begun, or gone on with by this process.
    pub milliseconds: u64,
    pub waits: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct OrganizationInfo {
    pub id: String,
    pub name: String,
    pub created_at: String,
    pub updated_at: String,
    pub key_id: String,
    pub key_state: String,
    pub objects: u64,
    pub bytes: u64,
    pub tombstones: u64,
    pub external_id: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Names and states.
    pub domains: Vec<(String, String)>,
    pub allow_profiles_outside_organization: bool,
    /// Seconds.
    pub keep_versions_for: Option<u64>,
    pub quota_bytes: Option<u64>,
    pub quota_objects: Option<u64>,
}

/// One version of a KEK.
#[derive(Serialize, Deserialize, Clone, Debug, utoipa::ToSchema)]
pub struct KekInfo {
    pub key_id: String,
    /// Name and id; empty for the vault's own.
    pub organization: String,
    pub organization_id: String,
    /// `KEY=VALUE`
    pub pair: String,
    /// `current`, `old` (while a rotation lasts) or `revoked`.
    pub state: String,
    pub residency: String,
    pub made_at: Option<String>,
}

/// A rotation under way.
#[derive(Serialize, Deserialize, Clone, Debug, utoipa::ToSchema)]
pub struct RotationInfo {
    pub organization: String,
    pub organization_id: String,
    /// Contents looked at, of about so many.
    pub done: u64,
    pub total: u64,
    /// Since it was begun, or gone on with by this process.
    pub milliseconds: u64,
    /// Why it waits.
    pub error: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct ObjectInfo {
    pub id: String,
    /// The organization's name.
    pub organization: String,
    pub organization_id: String,
    /// Inside the organization; lossy where it is not UTF-8.
    pub path: String,
    pub size: u64,
    /// The current version's ordinal; 0 before the first.
    pub version: u64,
    pub version_id: Option<String>,
    /// Versions kept.
    pub versions: u64,
    pub context: BTreeMap<String, String>,
    pub key_id: String,
    pub cipher: String,
    pub created_at: String,
    pub updated_at: String,
    pub updated_by: AuthorInfo,
}

/// Who did something: `uid:1000` for both, or an API key's id and name.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct AuthorInfo {
    pub id: String,
    pub name: String,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct VersionInfo {
    pub id: String,
    /// The ordinal.
    pub version: u64,
    pub size: u64,
    pub created_at: String,
    pub created_by: String,
    pub current: bool,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct TombstoneInfo {
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

/// What a tombstone was before, and is again.
#[derive(Clone, Debug)]
pub enum Restored {
    Object(ObjectInfo),
    Organization(OrganizationInfo),
}
