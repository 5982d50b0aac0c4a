//! What happens to a content while the writer thread is storing it.

use crate::store::{Disk, Op};
use crate::vault::row::Node;
use crate::vault::token;
use crate::vault::{Access, Caller, FsckOptions, Ino, Options, RenameMode, Vault};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;

/// Holds up every write to a segment while it is shut.
#[derive(Default)]
struct Gate {
    /// Shut, and somebody waits at it.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn shut(&self) {
        *self.state.lock() = (true, false);
    }

    fn open(&self) {
        *self.state.lock() = (false, false);
        self.changed.notify_all();
    }

    fn wait_for_somebody(&self) {
        let mut state = self.state.lock();
        while !state.1 {
            self.changed.wait(&mut state);
        }
    }
}

impl Disk for Gate {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        if matches!(op, Op::Write { path, .. } if path.components().any(|part| part.as_os_str() == "segments")) {
            let mut state = self.state.lock();
            while state.0 {
                state.1 = true;
                self.changed.notify_all();
                self.changed.wait(&mut state);
            }
        }
        Ok(())
    }
}

#[test]
fn an_inode_that_goes_while_its_value_is_stored_stays_gone() {
    token::isolated("vault::storing::tests::an_inode_that_goes_while_its_value_is_stored_stays_gone", |token| {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let config = token.config();
        Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
        let gate = Arc::new(Gate::default());
        let vault = Vault::open_on(&state, Options::default(), gate.clone()).unwrap();
        let caller = Caller::daemon();
        vault.create_organization(&caller, "acme", None, None).unwrap();
        let top = vault.lookup(&caller, Ino::ROOT, b"acme").unwrap().ino;
        let access = Access { read: true, write: true, ..Access::default() };
        let write = |name: &[u8], value: &[u8]| {
            let (attr, handle) = vault.create(&caller, top, name, 0o600, access).unwrap();
            vault.write(&caller, handle, 0, value).unwrap();
            vault.flush(&caller, handle).unwrap();
            vault.release(handle).unwrap();
            attr.ino
        };
        gate.shut();
        let old = write(b"f", &[1; 20_000]);
        gate.wait_for_somebody();
        write(b"new", b"small");
        vault.rename(&caller, (top, b"new"), (top, b"f"), RenameMode::Replace).unwrap();
        gate.open();
        vault.sync().unwrap();
        assert!(vault.records.get::<Node>(old).unwrap().is_none(), "the replaced inode is back");
        vault.close().unwrap();
    });
}

/// Of an inline value of several blocks each version keeps the blocks that it needs, and they are found again.
#[test]
fn parts_of_a_synced_value_and_of_its_earlier_version_are_whole() {
    token::isolated("vault::storing::tests::parts_of_a_synced_value_and_of_its_earlier_version_are_whole", |token| {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let config = token.config();
        Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
        let vault = Vault::open(&state, Options::default()).unwrap();
        let caller = Caller::daemon();
        vault.create_organization(&caller, "acme", None, None).unwrap();
        let first: Vec<u8> = (0..16_000).map(|n| (n / 64) as u8).collect();
        let id = vault.put_object(&caller, b"acme/f", None, &mut &first[..]).unwrap().id.parse().unwrap();
        let top = vault.lookup(&caller, Ino::ROOT, b"acme").unwrap().ino;
        let file = vault.lookup(&caller, top, b"f").unwrap().ino;
        let access = Access { read: true, write: true, ..Access::default() };
        let handle = vault.open_file(&caller, file, access).unwrap();
        let mut second = first.clone();
        for at in [100, 3900, 8192, 12_000, 15_950] {
            vault.write(&caller, handle, at as u64, &[255; 50]).unwrap();
            second[at..at + 50].fill(255);
            vault.fsync(handle).unwrap();
        }
        vault.flush(&caller, handle).unwrap();
        vault.release(handle).unwrap();
        assert_eq!(vault.segments.list(file.organization().0).unwrap(), [], "all of it is inline");
        let read = |vault: &Vault, version| {
            let mut value = Vec::new();
            let mut add = |part: &[u8]| {
                value.extend_from_slice(part);
                Ok(())
            };
            vault.read_object(id, Some(version), &mut add).unwrap();
            value
        };
        assert!(read(&vault, 1) == first && read(&vault, 2) == second);
        vault.close().unwrap();
        let vault = Vault::open(&state, Options::default()).unwrap();
        assert!(read(&vault, 1) == first && read(&vault, 2) == second, "after opening again");
        vault.close().unwrap();
        let mut findings = Vec::new();
        let add = &mut |finding| findings.push(finding);
        Vault::fsck_offline(&state, &Options::default(), FsckOptions::default(), add, &mut |_, _| ()).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
    });
}
