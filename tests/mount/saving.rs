//! Saving: what makes a version, and what keeps an object's id and history.

use crate::kernel::{Mapping, errno, rename, truncate, vault_says};
use crate::vault::{Vault, run};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn said<const N: usize>(path: &Path, names: [&str; N]) -> [String; N] {
    names.map(|name| vault_says(path, name))
}

fn value(vault: &Vault, object: &str, version: &str) -> String {
    vault.command(&["object", "get", object, "--version", version]).good().text()
}

#[test]
fn each_close_of_a_writer_that_changed_the_file_is_a_version() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one").unwrap();
    let first = said(&f, ["id", "version_id", "version", "versions"]);
    assert_eq!(first[2..], ["1", "1"]);
    fs::write(&f, "two").unwrap();
    OpenOptions::new().append(true).open(&f).unwrap().write_all(b", three").unwrap();
    let third = said(&f, ["id", "version_id", "version", "versions"]);
    assert_eq!(third[2..], ["3", "3"]);
    assert_eq!(third[0], first[0]);
    assert_ne!(third[1], first[1]);
    assert_eq!(["1", "2", "3"].map(|n| value(&vault, "a/f", n)), ["one", "two", "two, three"]);
}

#[test]
fn a_close_without_a_change_makes_no_version() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one").unwrap();
    let before = said(&f, ["version_id", "versions", "updated_at"]);
    drop(OpenOptions::new().write(true).open(&f).unwrap());
    File::open(&f).unwrap().read_to_end(&mut Vec::new()).unwrap();
    run("chmod", &[&"600", &f]);
    assert_eq!(said(&f, ["version_id", "versions", "updated_at"]), before);
}

#[test]
fn truncating_by_name_is_a_change() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one two").unwrap();
    run("truncate", &[&"-s", &"3", &f]);
    assert_eq!(fs::read(&f).unwrap(), b"one");
    assert_eq!(value(&vault, "a/f", "1"), "one two");
    run("sh", &[&"-c", &": > \"$0\"", &f]);
    assert_eq!(fs::read(&f).unwrap(), b"");
    assert_eq!(vault_says(&f, "version"), "3");
}

#[test]
fn a_redirection_of_a_shell_is_one_version() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one").unwrap();
    for (version, script) in [(2, "echo two >\"$0\""), (3, "cat /etc/passwd >\"$0\""), (4, "(echo a; echo b) >\"$0\"")]
    {
        for shell in ["bash", "dash"] {
            let version = version * 2 - if shell == "bash" { 2 } else { 1 };
            run(shell, &[&"-c", &script, &f]);
            assert_eq!(vault_says(&f, "version"), version.to_string(), "{shell}: {script}");
        }
    }
    assert_eq!(value(&vault, "a/f", "2"), "two\n");
}

#[test]
fn emptying_is_a_version_of_who_emptied_even_while_others_read() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one").unwrap();
    std::os::unix::fs::chown(&f, Some(1000), None).unwrap();
    let reader = File::open(&f).unwrap();
    drop(File::create(&f).unwrap());
    for _ in 0..100 {
        if vault_says(&f, "version") == "2" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(said(&f, ["version", "updated_by"]), ["2", "uid:0"]);
    assert_eq!(value(&vault, "a/f", "2"), "");
    drop(reader);
    assert_eq!(said(&f, ["version", "updated_by"]), ["2", "uid:0"]);
}

#[test]
fn truncating_beside_a_writer_is_a_change_of_his_and_to_the_same_size_is_none() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one two").unwrap();
    truncate(&f, 3).unwrap();
    assert_eq!(["1", "2"].map(|n| value(&vault, "a/f", n)), ["one two", "one"]);
    truncate(&f, 3).unwrap();
    assert_eq!(vault_says(&f, "version"), "2");
    let writer = OpenOptions::new().write(true).open(&f).unwrap();
    truncate(&f, 2).unwrap();
    assert_eq!((vault_says(&f, "version"), fs::read(&f).unwrap()), ("2".into(), b"on".into()));
    drop(writer);
    assert_eq!(value(&vault, "a/f", "3"), "on");
}

#[test]
fn writers_at_the_same_time_share_one_value() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "........").unwrap();
    let open = || OpenOptions::new().write(true).open(&f).unwrap();
    let (mut one, mut two) = (open(), open());
    one.write_all(b"aaaa").unwrap();
    two.seek(std::io::SeekFrom::Start(4)).unwrap();
    two.write_all(b"bbbb").unwrap();
    assert_eq!(fs::read(&f).unwrap(), b"aaaabbbb");
    drop(one);
    drop(two);
    assert_eq!(fs::read(&f).unwrap(), b"aaaabbbb");
    assert_eq!(vault_says(&f, "version"), "2");
}

