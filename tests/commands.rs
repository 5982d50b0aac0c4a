//! The commands: what they print, how they end, and that they are the same with a daemon and without.

#[path = "support/vault.rs"]
mod vault;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use vault::{Done, PROGRAM, Vault};

/// The same story once through the daemon and once on the state directory itself.
fn with_and_without_a_daemon(story: impl Fn(&Vault)) {
    story(&Vault::new());
    story(&Vault::up());
}

#[test]
fn every_command_has_help() {
    let vault = Vault::without_state();
    let commands = [
        "",
        "init",
        "mount",
        "umount",
        "status",
        "fsck",
        "doctor",
        "org",
        "org create",
        "org list",
        "org show",
        "org delete",
        "org lock",
        "org unlock",
        "key",
        "key rotate",
        "key move",
        "key list",
        "key show",
        "key revoke",
        "key check",
        "key migrate",
        "key set-pin",
        "object",
        "object list",
        "object describe",
        "object get",
        "object put",
        "object delete",
        "object versions",
        "tombstone",
        "tombstone list",
        "tombstone restore",
        "tombstone purge",
        "serve",
        "apikey",
        "apikey create",
        "apikey list",
        "apikey revoke",
        "org set",
        "object restore",
    ];
    for command in commands {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = vault.command(&arguments).good().text();
        assert!(help.contains("Usage: vaultfs") && help.contains("--json"), "{command}: {help}");
    }
    assert!(vault.command(&["--version"]).good().text().starts_with("vaultfs "));
}

#[test]
fn objects_are_put_listed_described_read_and_deleted() {
    with_and_without_a_daemon(|vault| {
        vault.command(&["org", "create", "acme"]).good();
        let put = vault.command_with(&["object", "put", "acme/db/password", "--json"], b"one").good().json();
        let id = put["id"].as_str().unwrap();
        vault.command_with(&["object", "put", "acme/db/password"], b"two").good();
        assert_eq!(vault.command(&["object", "get", "acme/db/password"]).good().out, b"two");
        assert_eq!(vault.command(&["object", "get", id]).good().out, b"two");
        assert_eq!(vault.command(&["object", "get", id, "--version", "1"]).good().out, b"one");
        let got = vault.command(&["object", "get", id, "--json"]).good().json();
        assert_eq!((&got["value"], &got["version"]), (&"two".into(), &2.into()));
        let described = vault.command(&["object", "describe", id, "--json"]).good().json();
        assert_eq!((&described["id"], &described["name"]), (&put["id"], &"db/password".into()));
        assert_eq!(described["metadata"]["size"], 3);
        let versions = vault.command(&["object", "versions", id, "--json"]).good().json();
        let versions = versions["data"].as_array().unwrap();
        assert_eq!(versions.len(), 2);
        assert_eq!(versions.iter().filter(|version| version["current_version"] == true).count(), 1);
        for place in [&["object", "list", "--json"][..], &["object", "list", "acme/db", "--json"]] {
            let listed = vault.command(place).good().json();
            assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
        }
        vault.command(&["object", "delete", "acme/db/password"]).good();
        vault.command(&["object", "get", "acme/db/password"]).refused(3);
        let graves = vault.command(&["tombstone", "list", "--json"]).good().json();
        assert_eq!(graves["data"][0]["original_path"], "db/password");
        let entry = format!("acme/{}", graves["data"][0]["entry"].as_str().unwrap());
        vault.command(&["tombstone", "restore", &entry]).good();
        assert_eq!(vault.command(&["object", "get", "acme/db/password"]).good().out, b"two");
        vault.command(&["object", "delete", id]).good();
        vault.command(&["tombstone", "restore", id, "--to", "db/elsewhere"]).good();
        assert_eq!(vault.command(&["object", "get", "acme/db/elsewhere", "--version", "1"]).good().out, b"one");
        vault.command(&["object", "delete", id]).good();
        vault.command(&["tombstone", "purge", id]).good();
        vault.command(&["tombstone", "purge", id]).refused(3);
        assert_eq!(vault.command(&["tombstone", "list"]).good().text(), "");
        vault.command(&["fsck"]).good();
    });
}

