//! Locking an organization under a mount.

use crate::kernel::{Mapping, errno, vault_says};
use crate::vault::Vault;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

#[test]
fn a_locked_organization_answers_enokey_from_open_files_and_caches_too() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::create_dir(a.join("folder")).unwrap();
    for path in [a.join("f"), a.join("folder/g"), b.join("f")] {
        fs::write(path, vec![7; 20_000]).unwrap();
    }
    let open = File::open(a.join("f")).unwrap();
    let mut read = [0; 4096];
    open.read_exact_at(&mut read, 8192).unwrap();
    assert_eq!(fs::read(a.join("folder/g")).unwrap().len(), 20_000);
    vault.command(&["org", "lock", "a"]).good();
    assert_eq!(vault_says(&a, "key_state"), "locked");
    assert_eq!(errno(open.read_exact_at(&mut read, 8192)), libc::ENOKEY, "the kernel's pages are gone");
    assert_eq!(errno(File::open(a.join("f"))), libc::ENOKEY);
    assert_eq!(errno(fs::metadata(a.join("folder/g"))), libc::ENOKEY);
    assert_eq!(errno(fs::read_dir(&a).and_then(|mut list| list.next().unwrap())), libc::ENOKEY);
    assert_eq!(errno(fs::write(a.join("new"), "x")), libc::ENOKEY);
    vault.command(&["object", "get", "a/f"]).refused(5);
    vault.command(&["tombstone", "list"]).good();
    assert_eq!(fs::read(b.join("f")).unwrap().len(), 20_000, "others go on");
    fs::write(b.join("g"), "x").unwrap();
    vault.command(&["org", "lock", "a"]).good();
    drop(open);
    vault.remount();
    assert_eq!(errno(fs::read(a.join("f"))), libc::ENOKEY, "it stays locked over mounts");
    vault.command(&["org", "unlock", "a"]).good();
    assert_eq!(vault_says(&a, "key_state"), "active");
    assert_eq!(fs::read(a.join("f")).unwrap(), vec![7; 20_000]);
    fs::write(a.join("new"), "x").unwrap();
    vault.command(&["fsck"]).good();
}

#[test]
fn a_locked_organization_shows_no_earlier_version_out_of_caches() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), vec![7; 20_000]).unwrap();
    fs::write(a.join("f"), "new").unwrap();
    let versions = vault.point().join(".versions/a");
    let first = versions.join("f/1");
    let open = File::open(&first).unwrap();
    let mut read = [0; 4096];
    open.read_exact_at(&mut read, 8192).unwrap();
    assert_eq!(fs::read(&first).unwrap(), vec![7; 20_000]);
    vault.command(&["org", "lock", "a"]).good();
    assert_eq!(errno(open.read_exact_at(&mut read, 8192)), libc::ENOKEY, "the kernel's pages are gone");
    assert_eq!(errno(File::open(&first)), libc::ENOKEY);
    assert_eq!(errno(fs::metadata(&first)), libc::ENOKEY);
    assert_eq!(errno(fs::read_dir(&versions).and_then(|mut list| list.next().unwrap())), libc::ENOKEY);
    vault.command(&["org", "unlock", "a"]).good();
    open.read_exact_at(&mut read, 8192).unwrap();
    assert_eq!((read, fs::read(&first).unwrap()), ([7; 4096], vec![7; 20_000]));
}

#[test]
fn what_was_written_before_a_lock_is_kept_and_open_files_work_again_after_it() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(a.join("log")).unwrap();
    file.write_all(b"before ").unwrap();
    let mapped = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(a.join("map")).unwrap();
    mapped.set_len(4096).unwrap();
    let mut mapping = Mapping::shared(&mapped, 4096);
    mapping.write(0, b"mapped");
    let orphan = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(a.join("gone")).unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    orphan.write_all_at(b"nameless", 0).unwrap();
    vault.command(&["org", "lock", "a"]).good();
    assert_eq!(errno(file.write_all(b"refused ")), libc::ENOKEY);
    vault.command(&["org", "unlock", "a"]).good();
    file.write_all(b"after").unwrap();
    assert_eq!(mapping.read(0, 6), b"mapped");
    let mut read = [0; 8];
    orphan.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"nameless");
    drop((file, mapping, mapped, orphan));
    for _ in 0..2 {
        assert_eq!(fs::read(a.join("log")).unwrap(), b"before after");
        assert_eq!(&fs::read(a.join("map")).unwrap()[..6], b"mapped");
        vault.remount();
    }
    vault.command(&["fsck"]).good();
}

#[test]
fn locking_and_unlocking_under_writers_loses_nothing_that_was_answered() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        let writers: Vec<_> = [&a, &a, &b]
            .into_iter()
            .enumerate()
            .map(|(thread, folder)| {
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for n in 0.. {
                        if Instant::now() > end {
                            break;
                        }
                        let path = folder.join(format!("{thread}-{n}"));
                        match fs::write(&path, path.as_os_str().as_encoded_bytes()) {
                            Ok(()) => kept.push(path),
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::ENOKEY), "{path:?}");
                                assert!(thread < 2, "b was never locked");
                            }
                        }
                    }
                    kept
                })
            })
            .collect();
        while Instant::now() < end {
            vault.command(&["org", "lock", "a"]).good();
            std::thread::sleep(Duration::from_millis(30));
            vault.command(&["org", "unlock", "a"]).good();
            std::thread::sleep(Duration::from_millis(100));
        }
        vault.command(&["org", "unlock", "a"]).good();
        let kept: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        vault.remount();
        for path in kept {
            assert_eq!(fs::read(&path).unwrap(), path.as_os_str().as_encoded_bytes());
        }
    });
    vault.command(&["fsck"]).good();
}

#[test]
fn an_idle_organization_locks_itself_when_told_so() {
    let vault = Vault::up_with(&["-o", "lock_idle=1s"]);
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::write(a.join("f"), "value").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while vault_says(&a, "key_state") != "locked" {
        assert!(Instant::now() < deadline);
        fs::write(b.join("f"), "busy").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(errno(fs::read(a.join("f"))), libc::ENOKEY);
    assert_eq!(fs::read(b.join("f")).unwrap(), b"busy");
    vault.command(&["org", "unlock", "a"]).good();
    assert_eq!(fs::read(a.join("f")).unwrap(), b"value");
}
