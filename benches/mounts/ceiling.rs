//! The ceiling: a file system in memory on the same `fuser`, with the same capabilities and the same promises to the kernel as
//! vaultfs, that does nothing else. What it cannot do faster, no FUSE file system of this transport can.

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
const GENERATION: Generation = Generation(0);

/// Mounts on `point`, and returns when it is unmounted.
pub fn serve(point: &Path) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("ceiling".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, usize::from).max(2));
    let root = Node::new(1, FileType::Directory, 0o755, 0, 0);
    let ceiling = Ceiling { nodes: RwLock::new(HashMap::from([(1, Arc::new(root))])), next: AtomicU64::new(2) };
    let session = Session::new(ceiling, point, &config)?.spawn()?;
    session.join()
}

struct Ceiling {
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    next: AtomicU64,
}

struct Node {
    attr: Mutex<FileAttr>,
    data: RwLock<Vec<u8>>,
    entries: RwLock<Entries>,
}

/// A directory's entries in the order of their cookies.
#[derive(Default)]
struct Entries {
    names: HashMap<OsString, u64>,
    order: BTreeMap<u64, (OsString, Arc<Node>)>,
    last: u64,
}

impl Entries {
    fn get(&self, name: &OsStr) -> Option<&Arc<Node>> {
        self.names.get(name).map(|cookie| &self.order[cookie].1)
    }

    fn insert(&mut self, name: &OsStr, node: Arc<Node>) -> Option<Arc<Node>> {
        let replaced = self.remove(name);
        self.last += 1;
        self.names.insert(name.to_owned(), self.last);
        self.order.insert(self.last, (name.to_owned(), node));
        replaced
    }

    fn remove(&mut self, name: &OsStr) -> Option<Arc<Node>> {
        let cookie = self.names.remove(name)?;
        self.order.remove(&cookie).map(|(_, node)| node)
    }
}

impl Node {
    fn new(ino: u64, kind: FileType, mode: u32, uid: u32, gid: u32) -> Node {
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        Node { attr: Mutex::new(attr), data: RwLock::default(), entries: RwLock::default() }
    }

    fn attr(&self) -> FileAttr {
        *self.attr.lock()
    }

    fn resized(&self, size: u64) {
        let mut attr = self.attr.lock();
        (attr.size, attr.blocks) = (size, size.div_ceil(512));
        attr.mtime = SystemTime::now();
        attr.ctime = attr.mtime;
    }
}

