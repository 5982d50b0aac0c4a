//! What a kill and a power loss leave at every sync of a workload, made from the changes that passed the seam.
//!
//! A kill leaves all changes up to one of them; a power loss, of these, only what a later sync covers. From
//! each such directory a vault is opened with the real token: what was fsynced is there, the rest is the state
//! after one of the operations, and `fsck` finds nothing.

use super::operation::{Op, Path as Name};
use super::reference::Reference;
use super::view::{Bindings, compare};
use super::world::{World, copy_tree, options, view_of};
use super::{template, token};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, io};
use vaultfs::store::{Disk, Op as Change};
use vaultfs::vault::{RenameMode, Vault};

/// One change, as it was announced; paths are relative to the state directory.
#[derive(Clone)]
enum Recorded {
    Create(PathBuf),
    CreateDirectory(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    Sync(PathBuf),
    SyncDirectory(PathBuf),
    Remove(PathBuf),
}

#[derive(Default)]
pub struct RecordingDisk {
    state: PathBuf,
    changes: Mutex<Vec<Recorded>>,
}

impl RecordingDisk {
    fn len(&self) -> usize {
        self.changes.lock().unwrap().len()
    }
}

impl Disk for RecordingDisk {
    fn before(&self, op: &Change<'_>) -> io::Result<()> {
        let inside = |path: &Path| path.strip_prefix(&self.state).unwrap_or(path).to_owned();
        let recorded = match op {
            Change::Create { path } => Recorded::Create(inside(path)),
            Change::CreateDirectory { path } => Recorded::CreateDirectory(inside(path)),
            Change::Write { path, offset, parts } => Recorded::Write(inside(path), *offset, parts.concat()),
            Change::Truncate { path, len } => Recorded::Truncate(inside(path), *len),
            Change::Punch { path, offset, len } => Recorded::Punch(inside(path), *offset, *len),
            Change::Sync { path } => Recorded::Sync(inside(path)),
            Change::SyncDirectory { path } => Recorded::SyncDirectory(inside(path)),
            Change::Remove { path } => Recorded::Remove(inside(path)),
        };
        self.changes.lock().unwrap().push(recorded);
        Ok(())
    }
}

/// Files by name, and directories.
#[derive(Clone, Default)]
struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    directories: BTreeSet<PathBuf>,
}

