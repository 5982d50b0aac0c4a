//! What has no name any more and is still open or worked in, and what is found by a handle instead of a name.

use crate::kernel::{FileHandle, attribute, drop_caches, errno, mknod, set_attribute, truncate, vault_says};
use crate::vault::{Vault, run};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::PathBuf;

/// The file behind a descriptor, by the name that the kernel gives it.
fn through(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open_path(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path).unwrap()
}

/// Everything a descriptor is good for goes on.
fn assert_alive(file: &File, value: &[u8]) {
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(77);
    file.set_modified(at).unwrap();
    fchown(file, Some(5), Some(6)).unwrap();
    let known = file.metadata().unwrap();
    assert_eq!((known.mode() & 0o7777, known.mtime(), known.uid(), known.gid()), (0o600, 77, 5, 6));
    let again = OpenOptions::new().read(true).write(true).open(through(file)).unwrap();
    let mut read = vec![0; value.len()];
    again.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, value);
    again.write_all_at(b"XY", 0).unwrap();
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read[..2], *b"XY");
    again.set_len(1).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1);
    file.sync_all().unwrap();
}

#[test]
fn unlinked_and_replaced_files_go_on_in_every_way() {
    let vault = Vault::up();
    let a = vault.org("a");
    let open = |name: &str| {
        fs::write(a.join(name), name).unwrap();
        OpenOptions::new().read(true).write(true).open(a.join(name)).unwrap()
    };
    let (unlinked, replaced) = (open("unlinked"), open("replaced"));
    fs::remove_file(a.join("unlinked")).unwrap();
    fs::write(a.join("new"), "new value").unwrap();
    fs::rename(a.join("new"), a.join("replaced")).unwrap();
    assert_alive(&unlinked, b"unlinked");
    assert_alive(&replaced, b"replaced");
    assert_eq!(errno(fs::hard_link(through(&unlinked), a.join("again"))), libc::EXDEV, "/proc is another file system");
    drop((unlinked, replaced));
    assert_eq!(fs::read(a.join("replaced")).unwrap(), b"new value");
    vault.command(&["fsck"]).good();
}

#[test]
fn a_removed_folder_goes_on_for_who_is_in_it() {
    let vault = Vault::up();
    let a = vault.org("a");
    for name in ["gone", "over"] {
        fs::create_dir(a.join(name)).unwrap();
    }
    fs::create_dir(a.join("new")).unwrap();
    set_attribute(a.join("gone"), "user.kept", "yes").unwrap();
    let (gone, over) = (File::open(a.join("gone")).unwrap(), File::open(a.join("over")).unwrap());
    fs::remove_dir(a.join("gone")).unwrap();
    fs::rename(a.join("new"), a.join("over")).unwrap();
    for folder in [&gone, &over] {
        let at = through(folder);
        assert_eq!(folder.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        assert_eq!(errno(File::create(at.join("f"))), libc::ENOENT);
        assert_eq!(errno(fs::create_dir(at.join("d"))), libc::ENOENT);
        assert_eq!(errno(symlink("x", at.join("l"))), libc::ENOENT);
        assert_eq!(errno(fs::metadata(at.join("f"))), libc::ENOENT);
        assert_eq!(errno(fs::rename(a.join("over"), at.join("in"))), libc::ENOENT);
        fs::set_permissions(&at, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o700);
        folder.sync_all().unwrap();
    }
    assert_eq!(attribute(through(&gone).join("."), "user.kept").unwrap(), b"yes");
    let said = run("sh", &[&"-c", &"mkdir \"$0/w\" && cd \"$0/w\" && rmdir \"$0/w\" && ls -la && stat -c %h .", &a]);
    assert!(said.ends_with("0\n"), "{said}");
    vault.command(&["fsck"]).good();
}

#[test]
fn fifos_links_and_devices_go_on_without_a_name() {
    let vault = Vault::up();
    let a = vault.org("a");
    mknod(a.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    mknod(a.join("zero"), libc::S_IFCHR | 0o600, libc::makedev(1, 5)).unwrap();
    symlink("target", a.join("link")).unwrap();
    let mut fifo = OpenOptions::new().read(true).write(true).open(a.join("fifo")).unwrap();
    let mut zero = File::open(a.join("zero")).unwrap();
    let link = open_path(&a.join("link"));
    for name in ["fifo", "zero", "link"] {
        fs::remove_file(a.join(name)).unwrap();
    }
    let mut bytes = [1; 2];
    fifo.write_all(b"hi").unwrap();
    fifo.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hi");
    zero.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 2]);
    for file in [&fifo, &zero] {
        file.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
        let known = file.metadata().unwrap();
        assert_eq!((known.nlink(), known.mode() & 0o7777), (0, 0o640));
    }
    assert_eq!((link.metadata().unwrap().nlink(), link.metadata().unwrap().len()), (0, 6));
}

