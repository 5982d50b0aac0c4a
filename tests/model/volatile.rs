//! A volatile disk: writes down what happens to a state directory, and can say what a loss of power leaves of it.
//!
//! What is promised is little. A file's bytes and length last from its sync on, a name from the sync of its directory
//! on. Of what came after, any part may be there: each sector of a file as it was at a time of its own, each name
//! as it was at a time of its own, files and directories in no order. Only a file's length and its holes go forward
//! together, as in every journal of metadata: bytes that were cut off do not come back behind a length set later.

use super::dice::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};
use vaultfs::store::{Disk, Op};

/// What a disk writes whole.
const SECTOR: usize = 512;

/// One change, as it was announced; paths are relative to the state directory.
#[derive(Clone, Debug)]
pub enum Change {
    Create(PathBuf),
    CreateDirectory(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    Sync(PathBuf),
    SyncDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Change {
    pub fn is_sync(&self) -> bool {
        matches!(self, Change::Sync(_) | Change::SyncDirectory(_))
    }
}

/// Records every change of a state directory.
pub struct VolatileDisk {
    state: PathBuf,
    changes: Mutex<Vec<Change>>,
}

impl VolatileDisk {
    pub fn new(state: &Path) -> Self {
        VolatileDisk { state: state.to_owned(), changes: Mutex::default() }
    }

    /// How many changes there were.
    pub fn len(&self) -> usize {
        self.changes.lock().unwrap().len()
    }

    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().unwrap().clone()
    }
}

impl Disk for VolatileDisk {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        let inside = |path: &Path| path.strip_prefix(&self.state).unwrap_or(path).to_owned();
        let change = match op {
            Op::Create { path } => Change::Create(inside(path)),
            Op::CreateDirectory { path } => Change::CreateDirectory(inside(path)),
            Op::Write { path, offset, parts } => Change::Write(inside(path), *offset, parts.concat()),
            Op::Truncate { path, len } => Change::Truncate(inside(path), *len),
            Op::Punch { path, offset, len } => Change::Punch(inside(path), *offset, *len),
            Op::Sync { path } => Change::Sync(inside(path)),
            Op::SyncDirectory { path } => Change::SyncDirectory(inside(path)),
            Op::Rename { from, to } => Change::Rename(inside(from), inside(to)),
            Op::Remove { path } => Change::Remove(inside(path)),
        };
        self.changes.lock().unwrap().push(change);
        Ok(())
    }
}

/// How a loss of power treats what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// All of it is gone.
    All,
    /// Each file and each name is as new or as old as can be, as chance has it: reordered.
    Reordered,
    /// Each file was written in order up to some byte of some change; names are as chance has it.
    Torn,
    /// Each sector and each name is as it was at a time of its own.
    Scattered,
}

pub const LOSSES: [Loss; 4] = [Loss::All, Loss::Reordered, Loss::Torn, Loss::Scattered];

/// What is in the directory and what is on the disk.
#[derive(Clone, Default)]
pub struct Platter {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, Name>,
    directories: BTreeMap<PathBuf, Name>,
}

/// One file's bytes, whatever its name.
#[derive(Clone, Default)]
struct Contents {
    synced: Vec<u8>,
    /// Not synced, in order; writes of several sectors are one.
    unsynced: Vec<Change>,
}

/// What a name led to at the last sync of its directory, and what it came to lead to since.
#[derive(Clone, Default)]
struct Name {
    synced: Option<usize>,
    unsynced: Vec<Option<usize>>,
}

impl Name {
    fn now(&self) -> Option<usize> {
        self.unsynced.last().copied().unwrap_or(self.synced)
    }

    fn sync(&mut self) {
        self.synced = self.now();
        self.unsynced.clear();
    }

    fn after(&self, loss: Loss, dice: &mut Dice) -> Option<usize> {
        let newest = self.unsynced.len();
        let kept = match loss {
            Loss::All => 0,
            Loss::Reordered => dice.between(0, 1) * newest,
            Loss::Torn | Loss::Scattered => dice.between(0, newest),
        };
        if kept == 0 { self.synced } else { self.unsynced[kept - 1] }
    }
}

