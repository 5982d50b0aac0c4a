//! Making, opening and closing a vault; finishing what a crash left unfinished.

use super::apikey::ApiKeys;
use super::content::Contents;
use super::error::{Error, Place, Result};
use super::extents::{FreeRun, UNIT};
use super::header::Header;
use super::ids::{Ino, OrgNo};
use super::organization::{Organization, Organizations, is_organization};
use super::profile::Profiles;
use super::records::{Records, Sealer};
use super::row::{
    Extent, Freed, Kind, Node, OrgRecord, Past, Pending, Piece, Record, RowAt, Segment, Stored, Task, VaultRecord,
};
use super::settings::Settings;
use super::time::Time;
use super::types::Options;
use super::writer::{self, Signals};
use super::{AuditEvent, Caller, Vault, VaultId, reaper, rotation};
use crate::crypto::RecordKey;
use crate::keys::{CacheLimits, KeyError, Keyring, KeyringConfig, Patience, PinSource, Residency, TokenUri};
use crate::store::{self, Disk, Durability, Key, RealDisk, Reserve, Rows, Segments, StateLock, Table};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

/// Pre-wrapped keys of each organization that keep the token off the path of creating files.
const POOL: usize = 64;

impl Vault {
    /// Makes a vault in an empty or absent directory, and its key in the token.
    pub fn init(state: &Path, token: &str, pin_source: &str) -> Result<VaultId> {
        Self::init_with(state, token, pin_source, Residency::Token, Arc::new(RealDisk))
    }

    /// As [`Vault::init`], with keys that live elsewhere: `token` or `wrapped`.
    pub fn init_residing(state: &Path, token: &str, pin_source: &str, residency: &str) -> Result<VaultId> {
        let residency = Residency::parse(residency, None).map_err(|e| Error::Setting(e.to_string()))?;
        Self::init_with(state, token, pin_source, residency, Arc::new(RealDisk))
    }

    /// Makes a vault; every write and sync below its directory passes `disk`.
    pub fn init_on(state: &Path, token: &str, pin_source: &str, disk: Arc<dyn Disk>) -> Result<VaultId> {
        Self::init_with(state, token, pin_source, Residency::Token, disk)
    }

    fn init_with(
        state: &Path,
        token: &str,
        pin_source: &str,
        residency: Residency,
        disk: Arc<dyn Disk>,
    ) -> Result<VaultId> {
        let (token, pin) = (parse_token(token)?, parse_pin(pin_source)?);
        make_state_directory(state)?;
        let _lock = StateLock::take(state)?;
        let keyring = open_keyring(&token, &pin, &Settings::default())?;
        let (header, key) = Header::create(&keyring, token, pin, residency)?;
        let id = header.vault()?;
        let made = make_records(state, id, key, disk.clone()).and_then(|()| header.write(state, &*disk));
        if made.is_err() {
            for key in header.root().into_iter().chain([header.kek()]) {
                let _ = keyring.destroy_kek(key);
            }
        }
        made.map(|()| id)
    }

    pub fn open(state: &Path, options: Options) -> Result<Arc<Vault>> {
        Self::open_on(state, options, Arc::new(RealDisk))
    }

    /// Whether a directory holds a vault; the error says what it is instead.
    pub fn check(state: &Path) -> Result<()> {
        Header::read(state).map(drop)
    }

    /// Opens a vault whose every write and sync passes `disk`.
    pub fn open_on(state: &Path, options: Options, disk: Arc<dyn Disk>) -> Result<Arc<Vault>> {
        let audit = options.audit.clone();
        let opened = Self::open_unaudited(state, options, disk).and_then(|vault| vault.serve().map(|()| vault));
        if let Err(
            error @ (Error::Key(KeyError::PinRefused(_) | KeyError::Authentication)
            | Error::Edited(_)
            | Error::Corrupt(_)),
        ) = &opened
        {
            audit.tell(&AuditEvent { detail: Some(error.to_string()), ..AuditEvent::new("authentication.failed") });
        }
        opened
    }

