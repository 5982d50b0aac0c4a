//! The token goes away under a mount, and comes back.

use crate::kernel::{errno, vault_says};
use crate::vault::Vault;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn without_the_token_cached_objects_go_on_and_others_have_no_key() {
    let vault = Vault::up();
    let (a, b) = (vault.org("a"), vault.org("b"));
    for path in [a.join("cached"), a.join("cold"), b.join("cold")] {
        fs::write(path, "value").unwrap();
    }
    vault.umount();
    vault.mount(&["-o", "key_timeout=5s"]);
    assert_eq!(fs::read(a.join("cached")).unwrap(), b"value");
    let keys = vault.token_files();
    vault.take_token_away();
    for path in [a.join("cold"), b.join("cold")] {
        let asked = Instant::now();
        assert_eq!(errno(fs::read(&path)), libc::ENOKEY, "{path:?}");
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    }
    assert_eq!(errno(fs::create_dir(vault.at("c"))), libc::ENOKEY);
    let asked = Instant::now();
    assert_eq!(fs::read(a.join("cached")).unwrap(), b"value");
    assert!(asked.elapsed() < Duration::from_secs(1), "a cached object waited for {:?}", asked.elapsed());
    assert_eq!(vault_says(&a, "key_state"), "unavailable");
    vault.command(&["org", "create", "c"]).refused(5);
    vault.bring_token_back();
    let back = Instant::now();
    while fs::read(a.join("cold")).is_err() {
        assert!(back.elapsed() < Duration::from_secs(30), "the token is back and not noticed");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(fs::read(b.join("cold")).unwrap(), b"value");
    assert_eq!(vault_says(&a, "key_state"), "active");
    assert_eq!(vault.token_files(), keys, "a key was made meanwhile");
    fs::write(vault.org("c").join("f"), "new").unwrap();
}
