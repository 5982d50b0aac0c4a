//! Moving a vault to another token under a mount: the command waits for the end, and a kill at any point is gone on from.
//! And what `status` and the metrics say of tokens.

use crate::kernel::errno;
use crate::vault::{PROGRAM, Vault};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Another token beside the vault's: its files.
fn another_token(vault: &Vault, label: &str) -> PathBuf {
    let tokens = || -> Vec<_> {
        fs::read_dir(vault.token().join("tokens")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let before = tokens();
    let arguments = ["--init-token", "--free", "--label", label, "--so-pin", "5678", "--pin", "1234"];
    assert!(vault.in_environment("softhsm2-util").args(arguments).output().unwrap().status.success());
    tokens().into_iter().find(|path| !before.contains(path)).unwrap()
}

fn uri(vault: &Vault, label: &str) -> String {
    vault.uri().replace("token=vault", &format!("token={label}"))
}

fn status(vault: &Vault) -> serde_json::Value {
    vault.command(&["status", "--json"]).good().json()
}

#[test]
fn a_migration_that_is_killed_at_any_point_goes_on_at_the_next_mount() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let value = |n: usize| vec![n as u8; 10 + n * 40];
    (0..120).for_each(|n| fs::write(org.join(n.to_string()), value(n)).unwrap());
    // What a kill may take of the last milliseconds is not the matter here.
    fs::File::open(&org).unwrap().sync_all().unwrap();
    let mut left: Vec<PathBuf> =
        vec![fs::read_dir(vault.token().join("tokens")).unwrap().next().unwrap().unwrap().path()];
    for (round, pause) in [0, 3, 8, 15, 25, 40, 60, 90].into_iter().enumerate() {
        let label = format!("new-{round}");
        let files = another_token(&vault, &label);
        let (to, pin) = (uri(&vault, &label), vault.pin());
        let migrate = ["key", "migrate", "--token", &to, "--pin-source", &pin];
        let mut migration = vault.in_environment(PROGRAM);
        let mut migration = migration.args(migrate).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        vault.kill();
        migration.wait().unwrap();
        vault.mount(&[]);
        until("it does not go on", || status(&vault)["migration"].is_null());
        if status(&vault)["token"]["uri"] != to.as_str() {
            // It was killed before it had begun.
            vault.command(&migrate).good();
        }
        assert_eq!(status(&vault)["token"]["uri"], to.as_str(), "{pause} ms");
        for n in 0..120 {
            assert_eq!(fs::read(org.join(n.to_string())).unwrap(), value(n), "{pause} ms");
        }
        left.push(files);
    }
    vault.umount();
    left.pop();
    left.iter().for_each(|old| fs::remove_dir_all(old).unwrap());
    vault.mount(&[]);
    (0..120).for_each(|n| assert_eq!(fs::read(org.join(n.to_string())).unwrap(), value(n)));
    fs::write(vault.org("later").join("f"), "new").unwrap();
    vault.command(&["key", "rotate", "--all"]).good();
    vault.command(&["key", "rotate", "--root"]).good();
    vault.remount();
    assert_eq!(fs::read(vault.at("later/f")).unwrap(), b"new");
    vault.command(&["fsck"]).good();
}

#[test]
fn the_command_says_where_the_vault_is_and_what_is_left() {
    let vault = Vault::up();
    fs::write(vault.org("acme").join("f"), "value").unwrap();
    another_token(&vault, "new");
    let (to, pin) = (uri(&vault, "new"), vault.pin());
    vault.command(&["key", "migrate", "--token", &to, "--pin-source", "prompt"]).refused(2).saying("file:");
    vault
        .command(&["key", "migrate", "--token", &uri(&vault, "none"), "--pin-source", &pin])
        .refused(5)
        .saying("token=none");
    let said = vault.command(&["key", "migrate", "--token", &to, "--pin-source", &pin]).good().text();
    assert!(said.contains(&to) && said.contains("next mount"), "{said}");
    assert_eq!(vault.token_keys(), 0);
    vault.command(&["key", "migrate", "--token", &to, "--pin-source", &pin]).refused(5).saying("already");
    let events = fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap();
    assert!(events.contains("key.migration_begun") && events.contains("key.migrated"));
    // Without a daemon too, and back.
    vault.umount();
    vault.command(&["key", "migrate", "--token", &vault.uri(), "--pin-source", &pin, "--json"]).good();
    vault.mount(&[]);
    assert_eq!(fs::read(vault.at("acme/f")).unwrap(), b"value");
}

#[test]
fn status_and_metrics_name_an_organizations_own_token_that_is_away() {
    let vault = Vault::up();
    fs::write(vault.org("other").join("f"), "other").unwrap();
    let files = another_token(&vault, "acme-hsm");
    // Beside the directory in which SoftHSM looks.
    let away = vault.token().join("away");
    let (own, pin) = (uri(&vault, "acme-hsm"), vault.pin());
    vault.command(&["org", "create", "acme", "--kek", &own, "--pin-source", &pin]).good();
    let id = vault.command(&["org", "show", "acme", "--json"]).good().json()["id"].as_str().unwrap().to_owned();
    (0..3).for_each(|n| fs::write(vault.at(format!("acme/{n}")), "value").unwrap());
    let says = |state: &str, up: u64, refused: u64| {
        let told = status(&vault)["own_tokens"].clone();
        let line = |name: &str, value: u64| {
            format!("vaultfs_organization_token_{name}{{organization=\"{id}\",token=\"{own}\"}} {value}\n")
        };
        let metrics = vault.metrics();
        told[0]["uri"] == own.as_str()
            && told[0]["state"] == state
            && told[0]["organizations"][0]["name"] == "acme"
            && metrics.contains(&line("up", up))
            && metrics.contains(&line("pin_refused", refused))
    };
    assert!(says("active", 1, 0), "{}", status(&vault));
    vault.umount();
    fs::rename(&files, &away).unwrap();
    vault.mount(&[]);
    assert_eq!(errno(fs::read(vault.at("acme/0"))), libc::ENOKEY);
    assert_eq!(fs::read(vault.at("other/f")).unwrap(), b"other");
    assert!(says("unavailable", 0, 0), "{}\n{}", status(&vault), vault.metrics());
    assert_eq!(status(&vault)["token"]["state"], "active", "the vault's own is another one");
    let text = vault.command(&["status"]).good().text();
    assert!(text.lines().any(|line| line.contains("acme-hsm") && line.contains("acme (unavailable)")), "{text}");
    fs::rename(&away, &files).unwrap();
    until("the token is back and not noticed", || fs::read(vault.at("acme/0")).is_ok());
    assert!(says("active", 1, 0), "{}\n{}", status(&vault), vault.metrics());
    // A third token whose PIN is wrong comes to nothing, and says nothing of this one.
    let wrong = vault.directory().join("pin-of-acme");
    fs::write(&wrong, "9999\n").unwrap();
    crate::vault::run("chmod", &[&"0400", &wrong]);
    let source = format!("file:{}", wrong.display());
    another_token(&vault, "third");
    let third = uri(&vault, "third");
    vault.command(&["org", "create", "third", "--kek", &third, "--pin-source", &source]).refused(5).saying("PIN");
    assert!(says("active", 1, 0), "{}", status(&vault));
}
