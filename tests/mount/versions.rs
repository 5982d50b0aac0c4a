//! `.versions`: earlier values of objects, by `ls`, `cat`, `cp` and `diff`.

use crate::kernel::{attributes, errno, mknod, rename, seek, set_attribute, truncate, vault_says};
use crate::vault::{Vault, run, try_run};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Saves in a process of its own: what another test starts in this moment inherits nothing open, and closes nothing.
fn save(file: &Path, value: &str) {
    run("sh", &[&"-c", &"printf %s \"$1\" > \"$0\"", &file, &value]);
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn as_user(uid: u32, script: &str, path: &Path) -> bool {
    let id = uid.to_string();
    let done = try_run("setpriv", &[&"--reuid", &id, &"--regid", &id, &"--clear-groups", &"sh", &"-c", &script, &path]);
    done.code == 0
}

#[test]
fn every_version_that_is_kept_is_a_file_with_its_size_and_its_time() {
    let vault = Vault::up();
    let a = vault.org("acme");
    fs::create_dir_all(a.join("any/folder")).unwrap();
    let f = a.join("any/folder/f");
    let (mut ids, mut times) = (Vec::new(), Vec::new());
    for value in ["one", "number two", "", "4"] {
        save(&f, value);
        ids.push(vault_says(&f, "version_id"));
        times.push(vault_says(&f, "updated_at"));
    }
    let versions = vault.at(".versions/acme/any/folder/f");
    assert_eq!(names(&vault.at(".versions")), ["acme"]);
    assert_eq!(names(&vault.at(".versions/acme")), ["any"]);
    assert_eq!(names(&versions), ["1", "2", "3", "4"]);
    for (at, value) in ["one", "number two", "", "4"].into_iter().enumerate() {
        let version = versions.join((at + 1).to_string());
        let metadata = fs::metadata(&version).unwrap();
        assert_eq!((metadata.len(), metadata.nlink(), metadata.is_file()), (value.len() as u64, 1, true));
        assert_eq!((metadata.mode(), metadata.uid()), (fs::metadata(&f).unwrap().mode(), 0));
        assert_eq!(fs::read_to_string(&version).unwrap(), value);
        assert_eq!(run("cat", &[&version]), value);
        assert_eq!(vault_says(&version, "version_id"), ids[at]);
        assert_eq!(vault_says(&version, "version"), (at + 1).to_string());
        assert_eq!(vault_says(&version, "created_at"), times[at]);
        assert_eq!(vault_says(&version, "updated_by"), "uid:0");
        assert_eq!(vault_says(&version, "id"), vault_says(&f, "id"));
        assert!(times[at].starts_with(run("date", &[&"-u", &"-r", &version, &"+%Y-%m-%dT%H:%M:%S"]).trim_end()));
    }
    assert!(attributes(versions.join("1")).contains(&"user.vault.context.organizationId".to_owned()));
    assert!(run("ls", &[&"-l", &versions]).contains(" 10 "));
    for absent in ["0", "5", "01", "+1", " 1", "1 ", "x", "-1", "18446744073709551616", "1/x"] {
        let errno = errno(fs::metadata(versions.join(absent)));
        assert!([libc::ENOENT, libc::ENOTDIR].contains(&errno), "{absent}: {errno}");
    }
    // What is copied out of it is a value like any other.
    let back = a.join("back");
    run("cp", &[&"-a", &versions.join("2"), &back]);
    assert_eq!((fs::read_to_string(&back).unwrap(), vault_says(&back, "version")), ("number two".into(), "1".into()));
    run("diff", &[&versions.join("2"), &back]);
    assert_eq!(try_run("diff", &[&versions.join("1"), &f]).code, 1);
    run("tar", &[&"-cf", &"/dev/null", &"-C", &vault.at(".versions"), &"acme"]);
    run("find", &[&vault.at(".versions"), &"-type", &"f", &"-exec", &"cat", &"{}", &"+"]);
    vault.remount();
    assert_eq!(fs::read_to_string(versions.join("2")).unwrap(), "number two");
    vault.is_sound().unwrap();
}

#[test]
fn versions_are_hidden_from_what_walks_the_vault_unless_shown() {
    let vault = Vault::up();
    save(&vault.org("acme").join("f"), "x");
    assert_eq!(names(&vault.point()), ["acme"]);
    assert!(vault.at(".versions").is_dir() && vault.at(".versions/acme/f/1").is_file());
    vault.umount();
    vault.mount(&["-o", "show_hidden"]);
    assert_eq!(names(&vault.point()), [".tombstones", ".versions", "acme"]);
    assert_eq!(names(&vault.at(".versions")), ["acme"]);
}

#[test]
fn every_write_in_versions_is_refused() {
    let vault = Vault::up();
    let a = vault.org("acme");
    fs::create_dir(a.join("d")).unwrap();
    save(&a.join("d/f"), "one");
    save(&a.join("other"), "x");
    let root = vault.at(".versions");
    let shut = |result: std::io::Result<()>, what: &str| {
        let errno = errno(result);
        assert!([libc::EROFS, libc::EPERM].contains(&errno), "{what}: {errno}");
    };
    for folder in [root.clone(), root.join("acme"), root.join("acme/d"), root.join("acme/d/f")] {
        shut(fs::write(folder.join("new"), "x"), "create");
        shut(fs::create_dir(folder.join("new")), "mkdir");
        shut(symlink("x", folder.join("new")), "symlink");
        shut(mknod(folder.join("new"), libc::S_IFIFO | 0o600, 0), "mknod");
        shut(fs::hard_link(a.join("other"), folder.join("new")), "link into");
        shut(fs::rename(a.join("other"), folder.join("new")), "rename into");
        shut(set_attribute(&folder, "user.x", "y"), "setxattr");
        shut(fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)), "chmod");
        shut(fs::rename(&folder, a.join("out")), "rename out");
        shut(fs::remove_dir(&folder), "rmdir");
    }
    let version = root.join("acme/d/f/1");
    for options in
        [OpenOptions::new().write(true), OpenOptions::new().append(true), OpenOptions::new().read(true).write(true)]
    {
        shut(options.open(&version).map(drop), "open");
    }
    shut(fs::write(&version, "x"), "write");
    shut(truncate(&version, 0), "truncate");
    shut(fs::remove_file(&version), "unlink");
    shut(fs::hard_link(&version, a.join("linked")), "link out");
    shut(fs::rename(&version, a.join("moved")), "move out");
    shut(rename(&version, a.join("other"), libc::RENAME_EXCHANGE), "exchange");
    shut(fs::set_permissions(&version, PermissionsExt::from_mode(0o777)), "chmod");
    shut(std::os::unix::fs::chown(&version, Some(1), None), "chown");
    shut(set_attribute(&version, "user.x", "y"), "setxattr");
    shut(set_attribute(&version, "user.vault.version_check", vault_says(&version, "version_id")), "guard");
    shut(File::open(&version).unwrap().set_modified(std::time::SystemTime::now()), "utimens");
    shut(fs::rename(a.join("d"), &root), "rename onto it");
    assert_eq!(fs::read_to_string(&version).unwrap(), "one");
    assert_eq!(names(&a), ["d", "other"]);
}

