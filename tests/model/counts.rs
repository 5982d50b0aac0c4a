//! What operations cost, counted: calls of the token, statements and commits of the records, writes and syncs of the disk.
//! Machines are noisy and clocks lie, but these numbers are the same everywhere: one that rises has made something dearer.

use super::{template, token};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vaultfs::store::{Disk, Op};
use vaultfs::vault::{Access, Caller, Handle, Ino, Make, Options, RenameMode, SetXattr, Vault};

const WRITE: Access = Access { read: true, write: true, append: false, truncate: false };
const READ: Access = Access { read: true, write: false, append: false, truncate: false };

#[derive(Default)]
struct Counting {
    writes: AtomicU64,
    syncs: AtomicU64,
}

impl Disk for Counting {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        match op {
            Op::Write { .. } => self.writes.fetch_add(1, Ordering::SeqCst),
            Op::Sync { .. } => self.syncs.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        };
        Ok(())
    }
}

#[derive(PartialEq, Eq, Debug, Clone, Copy)]
struct Cost {
    token: u64,
    statements: u64,
    commits: u64,
    syncs: u64,
}

const NOTHING: Cost = Cost { token: 0, statements: 0, commits: 0, syncs: 0 };

struct Meter {
    vault: Arc<Vault>,
    disk: Arc<Counting>,
    caller: Caller,
    top: Ino,
}

