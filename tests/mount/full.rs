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
