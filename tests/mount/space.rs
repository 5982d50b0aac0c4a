//! Space comes back: what is deleted, purged, pruned, overwritten or cut off takes no blocks of the disk any more.

use crate::vault::{Vault, run};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Bytes that the state directory takes on the disk, without the audit log, the reserve for a full disk, and SQLite's log,
/// which is used over and over.
fn taken(vault: &Vault) -> u64 {
    let said = run(
        "du",
        &[&"-s", &"--block-size=1", &"--exclude=audit", &"--exclude=reserve", &"--exclude=*-wal", &vault.state()],
    );
    said.split_whitespace().next().unwrap().parse().unwrap()
}

/// What was written before is on the disk, and what is not needed is given back within a while.
#[track_caller]
fn comes_down_to(vault: &Vault, most: u64, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // A sync is what space is given back after.
        File::open(vault.at("a")).unwrap().sync_all().unwrap();
        let now = taken(vault);
        if now <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {now} bytes are taken, {most} at most expected");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Noise, so that nothing below the mount can make it smaller.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn deleting_and_purging_give_blocks_back() {
    let vault = Vault::up();
    let a = vault.org("a");
    let before = taken(&vault) + 2 * MIB;
    for n in 0..4 {
        fs::write(a.join(n.to_string()), noise(5 * MIB)).unwrap();
    }
    File::open(&a).unwrap().sync_all().unwrap();
    assert!(taken(&vault) > before + 15 * MIB);
    for n in 0..4 {
        fs::remove_file(a.join(n.to_string())).unwrap();
    }
    assert!(taken(&vault) > before + 15 * MIB, "tombstones keep their bytes");
    for tombstone in vault.tombstones("a") {
        fs::remove_file(tombstone).unwrap();
    }
    comes_down_to(&vault, before, "after the purge");
    vault.command(&["fsck"]).good();
}

#[test]
fn pruned_versions_give_blocks_back() {
    let vault = Vault::up_with(&["-o", "keep_versions=2"]);
    let a = vault.org("a");
    let before = taken(&vault) + 2 * MIB;
    // Written by a program of its own: what this process has open, the programs that other tests start hold for a moment too.
    let source = vault.directory().join("noise");
    fs::write(&source, noise(5 * MIB)).unwrap();
    let from = format!("if={}", source.display());
    let to = |name: &str| format!("of={}", a.join(name).display());
    for _ in 0..6 {
        run("dd", &[&from, &to("new"), &"bs=1M", &"status=none"]);
        fs::rename(a.join("new"), a.join("f")).unwrap();
    }
    comes_down_to(&vault, before + 10 * MIB, "after six saves");
    // In place: each close is a version of all that it changed.
    for _ in 0..4 {
        run("dd", &[&from, &to("f"), &"bs=1M", &"conv=notrunc", &"status=none"]);
    }
    comes_down_to(&vault, before + 10 * MIB, "after four overwrites");
    vault.command(&["fsck"]).good();
}

#[test]
fn truncating_and_punching_give_blocks_back() {
    let vault = Vault::up_with(&["-o", "keep_versions=1"]);
    let a = vault.org("a");
    let before = taken(&vault) + 2 * MIB;
    fs::write(a.join("f"), noise(10 * MIB)).unwrap();
    fs::write(a.join("g"), noise(10 * MIB)).unwrap();
    File::options().write(true).open(a.join("f")).unwrap().set_len(MIB).unwrap();
    comes_down_to(&vault, before + 11 * MIB, "after a truncation");
    run("fallocate", &[&"--punch-hole", &"--length", &"8MiB", &a.join("g")]);
    comes_down_to(&vault, before + 3 * MIB, "after a punched hole");
    vault.command(&["fsck"]).good();
}

#[test]
fn random_overwrites_of_an_image_stay_within_bounds() {
    let vault = Vault::up_with(&["-o", "keep_versions=1"]);
    let a = vault.org("a");
    let before = taken(&vault);
    let value = noise(8 * MIB);
    fs::write(a.join("image"), &value).unwrap();
    let mut state = 7u64;
    for round in 0..5 {
        let image = File::options().write(true).open(a.join("image")).unwrap();
        for _ in 0..8 * MIB / 4096 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let block = state >> 33;
            image.write_all_at(&value[(block % 1000) as usize..][..4096], block % (8 * MIB / 4096) * 4096).unwrap();
        }
        image.sync_all().unwrap();
        drop(image);
        // One version of 8 MiB, blocks of which a part is still needed, and the records.
        comes_down_to(&vault, before + 2 * 8 * MIB + 12 * MIB, &format!("round {round}"));
    }
    vault.command(&["fsck"]).good();
}

#[test]
fn random_writes_of_a_few_bytes_stay_within_bounds() {
    let vault = Vault::up_with(&["-o", "keep_versions=1"]);
    let a = vault.org("a");
    let before = taken(&vault);
    let mut value = noise(2 * MIB);
    fs::write(a.join("image"), &value).unwrap();
    let mut state = 11u64;
    for round in 0..4 {
        let image = File::options().write(true).open(a.join("image")).unwrap();
        for _ in 0..5000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) % (2 * MIB - 100);
            let bytes = [(state >> 20) as u8; 100];
            image.write_all_at(&bytes, at).unwrap();
            value[at as usize..][..100].copy_from_slice(&bytes);
        }
        image.sync_all().unwrap();
        drop(image);
        // Not a unit of 4 KiB for each write, of which there are 20,000.
        comes_down_to(&vault, before + 2 * 2 * MIB + 12 * MIB, &format!("round {round}"));
    }
    assert!(fs::read(a.join("image")).unwrap() == value);
    vault.command(&["fsck"]).good();
}
