//! SQLite's way to the disk, led past the seam: a VFS of its own for each open store.
//!
//! It is SQLite's "unix" VFS, inherited rather than wrapped. Its files are the unix VFS's own, but each
//! points to a copy of its method table in which write, truncate, sync and close are ours: they ask
//! [`Disk`] and then call the original (<https://sqlite.org/vfs.html>). Everything else, locks and shared
//! memory above all, is untouched.
//!
//! This is also where a failed sync is noticed, whoever asked for it: SQLite itself would forget one that
//! happened in an automatic checkpoint, try again, and be told that all is well.

use crate::store::{Disk, Op};
use parking_lot::Mutex;
use rusqlite::ffi;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the files of one store share.
pub struct Seam {
    disk: Arc<dyn Disk>,
    sync_failed: AtomicBool,
    log_unsynced: AtomicBool,
    syncs: AtomicU64,
    /// Why the last failed call failed, and the code that SQLite got for it.
    cause: Mutex<Option<(c_int, io::Error)>>,
}

impl Seam {
    fn new(disk: Arc<dyn Disk>) -> Self {
        Seam {
            disk,
            sync_failed: AtomicBool::new(false),
            // A process that was killed may have left a log that is in the kernel's memory only.
            log_unsynced: AtomicBool::new(true),
            syncs: AtomicU64::new(0),
            cause: Mutex::new(None),
        }
    }

    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    /// Whether the write-ahead log may hold more than was synced.
    pub fn log_unsynced(&self) -> bool {
        self.log_unsynced.load(Ordering::SeqCst)
    }

    /// Files synced so far.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// The error behind SQLite's extended result code, if it is known.
    pub fn take_cause(&self, code: c_int) -> Option<io::Error> {
        self.cause.lock().take_if(|(failed, _)| *failed == code).map(|(_, error)| error)
    }

    fn ask(&self, op: &Op<'_>) -> io::Result<()> {
        if self.sync_failed() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { self.disk.before(op) }
    }

    /// Remembers the cause; the code that SQLite gets is "full", or `otherwise`.
    fn failed(&self, error: io::Error, otherwise: c_int) -> c_int {
        let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let code = if full { ffi::SQLITE_FULL } else { otherwise };
        *self.cause.lock() = Some((code, error));
        code
    }

    /// What the unix VFS answered, with the errno that it left behind.
    fn answered(&self, code: c_int) -> c_int {
        match code {
            ffi::SQLITE_OK | ffi::SQLITE_IOERR_DELETE_NOENT => code,
            // A write that came to an early end leaves no errno.
            ffi::SQLITE_FULL => self.failed(io::Error::from_raw_os_error(libc::ENOSPC), code),
            _ => self.failed(io::Error::last_os_error(), code),
        }
    }

    fn sync_directory_of(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        self.ask(&Op::SyncDirectory { path: directory })?;
        File::open(directory)?.sync_all()
    }

    fn poisoned(&self, code: c_int) -> c_int {
        self.sync_failed.store(true, Ordering::SeqCst);
        code
    }
}

/// A registered VFS. Outlives every connection that uses it, and is unregistered when dropped.
pub struct Vfs(*mut Registered);

/// What SQLite holds a pointer to. `vfs` comes first, so a pointer to one is a pointer to the other.
#[repr(C)]
struct Registered {
    vfs: ffi::sqlite3_vfs,
    unix: *mut ffi::sqlite3_vfs,
    name: CString,
    seam: Arc<Seam>,
}

// SAFETY: what it points to is written before `new` returns and freed in `drop`. Between these SQLite changes
// the list pointer in it, under its own mutex, and everyone else reads `unix`, `name` and `seam`, which is `Sync`.
unsafe impl Send for Vfs {}
// SAFETY: as above.
unsafe impl Sync for Vfs {}

