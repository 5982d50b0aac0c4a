//! Many who rename at once, and those who read meanwhile: the tree stays a tree, and a name that is replaced always stands
//! for the old file or for the new one.

use crate::dice::Dice;
use crate::kernel::rename;
use crate::vault::Vault;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const FOLDERS: usize = 24;
const FILES: usize = 24;
const RENAMERS: u64 = 4;
const RENAMES: usize = 3000;

/// What a rename may meet when everything moves under its feet.
fn is_expected(error: &io::Error) -> bool {
    let expected =
        [libc::ENOENT, libc::EINVAL, libc::ENOTEMPTY, libc::EEXIST, libc::ENOTDIR, libc::EISDIR, libc::ESTALE];
    error.raw_os_error().is_some_and(|errno| expected.contains(&errno))
}

/// Every path below a directory, as it is just now.
fn walk(at: &Path, found: &mut Vec<PathBuf>) {
    let Ok(listed) = fs::read_dir(at) else { return };
    for entry in listed.flatten() {
        assert!(found.len() < 100_000, "a tree without an end at {}", at.display());
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

/// Each folder is found once by the marker in it, has as many links as folders, and knows its parent; the files' values.
fn assert_tree(a: &Path) -> (usize, BTreeMap<String, usize>) {
    let mut found = Vec::new();
    walk(a, &mut found);
    let mut folders = 0;
    let mut values = BTreeMap::new();
    for path in &found {
        let known = fs::symlink_metadata(path).unwrap();
        if known.is_dir() {
            folders += 1;
            let markers = found.iter().filter(|other| other.parent() == Some(path) && other.ends_with("marker"));
            assert_eq!(markers.count(), 1, "{}", path.display());
            let below =
                fs::read_dir(path).unwrap().filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
            assert_eq!(known.nlink(), 2 + below.count() as u64, "{}", path.display());
            let parent = fs::metadata(path.join("..")).unwrap().ino();
            assert_eq!(parent, fs::metadata(path.parent().unwrap()).unwrap().ino(), "{}", path.display());
        } else {
            *values.entry(fs::read_to_string(path).unwrap()).or_insert(0) += 1;
        }
    }
    (folders, values)
}

fn storm(a: &Path, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut known = Vec::new();
    for n in 0..RENAMES {
        if n % 20 == 0 {
            known.clear();
            walk(a, &mut known);
            known.retain(|path| !path.ends_with("marker"));
        }
        let from = &known[dice.between(0, known.len() - 1)];
        let to = &known[dice.between(0, known.len() - 1)];
        let into = |folder: &Path| folder.join(from.file_name().unwrap());
        let done = match dice.between(0, 19) {
            // A replaced file is gone, so this is rare.
            0 => fs::rename(from, to),
            1..=4 => rename(from, to, libc::RENAME_EXCHANGE),
            // Into a folder, or into a file, which is refused.
            5..=12 => fs::rename(from, into(to)),
            13 | 14 => fs::rename(from, into(a)),
            _ => rename(from, into(to), libc::RENAME_NOREPLACE),
        };
        if let Err(error) = done {
            assert!(is_expected(&error), "{} to {}: {error}", from.display(), to.display());
        }
    }
}

#[test]
fn the_tree_stays_a_tree_in_a_storm_of_renames() {
    let vault = Vault::up();
    let a = vault.org("a");
    for n in 0..FOLDERS {
        fs::create_dir(a.join(format!("d{n}"))).unwrap();
        // Not empty, so that no rename replaces it.
        fs::write(a.join(format!("d{n}/marker")), format!("marker {n}")).unwrap();
    }
    for n in 0..FILES {
        fs::write(a.join(format!("f{n}")), format!("file {n}")).unwrap();
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let renamers: Vec<_> = (0..RENAMERS)
            .map(|seed| {
                let a = &a;
                scope.spawn(move || storm(a, seed))
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut found = Vec::new();
                    walk(&a, &mut found);
                    for path in found {
                        if let Ok(value) = fs::read_to_string(&path) {
                            assert!(value.starts_with("marker ") || value.starts_with("file "), "{value:?}");
                        }
                    }
                }
            });
        }
        renamers.into_iter().for_each(|renamer| renamer.join().unwrap());
        over.store(true, Ordering::Relaxed);
    });
    let after = assert_tree(&a);
    assert_eq!(after.0, FOLDERS);
    for n in 0..FOLDERS {
        assert_eq!(after.1.get(&format!("marker {n}")), Some(&1));
    }
    assert!(after.1.values().all(|times| *times == 1), "a file twice");
    vault.command(&["fsck"]).good();
    vault.remount();
    assert_eq!(assert_tree(&a), after);
}

fn value(n: usize) -> Vec<u8> {
    let len = [100, 5000, 300_000][n % 3];
    (n as u32).to_le_bytes().repeat(len / 4)
}

/// Weakness 5 of `suites.md`: the name is there all the time.
#[test]
fn readers_of_a_name_that_is_replaced_see_the_old_value_or_the_new_whole() {
    let vault = Vault::up();
    let a = vault.org("a");
    let name = a.join("f");
    fs::write(&name, value(0)).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    while !over.load(Ordering::Relaxed) {
                        fs::metadata(&name).expect("never without a file");
                        let mut file = File::open(&name).expect("never without a file");
                        let mut read = Vec::new();
                        file.read_to_end(&mut read).unwrap();
                        let n = u32::from_le_bytes(read[..4].try_into().unwrap()) as usize;
                        assert!(read == value(n), "a torn value of {} bytes", read.len());
                        assert!(n >= last, "value {n} after {last}");
                        assert_eq!(file.metadata().unwrap().len(), read.len() as u64, "also once it is replaced");
                        last = n;
                    }
                    last
                })
            })
            .collect();
        for n in 1..=300 {
            fs::write(a.join("new"), value(n)).unwrap();
            fs::rename(a.join("new"), &name).unwrap();
            assert_eq!(fs::metadata(&name).unwrap().len(), value(n).len() as u64);
        }
        over.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0), "nobody saw a new value");
    });
}

#[test]
fn a_file_and_a_folder_change_places() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir_all(a.join("one/folder/in")).unwrap();
    fs::create_dir(a.join("two")).unwrap();
    fs::write(a.join("two/file"), "value").unwrap();
    rename(a.join("one/folder"), a.join("two/file"), libc::RENAME_EXCHANGE).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read(a.join("one/folder")).unwrap(), b"value");
        assert!(fs::metadata(a.join("two/file/in")).unwrap().is_dir());
        let links = ["one", "two", "two/file"].map(|path| fs::metadata(a.join(path)).unwrap().nlink());
        assert_eq!(links, [2, 3, 3]);
        assert_eq!(
            fs::metadata(a.join("two/file/..")).unwrap().ino(),
            fs::metadata(a.join("two")).unwrap().ino(),
            "it knows its new parent"
        );
        vault.command(&["fsck"]).good();
        vault.remount();
    }
}