    fn open_unaudited(state: &Path, options: Options, disk: Arc<dyn Disk>) -> Result<Arc<Vault>> {
        let mut settings = Settings::default();
        for (name, value) in &options.settings {
            settings.set(name, value)?;
        }
        let header = Header::read(state)?;
        let lock = StateLock::take(state)?;
        let token = options.token.as_deref().map_or_else(|| Ok(header.token.clone()), parse_token)?;
        let pin = options.pin_source.as_deref().map_or_else(|| Ok(header.pin_source.clone()), parse_pin)?;
        let keyring = open_keyring(&token, &pin, &settings)?;
        keyring.number_tokens(header.numbers().own, header.other());
        let id = header.vault()?;
        let sealer = Sealer::new(id.0.to_be_bytes(), header.unseal(&keyring)?);
        let rows = Rows::open(state, disk.clone())?;
        // The batch's own record says its number, but it is sealed like any other: open it with a stand-in first.
        let records = Records::new(rows, sealer, 0, settings.record_cache);
        let own = records.get::<VaultRecord>(())?.ok_or_else(|| {
            Error::Corrupt(Place {
                what: "the vault's own record",
                ino: None,
                object: None,
                at: "which is missing from records.db: restore the state directory from a copy".into(),
            })
        })?;
        records.start_after(own.batch);
        let organizations = load_organizations(&records, &own)?;
        let (api_keys, profiles) = (ApiKeys::new(load_own(&records)?), Profiles::new(load_own(&records)?));
        let vault = Arc::new(Vault {
            id,
            state: state.to_owned(),
            owner: (options.owner_uid, options.owner_gid),
            show_hidden: options.show_hidden,
            segments: Segments::open(state, disk.clone(), settings.segment_size)?,
            reserve: Reserve::open(state, disk.clone()),
            disk,
            header: parking_lot::Mutex::new(header),
            contents: Contents::default(),
            handles: Default::default(),
            tunnels: Default::default(),
            removed: Default::default(),
            readers: Default::default(),
            versions: Default::default(),
            making_keks: Default::default(),
            homing: Default::default(),
            own_tokens: Default::default(),
            ending: Default::default(),
            rotations: Default::default(),
            signals: Signals::starting_after(own.batch),
            chores: Default::default(),
            freed: Default::default(),
            newest_segment: Default::default(),
            room: Default::default(),
            available: Default::default(),
            changed: Default::default(),
            audited: options.audit,
            reported: Default::default(),
            closing: Default::default(),
            serving: Default::default(),
            threads: Default::default(),
            lock: parking_lot::Mutex::new(Some(lock)),
            settings,
            keyring,
            records,
            organizations,
            api_keys,
            profiles,
        });
        let weak = Arc::downgrade(&vault);
        vault.keyring.ask_for_homes(Box::new(move |org, kek| match OrgNo(org) {
            OrgNo::VAULT => None,
            org => weak.upgrade()?.lodging(org, kek),
        }));
        Ok(vault)
    }

    /// Opens a vault to look at it: nothing is finished, trimmed or reaped, and nobody may change anything.
    pub(super) fn inspect(state: &Path, options: Options) -> Result<Arc<Vault>> {
        Self::open_unaudited(state, options, Arc::new(RealDisk))
    }

    fn serve(self: &Arc<Self>) -> Result<()> {
        self.serving.store(true, Ordering::Relaxed);
        self.prepare_segments()?;
        self.start().inspect_err(|_| {
            // The threads that run already would keep it, and with it the state directory.
            let _ = self.close();
        })
    }

    fn start(self: &Arc<Self>) -> Result<()> {
        let weak = Arc::downgrade(self);
        self.keyring.on_unwrap(Box::new(move |org, dek| {
            if let Some(vault) = weak.upgrade() {
                vault.audit(AuditEvent {
                    organization: vault.organizations.find(OrgNo(org)).map(|o| o.id.to_string()),
                    detail: Some(format!("dek_{}", super::records::hex(dek))),
                    ..AuditEvent::new("key.unwrapped")
                });
            }
        }));
        self.start_writer()?;
        self.finish_unfinished()?;
        self.doom_orphaned_keks()?;
        let weak = Arc::downgrade(self);
        self.spawn("reaper", move || reaper::run(weak))?;
        let weak = Arc::downgrade(self);
        self.spawn("rotator", move || rotation::run(weak))
    }

