//! `rename` inside an organization. Onto an existing object it is a save: the object keeps its id and history.

use super::context::Rewraps;
use super::error::{Error, Result};
use super::ids::Ino;
use super::records::Tx;
use super::row::{Entry, Kind, Node};
use super::time::Time;
use super::tree::TOMBSTONES;
use super::versions::{VERSIONS, VERSIONS_STAY};
use super::{Caller, RenameMode, Vault};

impl Vault {
    pub fn rename(&self, caller: &Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let shown = |(folder, name): (Ino, &[u8])| folder.is_in_versions() || (folder == Ino::ROOT && name == VERSIONS);
        if shown(from) || shown(to) {
            return Err(VERSIONS_STAY);
        }
        self.across_contexts(caller, |rewraps| self.rename_once(caller, rewraps, from, to, mode))
    }

    fn rename_once(
        &self,
        caller: &Caller,
        rewraps: &Rewraps,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        if from.0.is_graveyard() {
            return self.restore_by_rename(caller, from, to, mode);
        }
        if to.0.is_graveyard() || (to.0 == Ino::ROOT && to.1 == TOMBSTONES) {
            return Err(Error::NotPermitted("tombstones are made by deleting"));
        }
        if from.0 == Ino::ROOT || to.0 == Ino::ROOT {
            return match (from.0 == Ino::ROOT && to.0 == Ino::ROOT, mode) {
                (true, RenameMode::Exchange) => Err(Error::Invalid("organizations do not change places")),
                (true, mode) if mode.leaves_whiteout() => Err(Error::NotPermitted("a vault's root holds no devices")),
                (true, _) => self.relabel_organization(caller, from.1, to.1),
                (false, _) => Err(Error::NotPermitted("an organization is no folder, and a folder no organization")),
            };
        }
        if from.0.organization() != to.0.organization() {
            return Err(Error::OtherOrganization);
        }
        self.enter(from.0, caller.patience)?;
        let mut tx = self.begin()?;
        let keys = ((from.0, self.check_name(from.0, from.1)?), (to.0, self.check_name(to.0, to.1)?));
        let source = tx.need::<Entry>(keys.0)?;
        self.folder(&tx, to.0)?;
        let target = tx.get::<Entry>(keys.1)?;
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(Error::NotFound);
        }
        if source.kind == libc::S_IFDIR {
            self.check_no_loop(&tx, source.ino, to.0)?;
        }
        let Some(target) = target else {
            self.move_name(&mut tx, from, to, &source)?;
            if mode.leaves_whiteout() {
                self.put_whiteout(&mut tx, caller, from)?;
            } else {
                self.remember_tunnel(from, source.ino);
            }
            self.finish(tx);
            return Ok(());
        };
        match mode {
            RenameMode::NoReplace | RenameMode::WhiteoutNoReplace => return Err(Error::Exists),
            // POSIX: two names of one file stay.
            _ if target.ino == source.ino => return Ok(()),
            RenameMode::Exchange => {
                if target.kind == libc::S_IFDIR {
                    self.check_no_loop(&tx, target.ino, from.0)?;
                }
                tx.put(keys.0, Entry { name: from.1.to_vec(), ..(*target).clone() });
                tx.put(keys.1, Entry { name: to.1.to_vec(), ..(*source).clone() });
                self.rehome(&mut tx, &source, from.0, to)?;
                self.rehome(&mut tx, &target, to.0, from)?;
                self.finish(tx);
                return Ok(());
            }
            RenameMode::Replace | RenameMode::Whiteout => {}
        }
        match (source.kind == libc::S_IFDIR, target.kind == libc::S_IFDIR) {
            (true, false) => return Err(Error::NotADirectory),
            (false, true) => return Err(Error::IsADirectory),
            (true, true) if !self.is_empty(target.ino)? => return Err(Error::NotEmpty),
            _ => {}
        }
        let replaced = tx.need::<Node>(target.ino)?;
        self.move_name(&mut tx, from, to, &source)?;
        if mode.leaves_whiteout() {
            self.put_whiteout(&mut tx, caller, from)?;
        }
        if source.kind == libc::S_IFDIR {
            self.remove_node(&mut tx, target.ino, &replaced, false)?;
            self.touch_folder(&mut tx, to.0, -1, Time::now())?;
            self.finish(tx);
            return Ok(());
        }
        self.replace(tx, caller, rewraps, target.ino, source.ino, to)
    }

    /// Moves an entry; what stood at its new name is the caller's affair.
    fn move_name(&self, tx: &mut Tx, from: (Ino, &[u8]), to: (Ino, &[u8]), source: &Entry) -> Result<()> {
        tx.delete::<Entry>((from.0, self.records.name_hash(from.0, from.1)?));
        let hash = self.records.name_hash(to.0, to.1)?;
        tx.put((to.0, hash), Entry { name: to.1.to_vec(), ..source.clone() });
        self.rehome(tx, source, from.0, to)
    }

    /// As ext4 makes one: whoever may rename may do this.
    fn put_whiteout(&self, tx: &mut Tx, caller: &Caller, (folder, name): (Ino, &[u8])) -> Result<()> {
        let ino = self.next_ino(tx, folder.organization())?;
        let parent = self.folder(tx, folder)?;
        let (uid, gid) = caller.owner_in(&parent);
        let gid = if parent.mode & libc::S_ISGID != 0 { parent.gid } else { gid };
        let kind = Kind::CharDevice(0);
        let hash = self.records.name_hash(folder, name)?;
        tx.put((folder, hash), Entry { name: name.to_vec(), ino, kind: kind.mode_bits() });
        tx.put_new(ino, Node { kind, uid, gid, ..Node::new(Time::now()) });
        Ok(())
    }

    /// What a moved inode and both folders must know.
    fn rehome(&self, tx: &mut Tx, entry: &Entry, from: Ino, to: (Ino, &[u8])) -> Result<()> {
        let now = Time::now();
        let directory = i32::from(entry.kind == libc::S_IFDIR);
        self.change(tx, entry.ino, |node| {
            node.ctime = now;
            if let Kind::Directory { parent, name } | Kind::File { parent, name, .. } = &mut node.kind {
                (*parent, *name) = (to.0, to.1.to_vec());
            }
        })?;
        self.touch_folder(tx, from, -directory, now)?;
        self.touch_folder(tx, to.0, directory, now)
    }

    /// A directory does not move below itself.
    fn check_no_loop(&self, tx: &Tx, moved: Ino, mut folder: Ino) -> Result<()> {
        while !folder.is_top() {
            if folder == moved {
                return Err(Error::Invalid("a directory cannot move below itself"));
            }
            match tx.need::<Node>(folder)?.kind {
                Kind::Directory { parent, .. } => folder = parent,
                _ => return Err(Error::NotADirectory),
            }
        }
        Ok(())
    }
}
