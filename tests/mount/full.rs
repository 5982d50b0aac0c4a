//! A full disk: a small file system of its own under the state directory. Needs root.

use crate::kernel::errno;
use crate::vault::{Vault, run, try_run};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const VALUE: usize = 1 << 20;

/// A vault on a disk of 96 MiB.
struct Small(Vault);

impl Small {
    fn new() -> Small {
        let vault = Vault::without_state();
        fs::create_dir(vault.state()).unwrap();
        run("mount", &[&"-t", &"tmpfs", &"-o", &"size=96M", &"small", &vault.state()]);
        let small = Small(vault);
        small.init();
        small.mount(&[]);
        small
    }
}

impl Deref for Small {
    type Target = Vault;

    fn deref(&self) -> &Vault {
        &self.0
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if self.daemon().is_some() {
            self.kill();
        }
        try_run("umount", &[&"-l", &self.state()]);
    }
}

fn write(path: &Path, fill: u8) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(&vec![fill; VALUE])?;
    file.sync_all()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[test]
fn a_full_vault_keeps_values_whole_deletes_and_has_room_after_a_purge() {
    let vault = Small::new();
    let a = vault.org("a");
    let mut held = Vec::new();
    let refused = (0u8..).find_map(|n| {
        let path = a.join(n.to_string());
        let written = write(&path, n);
        if written.is_ok() {
            held.push((path, n));
        }
        written.err()
    });
    assert_eq!(refused.unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert!(held.len() > 30, "{}", held.len());
    let over = File::options().write(true).open(&held[0].0).unwrap();
    let refused = over.write_all_at(&vec![0xff; VALUE], 0).and_then(|()| over.sync_all());
    assert_eq!(errno(refused), libc::ENOSPC);
    drop(over);
    let all_whole = |held: &[(std::path::PathBuf, u8)]| {
        for (path, n) in held {
            assert!(fs::read(path).unwrap() == vec![*n; VALUE], "{}", path.display());
        }
    };
    all_whole(&held);
    for (path, _) in held.drain(..20) {
        fs::remove_file(path).unwrap();
    }
    sync(&a).unwrap();
    for grave in vault.tombstones("a") {
        fs::remove_file(grave).unwrap();
    }
    sync(&a).unwrap();
    // What was written when it was full is not there; what follows finds room.
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = write(&a.join("later"), 7) {
        assert!(error.raw_os_error() == Some(libc::ENOSPC) && Instant::now() < deadline, "{error}");
        let _ = fs::remove_file(a.join("later"));
    }
    vault.remount();
    all_whole(&held);
    vault.is_sound().unwrap();
}

#[test]
fn deletes_and_purges_reach_a_disk_that_others_have_filled() {
    let vault = Small::new();
    let a = vault.org("a");
    for n in 0..20 {
        write(&a.join(n.to_string()), n).unwrap();
    }
    let filler = vault.state().join("of somebody else");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    // What is known of the free space is not asked for anew at each write.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(errno(write(&a.join("more"), 1)), libc::ENOSPC);
    assert_eq!(errno(fs::create_dir(a.join("folder"))), libc::ENOSPC);
    for n in 0..10 {
        fs::remove_file(a.join(n.to_string())).unwrap();
    }
    sync(&a).unwrap();
    for grave in vault.tombstones("a") {
        fs::remove_file(grave).unwrap();
    }
    sync(&a).unwrap();
    vault.kill();
    vault.mount(&[]);
    assert!(!a.join("0").exists() && fs::read(a.join("15")).unwrap() == [15; VALUE]);
    assert_eq!(vault.tombstones("a").len(), 0);
    fs::remove_file(filler).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    write(&a.join("more"), 1).unwrap();
    vault.is_sound().unwrap();
}

/// What `df` shows as available, in MiB.
fn available(vault: &Vault) -> i64 {
    let shown = run("df", &[&"--output=avail", &"-BM", &vault.point()]);
    shown.lines().nth(1).unwrap().trim().trim_end_matches('M').parse().unwrap()
}

#[test]
fn tombstones_and_earlier_versions_count_as_free() {
    let vault = Small::new();
    let a = vault.org("a");
    let empty = available(&vault);
    for n in 0..16 {
        write(&a.join(n.to_string()), n).unwrap();
    }
    assert!((available(&vault) - empty + 16).abs() <= 2, "{empty} {}", available(&vault));
    for n in 0..8 {
        fs::remove_file(a.join(n.to_string())).unwrap();
    }
    for n in 8..16 {
        fs::write(a.join(n.to_string()), vec![0xee; VALUE]).unwrap();
    }
    sync(&a).unwrap();
    let held = available(&vault);
    assert!((held - empty + 8).abs() <= 2, "{empty} {held}");
    vault.umount();
    vault.mount(&[]);
    assert!((available(&vault) - held).abs() <= 2, "{held} {}", available(&vault));
    for grave in vault.tombstones("a") {
        fs::remove_file(grave).unwrap();
    }
    sync(&a).unwrap();
    assert!((available(&vault) - held).abs() <= 2, "{held} {}", available(&vault));
}

#[test]
fn a_disk_that_runs_short_gives_up_the_oldest_tombstones_and_versions() {
    let vault = Small::new();
    let a = vault.org("a");
    for round in 0..2 {
        for n in 0..8 {
            fs::write(a.join(format!("kept-{n}")), vec![round * 8 + n; VALUE]).unwrap();
        }
    }
    for n in 0..16 {
        write(&a.join(format!("deleted-{n}")), n).unwrap();
        fs::remove_file(a.join(format!("deleted-{n}"))).unwrap();
    }
    let mut new = 0..;
    let mut fit = || new.by_ref().take_while(|n| write(&a.join(format!("new-{n}")), *n).is_ok()).count();
    // 24 MiB of 96 are held, and 32 are never given out.
    let at_first = fit();
    assert!(at_first < 40, "{at_first}");
    assert_eq!(vault.tombstones("a").len(), 16, "what is younger than an hour stays");
    vault.umount();
    vault.mount(&["-o", "tombstone_min_age=1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    let more = fit();
    assert!(more >= 20, "{at_first}, then {more}");
    assert_eq!(vault.tombstones("a").len(), 0);
    for n in 0..8 {
        assert!(fs::read(a.join(format!("kept-{n}"))).unwrap() == vec![8 + n; VALUE]);
        assert_eq!(crate::kernel::vault_says(a.join(format!("kept-{n}")), "versions"), "1");
    }
    let audit = fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap_or_default();
    let events = |name: &str| audit.matches(name).count();
    assert_eq!((events("object.purged"), events("version.pruned")), (16, 8), "each with an audit event");
    vault.is_sound().unwrap();
}