impl Image {
    fn apply(&mut self, change: &Recorded) {
        match change {
            Recorded::Create(path) => drop(self.files.insert(path.clone(), Vec::new())),
            Recorded::CreateDirectory(path) => drop(self.directories.insert(path.clone())),
            Recorded::Write(path, offset, bytes) => {
                let (file, at) = (self.files.entry(path.clone()).or_default(), *offset as usize);
                file.resize(file.len().max(at + bytes.len()), 0);
                file[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Recorded::Truncate(path, len) => self.files.entry(path.clone()).or_default().resize(*len as usize, 0),
            Recorded::Punch(path, offset, len) => {
                let file = self.files.entry(path.clone()).or_default();
                let end = file.len();
                file[(*offset as usize).min(end)..((offset + len) as usize).min(end)].fill(0);
            }
            Recorded::Remove(path) => {
                self.files.remove(path);
                self.directories.remove(path);
            }
            Recorded::Sync(_) | Recorded::SyncDirectory(_) => {}
        }
    }

    /// What a power loss leaves of these changes, none of the unsynced ones having reached the disk.
    fn after_power_loss(&self, changes: &[Recorded]) -> Image {
        let synced = |at: usize, change: &Recorded| {
            let parent = |path: &Path| path.parent().unwrap_or(Path::new("")).to_owned();
            changes[at..].iter().any(|later| match (change, later) {
                (Recorded::Create(path) | Recorded::CreateDirectory(path), Recorded::SyncDirectory(directory))
                | (Recorded::Remove(path), Recorded::SyncDirectory(directory)) => parent(path) == *directory,
                (
                    Recorded::Write(path, ..) | Recorded::Truncate(path, _) | Recorded::Punch(path, ..),
                    Recorded::Sync(file),
                ) => path == file,
                _ => false,
            })
        };
        let mut image = self.clone();
        let mut names: BTreeSet<PathBuf> = self.files.keys().cloned().collect();
        for (at, change) in changes.iter().enumerate() {
            if !synced(at, change) {
                continue;
            }
            if let Recorded::Create(path) = change {
                names.insert(path.clone());
            }
            image.apply(change);
        }
        // Bytes of a file whose name was not synced are nowhere.
        image.files.retain(|path, _| names.contains(path));
        image
    }

    fn write(&self, state: &Path) {
        let _ = fs::remove_dir_all(state);
        fs::create_dir_all(state).unwrap();
        for directory in &self.directories {
            fs::create_dir_all(state.join(directory)).unwrap();
        }
        for (path, bytes) in &self.files {
            if state.join(path).parent().unwrap().exists() {
                fs::write(state.join(path), bytes).unwrap();
            }
        }
    }

    fn read(state: &Path) -> Image {
        let mut image = Image::default();
        let mut left = vec![state.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
                let path = entry.path();
                let inside = path.strip_prefix(state).unwrap().to_owned();
                if path.is_dir() {
                    image.directories.insert(inside);
                    left.push(path);
                } else {
                    image.files.insert(inside, fs::read(path).unwrap());
                }
            }
        }
        image
    }
}

/// Appends, overwrites, saves by rename, deletes, with an fsync now and then; inline and segment-sized values.
fn workload() -> Vec<Op> {
    let at = |path: &'static str| Name { organization: 0, parts: path.split('/').collect() };
    let save = |path, len, fill| Op::Save { path: at(path), len, fill };
    let rename = |from, to| Op::Rename { from: at(from), to: at(to), mode: RenameMode::Replace };
    let write = |from, len, fill| Op::Write { slot: 0, at: from, len, fill };
    let mut ops = vec![Op::MakeFolder { path: at("d") }, save("a", 100, 1), save("d/a", 20_000, 2), Op::Sync];
    ops.push(Op::Open { slot: 0, path: at("d/a"), truncate: false, append: false });
    for round in 0..3u8 {
        let shift = usize::from(round);
        ops.extend([write(20_000 + shift * 9000, 9000, 10 + round), write(shift * 300, 200, 20 + round)]);
        ops.extend([Op::Fsync { slot: 0 }, save("b", 300, 30 + round), rename("b", "a"), Op::Flush { slot: 0 }]);
        ops.extend([save("b", 30_000, 40 + round), rename("b", "d/b"), Op::Unlink { path: at("d/b") }]);
        ops.push(Op::Punch { slot: 0, at: 4096, len: 5000 });
        ops.extend([save("e", 5000, 50 + round), Op::Sync, Op::Truncate { path: at("e"), size: 10 }]);
    }
    ops.extend([
        Op::Close { slot: 0 },
        Op::Unlink { path: at("a") },
        Op::Purge { organization: 0, index: 0 },
        Op::Sync,
    ]);
    ops
}

#[test]
fn a_kill_or_a_power_loss_at_every_sync_leaves_a_prefix_and_all_that_was_fsynced() {
    let name = "crash::a_kill_or_a_power_loss_at_every_sync_leaves_a_prefix_and_all_that_was_fsynced";
    token::isolated(name, |token| {
        let template = template(token);
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        copy_tree(&template.path().join("state"), &state);
        let before = Image::read(&state);
        let disk = Arc::new(RecordingDisk { state: state.clone(), changes: Mutex::default() });
        let mut world = World::on(&state, disk.clone());
        let mut reference = Reference::new();
        // Each state, and how many changes there were when the operation that led to it began.
        let mut states = vec![(0, reference.clone())];
        // How many changes there were when a sync had returned, and the number of the state that it promised.
        let mut promises = vec![(0, 0)];
        for op in workload() {
            let began = disk.len();
            states.extend(reference.between(&op).into_iter().map(|state| (began, state)));
            reference.apply(&op).unwrap();
            states.push((began, reference.clone()));
            world.apply(&op, None).unwrap();
            if matches!(op, Op::Sync | Op::Fsync { .. } | Op::Purge { .. }) {
                promises.push((disk.len(), states.len() - 1));
            }
        }
        let changes = disk.changes.lock().unwrap().clone();
        world.kill();
        drop(world);
        let crashed = directory.path().join("crashed");
        let mut tried = 0;
        for end in 0..=changes.len() {
            let at_sync = end > 0 && matches!(changes[end - 1], Recorded::Sync(_) | Recorded::SyncDirectory(_));
            // One in sixteen of the others, the same ones each time.
            let sampled = (end as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60 == 0;
            let before_sync = changes.get(end).is_some_and(|c| matches!(c, Recorded::Sync(_)));
            if !(at_sync || before_sync || sampled) {
                continue;
            }
            let mut killed = before.clone();
            changes[..end].iter().for_each(|change| killed.apply(change));
            for (how, image) in [("kill", killed), ("power loss", before.after_power_loss(&changes[..end]))] {
                image.write(&crashed);
                let promised = promises.iter().rev().find(|(at, _)| *at <= end).expect("the first is at 0").1;
                let possible: Vec<_> = states[promised..].iter().take_while(|(began, _)| *began <= end).collect();
                check(&crashed, &possible).unwrap_or_else(|error| panic!("{how} after {end} changes: {error}"));
                tried += 1;
            }
        }
        assert!(tried > 50, "{tried}");
    });
}

fn check(state: &Path, possible: &[&(usize, Reference)]) -> Result<(), String> {
    let vault = Vault::open(state, options()).map_err(|error| format!("it does not open: {error}"))?;
    let found = view_of(&vault, true);
    let mut difference = String::new();
    let fits = possible.iter().rev().any(|(_, state)| {
        let mut state = state.clone();
        state.crash();
        match compare(&found, &state.view(true), &mut Bindings::default()) {
            Ok(()) => true,
            Err(message) => {
                difference = message;
                false
            }
        }
    });
    let mut findings = Vec::new();
    vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| ()).map_err(|error| error.to_string())?;
    vault.close().map_err(|error| error.to_string())?;
    if !fits {
        return Err(format!("none of {} states is there: {difference}", possible.len()));
    }
    if findings.is_empty() { Ok(()) } else { Err(format!("fsck: {findings:?}")) }
}
