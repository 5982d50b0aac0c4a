//! System calls that std has no name for, by their errors and results alone.

#![allow(dead_code)]

use std::ffi::CString;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The errno with which something was refused.
#[track_caller]
pub fn errno<T: Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("an errno")
}

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

fn done(result: impl Into<i64>) -> io::Result<u64> {
    u64::try_from(result.into()).map_err(|_| io::Error::last_os_error())
}

/// The value of an extended attribute, of a link itself too.
pub fn attribute(path: impl AsRef<Path>, name: &str) -> io::Result<Vec<u8>> {
    let (path, name, mut value) = (c(path), c(name), vec![0; 1 << 17]);
    // SAFETY: both strings end in NUL, and the buffer is as long as said.
    let len = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(done(len as i64)? as usize);
    Ok(value)
}

/// What the vault says about a path: `user.vault.NAME`.
#[track_caller]
pub fn vault_says(path: impl AsRef<Path>, name: &str) -> String {
    let value = attribute(&path, &format!("user.vault.{name}"));
    String::from_utf8(value.unwrap_or_else(|e| panic!("{}: {name}: {e}", path.as_ref().display()))).unwrap()
}

/// `flags`: 0, `XATTR_CREATE` or `XATTR_REPLACE`.
pub fn set_attribute_as(path: impl AsRef<Path>, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c(path), c(name));
    // SAFETY: both strings end in NUL, and the value is as long as said.
    let set = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    done(set).map(drop)
}

pub fn set_attribute(path: impl AsRef<Path>, name: &str, value: impl AsRef<[u8]>) -> io::Result<()> {
    set_attribute_as(path, name, value.as_ref(), 0)
}

pub fn remove_attribute(path: impl AsRef<Path>, name: &str) -> io::Result<()> {
    let (path, name) = (c(path), c(name));
    // SAFETY: both strings end in NUL.
    done(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

pub fn attributes(path: impl AsRef<Path>) -> Vec<String> {
    let (path, mut names) = (c(path), vec![0u8; 1 << 17]);
    // SAFETY: the path ends in NUL, and the buffer is as long as said.
    let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(done(len as i64).unwrap() as usize);
    let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    names
}

/// `renameat2` with `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> io::Result<()> {
    let (from, to) = (c(from), c(to));
    // SAFETY: both paths end in NUL.
    done(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }).map(drop)
}

/// `mkdirat`, `openat` for a directory, and `unlinkat` with or without `AT_REMOVEDIR`: by a descriptor, however deep.
pub fn mkdir_at(folder: &File, name: &str) -> io::Result<File> {
    let text = c(name);
    // SAFETY: the descriptor is open and the name ends in NUL.
    done(unsafe { libc::mkdirat(folder.as_raw_fd(), text.as_ptr(), 0o755) })?;
    open_at(folder, name, libc::O_RDONLY | libc::O_DIRECTORY)
}

pub fn open_at(folder: &File, name: &str, flags: i32) -> io::Result<File> {
    // Else a program that another test starts meanwhile would have it too, and the mount be in use for as long.
    let (name, flags) = (c(name), flags | libc::O_CLOEXEC);
    // SAFETY: the descriptor is open and the name ends in NUL.
    let fd = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags, 0o644) };
    // SAFETY: a new descriptor, which nobody else has.
    done(fd).map(|_| unsafe { File::from_raw_fd(fd) })
}

