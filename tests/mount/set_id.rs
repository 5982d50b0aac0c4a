//! When set-user-ID and set-group-ID bits and file capabilities go: as on ext4 under Linux 6.18.

use crate::vault::{Vault, run, try_run};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// The mode of a file of an owner and a group after what a user with a supplementary group did to it.
fn after(path: &Path, mode: u32, owner: u32, uid: u32, group: &str, script: &str) -> u32 {
    fs::write(path, "0123456789").unwrap();
    chown(path, Some(owner), Some(3000)).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let id = uid.to_string();
    let groups = format!("--groups={group}");
    try_run("setpriv", &[&"--reuid", &id, &"--regid", &id, &groups, &"sh", &"-c", &script, &path]).good();
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_change_by_others_than_root_takes_set_id_bits() {
    changes_take_set_id_bits(&Vault::up());
}

/// There the kernel writes back later, and not as the user who wrote.
#[test]
fn a_change_by_others_than_root_takes_set_id_bits_in_writeback_mode_too() {
    changes_take_set_id_bits(&Vault::up_with(&["-o", "writeback"]));
}

fn changes_take_set_id_bits(vault: &Vault) {
    vault.open_to_others();
    let f = vault.org("a").join("f");
    let changes =
        ["echo x >> \"$0\"", ": > \"$0\"", "truncate -s 3 \"$0\"", "fallocate -l 100 \"$0\"", "chgrp 4000 \"$0\""];
    for change in changes {
        // Set-group-ID without execution for the group stays with who is in the group.
        for (mode, left) in [(0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777)] {
            assert_eq!(after(&f, mode, 1000, 1000, "4000", change), left, "{change} at {mode:o}");
        }
    }
    for change in &changes[..4] {
        assert_eq!(after(&f, 0o6767, 1000, 1000, "3000", change), 0o2767, "{change}: in the group");
        assert_eq!(after(&f, 0o6767, 1000, 1001, "4000", change), 0o767, "{change}: not in the group");
    }
    let reads = "cat \"$0\" > /dev/null; touch -a \"$0\"";
    assert_eq!(after(&f, 0o6777, 1000, 1000, "4000", reads), 0o6777);
}

/// `chown(path, -1, -1)` takes them, and is the owner's to do.
#[test]
fn a_chown_to_the_same_by_another_takes_no_set_id_bits() {
    for mount in [&[][..], &["-o", "writeback"]] {
        let vault = Vault::up_with(mount);
        vault.open_to_others();
        let f = vault.org("a").join("f");
        let elsewhere = vault.directory().join("f");
        let script = "/usr/bin/python3 -c 'import os, sys; os.chown(sys.argv[1], -1, -1)' \"$0\" 2>/dev/null || :";
        for (mode, uid, left) in
            [(0o6777, 1001, 0o6777), (0o4711, 1001, 0o4711), (0o644, 1001, 0o644), (0o6777, 1000, 0o777)]
        {
            for path in [&elsewhere, &f] {
                assert_eq!(after(path, mode, 1000, uid, "4000", script), left, "{mode:o} by {uid}, {}", path.display());
            }
        }
        // Nor while another has it open for writing.
        let _writer = fs::OpenOptions::new().write(true).open(&f).unwrap();
        assert_eq!(after(&f, 0o6777, 1000, 1001, "4000", script), 0o6777);
    }
}

#[test]
fn a_write_by_root_keeps_set_id_bits_and_a_chown_takes_them() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let mode = || fs::metadata(&f).unwrap().mode() & 0o7777;
    for owner in [Some(1001), Some(1000), None] {
        fs::write(&f, "x").unwrap();
        chown(&f, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&f, PermissionsExt::from_mode(0o6777)).unwrap();
        fs::write(&f, "yz").unwrap();
        assert_eq!(mode(), 0o6777);
        chown(&f, owner, owner).unwrap();
        assert_eq!(mode(), 0o777, "{owner:?}");
    }
    let d = vault.at("a/d");
    fs::create_dir(&d).unwrap();
    fs::set_permissions(&d, PermissionsExt::from_mode(0o6777)).unwrap();
    chown(&d, Some(1000), Some(1000)).unwrap();
    assert_eq!(fs::metadata(&d).unwrap().mode() & 0o7777, 0o6777, "folders keep them");
    vault.open_to_others();
    let script = "/usr/bin/python3 -c 'import os, sys; os.chown(sys.argv[1], -1, -1)' \"$0\"";
    run("setpriv", &[&"--reuid", &"1001", &"--clear-groups", &"sh", &"-c", &script, &d]);
    assert_eq!(fs::metadata(&d).unwrap().mode() & 0o7777, 0o6777, "whoever asks");
}