/// By descriptors that only name them: nothing in the vault says that they are open.
#[test]
fn removed_files_answer_whoever_still_knows_them() {
    let vault = Vault::up();
    let a = vault.org("a");
    for (name, value) in [("empty", ""), ("full", "value"), ("replaced", "old"), ("emptied", "value"), ("closed", "v")]
    {
        fs::write(a.join(name), value).unwrap();
    }
    fs::write(a.join("emptied"), "").unwrap();
    let writer = OpenOptions::new().write(true).open(a.join("closed")).unwrap();
    let known = ["empty", "full", "replaced", "emptied", "closed"].map(|name| open_path(&a.join(name)));
    fs::write(a.join("new"), "new value").unwrap();
    fs::rename(a.join("new"), a.join("replaced")).unwrap();
    for name in ["empty", "full", "emptied", "closed"] {
        fs::remove_file(a.join(name)).unwrap();
    }
    drop(writer);
    drop_caches();
    for (file, value) in known.iter().zip(["", "value", "old", "", "v"]) {
        let found = file.metadata().unwrap();
        assert_eq!((found.nlink(), found.len()), (0, value.len() as u64), "{value:?}");
        assert_eq!(fs::read_to_string(through(file)).unwrap(), value);
        fs::set_permissions(through(file), PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(through(file), "written").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 7);
    }
    drop(known);
    assert_eq!(fs::read(a.join("replaced")).unwrap(), b"new value");
    vault.command(&["fsck"]).good();
    assert_eq!(vault_says(&a, "objects"), "1");
    vault.remount();
    vault.command(&["fsck"]).good();
    // Restored, it is what it was when the last of them closed it.
    let full = vault.tombstones("a").into_iter().find(|path| path.to_str().unwrap().contains("/full~")).unwrap();
    assert_eq!(errno(File::open(&full)), libc::EACCES);
    fs::rename(&full, a.join("full")).unwrap();
    assert_eq!(fs::read(a.join("full")).unwrap(), b"written");
}

/// An inode number is never given out again, which is better than a generation that tells two files apart.
#[test]
fn a_handle_of_a_removed_file_does_not_open_its_successor() {
    let vault = Vault::up();
    let a = vault.org("a");
    let mut handles = Vec::new();
    for n in 0..50 {
        fs::write(a.join("f"), n.to_string()).unwrap();
        handles.push((FileHandle::of(a.join("f")).unwrap(), fs::metadata(a.join("f")).unwrap().ino()));
        fs::remove_file(a.join("f")).unwrap();
    }
    fs::write(a.join("f"), "last").unwrap();
    let last = fs::metadata(a.join("f")).unwrap().ino();
    for remounted in [false, true] {
        if remounted {
            vault.remount();
        }
        drop_caches();
        let mount = File::open(vault.point()).unwrap();
        for (handle, ino) in &handles {
            assert_ne!(*ino, last);
            assert_eq!(errno(handle.open(&mount, libc::O_RDONLY)), libc::ESTALE);
        }
    }
}

#[test]
fn handles_reopen_after_the_kernel_forgot_and_after_a_remount() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir_all(a.join("d/in")).unwrap();
    fs::write(a.join("d/in/f"), "deep").unwrap();
    symlink("target", a.join("d/link")).unwrap();
    let [file, folder, link] = ["d/in/f", "d/in", "d/link"].map(|path| FileHandle::of(a.join(path)).unwrap());
    let numbers = || ["d/in/f", "d/in"].map(|path| fs::metadata(a.join(path)).unwrap().ino());
    let before = numbers();
    for remounted in [false, true] {
        drop_caches();
        if remounted {
            vault.remount();
        }
        let mount = File::open(vault.point()).unwrap();
        let mut value = String::new();
        file.open(&mount, libc::O_RDONLY).unwrap().read_to_string(&mut value).unwrap();
        assert_eq!(value, "deep");
        let folder = folder.open(&mount, libc::O_RDONLY).unwrap();
        let names: Vec<_> = fs::read_dir(through(&folder)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
        assert_eq!(fs::read_link(through(&folder)).unwrap(), a.join("d/in"), "it knows where it is");
        let link = link.open(&mount, libc::O_PATH).unwrap();
        assert_eq!(link.metadata().unwrap().len(), 6);
        assert_eq!(numbers(), before);
    }
    let mount = File::open(vault.point()).unwrap();
    file.open(&mount, libc::O_RDWR).unwrap().write_all(b"DEEP").unwrap();
    assert_eq!(fs::read(a.join("d/in/f")).unwrap(), b"DEEP");
    // An inode that moved is found as well; one that was deleted is stale, until it is restored.
    fs::rename(a.join("d/in/f"), a.join("moved")).unwrap();
    drop_caches();
    file.open(&mount, libc::O_RDONLY).unwrap();
    fs::remove_file(a.join("moved")).unwrap();
    fs::remove_dir(a.join("d/in")).unwrap();
    fs::remove_file(a.join("d/link")).unwrap();
    drop_caches();
    for handle in [&file, &folder, &link] {
        assert_eq!(errno(handle.open(&mount, libc::O_PATH)), libc::ESTALE);
    }
    fs::rename(vault.tombstone("a"), a.join("back")).unwrap();
    drop_caches();
    file.open(&mount, libc::O_RDONLY).unwrap();
}

/// As `truncate(2)` finds it when somebody else removes or replaces the name at that moment.
#[test]
fn truncating_a_file_without_a_name_makes_no_object() {
    let vault = Vault::up();
    let a = vault.org("a");
    for name in ["empty", "full", "replaced"] {
        fs::write(a.join(name), if name == "empty" { "" } else { name }).unwrap();
    }
    let known = ["empty", "full", "replaced"].map(|name| open_path(&a.join(name)));
    fs::remove_file(a.join("empty")).unwrap();
    fs::remove_file(a.join("full")).unwrap();
    fs::write(a.join("new"), "new").unwrap();
    fs::rename(a.join("new"), a.join("replaced")).unwrap();
    for file in &known {
        truncate(through(file), 5000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5000);
    }
    vault.command(&["fsck"]).good();
    drop(known);
    drop_caches();
    vault.command(&["fsck"]).good();
    assert_eq!(fs::read(a.join("replaced")).unwrap(), b"new");
    assert_eq!(vault_says(&a, "objects"), "1");
    assert_eq!(vault_says(vault.tombstone("a"), "version"), "2", "of what became a tombstone it is a version");
}
