//! The kernel's flags, times and attributes as the vault's, and the other way round.

use crate::vault::{Access, Allocate, Attr, Make, RenameMode, Seek, SetXattr, Time};
use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use std::time::{SystemTime, UNIX_EPOCH};

pub const PERMISSIONS: u32 = 0o7777;

/// What an `open` allows. In writeback mode the kernel reads the pages that it completes through whatever handle it has.
pub fn access(flags: i32, writeback: bool) -> Access {
    let mode = flags & libc::O_ACCMODE;
    let write = mode == libc::O_WRONLY || mode == libc::O_RDWR;
    Access {
        read: mode != libc::O_WRONLY || writeback,
        write,
        append: appends(flags, writeback),
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// Whether a write goes to the end of the file. In writeback mode the kernel has itself chosen the place.
pub fn appends(flags: i32, writeback: bool) -> bool {
    flags & libc::O_APPEND != 0 && !writeback
}

/// Whether reading through such an open sets the time of access. (In writeback mode the kernel reads what it completes.)
pub fn sets_atime(flags: i32) -> bool {
    flags & libc::O_NOATIME == 0 && flags & libc::O_ACCMODE != libc::O_WRONLY
}

/// What `mknod` makes; `rdev` as the kernel packs it into 32 bits, which is also how it wants to have it back. No other
/// type comes through the kernel's `may_mknod`, and none at all means a regular file.
pub fn make(mode: u32, rdev: u32) -> Make<'static> {
    match mode & libc::S_IFMT {
        libc::S_IFIFO => Make::Fifo,
        libc::S_IFSOCK => Make::Socket,
        libc::S_IFCHR => Make::CharDevice(rdev),
        libc::S_IFBLK => Make::BlockDevice(rdev),
        _ => Make::File,
    }
}

pub fn allocate(mode: i32) -> Option<Allocate> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Some(Allocate::Extend),
        libc::FALLOC_FL_KEEP_SIZE => Some(Allocate::KeepSize),
        PUNCH => Some(Allocate::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::ZeroRange),
        ZERO_KEEP => Some(Allocate::ZeroRangeKeepSize),
        _ => None,
    }
}

pub fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    const WHITEOUT_NOREPLACE: RenameFlags = RenameFlags::RENAME_WHITEOUT.union(RenameFlags::RENAME_NOREPLACE);
    match flags {
        RenameFlags::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        RenameFlags::RENAME_WHITEOUT => Some(RenameMode::Whiteout),
        WHITEOUT_NOREPLACE => Some(RenameMode::WhiteoutNoReplace),
        none if none.is_empty() => Some(RenameMode::Replace),
        _ => None,
    }
}

pub fn set_xattr(flags: i32) -> Option<SetXattr> {
    const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    match flags {
        0 => Some(SetXattr::Any),
        libc::XATTR_CREATE => Some(SetXattr::Create),
        libc::XATTR_REPLACE => Some(SetXattr::Replace),
        BOTH => Some(SetXattr::CreateAndReplace),
        _ => None,
    }
}

pub fn seek(whence: i32) -> Option<Seek> {
    match whence {
        libc::SEEK_DATA => Some(Seek::Data),
        libc::SEEK_HOLE => Some(Seek::Hole),
        _ => None,
    }
}

pub fn time_or_now(time: TimeOrNow) -> Time {
    match time {
        TimeOrNow::SpecificTime(at) => time_of(at),
        TimeOrNow::Now => Time::now(),
    }
}

/// fuser 0.18 takes the nanoseconds of a time before 1970 as lying before the second instead of after it
/// (`system_time_from_time`); what the kernel said can be had back from that.
pub fn time_of(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { seconds: 0i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

pub fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.stored.div_ceil(512),
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: attr.born.into(),
        kind: file_type(attr.mode),
        perm: (attr.mode & PERMISSIONS) as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of inode 0, which is none.
pub fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn open_flags() {
        let bits = |flags, writeback| {
            let Access { read, write, append, truncate } = access(flags, writeback);
            [read, write, append, truncate]
        };
        assert_eq!(bits(libc::O_RDONLY, false), [true, false, false, false]);
        assert_eq!(bits(libc::O_WRONLY | libc::O_TRUNC, false), [false, true, false, true]);
        assert_eq!(bits(libc::O_RDWR | libc::O_APPEND | libc::O_DIRECT, false), [true, true, true, false]);
        assert_eq!(bits(libc::O_WRONLY | libc::O_APPEND, true), [true, true, false, false]);
    }

    #[test]
    fn fallocate_modes_beyond_those_of_the_vault_are_not_supported() {
        use libc::{FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
        assert_eq!(allocate(0), Some(Allocate::Extend));
        assert_eq!(allocate(FALLOC_FL_KEEP_SIZE), Some(Allocate::KeepSize));
        assert_eq!(allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE), Some(Allocate::PunchHole));
        assert_eq!(allocate(FALLOC_FL_ZERO_RANGE), Some(Allocate::ZeroRange));
        assert_eq!(allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE), Some(Allocate::ZeroRangeKeepSize));
        assert_eq!(allocate(FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(allocate(FALLOC_FL_COLLAPSE_RANGE), None);
    }

    #[test]
    fn of_flags_only_those_that_exist_are_taken_and_an_exchange_leaves_no_whiteout() {
        assert_eq!(rename_mode(RenameFlags::empty()), Some(RenameMode::Replace));
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE), Some(RenameMode::NoReplace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Some(RenameMode::Exchange));
        assert_eq!(rename_mode(RenameFlags::all()), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Some(RenameMode::Whiteout));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_EXCHANGE), None);
        assert_eq!(set_xattr(libc::XATTR_CREATE), Some(SetXattr::Create));
        assert_eq!(set_xattr(libc::XATTR_CREATE | libc::XATTR_REPLACE), Some(SetXattr::CreateAndReplace));
        assert_eq!(set_xattr(4), None);
    }

    #[test]
    fn times_before_1970_are_what_the_kernel_said() {
        // As fuser makes it of -2 s and 1 ns.
        let fusers = UNIX_EPOCH - Duration::new(2, 1);
        assert_eq!(time_of(fusers), Time { seconds: -2, nanos: 1 });
        assert_eq!(time_of(UNIX_EPOCH - Duration::from_secs(1 << 63)), Time { seconds: i64::MIN, nanos: 0 });
        assert_eq!(time_of(UNIX_EPOCH + Duration::new(1 << 33, 5)), Time { seconds: 1 << 33, nanos: 5 });
    }

    #[test]
    fn mknod_makes_every_type_of_file_but_a_directory() {
        assert!(matches!(make(libc::S_IFCHR | 0o600, 0x103), Make::CharDevice(0x103)));
        assert!(matches!(make(libc::S_IFIFO | 0o600, 0), Make::Fifo));
        assert!(matches!(make(0o600, 0), Make::File));
        assert_eq!(file_type(libc::S_IFSOCK | 0o755), FileType::Socket);
    }
}