impl Vfs {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("vaultfs-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).expect("a word and a number hold no NUL");
        // SAFETY: the name is NUL-terminated.
        let unix = unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) };
        assert!(!unix.is_null(), "SQLite on Linux has a \"unix\" VFS");
        // Of the inherited functions none looks at the VFS it is called with for more than `mxPathname`;
        // xOpen and xDelete are called with the original.
        let vfs = ffi::sqlite3_vfs {
            pNext: ptr::null_mut(),
            zName: name.as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            // SAFETY: it is not null, and SQLite never frees it.
            ..unsafe { *unix }
        };
        let registered = Box::into_raw(Box::new(Registered { vfs, unix, name, seam: Arc::new(Seam::new(disk)) }));
        // SAFETY: the structure lives, at this address, until `drop` unregisters it.
        let code = unsafe { ffi::sqlite3_vfs_register(registered.cast(), 0) };
        assert_eq!(code, ffi::SQLITE_OK, "registering a VFS fails only when SQLite cannot initialize");
        Vfs(registered)
    }

    fn registered(&self) -> &Registered {
        // SAFETY: allocated in `new`, freed in `drop`; nobody writes the fields that are read here.
        unsafe { &*self.0 }
    }

    pub fn name(&self) -> &CStr {
        &self.registered().name
    }

    pub fn seam(&self) -> &Seam {
        &self.registered().seam
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        // SAFETY: registered and allocated in `new`; its connections are closed, so the pointer is the last.
        unsafe {
            ffi::sqlite3_vfs_unregister(self.0.cast());
            drop(Box::from_raw(self.0));
        }
    }
}

