//! `readdir` and `readdirplus`: filling a buffer of the kernel's size from any offset.
//!
//! The offset of an entry says where to go on after it. `.` and `..` have 1 and 2; the vault's cookies, all of them above 2
//! and below 2⁶³ (`off_t`), follow as they are.

use crate::fs::lifetime::Entry;
use crate::fs::replies::GENERATION;
use crate::fs::translate::{file_type, nothing};
use crate::vault::{Attr, Caller, DirEntry, Error, Ino, Result, Vault};
use fuser::{FileAttr, FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Entries read before their attributes are: about a page of the kernel's.
const BATCH: usize = 32;

const DOTS: [(u64, &str); 2] = [(1, "."), (2, "..")];

/// The dots that still follow `offset`.
fn dots_after(offset: u64) -> &'static [(u64, &'static str)] {
    &DOTS[usize::try_from(offset).unwrap_or(DOTS.len()).min(DOTS.len())..]
}

/// The vault's cookie at `offset`: 0, its beginning, after the dots.
fn cookie_at(offset: u64) -> u64 {
    if offset <= DOTS.len() as u64 { 0 } else { offset }
}

/// Adds what follows `offset`, and says how many entries; none at the end. What already stands in the reply is given even if
/// the next entry fails: the failure then meets the next request, which begins with that entry.
pub fn names(vault: &Vault, caller: &Caller, directory: Ino, offset: u64, reply: &mut ReplyDirectory) -> Result<usize> {
    let mut added = 0;
    let mut add = |reply: &mut ReplyDirectory, ino: Ino, cookie: u64, kind: FileType, name: &OsStr| {
        let full = reply.add(INodeNo(ino.0), cookie, kind, name);
        added += usize::from(!full);
        full
    };
    for &(cookie, dot) in dots_after(offset) {
        let ino = if dot == "." { directory } else { vault.parent(caller, directory)? };
        if add(reply, ino, cookie, FileType::Directory, OsStr::new(dot)) {
            return Ok(added);
        }
    }
    let outcome = vault.read_directory(caller, directory, cookie_at(offset), &mut |entry| {
        !add(reply, entry.ino, entry.cookie, file_type(entry.kind), OsStr::from_bytes(&entry.name))
    });
    outcome.map(|()| added).or_else(|error| if added > 0 { Ok(added) } else { Err(error) })
}

/// As [`names`], with the attributes of each entry.
pub fn entries(
    vault: &Vault,
    caller: &Caller,
    directory: Ino,
    offset: u64,
    reply: &mut ReplyDirectoryPlus,
) -> Result<usize> {
    let mut added = 0;
    let outcome = add_entries(vault, caller, directory, offset, reply, &mut added);
    outcome.map(|()| added).or_else(|error| if added > 0 { Ok(added) } else { Err(error) })
}

fn add_entries(
    vault: &Vault,
    caller: &Caller,
    directory: Ino,
    offset: u64,
    reply: &mut ReplyDirectoryPlus,
    added: &mut usize,
) -> Result<()> {
    for &(cookie, dot) in dots_after(offset) {
        // The kernel takes only number and type of these two.
        let ino = if dot == "." { directory } else { vault.parent(caller, directory)? };
        let attr = unknown(ino, libc::S_IFDIR);
        if reply.add(attr.ino, cookie, dot, &Duration::ZERO, &attr, GENERATION) {
            return Ok(());
        }
        *added += 1;
    }
    let mut cookie = cookie_at(offset);
    loop {
        // Attributes are asked for outside of the vault's own loop, where it may hold the directory locked.
        let mut batch: Vec<DirEntry> = Vec::with_capacity(BATCH);
        vault.read_directory(caller, directory, cookie, &mut |entry| {
            batch.push(entry);
            batch.len() < BATCH
        })?;
        let Some(last) = batch.last() else { return Ok(()) };
        cookie = last.cookie;
        for entry in batch {
            let Some((attr, lifetime)) = described(vault, caller, directory, &entry)? else { continue };
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(attr.ino, entry.cookie, name, &lifetime, &attr, GENERATION) {
                return Ok(());
            }
            vault.told(entry.ino);
            *added += 1;
        }
    }
}

/// The attributes of an entry; nothing for one that has vanished meanwhile. One whose attributes cannot be had is listed
/// all the same, with none that live: `ls` shows the name, and the failure where the file is used.
fn described(vault: &Vault, caller: &Caller, directory: Ino, entry: &DirEntry) -> Result<Option<(FileAttr, Duration)>> {
    let described = |attr: Attr| {
        let entry = Entry::new(directory, &entry.name, &attr);
        (entry.attr, entry.attr_lifetime)
    };
    match vault.attr(caller, entry.ino) {
        Ok(attr) => Ok(Some(described(attr))),
        Err(Error::WouldWait) => Err(Error::WouldWait),
        Err(error) if error.errno() == libc::ENOENT => Ok(None),
        Err(_) => Ok(Some((unknown(entry.ino, entry.kind), Duration::ZERO))),
    }
}

fn unknown(ino: Ino, kind: u32) -> FileAttr {
    FileAttr { ino: INodeNo(ino.0), kind: file_type(kind), ..nothing() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_where_it_stopped() {
        assert_eq!(dots_after(0), &DOTS);
        assert_eq!(dots_after(1), &DOTS[1..]);
        assert!(dots_after(2).is_empty());
        assert!(dots_after((1 << 63) - 1).is_empty());
        assert_eq!([0, 1, 2].map(cookie_at), [0, 0, 0]);
        assert_eq!(cookie_at(3), 3);
        assert_eq!(cookie_at((1 << 63) - 1), (1 << 63) - 1);
    }
}
