//! A vault on a token of its own, driven without a mount, and what is asked of it.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use super::token::{Token, eventually};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use vaultfs::store::{Disk, Op};
use vaultfs::vault::{Caller, Ino, ObjectId, Options, Result, SetXattr, Vault};

/// A vault and its token.
pub struct World {
    pub directory: TempDir,
    pub vault: Arc<Vault>,
}

impl World {
    pub fn new(token: &Token) -> World {
        Self::residing(token, "token")
    }

    pub fn residing(token: &Token, residency: &str) -> World {
        let directory = tempfile::tempdir().unwrap();
        let config = token.config();
        let state = directory.path().join("state");
        Vault::init_residing(&state, &config.uri.to_string(), &config.pin.to_string(), residency).unwrap();
        let vault = open(&state);
        World { directory, vault }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn reopen(&mut self) {
        self.vault.close().unwrap();
        self.vault = open(&self.state());
    }

    /// A copy of the closed state directory, as a backup would have it.
    pub fn copy(&mut self, name: &str) -> PathBuf {
        self.vault.close().unwrap();
        let copy = self.directory.path().join(name);
        let done = Command::new("cp").arg("-a").arg(self.state()).arg(&copy).status().unwrap();
        assert!(done.success());
        self.vault = open(&self.state());
        copy
    }

    pub fn org(&self, name: &str) {
        self.vault.create_organization(&Caller::daemon(), name, None, None).unwrap();
    }

    pub fn put(&self, path: &str, value: &[u8]) -> ObjectId {
        let put = self.vault.put_object(&Caller::daemon(), path.as_bytes(), None, &mut &*value).unwrap();
        put.id.parse().unwrap()
    }

    pub fn rotate(&self, which: &str) {
        self.vault.rotate(&Caller::daemon(), which).unwrap();
        self.rotated();
    }

    pub fn rotated(&self) {
        eventually(Duration::from_secs(30), || self.vault.rotations().is_empty());
    }

    /// Names and times of the files that hold values.
    pub fn segments(&self) -> Vec<(PathBuf, SystemTime)> {
        let mut found = Vec::new();
        for organization in std::fs::read_dir(self.state().join("segments")).unwrap() {
            for file in std::fs::read_dir(organization.unwrap().path()).unwrap().map(|file| file.unwrap()) {
                found.push((file.path(), file.metadata().unwrap().modified().unwrap()));
            }
        }
        found.sort();
        found
    }

    pub fn purge(&self, id: ObjectId) {
        self.vault.delete_object(&Caller::daemon(), id, None).unwrap();
        self.vault.purge(&Caller::daemon(), id.to_string().as_bytes()).unwrap();
    }
}

pub fn inode(vault: &Vault, path: &str) -> Ino {
    let down = |folder, name: &str| vault.lookup(&Caller::daemon(), folder, name.as_bytes()).unwrap().ino;
    path.split('/').fold(Ino::ROOT, down)
}

pub fn open(state: &Path) -> Arc<Vault> {
    Vault::open(state, Options::default()).unwrap()
}

pub fn read(vault: &Vault, id: ObjectId) -> Result<Vec<u8>> {
    let mut value = Vec::new();
    vault.read_object(id, None, &mut |part| {
        value.extend_from_slice(part);
        Ok(())
    })?;
    Ok(value)
}

pub fn errno<T>(result: Result<T>) -> i32 {
    result.err().map_or(0, |error| error.errno())
}

pub fn set_pair(vault: &Vault, organization: &str, key: &str, value: &str) {
    let caller = Caller::daemon();
    let top = vault.lookup(&caller, Ino::ROOT, organization.as_bytes()).unwrap().ino;
    let name = format!("user.vault.context.{key}");
    vault.set_xattr(&caller, top, name.as_bytes(), value.as_bytes(), SetXattr::Any).unwrap();
}

/// Refuses every change once so many were let through.
pub struct Dying(pub AtomicI64);

impl Disk for Dying {
    fn before(&self, _: &Op<'_>) -> std::io::Result<()> {
        match self.0.fetch_sub(1, Ordering::SeqCst) {
            ..=0 => Err(std::io::Error::other("the disk is dead")),
            _ => Ok(()),
        }
    }
}
