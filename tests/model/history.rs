//! A workload as it is done, and what may be found of it when it is cut short.

use super::dice::Dice;
use super::operation::{Expect, Op, SLOTS};
use super::reference::{Outcome, Reference};
use super::view::{Bindings, compare};
use super::volatile::{Change, Image, LOSSES, Platter, VolatileDisk};
use super::world::{World, options, view_of};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use vaultfs::store::{Disk, RealDisk};
use vaultfs::vault::Vault;

/// One image in so many is lost again while a vault opens it.
pub const AGAIN: usize = 8;

/// A state that may be found after a crash, while there are so many changes.
pub struct State {
    possible: Range<usize>,
    reference: Reference,
}

/// A workload as it was done: what changed on the disk, and what may be there after which change.
pub struct History {
    pub changes: Vec<Change>,
    states: Vec<State>,
    /// How many changes there were when something durable was acknowledged, and the number of its state.
    promises: Vec<(usize, usize)>,
}

impl History {
    pub fn possible(&self, end: usize) -> Vec<&Reference> {
        let promised = self.promises.iter().rev().find(|(at, _)| *at <= end).expect("the first is at 0").1;
        let possible = self.states[promised..].iter().filter(|state| state.possible.contains(&end));
        possible.map(|state| &state.reference).collect()
    }
}

/// A workload under way.
pub struct Doing {
    pub world: World,
    pub disk: Arc<VolatileDisk>,
    pub reference: Reference,
    history: History,
}

impl Doing {
    pub fn on(state: &Path) -> Doing {
        Doing::through(state, |disk| disk)
    }

    /// `above`: what changes pass before they come to the disk.
    pub fn through(state: &Path, above: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Doing {
        let disk = Arc::new(VolatileDisk::new(state));
        let world = World::on(state, above(disk.clone()));
        let reference = Reference::new();
        let states = vec![State { possible: 0..usize::MAX, reference: reference.clone() }];
        Doing { world, disk, reference, history: History { changes: Vec::new(), states, promises: vec![(0, 0)] } }
    }

    /// Kills it.
    pub fn ended(mut self) -> History {
        self.world.kill();
        self.history.changes = self.disk.changes();
        self.history
    }

    fn state(&mut self, began: usize, reference: Reference) {
        self.history.states.push(State { possible: began..usize::MAX, reference });
    }

    pub fn step(&mut self, op: Op) {
        match op {
            Op::Kill { .. } => self.kill(),
            // They need the ids of versions, which `case.rs` knows.
            Op::Guard { .. } => {}
            Op::Put { path, len, fill, .. } => self.apply(&Op::Put { path, len, fill, expect: Expect::Anything }),
            Op::Remount => {
                (0..SLOTS).for_each(|slot| self.apply(&Op::Close { slot }));
                self.apply(&Op::Remount);
            }
            op => self.apply(&op),
        }
    }

    fn apply(&mut self, op: &Op) {
        let (done, meant) = self.try_apply(op);
        assert_eq!(done, meant, "{op:?}");
    }

    /// What the vault answered, and what the reference.
    pub fn try_apply(&mut self, op: &Op) -> (Outcome, Outcome) {
        let began = self.disk.len();
        self.reference.between(op).into_iter().for_each(|between| self.state(began, between));
        let meant = self.reference.apply(op);
        self.state(began, self.reference.clone());
        let done = self.world.apply(op, None);
        if is_durable(op) && meant.is_ok() && done.is_ok() {
            self.history.promises.push((self.disk.len(), self.history.states.len() - 1));
        }
        (done, meant)
    }

    /// The daemon dies, and what it left goes on, unsynced as it may be.
    fn kill(&mut self) {
        self.world.disk.stop_after(0);
        let at = self.disk.len();
        self.world.kill();
        let found = view_of(self.world.vault(), true);
        let promised = self.history.promises.last().expect("the first is always there").1;
        let after = |state: &State| {
            let mut reference = state.reference.clone();
            reference.crash();
            reference
        };
        let fits = |number: &usize| {
            let meant = after(&self.history.states[*number]).view(true);
            compare(&found, &meant, &mut Bindings::default()).is_ok()
        };
        let number = (promised..self.history.states.len()).rev().find(fits).expect("a state that was there");
        for lost in &mut self.history.states[number + 1..] {
            lost.possible.end = lost.possible.end.min(at + 1);
        }
        let mut reference = after(&self.history.states[number]);
        reference.forget_nothing_of(&self.reference);
        self.reference = reference.clone();
        self.state(at, reference);
    }
}

/// Whether its success says that everything so far is durable.
pub fn is_durable(op: &Op) -> bool {
    matches!(op, Op::Sync | Op::Fsync { .. } | Op::Put { .. } | Op::Purge { .. } | Op::Restore { .. } | Op::Remount)
}

/// Opens an image and looks at everything; with dice, the power fails while it is opened and it is opened again.
pub fn check(image: &Image, state: &Path, possible: &[&Reference], again: Option<&mut Dice>) -> Result<(), String> {
    image.write(state);
    if let Some(dice) = again {
        let mut platter = Platter::of(state);
        let disk = Arc::new(VolatileDisk::new(state));
        opened(state, disk.clone(), possible)?;
        let changes = disk.changes();
        changes[..dice.between(0, changes.len())].iter().for_each(|change| platter.apply(change));
        let loss = LOSSES[dice.between(0, LOSSES.len() - 1)];
        platter.after_power_loss(loss, dice).write(state);
        return opened(state, Arc::new(RealDisk), possible).map_err(|error| format!("{loss:?} when opened: {error}"));
    }
    opened(state, Arc::new(RealDisk), possible)
}

/// Opens what is there and looks at everything.
pub fn opened(state: &Path, disk: Arc<dyn Disk>, possible: &[&Reference]) -> Result<(), String> {
    let vault = Vault::open_on(state, options(), disk).map_err(|error| format!("it does not open: {error}"))?;
    let found = view_of(&vault, true);
    let mut difference = String::new();
    let fits = possible.iter().rev().any(|reference| {
        let mut reference = (*reference).clone();
        reference.crash();
        match compare(&found, &reference.view(true), &mut Bindings::default()) {
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

/// The last changes, without their bytes.
pub fn told(changes: &[Change]) -> String {
    let line = |change: &Change| match change {
        Change::Write(path, offset, bytes) => format!("  write {} {offset}+{}", path.display(), bytes.len()),
        other => format!("  {other:?}"),
    };
    changes[changes.len().saturating_sub(25)..].iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A directory in memory, where there is one: the disk is only played.
pub fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}
