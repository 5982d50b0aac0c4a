//! A disk whose power can be cut: one FUSE file that keeps only what was synced.
//!
//! A loop device on it turns each flush of a file system's journal into an `fsync` of this file. So what it has kept
//! when the power is cut is a disk as a real one would be found, and so it is with any part of the rest.

use crate::dice::Dice;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, Session, SessionACL,
    WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

pub const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const PAGE: u64 = 4096;
const FOREVER: Duration = Duration::from_secs(3600);

/// The mounted file; ends with its mount.
pub struct Disk {
    pages: Arc<Mutex<Pages>>,
    session: BackgroundSession,
}

struct Pages {
    synced: File,
    len: u64,
    written: BTreeMap<u64, Vec<u8>>,
    dead: bool,
}

impl Disk {
    /// `synced` is what the disk holds, and will hold.
    pub fn mount(synced: &Path, point: &Path) -> Disk {
        let synced = File::options().read(true).write(true).open(synced).unwrap();
        let len = synced.metadata().unwrap().len();
        let pages = Arc::new(Mutex::new(Pages { synced, len, written: BTreeMap::new(), dead: false }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("volatile-disk".to_owned())];
        config.acl = SessionACL::All;
        let session = Session::new(Served(pages.clone()), point, &config).unwrap().spawn().unwrap();
        Disk { pages, session }
    }

    /// From now on nothing is written any more. Of what was not synced, `luck` may keep any part.
    pub fn cut(&self, luck: Option<&mut Dice>) {
        let mut pages = self.pages.lock().unwrap();
        pages.dead = true;
        let written = std::mem::take(&mut pages.written);
        if let Some(dice) = luck {
            let kept = written.iter().filter(|_| dice.between(0, 1) == 1);
            kept.for_each(|(page, bytes)| pages.synced.write_all_at(bytes, page * PAGE).unwrap());
        }
    }

    pub fn umount(self) {
        self.session.umount_and_join().unwrap();
    }
}

impl Pages {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len.min(self.len.saturating_sub(offset) as usize)];
        self.synced.read_exact_at(&mut bytes, offset)?;
        let end = offset + bytes.len() as u64;
        for (page, written) in self.written.range(offset / PAGE..end.div_ceil(PAGE)) {
            let (from, to) = (offset.max(page * PAGE), end.min((page + 1) * PAGE));
            let part = &written[(from - page * PAGE) as usize..(to - page * PAGE) as usize];
            bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if self.dead || end > self.len {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let mut whole = self.read(page * PAGE, PAGE as usize)?;
            let (from, to) = (offset.max(page * PAGE), end.min((page + 1) * PAGE));
            whole[(from - page * PAGE) as usize..(to - page * PAGE) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            self.written.insert(page, whole);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let written = std::mem::take(&mut self.written);
        written.iter().try_for_each(|(page, bytes)| self.synced.write_all_at(bytes, page * PAGE))
    }
}

struct Served(Arc<Mutex<Pages>>);

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = match ino {
            FILE => (FileType::RegularFile, self.0.lock().unwrap().len),
            _ => (FileType::Directory, 0),
        };
        let (time, perm, blocks) = (UNIX_EPOCH, 0o700, size.div_ceil(512));
        FileAttr {
            ino,
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&FOREVER, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attr(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().unwrap().read(offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.lock().unwrap().write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.lock().unwrap().sync() {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}
