//! What has no name any more and the kernel still knows, because somebody works in it, has it open, or has just found its
//! name: it goes on until the kernel forgets it.
//!
//! Folders, links, fifos, sockets and devices answer as they last were, in memory alone: nobody can know them after a
//! crash. Files keep their records and their content as they do while a handle is open (`file.rs`): who found a name
//! just before a rename gave it to another file opens what he found, as on a local file system.

use super::Vault;
use super::error::{Error, Result};
use super::ids::Ino;
use super::records::Tx;
use super::row::{Attributes, Node};
use super::time::Time;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Removed {
    others: Arc<Mutex<HashMap<Ino, Last>>>,
    files: Arc<Mutex<HashSet<Ino>>>,
    /// Those among them that a service replaced, oldest first: the kernel may never have heard of them, and then never
    /// says that it forgets them.
    lately: Arc<Mutex<VecDeque<(Instant, Ino)>>>,
    /// What the kernel has found by a tombstone's name.
    tombstones: Mutex<HashSet<Ino>>,
}

/// An inode as it was when it lost its last name, and as it was changed since.
#[derive(Clone)]
pub struct Last {
    pub node: Node,
    pub attributes: Attributes,
}

/// How long a file that a service replaced can still be opened by whoever found its name just before. The kernel looks
/// again once, which is not enough where values follow one another as fast as that.
const MOMENT: Duration = Duration::from_secs(2);
const LATELY_MAX: usize = 4096;

impl Vault {
    /// Whether a file that a service replaces goes on for a moment: with a mount, whose kernel may be about to open it.
    pub(super) fn stays_for_a_moment(&self, tx: &mut Tx, ino: Ino) -> bool {
        let mounted = self.changed.read().is_some();
        if mounted {
            self.remember_file(tx, ino);
            let lately = self.removed.lately.clone();
            tx.count(move || lately.lock().push_back((Instant::now(), ino)));
        }
        mounted
    }

    /// Ends what was replaced longer ago than a moment, and what is too much of it.
    pub(super) fn end_moments(&self) {
        loop {
            let next = {
                let mut lately = self.removed.lately.lock();
                let over = lately.front().is_some_and(|(since, _)| since.elapsed() >= MOMENT);
                if over || lately.len() > LATELY_MAX { lately.pop_front() } else { None }
            };
            let Some((_, ino)) = next else { return };
            if self.removed.files.lock().remove(&ino) {
                // If it fails, the next mount ends it.
                let _ = self.end_forgotten(ino);
            }
        }
    }

    /// The kernel knows this inode no more.
    pub fn forget(&self, ino: Ino, times: u64) {
        if ino.is_in_versions() {
            return self.versions.forget(ino, times);
        }
        self.removed.others.lock().remove(&ino);
        self.removed.tombstones.lock().remove(&ino);
        if self.removed.files.lock().remove(&ino) {
            // If it fails, the next mount ends it.
            let _ = self.end_forgotten(ino);
        }
    }

    /// Whether the kernel has known this file since it had a name.
    pub(super) fn is_known(&self, ino: Ino) -> bool {
        self.removed.files.lock().contains(&ino)
    }

    /// Remembers, once the transaction commits, a file whose last name the kernel had removed.
    pub(super) fn remember_file(&self, tx: &mut Tx, ino: Ino) {
        let files = self.removed.files.clone();
        tx.count(move || {
            files.lock().insert(ino);
        });
    }

    /// From now on the kernel knows this file as a tombstone.
    pub(super) fn known_as_tombstone(&self, ino: Ino) {
        self.removed.files.lock().remove(&ino);
        self.removed.tombstones.lock().insert(ino);
    }

    /// It is no tombstone any more.
    pub(super) fn known_as_file(&self, ino: Ino) {
        self.removed.tombstones.lock().remove(&ino);
    }

    /// Refuses a tombstone to whoever found it as one. Who found the file just before a command or a service deleted it
    /// has to look for its name again, as on a local file system; who had it open or knew it goes on.
    pub(super) fn check_no_tombstone(
        &self,
        ino: Ino,
        node: &Node,
        is_open: impl Fn() -> bool,
        refusal: Error,
    ) -> Result<()> {
        // Asked only now: who deletes a file says that the kernel knows it before the file is a tombstone.
        if node.grave.is_none() || is_open() || self.is_known(ino) {
            return Ok(());
        }
        Err(if self.removed.tombstones.lock().contains(&ino) { refusal } else { Error::Stale("the file is gone") })
    }

    fn end_forgotten(&self, ino: Ino) -> Result<()> {
        let mut tx = self.begin()?;
        if self.handles.lock().is_open(ino) {
            // The last release ends it.
            return Ok(());
        }
        match tx.get::<Node>(ino)? {
            Some(node) if node.links == 0 && node.grave.is_none() => self.end_orphan(&mut tx, ino, &node)?,
            _ => return Ok(()),
        }
        self.finish(tx);
        Ok(())
    }

    /// An inode's node, if it has a name, an open handle, or is still known to the kernel.
    pub(super) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        match self.records.get::<Node>(ino)? {
            Some(node) => Ok(node),
            None => self.removed.others.lock().get(&ino).map(|last| Arc::new(last.node.clone())).ok_or(Error::NotFound),
        }
    }

    /// The attributes of an inode without a name.
    pub(super) fn last_attributes(&self, ino: Ino) -> Option<Arc<Attributes>> {
        self.removed.others.lock().get(&ino).map(|last| Arc::new(last.attributes.clone()))
    }

    /// Remembers, once the transaction commits, an inode that it removes.
    pub(super) fn remember_removed(&self, tx: &mut Tx, ino: Ino, node: &Node) -> Result<()> {
        let attributes = if node.attributes { tx.get::<Attributes>(ino)? } else { None };
        let attributes = attributes.map_or_else(Attributes::default, |attributes| (*attributes).clone());
        let last = Last { node: Node { links: 0, ctime: Time::now(), ..node.clone() }, attributes };
        let removed = self.removed.others.clone();
        tx.count(move || drop(removed.lock().insert(ino, last)));
        Ok(())
    }

    /// Changes an inode without a name; `None` if there is no such one.
    pub(super) fn change_removed<T>(&self, ino: Ino, change: impl FnOnce(&mut Last) -> Result<T>) -> Option<Result<T>> {
        let mut removed = self.removed.others.lock();
        let last = removed.get_mut(&ino)?;
        let mut changed = last.clone();
        Some(change(&mut changed).inspect(|_| *last = changed))
    }
}