#[test]
fn what_a_mapping_writes_after_the_close_is_a_version_at_the_last_release() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, [b'.'; 4096]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&f).unwrap();
    let mut mapping = Mapping::shared(&file, 4096);
    drop(file);
    mapping.write(100, b"late");
    drop(mapping);
    for _ in 0..100 {
        if vault_says(&f, "version") == "2" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(vault_says(&f, "version"), "2");
    assert_eq!(fs::read(&f).unwrap()[98..106], *b"..late..");
}

#[test]
fn rename_over_keeps_object_id_creation_time_context_and_history() {
    let vault = Vault::up();
    let a = vault.org("a");
    let (f, new) = (a.join("f"), a.join("f.new"));
    fs::write(&f, "old").unwrap();
    let kept = ["id", "created_at", "context.organizationId"];
    let before = said(&f, kept);
    fs::write(&new, "new").unwrap();
    let inode = fs::metadata(&new).unwrap().ino();
    fs::rename(&new, &f).unwrap();
    assert_eq!(said(&f, kept), before);
    assert_eq!(said(&f, ["version", "versions"]), ["2", "2"]);
    assert_eq!(fs::metadata(&f).unwrap().ino(), inode, "the inode stays with the file");
    assert_eq!([value(&vault, "a/f", "1"), value(&vault, "a/f", "2")], ["old", "new"]);
    assert!(vault.tombstones("a").is_empty(), "a save leaves no tombstone");
    vault.remount();
    assert_eq!(said(&f, kept), before);
    assert_eq!([value(&vault, "a/f", "1"), value(&vault, "a/f", "2")], ["old", "new"]);
    vault.command(&["fsck"]).good();
}

#[test]
fn open_handles_of_a_replaced_file_go_on() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "old value").unwrap();
    let mut old = OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
    fs::write(a.join("new"), "new").unwrap();
    fs::rename(a.join("new"), a.join("f")).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old value");
    old.write_all(b" and more").unwrap();
    old.sync_all().unwrap();
    old.rewind().unwrap();
    text.clear();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old value and more");
    assert_eq!(old.metadata().unwrap().nlink(), 0);
    drop(old);
    assert_eq!(fs::read(a.join("f")).unwrap(), b"new");
    assert_eq!(vault_says(a.join("f"), "version"), "2");
}

#[test]
fn a_replaced_file_with_other_links_keeps_its_id_for_them() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "old").unwrap();
    fs::hard_link(a.join("f"), a.join("link")).unwrap();
    fs::write(a.join("new"), "new").unwrap();
    let (old, new) = (vault_says(a.join("f"), "id"), vault_says(a.join("new"), "id"));
    fs::rename(a.join("new"), a.join("f")).unwrap();
    assert_eq!(vault_says(a.join("link"), "id"), old);
    assert_eq!(vault_says(a.join("f"), "id"), new);
    assert_eq!(fs::read(a.join("link")).unwrap(), b"old");
    assert_eq!(fs::metadata(a.join("link")).unwrap().nlink(), 1);
    assert!(vault.tombstones("a").is_empty());
}

#[test]
fn move_away_create_remove_passes_id_and_history_on() {
    let vault = Vault::up();
    let a = vault.org("a");
    let (f, backup) = (a.join("f"), a.join("f~"));
    fs::write(&f, "old").unwrap();
    let before = said(&f, ["id", "created_at"]);
    fs::rename(&f, &backup).unwrap();
    fs::write(&f, "new").unwrap();
    fs::remove_file(&backup).unwrap();
    assert_eq!(said(&f, ["id", "created_at"]), before);
    assert_eq!(fs::read(&f).unwrap(), b"new");
    assert_eq!([value(&vault, "a/f", "1"), value(&vault, "a/f", "2")], ["old", "new"]);
    assert!(vault.tombstones("a").is_empty());
    vault.remount();
    assert_eq!(said(&f, ["id", "created_at"]), before);
}

#[test]
fn move_away_without_a_successor_is_a_deletion() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "old").unwrap();
    let id = vault_says(a.join("f"), "id");
    fs::rename(a.join("f"), a.join("f~")).unwrap();
    fs::remove_file(a.join("f~")).unwrap();
    assert_eq!(vault_says(vault.tombstone("a"), "id"), id);
    fs::write(a.join("f"), "other").unwrap();
    assert_ne!(vault_says(a.join("f"), "id"), id);
}

#[test]
fn vim_and_sed_keep_id_and_history() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one\n").unwrap();
    let id = vault_says(&f, "id");
    run("sed", &[&"-i", &"s/one/two/", &f]);
    assert_eq!((fs::read_to_string(&f).unwrap().as_str(), vault_says(&f, "id")), ("two\n", id.clone()));
    for backup in ["set backupcopy=no writebackup", "set backupcopy=yes", "set nowritebackup"] {
        let save = format!("{backup}|%s/$/!/|wq");
        run("vim", &[&"-u", &"NONE", &"-i", &"NONE", &"-n", &"-es", &"-c", &save, &f]);
        assert_eq!(vault_says(&f, "id"), id, "{backup}");
    }
    assert_eq!(fs::read_to_string(&f).unwrap(), "two!!!\n");
    assert_eq!(value(&vault, "a/f", "1"), "one\n");
    assert!(vault.tombstones("a").is_empty());
}

