//! `fsck`: reads every record and block that it has keys for, and judges whether they fit together.
//!
//! ```text
//! snapshot of the records ── census.rs: shape of each row, opened ── tree.rs, space.rs: do they fit?
//! blocks.rs: every wrapped key and block ── what of which version is gone
//! repair.rs: what can be mended without guessing
//! ```
//! A vault that serves a mount is checked as its records stood at one instant; what only a crash or damage leaves
//! behind is looked for where nobody serves it.

mod blocks;
mod census;
mod finding;
mod repair;
mod space;
#[cfg(test)]
mod tests;
mod tree;

pub use finding::{Finding, FindingCode, FindingPlace, Lost, LostVersion, Severity};

use super::error::{Error, Result};
use super::ids::{Ino, ObjectId, OrgNo};
use super::row::{Kind, Node};
use super::{AuditEvent, Options, Patience, Place, Vault};
use crate::keys::KeyError;
use crate::store::{RealDisk, Rows, SEGMENT_LIMIT, Segments, StateLock, StoreError};
use census::Census;
use repair::Fix;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Mending one thing can show the next; more often than this it does not.
const ROUNDS: usize = 6;

type Found<'a> = &'a mut dyn FnMut(Finding);
/// Is told bytes done and bytes in all, as far as they are known.
type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// How to check a vault that nobody serves.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsckOptions {
    /// Asks no token: what can be said without opening anything.
    pub without_keys: bool,
    pub repair: bool,
}

/// What a check knows while it works.
struct Check<'a> {
    store: &'a Rows,
    segments: &'a Segments,
    /// None without keys.
    vault: Option<&'a Vault>,
    /// Whether somebody may change the vault while this looks.
    serving: bool,
    found: &'a mut dyn FnMut(Finding, Option<Fix>),
    progress: Progress<'a>,
    done: u64,
    total: u64,
    names: BTreeMap<OrgNo, String>,
    /// Organizations of which a row is missing or does not open: what nothing names there may be needed all the same.
    damaged: HashSet<OrgNo>,
    everything_is_damaged: bool,
    gone: blocks::AllGone,
}

/// What a finding is about.
enum Subject {
    Vault,
    Organization(OrgNo),
    Inode(Ino),
    Object(OrgNo, ObjectId),
    Path(OrgNo, Option<String>),
}

impl Subject {
    /// Number 0 is the vault's own.
    fn organization(org: OrgNo) -> Self {
        if org == OrgNo::VAULT { Subject::Vault } else { Subject::Organization(org) }
    }
}

impl Vault {
    /// Checks a vault, also while it serves a mount. Calls `found` for each finding; returns what is lost.
    pub fn fsck(&self, found: Found, progress: Progress) -> Result<Vec<Lost>> {
        self.audit(AuditEvent { detail: Some("fsck".into()), ..AuditEvent::new("key.unwrapped") });
        // Where writing has stopped, what is stored is checked all the same.
        let _ = self.sync();
        self.examine(true, &mut |finding, _| found(finding), progress)
    }

    /// As [`Vault::fsck`], opening nothing.
    pub fn fsck_without_keys(&self, found: Found, progress: Progress) -> Result<()> {
        let _ = self.sync();
        let mut found = |finding, _| found(finding);
        let mut check = Check::new(&self.records.store, &self.segments, &mut found, progress);
        check.serving = self.serving.load(Ordering::Relaxed);
        check.records()?;
        Ok(())
    }

