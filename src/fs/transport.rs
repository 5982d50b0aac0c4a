//! The FUSE requests: fuser's types in, one call of the vault, fuser's reply out.
//!
//! What is not here is right as fuser has it: the kernel never asks for locks and access (they stay with it), takes an
//! unimplemented `poll` for "always ready".

use crate::fs::dispatch::Dispatch;
use crate::fs::lifetime::changes_untold;
use crate::fs::mount::EndOnDrop;
use crate::fs::replies::{Attribute, Reply};
use crate::fs::{invalidation, listing, names, negotiation, translate};
use crate::vault::{Caller, Error, Handle, Ino, Make, Patience, Result, SetAttr, Vault};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// What one `copy_file_range` can say that it copied; callers ask for the rest.
const COPY_AT_MOST: u64 = 1 << 30;

pub struct Transport {
    /// First, so that what its pools still do is done before the end of the mount is told.
    pub dispatch: Dispatch,
    pub writeback: bool,
    /// Reading sets times of access.
    pub atime: bool,
    /// There once the session is.
    pub notifier: Arc<OnceLock<Notifier>>,
    pub _end: EndOnDrop,
}

impl Filesystem for Transport {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiation::negotiate(config, self.writeback)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = Ino(parent.0);
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            names::look_up(vault, caller, parent, name)
        });
    }

    /// Inode numbers are the vault's own and stable, so how often the kernel was told one matters only in `.versions`, where
    /// they are given out as they are asked for.
    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.dispatch.vault.forget(Ino(ino.0), times);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(req, reply, move |vault, caller| vault.attr(caller, Ino(ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & translate::PERMISSIONS),
            uid,
            gid,
            size,
            atime: atime.map(translate::time_or_now),
            mtime: mtime.map(translate::time_or_now),
            ctime: ctime.map(translate::time_of),
            handle: fh.map(|fh| Handle(fh.0)),
            // A chown has a time of change in this mode.
            written: self.writeback && ctime.is_none(),
        };
        self.ask(req, reply, move |vault, caller| vault.set_attr(caller, Ino(ino.0), &set));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let atime = self.atime;
        self.ask(req, reply, move |vault, caller| {
            let target = vault.read_link(caller, Ino(ino.0))?;
            if atime {
                vault.note_access(Ino(ino.0));
            }
            Ok(target)
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.dispatch.answer(caller(req, umask), name.as_bytes(), reply, move |vault, caller, name| {
            let what = translate::make(mode, rdev);
            names::make(vault, caller, Ino(parent.0), name, mode, what)
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.dispatch.answer(caller(req, umask), name.as_bytes(), reply, move |vault, caller, name| {
            names::make(vault, caller, Ino(parent.0), name, mode, Make::Directory)
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.dispatch.answer(caller(req, 0), target.as_os_str().as_bytes(), reply, move |vault, caller, target| {
            names::make(vault, caller, Ino(parent.0), &name, 0o777, Make::Symlink(target))
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = Ino(parent.0);
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            names::link(vault, caller, Ino(ino.0), parent, name)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            vault.unlink(caller, Ino(parent.0), name)
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            vault.remove_directory(caller, Ino(parent.0), name)
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = translate::rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let new_name = new_name.as_bytes().to_vec();
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            vault.rename(caller, (Ino(parent.0), name), (Ino(new_parent.0), &new_name), mode)
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (mode, access) = (mode & translate::PERMISSIONS, translate::access(flags, self.writeback));
        self.dispatch.answer(caller(req, umask), name.as_bytes(), reply, move |vault, caller, name| {
            vault.create(caller, Ino(parent.0), name, mode, access)
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = translate::access(flags.0, self.writeback);
        // What is read from the pages that the kernel has, nobody is told of: to open it for reading alone counts.
        let reads = self.atime && translate::sets_atime(flags.0) && !access.write && !access.truncate;
        let notifier = self.notifier.clone();
        self.ask(req, reply, move |vault, caller| {
            let handle = vault.open_file(caller, Ino(ino.0), access)?;
            if reads
                && vault.note_access(Ino(ino.0))
                && let Some(notifier) = notifier.get()
            {
                invalidation::attributes(notifier, ino);
            }
            Ok(handle)
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let atime = self.atime && translate::sets_atime(flags.0);
        self.ask(req, reply, move |vault, caller| {
            let bytes = vault.read(caller, Handle(fh.0), offset, size as usize)?;
            if atime {
                vault.note_access(Ino(ino.0));
            }
            Ok(bytes)
        });
    }

    fn write(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Now, which may be another way than it was opened (F_SETFL).
        let offset = if translate::appends(flags.0, self.writeback) { None } else { Some(offset) };
        self.dispatch.answer(caller(req, 0), data, reply, move |vault, caller, data| {
            vault.write_at(caller, Handle(fh.0), offset, data).map(|()| data.len() as u32)
        });
    }

    fn flush(&self, req: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.ask(req, reply, move |vault, caller| vault.flush(caller, Handle(fh.0)));
    }

    fn release(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.ask(req, reply, move |vault, _| vault.release(Handle(fh.0)));
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.dispatch.synced(reply, Some(Handle(fh.0)));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.dispatch.synced(reply, None);
    }

    /// The kernel's way to learn that directories need no handle and may be remembered; it never asks again.
    /// The kernel may keep a directory's listing, for it is told of changes; except where it is not. (Without an answer
    /// to OPENDIR it would keep every listing.)
    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let kept = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), if changes_untold(Ino(ino.0)) { FopenFlags::empty() } else { kept });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        let directory = Ino(ino.0);
        let atime = self.atime && offset == 0;
        self.dispatch.fill(caller(req, 0), &[], reply, move |vault, caller, _, reply| {
            listing::names(vault, caller, directory, offset, reply)?;
            if atime {
                vault.note_access(directory);
            }
            Ok(())
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let directory = Ino(ino.0);
        let atime = self.atime && offset == 0;
        self.dispatch.fill(caller(req, 0), &[], reply, move |vault, caller, _, reply| {
            listing::entries(vault, caller, directory, offset, reply)?;
            if atime {
                vault.note_access(directory);
            }
            Ok(())
        });
    }

    fn statfs(&self, req: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.ask(req, reply, |vault, _| vault.space());
    }

    fn setxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        let Some(how) = translate::set_xattr(flags) else { return reply.error(Errno::EINVAL) };
        let name = name.as_bytes().to_vec();
        self.dispatch.answer(caller(req, 0), value, reply, move |vault, caller, value| {
            vault.set_xattr(caller, Ino(ino.0), &name, value, how).map_err(gone)
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            vault.get_xattr(caller, Ino(ino.0), name).map(|value| Attribute { value, room }).map_err(gone)
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, room: u32, reply: ReplyXattr) {
        self.ask(req, reply, move |vault, caller| {
            let names = vault.list_xattr(caller, Ino(ino.0))?;
            Ok(Attribute { value: names.into_iter().flat_map(|name| [name, vec![0]].concat()).collect(), room })
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.dispatch.answer(caller(req, 0), name.as_bytes(), reply, move |vault, caller, name| {
            vault.remove_xattr(caller, Ino(ino.0), name).map_err(gone)
        });
    }

    /// As a local file system says of an ioctl that it does not know.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = translate::allocate(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        self.ask(req, reply, move |vault, caller| vault.allocate(caller, Handle(fh.0), mode, offset, length));
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(whence) = translate::seek(whence) else { return reply.error(Errno::EINVAL) };
        // lseek(2): before the file as beyond its end there is no data.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let seek = move |vault: &Vault, caller: &Caller| {
            vault.seek(caller, Handle(fh.0), offset, whence).map(|found| found as i64)
        };
        if !self.dispatch.vault.has_writers(Ino(ino.0)) {
            return self.ask(req, reply, seek);
        }
        // What is written through a mapping or waits in the kernel (writeback) is data as well, and comes to the vault
        // before the answer: as requests, for which nobody must wait on a FUSE loop or a thread that they may need.
        let notifier = self.notifier.clone();
        self.dispatch.aside(caller(req, 0), reply, move |vault, caller| {
            if let Some(notifier) = notifier.get() {
                invalidation::write_back(notifier, ino);
            }
            seek(vault, caller)
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((Handle(from.0), from_offset), (Handle(to.0), to_offset));
        self.ask(req, reply, move |vault, caller| {
            vault.copy_range(caller, from, to, length.min(COPY_AT_MOST)).map(|copied| copied as u32)
        });
    }
}

impl Transport {
    /// For an operation on an inode or a handle that borrows nothing from its request.
    fn ask<R: Reply<T>, T>(&self, req: &Request, reply: R, op: impl Fn(&Vault, &Caller) -> Result<T> + Send + 'static) {
        self.dispatch.answer(caller(req, 0), &[], reply, move |vault, caller, _| op(vault, caller).map_err(gone));
    }
}

/// What is not found by its number is stale: only then the kernel asks for its name again, before it gives up.
fn gone(error: Error) -> Error {
    match error {
        Error::NotFound => Error::Stale("the file is gone"),
        other => other,
    }
}

fn caller(req: &Request, umask: u32) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
        umask,
        groups: groups_of,
        patience: Patience::Never,
        kernel: true,
        key: None,
    }
}

/// The supplementary groups of the thread whose request is being answered: the request does not carry them. None where
/// the thread is out of sight (of another pid namespace, whose threads have number 0 here).
fn groups_of(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}
