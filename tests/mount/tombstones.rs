//! Deleting, restoring and purging objects, by `rm` and `mv`.

use crate::kernel::{attributes, errno, mknod, rename, set_attribute, vault_says};
use crate::vault::{Vault, run};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;

#[test]
fn rm_makes_a_tombstone_that_says_what_it_was() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("d")).unwrap();
    let f = a.join("d/f");
    fs::write(&f, "value").unwrap();
    let names = ["id", "version_id", "version", "versions", "context.organizationId", "key_id", "cipher", "created_at"];
    let before = names.map(|name| vault_says(&f, name));
    run("rm", &[&f]);
    let grave = vault.tombstone("a");
    let name = grave.file_name().unwrap().to_str().unwrap();
    let parts: Vec<&str> = name.split('~').collect();
    assert!(parts.len() == 3 && parts[0] == "f" && parts[1].len() == 16 && parts[1].ends_with('Z'), "{name}");
    assert_eq!(names.map(|name| vault_says(&grave, name)), before);
    assert_eq!(vault_says(&grave, "original_path"), "d/f");
    assert_eq!(vault_says(&grave, "deleted_by"), "uid:0");
    let (deleted, purged) = (vault_says(&grave, "deleted_at"), vault_says(&grave, "purge_after"));
    assert!(deleted.len() == "2026-11-23T16:41:00.123456Z".len() && deleted < purged, "{deleted} {purged}");
    assert_eq!(fs::metadata(&grave).unwrap().len(), 5);
    assert_eq!(vault_says(&a, "tombstones"), "1");
    assert_eq!(vault_says(&a, "objects"), "0");
}

#[test]
fn a_tombstone_cannot_be_read_or_changed_only_restored_or_purged() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::write(a.join("other"), "x").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    let grave = vault.tombstone("a");
    let yard = grave.parent().unwrap();
    assert_eq!(errno(fs::read(&grave)), libc::EACCES);
    let shut = |result: std::io::Result<()>, what: &str| {
        let errno = errno(result);
        assert!([libc::EROFS, libc::EPERM].contains(&errno), "{what}: {errno}");
    };
    let write = OpenOptions::new().write(true).open(&grave).map(drop);
    assert!([libc::EACCES, libc::EROFS, libc::EPERM].contains(&errno(write)));
    shut(fs::write(yard.join("new"), "x"), "create");
    shut(fs::create_dir(yard.join("new")), "mkdir");
    shut(symlink("x", yard.join("new")), "symlink");
    shut(mknod(yard.join("new"), libc::S_IFIFO | 0o600, 0), "mknod");
    shut(fs::hard_link(a.join("other"), yard.join("new")), "link into");
    // A file without a name is linked nowhere: the kernel does not even ask.
    assert_eq!(errno(fs::hard_link(&grave, a.join("new"))), libc::ENOENT);
    shut(fs::rename(&grave, yard.join("new")), "rename inside");
    shut(fs::rename(a.join("other"), yard.join("new")), "rename into");
    shut(fs::set_permissions(&grave, std::os::unix::fs::PermissionsExt::from_mode(0o777)), "chmod");
    shut(set_attribute(&grave, "user.x", "y"), "setxattr");
    shut(set_attribute(yard, "user.x", "y"), "setxattr of the directory");
    shut(rename(&grave, a.join("other"), libc::RENAME_EXCHANGE), "exchange");
    shut(fs::remove_dir(yard), "rmdir of a living organization's");
    shut(fs::remove_dir(vault.at(".tombstones")), "rmdir of all");
    shut(fs::create_dir(vault.at(".tombstones/b")), "mkdir beside");
    assert_eq!(fs::read(a.join("other")).unwrap(), b"x");
    assert_eq!(vault.tombstones("a").len(), 1);
}

#[test]
fn mv_restores_id_history_and_attributes() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "one").unwrap();
    fs::write(a.join("f"), "two").unwrap();
    set_attribute(a.join("f"), "user.mine", "kept").unwrap();
    let (id, names) = (vault_says(a.join("f"), "id"), attributes(a.join("f")));
    fs::remove_file(a.join("f")).unwrap();
    vault.remount();
    fs::create_dir(a.join("d")).unwrap();
    run("mv", &[&vault.tombstone("a"), &a.join("d/g")]);
    assert_eq!(vault_says(a.join("d/g"), "id"), id);
    assert_eq!(attributes(a.join("d/g")), names);
    assert_eq!(fs::read(a.join("d/g")).unwrap(), b"two");
    let first = vault.command(&["object", "get", "a/d/g", "--version", "1"]).good();
    assert_eq!(first.out, b"one");
    assert!(vault.tombstones("a").is_empty());
    vault.remount();
    assert_eq!(fs::read(a.join("d/g")).unwrap(), b"two");
    vault.command(&["fsck"]).good();
}

