//! Many who write, truncate, replace, link and delete the same few names: each call ends as if it had been alone, and what
//! is left fits together, keys included.

use crate::dice::Dice;
use crate::kernel::{rename, truncate};
use crate::vault::Vault;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const NAMES: usize = 4;
const ACTORS: u64 = 6;
const ACTS: usize = 400;

/// What a call on a name may meet that others take away and give back meanwhile, on ext4.
fn is_expected(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| [libc::ENOENT, libc::EEXIST].contains(&errno))
}

fn overwrite(path: &Path, len: usize) -> io::Result<()> {
    File::create(path)?.write_all(&vec![b'o'; len])
}

fn append(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"appended")
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read_to_end(&mut Vec::new()).map(drop)
}

/// As editors do. The value is written by two, so that the first write may come after the rename.
fn save(path: &Path, new: &Path) -> io::Result<()> {
    let file = File::create(new)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| (&file).write_all(b"saved"));
        fs::rename(new, path).and(writer.join().expect("it does not panic"))
    })
}

fn act(names: &[PathBuf], dice: &mut Dice, own: &Path) -> (&'static str, io::Result<()>) {
    let mut name = || &names[dice.between(0, names.len() - 1)];
    let (one, two) = (name(), name());
    let len = dice.between(0, 6000);
    match dice.between(0, 11) {
        0 | 1 => ("overwrite", overwrite(one, len)),
        2 | 3 => ("truncate", truncate(one, len as i64)),
        4 => ("append", append(one)),
        5 => ("read", read(one)),
        6 | 7 => ("remove", fs::remove_file(one)),
        8 => ("rename", fs::rename(one, two)),
        9 => ("exchange", rename(one, two, libc::RENAME_EXCHANGE)),
        10 => ("link", fs::hard_link(one, two)),
        _ => ("save", save(one, own)),
    }
}

/// `over`: from then on the daemon may be gone, and an actor who meets an error has done enough.
fn storm(vault: &Vault, seed: u64, over: &AtomicBool) {
    let a = vault.at("a");
    let names: Vec<PathBuf> = (0..NAMES).map(|n| a.join(format!("f{n}"))).collect();
    thread::scope(|scope| {
        for actor in 0..ACTORS {
            let (names, own) = (&names, a.join(format!("new{actor}")));
            scope.spawn(move || {
                let mut dice = Dice::new(seed << 8 | actor);
                for n in 0..ACTS {
                    let (what, done) = act(names, &mut dice, &own);
                    let Err(error) = done else { continue };
                    if !is_expected(&error) {
                        assert!(over.load(Ordering::SeqCst), "seed {seed}, actor {actor}, act {n}: {what}: {error}");
                        return;
                    }
                }
            });
        }
    });
}

fn leaves_a_sound_vault(mount: &[&str]) {
    let vault = Vault::up_with(mount);
    vault.org("a");
    for seed in 0..4 {
        storm(&vault, seed, &AtomicBool::new(false));
        vault.is_sound().unwrap_or_else(|said| panic!("seed {seed}: {said}"));
    }
    vault.remount();
    vault.command(&["fsck"]).good();
}

#[test]
fn a_storm_on_few_names_loses_no_object_and_leaves_no_key() {
    leaves_a_sound_vault(&[]);
}

#[test]
fn a_storm_in_writeback_mode_loses_no_object_and_leaves_no_key() {
    leaves_a_sound_vault(&["-o", "writeback"]);
}

/// Services put, delete and restore the same names meanwhile.
#[test]
fn a_storm_beside_commands_loses_no_object_and_leaves_no_key() {
    let vault = Vault::up();
    vault.org("a");
    thread::scope(|scope| {
        let stormed = scope.spawn(|| (0..3).for_each(|seed| storm(&vault, seed, &AtomicBool::new(false))));
        let mut dice = Dice::new(7);
        while !stormed.is_finished() {
            let object = format!("a/f{}", dice.between(0, NAMES - 1));
            let done = match dice.between(0, 2) {
                0 => vault.command(&["object", "delete", &object]),
                _ => vault.command_with(&["object", "put", &object], b"put by a service"),
            };
            // Not found, or under two names just then.
            assert!([0, 1, 3, 7].contains(&done.code), "{}", done.err);
        }
        stormed.join().unwrap();
    });
    vault.command(&["fsck"]).good();
    vault.remount();
    vault.command(&["fsck"]).good();
}

#[test]
fn a_daemon_killed_in_a_storm_leaves_a_sound_vault() {
    let vault = Vault::up();
    vault.org("a");
    for seed in 0..4 {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let stormed = scope.spawn(|| storm(&vault, seed, &over));
            // Somewhere in it, or just after it on a fast machine.
            thread::sleep(Duration::from_millis(100 * (seed + 1)));
            over.store(true, Ordering::SeqCst);
            vault.kill();
            stormed.join().unwrap();
        });
        vault.mount(&[]);
        vault.is_sound().unwrap_or_else(|said| panic!("seed {seed}: {said}"));
    }
}
