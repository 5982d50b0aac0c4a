//! `vaultfs umount`: unmounts, and returns when the daemon has stored everything and is gone.

use super::Global;
use super::exit::Failure;
use super::output::print_json;
use crate::api::{Code, user};
use crate::daemon::mounts::{self, Mount};
use crate::store::StateLock;
use clap::Args;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// After this long the person is told what the command waits for.
const SILENCE: Duration = Duration::from_secs(3);
/// A daemon that has given the state directory back has only to exit.
const LAST_STEPS: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

#[derive(Args)]
pub struct Umount {
    mountpoint: PathBuf,
}

impl Umount {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        // Not by canonicalize: a mount whose daemon was killed must be unmountable.
        let absolute = std::path::absolute(&self.mountpoint).map_err(|e| Failure::io(self.mountpoint.display(), e))?;
        let found = mounts::vault_on(&absolute)
            .or_else(|| mounts::vault_on(&absolute.parent()?.canonicalize().ok()?.join(absolute.file_name()?)));
        let mount = found.ok_or_else(|| {
            Failure::new(Code::NotFound, format!("{}: no vault is mounted here", self.mountpoint.display()))
        })?;
        let daemon = StateLock::holder(&mount.source);
        unmount(&mount.point)?;
        if let Some(pid) = daemon {
            wait_for(pid, &mount);
        }
        if global.json { print_json(&serde_json::json!({ "unmounted": mount.point })) } else { Ok(()) }
    }
}

fn unmount(point: &Path) -> Result<(), Failure> {
    if user().0 != 0 {
        return by_fusermount(point);
    }
    let path = CString::new(point.as_os_str().as_bytes()).expect("a mount point holds no NUL");
    // SAFETY: umount2 reads the path, which outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EBUSY) => Err(busy(point)),
        _ => Err(Failure::io(point.display(), error)),
    }
}

/// Only root may call umount(2); for others the set-uid program does, on mounts of their own.
fn by_fusermount(point: &Path) -> Result<(), Failure> {
    let asked = Command::new("fusermount3").arg("-u").arg(point).output();
    let asked = asked.map_err(|e| Failure::io("fusermount3, of the package fuse3, which unmounts for you", e))?;
    let said = String::from_utf8_lossy(&asked.stderr);
    match said.trim() {
        _ if asked.status.success() => Ok(()),
        said if said.contains("busy") => Err(busy(point)),
        said => Err(Failure::new(Code::Failure, format!("{}: {said}", point.display()))),
    }
}

fn busy(point: &Path) -> Failure {
    let point = point.display();
    Failure::new(Code::Failure, format!("{point}: in use, and still mounted; `fuser -vm {point}` shows by whom"))
}

/// Its lock goes when the vault is closed, everything stored; then the process.
fn wait_for(pid: u32, mount: &Mount) {
    let (start, mut told) = (Instant::now(), false);
    while StateLock::holder(&mount.source) == Some(pid) {
        if !told && start.elapsed() > SILENCE {
            told = true;
            match mounts::elsewhere(&mount.device) {
                Some(other) => eprintln!(
                    "vaultfs: unmounted here, but not in the mount namespace of process {other}; waiting until it is"
                ),
                None => eprintln!("vaultfs: unmounted; waiting for process {pid} to store what is left"),
            }
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let released = Instant::now();
    while runs(pid) && released.elapsed() < LAST_STEPS {
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Whether a process is there and not only waits for its parent to take notice. What it holds, such as the lock, is free
/// when the last of its threads has ended; the first one may have ended long before.
fn runs(pid: u32) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state stands after the command's name, which may hold anything, in parentheses.
        stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with(['Z', 'X']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_does_not_run() {
        assert!(runs(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while runs(child.id()) && Instant::now() < deadline {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        assert!(!runs(child.id()), "a zombie counts as gone");
        child.wait().unwrap();
    }
}
