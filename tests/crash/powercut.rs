//! The power of the state directory's disk is cut: ext4 on a disk that keeps only what was synced.

use crate::dice::Dice;
use crate::disk::{self, Disk};
use crate::vault::{Vault, run, try_run};
use crate::{Score, loads, rounds};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

/// Rounds after which a new disk is taken.
const FRESH: usize = 10;
/// Bytes; those never written take no room.
const SIZE: u64 = 2 << 30;

/// A vault whose state directory is on a file system of its own, on a disk of its own.
struct Machine {
    disk: Option<Disk>,
    vault: Vault,
}

impl Machine {
    fn new() -> Machine {
        let vault = Vault::without_state();
        let mut machine = Machine { disk: None, vault };
        let image = machine.image();
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        run("mkfs.ext4", &[&"-q", &"-E", &"nodiscard", &image]);
        fs::create_dir(machine.point()).unwrap();
        fs::create_dir(machine.vault.state()).unwrap();
        machine.power_on();
        fs::remove_dir(machine.vault.state().join("lost+found")).unwrap();
        machine.vault.init();
        machine
    }

    fn image(&self) -> PathBuf {
        self.vault.directory().join("image")
    }

    fn point(&self) -> PathBuf {
        self.vault.directory().join("volatile")
    }

    /// ext4 recovers by its journal.
    fn power_on(&mut self) {
        self.disk = Some(Disk::mount(&self.image(), &self.point()));
        run("mount", &[&"-t", &"ext4", &"-o", &"loop", &self.point().join(disk::NAME), &self.vault.state()]);
    }

    fn power_off(&mut self, luck: Option<&mut Dice>) {
        self.disk.as_ref().expect("it is on").cut(luck);
        self.vault.kill();
    }

    /// Clears away what stood on the dead disk.
    fn clear(&mut self) {
        run("umount", &[&self.vault.state()]);
        self.disk.take().expect("it was on").umount();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Some(disk) = self.disk.take() else { return };
        if self.vault.daemon().is_some() {
            self.vault.kill();
        }
        disk.cut(None);
        try_run("umount", &[&"-l", &self.vault.state()]);
        try_run("umount", &[&"-l", &self.point()]);
    }
}

#[test]
fn after_a_power_cut_under_load_everything_acknowledged_is_whole() {
    let (mut score, mut dice) = (Score::default(), Dice::thrown());
    let mut left = rounds("VAULTFS_POWERCUTS", 2);
    while left > 0 {
        let mut machine = Machine::new();
        machine.vault.mount(&loads::OPTIONS);
        let a = machine.vault.org("a");
        for round in 0..left.min(FRESH) {
            left -= 1;
            let at = a.join(format!("{round}"));
            let done = loads::until(&at, round, || {
                std::thread::sleep(Duration::from_millis(dice.between(200, 4000) as u64));
                // A disk may have written any part of what it was not told to sync.
                machine.power_off((round % 2 == 1).then_some(&mut dice));
            });
            machine.clear();
            machine.power_on();
            if !score.add("cut", &done, loads::recovered(&machine.vault, &done)) {
                break;
            }
        }
    }
    score.end();
}
