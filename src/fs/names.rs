//! What a name leads to, or is made to lead to: the operations whose reply the kernel remembers under that name.

use crate::fs::lifetime::Entry;
use crate::fs::translate::PERMISSIONS;
use crate::vault::{Caller, Error, Ino, Make, Result, Vault};

/// `.` and `..` are asked for to find an inode by its number alone, for NFS and open_by_handle_at(2). So nothing is found
/// that has no name any more: the kernel itself knows what is still open.
pub fn look_up(vault: &Vault, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry> {
    let attr = match name {
        b"." => {
            vault.attr(caller, parent).and_then(|attr| if attr.links > 0 { Ok(attr) } else { Err(Error::NotFound) })
        }
        b".." => vault.parent(caller, parent).and_then(|above| vault.attr(caller, above)),
        _ => vault.lookup(caller, parent, name),
    };
    match attr {
        Err(error) if error.errno() == libc::ENOENT => Ok(Entry::absent(parent, name)),
        outcome => outcome.map(|attr| {
            vault.told(attr.ino);
            Entry::new(parent, name, &attr)
        }),
    }
}

pub fn make(vault: &Vault, caller: &Caller, parent: Ino, name: &[u8], mode: u32, what: Make) -> Result<Entry> {
    vault.make(caller, parent, name, mode & PERMISSIONS, what).map(|attr| Entry::new(parent, name, &attr))
}

pub fn link(vault: &Vault, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
    vault.link(caller, ino, parent, name).map(|attr| Entry::new(parent, name, &attr))
}