pub fn remove_at(folder: &File, name: &str, flags: i32) -> io::Result<()> {
    let name = c(name);
    // SAFETY: the descriptor is open and the name ends in NUL.
    done(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

pub fn fallocate(file: &File, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: the descriptor is open; the rest are numbers.
    done(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// `F_SETFL`.
pub fn set_flags(file: &File, flags: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the rest are numbers.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// `SEEK_DATA` and `SEEK_HOLE`.
pub fn seek(file: &File, offset: i64, whence: i32) -> io::Result<u64> {
    // SAFETY: the descriptor is open; the rest are numbers.
    done(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// By path, which nobody closes.
pub fn truncate(path: impl AsRef<Path>, size: i64) -> io::Result<()> {
    let path = c(path);
    // SAFETY: the path ends in NUL.
    done(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop)
}

pub fn mknod(path: impl AsRef<Path>, mode: u32, device: u64) -> io::Result<()> {
    let path = c(path);
    // SAFETY: the path ends in NUL.
    done(unsafe { libc::mknod(path.as_ptr(), mode, device) }).map(drop)
}

pub fn copy_file_range(from: &File, to: &File, len: usize) -> io::Result<u64> {
    let null = std::ptr::null_mut();
    // SAFETY: both descriptors are open; without pointers to offsets the kernel uses the files' own.
    done(unsafe { libc::copy_file_range(from.as_raw_fd(), null, to.as_raw_fd(), null, len, 0) } as i64)
}

/// Tries an exclusive open-file-description lock on the whole file.
pub fn lock_description(file: &File) -> io::Result<()> {
    // SAFETY: flock is a C structure of numbers, for which zeros are a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    // SAFETY: the descriptor is open and the structure lives through the call.
    done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }).map(drop)
}

pub fn statvfs(path: impl AsRef<Path>) -> libc::statvfs {
    let path = c(path);
    // SAFETY: statvfs is a C structure of numbers, for which zeros are a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in NUL and the structure is ours.
    done(unsafe { libc::statvfs(path.as_ptr(), &mut found) }).unwrap();
    found
}

/// A directory stream, with the positions that std leaves out.
pub struct Listing(*mut libc::DIR);

impl Listing {
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Listing {
        let path = c(path);
        // SAFETY: the path ends in NUL.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!stream.is_null(), "{}", io::Error::last_os_error());
        Listing(stream)
    }

    /// The name of the next entry, dots too.
    pub fn next(&mut self) -> Option<String> {
        self.next_typed().map(|(name, _)| name)
    }

    /// With its `d_type`, for which nobody has to look at the entry itself.
    pub fn next_typed(&mut self) -> Option<(String, u8)> {
        // SAFETY: the stream is open, and what it points to lives until the next call.
        let entry = unsafe { libc::readdir(self.0).as_ref()? };
        // SAFETY: names end in NUL.
        let name = unsafe { std::ffi::CStr::from_ptr(entry.d_name.as_ptr()) };
        Some((name.to_str().unwrap().to_owned(), entry.d_type))
    }

    pub fn tell(&mut self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    pub fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, position) }
    }

    pub fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody else has it.
        unsafe { libc::closedir(self.0) };
    }
}

/// A shared writable mapping of a file's beginning.
pub struct Mapping(*mut u8, usize);

impl Mapping {
    pub fn shared(file: &File, len: usize) -> Mapping {
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping, at no address of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Mapping(at.cast(), len)
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        // SAFETY: inside the mapping, as just checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.1);
        // SAFETY: inside the mapping, as just checked.
        unsafe { std::slice::from_raw_parts(self.0.add(at), len) }.to_vec()
    }

    pub fn address(&self) -> *const u8 {
        self.0
    }

    pub fn sync(&self) {
        // SAFETY: exactly our mapping.
        done(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) }).unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly our mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// A file handle, as NFS servers keep it: `struct file_handle` with room for the longest.
#[repr(C, align(8))]
#[derive(Clone)]
pub struct FileHandle([u8; 8 + 128]);

impl FileHandle {
    /// Of a path, or of a link itself.
    pub fn of(path: impl AsRef<Path>) -> io::Result<FileHandle> {
        let (path, mut handle, mut mount) = (c(path), FileHandle([0; 136]), 0);
        handle.0[..4].copy_from_slice(&128u32.to_ne_bytes());
        let at = handle.0.as_mut_ptr().cast();
        // SAFETY: the path ends in NUL, and the handle says how much room it has.
        done(unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), at, &mut mount, 0) })?;
        Ok(handle)
    }

    /// Opens what the handle is of, found by `mount`, any open file of its file system.
    pub fn open(&self, mount: &File, flags: i32) -> io::Result<File> {
        let (mut handle, flags) = (self.clone(), flags | libc::O_CLOEXEC);
        // SAFETY: a whole handle, as `name_to_handle_at` filled it.
        let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), handle.0.as_mut_ptr().cast(), flags) };
        // SAFETY: a new descriptor, which nobody else has.
        done(fd).map(|_| unsafe { File::from_raw_fd(fd) })
    }
}

/// Makes the kernel forget every inode that nobody uses.
pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}