    /// Checks a state directory that nobody serves: `options` say where its keys are. [`StoreError::Locked`] while
    /// somebody does. A vault that does not open is a finding, as far as damage is why.
    pub fn fsck_offline(
        state: &Path,
        options: &Options,
        how: FsckOptions,
        found: Found,
        progress: Progress,
    ) -> Result<Vec<Lost>> {
        if how.without_keys {
            check_without_keys(state, found, progress)?;
            return Ok(Vec::new());
        }
        for round in 0.. {
            let vault = match Vault::inspect(state, options.clone()) {
                Ok(vault) => vault,
                Err(error) => {
                    let Some(fatal) = why_closed(&error) else { return Err(error) };
                    found(fatal);
                    check_without_keys(state, found, progress)?;
                    return Ok(Vec::new());
                }
            };
            if round == 0 {
                vault.audit(AuditEvent { detail: Some("fsck".into()), ..AuditEvent::new("key.unwrapped") });
            }
            if how.repair && round < ROUNDS {
                let mut all = Vec::new();
                vault.examine(false, &mut |finding, fix| all.push((finding, fix)), progress)?;
                if all.iter().any(|(_, fix)| fix.is_some()) {
                    let mended = vault.mend(&mut all);
                    vault.close()?;
                    mended?;
                    let repaired: Vec<_> = all.into_iter().map(|(f, _)| f).filter(|f| f.repaired).collect();
                    let any = !repaired.is_empty();
                    repaired.into_iter().for_each(&mut *found);
                    if any {
                        continue;
                    }
                    let vault = Vault::inspect(state, options.clone())?;
                    let lost = vault.examine(true, &mut |finding, _| found(finding), progress);
                    vault.close()?;
                    return lost;
                }
            }
            let lost = vault.examine(true, &mut |finding, _| found(finding), progress);
            vault.close()?;
            return lost;
        }
        unreachable!("the last round returns")
    }

    /// `contents`: whether the blocks are read too, and not the records alone.
    fn examine(
        &self,
        contents: bool,
        found: &mut dyn FnMut(Finding, Option<Fix>),
        progress: Progress,
    ) -> Result<Vec<Lost>> {
        let mut check = Check::new(&self.records.store, &self.segments, found, progress);
        check.vault = Some(self);
        check.serving = self.serving.load(Ordering::Relaxed);
        check.organizations(self);
        let census = check.records()?;
        if !contents {
            return Ok(Vec::new());
        }
        check.total = check.done + census.bytes;
        let without_pieces = census.contents.keys().filter(|ino| !census.stored.contains_key(ino)).copied().collect();
        drop(census);
        check.open_keys(self, without_pieces);
        check.open_blocks(self)?;
        check.lost(self)
    }
}

