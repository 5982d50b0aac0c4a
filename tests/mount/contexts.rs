//! Key contexts: pairs set on folders, carried by objects, each with a KEK of its own.

use crate::kernel::{attributes, errno, remove_attribute, set_attribute, set_attribute_as, vault_says};
use crate::vault::{Vault, run, try_run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn pair(key: &str) -> String {
    format!("user.vault.context.{key}")
}

fn folder(path: PathBuf, pairs: &[(&str, &str)]) -> PathBuf {
    fs::create_dir(&path).unwrap();
    pairs.iter().for_each(|(key, value)| set_attribute(&path, &pair(key), value).unwrap());
    path
}

/// The pairs that a path shows, without its organization's own.
fn pairs(path: impl AsRef<Path>) -> BTreeMap<String, String> {
    let names = attributes(&path);
    let keys = names.iter().filter_map(|name| name.strip_prefix("user.vault.context."));
    let keys = keys.filter(|key| *key != "organizationId");
    keys.map(|key| (key.to_owned(), vault_says(&path, &format!("context.{key}")))).collect()
}

fn of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[test]
fn objects_carry_the_pairs_of_the_nearest_folders_for_ever() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let keys = vault.token_files();
    fs::write(org.join("before"), "v").unwrap();
    set_attribute(&org, &pair("tier"), "gold").unwrap();
    let eu = folder(org.join("eu"), &[("region", "eu"), ("tier", "silver")]);
    let plain = folder(eu.join("plain"), &[]);
    assert_eq!(vault.token_files(), keys, "a pair has no key before it is used");
    fs::write(plain.join("f"), "deep").unwrap();
    fs::write(eu.join("empty"), "").unwrap();
    fs::write(org.join("after"), "v").unwrap();
    assert_eq!(vault.token_files(), keys + 3, "region=eu, tier=silver, tier=gold");
    set_attribute(&eu, &pair("region"), "us").unwrap();
    remove_attribute(&org, &pair("tier")).unwrap();
    fs::write(plain.join("later"), "x").unwrap();
    fs::write(plain.join("f"), "again").unwrap();
    let seen = || {
        assert_eq!(pairs(org.join("before")), of(&[]));
        assert_eq!(pairs(org.join("after")), of(&[("tier", "gold")]));
        assert_eq!(pairs(plain.join("f")), of(&[("region", "eu"), ("tier", "silver")]));
        assert_eq!(pairs(eu.join("empty")), of(&[("region", "eu"), ("tier", "silver")]));
        assert_eq!(pairs(plain.join("later")), of(&[("region", "us"), ("tier", "silver")]));
        assert_eq!(vault_says(plain.join("f"), "context.organizationId"), vault_says(&org, "id"));
        assert_eq!(vault_says(plain.join("f"), "key_id").split(',').count(), 3);
        assert_eq!(fs::read(plain.join("f")).unwrap(), b"again");
        assert_eq!(pairs(&eu), of(&[("region", "us"), ("tier", "silver")]), "a folder shows its own pairs");
        assert_eq!((pairs(&plain), pairs(&org)), (of(&[]), of(&[])));
    };
    seen();
    vault.remount();
    seen();
    fs::write(eu.join("empty"), "filled").unwrap();
    assert_eq!(pairs(eu.join("empty")), of(&[("region", "eu"), ("tier", "silver")]));
    vault.command(&["fsck"]).good();
}

#[test]
fn withdrawing_any_one_kek_closes_exactly_the_objects_that_carry_its_pair() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let other = vault.org("other");
    let a = folder(org.join("a"), &[("customer", "a")]);
    let both = folder(a.join("both"), &[("Region", "eu")]);
    let eu = folder(org.join("eu"), &[("Region", "eu")]);
    let foreign = folder(other.join("eu"), &[("Region", "eu")]);
    let places = [&org, &a, &both, &eu, &other, &foreign];
    let files: Vec<_> = places.iter().map(|place| place.join("f")).collect();
    let mut carriers: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in &files {
        fs::write(file, "value").unwrap();
        for kek in vault_says(file, "key_id").split(',') {
            carriers.entry(kek.to_owned()).or_default().push(file.clone());
        }
    }
    let counts: Vec<_> = carriers.values().map(Vec::len).collect();
    assert_eq!((counts.len(), counts.iter().sum::<usize>()), (5, 11), "{carriers:?}");
    vault.umount();
    for (kek, carried) in &carriers {
        vault.without_kek(kek, || {
            vault.mount(&[]);
            for file in &files {
                let read = fs::read(file);
                if carried.contains(file) {
                    assert_eq!(errno(read), libc::ENOKEY, "{kek} is gone: {file:?}");
                } else {
                    assert_eq!(read.unwrap(), b"value", "{kek} is not needed: {file:?}");
                }
            }
            vault.umount();
        });
    }
    vault.mount(&[]);
    files.iter().for_each(|file| assert_eq!(fs::read(file).unwrap(), b"value"));
}

