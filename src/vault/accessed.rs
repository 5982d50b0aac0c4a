//! Times of access, as `relatime` keeps them: reading sets the time once after each change, and else once a day.
//!
//! A time waits in memory, as with ext4's `lazytime`, until something else changes the inode, or the reaper comes by.

use super::Vault;
use super::error::{Error, Result};
use super::ids::Ino;
use super::row::Node;
use super::time::Time;
use std::time::Duration;

const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Vault {
    /// Notes that something is read; whether its time of access has changed. Where that cannot be written (the disk is full
    /// or has failed), reading goes on without.
    pub fn note_access(&self, ino: Ino) -> bool {
        self.set_access_time(ino).unwrap_or(false)
    }

    fn set_access_time(&self, ino: Ino) -> Result<bool> {
        let has_none = ino == Ino::ROOT || ino.is_graveyard() || ino.is_in_versions();
        let due = || Ok::<_, Error>(self.records.get::<Node>(ino)?.is_some_and(|node| is_due(&node)));
        if has_none || !due()? || !self.has_room(0)? {
            return Ok(false);
        }
        let mut tx = self.begin()?;
        let Some(node) = tx.get::<Node>(ino)?.filter(|node| is_due(node)) else { return Ok(false) };
        let node = Node { atime: Time::now(), ..(*node).clone() };
        if !tx.let_wait(ino, node.clone()) {
            tx.put(ino, node);
            self.finish(tx);
        }
        Ok(true)
    }

    /// Stores the times of access that wait, if there is room.
    pub(super) fn store_access_times(&self) -> Result<()> {
        if !self.has_room(0)? {
            return Ok(());
        }
        let mut tx = self.begin()?;
        if tx.put_waiting() {
            self.finish(tx);
        }
        Ok(())
    }
}

/// As Linux decides. A tombstone keeps the times that it was deleted with.
fn is_due(node: &Node) -> bool {
    node.grave.is_none() && (node.atime <= node.mtime || node.atime <= node.ctime || node.atime.age() >= A_DAY)
}
