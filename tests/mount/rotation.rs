//! Rotations under a mount: the command waits for the end, and a kill at any point is gone on from.

use crate::vault::Vault;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_rotation_that_is_killed_at_any_point_goes_on_at_the_next_mount() {
    let vault = Vault::up();
    let org = vault.org("acme");
    let value = |n: usize| vec![n as u8; 10 + n * 40];
    (0..120).for_each(|n| fs::write(org.join(n.to_string()), value(n)).unwrap());
    // What a kill may take of the last milliseconds is not the matter here.
    fs::File::open(&org).unwrap().sync_all().unwrap();
    let keys = vault.token_keys();
    let mut version = 1;
    for pause in [0, 1, 3, 6, 10, 15, 22, 30, 45, 70] {
        let mut rotation = vault.in_environment(crate::vault::PROGRAM);
        let mut rotation =
            rotation.args(["key", "rotate", "acme"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        vault.kill();
        rotation.wait().unwrap();
        vault.mount(&[]);
        let deadline = Instant::now() + Duration::from_secs(30);
        let listed = || vault.command(&["key", "list", "acme", "--json"]).good().json()["data"].clone();
        let rotating = || listed().as_array().unwrap().len() != 1 || vault.token_keys() != keys;
        while rotating() {
            assert!(Instant::now() < deadline, "{pause} ms: {}", listed());
            std::thread::sleep(Duration::from_millis(50));
        }
        let id = listed()[0]["key_id"].as_str().unwrap().to_owned();
        let now: u32 = id.rsplit_once(":v").unwrap().1.parse().unwrap();
        // A look can come before the rotation is gone on with: then the next round sees two.
        assert!((version..=version + 2).contains(&now), "{pause} ms: {id} after version {version}");
        version = now;
        for n in 0..120 {
            assert_eq!(fs::read(org.join(n.to_string())).unwrap(), value(n), "{pause} ms");
        }
    }
    vault.command(&["key", "rotate", "acme"]).good();
    vault.command(&["key", "rotate", "--all"]).good();
    vault.command(&["key", "rotate", "--root"]).good();
    vault.remount();
    (0..120).for_each(|n| assert_eq!(fs::read(org.join(n.to_string())).unwrap(), value(n)));
    assert_eq!(vault.token_keys(), keys);
    vault.command(&["fsck"]).good();
}
