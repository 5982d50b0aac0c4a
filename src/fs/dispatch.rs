//! One request from its arrival to its reply, on the right thread.
//!
//! A FUSE loop must not wait for the token: two loops serve everyone, and a token can take five seconds to say no. So
//! every operation is first tried with `Patience::Never` where its request was read. Only if the vault would have to
//! wait is the operation done again on a pool with `Patience::Wait`; only then is what it borrowed from the loop's
//! buffer (a name, a value, written data) copied. Syncs wait for the disk by their nature and go to a pool at once, one
//! of their own, so that sixteen callers of a dead token do not hold up an `fsync` whose keys are at hand.

use crate::fs::pool::Pool;
use crate::fs::replies::Reply;
use crate::vault::{Caller, Error, Patience, Result, Vault};
use fuser::Errno;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const WAITING_THREADS: usize = 16;
const SYNCING_THREADS: usize = 8;

pub struct Dispatch {
    pub vault: Arc<Vault>,
    waiting: Pool,
    syncing: Pool,
}

impl Dispatch {
    pub fn new(vault: Arc<Vault>) -> io::Result<Dispatch> {
        let waiting = Pool::new("vaultfs-wait", WAITING_THREADS)?;
        let syncing = Pool::new("vaultfs-sync", SYNCING_THREADS)?;
        Ok(Dispatch { vault, waiting, syncing })
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

    /// For what waits for the disk in any case.
    pub fn sync<R: Reply<T>, T>(
        &self,
        mut caller: Caller,
        reply: R,
        op: impl Fn(&Vault, &Caller) -> Result<T> + Send + 'static,
    ) {
        let vault = self.vault.clone();
        caller.patience = Patience::Wait;
        self.syncing.run(move || drop(attempt(&vault, &caller, &[], reply, &|vault, caller, _, _| op(vault, caller))));
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
        Ok(Ok(value)) => reply.give(value),
        Ok(Err(Error::WouldWait)) if caller.patience == Patience::Never => return Some(reply),
        Ok(Err(error)) => {
            let errno = error.errno();
            if errno == libc::EIO {
                log(&error);
            }
            reply.refuse(Errno::from_i32(errno));
        }
        Err(_) => {
            log(&"a request ended in the panic above and is answered with EIO");
            reply.refuse(Errno::EIO);
        }
    }
    None
}

fn log(event: &dyn Display) {
    eprintln!("vaultfs: {event}");
}