    pub(super) fn start_writer(self: &Arc<Self>) -> Result<()> {
        let vault = self.clone();
        self.spawn(WRITER, move || writer::run(&vault))
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(body);
        self.threads.lock().push(thread.map_err(|e| Error::Header(format!("cannot start a thread: {e}")))?);
        Ok(())
    }

    /// Tells segments where their records end, gives back what a crash kept, trims what no record names.
    pub(super) fn prepare_segments(&self) -> Result<()> {
        for org in self.segments.organizations()? {
            let Some(organization) = self.organizations.find(OrgNo(org)) else { continue };
            if self.enter(Ino::graveyard_of(organization.no), Patience::Wait).is_err() {
                // Its key is not to be had now: new segments go behind what is there.
                if let Some((last, size)) = self.segments.list(org)?.last() {
                    self.segments.set_tail(org, *last, size.next_multiple_of(UNIT));
                }
                continue;
            }
            let (mut newest, mut needed) = (None, None);
            for (number, size) in self.segments.list(org)? {
                let record = match self.records.get::<Segment>((organization.no, number)) {
                    // What does not authenticate cannot say what is not needed.
                    Err(Error::Corrupt(_)) => None,
                    record => Some(record?),
                };
                let next = match record {
                    Some(Some(segment)) if size > segment.end => {
                        self.segments.trim(org, number, segment.end)?;
                        (number, segment.end)
                    }
                    Some(Some(segment)) => (number, segment.end),
                    // A crash leaves segments without a record, but so does the loss of a record.
                    Some(None) if !needed.get_or_insert_with(|| self.named_segments(organization.no)).has(number) => {
                        self.segments.remove(org, number)?;
                        continue;
                    }
                    // Nothing is added where nobody counts what is in it.
                    _ => (number.saturating_add(1), 0),
                };
                newest = Some(next);
            }
            if let Some((number, end)) = newest {
                self.segments.set_tail(org, number, end);
                self.newest_segment.lock().insert(organization.no, number);
            }
            let key = |org: OrgNo| Key::from(&org.0.to_be_bytes()[..]);
            let like = Freed::at((organization.no, store::Place { segment: 0, offset: 0 }));
            for (at, freed) in self.records.scan_all::<Freed>(like, key(organization.no), key(OrgNo(org + 1)))? {
                if let Some(at) = Freed::place_of(&at) {
                    self.freed.lock().waiting.push((organization.no, FreeRun { at, len: freed.len }));
                }
            }
        }
        Ok(())
    }

    /// The segments that pieces of an organization name. Reads all of them: only after a crash, or worse, is it asked.
    fn named_segments(&self, org: OrgNo) -> NamedSegments {
        let range = |org: u32| Key::from(&Ino::new(OrgNo(org), 0).0.to_be_bytes()[..]);
        let (from, to) = (range(org.0), range(org.0 + 1));
        let top = Ino::top_of(org);
        let mut named = BTreeSet::new();
        let mut note = |piece: &Piece| {
            if let Stored::Segment(place) = &piece.bytes {
                named.insert(place.segment);
            }
        };
        let live = self.each_record::<Extent>(Extent::at((top, 0)), from, to, &mut |row| note(&row.0));
        let past = self.each_record::<Past>(Past::at((top, 0, 0)), from, to, &mut |row| note(&row.0));
        match live.and(past) {
            Ok(()) => NamedSegments::These(named),
            // One that does not open could name any.
            Err(_) => NamedSegments::Any,
        }
    }

    fn each_record<R: Record>(&self, like: RowAt, from: Key, to: Key, each: &mut dyn FnMut(&R)) -> Result<()> {
        let mut from = Some(from);
        while let Some(start) = from {
            let part = self.records.scan::<R>(like, start, to, 1000)?;
            part.rows.iter().for_each(|(_, row)| each(row));
            from = part.next;
        }
        Ok(())
    }

