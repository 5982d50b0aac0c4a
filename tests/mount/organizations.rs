//! Organizations are the directories of the root, and nothing else stands there.

use crate::kernel::{errno, mknod, rename, vault_says};
use crate::vault::{Vault, run};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn mkdir_makes_an_organization_with_a_key_of_its_own() {
    let vault = Vault::up();
    let keys = vault.token_files();
    let (a, b) = (vault.org("acme"), vault.org("Grüße & co"));
    assert_eq!(vault.token_files(), keys + 2);
    assert_ne!(vault_says(&a, "key_id"), vault_says(&b, "key_id"));
    assert_ne!(vault_says(&a, "id"), vault_says(&b, "id"));
    assert_eq!(errno(fs::create_dir(&a)), libc::EEXIST);
    assert_eq!(vault.token_files(), keys + 2, "a refused mkdir leaves no key");
}

#[test]
fn mkdir_honours_the_umask_and_the_command_makes_0700() {
    let vault = Vault::up();
    let mode = |name: &str| fs::metadata(vault.at(name)).unwrap().permissions().mode() & 0o7777;
    run("sh", &[&"-c", &"umask 027; mkdir \"$0\"", &vault.at("a")]);
    vault.command(&["org", "create", "b"]).good();
    vault.command(&["org", "create", "c", "--owner", "1000:100", "--mode", "0750"]).good();
    assert_eq!((mode("a"), mode("b"), mode("c")), (0o750, 0o700, 0o750));
    let made = fs::metadata(vault.at("c")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 100));
}

#[test]
fn an_organizations_name_is_utf8_without_control_characters_or_leading_dot() {
    let vault = Vault::up();
    let made = |name: &[u8]| fs::create_dir(vault.at(OsStr::from_bytes(name)));
    for name in [&b".hidden"[..], b"tab\there", b"line\nbreak", b"del\x7f", b"latin\xe9", "\u{85}".as_bytes()] {
        assert_eq!(errno(made(name)), libc::EINVAL, "{name:?}");
    }
    assert_eq!(errno(made(&[b'x'; 256])), libc::ENAMETOOLONG);
    for name in [&b"x"[..], &[b'x'; 255], "ü\u{1F512}".as_bytes(), b"a b"] {
        made(name).unwrap();
    }
    for name in [".hidden", "tab\there"] {
        assert_eq!(errno(fs::rename(vault.at("x"), vault.at(name))), libc::EINVAL, "{name:?}");
    }
}

#[test]
fn renaming_an_organization_relabels_it() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    let said = ["id", "key_id", "created_at"].map(|name| vault_says(&a, name));
    let (ino, object) = (fs::metadata(&a).unwrap().ino(), vault_says(a.join("f"), "id"));
    run("mv", &[&a, &vault.at("b")]);
    let b = vault.at("b");
    assert_eq!(["id", "key_id", "created_at"].map(|name| vault_says(&b, name)), said);
    assert_eq!(fs::metadata(&b).unwrap().ino(), ino);
    assert_eq!(vault_says(b.join("f"), "id"), object);
    assert_eq!(fs::read(b.join("f")).unwrap(), b"value");
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    vault.remount();
    assert_eq!(fs::read(b.join("f")).unwrap(), b"value");
}

#[test]
fn renaming_onto_an_organization_is_refused() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    assert_eq!(errno(fs::rename(&a, &b)), libc::EEXIST);
    assert_eq!(errno(rename(&a, &b, libc::RENAME_NOREPLACE)), libc::EEXIST);
    assert!(rename(&a, &b, libc::RENAME_EXCHANGE).is_err());
    assert!(a.exists() && b.exists());
}

