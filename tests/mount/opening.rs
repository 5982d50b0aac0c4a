//! A mount that cannot be: it says why, ends with the promised code, and leaves nothing behind.

use crate::vault::Vault;
use std::fs;
use std::time::Instant;

fn refused_quickly(vault: &Vault, code: i32, words: &[&str]) {
    let (asked, keys) = (Instant::now(), vault.token_files());
    let refused = vault.try_mount(&[]).refused(code);
    assert!(asked.elapsed().as_secs() < 15, "{:?}", asked.elapsed());
    for word in words {
        assert!(refused.err.contains(word), "{word:?} expected in: {}", refused.err);
    }
    assert_eq!(vault.token_files(), keys, "a key was made");
    assert_eq!(vault.daemon(), None);
    assert_eq!(fs::read_dir(vault.point()).unwrap().count(), 0);
    let command = vault.command(&["org", "list"]).refused(code);
    assert!(words.iter().all(|word| command.err.contains(word)), "{}", command.err);
}

#[test]
fn a_second_mount_of_the_same_state_is_refused_and_names_the_holder() {
    let vault = Vault::up();
    let other = vault.directory().join("other");
    fs::create_dir(&other).unwrap();
    let (state, pid) = (vault.state(), vault.daemon().unwrap().to_string());
    let again = vault.command(&["mount", state.to_str().unwrap(), other.to_str().unwrap()]);
    assert!(again.code != 0 && again.err.contains(&pid), "{again:?}");
    let here = vault.try_mount(&[]);
    assert!(here.code != 0 && here.err.contains("mounted"), "{here:?}");
    vault.org("still-works");
}

#[test]
fn a_wrong_pin_is_said() {
    let vault = Vault::new();
    vault.write_pin("9999");
    refused_quickly(&vault, 5, &["PIN"]);
    vault.write_pin("1234");
    vault.mount(&[]);
}

#[test]
fn an_unreadable_or_missing_pin_file_is_said() {
    let vault = Vault::new();
    fs::remove_file(vault.token().join("pin")).unwrap();
    refused_quickly(&vault, 5, &["pin"]);
    fs::create_dir(vault.token().join("pin")).unwrap();
    refused_quickly(&vault, 5, &["pin"]);
}

#[test]
fn a_missing_token_is_said() {
    let vault = Vault::new();
    vault.take_token_away();
    refused_quickly(&vault, 5, &["token"]);
    vault.bring_token_back();
    vault.mount(&[]);
}

#[test]
fn a_missing_module_is_said() {
    let vault = Vault::new();
    let asked = Instant::now();
    let refused = vault.try_mount(&["--token", "pkcs11:token=vault?module-path=/nowhere/libnone.so"]);
    refused.refused(5).saying("/nowhere/libnone.so");
    assert!(asked.elapsed().as_secs() < 15);
    vault.try_mount(&["--token", "pkcs11:token=another"]).refused(5);
    assert_eq!(vault.daemon(), None);
}

#[test]
fn what_is_no_vault_or_no_mount_point_is_said() {
    let vault = Vault::new();
    let (state, point, none) = (vault.state(), vault.point(), vault.directory().join("none"));
    let mount =
        |a: &std::path::Path, b: &std::path::Path| vault.command(&["mount", a.to_str().unwrap(), b.to_str().unwrap()]);
    mount(&none, &point).refused(3).saying("none");
    mount(&state, &none).refused(3).saying("none");
    mount(&state, &state.join("vault.json")).refused(2).saying("not a directory");
    let empty = mount(&vault.token(), &point);
    assert!(empty.code != 0 && !empty.err.is_empty(), "{empty:?}");
    vault.try_mount(&["-o", "nosiud"]).refused(2).saying("nosiud");
    vault.try_mount(&["-o", "keep_version=3"]).saying("keep_version");
    assert_eq!(vault.daemon(), None);
}