    /// Tasks that wait in the records: commits of changed values, files without names, space to give back.
    pub(super) fn finish_unfinished(&self) -> Result<()> {
        // One look for all: there may be 100,000, and few have a task.
        let (mut from, to) = (Some(Key::from(&[][..])), Key::from(&[0xFF; 10][..]));
        let mut with_tasks = BTreeSet::new();
        while let Some(start) = from {
            let (tasks, next) = self.records.claims(Table::Pending, (start, to), false, 1000)?;
            with_tasks.extend(tasks.into_iter().map(|(_, org)| org));
            from = next;
        }
        let mut organizations = with_tasks.into_iter().filter_map(|org| self.organizations.find(org));
        organizations.try_for_each(|organization| self.finish_tasks(&organization))
    }

    /// The tasks of one organization, but for what somebody has open.
    pub(super) fn finish_tasks(&self, organization: &Organization) -> Result<()> {
        let range = |org: u32| Key::from(&Ino::new(OrgNo(org), 0).0.to_be_bytes()[..]);
        let (from, to) = (range(organization.no.0), range(organization.no.0 + 1));
        // Without a task the organization's key is not needed.
        if self.records.store.scan(Table::Pending, &from, &to, 1)?.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.enter(Ino::graveyard_of(organization.no), Patience::Wait) {
            self.report(&format!("{}: what was left unfinished waits for the next mount: {error}", organization.id));
            return Ok(());
        }
        let like = Pending::at((Ino::top_of(organization.no), Task::Commit));
        for (key, pending) in self.records.scan_all::<Pending>(like, from, to)? {
            let Some((ino, task)) = Pending::task_of(&key) else { continue };
            if !self.handles.lock().is_open(ino) {
                self.resume(ino, task, pending.epoch)?;
            }
        }
        Ok(())
    }

    fn resume(&self, ino: Ino, task: Task, epoch: u64) -> Result<()> {
        match task {
            Task::Reclaim | Task::Prune => {
                self.chores.lock().push_back((ino, task, epoch));
                self.finish(self.records.begin());
                return Ok(());
            }
            Task::Commit | Task::Orphan => {}
        }
        let mut tx = self.records.begin();
        let Some(node) = tx.get::<Node>(ino)? else {
            tx.delete::<Pending>((ino, task));
            self.finish(tx);
            return Ok(());
        };
        if node.links == 0 && node.grave.is_none() {
            self.end_orphan(&mut tx, ino, &node)?;
        } else {
            // A guard that was lost before the crash does not keep what was written from being a version.
            tx.put(ino, Node { guard: None, ..(*node).clone() });
            self.commit_version(&mut tx, &Caller::owner(&node), ino, true)?;
            tx.delete::<Pending>((ino, Task::Commit));
        }
        self.finish(tx);
        Ok(())
    }

    fn join(&self, threads: Vec<JoinHandle<()>>) {
        for thread in threads {
            if thread.join().is_err() {
                self.report("a background thread had failed");
            }
        }
    }

    /// Stores everything, ends the threads, releases the state directory. Further operations are refused.
    pub fn close(&self) -> Result<()> {
        let synced = self.store_access_times().and_then(|()| self.sync());
        self.closing.set();
        self.rotations.wake();
        let (writer, others): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.threads.lock())
            .into_iter()
            .partition(|thread| thread.thread().name() == Some(WRITER));
        // The others may be waiting for what they changed to be stored.
        self.join(others);
        self.signals.end();
        self.join(writer);
        let closed = self.records.store.checkpoint_truncate();
        self.lock.lock().take();
        synced?;
        Ok(closed?)
    }
}

/// The thread that ends last.
const WRITER: &str = "writer";

/// Which segments pieces name.
enum NamedSegments {
    These(BTreeSet<u32>),
    Any,
}

impl NamedSegments {
    fn has(&self, number: u32) -> bool {
        match self {
            NamedSegments::These(named) => named.contains(&number),
            NamedSegments::Any => true,
        }
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.closing.set();
        self.rotations.wake();
        self.signals.end();
    }
}

