//! Becoming a daemon: one fork before any thread or PKCS#11 module exists, and a pipe to report through.
//!
//! A fork and not a new program, so that `fd:N` and `prompt` still reach the PIN. The child keeps the
//! terminal until the vault is open ([`super::process::leave_terminal`]); until then the parent waits.

use super::report::{Report, hear};
use crate::api::Problem;
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, RawFd};

pub enum Side {
    /// The daemon-to-be.
    Daemon(Report),
    Command(Waiting),
}

/// The command's view of the daemon that it started.
pub struct Waiting {
    pipe: PipeReader,
    pub pid: u32,
}

impl Waiting {
    /// Returns when the mount answers, or with the reason why it does not.
    pub fn for_mount(self) -> Result<u32, Problem> {
        hear(self.pipe).map(|()| self.pid)
    }
}

/// Forks. The daemon keeps of the caller's descriptors the standard three and `pin`, the N of `fd:N`.
pub fn detach(pin: Option<RawFd>) -> io::Result<Side> {
    let (read, write) = io::pipe()?;
    // SAFETY: the process has one thread yet, so the child may go on as any process does.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            close_all_but([0, 1, 2, write.as_raw_fd(), pin.unwrap_or(0)])?;
            Ok(Side::Daemon(Report::Command(write)))
        }
        pid => Ok(Side::Command(Waiting { pipe: read, pid: pid as u32 })),
    }
}

/// Whoever started the command may wait for the end of a descriptor, as `$(…)` does: hold none of them.
fn close_all_but(kept: [RawFd; 5]) -> io::Result<()> {
    let open = std::fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let open: Vec<RawFd> = open.filter(|fd| !kept.contains(fd)).collect();
    for fd in open {
        // SAFETY: nothing in this just forked process owns a descriptor but the ones kept. (The listing's
        // own is closed by now; closing it again fails with EBADF.)
        unsafe { libc::close(fd) };
    }
    Ok(())
}
