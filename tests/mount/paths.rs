//! Long and strange paths: folders 10,000 deep, paths at PATH_MAX, loops of symlinks, names that look the same.

use crate::kernel::{errno, mkdir_at, open_at, remove_at, vault_says};
use crate::vault::{Done, Vault, run};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

const DEEP: usize = 10_000;

/// Folders below one another, with a file in the last.
fn dig(at: &Path) {
    let mut folder = File::open(at).unwrap();
    for _ in 0..DEEP {
        folder = mkdir_at(&folder, "d").unwrap();
    }
    open_at(&folder, "bottom", libc::O_CREAT | libc::O_WRONLY).unwrap().write_all(b"reached").unwrap();
}

fn up(folder: &File) -> File {
    open_at(folder, "..", libc::O_RDONLY | libc::O_DIRECTORY).unwrap()
}

#[test]
fn folders_10000_deep_are_made_walked_and_removed_by_descriptors() {
    let vault = Vault::up();
    let a = vault.org("a");
    dig(&a);
    vault.command(&["fsck"]).good();
    vault.remount();
    let mut folder = File::open(&a).unwrap();
    for _ in 0..DEEP {
        folder = open_at(&folder, "d", libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    }
    let mut value = String::new();
    open_at(&folder, "bottom", libc::O_RDONLY).unwrap().read_to_string(&mut value).unwrap();
    assert_eq!(value, "reached");
    remove_at(&folder, "bottom", 0).unwrap();
    assert_eq!(vault_says(vault.tombstone("a"), "original_path").len(), DEEP * "d/".len() + "bottom".len());
    assert_eq!(errno(remove_at(&up(&up(&folder)), "d", libc::AT_REMOVEDIR)), libc::ENOTEMPTY);
    for _ in 0..DEEP {
        folder = up(&folder);
        remove_at(&folder, "d", libc::AT_REMOVEDIR).unwrap();
    }
    assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
    vault.command(&["fsck"]).good();
}

/// What programs say of the same on the mount and on the file system of the state directory.
#[test]
fn programs_walk_and_remove_folders_10000_deep_as_elsewhere() {
    let vault = Vault::up();
    let (a, elsewhere) = (vault.org("a"), vault.directory().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    let said = [&a, &elsewhere].map(|at| {
        dig(at);
        let script = r#"
            find . | wc -l; find . -name bottom -printf '%d %s\n'; du --apparent-size -b . | tail -n 1; tar -cf - . | wc -c
            cp -r d copy 2>&1 | head -n 1; find copy | wc -l
            /usr/bin/python3 -c '
import os
for _ in range(10000): os.chdir("d")
print(len(os.getcwd()) - len(os.environ["AT"]), open("bottom").read())'
            mv d/d/d/d moved; mv moved d/d; find d | wc -l
            rm -r d copy; ls -A"#;
        let mut shell = Command::new("timeout");
        shell.args(["-k", "5", "300", "bash", "-c", script]).current_dir(at).env("AT", at).env("LC_ALL", "C");
        let done = Done::of(&mut shell, b"").good();
        (done.text(), done.err)
    });
    assert_eq!(said[0], said[1]);
    vault.command(&["fsck"]).good();
}

#[test]
fn a_folder_moves_into_the_deepest_other_but_not_into_itself() {
    let vault = Vault::up();
    let a = vault.org("a");
    dig(&a);
    fs::create_dir(a.join("e")).unwrap();
    let mut folder = File::open(&a).unwrap();
    for _ in 0..DEEP {
        folder = open_at(&folder, "d", libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    }
    let bottom = std::os::fd::AsRawFd::as_raw_fd(&folder);
    let at_bottom = |name: &str| format!("/proc/self/fd/{bottom}/{name}");
    assert_eq!(errno(fs::rename(a.join("d"), at_bottom("loop"))), libc::EINVAL);
    fs::rename(a.join("e"), at_bottom("e")).unwrap();
    fs::rename(at_bottom("e"), a.join("e")).unwrap();
    drop(folder);
    run("rm", &[&"-r", &a.join("d")]);
    vault.command(&["fsck"]).good();
}

#[test]
fn paths_reach_to_path_max_and_no_further() {
    let vault = Vault::up();
    let a = vault.org("a");
    // 4096 bytes with the NUL at their end.
    let longest = |end: usize| {
        let mut path = a.to_str().unwrap().to_owned();
        while path.len() + 1 + 200 < end {
            path = format!("{path}/{}", "p".repeat(199));
            let _ = fs::create_dir(&path);
        }
        format!("{path}/{}", "f".repeat(end - path.len() - 1))
    };
    let path = longest(libc::PATH_MAX as usize - 1);
    assert_eq!(path.len(), 4095);
    fs::write(&path, "at the end").unwrap();
    assert_eq!(errno(fs::write(format!("{path}f"), "")), libc::ENAMETOOLONG);
    assert_eq!(fs::read(&path).unwrap(), b"at the end");
    fs::remove_file(&path).unwrap();
    assert_eq!(run("rm", &[&"-r", &a.join("p".repeat(199))]), "");
    let original = vault_says(vault.tombstone("a"), "original_path");
    assert_eq!(original, path[a.to_str().unwrap().len() + 1..]);
}

#[test]
fn symlinks_lead_in_circles_and_point_4095_bytes_far() {
    let vault = Vault::up();
    let a = vault.org("a");
    symlink("two", a.join("one")).unwrap();
    symlink("one", a.join("two")).unwrap();
    symlink("self", a.join("self")).unwrap();
    symlink(".", a.join("here")).unwrap();
    for name in ["one", "two", "self", "one/x", "self/x"] {
        assert_eq!(errno(fs::metadata(a.join(name))), libc::ELOOP, "{name}");
        assert_eq!(errno(fs::write(a.join(name), "")), libc::ELOOP, "{name}");
    }
    fs::write(a.join("f"), "x").unwrap();
    assert_eq!(fs::read(a.join("here/".repeat(40)).join("f")).unwrap(), b"x");
    assert_eq!(errno(fs::read(a.join("here/".repeat(41)).join("f"))), libc::ELOOP);
    let far = "t".repeat(4095);
    symlink(&far, a.join("far")).unwrap();
    assert_eq!(errno(symlink("t".repeat(4096), a.join("farther"))), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("", a.join("nowhere"))), libc::ENOENT);
    for _ in 0..2 {
        assert_eq!(fs::read_link(a.join("far")).unwrap().to_str(), Some(&far[..]));
        assert_eq!(fs::symlink_metadata(a.join("far")).unwrap().len(), 4095);
        vault.remount();
    }
}

#[test]
fn names_that_differ_in_normalization_or_case_are_different_names() {
    let vault = Vault::up();
    let a = vault.org("a");
    let names = ["caf\u{e9}", "cafe\u{301}", "CAF\u{c9}", "\u{212b}", "\u{c5}", "A\u{30a}", "ﬁ", "fi", "a ", "a"];
    for name in names {
        fs::write(a.join(name), name).unwrap();
    }
    vault.remount();
    let listed: BTreeSet<String> =
        fs::read_dir(&a).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed, names.map(str::to_owned).into());
    let numbers: BTreeSet<u64> = names.map(|name| fs::metadata(a.join(name)).unwrap().ino()).into();
    assert_eq!(numbers.len(), names.len());
    for name in names {
        assert_eq!(fs::read_to_string(a.join(name)).unwrap(), name);
        fs::remove_file(a.join(name)).unwrap();
    }
    assert_eq!(vault.tombstones("a").len(), names.len());
    // Organizations too.
    for name in ["\u{e9}", "e\u{301}"] {
        fs::write(vault.org(name).join("f"), name).unwrap();
    }
    assert_eq!(fs::read_to_string(vault.at("e\u{301}/f")).unwrap(), "e\u{301}");
    vault.command(&["fsck"]).good();
}
