//! Who owns a state directory: one process, for as long as it lives.

use super::{Result, StoreError};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// An exclusive `flock(2)` on `STATE/lock`, which also holds the owner's pid as text.
///
/// The kernel releases it when the value is dropped or the process dies. A forked child shares it, so a
/// daemon takes it after its last fork.
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// [`StoreError::Locked`] with the owner's pid when there is an owner.
    pub fn take(state: &Path) -> Result<Self> {
        let path = state.join("lock");
        let failed = |error| StoreError::io("lock", &path, error);
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        // `holder` takes the lock for an instant to see whether it is free; that is no owner.
        if file.try_lock().is_err() {
            std::thread::sleep(Duration::from_millis(10));
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => StoreError::Locked { pid: written_pid(&file) },
                TryLockError::Error(error) => failed(error),
            })?;
        }
        // Of fixed width and in place, so that a full disk can still be mounted.
        file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0).map_err(failed)?;
        Ok(StateLock { _file: file })
    }

    /// The pid of the process that owns `state`, if one does.
    pub fn holder(state: &Path) -> Option<u32> {
        let file = File::open(state.join("lock")).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => written_pid(&file),
            _ => None,
        }
    }
}

fn written_pid(file: &File) -> Option<u32> {
    let mut text = [0; 11];
    file.read_exact_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_refused_and_told_the_first() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(StateLock::holder(state.path()), None);
        let lock = StateLock::take(state.path()).unwrap();
        let me = Some(std::process::id());
        assert_eq!(StateLock::holder(state.path()), me);
        assert!(matches!(StateLock::take(state.path()), Err(StoreError::Locked { pid }) if pid == me));
        drop(lock);
        assert_eq!(StateLock::holder(state.path()), None);
        StateLock::take(state.path()).unwrap();
    }
}
