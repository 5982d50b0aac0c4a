//! The same generated system calls on the mount and on ext4: answers, and what they leave behind.

use crate::vault::{Done, Vault, run};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each with a tree of its own and 60 calls, by root and two other users.
const ROUNDS: &str = "35";

/// Magic number of ext2, ext3 and ext4 (statfs(2)).
const EXT4: i64 = 0xEF53;

/// A directory on ext4: where the test itself has its files, or else on an image, which is unmounted again at the end.
struct Ext4 {
    at: PathBuf,
    mounted: bool,
}

impl Ext4 {
    fn in_directory(at: &Path) -> Ext4 {
        let at = at.join("ext4");
        fs::create_dir(&at).unwrap();
        let mounted = run("stat", &[&"-f", &"-c", &"%t", &at]).trim() != format!("{EXT4:x}");
        if mounted {
            let image = at.with_extension("img");
            fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
            run("mkfs.ext4", &[&"-q", &"-F", &"-b", &"4096", &image]);
            run("mount", &[&"-o", &"loop", &image, &at]);
        }
        Ext4 { at, mounted }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(&self.at).status();
        }
    }
}

/// What the calls said and left in a directory.
fn walk(at: &Path, seed: u64) -> String {
    fs::create_dir(at).unwrap();
    fs::set_permissions(at, PermissionsExt::from_mode(0o777)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount/beside.py");
    let mut python = Command::new("timeout");
    python.args(["-k", "5", "300", "/usr/bin/python3", script]).arg(at).args([&seed.to_string(), ROUNDS]);
    Done::of(&mut python, b"").good().text()
}

/// `SEEDS=20` walks twenty ways instead of one.
#[test]
fn generated_calls_end_as_on_ext4() {
    let vault = Vault::up();
    vault.open_to_others();
    let ext4 = Ext4::in_directory(vault.directory());
    let a = vault.org("a");
    fs::set_permissions(&a, PermissionsExt::from_mode(0o777)).unwrap();
    let seeds = std::env::var("SEEDS").map_or(1, |text| text.parse().unwrap());
    for seed in 1..=seeds {
        let name = format!("s{seed}");
        let (there, here) = std::thread::scope(|scope| {
            let there = scope.spawn(|| walk(&ext4.at.join(&name), seed));
            let here = walk(&a.join(&name), seed);
            (there.join().unwrap(), here)
        });
        let differs = there.lines().zip(here.lines()).position(|(there, here)| there != here);
        if let Some(n) = differs {
            let around = |text: &str| text.lines().skip(n.saturating_sub(8)).take(12).collect::<Vec<_>>().join("\n");
            panic!("seed {seed}: on ext4\n{}\n\nin a vault\n{}", around(&there), around(&here));
        }
        assert_eq!(there.lines().count(), here.lines().count());
    }
    vault.command(&["fsck"]).good();
}
