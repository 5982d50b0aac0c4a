//! What a vault is: organizations, objects, versions, tombstones. Knows no kernel and no HTTP.
//!
//! Operations are answered from memory: a transaction (`records.rs`) changes records, changes of contents
//! wait beside them (`content.rs`), and the writer thread stores both in batches (`writer.rs`).

mod accessed;
mod acl;
mod apikey;
mod attributes;
mod batch;
mod catalog;
mod changes;
mod content;
mod context;
mod datakey;
mod ending;
mod error;
mod extents;
mod file;
mod fsck;
mod graveyard;
mod header;
mod ids;
mod inventory;
mod kek;
mod listing;
mod locking;
mod migration;
mod object;
mod opening;
mod organization;
mod profile;
mod put;
mod reading;
mod reaper;
mod records;
mod removed;
mod rename;
mod retention;
mod room;
mod rotation;
mod row;
mod settings;
mod storing;
mod time;
#[cfg(test)]
#[path = "../tests/keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;
mod tokens;
mod tree;
mod types;
mod versions;
mod writer;

pub use crate::keys::{Outcome, Patience, Residency, TokenCheck};
pub use apikey::{ApiKey, KeyIdentity, Permission, Scope};
pub use datakey::DataKey;
pub use error::{Error, Place, Result};
pub use fsck::{Finding, FindingCode, FindingPlace, FsckOptions, Lost, LostVersion, Severity};
pub use header::FORMAT;
pub use ids::{ApiKeyId, Ino, ObjectId, OrgId, OrgNo, VaultId, VersionId};
pub use inventory::{ObjectPage, ObjectQuery};
pub use profile::Profile;
pub use settings::{Settings, parse_duration};
pub use time::Time;
pub use types::*;

use crate::keys::Keyring;
use crate::store::{Disk, Reserve, Segments, StateLock, Statistics};
use apikey::ApiKeys;
use content::Contents;
use file::Handles;
use header::Header;
use object::Tunnels;
use organization::Organizations;
use parking_lot::{Condvar, Mutex, RwLock};
use profile::Profiles;
use reading::Readers;
use records::{Records, Tx};
use removed::Removed;
use room::Room;
use row::{Node, Task};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use storing::FreedRuns;
use versions::Versions;
use writer::Signals;

type Hook<T> = RwLock<Option<Box<dyn Fn(T) + Send + Sync>>>;

/// Kept free so that deletes can be committed, in bytes.
const KEPT_FREE: u64 = 32 << 20;

/// An open vault.
pub struct Vault {
    id: VaultId,
    state: PathBuf,
    settings: Settings,
    owner: (u32, u32),
    show_hidden: bool,
    keyring: Keyring,
    /// As it stands in the state directory.
    header: Mutex<Header>,
    disk: Arc<dyn Disk>,
    records: Records,
    segments: Segments,
    reserve: Reserve,
    organizations: Organizations,
    profiles: Profiles,
    api_keys: ApiKeys,
    contents: Contents,
    handles: Handles,
    tunnels: Tunnels,
    removed: Removed,
    readers: Readers,
    versions: Versions,
    /// Held while a KEK is made, so that no pair gets two.
    making_keks: Mutex<()>,
    /// Held for reading from the choice of a token until an intent names it: meanwhile the vault begins no move.
    homing: RwLock<()>,
    /// Which organizations have tokens of their own, as far as that was asked.
    own_tokens: tokens::OwnTokens,
    /// Held while KEKs are destroyed and what they opened is removed.
    ending: Mutex<()>,
    rotations: rotation::Rotations,
    signals: Signals,
    /// Work on extents that stored batches asked for, and the batch that is being stored.
    chores: Mutex<VecDeque<(Ino, Task, u64)>>,
    freed: Mutex<FreedRuns>,
    newest_segment: Mutex<HashMap<OrgNo, u32>>,
    available: Available,
    room: Room,
    changed: Hook<Changed>,
    audited: AuditHook,
    reported: Hook<String>,
    closing: Closing,
    /// Whether somebody may change it: not while it is only checked.
    serving: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held for as long as the state directory is ours; released last.
    lock: Mutex<Option<StateLock>>,
}

impl Vault {
    pub fn id(&self) -> VaultId {
        self.id
    }

    /// What the kernel must forget, for the mount.
    pub fn on_change(&self, hook: Box<dyn Fn(Changed) + Send + Sync>) {
        *self.changed.write() = Some(hook);
    }

    /// Lines for the daemon's log.
    pub fn on_report(&self, hook: Box<dyn Fn(String) + Send + Sync>) {
        *self.reported.write() = Some(hook);
    }

    fn changed(&self, what: Changed) {
        if let Some(hook) = &*self.changed.read() {
            hook(what);
        }
    }

    fn audit(&self, event: AuditEvent) {
        self.audited.tell(&event);
    }

