//! What every vault needs of its machine: FUSE, the mount helper, memory that can be locked.

use super::Check;
use crate::api::user;
use std::fs::OpenOptions;
use std::path::Path;

/// Locked memory below which the key cache of a process without privileges gets small.
const LOCKED_MEMORY: u64 = 8 << 20;
const HELPER: &str = "/sbin/mount.fuse.vaultfs";

pub fn checks() -> Vec<Check> {
    let root = user().0 == 0;
    [Some(device()), fusermount(root), helper(), Some(locked_memory(root)), swap()].into_iter().flatten().collect()
}

fn device() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok("/dev/fuse can be opened"),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Check::problem("/dev/fuse may not be opened", "run as root, or ask for access to /dev/fuse")
        }
        Err(e) => Check::problem(
            format!("/dev/fuse cannot be opened: {e}"),
            "`modprobe fuse`; in a container, run it with --device /dev/fuse and CAP_SYS_ADMIN",
        ),
    }
}

fn fusermount(root: bool) -> Option<Check> {
    if root {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    Some(match std::env::split_paths(&path).any(|directory| directory.join("fusermount3").exists()) {
        true => Check::ok("fusermount3 is installed"),
        false => Check::problem("fusermount3 is missing, without which only root mounts", "`apt-get install fuse3`"),
    })
}

fn helper() -> Option<Check> {
    let this = std::env::current_exe().ok()?;
    let link = || format!("`ln -sf {} {HELPER}`", this.display());
    Some(match Path::new(HELPER).canonicalize() {
        Ok(target) if Some(&target) == this.canonicalize().ok().as_ref() => {
            Check::ok(format!("{HELPER} leads here, so mount(8) and fstab know vaults"))
        }
        Ok(target) => Check::warning(format!("{HELPER} leads to {}, not to this program", target.display()), link()),
        Err(_) => Check::warning(format!("{HELPER} is missing: mount(8) and fstab do not know vaults"), link()),
    })
}

fn locked_memory(root: bool) -> Check {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills in the structure that it is given.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    match limit.rlim_cur {
        _ if root => Check::ok("memory for keys can be locked"),
        libc::RLIM_INFINITY => Check::ok("memory for keys can be locked"),
        enough if known && enough >= LOCKED_MEMORY => {
            Check::ok(format!("{} KiB of memory can be locked", enough >> 10))
        }
        few => Check::warning(
            format!("only {} KiB of memory can be locked, and keys are kept nowhere else", few >> 10),
            "LimitMEMLOCK=infinity in the unit, or `ulimit -l` and /etc/security/limits.conf",
        ),
    }
}

/// Keys never reach swap space; what applications hold of a value may.
fn swap() -> Option<Check> {
    let areas = std::fs::read_to_string("/proc/swaps").ok()?;
    Some(match areas.lines().count() {
        0 | 1 => Check::ok("there is no swap space"),
        _ => Check::warning(
            "there is swap space: keys never get there, values in the memory of applications may",
            "encrypt it, or `swapoff -a`",
        ),
    })
}
