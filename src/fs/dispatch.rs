//! One request from its arrival to its reply, on the right thread.
//!
//! A FUSE loop must not wait for the token: two loops serve everyone, and a token can take five seconds to say no. So
//! every operation is first tried with `Patience::Never` where its request was read. Only if the vault would have to
//! wait is the operation done again on a pool with `Patience::Wait`; only then is what it borrowed from the loop's
//! buffer (a name, a value, written data) copied. A sync waits on no thread at all: the vault's writer answers it when the disk
//! has it. What waits for the kernel has a pool of its own, so that sixteen callers of a dead token do not hold it up.

use crate::fs::pool::Pool;
use crate::fs::replies::Reply;
use crate::vault::{Caller, Error, Handle, Patience, Result, Vault};
use fuser::Errno;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const WAITING_THREADS: usize = 16;
const KERNEL_THREADS: usize = 8;

pub struct Dispatch {
    pub vault: Arc<Vault>,
    waiting: Pool,
    kernel: Pool,
}

impl Dispatch {
    pub fn new(vault: Arc<Vault>) -> io::Result<Dispatch> {
        let waiting = Pool::new("vaultfs-wait", WAITING_THREADS)?;
        let kernel = Pool::new("vaultfs-kernel", KERNEL_THREADS)?;
        Ok(Dispatch { vault, waiting, kernel })
    }

    /// Replies with what `op` returns. `bytes` is what the operation borrows from the request.
    pub fn answer<R: Reply<T>, T>(
        &self,
        caller: Caller,
        bytes: &[u8],
        reply: R,
        op: impl Fn(&Vault, &Caller, &[u8]) -> Result<T> + Send + 'static,
    ) {
        self.fill(caller, bytes, reply, move |vault, caller, bytes, _| op(vault, caller, bytes));
    }

    /// As [`Dispatch::answer`], for replies that the operation itself fills, as far as they go. An operation that has
    /// put something into the reply must not then answer `WouldWait`.
    pub fn fill<R: Reply<T>, T>(
        &self,
        mut caller: Caller,
        bytes: &[u8],
        reply: R,
        op: impl Fn(&Vault, &Caller, &[u8], &mut R) -> Result<T> + Send + 'static,
    ) {
        if let Some(reply) = attempt(&self.vault, &caller, bytes, reply, &op) {
            let (vault, bytes) = (self.vault.clone(), bytes.to_vec());
            caller.patience = Patience::Wait;
            self.waiting.run(move || drop(attempt(&vault, &caller, &bytes, reply, &op)));
        }
    }

    /// For what waits in any case, until the kernel has sent what it holds.
    pub fn aside<R: Reply<T>, T>(
        &self,
        mut caller: Caller,
        reply: R,
        op: impl Fn(&Vault, &Caller) -> Result<T> + Send + 'static,
    ) {
        let vault = self.vault.clone();
        caller.patience = Patience::Wait;
        self.kernel.run(move || drop(attempt(&vault, &caller, &[], reply, &|vault, caller, _, _| op(vault, caller))));
    }

    /// Replies once everything answered so far is on the disk. `handle`: of a file, not a directory.
    pub fn synced(&self, reply: impl Reply<()>, handle: Option<Handle>) {
        let asked = AssertUnwindSafe(|| self.vault.fsync_then(handle, Box::new(move |outcome| send(reply, outcome))));
        if catch_unwind(asked).is_err() {
            // The reply was dropped, which answers EIO.
            log(&PANICKED);
        }
    }
}

/// Does the operation and replies; gives the reply back if that needs a caller who may wait.
///
/// A panic is a fault in vaultfs, and costs one request: an unwinding FUSE loop would end, and the mount with the last.
fn attempt<R: Reply<T>, T>(
    vault: &Vault,
    caller: &Caller,
    bytes: &[u8],
    mut reply: R,
    op: &impl Fn(&Vault, &Caller, &[u8], &mut R) -> Result<T>,
) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(|| op(vault, caller, bytes, &mut reply))) {
        Ok(Err(Error::WouldWait)) if caller.patience == Patience::Never => return Some(reply),
        Ok(outcome) => send(reply, outcome),
        Err(_) => {
            log(&PANICKED);
            reply.refuse(Errno::EIO);
        }
    }
    None
}

const PANICKED: &str = "a request ended in the panic above and is answered with EIO";

fn send<R: Reply<T>, T>(reply: R, outcome: Result<T>) {
    match outcome {
        Ok(value) => reply.give(value),
        Err(error) => {
            let errno = error.errno();
            if errno == libc::EIO {
                log(&error);
            }
            reply.refuse(Errno::from_i32(errno));
        }
    }
}

fn log(event: &dyn Display) {
    eprintln!("vaultfs: {event}");
}