/// Checks what needs no key, and says what that leaves out.
fn check_without_keys(state: &Path, found: Found, progress: Progress) -> Result<()> {
    let _lock = StateLock::take(state)?;
    let disk = Arc::new(RealDisk);
    let store = match Rows::open(state, disk.clone()) {
        Ok(store) => store,
        Err(StoreError::Corrupt(why)) => {
            found(Finding::new(FindingCode::Database, FindingPlace::file("records.db"), why));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let segments = Segments::open(state, disk, SEGMENT_LIMIT)?;
    let mut found = |finding, _| found(finding);
    Check::new(&store, &segments, &mut found, progress).records()?;
    Ok(())
}

/// The finding that stands for a vault that does not open, if damage is why.
fn why_closed(error: &Error) -> Option<Finding> {
    let (code, place) = match error {
        Error::Edited(_) => (FindingCode::Header, FindingPlace::file("vault.json")),
        Error::Corrupt(_) => (FindingCode::VaultRecord, FindingPlace::file("records.db")),
        Error::Store(StoreError::Corrupt(_)) => (FindingCode::Database, FindingPlace::file("records.db")),
        Error::Key(KeyError::NoSuchKey(_)) => {
            let fatal = Finding::new(FindingCode::KekMissing, FindingPlace::file("token"), error.to_string());
            return Some(Finding { severity: Severity::Fatal, ..fatal });
        }
        _ => return None,
    };
    Some(Finding::new(code, place, error.to_string()))
}

impl<'a> Check<'a> {
    fn new(
        store: &'a Rows,
        segments: &'a Segments,
        found: &'a mut dyn FnMut(Finding, Option<Fix>),
        progress: Progress<'a>,
    ) -> Self {
        Check {
            store,
            segments,
            vault: None,
            serving: false,
            found,
            progress,
            done: 0,
            total: 0,
            names: BTreeMap::new(),
            damaged: HashSet::new(),
            everything_is_damaged: false,
            gone: Default::default(),
        }
    }

    /// Gets the keys of the organizations' records.
    fn organizations(&mut self, vault: &Vault) {
        for organization in vault.organizations.all() {
            self.names.insert(organization.no, organization.id.to_string());
            let Err(error) = vault.enter(Ino::graveyard_of(organization.no), Patience::Wait) else { continue };
            let subject = Subject::Organization(organization.no);
            let key = organization.no.0.to_be_bytes();
            let row = FindingPlace::row(crate::store::Table::Organization, &key);
            match &error {
                Error::Corrupt(Place { .. }) => {
                    let message = format!("the key of its records does not open: {error}");
                    self.find(FindingCode::WrappedKey, subject, row, message, None);
                }
                Error::Key(KeyError::NoSuchKey(_)) => {
                    let message = format!("{error}: nothing of the organization can be read");
                    self.find(FindingCode::KekMissing, subject, FindingPlace::file("token"), message, None);
                }
                _ => {
                    let message = format!("the organization was not checked: {error}");
                    self.find(FindingCode::NotChecked, subject, FindingPlace::file("token"), message, None);
                }
            }
        }
    }

    /// SQLite's own check, the census, and the judgement on it.
    fn records(&mut self) -> Result<Census> {
        match self.store.integrity_check() {
            Ok(problems) => {
                for problem in problems {
                    self.everything_is_damaged = true;
                    let place = FindingPlace::file("records.db");
                    self.find(FindingCode::Database, Subject::Vault, place, problem, None);
                }
            }
            Err(StoreError::Corrupt(why)) => {
                self.everything_is_damaged = true;
                self.find(FindingCode::Database, Subject::Vault, FindingPlace::file("records.db"), why, None);
            }
            Err(error) => return Err(error.into()),
        }
        let store = self.store;
        let snapshot = store.snapshot()?;
        self.total = snapshot.size()?;
        let census = self.take_census(&snapshot)?;
        drop(snapshot);
        self.done = self.total;
        self.judge_tree(&census);
        self.judge_space(&census)?;
        Ok(census)
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(self.done.min(self.total), self.total);
    }

    /// Whether every row of the organization is there, as far as is known.
    fn trusts(&self, org: OrgNo) -> bool {
        !self.everything_is_damaged && !self.damaged.contains(&org)
    }

    /// Whether the organization's rows can be opened.
    fn opens(&self, org: OrgNo) -> bool {
        self.vault.is_some_and(|vault| vault.records.has_sealer(org))
    }

    fn find(&mut self, code: FindingCode, subject: Subject, place: FindingPlace, message: String, fix: Option<Fix>) {
        let mut finding = Finding::new(code, place, message);
        let org = match subject {
            Subject::Vault => None,
            Subject::Organization(org) => Some(org),
            Subject::Path(org, path) => {
                finding.path = path;
                Some(org)
            }
            Subject::Object(org, id) => {
                finding.object = Some(id.to_string());
                Some(org)
            }
            Subject::Inode(ino) => {
                finding.object = self.object_of(ino).map(|id| id.to_string());
                finding.path = self.path_of(ino);
                Some(ino.organization())
            }
        };
        finding.organization = org.and_then(|org| self.names.get(&org).cloned());
        // What cannot be read still names what it needs: nothing else depends on it.
        let stands_alone = matches!(
            code,
            FindingCode::Block
                | FindingCode::WrappedKey
                | FindingCode::KekMissing
                | FindingCode::SegmentMissing
                | FindingCode::SegmentShort
        );
        if finding.severity >= Severity::Error && !stands_alone {
            self.damaged.insert(org.unwrap_or(OrgNo::VAULT));
        }
        (self.found)(finding, fix.filter(|_| code.is_repairable()));
    }

    fn node(&self, ino: Ino) -> Option<Arc<Node>> {
        self.vault?.records.get::<Node>(ino).ok().flatten()
    }

    fn object_of(&self, ino: Ino) -> Option<ObjectId> {
        self.node(ino)?.object()
    }

    /// The path of an inode by the names that it and its folders remember.
    fn path_of(&self, ino: Ino) -> Option<String> {
        match &self.node(ino)?.kind {
            Kind::File { parent, name, .. } | Kind::Directory { parent, name } if !ino.is_top() => {
                self.path_below(*parent, name)
            }
            _ => None,
        }
    }

    fn path_below(&self, mut folder: Ino, name: &[u8]) -> Option<String> {
        const DEPTH_MAX: usize = 4096;
        let mut parts = vec![String::from_utf8_lossy(name).into_owned()];
        while !folder.is_top() && folder != Ino::ROOT {
            let Kind::Directory { parent, name } = &self.node(folder)?.kind else { return None };
            parts.push(String::from_utf8_lossy(name).into_owned());
            folder = *parent;
            if parts.len() > DEPTH_MAX {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join("/"))
    }
}