#[test]
fn values_of_any_size_pass_through_unchanged() {
    with_and_without_a_daemon(|vault| {
        vault.command(&["org", "create", "acme"]).good();
        for len in [0, 1, 4096, 3_000_001] {
            let value: Vec<u8> = (0..len).map(|n: u32| (n % 251) as u8).collect();
            vault.command_with(&["object", "put", "acme/f"], &value).good();
            assert!(vault.command(&["object", "get", "acme/f"]).good().out == value, "{len} bytes");
        }
    });
}

#[test]
fn a_lost_version_check_ends_with_4() {
    with_and_without_a_daemon(|vault| {
        vault.command(&["org", "create", "acme"]).good();
        vault.command_with(&["object", "put", "acme/f"], b"one").good();
        let described = vault.command(&["object", "describe", "acme/f", "--json"]).good().json();
        let first = described["metadata"]["version_id"].as_str().unwrap();
        vault.command_with(&["object", "put", "acme/f", "--if-version", first], b"two").good();
        vault.command_with(&["object", "put", "acme/f", "--if-version", first], b"lost").refused(4);
        vault.command_with(&["object", "put", "acme/f", "--if-version", "1"], b"lost").refused(4);
        vault.command(&["object", "delete", "acme/f", "--if-version", first]).refused(4);
        assert_eq!(vault.command(&["object", "get", "acme/f"]).good().out, b"two");
        vault.command_with(&["object", "put", "acme/f", "--if-version", "2"], b"three").good();
        vault.command(&["object", "delete", "acme/f", "--if-version", "3"]).good();
    });
}

#[test]
fn organizations_are_made_shown_listed_and_deleted() {
    with_and_without_a_daemon(|vault| {
        let made = vault.command(&["org", "create", "acme", "--json"]).good().json();
        let id = made["id"].as_str().unwrap();
        vault.command(&["org", "create", "acme"]).refused(1);
        vault.command(&["org", "create", ".acme"]).refused(2);
        for which in ["acme", id] {
            let shown = vault.command(&["org", "show", which, "--json"]).good().json();
            assert_eq!((&shown["id"], &shown["key_state"]), (&made["id"], &"active".into()));
        }
        assert_eq!(vault.command(&["org", "list", "--json"]).good().json()["data"].as_array().unwrap().len(), 1);
        vault.command_with(&["object", "put", "acme/f"], b"x").good();
        vault.command(&["org", "delete", "acme"]).refused(1);
        vault.command(&["object", "delete", "acme/f"]).good();
        vault.command(&["org", "delete", id]).good();
        vault.command(&["org", "show", "acme"]).refused(3);
        vault.command(&["org", "delete", "acme"]).refused(3);
    });
}

#[test]
fn usage_errors_end_with_2_and_missing_things_with_3() {
    with_and_without_a_daemon(|vault| {
        vault.command(&["org", "create", "acme"]).good();
        vault.command(&["nonsense"]).refused(2);
        vault.command(&["object", "get"]).refused(2);
        vault.command(&["org", "create", "b", "--mode", "rwx"]).refused(2);
        for arguments in [
            ["object", "get", "acme/none"],
            ["object", "get", "none/f"],
            ["object", "describe", "acme/none"],
            ["object", "versions", "acme/none"],
            ["object", "delete", "acme/none"],
            ["object", "list", "none"],
            ["tombstone", "purge", "acme/none~20261123T164100Z~1f3a"],
            ["tombstone", "list", "none"],
            ["org", "show", "none"],
        ] {
            vault.command(&arguments).refused(3);
        }
        vault.command(&["--vault", "/nowhere", "status"]).refused(3);
    });
}

#[test]
fn status_names_daemon_token_and_counts() {
    let vault = Vault::up();
    vault.command(&["org", "create", "acme"]).good();
    let status = vault.command(&["status", "--json"]).good().json();
    assert_eq!(status["daemon"]["pid"], vault.daemon().unwrap());
    assert_eq!((&status["organizations"], &status["token"]["label"]), (&1.into(), &"vault".into()));
    let point = vault.point();
    let by_mount = vault.command(&["--vault", point.to_str().unwrap(), "status", "--json"]).good().json();
    assert_eq!(by_mount["vault"], status["vault"]);
    vault.umount();
    let status = vault.command(&["status", "--json"]).good().json();
    assert!(status["daemon"].is_null());
    vault.command(&["umount", point.to_str().unwrap()]).refused(3);
}