#[test]
fn a_save_over_an_object_of_another_context_is_wrapped_under_the_objects() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let (a, b) = (folder(org.join("a"), &[("customer", "a")]), folder(org.join("b"), &[("customer", "b")]));
    for (from, to) in [(&a, &b), (&b, &org), (&org, &a)] {
        let (new, old) = (from.join("new"), to.join("old"));
        for (name, size) in [("small", 10), ("large", 300_000), ("empty", 0)] {
            fs::write(&new, vec![7; size]).unwrap();
            fs::write(&old, "old").unwrap();
            let said = ["id", "key_id", "created_at"].map(|name| vault_says(&old, name));
            let carried = pairs(&old);
            fs::rename(&new, &old).unwrap();
            assert_eq!(fs::read(&old).unwrap(), vec![7; size], "{name}");
            assert_eq!(["id", "key_id", "created_at"].map(|name| vault_says(&old, name)), said, "{name}");
            assert_eq!(pairs(&old), carried);
            fs::write(&old, "and on").unwrap();
            assert_eq!(["id", "key_id", "created_at"].map(|name| vault_says(&old, name)), said, "{name}");
            fs::remove_file(&old).unwrap();
        }
        fs::write(&old, "kept").unwrap();
    }
    // A moved object keeps what it carries.
    fs::rename(a.join("old"), b.join("moved")).unwrap();
    assert_eq!(pairs(b.join("moved")), of(&[("customer", "a")]));
    let kek = vault_says(b.join("old"), "key_id");
    let kek = kek.split(',').next().unwrap().to_owned();
    vault.umount();
    vault.without_kek(&kek, || {
        vault.mount(&[]);
        assert_eq!(fs::read(b.join("moved")).unwrap(), b"kept");
        assert_eq!(errno(fs::read(b.join("old"))), libc::ENOKEY);
        vault.umount();
    });
    vault.mount(&[]);
    vault.command(&["fsck"]).good();
}

#[test]
fn a_put_and_a_restored_history_keep_the_objects_context() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let a = folder(org.join("a"), &[("customer", "a")]);
    fs::write(a.join("f"), "one").unwrap();
    let (id, key) = (vault_says(a.join("f"), "id"), vault_says(a.join("f"), "key_id"));
    fs::rename(a.join("f"), org.join("f")).unwrap();
    vault.command_with(&["object", "put", "acme/f"], b"two").good();
    assert_eq!((vault_says(org.join("f"), "id"), vault_says(org.join("f"), "key_id")), (id, key.clone()));
    vault.command_with(&["object", "put", "acme/a/g"], b"new").good();
    assert_eq!(vault_says(a.join("g"), "key_id"), key);
    // A replacing file's own history is a tombstone with its own context.
    fs::write(a.join("g"), "newer").unwrap();
    fs::write(org.join("plain"), "plain").unwrap();
    fs::rename(a.join("g"), org.join("plain")).unwrap();
    assert_eq!(pairs(org.join("plain")), of(&[]));
    run("mv", &[&vault.tombstone("acme"), &org.join("restored")]);
    assert_eq!(fs::read(org.join("restored")).unwrap(), b"newer");
    assert_eq!(vault_says(org.join("restored"), "key_id"), key);
    assert_eq!(pairs(org.join("restored")), of(&[("customer", "a")]));
    assert_eq!(fs::read(org.join("plain")).unwrap(), b"newer");
    vault.command(&["fsck"]).good();
}

