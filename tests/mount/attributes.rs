//! Extended attributes: what the vault says in `user.vault.*`, and what applications set.

use crate::kernel::{
    attribute, attributes, errno, mknod, remove_attribute, set_attribute, set_attribute_as, vault_says,
};
use crate::vault::{Vault, run, try_run};
use std::fs;
use std::os::unix::fs::symlink;

const OF_OBJECTS: [&str; 10] = [
    "id",
    "version_id",
    "version",
    "versions",
    "context.organizationId",
    "key_id",
    "cipher",
    "created_at",
    "updated_at",
    "updated_by",
];

#[test]
fn an_object_says_what_it_is() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "value").unwrap();
    let listed = run("getfattr", &[&"--absolute-names", &"-d", &a.join("f")]);
    for name in OF_OBJECTS {
        assert!(listed.contains(&format!("user.vault.{name}=\"")), "{name} in {listed}");
    }
    assert_eq!(vault_says(a.join("f"), "key_id"), vault_says(&a, "key_id"));
    assert_eq!(vault_says(a.join("f"), "context.organizationId"), vault_says(&a, "id"));
    assert_eq!(vault_says(a.join("f"), "updated_by"), "uid:0");
    for name in ["created_at", "updated_at"] {
        let at = vault_says(a.join("f"), name);
        assert!(at.len() == "2026-11-23T16:41:00.123456Z".len() && at.ends_with('Z') && at.contains('T'), "{at}");
    }
    assert_eq!(errno(attribute(a.join("f"), "user.vault.nonsense")), libc::ENODATA);
}

#[test]
fn organizations_and_the_vault_say_what_they_are() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "12345").unwrap();
    fs::write(a.join("g"), "678").unwrap();
    let said = ["objects", "bytes", "tombstones", "key_state"].map(|name| vault_says(&a, name));
    assert_eq!(said, ["2", "8", "0", "active"]);
    for name in ["id", "created_at", "key_id"] {
        assert!(attributes(&a).contains(&format!("user.vault.{name}")), "{name}");
    }
    let root = vault.point();
    assert_eq!(["organizations", "token"].map(|name| vault_says(&root, name)), ["1", "vault"]);
    assert!(!vault_says(&root, "id").is_empty() && vault_says(&root, "format").parse::<u32>().is_ok());
}

#[test]
fn attributes_of_objects_are_read_without_the_token() {
    let vault = Vault::up();
    let a = vault.org("a");
    for n in 0..20 {
        fs::write(a.join(n.to_string()), "value").unwrap();
    }
    vault.remount();
    fs::read_dir(&a).unwrap().for_each(drop);
    let calls = || vault.command(&["status", "--json"]).good().json()["token"]["calls"].as_u64().unwrap();
    let before = calls();
    for n in 0..20 {
        assert_eq!(attributes(a.join(n.to_string())).len(), OF_OBJECTS.len());
        vault_says(a.join(n.to_string()), "id");
    }
    assert_eq!(calls(), before);
}

#[test]
fn what_the_vault_says_cannot_be_set_or_removed() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "one").unwrap();
    fs::write(a.join("f"), "two").unwrap();
    for path in [a.join("f"), a.clone(), vault.point()] {
        for name in ["user.vault.nonsense", "user.vault.key_state.x", "user.vault."] {
            assert_eq!(errno(set_attribute(&path, name, "x")), libc::EPERM, "{name} of {path:?}");
            assert_eq!(errno(remove_attribute(&path, name)), libc::EPERM, "{name} of {path:?}");
        }
    }
    assert_eq!(errno(remove_attribute(vault.point(), "user.vault.id")), libc::EPERM);
    fs::remove_file(a.join("f")).unwrap();
    assert_eq!(errno(remove_attribute(vault.tombstone("a"), "user.vault.id")), libc::EPERM);
    fs::rename(vault.tombstone("a"), a.join("f")).unwrap();
    for name in OF_OBJECTS {
        assert_eq!(errno(set_attribute(a.join("f"), &format!("user.vault.{name}"), "x")), libc::EPERM, "{name}");
    }
    let refused = try_run("setfattr", &[&"-n", &"user.vault.id", &"-v", &"x", &a.join("f")]);
    assert!(refused.code != 0 && refused.err.contains("Operation not permitted"), "{refused:?}");
}

#[test]
fn what_a_copy_brings_or_removes_is_accepted_and_changes_nothing() {
    let vault = Vault::up();
    let a = vault.org("a");
    for name in ["f", "g"] {
        fs::write(a.join(name), "one").unwrap();
        fs::write(a.join(name), "two").unwrap();
    }
    let (before, other) =
        (OF_OBJECTS.map(|n| vault_says(a.join("f"), n)), OF_OBJECTS.map(|n| vault_says(a.join("g"), n)));
    for (name, value) in OF_OBJECTS.iter().zip(other) {
        set_attribute(a.join("f"), &format!("user.vault.{name}"), value).unwrap();
        remove_attribute(a.join("f"), &format!("user.vault.{name}")).unwrap();
    }
    assert_eq!(OF_OBJECTS.map(|n| vault_says(a.join("f"), n)), before);
    remove_attribute(&a, "user.vault.id").unwrap();
    assert!(vault_says(&a, "id").starts_with("org_"));
}

