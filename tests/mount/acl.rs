//! POSIX access control lists: kept, enforced, inherited, in step with the mode, and carried along by copying programs.

use crate::kernel::{attribute, attributes, errno, mknod, remove_attribute, set_attribute};
use crate::vault::{Done, Vault, run, try_run};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn setfacl(arguments: &[&str], path: &Path) {
    let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = arguments.iter().map(|a| a as _).collect();
    all.push(&path);
    run("setfacl", &all);
}

/// The entries of a path's lists, without comments, on one line.
fn getfacl(path: &Path) -> String {
    let listed = run("getfacl", &[&"-cnpE", &path]);
    listed.split_whitespace().collect::<Vec<_>>().join(",")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A shell script as a user and group, with supplementary groups (`""` for none).
fn as_user(uid: u32, groups: &str, script: &str, path: &Path) -> Done {
    let id = uid.to_string();
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    try_run("setpriv", &[&"--reuid", &id, &"--regid", &id, &groups, &"sh", &"-c", &script, &path])
}

fn open_vault() -> Vault {
    let vault = Vault::up();
    vault.open_to_others();
    vault
}

#[test]
fn an_acl_lets_in_and_keeps_out() {
    let vault = open_vault();
    let f = vault.org("a").join("f");
    fs::set_permissions(vault.at("a"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(&f, "secret").unwrap();
    fs::set_permissions(&f, PermissionsExt::from_mode(0o600)).unwrap();
    let reads = |uid, groups: &str| as_user(uid, groups, "cat \"$0\"", &f).code == 0;
    let writes = |uid, groups: &str| as_user(uid, groups, "echo more >> \"$0\"", &f).code == 0;
    assert!(!reads(1000, ""));
    setfacl(&["-m", "u:1000:rw,g:2000:r"], &f);
    assert!(reads(1000, "") && writes(1000, ""), "a named user");
    assert!(reads(1001, "2000") && !writes(1001, "2000"), "a named group");
    assert!(!reads(1001, ""));
    fs::set_permissions(&f, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(reads(1000, "") && !writes(1000, ""), "the mask is what chmod left");
    vault.remount();
    assert!(reads(1000, "") && !writes(1000, "") && !reads(1001, ""), "and after a remount");
    setfacl(&["-x", "u:1000"], &f);
    assert!(!reads(1000, "") && reads(1001, "2000"));
    setfacl(&["-b"], &f);
    assert!(!reads(1001, "2000"));
}

#[test]
fn mode_and_acl_follow_each_other() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "x").unwrap();
    fs::set_permissions(&f, PermissionsExt::from_mode(0o4640)).unwrap();
    setfacl(&["-m", "u:1000:rwx"], &f);
    assert_eq!(getfacl(&f), "user::rw-,user:1000:rwx,group::r--,mask::rwx,other::---");
    assert_eq!(mode(&f), 0o4670);
    fs::set_permissions(&f, PermissionsExt::from_mode(0o751)).unwrap();
    assert_eq!(getfacl(&f), "user::rwx,user:1000:rwx,group::r--,mask::r-x,other::--x");
    assert!(attributes(&f).contains(&ACCESS.to_owned()));
    // A list that says no more than a mode is a mode.
    setfacl(&["--set", "u::rw,g::r,o::r"], &f);
    assert_eq!(mode(&f), 0o644);
    assert!(!attributes(&f).contains(&ACCESS.to_owned()));
    assert_eq!(errno(attribute(&f, ACCESS)), libc::ENODATA);
    // Removing a list leaves the mode as it is, and there need be none.
    setfacl(&["-m", "u:1000:rwx"], &f);
    remove_attribute(&f, ACCESS).unwrap();
    assert_eq!((mode(&f), getfacl(&f).as_str()), (0o674, "user::rw-,group::rwx,other::r--"));
    remove_attribute(&f, ACCESS).unwrap();
    let before = fs::metadata(&f).unwrap();
    setfacl(&["-m", "u:1000:r"], &f);
    let after = fs::metadata(&f).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(fs::read(&f).unwrap(), b"x");
}

#[test]
fn what_is_made_in_a_folder_inherits_its_default_acl_in_place_of_the_umask() {
    let vault = Vault::up();
    let d = vault.org("a").join("d");
    fs::create_dir(&d).unwrap();
    setfacl(&["-d", "-m", "u::rwx,u:1000:rwx,g::rx,o::-"], &d);
    assert_eq!(mode(&d), 0o755, "its own mode is untouched");
    let masked = |script: &str| run("sh", &[&"-c", &format!("umask 077; cd \"$0\"; {script}"), &d]);
    masked("echo x > file; mkdir folder; mkfifo fifo; ln -s file link; mkfifo -m 640 narrow");
    assert_eq!(getfacl(&d.join("file")), "user::rw-,user:1000:rwx,group::r-x,mask::rw-,other::---");
    assert_eq!((mode(&d.join("file")), mode(&d.join("folder"))), (0o660, 0o770));
    assert_eq!(getfacl(&d.join("fifo")), getfacl(&d.join("file")));
    assert_eq!(mode(&d.join("narrow")), 0o640);
    assert_eq!(mode(&d.join("link")), 0o777);
    let both = "user::rwx,user:1000:rwx,group::r-x,mask::rwx,other::---,\
        default:user::rwx,default:user:1000:rwx,default:group::r-x,default:mask::rwx,default:other::---";
    assert_eq!(getfacl(&d.join("folder")), both);
    mknod(d.join("device"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    assert_eq!(mode(&d.join("device")), 0o660);
    vault.remount();
    fs::create_dir(d.join("folder/deeper")).unwrap();
    assert_eq!(getfacl(&d.join("folder/deeper")), both);
    vault.command_with(&["object", "put", "a/d/put"], b"value").good();
    assert_eq!(getfacl(&d.join("put")), getfacl(&d.join("file")));
    // A default list without names gives modes alone.
    setfacl(&["-k"], &d);
    setfacl(&["-d", "-m", "u::rwx,g::r,o::r"], &d);
    masked("echo y > plain");
    assert_eq!(mode(&d.join("plain")), 0o644);
    assert!(!attributes(d.join("plain")).contains(&ACCESS.to_owned()));
    setfacl(&["-k"], &d);
    masked("echo z > umasked");
    assert_eq!(mode(&d.join("umasked")), 0o600);
}

#[test]
fn what_cannot_have_an_acl_is_refused_one() {
    let vault = open_vault();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    symlink("f", a.join("l")).unwrap();
    setfacl(&["-m", "u:1000:r"], &a.join("f"));
    let value = attribute(a.join("f"), ACCESS).unwrap();
    assert_eq!(errno(set_attribute(a.join("f"), DEFAULT, &value)), libc::EACCES);
    assert_eq!(errno(set_attribute(a.join("l"), ACCESS, &value)), libc::EOPNOTSUPP);
    assert_eq!(errno(set_attribute(vault.point(), ACCESS, &value)), libc::EPERM);
    for broken in [&value[..value.len() - 1], &value[..value.len() - 8], b"\x03\0\0\0", b"x"] {
        let refused = errno(set_attribute(a.join("f"), ACCESS, broken));
        assert!([libc::EINVAL, libc::EOPNOTSUPP].contains(&refused), "{refused}");
    }
    assert_eq!(attribute(a.join("f"), ACCESS).unwrap(), value);
    assert_eq!(as_user(1000, "", "setfacl -m u:1000:rw \"$0\"", &a.join("f")).code, 1, "the owner's alone to set");
}

#[test]
fn setting_an_acl_takes_set_group_id_from_who_is_not_in_the_group() {
    let vault = open_vault();
    let a = vault.org("a");
    for (name, groups, kept) in [("in", "3000", 0o2000), ("out", "4000", 0)] {
        let f = a.join(name);
        fs::write(&f, "x").unwrap();
        chown(&f, Some(1000), Some(3000)).unwrap();
        fs::set_permissions(&f, PermissionsExt::from_mode(0o2750)).unwrap();
        as_user(1000, groups, "setfacl -m u:1001:rx \"$0\"", &f).good();
        assert_eq!(mode(&f), kept | 0o750, "{name}");
    }
    let f = a.join("by root");
    fs::write(&f, "x").unwrap();
    chown(&f, Some(1000), Some(3000)).unwrap();
    fs::set_permissions(&f, PermissionsExt::from_mode(0o2750)).unwrap();
    setfacl(&["-m", "u:1001:rx"], &f);
    assert_eq!(mode(&f), 0o2750);
}

#[test]
fn copying_programs_carry_acls_along() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    fs::create_dir(a.join("d")).unwrap();
    fs::write(a.join("d/f"), "value").unwrap();
    setfacl(&["-m", "u:1000:rw,g:2000:r"], &a.join("d/f"));
    setfacl(&["-m", "u:1000:rwx,d:u:1001:rx"], &a.join("d"));
    run("cp", &[&"-a", &a.join("d"), &b.join("cp")]);
    run("rsync", &[&"-aA", &a.join("d/"), &b.join("rsync/")]);
    let archive = vault.directory().join("d.tar");
    run("tar", &[&"--acls", &"-C", &a, &"-cf", &archive, &"d"]);
    fs::create_dir(b.join("tar")).unwrap();
    run("tar", &[&"--acls", &"-C", &b.join("tar"), &"-xf", &archive]);
    for copy in ["cp", "rsync", "tar/d"] {
        assert_eq!(getfacl(&b.join(copy)), getfacl(&a.join("d")), "{copy}");
        assert_eq!(getfacl(&b.join(copy).join("f")), getfacl(&a.join("d/f")), "{copy}");
    }
    // Without its folder's default list a copy would have none; a save keeps what the new file has.
    run("sed", &[&"-i", &"s/value/changed/", &a.join("d/f")]);
    assert_eq!(fs::read_to_string(a.join("d/f")).unwrap(), "changed");
    vault.command(&["fsck"]).good();
}
