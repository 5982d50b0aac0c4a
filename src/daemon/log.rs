//! The daemon's log: standard error in the foreground, syslog (and so the journal) when detached.

use std::ffi::{CString, c_int};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static SYSLOG: AtomicBool = AtomicBool::new(false);

/// From now on to `/dev/log`.
pub fn to_syslog() {
    // SAFETY: the name is a constant, which syslog(3) goes on using.
    unsafe { libc::openlog(c"vaultfs".as_ptr(), libc::LOG_PID | libc::LOG_NDELAY, libc::LOG_DAEMON) };
    SYSLOG.store(true, Ordering::Relaxed);
}

pub fn info(message: &str) {
    line(libc::LOG_INFO, message);
}

pub fn warning(message: &str) {
    line(libc::LOG_WARNING, message);
}

pub fn error(message: &str) {
    line(libc::LOG_ERR, message);
}

/// A thread that panics says so here: detached, nobody reads standard error.
pub fn panics() {
    std::panic::set_hook(Box::new(|panic| error(&format!("internal error, please report it: {panic}"))));
}

fn line(priority: c_int, message: &str) {
    if !SYSLOG.load(Ordering::Relaxed) {
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "vaultfs: {message}");
    } else if let Ok(text) = CString::new(message) {
        // SAFETY: the format takes one string, which is there.
        unsafe { libc::syslog(priority, c"%s".as_ptr(), text.as_ptr()) };
    }
}
