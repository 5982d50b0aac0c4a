//! Times of access: as ext4 keeps them when it is mounted with `relatime`, which is Linux's default.

use crate::kernel::vault_says;
use crate::vault::Vault;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Long ago, and so before the time of change: the next read is due.
const PAST: i64 = 1_000_000_000;

fn age(path: &Path) {
    let past = UNIX_EPOCH + Duration::from_secs(PAST as u64);
    File::open(path).unwrap().set_times(FileTimes::new().set_accessed(past).set_modified(past)).unwrap();
}

fn accessed(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).unwrap().accessed().unwrap()
}

#[track_caller]
fn assert_now(path: &Path) -> SystemTime {
    let at = accessed(path);
    assert!(at.elapsed().unwrap() < Duration::from_secs(20), "{at:?}");
    at
}

#[test]
fn reading_sets_the_time_of_access_once_after_a_change() {
    let vault = Vault::up();
    let a = vault.org("a");
    let f = a.join("f");
    fs::write(&f, "value").unwrap();
    age(&f);
    let before = fs::metadata(&f).unwrap();
    assert_eq!(before.atime(), PAST);
    // From the pages that the kernel has kept of the write, and from the vault.
    fs::read(&f).unwrap();
    let at = assert_now(&f);
    fs::read(&f).unwrap();
    assert_eq!(accessed(&f), at, "nothing has changed since");
    let after = fs::metadata(&f).unwrap();
    assert_eq!((after.mtime(), after.ctime_nsec(), after.ctime()), (PAST, before.ctime_nsec(), before.ctime()));
    assert_eq!(vault_says(&f, "version"), "1", "reading makes no version");
    vault.remount();
    assert_eq!(accessed(&f), at);
    age(&f);
    vault.remount();
    fs::read(&f).unwrap();
    assert_now(&f);
}

#[test]
fn a_handle_for_both_counts_when_it_reads_and_not_when_it_writes() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, vec![1; 100_000]).unwrap();
    age(&f);
    vault.remount();
    let both = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    both.write_all_at(b"x", 0).unwrap();
    OpenOptions::new().append(true).open(&f).unwrap().write_all_at(b"y", 0).unwrap();
    assert_eq!(accessed(&f), UNIX_EPOCH + Duration::from_secs(PAST as u64));
    both.read_exact_at(&mut [0; 100], 50_000).unwrap();
    assert_now(&f);
}

#[test]
fn folders_and_links_are_accessed_too() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/f"), "").unwrap();
    age(&a.join("d"));
    symlink("d/f", a.join("l")).unwrap();
    vault.remount();
    assert_eq!(accessed(&a.join("d")), UNIX_EPOCH + Duration::from_secs(PAST as u64));
    assert_eq!(fs::read_dir(a.join("d")).unwrap().count(), 1);
    assert_now(&a.join("d"));
    let made = fs::symlink_metadata(a.join("l")).unwrap().modified().unwrap();
    fs::read(a.join("l")).unwrap();
    assert!(accessed(&a.join("l")) > made);
}

#[test]
fn who_asks_for_it_leaves_times_of_access_alone() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    age(&a.join("f"));
    let past = UNIX_EPOCH + Duration::from_secs(PAST as u64);
    let mut value = String::new();
    let mut quiet = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(a.join("f")).unwrap();
    quiet.read_to_string(&mut value).unwrap();
    assert_eq!((value.as_str(), accessed(&a.join("f"))), ("value", past));
    drop(quiet);
    for option in ["noatime", "ro"] {
        vault.umount();
        vault.mount(&["-o", option]);
        fs::read(a.join("f")).unwrap();
        assert_eq!(fs::read_dir(&a).unwrap().count(), 1);
        assert_eq!(accessed(&a.join("f")), past, "{option}");
    }
    let mounted = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounted.lines().find(|line| line.contains(vault.point().to_str().unwrap())).unwrap();
    assert!(line.contains("ro,"), "{line}");
}