pub(super) fn parse_token(text: &str) -> Result<TokenUri> {
    text.parse().map_err(|e: KeyError| Error::Setting(e.to_string()))
}

pub(super) fn parse_pin(text: &str) -> Result<PinSource> {
    text.parse().map_err(|e: KeyError| Error::Setting(e.to_string()))
}

fn open_keyring(token: &TokenUri, pin: &PinSource, settings: &Settings) -> Result<Keyring> {
    let cache =
        CacheLimits { entries: settings.key_cache, soft: settings.key_cache_soft, hard: settings.key_cache_hard };
    let config =
        KeyringConfig { uri: token.clone(), pin: pin.clone(), timeout: settings.key_timeout, cache, pool: POOL };
    Ok(Keyring::open(config)?)
}

fn make_state_directory(state: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::Header(format!("cannot use {} as a state directory: {e}", state.display()));
    if Header::exists(state) {
        return Err(Error::Header(format!("{} holds a vault already", state.display())));
    }
    match fs::read_dir(state) {
        Ok(mut entries) => {
            // What an `init` that was cut short left is no vault: without a header nothing can open it.
            let leftover = |name: &std::ffi::OsStr| ["lock", "vault.json.new"].iter().any(|n| name == *n);
            let strange = entries.find(|e| {
                e.as_ref().is_ok_and(|e| {
                    !leftover(&e.file_name()) && !e.file_name().as_encoded_bytes().starts_with(b"records.db")
                })
            });
            if strange.is_some() {
                return Err(Error::Header(format!("{} is not empty: choose a directory of its own", state.display())));
            }
            for entry in fs::read_dir(state).map_err(failed)?.flatten() {
                if entry.file_name().as_encoded_bytes().starts_with(b"records.db") {
                    fs::remove_file(entry.path()).map_err(failed)?;
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
            // A vault that is durable in a directory that is not would be nowhere.
            let above = fs::canonicalize(state.join("..")).map_err(failed)?;
            fs::File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    fs::set_permissions(state, fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// The records of an empty vault.
fn make_records(state: &Path, id: VaultId, key: RecordKey, disk: Arc<dyn Disk>) -> Result<()> {
    let rows = Rows::create(state, disk)?;
    let records = Records::new(rows, Sealer::new(id.0.to_be_bytes(), key), 1, 16);
    let mut tx = records.begin();
    tx.put(
        Ino::ROOT,
        Node {
            kind: Kind::Directory { parent: Ino::ROOT, name: Vec::new() },
            mode: 0o755,
            links: 2,
            size: 4096,
            ..Node::new(Time::now())
        },
    );
    tx.put((), VaultRecord { next_org: 1, next_grave: 1, batch: 1 });
    tx.commit();
    records.begin().freeze(|_| ());
    let changes = {
        let pending = records.pending.read();
        records.seal(pending.frozen.as_ref().expect("it has rows"))?
    };
    Ok(records.store.commit(&changes, Durability::Synced)?)
}

/// All records of a kind that the vault itself seals.
fn load_own<R: Record>(records: &Records) -> Result<Vec<(Key, Arc<R>)>> {
    let like = RowAt::new(R::TABLE, OrgNo::VAULT, &[]);
    records.scan_all::<R>(like, like.key, Key::from(&[0xFF; 17][..]))
}

fn load_organizations(records: &Records, own: &VaultRecord) -> Result<Organizations> {
    let like = OrgRecord::at(OrgNo(1));
    let end = Key::from(&u32::MAX.to_be_bytes()[..]);
    let rows = records.scan_all::<OrgRecord>(like, like.key, end)?;
    let number = |key: &Key| OrgNo(u32::from_be_bytes((**key).try_into().expect("keys of organizations are numbers")));
    let rows =
        rows.into_iter().filter(|(key, _)| is_organization(key)).map(|(key, row)| (number(&key), (*row).clone()));
    Ok(Organizations::new(rows, (own.next_org, own.next_grave)))
}
