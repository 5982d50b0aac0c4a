//! Directories as lists: entries in the order of their names' hashes, which is also their stable cookie.

use super::error::{Error, Result};
use super::ids::{Ino, OrgNo};
use super::row::{Entry, Record};
use super::tree::{TOMBSTONES, end_of_entries};
use super::versions::VERSIONS;
use super::{Caller, DirEntry, Vault};
use crate::store::Key;

/// Cookies of entries start above the ones that adapters give to `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;
/// The cookies of what is hidden in the root, after every other.
const VERSIONS_COOKIE: u64 = i64::MAX as u64 - 1;
const TOMBSTONES_COOKIE: u64 = i64::MAX as u64;

/// The first half of a name's hash, less one bit, as a cookie: two names of one folder share one with a
/// probability of n² / 2⁶⁴, and then a listing that is continued between them misses the second.
fn cookie_of(key: &Key) -> u64 {
    let half = u64::from_be_bytes(key[8..16].try_into().expect("keys of entries hold a hash"));
    (half >> 1).clamp(FIRST_COOKIE, VERSIONS_COOKIE - 1)
}

impl Vault {
    /// Entries after `cookie` (0 from the start; without `.` and `..`) until `f` says that it has enough.
    pub fn read_directory(
        &self,
        caller: &Caller,
        ino: Ino,
        cookie: u64,
        f: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        if ino == Ino::GRAVEYARD {
            return self.list_graveyards(cookie, f);
        }
        if ino.is_in_versions() {
            return self.list_versions(caller, ino, cookie, f);
        }
        self.enter(ino, caller.patience)?;
        if ino.is_graveyard() {
            return self.list_graves(ino.organization(), cookie, f);
        }
        if !self.node(ino)?.kind.is_directory() {
            return Err(Error::NotADirectory);
        }
        if cookie < VERSIONS_COOKIE {
            let half = if cookie < FIRST_COOKIE { 0 } else { (cookie + 1) << 1 };
            let mut next = Some(Key::from(&[ino.0.to_be_bytes(), half.to_be_bytes()].concat()[..]));
            while let Some(start) = next {
                let part = self.records.scan::<Entry>(Entry::at((ino, [0; 16])), start, end_of_entries(ino), 256)?;
                for (key, entry) in part.rows {
                    let cookie = cookie_of(&key);
                    if !f(DirEntry { ino: entry.ino, kind: entry.kind, name: entry.name.clone(), cookie }) {
                        return Ok(());
                    }
                }
                next = part.next;
            }
        }
        if ino == Ino::ROOT && self.show_hidden {
            let hidden = [(VERSIONS_COOKIE, Ino::VERSIONS, VERSIONS), (TOMBSTONES_COOKIE, Ino::GRAVEYARD, TOMBSTONES)];
            for (own, ino, name) in hidden.into_iter().filter(|(own, ..)| *own > cookie) {
                if !f(DirEntry { ino, kind: libc::S_IFDIR, name: name.to_vec(), cookie: own }) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// `.tombstones`: a directory for each organization, deleted ones under their tombstone's name.
    fn list_graveyards(&self, cookie: u64, f: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        for organization in self.organizations.all() {
            let own = FIRST_COOKIE + u64::from(organization.no.0);
            if own <= cookie {
                continue;
            }
            let ino = Ino::graveyard_of(organization.no);
            let name = self.graveyard_name(&organization)?;
            if !f(DirEntry { ino, kind: libc::S_IFDIR, name, cookie: own }) {
                break;
            }
        }
        Ok(())
    }

    fn list_graves(&self, org: OrgNo, cookie: u64, f: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let mut from = (cookie + 1).saturating_sub(FIRST_COOKIE - 1);
        loop {
            let graves = self.graves(org, from, 256)?;
            let Some((last, _)) = graves.last() else { return Ok(()) };
            from = last + 1;
            for (number, grave) in &graves {
                let entry = DirEntry {
                    ino: grave.ino,
                    kind: libc::S_IFREG,
                    name: grave.name.clone(),
                    cookie: number + FIRST_COOKIE - 1,
                };
                if !f(entry) {
                    return Ok(());
                }
            }
        }
    }
}