/// Objects with a history and attributes in `a`, and an empty organization `b`.
fn to_copy() -> Vault {
    let vault = Vault::up();
    let a = vault.org("a");
    vault.org("b");
    fs::create_dir(a.join("d")).unwrap();
    for name in ["f", "d/g"] {
        fs::write(a.join(name), "one").unwrap();
        fs::write(a.join(name), "two").unwrap();
        set_attribute(a.join(name), "user.mine", "kept").unwrap();
    }
    symlink("f", a.join("link")).unwrap();
    vault
}

fn assert_copied(vault: &Vault) {
    for name in ["f", "d/g"] {
        let (from, to) = (vault.at("a").join(name), vault.at("b").join(name));
        assert_eq!(fs::read(&to).unwrap(), b"two");
        assert_eq!(attribute(&to, "user.mine").unwrap(), b"kept");
        for own in ["id", "version_id", "key_id", "context.organizationId"] {
            assert_ne!(vault_says(&to, own), vault_says(&from, own), "{own}");
        }
        assert_eq!(vault_says(&to, "context.organizationId"), vault_says(vault.at("b"), "id"));
        assert_eq!(vault_says(&to, "version"), "1");
    }
}

#[test]
fn cp_copies_without_error_and_the_copy_has_its_own_identity() {
    let vault = to_copy();
    let copied = try_run("cp", &[&"-a", &vault.at("a/."), &vault.at("b/")]).good();
    assert_eq!(copied.err, "");
    assert_copied(&vault);
    // Onto what is there.
    let again = try_run("cp", &[&"-a", &vault.at("a/."), &vault.at("b/")]).good();
    assert_eq!(again.err, "");
}

#[test]
fn rsync_copies_without_error_and_the_copy_has_its_own_identity() {
    let vault = to_copy();
    let (from, to) = (vault.at("a/"), vault.at("b/"));
    let copied = try_run("rsync", &[&"-aX", &from, &to]).good();
    assert_eq!(copied.err, "");
    assert_copied(&vault);
    fs::write(vault.at("a/f"), "three").unwrap();
    let again = try_run("rsync", &[&"-aX", &from, &to]).good();
    assert_eq!(again.err, "");
    assert_eq!(fs::read(vault.at("b/f")).unwrap(), b"three");
}

#[test]
fn tar_copies_without_error_and_the_copy_has_its_own_identity() {
    let vault = to_copy();
    let archive = vault.directory().join("a.tar");
    let packed = try_run("tar", &[&"--xattrs", &"--xattrs-include=*", &"-cf", &archive, &"-C", &vault.at("a"), &"."]);
    assert_eq!(packed.good().err, "");
    let unpack = || try_run("tar", &[&"--xattrs", &"--xattrs-include=*", &"-xf", &archive, &"-C", &vault.at("b")]);
    assert_eq!(unpack().good().err, "");
    assert_copied(&vault);
    assert_eq!(unpack().good().err, "", "onto what is there");
}

#[test]
fn mv_between_organizations_copies_and_reencrypts() {
    let vault = to_copy();
    let id = vault_says(vault.at("a/f"), "id");
    let moved = try_run("mv", &[&vault.at("a/f"), &vault.at("b/f")]).good();
    assert_eq!(moved.err, "");
    assert_eq!(fs::read(vault.at("b/f")).unwrap(), b"two");
    assert_ne!(vault_says(vault.at("b/f"), "id"), id);
    assert_eq!(vault_says(vault.at("b/f"), "key_id"), vault_says(vault.at("b"), "key_id"));
    assert_eq!(vault_says(vault.tombstone("a"), "id"), id);
}

#[test]
fn applications_set_user_trusted_and_security_attributes() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    fs::create_dir(a.join("d")).unwrap();
    symlink("f", a.join("l")).unwrap();
    for path in [a.join("f"), a.join("d"), a.clone()] {
        for name in ["user.name", "trusted.name", "security.name"] {
            set_attribute(&path, name, b"a\0b").unwrap();
            assert_eq!(attribute(&path, name).unwrap(), b"a\0b");
        }
        set_attribute(&path, "user.empty", "").unwrap();
        assert_eq!(attribute(&path, "user.empty").unwrap(), b"");
    }
    set_attribute(a.join("l"), "trusted.link", "y").unwrap();
    vault.remount();
    for path in [a.join("f"), a.join("d"), a.clone()] {
        for name in ["user.name", "trusted.name", "security.name"] {
            assert_eq!(attribute(&path, name).unwrap(), b"a\0b");
            remove_attribute(&path, name).unwrap();
            assert_eq!(errno(attribute(&path, name)), libc::ENODATA);
            assert_eq!(errno(remove_attribute(&path, name)), libc::ENODATA);
        }
    }
    assert_eq!(attribute(a.join("l"), "trusted.link").unwrap(), b"y");
}