#[test]
fn restoring_onto_an_existing_name_or_into_another_organization_is_refused() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::write(a.join("f"), "old").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    fs::write(a.join("f"), "new").unwrap();
    let grave = vault.tombstone("a");
    assert_eq!(errno(fs::rename(&grave, a.join("f"))), libc::EEXIST);
    assert_eq!(errno(fs::rename(&grave, b.join("f"))), libc::EXDEV);
    assert_eq!(errno(fs::rename(&grave, vault.at("f"))), libc::EPERM);
    assert_eq!(errno(fs::rename(&grave, a.join("none/f"))), libc::ENOENT);
    assert_eq!(fs::read(a.join("f")).unwrap(), b"new");
    assert_eq!(vault.tombstone("a"), grave);
}

#[test]
fn rm_of_a_tombstone_purges_it() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    let id = vault_says(a.join("f"), "id");
    fs::remove_file(a.join("f")).unwrap();
    let grave = vault.tombstone("a");
    run("rm", &[&grave]);
    assert_eq!(errno(fs::symlink_metadata(&grave)), libc::ENOENT);
    assert_eq!(errno(fs::rename(&grave, a.join("f"))), libc::ENOENT);
    vault.command(&["object", "describe", &id]).refused(3);
    vault.command(&["tombstone", "restore", &id]).refused(3);
    vault.remount();
    assert!(vault.tombstones("a").is_empty());
    vault.command(&["fsck"]).good();
}

#[test]
fn an_object_that_never_held_a_byte_leaves_none() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("empty"), "").unwrap();
    symlink("x", a.join("link")).unwrap();
    mknod(a.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    for name in ["empty", "link", "fifo"] {
        fs::remove_file(a.join(name)).unwrap();
    }
    assert!(vault.tombstones("a").is_empty());
    fs::write(a.join("once"), "x").unwrap();
    fs::write(a.join("once"), "").unwrap();
    fs::remove_file(a.join("once")).unwrap();
    assert_eq!(vault.tombstones("a").len(), 1, "it held a byte once");
}

#[test]
fn at_most_tombstones_per_name_for_one_path() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut ids = Vec::new();
    for n in 0..5 {
        fs::write(a.join("f"), n.to_string()).unwrap();
        ids.push(vault_says(a.join("f"), "id"));
        fs::remove_file(a.join("f")).unwrap();
    }
    fs::write(a.join("g"), "other").unwrap();
    fs::remove_file(a.join("g")).unwrap();
    let mut left: Vec<_> = vault.tombstones("a").iter().map(|grave| vault_says(grave, "id")).collect();
    left.retain(|id| ids.contains(id));
    left.sort();
    let mut newest = ids[2..].to_vec();
    newest.sort();
    assert_eq!(left, newest);
    assert_eq!(vault.tombstones("a").len(), 4);
}

#[test]
fn only_the_last_link_makes_a_tombstone() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::hard_link(a.join("f"), a.join("g")).unwrap();
    fs::remove_file(a.join("f")).unwrap();
    assert!(vault.tombstones("a").is_empty());
    fs::remove_file(a.join("g")).unwrap();
    assert_eq!(vault_says(vault.tombstone("a"), "original_path"), "g");
}

#[test]
fn tombstones_are_hidden_from_what_walks_the_vault() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    assert_eq!(run("ls", &[&"-A", &vault.point()]), "a\n");
    run("sh", &[&"-c", &"rm -rf \"$0\"/*", &a]);
    assert_eq!(vault.tombstones("a").len(), 1);
    vault.umount();
    vault.mount(&["-o", "show_hidden"]);
    let listed = run("ls", &[&"-A", &vault.point()]);
    assert!(listed.lines().any(|line| line == ".tombstones") && listed.lines().any(|line| line == "a"), "{listed}");
}

#[test]
fn tombstones_are_for_the_owner_of_the_mount() {
    use std::os::unix::process::CommandExt;
    let vault = Vault::up();
    vault.open_to_others();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    let listed =
        std::process::Command::new("ls").arg(vault.at(".tombstones/a")).uid(65534).gid(65534).output().unwrap();
    assert!(!listed.status.success() && listed.stdout.is_empty());
    assert!(String::from_utf8_lossy(&listed.stderr).contains("Permission denied"));
}

#[test]
fn the_reaper_purges_what_is_past_its_retention() {
    let vault = Vault::up_with(&["-o", "tombstone_retention=1s,tombstone_min_age=1s"]);
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    fs::remove_file(a.join("f")).unwrap();
    for _ in 0..300 {
        if vault.tombstones("a").is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("still there after 30 s");
}