#[test]
fn vims_save_across_a_changed_context_keeps_the_objects() {
    let vault = Vault::up();
    let a = folder(vault.org("acme").join("a"), &[("customer", "a")]);
    fs::write(a.join("f"), "one").unwrap();
    let said = ["id", "key_id"].map(|name| vault_says(a.join("f"), name));
    set_attribute(&a, &pair("customer"), "b").unwrap();
    fs::rename(a.join("f"), a.join("f~")).unwrap();
    fs::write(a.join("f"), "two").unwrap();
    fs::remove_file(a.join("f~")).unwrap();
    assert_eq!(["id", "key_id"].map(|name| vault_says(a.join("f"), name)), said);
    assert_eq!(pairs(a.join("f")), of(&[("customer", "a")]));
    assert_eq!(fs::read(a.join("f")).unwrap(), b"two");
}

#[test]
fn what_cannot_be_a_pair_is_refused() {
    let vault = Vault::up();
    vault.open_to_others();
    let org = vault.org("acme");
    let set = |path: &Path, key: &str, value: &str| set_attribute(path, &pair(key), value);
    assert_eq!(errno(set(&org, "organizationId", "org_x")), libc::EPERM);
    assert_eq!(errno(set(&org, "k", "")), libc::EINVAL);
    assert_eq!(errno(set(&org, "k", "a\nb")), libc::EINVAL);
    assert_eq!(errno(set(&org, "k", &"x".repeat(256))), libc::EINVAL);
    assert_eq!(errno(set_attribute_as(&org, &pair("k"), b"v", libc::XATTR_REPLACE)), libc::ENODATA);
    set_attribute_as(&org, &pair("k"), b"v", libc::XATTR_CREATE).unwrap();
    assert_eq!(errno(set_attribute_as(&org, &pair("k"), b"v", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(remove_attribute(&org, &pair("other"))), libc::ENODATA);
    (1..9).for_each(|number| set(&org, &format!("k{number}"), "v").unwrap());
    assert_eq!(errno(set(&org, "k9", "v")), libc::EINVAL, "ten pairs with the organization's own");
    fs::write(org.join("ten"), "v").unwrap();
    assert_eq!(vault_says(org.join("ten"), "key_id").split(',').count(), 10);
    let deep = folder(org.join("deep"), &[("k10", "v")]);
    assert_eq!(errno(fs::write(deep.join("eleven"), "v")), libc::EINVAL);
    fs::create_dir(deep.join("folder")).unwrap();
    vault.remount();
    assert_eq!(fs::read(org.join("ten")).unwrap(), b"v");
    let free = folder(vault.org("free").join("x"), &[]);
    fs::write(free.join("f"), "v").unwrap();
    fs::write(free.join("f"), "w").unwrap();
    // As a copy may do with any name of an object's: it changes nothing.
    set(&free.join("f"), "k", "v").unwrap();
    remove_attribute(free.join("f"), &pair("organizationId")).unwrap();
    assert_eq!(pairs(free.join("f")), of(&[]), "an object's context never changes");
    assert_eq!(vault_says(free.join("f"), "context.organizationId"), vault_says(vault.at("free"), "id"));
    run("chmod", &[&"0777", &vault.at("free"), &free]);
    let script = "exec setpriv --reuid 1000 --regid 1000 --clear-groups setfattr -n user.vault.context.k -v v \"$0\"";
    assert_ne!(try_run("sh", &[&"-c", &script, &free]).code, 0, "only a folder's owner sets its context");
    assert_eq!(pairs(&free), of(&[]));
}

#[test]
fn a_copied_folder_brings_its_pairs_into_another_organization() {
    let vault = Vault::up();
    let (one, two) = (vault.org("one"), vault.org("two"));
    let eu = folder(one.join("eu"), &[("region", "eu")]);
    fs::write(eu.join("f"), "value").unwrap();
    run("cp", &[&"-a", &eu, &two.join("eu")]);
    assert_eq!(pairs(two.join("eu")), of(&[("region", "eu")]));
    assert_eq!(fs::read(two.join("eu/f")).unwrap(), b"value");
    fs::write(two.join("eu/g"), "value").unwrap();
    let keys = [eu.join("f"), two.join("eu/g")].map(|path| vault_says(path, "key_id"));
    assert!(keys[0].split(',').all(|kek| !keys[1].contains(kek)), "{keys:?}");
}
