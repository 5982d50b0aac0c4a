//! The kinds of record a vault keeps, each with its table, its key and the organization whose key seals it.
//!
//! Encoded with postcard and sealed row by row (`docs/format.md` has the byte layouts).

use super::AuthorInfo;
use super::ids::{ApiKeyId, Ino, ObjectId, OrgId, OrgNo, VersionId};
use super::time::Time;
use crate::crypto::{BlockSize, Salt, Tag};
use crate::keys::{Home, KekRef, Residency, WrappedDek};
use crate::store::{Key, Place, Table};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::any::Any;
use std::collections::BTreeMap;

/// A key context: 1 to 10 pairs in the order of their keys.
pub type Context = Vec<Pair>;

/// A key and a value of a key context.
pub type Pair = (String, String);

/// A row that can wait, decoded, until a batch seals it.
pub trait Row: Any + Send + Sync {
    fn encode(&self) -> Vec<u8>;
}

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What finds one among its kind.
    type Id: Copy;
    const TABLE: Table;
    fn at(id: Self::Id) -> RowAt;
}

impl<R: Record> Row for R {
    fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("records are made of encodable types")
    }
}

/// Where a row stands, and whose metadata key seals it (`OrgNo::VAULT`: the vault's own).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowAt {
    pub table: Table,
    pub key: Key,
    pub sealed_for: OrgNo,
}

impl RowAt {
    pub(super) fn new(table: Table, sealed_for: OrgNo, parts: &[&[u8]]) -> Self {
        RowAt { table, key: Key::from(&parts.concat()[..]), sealed_for }
    }

    /// The same place in another row's key, as a scan finds it.
    pub fn with_key(self, key: Key) -> Self {
        RowAt { key, ..self }
    }
}

/// One organization, as the vault knows it without any of its keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrgRecord {
    pub id: OrgId,
    pub name: String,
    pub created: Time,
    /// The organization's metadata key, wrapped under the KEK of its first pair.
    pub metadata_key: WrappedDek,
    pub metadata_commitment: [u8; 32],
    /// The next local inode number to give out.
    pub next_local: u64,
    /// The next tombstone number to give out.
    pub next_grave: u64,
    pub objects: u64,
    /// Sizes of its objects, of which two may already be more than a u64 holds.
    pub bytes: u128,
    pub tombstones: u64,
    /// Bytes of the store that tombstones and earlier versions take: what purging all of them would give back.
    pub held: u64,
    /// Folders with pairs of a key context of their own.
    pub context_folders: u64,
    /// Set while the organization itself is a tombstone.
    pub deleted: bool,
    /// Its keys are to stay out of memory.
    pub locked: bool,
    /// Set until every DEK is under new KEK versions, and the old ones are destroyed.
    pub rotation: Option<Rotation>,
    /// When its KEKs were made or rotated last.
    pub rotated: Time,
}

/// KEK versions made before this are to be replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rotation {
    pub started: Time,
    /// Where the new versions are to live, if the organization moves.
    pub to: Option<Residency>,
}

/// The KEK of one pair of one organization.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kek {
    pub pair: Pair,
    pub id: [u8; 16],
    /// Oldest first; the last one wraps. None: it was revoked, and is never made again.
    pub versions: Vec<KekVersion>,
    /// The pair's part of what seals data keys, wrapped under this KEK; made with the first of them.
    pub data_keys: Option<WrappedDek>,
}

/// One version of a KEK, and where it lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KekVersion {
    pub version: u32,
    pub made: Time,
    pub home: Home,
}

/// A KEK that is being made or destroyed: the token may hold it, and no record names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    pub org: OrgNo,
    pub pair: Pair,
    pub what: Intention,
    pub home: Home,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Intention {
    Make,
    Destroy,
    /// Destroy, and then remove what is left of its organization.
    Purge,
}

/// The vault's own record, written with every batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VaultRecord {
    pub next_org: u32,
    pub next_grave: u64,
    pub batch: u64,
}

