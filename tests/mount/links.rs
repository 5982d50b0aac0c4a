//! What is not a plain file with one name: hard links, unlinked files, symlinks, fifos, sockets, devices, odd names.

use crate::kernel::{errno, mknod, rename, vault_says};
use crate::vault::{Vault, run};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;

#[test]
fn hard_links_share_one_object() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("f"), "one").unwrap();
    fs::hard_link(a.join("f"), a.join("d/g")).unwrap();
    fs::write(a.join("d/g"), "two").unwrap();
    assert_eq!(fs::read(a.join("f")).unwrap(), b"two");
    assert_eq!(vault_says(a.join("f"), "id"), vault_says(a.join("d/g"), "id"));
    let known = fs::metadata(a.join("f")).unwrap();
    assert_eq!((known.nlink(), known.ino()), (2, fs::metadata(a.join("d/g")).unwrap().ino()));
    assert_eq!(vault_says(&a, "objects"), "1");
    vault.remount();
    fs::remove_file(a.join("f")).unwrap();
    assert_eq!(fs::read(a.join("d/g")).unwrap(), b"two");
    assert_eq!(fs::metadata(a.join("d/g")).unwrap().nlink(), 1);
    assert_eq!(errno(fs::hard_link(a.join("d"), a.join("dd"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(a.join("d/g"), a.join("d"))), libc::EEXIST);
}

#[test]
fn nothing_is_linked_or_renamed_between_organizations() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::write(a.join("f"), "x").unwrap();
    fs::create_dir(a.join("d")).unwrap();
    assert_eq!(errno(fs::rename(a.join("f"), b.join("f"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(a.join("f"), b.join("f"))), libc::EXDEV);
    assert_eq!(errno(fs::rename(a.join("d"), b.join("d"))), libc::EXDEV);
    assert_eq!(errno(rename(a.join("f"), b.join("f"), libc::RENAME_NOREPLACE)), libc::EXDEV);
}

/// What an overlay does in its upper layer: the old name says that the lower layer's file of that name is gone.
#[test]
fn a_rename_leaves_a_whiteout_where_it_is_asked_to() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("f"), "moved").unwrap();
    fs::write(a.join("over"), "old").unwrap();
    let id = vault_says(a.join("over"), "id");
    rename(a.join("f"), a.join("over"), libc::RENAME_WHITEOUT).unwrap();
    rename(a.join("d"), a.join("e"), libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE).unwrap();
    assert_eq!(
        errno(rename(a.join("e"), a.join("over"), libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE)),
        libc::EEXIST
    );
    assert_eq!(errno(rename(a.join("e"), a.join("over"), libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(rename(&a, vault.at("b"), libc::RENAME_WHITEOUT)), libc::EPERM);
    for _ in 0..2 {
        for name in ["f", "d"] {
            let known = fs::metadata(a.join(name)).unwrap();
            assert!(known.file_type().is_char_device(), "{name}");
            assert_eq!((known.rdev(), known.mode() & 0o7777), (0, 0), "{name}");
        }
        assert_eq!(fs::metadata(&a).unwrap().nlink(), 3);
        assert_eq!(fs::read(a.join("over")).unwrap(), b"moved");
        assert_eq!(vault_says(a.join("over"), "id"), id, "a save all the same");
        vault.command(&["fsck"]).good();
        vault.remount();
    }
}

#[test]
fn an_open_file_survives_its_unlinking() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(a.join("f")).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    file.write_all(b" and after").unwrap();
    file.set_len(12).unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("before and a", 0));
    fs::write(a.join("f"), "another").unwrap();
    drop(file);
    assert_eq!(fs::read(a.join("f")).unwrap(), b"another");
    vault.command(&["fsck"]).good();
}

