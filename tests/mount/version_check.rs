//! `user.vault.version_check`: a commit that is valid only on top of one version.

use crate::kernel::{errno, set_attribute, vault_says};
use crate::vault::{Vault, run, try_run};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::path::Path;

const CHECK: &str = "user.vault.version_check";

/// `close`, with its error.
fn close(file: fs::File) -> std::io::Result<()> {
    // SAFETY: the descriptor is ours alone and not used again.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn version(path: &Path) -> String {
    vault_says(path, "version_id")
}

#[test]
fn a_save_wins_on_top_of_the_version_it_names() {
    let vault = Vault::up();
    let a = vault.org("a");
    let (f, new) = (a.join("f"), a.join("new"));
    fs::write(&f, "one").unwrap();
    fs::write(&new, "two").unwrap();
    run("setfattr", &[&"-n", &CHECK, &"-v", &version(&f), &new]);
    run("mv", &[&new, &f]);
    assert_eq!(fs::read(&f).unwrap(), b"two");
    assert_eq!(vault_says(&f, "version"), "2");
}

#[test]
fn a_save_on_top_of_another_version_is_stale_and_changes_nothing() {
    let vault = Vault::up();
    let a = vault.org("a");
    let (f, new) = (a.join("f"), a.join("new"));
    fs::write(&f, "one").unwrap();
    let seen = version(&f);
    fs::write(&f, "won").unwrap();
    fs::write(&new, "lost").unwrap();
    set_attribute(&new, CHECK, &seen).unwrap();
    for _ in 0..3 {
        assert_eq!(errno(fs::rename(&new, &f)), libc::ESTALE, "a failed check does not use the guard up");
    }
    let refused = try_run("mv", &[&new, &f]);
    assert!(refused.code != 0 && refused.err.contains("Stale file handle"), "{refused:?}");
    assert_eq!((fs::read(&f).unwrap(), fs::read(&new).unwrap()), (b"won".to_vec(), b"lost".to_vec()));
    assert_eq!(vault_says(&f, "version"), "2");
    set_attribute(&new, CHECK, version(&f)).unwrap();
    fs::rename(&new, &f).unwrap();
    assert_eq!(fs::read(&f).unwrap(), b"lost");
}

#[test]
fn of_many_saves_on_top_of_one_version_one_wins() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "start").unwrap();
    for round in 0..10 {
        let seen = version(&a.join("f"));
        for n in 0..8 {
            let _ = fs::remove_file(a.join(format!("new{n}")));
            fs::write(a.join(format!("new{n}")), format!("{round} {n}")).unwrap();
            set_attribute(a.join(format!("new{n}")), CHECK, &seen).unwrap();
        }
        let save = |n: usize| fs::rename(a.join(format!("new{n}")), a.join("f"));
        let won: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || (n, save(n)))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.filter(|(_, saved)| saved.is_ok()).map(|(n, _)| n).collect()
        });
        let [winner] = won[..] else { panic!("winners: {won:?}") };
        assert_eq!(fs::read_to_string(a.join("f")).unwrap(), format!("{round} {winner}"));
        assert_eq!(vault_says(a.join("f"), "version"), (round + 2).to_string());
    }
}

#[test]
fn a_check_on_the_object_itself_fails_at_once_if_it_is_not_current() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, "one").unwrap();
    let seen = version(&f);
    fs::write(&f, "two").unwrap();
    assert_eq!(errno(set_attribute(&f, CHECK, &seen)), libc::ESTALE);
    set_attribute(&f, CHECK, version(&f)).unwrap();
    fs::write(&f, "three").unwrap();
    assert_eq!(vault_says(&f, "version"), "3");
    fs::write(&f, "four").unwrap();
    assert_eq!(vault_says(&f, "version"), "4", "the check was for one commit");
}

#[test]
fn a_commit_that_loses_is_stale_at_close_and_the_winner_stays() {
    let vault = Vault::up();
    let a = vault.org("a");
    let f = a.join("f");
    fs::write(&f, "one").unwrap();
    let id = vault_says(&f, "id");
    let mut file = OpenOptions::new().write(true).truncate(false).open(&f).unwrap();
    set_attribute(&f, CHECK, version(&f)).unwrap();
    fs::write(a.join("new"), "won").unwrap();
    fs::rename(a.join("new"), &f).unwrap();
    let written = file.write_all(b"lost!");
    let synced = written.and_then(|()| file.sync_all());
    assert_eq!(errno(synced), libc::ESTALE);
    assert_eq!(errno(close(file)), libc::ESTALE);
    assert_eq!(fs::read(&f).unwrap(), b"won");
    assert_eq!(vault_says(&f, "id"), id);
    vault.remount();
    assert_eq!(fs::read(&f).unwrap(), b"won");
}

#[test]
fn a_check_needs_a_version_id_and_an_object() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    assert_eq!(errno(set_attribute(a.join("f"), CHECK, "7")), libc::EINVAL);
    assert_eq!(errno(set_attribute(&a, CHECK, version(&a.join("f")))), libc::EPERM);
    assert!(!crate::kernel::attributes(a.join("f")).contains(&CHECK.to_owned()));
}
