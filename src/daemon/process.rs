//! What a process that holds keys gives up, and what a daemon leaves behind.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// No core dump and no debugger sees this process' memory.
pub fn keep_secrets() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read their arguments. They cannot fail: a limit may always be lowered.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
}

/// One process serves all users of the mount: its limit on open files must not be one user's.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the structure in, setrlimit reads it. Failure leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Buffers of up to 1 MiB come and go with each call: the allocator keeps their memory instead of asking the kernel for
/// zeroed pages each time.
pub fn keep_buffers() {
    const KEPT: libc::c_int = 32 << 20;
    // SAFETY: sets two numbers of the allocator; an allocator that does not know them ignores them.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// A session of its own, `/` as the working directory, no umask, nothing on the standard descriptors.
pub fn leave_terminal() -> io::Result<()> {
    // SAFETY: neither call touches memory. setsid succeeds in a process that was just forked off.
    unsafe {
        libc::setsid();
        libc::umask(0);
    }
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in 0..3 {
        // SAFETY: replaces a standard descriptor by an open one; both stay valid.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends the process at once. `exit` would run the destructors of the token's module while its worker threads may be
/// inside it (seen with SoftHSM: a double free after `init` had succeeded).
pub fn end(code: u8) -> ! {
    // Whoever reads standard output is gone if this fails, and nobody is left to tell.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: ends the process and touches no memory of ours.
    unsafe { libc::_exit(i32::from(code)) }
}
