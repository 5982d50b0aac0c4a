//! How much room the state directory's file system has.

use super::{Result, StoreError};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// From `statvfs(3)`; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
    /// Free without the blocks that only root may take.
    pub available: u64,
    /// Inodes; 0 where the file system does not count them.
    pub files: u64,
    pub files_free: u64,
}

/// For admission control and for `statfs(2)` on the mount.
pub fn space(state: &Path) -> Result<Space> {
    let failed = |error| StoreError::io("ask for the space of", state, error);
    let path = CString::new(state.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut answer = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated and `answer` is writable; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: statvfs fills the whole structure when it returns 0.
    let answer = unsafe { answer.assume_init() };
    Ok(Space {
        total: answer.f_blocks * answer.f_frsize,
        free: answer.f_bfree * answer.f_frsize,
        available: answer.f_bavail * answer.f_frsize,
        files: answer.f_files,
        files_free: answer.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_in_bytes_and_ordered() {
        let state = tempfile::tempdir().unwrap();
        let space = space(state.path()).unwrap();
        assert!(space.available <= space.free && space.free <= space.total);
        assert!(space.total > 1 << 20);
    }
}