#[test]
fn umount_says_that_another_mount_namespace_holds_the_mount_and_waits_for_it() {
    let vault = Vault::up();
    let point = vault.point();
    // Of what else is mounted the other namespace keeps nothing: other tests unmount meanwhile.
    let script = r#"
        findmnt -nlo TARGET -t fuse.vaultfs | grep -vxF "$0" | xargs -r -n 1 umount -l
        echo ready; read -r _"#;
    let mut other = Command::new("unshare");
    other.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&point);
    let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    let mut umount = vault.in_environment(PROGRAM);
    let mut umount = umount.arg("umount").arg(&point).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(umount.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    let told = format!("not in the mount namespace of process {};", other.id());
    let waits = umount.try_wait().unwrap().is_none();
    drop(other.stdin.take());
    other.wait().unwrap();
    assert!(umount.wait().unwrap().success());
    assert!(waits && said.contains(&told), "{said}");
    assert_eq!(vault.daemon(), None);
}

#[test]
fn mount_and_init_print_json() {
    let vault = Vault::without_state();
    let (state, uri, pin) = (vault.state(), vault.uri(), vault.pin());
    let init = ["init", state.to_str().unwrap(), "--token", &uri, "--pin-source", &pin, "--json"];
    assert!(vault.command(&init).good().json()["vault"].is_string());
    vault.command(&init).refused(1);
    let mounted = vault.try_mount(&["--json"]).good().json();
    assert_eq!(mounted["pid"], vault.daemon().unwrap());
    assert_eq!(mounted["mount_point"], vault.point().to_str().unwrap());
}

#[test]
fn the_token_out_of_reach_ends_with_5() {
    let vault = Vault::new();
    vault.write_pin("9999");
    vault.command(&["status"]).refused(5);
    vault.command(&["org", "create", "acme"]).refused(5);
}

#[test]
fn what_does_not_authenticate_ends_with_6() {
    let vault = Vault::up();
    vault.command(&["org", "create", "acme"]).good();
    vault.command_with(&["object", "put", "acme/f"], &[7; 500_000]).good();
    vault.command_with(&["object", "put", "acme/g"], b"untouched").good();
    vault.umount();
    vault.command(&["fsck"]).good();
    let segment =
        Done::of(std::process::Command::new("find").arg(vault.state()).args(["-size", "+300k", "-type", "f"]), b"");
    for path in segment.good().text().lines().filter(|path| !path.contains(".db") && !path.contains("sqlite")) {
        let mut bytes = fs::read(path).unwrap();
        bytes[150_000] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    vault.command(&["object", "get", "acme/f"]).refused(6);
    assert_eq!(vault.command(&["object", "get", "acme/g"]).good().out, b"untouched");
    let found = vault.command(&["fsck"]);
    assert_eq!(found.code, 6, "{found:?}");
    let report = vault.command(&["fsck", "--json"]);
    assert_eq!(report.code, 6);
    let lines: Vec<serde_json::Value> = report.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line.get("finding").is_some()), "{lines:?}");
}

#[test]
fn others_than_the_owner_are_denied_with_7() {
    let vault = Vault::up();
    vault.open_to_others();
    vault.command(&["org", "create", "acme"]).good();
    fs::set_permissions(vault.state(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = vault.in_environment(PROGRAM);
    command.args(["org", "list"]).uid(65534).gid(65534);
    Done::of(&mut command, b"").refused(7);
}

#[test]
fn fsck_of_a_mounted_vault_finds_nothing_right_after_a_put() {
    let vault = Vault::up();
    vault.command(&["org", "create", "acme"]).good();
    for n in 0..10 {
        vault.command_with(&["object", "put", &format!("acme/{n}")], &[7; 500_000]).good();
        vault.command(&["fsck"]).good();
    }
}