/// What an inode is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file: the object whose value it holds, and the name that it got last.
    File {
        object: ObjectId,
        parent: Ino,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    Directory {
        parent: Ino,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    Symlink {
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
}

impl Kind {
    pub fn is_directory(&self) -> bool {
        matches!(self, Kind::Directory { .. })
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(&self) -> u32 {
        match self {
            Kind::File { .. } => libc::S_IFREG,
            Kind::Directory { .. } => libc::S_IFDIR,
            Kind::Symlink { .. } => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
            Kind::CharDevice(_) => libc::S_IFCHR,
            Kind::BlockDevice(_) => libc::S_IFBLK,
        }
    }
}

/// An inode's attributes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes that its current value takes in the store.
    pub stored: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub born: Time,
    /// Whether it has a row in `Attributes`.
    pub attributes: bool,
    /// The epoch that writes belong to now; each committed version ends one.
    pub epoch: u64,
    /// Whether the value differs from the last committed version.
    pub changed: bool,
    /// The number of its tombstone, if it is one.
    pub grave: Option<u64>,
    /// A version check that guards the next commit.
    pub guard: Option<VersionId>,
}

/// A name in a folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    pub ino: Ino,
    /// `st_mode` type bits, for `d_type`.
    pub kind: u32,
}

/// A file's extended attributes, by full name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Attributes(pub BTreeMap<Vec<u8>, serde_bytes::ByteBuf>);

/// The key of one content, and who needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContentRecord {
    pub wrapped: WrappedDek,
    pub commitment: [u8; 32],
    pub context: Context,
    /// Objects with a version that names this content.
    pub owners: Vec<ObjectId>,
}

/// One extent, or the part of it that is still needed, at its place in the file (the key's offset).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    pub len: u32,
    /// The first epoch that it belongs to.
    pub born: u64,
    pub salt: Salt,
    pub block: BlockSize,
    /// The whole extent's length, which the last block's tag covers.
    pub extent_len: u32,
    /// Where in the extent this piece starts.
    pub skip: u32,
    /// Tags of the blocks that the piece touches.
    pub tags: Vec<Tag>,
    pub bytes: Stored,
}

/// Where an extent's ciphertext is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stored {
    /// The extent starts here.
    Segment(Place),
    /// The ciphertext of the blocks that the piece touches.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// A live piece of a content's current value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Extent(pub Piece);

/// A piece that only earlier versions need; its key holds the first epoch that does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past(pub Piece);

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Author {
    Uid(u32),
    Key { id: ApiKeyId, name: String },
}

impl Author {
    pub fn info(&self) -> AuthorInfo {
        match self {
            Author::Uid(uid) => AuthorInfo { id: format!("uid:{uid}"), name: format!("uid:{uid}") },
            Author::Key { id, name } => AuthorInfo { id: id.to_string(), name: name.clone() },
        }
    }
}

impl std::fmt::Display for Author {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Author::Uid(uid) => write!(f, "uid:{uid}"),
            Author::Key { id, name } => write!(f, "{id} {name}"),
        }
    }
}

/// An object: the identity that stays with a name, and its versions, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    /// The inode that holds its current value.
    pub ino: Ino,
    pub created: Time,
    pub created_by: Author,
    pub context: Context,
    pub versions: Vec<Version>,
}

impl Object {
    pub fn current(&self) -> Option<&Version> {
        self.versions.last()
    }

    pub fn version(&self, ordinal: u64) -> Option<&Version> {
        self.versions.iter().find(|v| v.ordinal == ordinal)
    }
}

/// An immutable committed value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub ordinal: u64,
    pub id: VersionId,
    pub content: Ino,
    /// Pieces born at or before this epoch, and not past by it, make up the value.
    pub epoch: u64,
    pub size: u64,
    pub at: Time,
    pub by: Author,
}

/// A deleted object, or a deleted organization (in the vault's own graveyard).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tombstone {
    pub ino: Ino,
    /// The entry's name in `.tombstones`.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Path inside the organization; for an organization its name.
    #[serde(with = "serde_bytes")]
    pub original_path: Vec<u8>,
    pub deleted: Time,
    pub deleted_by: Author,
    /// What it adds to its organization's `held`.
    pub held: u64,
}

/// The tombstones of one path, oldest first; found by the path's hash.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Buried(pub Vec<u64>);

/// Something to finish after a crash, or in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Task {
    /// Has changes that no version holds yet.
    Commit = 1,
    /// Has no name; goes with its last handle.
    Orphan = 2,
    /// Its key is destroyed; its extents are to be given back.
    Reclaim = 3,
    /// Past pieces that no kept version needs are to be given back.
    Prune = 4,
}

impl Task {
    const ALL: [Task; 4] = [Task::Commit, Task::Orphan, Task::Reclaim, Task::Prune];
}

/// A task that waits; its key holds the inode and the kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// For `Task::Prune`: pieces that died in this epoch or an earlier one go.
    pub epoch: u64,
}

/// The fill of one segment file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Bytes appended.
    pub end: u64,
    /// Bytes that pieces still need, in 4 KiB units of the disk.
    pub live: u64,
}

/// A run of a segment that nothing needs any more, to be punched once that is durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Freed {
    pub len: u64,
}

impl Record for OrgRecord {
    type Id = OrgNo;
    const TABLE: Table = Table::Organization;
    fn at(org: OrgNo) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&org.0.to_be_bytes()])
    }
}