#[test]
fn who_may_not_read_the_object_may_not_read_its_versions() {
    let vault = Vault::up();
    vault.open_to_others();
    let a = vault.org("acme");
    fs::set_permissions(&a, PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir(a.join("d")).unwrap();
    let f = a.join("d/f");
    save(&f, "one");
    save(&f, "two");
    let version = vault.at(".versions/acme/d/f/1");
    let versions = version.parent().unwrap();
    let (reads, lists) = ("cat \"$0\" >/dev/null 2>&1", "ls \"$0\" >/dev/null 2>&1");
    let open = |uid| (as_user(uid, reads, &version), as_user(uid, lists, versions));
    assert_eq!(open(1000), (true, true));
    // At once, though the kernel has just seen it open.
    fs::set_permissions(&f, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(open(1000), (false, false));
    std::os::unix::fs::chown(&f, Some(1000), Some(1000)).unwrap();
    assert_eq!((open(1000), open(1001)), ((true, true), (false, false)));
    run("setfacl", &[&"-m", &"u:1001:r", &f]);
    assert_eq!((open(1000), open(1001), open(1002)), ((true, true), (true, true), (false, false)));
    fs::set_permissions(a.join("d"), PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!((open(1000), open(1001)), ((false, false), (false, false)));
    fs::set_permissions(a.join("d"), PermissionsExt::from_mode(0o711)).unwrap();
    assert_eq!(open(1000), (true, true));
    assert!(!as_user(1000, "echo x > \"$0\" 2>/dev/null", &version));
    // An earlier program gets no rights back.
    fs::set_permissions(&f, PermissionsExt::from_mode(0o4755)).unwrap();
    assert_eq!(fs::metadata(&version).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn names_lead_to_the_versions_whatever_they_are() {
    let vault = Vault::up();
    let a = vault.org("acme");
    let (unicode, long) = ("grüße 日本 🔑", "x".repeat(255));
    let raw = std::ffi::OsStr::from_bytes(b"\xff\xfe latin");
    for name in [unicode.as_ref(), long.as_ref(), raw, ".versions".as_ref(), "1".as_ref(), "a b\nc".as_ref()] {
        save(&a.join(name), "one");
        save(&a.join(name), "two");
        assert_eq!(fs::read_to_string(vault.at(".versions/acme").join(name).join("1")).unwrap(), "one", "{name:?}");
    }
    assert_eq!(fs::read_dir(vault.at(".versions/acme")).unwrap().count(), 6);
    let longer = vault.at(".versions/acme").join("y".repeat(256));
    assert_eq!(errno(fs::metadata(longer)), libc::ENAMETOOLONG);
    // Only objects and folders have a place there.
    symlink("1", a.join("link")).unwrap();
    mknod(a.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    fs::create_dir(a.join("folder")).unwrap();
    assert_eq!(errno(fs::metadata(vault.at(".versions/acme/link"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(vault.at(".versions/acme/fifo"))), libc::ENOENT);
    assert_eq!(fs::read_dir(vault.at(".versions/acme")).unwrap().count(), 7);
    assert_eq!(errno(fs::metadata(vault.at(".versions/none"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(vault.at(".versions/.tombstones"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(vault.at(".versions/.versions"))), libc::ENOENT);
    assert_eq!(fs::canonicalize(vault.at(".versions/acme/1/..")).unwrap(), vault.at(".versions/acme"));
}

#[test]
fn versions_follow_their_object_and_end_with_it() {
    let vault = Vault::up();
    let a = vault.org("acme");
    fs::create_dir(a.join("d")).unwrap();
    let f = a.join("f");
    save(&f, "one");
    save(&f, "two");
    let at = |path: &str| vault.at(".versions/acme").join(path);
    assert_eq!(fs::read_to_string(at("f/1")).unwrap(), "one");
    // A save by rename keeps the object: its folder stays the same one for who is in it.
    let inside = fs::metadata(at("f")).unwrap().ino();
    save(&a.join("new"), "three");
    fs::rename(a.join("new"), &f).unwrap();
    assert_eq!(
        (names(&at("f")), fs::metadata(at("f")).unwrap().ino()),
        (vec!["1".into(), "2".into(), "3".into()], inside)
    );
    fs::rename(&f, a.join("d/g")).unwrap();
    assert_eq!(errno(fs::metadata(at("f/1"))), libc::ENOENT);
    assert_eq!(fs::read_to_string(at("d/g/1")).unwrap(), "one");
    fs::hard_link(a.join("d/g"), a.join("linked")).unwrap();
    assert_eq!(fs::read_to_string(at("linked/2")).unwrap(), "two");
    fs::remove_file(a.join("linked")).unwrap();
    fs::rename(a.join("d"), a.join("e")).unwrap();
    assert_eq!(fs::read_to_string(at("e/g/3")).unwrap(), "three");
    fs::rename(vault.at("acme"), vault.at("emca")).unwrap();
    assert_eq!(fs::read_to_string(vault.at(".versions/emca/e/g/3")).unwrap(), "three");
    let open = File::open(vault.at(".versions/emca/e/g/1")).unwrap();
    fs::remove_file(vault.at("emca/e/g")).unwrap();
    assert_eq!(errno(fs::metadata(vault.at(".versions/emca/e/g"))), libc::ENOENT);
    // Who has one open reads on, until the tombstone is purged: then an error, and no wrong byte.
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");
    let grave = vault.tombstone("emca");
    fs::rename(&grave, vault.at("emca/back")).unwrap();
    assert_eq!(fs::read_to_string(vault.at(".versions/emca/back/1")).unwrap(), "one");
    fs::remove_file(vault.at("emca/back")).unwrap();
    fs::remove_file(vault.tombstone("emca")).unwrap();
    run("sh", &[&"-c", &"echo 3 > /proc/sys/vm/drop_caches"]);
    let mut byte = [0];
    match open.read_at(&mut byte, 0) {
        Ok(1) => assert_eq!(&byte, b"o"),
        Ok(read) => panic!("{read} bytes"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
    }
    drop(open);
    vault.is_sound().unwrap();
}

#[test]
fn an_open_version_stays_readable_however_many_newer_ones_are_made() {
    let vault = Vault::up_with(&["-o", "keep_versions=2"]);
    let a = vault.org("acme");
    let f = a.join("f");
    // Parts of one content that later versions share, and one that was replaced whole.
    let first: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(a.join("first"), &first).unwrap();
    run("cp", &[&a.join("first"), &f]);
    let open = File::open(vault.at(".versions/acme/f/1")).unwrap();
    for n in 0..6u64 {
        let at = format!("seek={}", n * 100_000);
        run("dd", &[&"if=/dev/zero", &format!("of={}", f.display()), &"bs=1", &"count=50", &at, &"conv=notrunc"]);
        save(&a.join("new"), "replaced");
        if n == 3 {
            fs::rename(a.join("new"), &f).unwrap();
        }
    }
    let kept = names(&vault.at(".versions/acme/f"));
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert_eq!(kept[0], "1");
    run("sh", &[&"-c", &"sync; echo 3 > /proc/sys/vm/drop_caches"]);
    let mut seen = vec![0; first.len()];
    open.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == first);
    assert_eq!(seek(&open, 0, libc::SEEK_HOLE).unwrap(), first.len() as u64);
    assert_eq!((&open).seek(SeekFrom::End(0)).unwrap(), first.len() as u64);
    drop(open);
    // It goes once nobody reads it. The kernel tells of a close in its own time.
    let gone = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        names(&vault.at(".versions/acme/f")).len() == 2
    });
    assert!(gone);
    assert_eq!(errno(fs::read(vault.at(".versions/acme/f/1"))), libc::ENOENT);
    vault.umount();
    vault.is_sound().unwrap();
}

#[test]
fn many_read_versions_while_new_ones_are_made_and_old_ones_go() {
    let vault = Vault::up_with(&["-o", "keep_versions=3"]);
    let a = vault.org("acme");
    let f = a.join("f");
    let value = |n: u64| n.to_string().repeat(20_000);
    let versions = vault.at(".versions/acme/f");
    fs::write(&f, value(0)).unwrap();
    let saves = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut read = 0;
                    while saves.load(Relaxed) {
                        for name in fs::read_dir(&versions).into_iter().flatten().flatten() {
                            // It may be gone since it was listed; but what is opened is read whole.
                            let Ok(mut file) = File::open(name.path()) else { continue };
                            let (mut text, size) = (String::new(), file.metadata().map(|m| m.len()));
                            file.read_to_string(&mut text).unwrap();
                            let digits = text.len() / 20_000;
                            assert!(text == text[..digits].repeat(20_000), "{} bytes", text.len());
                            assert!(size.is_err() || size.unwrap() == text.len() as u64);
                            read += 1;
                        }
                    }
                    read
                })
            })
            .collect();
        for n in 1..150 {
            fs::write(a.join("new"), value(n)).unwrap();
            fs::rename(a.join("new"), &f).unwrap();
        }
        saves.store(false, Relaxed);
        assert!(readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>() > 10);
    });
    assert_eq!(fs::read_to_string(&f).unwrap(), value(149));
    let log = fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap();
    assert!(!log.contains("authentication.failed"), "nothing was tampered with");
    vault.umount();
    vault.is_sound().unwrap();
}

#[test]
fn hostile_names_lead_nowhere() {
    let vault = Vault::up();
    let a = vault.org("acme");
    fs::create_dir(a.join("d")).unwrap();
    save(&a.join("d/f"), "one");
    let known = [".versions", "acme", "d", "f", "1", "..", ".", ".tombstones", "0", "18446744073709551615"];
    let mut state = 1u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % sides
    };
    for _ in 0..3000 {
        let mut path = vault.at(".versions");
        for _ in 0..dice(6) {
            let noise: Vec<u8> =
                (0..dice(300)).map(|_| dice(256) as u8).filter(|byte| ![0, b'/'].contains(byte)).collect();
            path.push(if dice(3) == 0 {
                std::ffi::OsStr::from_bytes(&noise)
            } else {
                known[dice(10) as usize].as_ref()
            });
        }
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_file() => drop(fs::read(&path)),
            Ok(_) => drop(fs::read_dir(&path).map(Iterator::count)),
            Err(error) => {
                let known = [libc::ENOENT, libc::ENOTDIR, libc::ENAMETOOLONG];
                assert!(known.contains(&error.raw_os_error().unwrap()), "{path:?}: {error}");
            }
        }
    }
    assert_eq!(fs::read_to_string(vault.at(".versions/acme/d/f/1")).unwrap(), "one");
    assert_eq!(names(&a), ["d"]);
}
