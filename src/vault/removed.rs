//! Folders, links, fifos, sockets and devices that have no name any more and that the kernel still knows, because
//! somebody works in them or has them open: they answer as they last were, until the kernel forgets them.
//!
//! In memory alone: nobody can know them after a crash. (Files without a name are kept by their handles, `file.rs`.)

use super::Vault;
use super::error::{Error, Result};
use super::ids::Ino;
use super::records::Tx;
use super::row::{Attributes, Node};
use super::time::Time;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Default)]
pub struct Removed(Arc<Mutex<HashMap<Ino, Last>>>);

/// An inode as it was when it lost its last name, and as it was changed since.
#[derive(Clone)]
pub struct Last {
    pub node: Node,
    pub attributes: Attributes,
}

impl Vault {
    /// The kernel knows this inode no more.
    pub fn forget(&self, ino: Ino, times: u64) {
        if ino.is_in_versions() {
            return self.versions.forget(ino, times);
        }
        self.removed.0.lock().remove(&ino);
    }

    /// An inode's node, if it has a name, an open handle, or is still known to the kernel.
    pub(super) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        match self.records.get::<Node>(ino)? {
            Some(node) => Ok(node),
            None => self.removed.0.lock().get(&ino).map(|last| Arc::new(last.node.clone())).ok_or(Error::NotFound),
        }
    }

    /// The attributes of an inode without a name.
    pub(super) fn last_attributes(&self, ino: Ino) -> Option<Arc<Attributes>> {
        self.removed.0.lock().get(&ino).map(|last| Arc::new(last.attributes.clone()))
    }

    /// Remembers, once the transaction commits, an inode that it removes.
    pub(super) fn remember_removed(&self, tx: &mut Tx, ino: Ino, node: &Node) -> Result<()> {
        let attributes = if node.attributes { tx.get::<Attributes>(ino)? } else { None };
        let attributes = attributes.map_or_else(Attributes::default, |attributes| (*attributes).clone());
        let last = Last { node: Node { links: 0, ctime: Time::now(), ..node.clone() }, attributes };
        let removed = self.removed.0.clone();
        tx.count(move || drop(removed.lock().insert(ino, last)));
        Ok(())
    }

    /// Changes an inode without a name; `None` if there is no such one.
    pub(super) fn change_removed<T>(&self, ino: Ino, change: impl FnOnce(&mut Last) -> Result<T>) -> Option<Result<T>> {
        let mut removed = self.removed.0.lock();
        let last = removed.get_mut(&ino)?;
        let mut changed = last.clone();
        Some(change(&mut changed).inspect(|_| *last = changed))
    }
}
