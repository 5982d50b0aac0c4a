//! What a kill and a loss of power leave of a generated workload: at every sync, and in between.
//!
//! From each such state directory a vault is opened with the real token: what was acknowledged as durable is there,
//! the rest is the state after one of the operations, and `fsck` finds nothing. Now and then the power fails again
//! while that vault opens.
//!
//! `VAULTFS_CRASH_SEEDS=A..B` asks for other workloads, `VAULTFS_CRASH_EVERYWHERE=1` for a stop at every change.

use super::operation::{Expect, Op, Path as Name, SLOTS, operation};
use super::reference::Reference;
use super::template;
use super::token::{self, Token};
use super::view::{Bindings, compare};
use super::volatile::{Change, Dice, Image, LOSSES, Loss, Platter, VolatileDisk};
use super::world::{World, copy_tree, options, view_of};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use vaultfs::store::RealDisk;
use vaultfs::vault::{RenameMode, Vault};

/// How many things a workload does.
const STEPS: usize = 100;
/// Stops of one workload that are not at a sync.
const WRITES: usize = 200;
/// One image in so many is lost again while a vault opens it.
const AGAIN: usize = 8;

/// Operations as applications put them together, and single ones of every kind.
fn steps() -> impl Strategy<Value = Vec<Op>> {
    let at = |path: &'static str| Name { organization: 0, parts: path.split('/').collect() };
    let file = move || proptest::sample::select(&["a", "b", "d/a", "d/b", "e/a"][..]).prop_map(at);
    let len = || prop_oneof![3 => 1usize..300, 2 => 3000usize..6000, 3 => 4000usize..40_000];
    let log = (file(), len(), any::<u8>(), 1usize..6).prop_map(|(path, len, fill, lines)| {
        let mut ops = vec![Op::Open { slot: 2, path, truncate: false, append: true }];
        for line in 0..lines {
            ops.push(Op::Write { slot: 2, at: 0, len: len / (line + 1) + 1, fill: fill.wrapping_add(line as u8) });
            ops.push(Op::Fsync { slot: 2 });
        }
        ops.push(Op::Close { slot: 2 });
        ops
    });
    let editor = (file(), len(), any::<u8>(), any::<bool>()).prop_map(move |(path, len, fill, synced)| {
        let mut ops = vec![Op::Save { path: at("new"), len, fill }];
        ops.extend(synced.then_some(Op::Sync));
        ops.push(Op::Rename { from: at("new"), to: path, mode: RenameMode::Replace });
        ops
    });
    // Many small changes, each synced: inline pieces until they are folded into a segment.
    let database = (file(), any::<u8>(), 10usize..90).prop_map(|(path, fill, pages)| {
        let mut ops = vec![Op::Open { slot: 1, path, truncate: false, append: false }];
        for page in 0..pages {
            let at = page * 7 % 40 * 512;
            ops.push(Op::Write { slot: 1, at, len: 400, fill: fill.wrapping_add(page as u8) });
            ops.extend((page % 8 == 0).then_some(Op::Fsync { slot: 1 }));
        }
        ops.extend([Op::Fsync { slot: 1 }, Op::Close { slot: 1 }]);
        ops
    });
    let folders = Just(vec![Op::MakeFolder { path: at("d") }, Op::MakeFolder { path: at("e") }]);
    let purge = (0..2usize).prop_map(|index| vec![Op::Purge { organization: 0, index }, Op::Sync]);
    let one = operation().prop_map(|op| vec![op]);
    prop_oneof![30 => one, 4 => log, 6 => editor, 1 => database, 2 => folders, 2 => purge]
}

fn workload(seed: u64) -> Vec<Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = proptest::collection::vec(steps(), STEPS).new_tree(&mut runner).unwrap();
    steps.current().into_iter().flatten().collect()
}

/// A state that may be found after a crash, while there are so many changes.
struct State {
    possible: Range<usize>,
    reference: Reference,
}

/// A workload as it was done: what changed on the disk, and what may be there after which change.
struct History {
    changes: Vec<Change>,
    states: Vec<State>,
    /// How many changes there were when something durable was acknowledged, and the number of its state.
    promises: Vec<(usize, usize)>,
}

impl History {
    fn possible(&self, end: usize) -> Vec<&Reference> {
        let promised = self.promises.iter().rev().find(|(at, _)| *at <= end).expect("the first is at 0").1;
        let possible = self.states[promised..].iter().filter(|state| state.possible.contains(&end));
        possible.map(|state| &state.reference).collect()
    }
}

struct Doing {
    world: World,
    disk: Arc<VolatileDisk>,
    reference: Reference,
    history: History,
}

