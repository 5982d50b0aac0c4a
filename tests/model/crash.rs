//! What a kill and a loss of power leave of a generated workload: at every sync, and in between.
//!
//! From each such state directory a vault is opened with the real token: what was acknowledged as durable is there,
//! the rest is the state after one of the operations, and `fsck` finds nothing. Now and then the power fails again
//! while that vault opens.
//!
//! `VAULTFS_CRASH_SEEDS=A..B` asks for other workloads, `VAULTFS_CRASH_EVERYWHERE=1` for a stop at every change.

use super::dice::Dice;
use super::history::{AGAIN, Doing, check, in_memory, told};
use super::operation::{Op, Path as Name, operation};
use super::template;
use super::token::{self, Token};
use super::volatile::{Change, LOSSES, Loss, Platter, VolatileDisk};
use super::world::{copy_tree, options};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::sync::Arc;
use vaultfs::vault::{RenameMode, Vault};

/// How many things a workload does.
const STEPS: usize = 100;
/// Stops of one workload that are not at a sync.
const WRITES: usize = 200;

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

/// Opens what every stop leaves; how many there were.
fn crash_everywhere(token: &Token, seed: u64, everywhere: bool) -> usize {
    let template = template(token);
    let directory = in_memory();
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

#[test]
fn init_cut_short_leaves_no_vault_or_a_whole_one() {
    token::isolated("crash::init_cut_short_leaves_no_vault_or_a_whole_one", |token| {
        let config = token.config();
        let (uri, pin) = (config.uri.to_string(), config.pin.to_string());
        let directory = in_memory();
        let state = directory.path().join("state");
        let disk = Arc::new(VolatileDisk::new(&state));
        Vault::init_on(&state, &uri, &pin, disk.clone()).unwrap();
        let (changes, mut platter, mut dice) = (disk.changes(), Platter::default(), Dice::new(1));
        let mut whole = 0;
        for end in 0..=changes.len() {
            if end > 0 {
                platter.apply(&changes[end - 1]);
            }
            for loss in LOSSES {
                platter.after_power_loss(loss, &mut dice).write(&state);
                if Vault::check(&state).is_ok() {
                    let vault = Vault::open(&state, options()).unwrap();
                    let found = &mut |finding| panic!("{loss:?} after {end} changes: {finding:?}");
                    vault.fsck(found, &mut |_, _| ()).unwrap();
                    vault.close().unwrap();
                    whole += 1;
                } else {
                    assert!(end < changes.len(), "{loss:?}: it was durable");
                    // Few of them: each is a new key in the token.
                    if dice.between(1, 10) == 1 {
                        Vault::init(&state, &uri, &pin).unwrap();
                    }
                }
            }
        }
        assert!(whole >= LOSSES.len(), "{whole}");
    });
}

#[test]
fn after_a_kill_or_a_loss_of_power_there_is_a_prefix_and_all_that_was_acknowledged() {
    let name = "crash::after_a_kill_or_a_loss_of_power_there_is_a_prefix_and_all_that_was_acknowledged";
    token::isolated(name, |token| {
        let everywhere = std::env::var_os("VAULTFS_CRASH_EVERYWHERE").is_some();
        let seeds = std::env::var("VAULTFS_CRASH_SEEDS").unwrap_or_else(|_| "1..2".into());
        let (from, to) = seeds.split_once("..").expect("A..B");
        let seeds = from.parse::<u64>().expect("a number")..to.parse::<u64>().expect("a number");
        for seed in seeds {
            let tried = crash_everywhere(token, seed, everywhere);
            assert!(tried > WRITES, "only {tried}");
            println!("seed {seed}: {tried} crashes passed");
        }
    });
}
