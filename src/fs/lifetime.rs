//! How long the kernel may believe what it was told.
//!
//! The store is exclusive, so that what the kernel knows is true until the kernel itself changes it or the vault tells of
//! a change (see `invalidation`): names, absent names and attributes live long. These are the exceptions, each because
//! something changes that neither of the two announces:
//!
//! * Tombstones come and go with every `rm`, and purges with time. What stands in a graveyard, the graveyards themselves,
//!   and any dotted name at the root (no organization has one) is asked for again each time.
//! * Versions come with every save and go again, and who may read them changes with the object's mode: the same.
//! * `st_blocks` of a file settles in the background, after its last write: until a second or so later its attributes
//!   live for a second. The time of change tells, as no caller can set it; an empty file has nothing to settle.
//! * A write by another than the owner clears the set-user-ID and set-group-ID bits in the vault; the kernel, told to
//!   leave that to us (FUSE_HANDLE_KILLPRIV), would still execute the file with the bits that it remembers.
//!
//! Writes, mappings, truncation, links, renames and changes in directories need no rule: there the kernel drops what it
//! knew by itself.

use crate::fs::translate::{file_attr, nothing};
use crate::vault::{Attr, Ino};
use fuser::FileAttr;
use std::time::Duration;

pub const LONG: Duration = Duration::from_secs(3600);
const UNSETTLED: Duration = Duration::from_secs(1);
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// What a name stands for, and for how long.
pub struct Entry {
    pub attr: FileAttr,
    pub attr_lifetime: Duration,
    pub name_lifetime: Duration,
}

impl Entry {
    pub fn new(parent: Ino, name: &[u8], attr: &Attr) -> Entry {
        let name_lifetime = name_lifetime(parent, name);
        Entry { attr: file_attr(attr), attr_lifetime: attr_lifetime(attr).min(name_lifetime), name_lifetime }
    }

    /// A name that stands for nothing: inode 0, which the kernel remembers as such.
    pub fn absent(parent: Ino, name: &[u8]) -> Entry {
        Entry { attr: nothing(), attr_lifetime: Duration::ZERO, name_lifetime: name_lifetime(parent, name) }
    }
}

/// Whether entries come and go in this directory without the kernel being told.
pub fn changes_untold(directory: Ino) -> bool {
    directory.is_graveyard() || directory.is_in_versions()
}

fn name_lifetime(parent: Ino, name: &[u8]) -> Duration {
    if changes_untold(parent) || parent == Ino::ROOT && name.starts_with(b".") { Duration::ZERO } else { LONG }
}

pub fn attr_lifetime(attr: &Attr) -> Duration {
    let regular = attr.mode & libc::S_IFMT == libc::S_IFREG;
    let set_id = attr.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
    let stores = attr.size > 0 || attr.stored > 0;
    if changes_untold(attr.ino) || regular && set_id {
        Duration::ZERO
    } else if regular && stores && attr.ctime.age() < SETTLES_WITHIN {
        UNSETTLED
    } else {
        LONG
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::{OrgNo, Time};

    fn attr(mode: u32, size: u64, changed: Time) -> Attr {
        let ino = Ino::new(OrgNo(1), Ino::FIRST_LOCAL);
        let long_ago = Time { seconds: 1, nanos: 0 };
        Attr {
            ino,
            mode,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            stored: size,
            atime: long_ago,
            mtime: long_ago,
            ctime: changed,
            born: long_ago,
        }
    }

    #[test]
    fn a_written_file_is_asked_for_again_until_its_blocks_have_settled() {
        let settled = Time { seconds: 1, nanos: 0 };
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG, 9, Time::now())), UNSETTLED);
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG, 9, Time::now() + LONG)), UNSETTLED);
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG, 9, settled)), LONG);
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG, 0, Time::now())), LONG);
        assert_eq!(attr_lifetime(&attr(libc::S_IFDIR, 9, Time::now())), LONG);
    }

    #[test]
    fn set_id_files_are_never_remembered() {
        let settled = Time { seconds: 1, nanos: 0 };
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG | 0o4755, 0, settled)), Duration::ZERO);
        assert_eq!(attr_lifetime(&attr(libc::S_IFREG | 0o2755, 0, settled)), Duration::ZERO);
        assert_eq!(attr_lifetime(&attr(libc::S_IFDIR | 0o2755, 0, settled)), LONG);
    }

    #[test]
    fn graveyards_and_what_lies_in_them_are_never_remembered() {
        let graveyard = Attr { ino: Ino::GRAVEYARD, ..attr(libc::S_IFDIR, 0, Time::default()) };
        assert_eq!(attr_lifetime(&graveyard), Duration::ZERO);
        assert_eq!(name_lifetime(Ino::ROOT, b".tombstones"), Duration::ZERO);
        assert_eq!(name_lifetime(Ino::GRAVEYARD, b"acme"), Duration::ZERO);
        assert_eq!(name_lifetime(Ino::graveyard_of(OrgNo(1)), b"f~20261123T164100Z~1f3a"), Duration::ZERO);
        assert_eq!(name_lifetime(Ino::ROOT, b"acme"), LONG);
        assert_eq!(name_lifetime(Ino::top_of(OrgNo(1)), b".profile"), LONG);
    }

    #[test]
    fn attributes_live_no_longer_than_the_name_they_came_with() {
        let tombstone = attr(libc::S_IFREG, 9, Time::default());
        let entry = Entry::new(Ino::graveyard_of(OrgNo(1)), b"f~20261123T164100Z~1f3a", &tombstone);
        assert_eq!(entry.attr_lifetime, Duration::ZERO);
    }
}
