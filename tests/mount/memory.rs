//! What can be found in the daemon's memory, by a root that reads all of it.

use crate::vault::{Vault, run};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Which of the secrets stand in writable memory of the process.
fn found(pid: u32, secrets: &HashSet<Vec<u8>>) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let start = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut starts = vec![false; 1 << 16];
    secrets.iter().for_each(|secret| starts[start(secret)] = true);
    let mut hits = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        // A region can go while it is looked at.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for (at, two) in bytes.windows(2).enumerate() {
            if starts[start(two)] {
                hits.extend(secrets.iter().filter(|secret| bytes[at..].starts_with(secret)).cloned());
            }
        }
    }
    hits
}

/// The DEKs that passed through the token since the record was begun.
fn recorded(path: &std::path::Path) -> HashSet<Vec<u8>> {
    fs::read(path).unwrap().chunks_exact(32).map(<[u8]>::to_vec).collect()
}

#[test]
fn the_memory_of_the_daemon_holds_no_key_of_a_locked_organization_and_no_pin() {
    const PIN: &str = "correct horse battery staple";
    let mut vault = Vault::without_state();
    vault.behind_shim(&[]);
    vault.init();
    vault.write_pin(PIN);
    vault.change_pin_elsewhere(PIN);
    vault.mount(&[]);
    let other = vault.org("other");
    fs::write(other.join("f"), "value").unwrap();
    let record = vault.directory().join("record");
    vault.shim(&[&format!("record={}", record.display())]);
    let org = vault.org("acme");
    for n in 0..30 {
        fs::write(org.join(n.to_string()), vec![n as u8; 100 + n * 3000]).unwrap();
    }
    run("sync", &[&"-f", &org]);
    vault.remount();
    let pid = vault.daemon().unwrap();
    for n in 0..30 {
        assert_eq!(fs::read(org.join(n.to_string())).unwrap().len(), 100 + n * 3000);
    }
    // The vault's own key was opened for the mount and stays.
    let opened = recorded(&record);
    assert!(opened.len() > 30);
    assert!(found(pid, &opened).len() >= 30, "keys in use are in memory, and are found");
    assert_eq!(found(pid, &HashSet::from([PIN.as_bytes().to_vec()])), Vec::<Vec<u8>>::new(), "the PIN");
    vault.command(&["org", "lock", "acme"]).good();
    vault.command(&["org", "lock", "other"]).good();
    // Wraps that were under way at that moment may take a little longer.
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let left = found(pid, &recorded(&record));
        // The vault's own key, in as many copies as it has.
        let distinct: HashSet<_> = left.iter().collect();
        if distinct.len() <= 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{} keys, {} copies", distinct.len(), left.len());
        std::thread::sleep(Duration::from_millis(200));
    }
}