#[test]
fn symlinks_fifos_sockets_and_devices() {
    let vault = Vault::up();
    let a = vault.org("a");
    let long = "x/".repeat(2000);
    symlink("target", a.join("l")).unwrap();
    symlink(&long, a.join("long")).unwrap();
    mknod(a.join("fifo"), libc::S_IFIFO | 0o640, 0).unwrap();
    mknod(a.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    mknod(a.join("disk"), libc::S_IFBLK | 0o600, libc::makedev(259, 70_000)).unwrap();
    drop(UnixListener::bind(a.join("socket")).unwrap());
    vault.remount();
    assert_eq!(fs::read_link(a.join("l")).unwrap().to_str(), Some("target"));
    assert_eq!(fs::read_link(a.join("long")).unwrap().to_str(), Some(&long[..]));
    assert_eq!(fs::symlink_metadata(a.join("long")).unwrap().len(), 4000);
    assert!(fs::metadata(a.join("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(a.join("socket")).unwrap().file_type().is_socket());
    let (null, disk) = (fs::metadata(a.join("null")).unwrap(), fs::metadata(a.join("disk")).unwrap());
    assert!(null.file_type().is_char_device() && disk.file_type().is_block_device());
    assert_eq!((null.rdev(), disk.rdev()), (libc::makedev(1, 3), libc::makedev(259, 70_000)));
    fs::write(a.join("null"), "gone").unwrap();
    assert_eq!(run("sh", &[&"-c", &"cat \"$0\" & echo through > \"$0\"; wait", &a.join("fifo")]), "through\n");
    fs::remove_file(a.join("l")).unwrap();
    assert_eq!(errno(fs::symlink_metadata(a.join("l"))), libc::ENOENT);
}

#[test]
fn names_are_up_to_255_bytes_of_anything() {
    let vault = Vault::up();
    let a = vault.org("a");
    let names: [&[u8]; 6] = [&[b'x'; 255], b"\xff\xfe", b"line\nbreak", b".hidden", b"a b~c", "ü🔒".as_bytes()];
    for name in names {
        fs::write(a.join(OsStr::from_bytes(name)), name).unwrap();
    }
    assert_eq!(errno(fs::write(a.join("y".repeat(256)), "")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(a.join("y".repeat(256)))), libc::ENAMETOOLONG);
    vault.remount();
    let listed: BTreeSet<Vec<u8>> =
        fs::read_dir(&a).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    assert_eq!(listed, names.iter().map(|name| name.to_vec()).collect());
    for name in names {
        assert_eq!(fs::read(a.join(OsStr::from_bytes(name))).unwrap(), name);
        fs::remove_file(a.join(OsStr::from_bytes(name))).unwrap();
    }
    for grave in vault.tombstones("a") {
        assert!(grave.file_name().unwrap().len() <= 255);
        fs::remove_file(grave).unwrap();
    }
}

#[test]
fn a_big_directory_is_listed_whole_while_it_changes() {
    let vault = Vault::up();
    let a = vault.org("a");
    for n in 0..3000 {
        File::create(a.join(format!("stays{n}"))).unwrap();
    }
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(&a).unwrap().enumerate() {
        seen.push(entry.unwrap().file_name().into_string().unwrap());
        if n % 3 == 0 && n < 3000 {
            File::create(a.join(format!("new{n}"))).unwrap();
        }
        if n % 7 == 0 && (21..3000).contains(&n) {
            let _ = fs::remove_file(a.join(format!("new{}", n - 21)));
        }
        assert!(n < 10_000, "a listing without an end");
    }
    let unique: BTreeSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "an entry twice");
    assert_eq!(seen.iter().filter(|name| name.starts_with("stays")).count(), 3000);
    run("sh", &[&"-c", &"rm -r \"$0\"/*", &a]);
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
}

#[test]
fn an_open_file_survives_the_purge_of_its_tombstone() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), vec![b'x'; 100_000]).unwrap();
    let mut file = File::open(a.join("f")).unwrap();
    fs::remove_file(a.join("f")).unwrap();
    fs::remove_file(vault.tombstone("a")).unwrap();
    let mut value = Vec::new();
    file.read_to_end(&mut value).unwrap();
    assert!(value.len() == 100_000 && value.iter().all(|b| *b == b'x'));
    drop(file);
    vault.command(&["fsck"]).good();
}

/// As on ext4. (pjdfstest's own case of this skips itself on FUSE: see `scripts/suites/pjdfstest.expected`.)
#[test]
fn the_65001st_link_is_refused() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    for n in 1..65_000 {
        fs::hard_link(a.join("f"), a.join(n.to_string())).unwrap();
    }
    assert_eq!(fs::metadata(a.join("f")).unwrap().nlink(), 65_000);
    assert_eq!(errno(fs::hard_link(a.join("f"), a.join("more"))), libc::EMLINK);
    fs::remove_file(a.join("1")).unwrap();
    fs::hard_link(a.join("f"), a.join("more")).unwrap();
}