#[test]
fn exchange_swaps_names_and_noreplace_refuses() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "f").unwrap();
    fs::create_dir(a.join("d")).unwrap();
    let id = vault_says(a.join("f"), "id");
    assert_eq!(errno(rename(a.join("f"), a.join("d"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(rename(a.join("f"), a.join("none"), libc::RENAME_EXCHANGE)), libc::ENOENT);
    rename(a.join("f"), a.join("d"), libc::RENAME_EXCHANGE).unwrap();
    assert!(a.join("f").is_dir());
    assert_eq!(vault_says(a.join("d"), "id"), id);
    rename(a.join("d"), a.join("e"), libc::RENAME_NOREPLACE).unwrap();
    assert_eq!(fs::read(a.join("e")).unwrap(), b"f");
}

#[test]
fn directories_replace_only_empty_directories() {
    let vault = Vault::up();
    let a = vault.org("a");
    for d in ["empty", "full", "moved", "moved/in"] {
        fs::create_dir(a.join(d)).unwrap();
    }
    fs::write(a.join("full/f"), "x").unwrap();
    fs::write(a.join("file"), "x").unwrap();
    assert_eq!(errno(fs::rename(a.join("moved"), a.join("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(a.join("moved"), a.join("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(a.join("file"), a.join("empty"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(a.join("moved"), a.join("moved/in/x"))), libc::EINVAL);
    fs::rename(a.join("moved"), a.join("empty")).unwrap();
    assert!(a.join("empty/in").is_dir());
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 4);
}

#[test]
fn keep_versions_drops_the_oldest() {
    let vault = Vault::up_with(&["-o", "keep_versions=3"]);
    let f = vault.org("a").join("f");
    for n in 1..=5 {
        fs::write(&f, n.to_string()).unwrap();
    }
    assert_eq!(said(&f, ["version", "versions"]), ["5", "3"]);
    assert_eq!(["3", "4", "5"].map(|n| value(&vault, "a/f", n)), ["3", "4", "5"]);
    vault.command(&["object", "get", "a/f", "--version", "2"]).refused(3);
}

#[test]
fn a_replacing_file_with_a_history_leaves_that_as_a_tombstone() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "target").unwrap();
    fs::write(a.join("g"), "first").unwrap();
    fs::write(a.join("g"), "second").unwrap();
    let (target, other) = (vault_says(a.join("f"), "id"), vault_says(a.join("g"), "id"));
    fs::rename(a.join("g"), a.join("f")).unwrap();
    assert_eq!(vault_says(a.join("f"), "id"), target);
    assert_eq!(fs::read(a.join("f")).unwrap(), b"second");
    let grave = vault.tombstone("a");
    assert_eq!(vault_says(&grave, "id"), other);
    fs::rename(&grave, a.join("back")).unwrap();
    assert_eq!(vault_says(a.join("back"), "id"), other);
    assert_eq!(fs::read(a.join("back")).unwrap(), b"second");
    assert_eq!(value(&vault, "a/back", "1"), "first");
    vault.remount();
    assert_eq!(fs::read(a.join("f")).unwrap(), b"second");
    assert_eq!(value(&vault, "a/f", "1"), "target");
    vault.command(&["fsck"]).good();
}

/// Its versions are holes, for which no key was needed; the key that the first byte brings is that of the history too.
#[test]
fn a_history_without_a_byte_is_left_beside_what_is_written_later() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "old").unwrap();
    File::create(a.join("new")).unwrap();
    truncate(a.join("new"), 100).unwrap();
    truncate(a.join("new"), 200).unwrap();
    fs::rename(a.join("new"), a.join("f")).unwrap();
    fs::write(a.join("f"), "first byte").unwrap();
    vault.command(&["fsck"]).good();
    fs::rename(vault.tombstone("a"), a.join("back")).unwrap();
    assert_eq!(fs::read(a.join("back")).unwrap(), [0; 200]);
    assert_eq!(fs::read(a.join("f")).unwrap(), b"first byte");
    vault.command(&["fsck"]).good();
}

#[test]
fn truncating_to_the_same_size_changes_times_and_makes_no_version() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "12345").unwrap();
    let before = fs::metadata(&f).unwrap().modified().unwrap();
    truncate(&f, 5).unwrap();
    File::options().write(true).open(&f).unwrap().set_len(5).unwrap();
    assert_eq!(vault_says(&f, "version"), "1");
    assert!(fs::metadata(&f).unwrap().modified().unwrap() > before);
    truncate(&f, 3).unwrap();
    assert_eq!(vault_says(&f, "version"), "2");
}