impl Meter {
    /// Nothing is stored but what is asked for, so that each count is of one operation.
    fn open(state: &std::path::Path) -> Meter {
        let disk = Arc::new(Counting::default());
        let settings = [("gather", "1h"), ("commit_interval", "1h"), ("reap_interval", "1h")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let vault = Vault::open_on(state, Options { settings, ..Options::default() }, disk.clone()).unwrap();
        let caller = Caller::daemon();
        let top = vault.lookup(&caller, Ino::ROOT, super::operation::ORGANIZATIONS[0].as_bytes()).unwrap().ino;
        let meter = Meter { vault, disk, caller, top };
        // The organization's own key, and the pool of keys for new contents.
        meter.vault.lookup(&meter.caller, top, b"no such name").unwrap_err();
        meter.settled();
        meter
    }

    /// The pool of keys is full and asks the token for no more.
    fn settled(&self) {
        let mut before = u64::MAX;
        while before != self.vault.status().token.calls {
            before = self.vault.status().token.calls;
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// What `operation` costs until it is on the disk.
    fn cost(&self, operation: impl FnOnce()) -> Cost {
        let count = || {
            let status = self.vault.status();
            let (records, syncs) = (status.records, self.disk.syncs.load(Ordering::SeqCst));
            Cost { token: status.token.calls, statements: records.statements, commits: records.commits, syncs }
        };
        let before = count();
        operation();
        self.vault.sync().unwrap();
        let after = count();
        Cost {
            token: after.token - before.token,
            statements: after.statements - before.statements,
            commits: after.commits - before.commits,
            syncs: after.syncs - before.syncs,
        }
    }

    fn create(&self, folder: Ino, name: &str) -> (Ino, Handle) {
        let (attr, handle) = self.vault.create(&self.caller, folder, name.as_bytes(), 0o644, WRITE).unwrap();
        (attr.ino, handle)
    }

    fn close(&self, handle: Handle) {
        self.vault.flush(&self.caller, handle).unwrap();
        self.vault.release(handle).unwrap();
    }

    fn save(&self, folder: Ino, name: &str, value: &[u8]) -> Ino {
        let (ino, handle) = self.create(folder, name);
        self.vault.write(&self.caller, handle, 0, value).unwrap();
        self.close(handle);
        ino
    }

    fn read(&self, ino: Ino) {
        let handle = self.vault.open_file(&self.caller, ino, READ).unwrap();
        self.vault.read(&self.caller, handle, 0, 4096).unwrap();
        self.close(handle);
    }

    fn list(&self, folder: Ino) -> Vec<Ino> {
        let mut found = Vec::new();
        self.vault
            .read_directory(&self.caller, folder, 0, &mut |entry| {
                found.push(entry.ino);
                true
            })
            .unwrap();
        for ino in &found {
            self.vault.attr(&self.caller, *ino).unwrap();
        }
        found
    }
}

#[test]
fn operations_cost_what_they_always_have() {
    token::isolated("counts::operations_cost_what_they_always_have", |token| {
        let template = template(token);
        let state = template.path().join("state");
        let meter = Meter::open(&state);
        let Meter { vault, caller, top, .. } = &meter;
        // The first change of a mount begins a log, which is synced once more.
        vault.make(caller, *top, b"first", 0o755, Make::Directory).unwrap();
        vault.sync().unwrap();
        let mut folder = *top;
        let mkdir = meter.cost(|| folder = vault.make(caller, *top, b"folder", 0o755, Make::Directory).unwrap().ino);
        // Vault, organization, folder, its entry, its parent; and a look for the name.
        assert_eq!(mkdir, Cost { statements: 6, commits: 1, syncs: 1, ..NOTHING }, "mkdir");
        // The first of a mount asks for more keys.
        meter.save(folder, "warm", b"value");
        vault.sync().unwrap();
        meter.settled();

        let create = Cost { statements: 9, commits: 1, syncs: 1, ..NOTHING };
        let value = [7; 4096];
        let cost = meter.cost(|| {
            meter.save(folder, "a", &value);
        });
        // Vault, organization, folder, entry, inode, wrapped key, extent, object; and a look for the name.
        assert_eq!(Cost { token: 0, ..cost }, create, "create, write 4 KiB, close, sync");
        for name in ["b", "c", "d"] {
            meter.save(folder, name, &value);
        }
        let a = vault.lookup(caller, folder, b"a").unwrap().ino;
        vault.sync().unwrap();
        meter.settled();

        assert_eq!(meter.cost(|| _ = vault.attr(caller, a).unwrap()), NOTHING, "stat");
        assert_eq!(meter.cost(|| _ = vault.lookup(caller, folder, b"a").unwrap()), NOTHING, "lookup");
        assert_eq!(meter.cost(|| drop(vault.get_xattr(caller, a, b"user.vault.id"))), NOTHING, "getxattr");
        assert_eq!(meter.cost(|| drop(vault.list_xattr(caller, a).unwrap())), NOTHING, "listxattr");
        assert_eq!(meter.cost(|| meter.read(a)), NOTHING, "open and read of a cached object");
        assert_eq!(meter.cost(|| assert!(vault.note_access(a))), NOTHING, "the first access after a change");
        let list = meter.cost(|| assert_eq!(meter.list(folder).len(), 5));
        assert_eq!(list, Cost { statements: 1, ..NOTHING }, "readdir with attributes, cached: one scan of the names");

        let overwrite = meter.cost(|| {
            let handle = vault.open_file(caller, a, WRITE).unwrap();
            vault.write(caller, handle, 0, &[8; 4096]).unwrap();
            meter.close(handle);
        });
        // Vault, organization (what earlier versions take), inode, new extent, the old one for its version, object, and the
        // mark of an open value that goes again.
        assert_eq!(overwrite, Cost { statements: 6, commits: 1, syncs: 1, ..NOTHING }, "overwrite 4 KiB, close, sync");
        let rename = meter.cost(|| {
            vault.rename(caller, (folder, b"a"), (folder, b"e"), RenameMode::Replace).unwrap();
        });
        // A look for the new name; vault, folder, inode, both entries.
        assert_eq!(rename, Cost { statements: 6, commits: 1, syncs: 1, ..NOTHING }, "rename");
        let unlink = meter.cost(|| vault.unlink(caller, folder, b"e").unwrap());
        // A look for older tombstones of the name; vault, organization, folder, inode, entry, tombstone, its index.
        assert_eq!(unlink, Cost { statements: 8, commits: 1, syncs: 1, ..NOTHING }, "unlink");

        let (_, log) = meter.create(folder, "log");
        vault.write(caller, log, 0, b"first\n").unwrap();
        vault.sync().unwrap();
        let append = meter.cost(|| vault.write(caller, log, 6, b"next\n").unwrap());
        // Vault, organization (bytes), inode, extent.
        assert_eq!(append, Cost { statements: 4, commits: 1, syncs: 1, ..NOTHING }, "append and sync");
        // Two pages with their headers, as SQLite's log gets them: no segment has to be synced first.
        let frames = meter.cost(|| vault.write(caller, log, 11, &[2; 2 * 4120]).unwrap());
        assert_eq!(frames, append, "append 8 KiB and sync");
        meter.close(log);

        let (_, large) = meter.create(folder, "large");
        vault.sync().unwrap();
        meter.settled();
        let before = meter.disk.writes.load(Ordering::SeqCst);
        let megabyte = meter.cost(|| vault.write(caller, large, 0, &vec![1; 1 << 20]).unwrap());
        // The segment and the log are synced; no byte of the value is in the log.
        assert_eq!(megabyte.syncs, 2, "1 MiB, sync");
        assert!(meter.disk.writes.load(Ordering::SeqCst) - before < 40, "1 MiB is a few writes");
        meter.close(large);
        vault.close().unwrap();
    });
}

#[test]
fn a_first_open_asks_the_token_once_and_a_first_look_never() {
    token::isolated("counts::a_first_open_asks_the_token_once_and_a_first_look_never", |token| {
        let template = template(token);
        let state = template.path().join("state");
        let meter = Meter::open(&state);
        let files: Vec<Ino> = (0..10).map(|i| meter.save(meter.top, &format!("file-{i}"), b"value")).collect();
        meter.vault.close().unwrap();

        let meter = Meter::open(&state);
        let Meter { vault, caller, top, .. } = &meter;
        let looked = meter.cost(|| {
            assert_eq!(meter.list(*top).len(), 10);
            vault.get_xattr(caller, files[0], b"user.vault.version_id").unwrap();
        });
        // One scan of the names, ten inodes, one object and its wrapped key.
        assert_eq!(looked, Cost { statements: 13, ..NOTHING });
        // Its key, its extents.
        assert_eq!(meter.cost(|| meter.read(files[3])), Cost { token: 1, statements: 2, ..NOTHING }, "first open");
        assert_eq!(meter.cost(|| meter.read(files[3])), NOTHING, "second open");
        vault.close().unwrap();
    });
}

#[test]
fn each_further_pair_costs_a_first_open_one_call_and_a_create_none() {
    token::isolated("counts::each_further_pair_costs_a_first_open_one_call_and_a_create_none", |token| {
        let template = template(token);
        let state = template.path().join("state");
        let meter = Meter::open(&state);
        let Meter { vault, caller, top, .. } = &meter;
        let folder = vault.make(caller, *top, b"folder", 0o755, Make::Directory).unwrap().ino;
        for pair in ["customer", "region"] {
            let name = format!("user.vault.context.{pair}");
            vault.set_xattr(caller, folder, name.as_bytes(), b"x", SetXattr::Any).unwrap();
        }
        // The first makes the KEKs, and both ask for keys ahead.
        meter.save(folder, "warm", b"value");
        meter.save(*top, "warm", b"value");
        vault.sync().unwrap();
        meter.settled();
        let mut file = *top;
        assert_eq!(meter.cost(|| file = meter.save(folder, "a", b"value")).token, 0, "create, write, close");
        let other = meter.save(folder, "b", b"value");
        meter.save(*top, "new", b"newer");
        meter.settled();
        let save = || vault.rename(caller, (*top, b"new"), (folder, b"warm"), RenameMode::Replace).unwrap();
        assert_eq!(
            meter.cost(save).token,
            3,
            "a save into another context makes its three layers, its key being cached"
        );
        vault.close().unwrap();

        let meter = Meter::open(&state);
        // A mount looks each KEK up once: the organization's own when it is entered, these two now.
        assert_eq!(meter.cost(|| meter.read(other)).token, 3 + 2, "first open of a mount");
        assert_eq!(meter.cost(|| meter.read(file)).token, 3, "first open");
        assert_eq!(meter.cost(|| meter.read(file)), NOTHING, "second open");
        meter.vault.close().unwrap();
    });
}