impl Doing {
    fn on(state: &Path) -> Doing {
        let disk = Arc::new(VolatileDisk::new(state));
        let world = World::on(state, disk.clone());
        let reference = Reference::new();
        let states = vec![State { possible: 0..usize::MAX, reference: reference.clone() }];
        Doing { world, disk, reference, history: History { changes: Vec::new(), states, promises: vec![(0, 0)] } }
    }

    fn ended(mut self) -> History {
        self.world.kill();
        self.history.changes = self.disk.changes();
        self.history
    }

    fn state(&mut self, began: usize, reference: Reference) {
        self.history.states.push(State { possible: began..usize::MAX, reference });
    }

    fn step(&mut self, op: Op) {
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
        let began = self.disk.len();
        self.reference.between(op).into_iter().for_each(|between| self.state(began, between));
        let meant = self.reference.apply(op);
        self.state(began, self.reference.clone());
        assert_eq!(self.world.apply(op, None), meant, "{op:?}");
        let durable = matches!(
            op,
            Op::Sync | Op::Fsync { .. } | Op::Put { .. } | Op::Purge { .. } | Op::Restore { .. } | Op::Remount
        );
        if durable && meant.is_ok() {
            self.history.promises.push((self.disk.len(), self.history.states.len() - 1));
        }
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

/// Opens what every stop leaves; how many there were.
fn crash_everywhere(token: &Token, seed: u64, everywhere: bool) -> usize {
    let template = template(token);
    // In memory, where there is one: that disk is only played.
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let state = directory.path().join("state");
    copy_tree(&template.path().join("state"), &state);
    let mut platter = Platter::of(&state);
    let mut doing = Doing::on(&state);
    workload(seed).into_iter().for_each(|op| doing.step(op));
    let history = doing.ended();
    let crashed = directory.path().join("crashed");
    let mut dice = Dice::new(seed);
    let mut tried = 0;
    for end in 0..=history.changes.len() {
        if end > 0 {
            platter.apply(&history.changes[end - 1]);
        }
        let at_sync =
            end > 0 && history.changes[end - 1].is_sync() || history.changes.get(end).is_some_and(Change::is_sync);
        let sampled = everywhere || dice.between(1, history.changes.len()) <= WRITES;
        if !(at_sync || sampled) {
            continue;
        }
        let loss = LOSSES[dice.between(0, LOSSES.len() - 1)];
        let mut images = vec![(Some(loss), platter.after_power_loss(loss, &mut dice))];
        if at_sync || everywhere {
            images.push((Some(Loss::All), platter.after_power_loss(Loss::All, &mut dice)));
        }
        if dice.between(1, 4) == 1 {
            images.push((None, platter.after_kill()));
        }
        let possible = history.possible(end);
        for (loss, image) in images {
            let again = dice.between(1, AGAIN) == 1;
            let checked = check(&image, &crashed, &possible, again.then_some(&mut dice));
            checked.unwrap_or_else(|error| {
                let how = loss.map_or("a kill".into(), |loss| format!("a loss of power, {loss:?}"));
                panic!("seed {seed}, {how} after {end} changes: {error}\n{}", told(&history.changes[..end]))
            });
            tried += 1;
        }
    }
    tried
}

/// Opens an image and looks at everything; with dice, the power fails while it is opened and it is opened again.
fn check(image: &Image, state: &Path, possible: &[&Reference], again: Option<&mut Dice>) -> Result<(), String> {
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

fn opened(state: &Path, disk: Arc<dyn vaultfs::store::Disk>, possible: &[&Reference]) -> Result<(), String> {
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
fn told(changes: &[Change]) -> String {
    let line = |change: &Change| match change {
        Change::Write(path, offset, bytes) => format!("  write {} {offset}+{}", path.display(), bytes.len()),
        other => format!("  {other:?}"),
    };
    changes[changes.len().saturating_sub(25)..].iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn after_a_kill_or_a_loss_of_power_there_is_a_prefix_and_all_that_was_acknowledged() {
    let name = "crash::after_a_kill_or_a_loss_of_power_there_is_a_prefix_and_all_that_was_acknowledged";
    token::isolated(name, |token| {
        let everywhere = std::env::var_os("VAULTFS_CRASH_EVERYWHERE").is_some();
        let seeds = std::env::var("VAULTFS_CRASH_SEEDS").unwrap_or_else(|_| "1..3".into());
        let (from, to) = seeds.split_once("..").expect("A..B");
        let seeds = from.parse::<u64>().expect("a number")..to.parse::<u64>().expect("a number");
        for seed in seeds {
            let tried = crash_everywhere(token, seed, everywhere);
            assert!(tried > WRITES, "only {tried}");
            println!("seed {seed}: {tried} crashes passed");
        }
    });
}
