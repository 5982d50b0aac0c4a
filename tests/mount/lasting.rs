//! What is the same after a remount, and after `kill -9` of the daemon.

use crate::kernel::set_attribute;
use crate::vault::{Vault, run};
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn a_remount_keeps_inode_numbers_times_owners_modes_and_attributes() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/f"), "value").unwrap();
    fs::write(a.join("old"), "value").unwrap();
    let at = |seconds, nanos| UNIX_EPOCH + Duration::new(seconds, nanos);
    let times = FileTimes::new().set_accessed(at(1_000_000_001, 123_456_789)).set_modified(at(5_000_000_000, 1));
    File::open(a.join("d/f")).unwrap().set_times(times).unwrap();
    let past = UNIX_EPOCH - Duration::new(1_000_000, 250_000_000);
    File::open(a.join("old")).unwrap().set_times(FileTimes::new().set_modified(past)).unwrap();
    chown(a.join("d/f"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(a.join("d/f"), PermissionsExt::from_mode(0o4751)).unwrap();
    set_attribute(a.join("d/f"), "user.mine", "kept").unwrap();
    let all = || {
        ["", "a", "a/d", "a/d/f", "a/old"].map(|path| {
            let m = fs::metadata(vault.at(path)).unwrap();
            let times = [m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
            let mut names = crate::kernel::attributes(vault.at(path));
            names.retain(|name| !name.starts_with("user.vault.token"));
            let values: Vec<_> = names.iter().map(|n| crate::kernel::attribute(vault.at(path), n).unwrap()).collect();
            (path, [m.ino(), m.nlink(), m.size()], [m.uid(), m.gid(), m.mode()], times, names, values)
        })
    };
    let before = all();
    assert_eq!(before[3].3[..4], [1_000_000_001, 123_456_789, 5_000_000_000, 1]);
    assert_eq!(fs::metadata(a.join("old")).unwrap().modified().unwrap(), past);
    vault.remount();
    assert_eq!(all(), before);
}

#[test]
fn a_source_tree_is_the_same_after_a_remount() {
    let vault = Vault::up();
    let a = vault.org("a");
    let tree = source_tree();
    let archive = vault.directory().join("tree.tar");
    run("tar", &[&"-C", &tree, &"-cf", &archive, &"."]);
    run("tar", &[&"-C", &a, &"-xf", &archive]);
    vault.remount();
    assert_eq!(run("diff", &[&"-r", &tree, &a]), "");
    let counted = |path: &PathBuf| run("sh", &[&"-c", &"find \"$0\" -mindepth 1 | wc -l", path]);
    assert_eq!(counted(&tree), counted(&a));
    vault.command(&["fsck"]).good();
}

/// The sources of a crate that this one is built from, wherever cargo keeps them.
fn source_tree() -> PathBuf {
    // Those of other platforms are not here.
    let platform = "--filter-platform $(rustc -vV | sed -n 's/host: //p')";
    let metadata = format!("cargo metadata --locked --offline --format-version 1 {platform}");
    let metadata = run("sh", &[&"-c", &metadata]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let libc = packages.iter().find(|package| package["name"] == "libc").expect("a dependency");
    PathBuf::from(libc["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

fn content(writer: usize, n: usize) -> Vec<u8> {
    let len = [0, 1, 100, 4096, 70_000, 300_000][(writer + n) % 6] + n;
    (0..len).map(|i| (i.wrapping_mul(31) ^ writer.wrapping_mul(7) ^ n) as u8).collect()
}

#[test]
fn after_kill_9_every_synced_file_is_whole() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut synced = Vec::new();
    for round in 0..3 {
        let found = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (a, found) = (&a, &found);
                scope.spawn(move || {
                    for n in 0.. {
                        let path = a.join(format!("{round}-{writer}-{n}"));
                        let written = File::create(&path).and_then(|mut file| {
                            file.write_all(&content(writer, n))?;
                            file.sync_all()
                        });
                        match written {
                            Ok(()) => found.lock().unwrap().push((path, content(writer, n))),
                            Err(_) => return,
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(700 + 300 * round));
            vault.kill();
        });
        synced.extend(found.into_inner().unwrap());
        vault.mount(&[]);
        for (path, value) in &synced {
            assert!(fs::read(path).unwrap() == *value, "{} is not what was synced", path.display());
        }
        vault.command(&["fsck"]).good();
    }
    assert!(synced.len() > 20, "only {} files", synced.len());
}

#[test]
fn after_kill_9_a_save_is_the_old_value_or_the_new() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "0".repeat(5000)).unwrap();
    File::open(a.join("f")).unwrap().sync_all().unwrap();
    for round in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1.. {
                    let saved = fs::write(a.join("new"), n.to_string().repeat(5000))
                        .and_then(|()| fs::rename(a.join("new"), a.join("f")));
                    if saved.is_err() {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(300 + 150 * round));
            vault.kill();
        });
        vault.mount(&[]);
        let value = fs::read_to_string(a.join("f")).unwrap();
        let repeated = &value[..value.len() / 5000];
        assert!(!value.is_empty() && repeated.repeat(5000) == value, "neither old nor new: {} bytes", value.len());
        vault.command(&["fsck"]).good();
    }
}

#[test]
fn changes_are_stored_within_commit_interval_however_long_they_may_be_gathered() {
    let vault = Vault::up_with(&["-o", "gather=1h,commit_interval=200ms"]);
    let a = vault.org("a");
    for round in 0..3 {
        fs::write(a.join("f"), format!("{round}")).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        vault.kill();
        vault.mount(&["-o", "gather=1h,commit_interval=200ms"]);
        assert_eq!(fs::read_to_string(a.join("f")).unwrap(), format!("{round}"));
    }
}