impl Record for VaultRecord {
    type Id = ();
    const TABLE: Table = Table::Organization;
    fn at((): ()) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&OrgNo::VAULT.0.to_be_bytes()])
    }
}

macro_rules! by_inode {
    ($record:ident, $table:ident, $sealed_for:expr) => {
        impl Record for $record {
            type Id = Ino;
            const TABLE: Table = Table::$table;
            fn at(ino: Ino) -> RowAt {
                let sealed_for: fn(Ino) -> OrgNo = $sealed_for;
                RowAt::new(Self::TABLE, sealed_for(ino), &[&ino.0.to_be_bytes()])
            }
        }
    };
}

/// An organization's own directory is sealed by the vault, so that `ls /vault` needs no organization's key.
fn by_vault_if_top(ino: Ino) -> OrgNo {
    if ino.is_top() { OrgNo::VAULT } else { ino.organization() }
}

by_inode!(Node, Node, by_vault_if_top);
by_inode!(Attributes, Attributes, by_vault_if_top);
by_inode!(ContentRecord, Content, Ino::organization);

impl Pending {
    /// What a row's key says.
    pub fn task_of(key: &Key) -> Option<(Ino, Task)> {
        let (ino, task) = key.split_first_chunk::<8>()?;
        let task = Task::ALL.into_iter().find(|t| task == [*t as u8])?;
        Some((Ino(u64::from_be_bytes(*ino)), task))
    }
}

impl Record for Pending {
    type Id = (Ino, Task);
    const TABLE: Table = Table::Pending;
    fn at((ino, task): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, ino.organization(), &[&ino.0.to_be_bytes(), &[task as u8]])
    }
}

impl Record for Entry {
    /// The folder and the name's hash.
    type Id = (Ino, [u8; 16]);
    const TABLE: Table = Table::Entry;
    fn at((folder, hash): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, folder.organization(), &[&folder.0.to_be_bytes(), &hash])
    }
}

impl Record for Extent {
    /// The content and the file offset.
    type Id = (Ino, u64);
    const TABLE: Table = Table::Extent;
    fn at((content, offset): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, content.organization(), &[&content.0.to_be_bytes(), &offset.to_be_bytes()])
    }
}

impl Record for Past {
    /// The content, the first epoch that does not need the piece, and the file offset.
    type Id = (Ino, u64, u64);
    const TABLE: Table = Table::Past;
    fn at((content, died, offset): Self::Id) -> RowAt {
        let parts = [&content.0.to_be_bytes()[..], &died.to_be_bytes(), &offset.to_be_bytes()];
        RowAt::new(Self::TABLE, content.organization(), &parts)
    }
}

impl Record for Object {
    type Id = (OrgNo, ObjectId);
    const TABLE: Table = Table::Object;
    fn at((org, id): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, org, &[&id.0.to_be_bytes()])
    }
}

impl Record for Tombstone {
    type Id = (OrgNo, u64);
    const TABLE: Table = Table::Tombstone;
    fn at((org, number): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, org, &[&org.0.to_be_bytes(), &number.to_be_bytes()])
    }
}

impl Record for Buried {
    type Id = (OrgNo, [u8; 16]);
    const TABLE: Table = Table::Buried;
    fn at((org, hash): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, org, &[&org.0.to_be_bytes(), &hash])
    }
}

impl Record for Segment {
    type Id = (OrgNo, u32);
    const TABLE: Table = Table::Segment;
    fn at((org, number): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, org, &[&org.0.to_be_bytes(), &number.to_be_bytes()])
    }
}

impl Freed {
    /// Where the run starts, as a row's key says.
    pub fn place_of(key: &Key) -> Option<Place> {
        let (segment, offset) = key.get(4..)?.split_first_chunk::<4>()?;
        Some(Place { segment: u32::from_be_bytes(*segment), offset: u64::from_be_bytes(offset.try_into().ok()?) })
    }
}

impl Record for Freed {
    type Id = (OrgNo, Place);
    const TABLE: Table = Table::Freed;
    fn at((org, place): Self::Id) -> RowAt {
        let parts = [&org.0.to_be_bytes()[..], &place.segment.to_be_bytes(), &place.offset.to_be_bytes()];
        RowAt::new(Self::TABLE, org, &parts)
    }
}

impl Record for Kek {
    /// The organization and the pair's hash.
    type Id = (OrgNo, [u8; 16]);
    const TABLE: Table = Table::Kek;
    fn at((org, hash): Self::Id) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&org.0.to_be_bytes(), &hash])
    }
}

impl Record for Intent {
    type Id = KekRef;
    const TABLE: Table = Table::Intent;
    fn at(kek: KekRef) -> RowAt {
        RowAt::new(Self::TABLE, OrgNo::VAULT, &[&kek.id, &kek.version.to_be_bytes()])
    }
}