/// Makes the write-ahead log of a connection durable. A failure is remembered like that of any other sync.
pub fn sync_log(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    let mut log: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the handle is open for as long as `connection` is borrowed; this operation stores a pointer to
    // its log's file in `log` (<https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html>).
    let code = unsafe {
        let to = ptr::from_mut(&mut log).cast();
        ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_JOURNAL_POINTER, to)
    };
    // SAFETY: the pointer is null or a file of this connection, whose methods are null when it is closed.
    let code = match unsafe { log.as_ref().and_then(|file| file.pMethods.as_ref()) } {
        // SAFETY: an open file, and no other thread is using the connection.
        Some(methods) => unsafe { (methods.xSync.expect(COMPLETE))(log, ffi::SQLITE_SYNC_NORMAL) },
        None => code,
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

const COMPLETE: &str = "every method of a unix file is there";

/// An open file: what its method table points to. `methods` comes first, so a pointer to one is a pointer to
/// the other.
#[repr(C)]
struct Watched {
    methods: ffi::sqlite3_io_methods,
    unix: &'static ffi::sqlite3_io_methods,
    seam: Arc<Seam>,
    path: PathBuf,
    is_log: bool,
    /// Perhaps created, here or by a process that was killed, and its directory not synced since.
    unnamed: AtomicBool,
}

impl Watched {
    /// # Safety
    /// `file` was opened by [`open`] under a name, and is not closed before `'a` ends.
    unsafe fn of<'a>(file: *mut ffi::sqlite3_file) -> &'a Watched {
        // SAFETY: then its method table is the first field of a `Watched`, freed in `close` only.
        unsafe { &*(*file).pMethods.cast() }
    }

    fn changes(&self, op: &Op<'_>, otherwise: c_int, change: impl FnOnce() -> c_int) -> c_int {
        if let Err(error) = self.seam.ask(op) {
            return self.seam.failed(error, otherwise);
        }
        if self.is_log {
            self.seam.log_unsynced.store(true, Ordering::SeqCst);
        }
        self.seam.answered(change())
    }

    fn syncs(&self, sync: impl FnOnce() -> c_int) -> c_int {
        let asked = self.seam.ask(&Op::Sync { path: &self.path }).and_then(|()| {
            // The unix VFS would do this too, but ignores whether it worked.
            if self.unnamed.load(Ordering::Relaxed) { self.seam.sync_directory_of(&self.path) } else { Ok(()) }
        });
        if let Err(error) = asked {
            return self.seam.poisoned(self.seam.failed(error, ffi::SQLITE_IOERR_FSYNC));
        }
        let code = sync();
        if code != ffi::SQLITE_OK {
            return self.seam.poisoned(self.seam.answered(code));
        }
        self.seam.syncs.fetch_add(1, Ordering::Relaxed);
        self.unnamed.store(false, Ordering::Relaxed);
        if self.is_log {
            self.seam.log_unsynced.store(false, Ordering::SeqCst);
        }
        code
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this with the VFS that was registered, memory for a file of its `szOsFile`, and a
    // name that is null or NUL-terminated; the unix VFS gets what it would have got without us.
    unsafe {
        let Registered { unix, seam, .. } = &*vfs.cast();
        let path = (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())));
        let unnamed = AtomicBool::new(flags & ffi::SQLITE_OPEN_CREATE != 0);
        let created = path.as_ref().filter(|path| flags & ffi::SQLITE_OPEN_CREATE != 0 && !path.exists());
        if let Some(Err(error)) = created.map(|path| seam.ask(&Op::Create { path })) {
            (*file).pMethods = ptr::null();
            return seam.failed(error, ffi::SQLITE_CANTOPEN);
        }
        let code = seam.answered(((**unix).xOpen.expect(COMPLETE))(*unix, name, file, flags, out_flags));
        // A file without a name is temporary: no part of the state directory, and left as it is.
        if let (ffi::SQLITE_OK, Some(path), Some(unix)) = (code, path, (*file).pMethods.as_ref()) {
            let methods = ffi::sqlite3_io_methods {
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                xClose: Some(close),
                ..*unix
            };
            let is_log = flags & ffi::SQLITE_OPEN_WAL != 0;
            let watched = Watched { methods, unix, seam: Arc::clone(seam), path, is_log, unnamed };
            (*file).pMethods = Box::into_raw(Box::new(watched)).cast();
        }
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite calls this with the VFS that was registered and a NUL-terminated name.
    let (Registered { unix, seam, .. }, path) =
        unsafe { (&*vfs.cast(), Path::new(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()))) };
    if let Err(error) = seam.ask(&Op::Remove { path }) {
        return seam.failed(error, ffi::SQLITE_IOERR_DELETE);
    }
    // SAFETY: the unix VFS and the arguments that it would have got without us.
    let code = seam.answered(unsafe { ((**unix).xDelete.expect(COMPLETE))(*unix, name, 0) });
    match (code, sync_directory) {
        (ffi::SQLITE_OK, 1..) => match seam.sync_directory_of(path) {
            Ok(()) => code,
            Err(error) => seam.poisoned(seam.failed(error, ffi::SQLITE_IOERR_DIR_FSYNC)),
        },
        _ => code,
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite calls this for an open file of ours, with `len` readable bytes at `data`.
    let (watched, bytes) = unsafe { (Watched::of(file), slice::from_raw_parts(data.cast::<u8>(), len as usize)) };
    let op = Op::Write { path: &watched.path, offset: offset as u64, parts: &[bytes] };
    // SAFETY: the original method, with the original arguments.
    let write = || unsafe { (watched.unix.xWrite.expect(COMPLETE))(file, data, len, offset) };
    watched.changes(&op, ffi::SQLITE_IOERR_WRITE, write)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: SQLite calls this for an open file of ours.
    let watched = unsafe { Watched::of(file) };
    let op = Op::Truncate { path: &watched.path, len: len as u64 };
    // SAFETY: the original method, with the original arguments.
    let truncate = || unsafe { (watched.unix.xTruncate.expect(COMPLETE))(file, len) };
    watched.changes(&op, ffi::SQLITE_IOERR_TRUNCATE, truncate)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite (or `sync_log`) calls this for an open file of ours.
    let watched = unsafe { Watched::of(file) };
    // SAFETY: the original method, with the original arguments.
    watched.syncs(|| unsafe { (watched.unix.xSync.expect(COMPLETE))(file, flags) })
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once. Its table came from `Box::into_raw` in `open`, and the original close,
    // which forgets it, is the last to see it.
    unsafe {
        let watched: Box<Watched> = Box::from_raw((*file).pMethods.cast_mut().cast());
        (watched.unix.xClose.expect(COMPLETE))(file)
    }
}
