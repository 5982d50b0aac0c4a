//! What others must not see: plain text on the disk, and one user's rights in another's request.

use crate::vault::{Vault, try_run};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn neither_state_nor_token_directory_holds_contents_or_names() {
    let vault = Vault::up();
    let a = vault.org("organization-xyzzy");
    fs::create_dir(a.join("folder-xyzzy")).unwrap();
    fs::write(a.join("folder-xyzzy/small-xyzzy"), "content-xyzzy").unwrap();
    fs::write(a.join("large-xyzzy"), "content-xyzzy ".repeat(50_000)).unwrap();
    crate::kernel::set_attribute(a.join("large-xyzzy"), "user.attribute-xyzzy", "xyzzy").unwrap();
    std::os::unix::fs::symlink("target-xyzzy", a.join("link-xyzzy")).unwrap();
    fs::write(a.join("deleted-xyzzy"), "content-xyzzy").unwrap();
    fs::remove_file(a.join("deleted-xyzzy")).unwrap();
    vault.command_with(&["object", "put", "organization-xyzzy/put-xyzzy"], b"content-xyzzy").good();
    File::open(a.join("large-xyzzy")).unwrap().sync_all().unwrap();
    let nothing = || {
        let found = try_run("grep", &[&"-raio", &".\\{0,20\\}xyzzy", &vault.state(), &vault.token()]);
        assert_eq!((found.code, found.text().as_str()), (1, ""), "found");
    };
    nothing();
    vault.umount();
    nothing();
}

#[test]
fn users_in_parallel_do_not_see_each_others_rights() {
    let vault = Vault::up();
    vault.open_to_others();
    let a = vault.org("a");
    fs::set_permissions(&a, PermissionsExt::from_mode(0o1777)).unwrap();
    let script = r#"
        umask 077
        for n in $(seq 100); do
            echo $1 > $2/$1-$n || exit 1
            [ "$(cat $2/$1-$n)" = $1 ] || exit 2
            ! cat $2/$3-$n 2>/dev/null || exit 3
            ! echo x 2>/dev/null >> $2/$3-$n || exit 4
        done"#;
    // Each makes the files of the other first, so that there is always something to be denied.
    for user in [1001, 1002] {
        for n in 1..=100 {
            let path = a.join(format!("{user}-{n}"));
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
        }
    }
    let start = |user: u32, other: u32| {
        let mut shell = Command::new("bash");
        shell.args(["-c", script, "bash"]).arg(user.to_string()).arg(&a).arg(other.to_string());
        shell.uid(user).gid(user).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut users = [start(1001, 1002), start(1002, 1001)];
    for user in &mut users {
        assert_eq!(user.wait().unwrap().code(), Some(0));
    }
    for user in [1001, 1002] {
        for n in 1..=100 {
            let path = a.join(format!("{user}-{n}"));
            assert_eq!(fs::metadata(&path).unwrap().uid(), user);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{user}\n"));
        }
    }
    let made = Command::new("mkdir").arg(vault.at("theirs")).uid(1001).gid(1001).output().unwrap();
    assert!(!made.status.success(), "only the mount's owner makes organizations");
}

#[test]
fn files_carry_their_makers_ids() {
    let vault = Vault::up();
    vault.open_to_others();
    let a = vault.org("a");
    fs::set_permissions(&a, PermissionsExt::from_mode(0o777)).unwrap();
    let script = ["-c", "umask 026; echo x > \"$0/f\"; mkdir \"$0/d\""];
    let made = Command::new("sh").args(script).arg(&a).uid(1001).gid(1002).status().unwrap();
    assert!(made.success());
    for (name, mode) in [("f", 0o640), ("d", 0o751)] {
        let known = fs::metadata(a.join(name)).unwrap();
        assert_eq!((known.uid(), known.gid(), known.mode() & 0o7777), (1001, 1002, mode), "{name}");
    }
    assert_eq!(crate::kernel::vault_says(a.join("f"), "updated_by"), "uid:1001");
}