    fn report(&self, line: &str) {
        match &*self.reported.read() {
            Some(hook) => hook(line.to_owned()),
            None => eprintln!("vaultfs: {line}"),
        }
    }

    /// The error for something that does not authenticate, with its line in the log and its audit event.
    fn corrupt(&self, what: &'static str, ino: Ino, at: String) -> Error {
        let node = self.records.get::<Node>(ino).ok().flatten();
        let object = node.as_ref().and_then(|node| node.object());
        let version = object.and_then(|id| self.records.get::<row::Object>((ino.organization(), id)).ok().flatten());
        let place = Place { what, ino: Some(ino), object, at };
        self.report(&format!("authentication failed at {place}"));
        self.audit(AuditEvent {
            organization: self.organizations.find(ino.organization()).map(|o| o.id.to_string()),
            object: object.map(|id| id.to_string()),
            version: version.and_then(|o| o.current().map(|v| v.id.to_string())),
            detail: Some(place.to_string()),
            ..AuditEvent::new("authentication.failed")
        });
        Error::Corrupt(place)
    }

    /// Begins a transaction, unless nothing is written any more: then nothing pretends.
    fn begin(&self) -> Result<Tx<'_>> {
        self.signals.check()?;
        Ok(self.records.begin())
    }

    /// Commits a transaction and tells the writer thread.
    fn finish(&self, tx: Tx) -> u64 {
        let bytes = tx.bytes();
        let batch = tx.commit();
        self.signals.work(bytes);
        batch
    }

    /// What the disk holds; tombstones and earlier versions count as free, since they go when it runs short.
    pub fn space(&self) -> Result<FsSpace> {
        let space = crate::store::space(&self.state)?;
        let held = self.held();
        let blocks = |bytes: u64| bytes.min(space.total) / extents::UNIT;
        Ok(FsSpace {
            block: extents::UNIT as u32,
            blocks: blocks(space.total),
            free: blocks(space.free + held),
            available: blocks(space.available + held),
            files: space.files,
            files_free: space.files_free,
        })
    }

    pub fn status(&self) -> Status {
        let token = self.keyring.status();
        let living: Vec<_> =
            self.organizations.all().iter().map(|o| o.record.lock().clone()).filter(|r| !r.deleted).collect();
        let sum = |count: fn(&row::OrgRecord) -> u64| living.iter().map(count).sum();
        let bytes = living.iter().map(|record| record.bytes).sum();
        Status {
            vault: self.id.to_string(),
            format: FORMAT,
            state_directory: self.state.display().to_string(),
            token: TokenInfo {
                uri: self.keyring.place().uri.to_string(),
                label: token.label,
                state: token.state.to_owned(),
                suite: token.suite,
                logins: token.calls.logins,
                recoveries: token.calls.recoveries,
                calls: self.keyring.token_calls(),
                cached_keys: token.cached as u64,
                last_error: token.last_error,
            },
            own_tokens: self.own_token_states(),
            migration: self.migration(),
            organizations: living.len() as u64,
            objects: sum(|r| r.objects),
            bytes: at_most(bytes),
            tombstones: sum(|r| r.tombstones),
            pending_bytes: self.signals.pending_bytes(),
            writing: self.signals.trouble().unwrap_or("ok").to_owned(),
            records: {
                let Statistics { statements, commits, syncs } = self.records.store.statistics();
                RecordsInfo { statements, commits, syncs }
            },
        }
    }
}

/// A count for those who take no larger number.
fn at_most(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The space that is left, asked for anew every now and then (`statvfs` for each write would cost as much as the write), and
/// before anything is refused. What is given out meanwhile counts as taken.
#[derive(Default)]
struct Available(Mutex<Option<(Instant, u64)>>);

impl Available {
    const FRESH: Duration = Duration::from_millis(50);

    /// Whether there is room for `bytes` beside `kept`, which are to stay free.
    fn take(&self, state: &Path, bytes: u64, kept: u64) -> Result<bool> {
        let mut known = self.0.lock();
        if let Some((at, left)) = &mut *known
            && at.elapsed() < Self::FRESH
            && *left >= bytes + kept
        {
            *left -= bytes;
            return Ok(true);
        }
        let left = crate::store::space(state)?.available;
        let has = left >= bytes + kept;
        *known = Some((Instant::now(), if has { left - bytes } else { left }));
        Ok(has)
    }

    fn forget(&self) {
        *self.0.lock() = None;
    }
}

/// Tells background threads that the vault closes.
#[derive(Default)]
struct Closing(Mutex<bool>, Condvar);

impl Closing {
    fn set(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.0.lock()
    }

    /// Whether the vault closed before the time was over.
    fn wait_for(&self, time: Duration) -> bool {
        let mut closing = self.0.lock();
        if !*closing {
            self.1.wait_for(&mut closing, time);
        }
        *closing
    }
}