impl Platter {
    /// A state directory as it stands, all of it synced.
    pub fn of(state: &Path) -> Platter {
        let mut platter = Platter::default();
        let mut left = vec![state.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
                let path = entry.path();
                let inside = path.strip_prefix(state).unwrap().to_owned();
                if path.is_dir() {
                    platter.directories.insert(inside, Name { synced: Some(0), unsynced: Vec::new() });
                    left.push(path);
                } else {
                    let name = Name { synced: Some(platter.files.len()), unsynced: Vec::new() };
                    platter.names.insert(inside, name);
                    platter.files.push(Contents { synced: fs::read(path).unwrap(), unsynced: Vec::new() });
                }
            }
        }
        platter
    }

    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path) => {
                let file = self.files.len();
                self.files.push(Contents::default());
                self.names.entry(path.clone()).or_default().unsynced.push(Some(file));
            }
            Change::CreateDirectory(path) => {
                self.directories.entry(path.clone()).or_default().unsynced.push(Some(0));
            }
            Change::Rename(from, to) => {
                let file = self.names.get(from).and_then(Name::now);
                self.names.entry(to.clone()).or_default().unsynced.push(file);
                self.names.entry(from.clone()).or_default().unsynced.push(None);
            }
            Change::Remove(path) => {
                for names in [&mut self.names, &mut self.directories] {
                    if let Some(name) = names.get_mut(path).filter(|name| name.now().is_some()) {
                        name.unsynced.push(None);
                    }
                }
            }
            Change::Write(path, ..) | Change::Truncate(path, _) | Change::Punch(path, ..) => {
                // A file that lost its name while it is open is nobody's after a loss of power.
                if let Some(file) = self.names.get(path).and_then(Name::now) {
                    self.files[file].unsynced.push(change.clone());
                }
            }
            Change::Sync(path) => {
                if let Some(file) = self.names.get(path).and_then(Name::now) {
                    let file = &mut self.files[file];
                    file.synced = file.now();
                    file.unsynced.clear();
                }
            }
            Change::SyncDirectory(directory) => {
                for names in [&mut self.names, &mut self.directories] {
                    let inside = names.iter_mut().filter(|(path, _)| path.parent() == Some(directory));
                    inside.for_each(|(_, name)| name.sync());
                }
            }
        }
    }

    /// What a kill leaves: everything.
    pub fn after_kill(&self) -> Image {
        let directories = self.directories.iter().filter(|(_, name)| name.now().is_some());
        let files = self.names.iter().filter_map(|(path, name)| Some((path.clone(), self.files[name.now()?].now())));
        Image { files: files.collect(), directories: directories.map(|(path, _)| path.clone()).collect() }
    }

    pub fn after_power_loss(&self, loss: Loss, dice: &mut Dice) -> Image {
        let mut image = Image::default();
        // Parents come before what is in them.
        for (path, name) in &self.directories {
            let parent = path.parent().unwrap_or(Path::new(""));
            let reachable = parent == Path::new("") || image.directories.contains(parent);
            if name.after(loss, dice).is_some() && reachable {
                image.directories.insert(path.clone());
            }
        }
        for (path, name) in &self.names {
            let parent = path.parent().unwrap_or(Path::new(""));
            let reachable = parent == Path::new("") || image.directories.contains(parent);
            if let Some(file) = name.after(loss, dice).filter(|_| reachable) {
                image.files.insert(path.clone(), self.files[file].after(loss, dice));
            }
        }
        image
    }
}

impl Contents {
    fn now(&self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        self.unsynced.iter().for_each(|change| apply(&mut bytes, change));
        bytes
    }

    fn after(&self, loss: Loss, dice: &mut Dice) -> Vec<u8> {
        let count = self.unsynced.len();
        let mut bytes = self.synced.clone();
        match loss {
            Loss::All => {}
            Loss::Reordered => {
                if dice.between(0, 1) == 1 {
                    bytes = self.now();
                }
            }
            Loss::Torn => {
                let whole = dice.between(0, count);
                self.unsynced[..whole].iter().for_each(|change| apply(&mut bytes, change));
                if let Some(Change::Write(path, offset, data)) = self.unsynced.get(whole) {
                    // Up to the end of some sector.
                    let sectors = (*offset as usize % SECTOR + data.len()).div_ceil(SECTOR);
                    let end = dice.between(0, sectors) * SECTOR;
                    let torn = end.saturating_sub(*offset as usize % SECTOR).min(data.len());
                    apply(&mut bytes, &Change::Write(path.clone(), *offset, data[..torn].to_vec()));
                }
            }
            Loss::Scattered => bytes = self.scattered(dice),
        }
        bytes
    }

    fn scattered(&self, dice: &mut Dice) -> Vec<u8> {
        let count = self.unsynced.len();
        let is_metadata = |change: &Change| !matches!(change, Change::Write(..));
        // Lengths set and holes made so far are there, later ones are not.
        let metadata = dice.between(0, count);
        let next = (metadata..count).find(|at| is_metadata(&self.unsynced[*at])).unwrap_or(count);
        // Writes before a change of metadata may be missing all the same, except where that change says what is there.
        let mut bytes = self.synced.clone();
        let mut length = self.synced.len();
        let mut kept: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, change) in self.unsynced[..next].iter().enumerate() {
            match change {
                Change::Write(_, offset, data) => {
                    length = length.max(*offset as usize + data.len());
                    let (offset, end) = (*offset as usize, *offset as usize + data.len());
                    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
                        let until = *kept.entry(sector).or_insert_with(|| dice.between(0, next));
                        let part = offset.max(sector * SECTOR)..end.min((sector + 1) * SECTOR);
                        if at < until {
                            let data = &data[part.start - offset..part.end - offset];
                            bytes.resize(bytes.len().max(part.end), 0);
                            bytes[part].copy_from_slice(data);
                        }
                    }
                }
                metadata => {
                    apply(&mut bytes, metadata);
                    length = bytes.len();
                }
            }
        }
        // The length may be there without the bytes.
        if dice.between(0, 1) == 1 {
            bytes.resize(bytes.len().max(length), 0);
        }
        bytes
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(_, offset, data) if !data.is_empty() => {
            let at = *offset as usize;
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[at..at + data.len()].copy_from_slice(data);
        }
        Change::Truncate(_, len) => bytes.resize(*len as usize, 0),
        Change::Punch(_, offset, len) => {
            let end = bytes.len();
            bytes[(*offset as usize).min(end)..((offset + len) as usize).min(end)].fill(0);
        }
        _ => {}
    }
}

/// Files by name, and directories.
#[derive(Clone, Default)]
pub struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    directories: BTreeSet<PathBuf>,
}

impl Image {
    /// Puts it in the place of `state`.
    pub fn write(&self, state: &Path) {
        let _ = fs::remove_dir_all(state);
        fs::create_dir_all(state).unwrap();
        for directory in &self.directories {
            fs::create_dir_all(state.join(directory)).unwrap();
        }
        for (path, bytes) in &self.files {
            fs::write(state.join(path), bytes).unwrap();
        }
    }
}
