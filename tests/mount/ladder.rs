//! The rungs of the outage ladder under a real mount: whatever becomes of the token, waiting is bounded, cached objects go
//! on, nothing is made, and what heals is noticed without anybody's help.

use crate::kernel::{errno, vault_says};
use crate::vault::{Vault, run};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A mounted vault with one object whose key is in memory and some whose keys are not.
struct World {
    vault: Vault,
    cached: PathBuf,
    cold: Vec<PathBuf>,
    keys: usize,
}

impl World {
    fn new(vault: Vault, options: &[&str]) -> World {
        vault.init();
        vault.mount(options);
        let (a, b) = (vault.org("a"), vault.org("b"));
        let cached = a.join("cached");
        let cold: Vec<_> = [&a, &b, &a, &b].iter().enumerate().map(|(n, org)| org.join(n.to_string())).collect();
        cold.iter().chain([&cached]).for_each(|path| fs::write(path, "value").unwrap());
        vault.umount();
        vault.mount(options);
        assert_eq!(fs::read(&cached).unwrap(), b"value");
        let keys = vault.token_files();
        World { vault, cached, cold, keys }
    }

    fn opens(&self, number: usize) {
        assert_eq!(fs::read(&self.cold[number]).unwrap(), b"value");
    }

    /// An object without its key is ENOKEY before the time is over; one with its key does not notice.
    fn is_out(&self, number: usize, state: &str, within: Duration) {
        let asked = Instant::now();
        assert_eq!(errno(fs::read(&self.cold[number])), libc::ENOKEY);
        assert!(asked.elapsed() < within, "{:?}", asked.elapsed());
        assert_eq!(self.token()["state"], state);
        let text = self.vault.command(&["status"]).good().text();
        assert!(text.contains(&format!("vault ({state})")) && text.contains("token error"), "{text}");
        self.metrics_say(0, u8::from(state == "pin refused"));
        assert_eq!(fs::read(&self.cached).unwrap(), b"value");
        assert_eq!(errno(fs::create_dir(self.vault.at("c"))), libc::ENOKEY);
    }

    fn heals(&self, number: usize) {
        let back = Instant::now();
        // What was asked meanwhile may still be told that the token is away.
        let healed = || self.token()["state"] == "active" && vault_says(self.vault.at("a"), "key_state") == "active";
        while fs::read(&self.cold[number]).is_err() || !healed() {
            assert!(back.elapsed() < Duration::from_secs(60), "the token is back and not noticed");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.vault.token_files(), self.keys, "a key was made meanwhile");
        self.metrics_say(1, 0);
        fs::write(self.vault.org("c").join("f"), "new").unwrap();
    }

    fn metrics_say(&self, up: u8, pin_refused: u8) {
        let metrics = self.vault.metrics();
        for line in [format!("vaultfs_token_up {up}"), format!("vaultfs_token_pin_refused {pin_refused}")] {
            assert!(metrics.lines().any(|told| told == line), "{line}: {metrics}");
        }
    }

    fn token(&self) -> serde_json::Value {
        self.vault.command(&["status", "--json"]).good().json()["token"].clone()
    }
}

#[test]
fn a_server_that_is_killed_is_waited_out_and_found_again() {
    let mut vault = Vault::without_state();
    let server = vault.behind_server();
    // What the module then lacks decides for suite 2.
    let world = World::new(vault, &[]);
    assert_eq!(world.token()["suite"], 2);
    drop(server);
    world.is_out(0, "unavailable", Duration::from_secs(20));
    let _server = world.vault.serve_token();
    world.heals(1);
}

#[test]
fn sessions_that_the_token_lost_are_opened_anew() {
    let mut vault = Vault::without_state();
    vault.behind_shim(&["sessions=1"]);
    let world = World::new(vault, &[]);
    world.vault.shim(&["sessions=2"]);
    world.opens(0);
    world.vault.shim(&["sessions=3"]);
    world.heals(1);
    world.opens(2);
}

#[test]
fn a_token_that_takes_50_ms_a_call_serves() {
    let mut vault = Vault::without_state();
    vault.behind_shim(&["delay=50"]);
    let world = World::new(vault, &["-o", "key_timeout=20s"]);
    world.opens(0);
    world.opens(1);
    assert_eq!(world.token()["recoveries"], 0);
}

#[test]
fn a_token_that_takes_5_s_a_call_holds_nobody_up_and_is_found_again() {
    let mut vault = Vault::without_state();
    vault.behind_shim(&[]);
    let world = World::new(vault, &["-o", "key_timeout=1s"]);
    world.vault.shim(&["delay=5000"]);
    world.is_out(0, "unavailable", Duration::from_secs(20));
    world.vault.shim(&[]);
    world.heals(1);
}

#[test]
fn a_pin_that_was_changed_elsewhere_is_noticed_at_the_next_login_and_presented_once() {
    let world = World::new(Vault::without_state(), &[]);
    let logins = || world.token()["logins"].as_u64().unwrap();
    let before = logins();
    world.vault.change_pin_elsewhere("11112222");
    world.opens(0);
    // Whoever was logged in is not any more, once the token was away.
    world.vault.take_token_away();
    world.is_out(1, "unavailable", Duration::from_secs(20));
    world.vault.bring_token_back();
    let back = Instant::now();
    while world.token()["state"] != "pin refused" {
        assert!(back.elapsed() < Duration::from_secs(60), "the PIN is not presented");
        assert_eq!(errno(fs::read(&world.cold[1])), libc::ENOKEY);
        std::thread::sleep(Duration::from_millis(100));
    }
    for number in [1, 2, 3] {
        world.is_out(number, "pin refused", Duration::from_secs(20));
    }
    assert_eq!(logins(), before + 1, "presented once");
    world.vault.umount();
    world.vault.try_mount(&[]).refused(5).saying("PIN");
    world.vault.write_pin("11112222");
    world.vault.mount(&[]);
    world.opens(1);
}

#[test]
fn a_new_pin_is_set_under_the_mount_and_presented_from_then_on() {
    let mut vault = Vault::without_state();
    vault.behind_shim(&[]);
    let world = World::new(vault, &[]);
    let new = world.vault.directory().join("new-pin");
    fs::write(&new, "correct horse battery staple\n").unwrap();
    run("chmod", &[&"0400", &new]);
    let source = format!("file:{}", new.display());
    world.vault.command(&["key", "set-pin", "file:/nonexistent/pin"]).refused(5).saying("/nonexistent/pin");
    world.vault.command(&["key", "set-pin", "prompt"]).refused(2).saying("file:");
    world.vault.command(&["key", "set-pin", &source]).good();
    world.opens(0);
    world.vault.shim(&["login=lost"]);
    world.opens(1);
    world.vault.shim(&[]);
    world.vault.umount();
    world.vault.mount(&[]);
    world.opens(2);
    // Without a daemon too.
    world.vault.umount();
    world.vault.write_pin("87654321");
    world.vault.command(&["key", "set-pin", &world.vault.pin()]).good();
    fs::remove_file(&new).unwrap();
    world.vault.mount(&[]);
    world.opens(3);
}