#[test]
fn folders_and_organizations_do_not_become_each_other() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::create_dir(a.join("folder")).unwrap();
    assert_eq!(errno(fs::rename(a.join("folder"), vault.at("c"))), libc::EPERM);
    assert_eq!(errno(fs::rename(&b, a.join("b"))), libc::EPERM);
    assert_eq!(errno(fs::rename(&b, a.join("folder"))), libc::EPERM);
    fs::write(a.join("f"), "x").unwrap();
    assert_eq!(errno(fs::rename(a.join("f"), vault.at("f"))), libc::EPERM);
    assert!(b.exists() && a.join("folder").exists() && a.join("f").exists());
}

#[test]
fn only_directories_are_made_in_the_root() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    assert_eq!(errno(fs::write(vault.at("f"), "x")), libc::EPERM);
    assert_eq!(errno(symlink("a", vault.at("l"))), libc::EPERM);
    assert_eq!(errno(mknod(vault.at("p"), libc::S_IFIFO | 0o600, 0)), libc::EPERM);
    assert_eq!(errno(fs::hard_link(a.join("f"), vault.at("f"))), libc::EPERM);
    assert_eq!(fs::read_dir(vault.point()).unwrap().count(), 1);
}

#[test]
fn rmdir_deletes_an_empty_organization_and_mv_restores_it() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    assert_eq!(errno(fs::remove_dir(&a)), libc::ENOTEMPTY);
    fs::remove_file(a.join("f")).unwrap();
    let (id, keys) = (vault_says(&a, "id"), vault.token_files());
    fs::remove_dir(&a).unwrap();
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    let grave = vault.tombstone("");
    let name = grave.file_name().unwrap().to_str().unwrap();
    let [label, time, number] = name.split('~').collect::<Vec<_>>()[..] else { panic!("{name}") };
    assert_eq!((label, time.len(), time.ends_with('Z')), ("a", 16, true), "{name}");
    assert!(!number.is_empty());
    assert_eq!(vault.token_files(), keys, "its key lives until the last tombstone is purged");
    vault.remount();
    let inside = vault.tombstones(name);
    assert_eq!(inside.len(), 1, "its tombstones moved with it");
    run("mv", &[&grave, &vault.at("b")]);
    assert_eq!(vault_says(vault.at("b"), "id"), id);
    run("mv", &[&vault.tombstone("b"), &vault.at("b/f")]);
    assert_eq!(fs::read(vault.at("b/f")).unwrap(), b"value");
}

#[test]
fn an_organization_is_not_restored_onto_another() {
    let vault = Vault::up();
    fs::remove_dir(vault.org("a")).unwrap();
    vault.org("a");
    let grave = vault.tombstones("").into_iter().find(|g| g.to_str().unwrap().contains('~')).unwrap();
    assert_eq!(errno(fs::rename(&grave, vault.at("a"))), libc::EEXIST);
    assert_eq!(errno(fs::rename(&grave, vault.at("a/b"))), libc::EPERM);
    fs::rename(&grave, vault.at("b")).unwrap();
}

#[test]
fn purging_the_last_tombstone_of_a_deleted_organization_destroys_its_key() {
    let vault = Vault::up();
    let before = vault.token_files();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    fs::remove_dir(&a).unwrap();
    let grave = vault.tombstone("");
    assert_eq!(errno(fs::remove_dir(&grave)), libc::ENOTEMPTY);
    let inside = fs::read_dir(&grave).unwrap().next().unwrap().unwrap().path();
    run("rm", &[&inside]);
    if grave.exists() {
        run("rmdir", &[&grave]);
    }
    assert_eq!(vault.token_files(), before);
    vault.command(&["fsck"]).good();
    vault.remount();
    assert!(vault.tombstones("").is_empty());
}

/// The last close reaches the daemon after close(2) has returned.
fn remove_once_closed(grave: &Path) -> std::io::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match fs::remove_dir(grave) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            removed => return removed,
        }
    }
}

