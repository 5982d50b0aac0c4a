//! Telling the kernel what changed behind its back: by a command, the API or the reaper.
//!
//! From a thread of its own: an invalidation may wait in the kernel for a lock of a page or a directory that is held by a
//! request which only a FUSE loop can answer.

use crate::vault::Changed;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::Receiver;
use std::thread;

/// Forwards until every sender is gone.
pub fn forward(changes: Receiver<Changed>, notifier: Notifier) -> io::Result<()> {
    let forward = move || {
        for change in changes {
            // It fails where the mount has ended, and with it all that the kernel remembered.
            let _ = invalidate(&notifier, change);
        }
    };
    thread::Builder::new().name("vaultfs-notify".to_owned()).spawn(forward).map(drop)
}

/// Has the kernel write to the vault what it holds of a file. Returns when that is done; what cannot be written stays.
pub fn write_back(notifier: &Notifier, ino: INodeNo) {
    let _ = whole(notifier, ino);
}

fn invalidate(notifier: &Notifier, change: Changed) -> io::Result<()> {
    match change {
        Changed::Entry { parent, name } => {
            notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(&name))?;
            // For a name that the kernel did not know, that did nothing; yet a remembered listing lacks it now.
            whole(notifier, INodeNo(parent.0))
        }
        Changed::Inode { ino, data: true } => whole(notifier, INodeNo(ino.0)),
        Changed::Told(waiting) => {
            // Whoever waited has given up if this fails.
            let _ = waiting.send(());
            Ok(())
        }
        Changed::Inode { ino, data: false } => attributes_of(notifier, INodeNo(ino.0)),
    }
}

/// Makes the kernel ask for attributes again. That waits for nothing, so that a request may do it before its own reply.
pub fn attributes(notifier: &Notifier, ino: INodeNo) {
    let _ = attributes_of(notifier, ino);
}

fn attributes_of(notifier: &Notifier, ino: INodeNo) -> io::Result<()> {
    // A negative offset: no pages.
    notifier.inval_inode(ino, -1, 0)
}

/// Attributes, and all pages: of a file its data, of a directory its listing, of a symlink its target.
fn whole(notifier: &Notifier, ino: INodeNo) -> io::Result<()> {
    notifier.inval_inode(ino, 0, 0)
}
