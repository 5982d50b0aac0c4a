//! Room that a full disk can give back: a file that is only there to be removed.
//!
//! What admits writes leaves room for deletes, but others may use the disk too. Once they have filled it, the records
//! of a delete go where this file was. Nothing is lost with it, so it is never synced.

use super::{Disk, Op, space};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The records of some thousand deletes, in bytes.
const SIZE: u64 = 8 << 20;

/// `STATE/reserve`.
pub struct Reserve {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    held: AtomicBool,
}

impl Reserve {
    pub fn open(state: &Path, disk: Arc<dyn Disk>) -> Reserve {
        let path = state.join("reserve");
        let held = fs::metadata(&path).is_ok_and(|file| file.blocks() * 512 >= SIZE);
        Reserve { path, disk, held: AtomicBool::new(held) }
    }

    /// Takes the room again, if there is as much and `leaving` bytes besides.
    pub fn fill(&self, leaving: u64) {
        if self.held.load(Ordering::Relaxed) {
            return;
        }
        let state = self.path.parent().expect("it has a name");
        if space(state).is_ok_and(|space| space.available >= SIZE + leaving) {
            match self.take() {
                Ok(()) => self.held.store(true, Ordering::Relaxed),
                // A part of it is in the way. Next time, then.
                Err(_) => drop(fs::remove_file(&self.path)),
            }
        }
    }

    fn take(&self) -> io::Result<()> {
        self.disk.before(&Op::Create { path: &self.path })?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        // SAFETY: an open descriptor and integers.
        match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, SIZE as i64) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the room to whoever writes next; whether there was any.
    pub fn release(&self) -> bool {
        let held = self.held.swap(false, Ordering::Relaxed);
        held && self.disk.before(&Op::Remove { path: &self.path }).and_then(|()| fs::remove_file(&self.path)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealDisk;

    #[test]
    fn room_is_taken_once_given_once_and_known_again() {
        let state = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(state.path(), Arc::new(RealDisk));
        assert!(!reserve.release());
        reserve.fill(0);
        assert!(fs::metadata(state.path().join("reserve")).unwrap().blocks() * 512 >= SIZE);
        let again = Reserve::open(state.path(), Arc::new(RealDisk));
        assert!(again.release() && !again.release());
        again.fill(u64::MAX - SIZE);
        assert!(!state.path().join("reserve").exists(), "there is not as much");
    }
}