/// The writer had still to give the value's space back when the organization went, and stopped writing for good.
#[test]
fn an_organization_is_purged_at_once_after_its_last_tombstone() {
    let vault = Vault::up();
    for round in 0..20 {
        let a = vault.org("a");
        for n in 0..3 {
            fs::write(a.join(n.to_string()), [b'v'; 20_000]).unwrap();
            fs::remove_file(a.join(n.to_string())).unwrap();
        }
        fs::remove_dir(&a).unwrap();
        let grave = vault.tombstone("");
        for inside in fs::read_dir(&grave).unwrap() {
            fs::remove_file(inside.unwrap().path()).unwrap();
        }
        remove_once_closed(&grave).unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    vault.org("b");
    vault.command(&["fsck"]).good();
}

#[test]
fn an_organization_is_not_purged_while_its_deleted_files_are_open() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut file = fs::File::create(a.join("f")).unwrap();
    fs::remove_file(a.join("f")).unwrap();
    fs::remove_dir(&a).unwrap();
    let grave = vault.tombstone("");
    for inside in fs::read_dir(&grave).unwrap() {
        fs::remove_file(inside.unwrap().path()).unwrap();
    }
    assert_eq!(errno(fs::remove_dir(&grave)), libc::EBUSY);
    file.write_all(b"value").unwrap();
    file.sync_all().unwrap();
    drop(file);
    remove_once_closed(&grave).unwrap();
    assert_eq!(errno(fs::metadata(&grave)), libc::ENOENT);
}

#[test]
fn deleting_with_purge_ends_an_organization_that_is_in_use() {
    let vault = Vault::up();
    let keys = vault.token_keys();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/large"), [b'v'; 300_000]).unwrap();
    fs::write(a.join("gone"), b"value").unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    let mut file = fs::File::create(a.join("open")).unwrap();
    file.write_all(b"not saved yet").unwrap();
    vault.command(&["org", "delete", "a"]).refused(1);
    vault.command(&["org", "delete", "a", "--purge"]).good();
    assert_eq!(vault.token_keys(), keys);
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    assert!(file.write_all(b"more").and_then(|()| file.sync_all()).is_err(), "an open file is of no more use");
    drop(file);
    assert!(vault.tombstones("").is_empty());
    let a = vault.org("a");
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    fs::write(a.join("f"), b"new").unwrap();
    vault.command(&["fsck"]).good();
    vault.remount();
    assert_eq!(fs::read(a.join("f")).unwrap(), b"new");
}

#[test]
fn keys_move_while_files_are_open() {
    let vault = Vault::up();
    let keys = vault.token_keys();
    let a = vault.org("a");
    fs::write(a.join("f"), b"value").unwrap();
    let mut file = fs::File::create(a.join("open")).unwrap();
    file.write_all(b"one ").unwrap();
    vault.command(&["key", "move", "a", "--to", "wrapped"]).good();
    assert_eq!(vault.token_keys(), keys + 1, "its KEK is gone, and there is a root key");
    file.write_all(b"two").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let listed = vault.command(&["key", "list", "a", "--json"]).good().json();
    assert_eq!(listed["data"][0]["residency"], "wrapped");
    vault.command(&["key", "rotate", "--root"]).good();
    vault.remount();
    assert_eq!(fs::read(a.join("f")).unwrap(), b"value");
    assert_eq!(fs::read(a.join("open")).unwrap(), b"one two");
    vault.command(&["key", "move", "a", "--to", "token"]).good();
    vault.command(&["key", "move", "a", "--to", "elsewhere"]).refused(2);
    vault.command(&["fsck"]).good();
}

#[test]
fn the_root_belongs_to_who_mounted_it() {
    let vault = Vault::up();
    let root = fs::metadata(vault.point()).unwrap();
    // SAFETY: geteuid has no arguments and never fails.
    assert_eq!((root.uid(), root.mode() & 0o7777), (unsafe { libc::geteuid() }, 0o755));
    let hidden = fs::metadata(vault.at(".tombstones")).unwrap();
    assert_eq!((hidden.uid(), hidden.mode() & 0o7777), (root.uid(), 0o700));
    assert_eq!(errno(fs::create_dir(vault.at(".tombstones"))), libc::EEXIST);
}
