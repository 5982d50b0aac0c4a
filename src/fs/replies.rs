//! How each kind of FUSE reply carries what the vault returned.

use crate::fs::lifetime::{Entry, attr_lifetime};
use crate::fs::translate::file_attr;
use crate::vault::{Attr, FsSpace, Handle};
use fuser::{
    Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

/// Inode numbers are never used again, so that (inode, generation) names a file for ever, as NFS wants it.
pub const GENERATION: Generation = Generation(0);

/// Pages stay when a file is opened again: what others change is invalidated exactly.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE;

/// A reply that can carry a `T`, and be sent from any thread.
pub trait Reply<T>: Send + 'static {
    fn give(self, value: T);
    fn refuse(self, errno: Errno);
}

/// The value of an attribute, or the list of their names, and how many bytes the caller has room for.
pub struct Attribute {
    pub value: Vec<u8>,
    pub room: u32,
}

macro_rules! replies {
    ($($reply:ident($value:ty) |$self:ident, $given:pat_param| $send:expr;)*) => {$(
        impl Reply<$value> for $reply {
            fn give($self, $given: $value) {
                $send
            }

            fn refuse(self, errno: Errno) {
                self.error(errno)
            }
        }
    )*};
}

replies! {
    ReplyEmpty(()) |self, ()| self.ok();
    ReplyEntry(Entry) |self, entry|
        self.entry_with_ttls(&entry.attr_lifetime, &entry.name_lifetime, &entry.attr, GENERATION);
    ReplyAttr(Attr) |self, attr| self.attr(&attr_lifetime(&attr), &file_attr(&attr));
    ReplyData(Vec<u8>) |self, data| self.data(&data);
    ReplyOpen(Handle) |self, handle| self.opened(FileHandle(handle.0), OPENED);
    ReplyCreate((Attr, Handle)) |self, (attr, handle)|
        self.created(&attr_lifetime(&attr), &file_attr(&attr), GENERATION, FileHandle(handle.0), OPENED);
    ReplyWrite(u32) |self, written| self.written(written);
    ReplyLseek(i64) |self, offset| self.offset(offset);
    ReplyDirectory(()) |self, ()| self.ok();
    ReplyDirectoryPlus(()) |self, ()| self.ok();
    ReplyStatfs(FsSpace) |self, space| self.statfs(
        space.blocks, space.free, space.available, space.files, space.files_free, space.block, 255, space.block,
    );
    // getxattr(2): with no room the size is asked for; with too little the call fails.
    ReplyXattr(Attribute) |self, Attribute { value, room }| match u32::try_from(value.len()) {
        Ok(size) if room == 0 => self.size(size),
        Ok(size) if size <= room => self.data(&value),
        _ => self.error(Errno::ERANGE),
    };
}