#[test]
fn attributes_are_created_replaced_and_limited_as_on_ext4() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "x").unwrap();
    set_attribute_as(&f, "user.a", b"1", libc::XATTR_CREATE).unwrap();
    assert_eq!(errno(set_attribute_as(&f, "user.a", b"2", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(set_attribute_as(&f, "user.b", b"2", libc::XATTR_REPLACE)), libc::ENODATA);
    set_attribute_as(&f, "user.a", b"2", libc::XATTR_REPLACE).unwrap();
    let both = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    assert_eq!(errno(set_attribute_as(&f, "user.a", b"3", both)), libc::EEXIST);
    assert_eq!(errno(set_attribute_as(&f, "user.b", b"3", both)), libc::ENODATA);
    assert_eq!(attribute(&f, "user.a").unwrap(), b"2");
    let big = vec![7; 65_536];
    for name in ["user.1", "user.2", "user.3"] {
        set_attribute(&f, name, &big).unwrap();
        assert_eq!(attribute(&f, name).unwrap(), big);
    }
    assert_eq!(errno(set_attribute(&f, "user.4", &big)), libc::ENOSPC);
    assert_eq!(errno(set_attribute(&f, "user.huge", vec![7; 65_537])), libc::E2BIG);
    assert_eq!(errno(set_attribute(&f, "user.", "y")), libc::EINVAL);
    for name in ["nonsense.x", "system.x", "x"] {
        assert_eq!(errno(set_attribute(&f, name, "y")), libc::EOPNOTSUPP, "{name}");
        assert_eq!(errno(attribute(&f, name)), libc::EOPNOTSUPP, "{name}");
        assert_eq!(errno(remove_attribute(&f, name)), libc::EOPNOTSUPP, "{name}");
    }
    assert_eq!(attribute(&f, "user.a").unwrap(), b"2");
}

#[test]
fn hundreds_of_attributes_with_the_longest_names_are_listed() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "x").unwrap();
    let name = |n: usize| format!("user.{n:0>250}");
    let mut set = 0;
    while set < 1000 && set_attribute(&f, &name(set), n_bytes(set)).is_ok() {
        set += 1;
    }
    assert!((200..300).contains(&set), "{set} names of 255 bytes");
    assert_eq!(errno(set_attribute(&f, &name(set), "")), libc::ENOSPC);
    assert_eq!(errno(set_attribute(&f, &format!("{}x", name(0)), "")), libc::ERANGE);
    vault.remount();
    assert_eq!(attributes(&f).iter().filter(|name| name.len() == 255).count(), set);
    for n in 0..set {
        assert_eq!(attribute(&f, &name(n)).unwrap(), n_bytes(n));
        remove_attribute(&f, &name(n)).unwrap();
    }
    assert_eq!(attributes(&f).len(), OF_OBJECTS.len());
    vault.command(&["fsck"]).good();
}

fn n_bytes(n: usize) -> Vec<u8> {
    vec![n as u8; n % 200]
}

#[test]
fn everything_in_an_organization_takes_the_attributes_that_ext4_takes() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("folder")).unwrap();
    symlink("nowhere", a.join("link")).unwrap();
    mknod(a.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    mknod(a.join("device"), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).unwrap();
    for name in ["folder", "link", "fifo", "device"] {
        for space in ["trusted", "security"] {
            set_attribute(a.join(name), &format!("{space}.x"), name).unwrap();
        }
        let user = set_attribute(a.join(name), "user.x", name);
        if name == "folder" { user.unwrap() } else { assert_eq!(errno(user), libc::EPERM, "{name}") }
    }
    vault.remount();
    for name in ["folder", "link", "fifo", "device"] {
        assert_eq!(attribute(a.join(name), "trusted.x").unwrap(), name.as_bytes());
        assert_eq!(attribute(a.join(name), "security.x").unwrap(), name.as_bytes());
    }
}

#[test]
fn trusted_attributes_are_listed_for_root_alone() {
    let vault = Vault::up();
    vault.open_to_others();
    let f = vault.org("a").join("f");
    fs::write(&f, "x").unwrap();
    set_attribute(&f, "trusted.x", "y").unwrap();
    set_attribute(&f, "user.x", "y").unwrap();
    assert!(attributes(&f).contains(&"trusted.x".to_owned()));
    let as_user = ["--reuid", "1000", "--regid", "1000", "--clear-groups", "getfattr", "-m-"];
    let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = as_user.iter().map(|a| a as _).collect();
    arguments.push(&f);
    let listed = run("setpriv", &arguments);
    assert!(listed.contains("user.x") && !listed.contains("trusted.x"), "{listed}");
}