impl Ceiling {
    fn node(&self, ino: INodeNo) -> Option<Arc<Node>> {
        self.nodes.read().get(&ino.0).cloned()
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> Option<Arc<Node>> {
        let directory = self.node(parent)?;
        let ino = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(Node::new(ino, kind, mode, req.uid(), req.gid()));
        self.nodes.write().insert(ino, node.clone());
        directory.entries.write().insert(name, node.clone());
        Some(node)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.node(parent).and_then(|directory| directory.entries.write().remove(name));
        match removed {
            Some(node) => {
                self.drop_link(&node);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn drop_link(&self, node: &Node) {
        let mut attr = node.attr.lock();
        attr.nlink -= 1;
        if attr.nlink == 0 || attr.kind == FileType::Directory {
            self.nodes.write().remove(&attr.ino.0);
        }
    }
}

impl Filesystem for Ceiling {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let capabilities = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK;
        let refused = |what| io::Error::other(format!("refused: {what}"));
        config.add_capabilities(capabilities).map_err(|lacking| refused(format!("{lacking:?}")))?;
        config.set_max_write(1 << 20).map_err(|nearest| refused(nearest.to_string()))?;
        config.set_max_background(64).map_err(|nearest| refused(nearest.to_string()))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(directory) = self.node(parent) else { return reply.error(Errno::ENOENT) };
        let found = directory.entries.read().get(name).map(|node| node.attr());
        match found {
            Some(attr) => reply.entry(&FOR_EVER, &attr, GENERATION),
            // An entry of number 0 is a name that the kernel may remember as not there.
            None => {
                let none = FileAttr { ino: INodeNo(0), ..directory.attr() };
                reply.entry(&FOR_EVER, &none, GENERATION);
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Some(node) => reply.attr(&FOR_EVER, &node.attr()),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        if let Some(size) = size {
            node.data.write().resize(size as usize, 0);
            node.resized(size);
        }
        let time = |time| match time {
            TimeOrNow::SpecificTime(at) => at,
            TimeOrNow::Now => SystemTime::now(),
        };
        let mut attr = node.attr.lock();
        attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        attr.uid = uid.unwrap_or(attr.uid);
        attr.gid = gid.unwrap_or(attr.gid);
        attr.atime = atime.map_or(attr.atime, time);
        attr.mtime = mtime.map_or(attr.mtime, time);
        attr.ctime = SystemTime::now();
        reply.attr(&FOR_EVER, &attr);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino) {
            Some(node) => reply.data(&node.data.read()),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        match self.make(req, parent, name, FileType::Directory, mode & !umask) {
            Some(node) => reply.entry(&FOR_EVER, &node.attr(), GENERATION),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let Some(node) = self.make(req, parent, name, FileType::Symlink, 0o777) else {
            return reply.error(Errno::ENOENT);
        };
        let target = target.as_os_str().as_encoded_bytes();
        node.data.write().extend_from_slice(target);
        node.resized(target.len() as u64);
        reply.entry(&FOR_EVER, &node.attr(), GENERATION);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (Some(node), Some(directory)) = (self.node(ino), self.node(parent)) else {
            return reply.error(Errno::ENOENT);
        };
        node.attr.lock().nlink += 1;
        directory.entries.write().insert(name, node.clone());
        reply.entry(&FOR_EVER, &node.attr(), GENERATION);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let directory = self.node(parent);
        let full = directory.and_then(|d| d.entries.read().get(name).map(|node| !node.entries.read().names.is_empty()));
        if full == Some(true) {
            return reply.error(Errno::ENOTEMPTY);
        }
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (Some(from), Some(to)) = (self.node(parent), self.node(new_parent)) else {
            return reply.error(Errno::ENOENT);
        };
        let Some(node) = from.entries.write().remove(name) else { return reply.error(Errno::ENOENT) };
        let replaced = to.entries.write().insert(new_name, node);
        if let Some(replaced) = replaced {
            self.drop_link(&replaced);
        }
        reply.ok();
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        match self.make(req, parent, name, FileType::RegularFile, mode & !umask) {
            Some(node) => {
                reply.created(&FOR_EVER, &node.attr(), GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        if flags.0 & libc::O_TRUNC != 0 {
            node.data.write().clear();
            node.resized(0);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        let data = node.data.read();
        let begin = (offset as usize).min(data.len());
        let end = (begin + size as usize).min(data.len());
        reply.data(&data[begin..end]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        let (begin, end) = (offset as usize, offset as usize + data.len());
        let mut held = node.data.write();
        if held.len() < end {
            held.resize(end, 0);
        }
        held[begin..end].copy_from_slice(data);
        node.resized(held.len() as u64);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        for (cookie, (name, child)) in node.entries.read().order.range(offset + 1..) {
            let attr = child.attr();
            if reply.add(attr.ino, *cookie, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        for (cookie, (name, child)) in node.entries.read().order.range(offset + 1..) {
            let attr = child.attr();
            if reply.add(attr.ino, *cookie, name, &FOR_EVER, &attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCKS: u64 = 1 << 24;
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 0, 0, 4096, 255, 4096);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, room: u32, reply: ReplyXattr) {
        if room == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(node) = self.node(ino) else { return reply.error(Errno::ENOENT) };
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut data = node.data.write();
        let size = data.len().max((offset + length) as usize);
        data.resize(size, 0);
        node.resized(size as u64);
        reply.ok();
    }
}
