use super::*;
use crate::store::RealDisk;
use crate::store::disk::recording::RecordingDisk;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tempfile::{TempDir, tempdir};

fn put(table: Table, key: u32, value: &[u8]) -> Change {
    Change { table, key: Key::from(&key.to_be_bytes()[..]), value: Some(value.to_vec()) }
}

fn delete(table: Table, key: u32) -> Change {
    Change { table, key: Key::from(&key.to_be_bytes()[..]), value: None }
}

fn value(rows: &Rows, key: u32) -> Option<Vec<u8>> {
    rows.get(Table::Node, &key.to_be_bytes()).unwrap()
}

fn recorded() -> (TempDir, Arc<RecordingDisk>, Rows) {
    let (dir, disk) = (tempdir().unwrap(), RecordingDisk::new());
    let rows = Rows::create(dir.path(), disk.clone()).unwrap();
    disk.take();
    (dir, disk, rows)
}

#[test]
fn rows_of_every_table_survive_close_and_open() {
    let dir = tempdir().unwrap();
    let rows = Rows::create(dir.path(), Arc::new(RealDisk)).unwrap();
    let changes: Vec<_> = Table::ALL.map(|table| put(table, 7, table.name().as_bytes())).into();
    rows.commit(&changes, Durability::Ordered).unwrap();
    rows.commit([put(Table::Node, 7, b"later"), delete(Table::Entry, 7)], Durability::Synced).unwrap();
    rows.close().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a clean close leaves one file");

    let rows = Rows::open(dir.path(), Arc::new(RealDisk)).unwrap();
    assert_eq!(value(&rows, 7).unwrap(), b"later");
    assert_eq!(rows.get(Table::Extent, &7u32.to_be_bytes()).unwrap().unwrap(), b"extent");
    assert_eq!(rows.get(Table::Entry, &7u32.to_be_bytes()).unwrap(), None);
    assert_eq!((rows.count(Table::Entry).unwrap(), rows.count(Table::Freed).unwrap()), (0, 1));
    assert_eq!(rows.integrity_check().unwrap(), Vec::<String>::new());
    assert_eq!(rows.statistics(), Statistics { statements: 6, commits: 0, syncs: 0 });
}

#[test]
fn scan_is_ordered_and_bounded() {
    let (_dir, _disk, rows) = recorded();
    for table in [Table::Entry, Table::Extent] {
        let changes = [5u32, 1, 256, 3, 2].map(|key| put(table, key, &vec![key as u8; 17 << 10]));
        rows.commit(&changes, Durability::Ordered).unwrap();
        let keys = |from: u32, to: u32, limit| -> Vec<u32> {
            let rows = rows.scan(table, &from.to_be_bytes(), &to.to_be_bytes(), limit).unwrap();
            rows.iter().map(|(key, _)| u32::from_be_bytes(key[..].try_into().unwrap())).collect()
        };
        assert_eq!(keys(0, u32::MAX, 100), [1, 2, 3, 5, 256]);
        assert_eq!(keys(2, 5, usize::MAX), [2, 3], "from is included, to is not");
        assert_eq!(keys(0, u32::MAX, 2), [1, 2]);
        assert_eq!(keys(6, 2, 2), Vec::<u32>::new());
    }
}

#[test]
fn readers_wait_for_neither_a_commit_nor_a_checkpoint() {
    let (_dir, _disk, rows) = recorded();
    rows.commit([put(Table::Node, 1, b"old")], Durability::Ordered).unwrap();
    let during_commit = || {
        let started = Instant::now();
        assert_eq!(value(&rows, 1).unwrap(), b"old", "an uncommitted row is seen by nobody");
        assert!(started.elapsed() < Duration::from_secs(1));
    };
    // The transaction is open while its changes are being made: the reads happen in the middle of it.
    let changes = (1..3).map(|key| {
        std::thread::scope(|threads| (0..4).for_each(|_| drop(threads.spawn(during_commit))));
        put(Table::Node, key, b"new")
    });
    rows.commit(changes, Durability::Synced).unwrap();
    assert_eq!(value(&rows, 1).unwrap(), b"new");

    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(value(&rows, 1).unwrap(), b"new");
            }
        });
        for _ in 0..20 {
            rows.commit((2..500).map(|key| put(Table::Node, key, &[7; 500])), Durability::Ordered).unwrap();
            rows.checkpoint_truncate().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn full_disk_rolls_back_whole_and_the_same_commit_succeeds_later() {
    let (dir, disk, rows) = recorded();
    rows.commit([put(Table::Node, 1, b"old")], Durability::Synced).unwrap();
    let changes = [put(Table::Node, 1, b"new"), put(Table::Extent, 2, &[1; 60_000])];
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        let mut writes = 0;
        disk.fail_when(move |line| {
            writes += u32::from(line.starts_with("write records.db-wal"));
            (writes > 5).then_some(errno)
        });
        let error = rows.commit(&changes, Durability::Synced).unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert_eq!(value(&rows, 1).unwrap(), b"old");
        assert_eq!(rows.count(Table::Extent).unwrap(), 0);
    }
    disk.fail_never();
    rows.commit(&changes, Durability::Synced).unwrap();
    rows.close().unwrap();
    let rows = Rows::open(dir.path(), Arc::new(RealDisk)).unwrap();
    assert_eq!(value(&rows, 1).unwrap(), b"new");
    assert_eq!(rows.count(Table::Extent).unwrap(), 1);
}

#[test]
fn an_error_of_the_disk_reaches_the_caller_with_its_errno() {
    let (_dir, disk, rows) = recorded();
    disk.fail_when(|line| line.starts_with("write").then_some(libc::EIO));
    match rows.commit([put(Table::Node, 1, b"x")], Durability::Ordered).unwrap_err() {
        StoreError::Io { source, path, .. } => {
            assert_eq!(source.raw_os_error(), Some(libc::EIO));
            assert!(path.ends_with("records.db"));
        }
        other => panic!("{other}"),
    }
    disk.fail_never();
    rows.commit([put(Table::Node, 1, b"x")], Durability::Ordered).unwrap();
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_reopened() {
    let (dir, disk, rows) = recorded();
    rows.commit([put(Table::Node, 1, b"old")], Durability::Synced).unwrap();
    disk.fail_when(|line| line.starts_with("sync records.db-wal").then_some(libc::EIO));
    let error = rows.commit([put(Table::Node, 2, b"lost?")], Durability::Synced).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    disk.fail_never();
    disk.take();
    for refused in
        [rows.commit([put(Table::Node, 3, b"x")], Durability::Ordered), rows.flush(), rows.checkpoint_truncate()]
    {
        assert!(refused.unwrap_err().to_string().contains("an earlier sync failed; remount"));
    }
    assert_eq!(value(&rows, 1).unwrap(), b"old", "reading goes on");
    assert!(rows.close().is_err());
    assert_eq!(disk.take(), Vec::<String>::new(), "not even closing writes");
    let rows = Rows::open(dir.path(), Arc::new(RealDisk)).unwrap();
    assert_eq!(value(&rows, 1).unwrap(), b"old");
}

#[test]
fn a_sync_that_fails_in_an_automatic_checkpoint_is_noticed() {
    let (_dir, disk, rows) = recorded();
    disk.fail_when(|line| (line == "sync records.db").then_some(libc::EIO));
    let large = (0..CHECKPOINT_PAGES).map(|key| put(Table::Extent, key, &[1; 5000]));
    rows.commit(large, Durability::Ordered).unwrap();
    disk.fail_never();
    assert!(rows.commit([put(Table::Node, 1, b"x")], Durability::Ordered).is_err());
}

#[test]
fn a_sync_that_finds_no_space_is_a_failed_sync_and_not_a_full_disk() {
    let (_dir, disk, rows) = recorded();
    disk.fail_when(|line| line.starts_with("sync records.db-wal").then_some(libc::ENOSPC));
    let error = rows.commit([put(Table::Node, 1, b"lost?")], Durability::Synced).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    disk.fail_never();
    assert!(rows.flush().is_err());
}

#[test]
fn a_synced_commit_writes_the_log_and_then_syncs_it_once() {
    let (_dir, disk, rows) = recorded();
    rows.commit([put(Table::Node, 1, b"x")], Durability::Synced).unwrap();
    let first = disk.take();
    assert_eq!(first.last().unwrap(), "sync records.db-wal", "{first:?}");
    assert!(first.iter().any(|line| line == "write records.db-wal 0+32"), "{first:?}");

    let before = rows.statistics();
    rows.commit([put(Table::Node, 2, b"x")], Durability::Ordered).unwrap();
    assert!(disk.take().iter().all(|line| line.starts_with("write records.db-wal")), "an ordered commit only writes");
    rows.commit([put(Table::Node, 3, b"x")], Durability::Synced).unwrap();
    let second = disk.take();
    assert_eq!(second.iter().position(|line| line == "sync records.db-wal"), Some(second.len() - 1), "{second:?}");
    rows.flush().unwrap();
    assert_eq!(disk.take(), Vec::<String>::new(), "what is durable is not synced again");
    let after = rows.statistics();
    assert_eq!(
        (after.statements - before.statements, after.commits - before.commits, after.syncs - before.syncs),
        (2, 2, 1)
    );
}

#[test]
fn a_new_log_is_named_in_a_synced_directory() {
    let (dir, _disk, rows) = recorded();
    rows.close().unwrap();
    let disk = RecordingDisk::new();
    let rows = Rows::open(dir.path(), disk.clone()).unwrap();
    rows.commit([put(Table::Node, 1, b"x")], Durability::Synced).unwrap();
    let lines = disk.take();
    assert_eq!(lines[0], "create records.db-wal");
    let directory = format!("sync directory {}", dir.path().file_name().unwrap().to_string_lossy());
    assert!(lines.contains(&directory), "{lines:?}");
}

#[test]
fn what_a_kill_leaves_opens_with_every_commit() {
    let (dir, _disk, rows) = recorded();
    rows.commit([put(Table::Node, 1, b"ordered")], Durability::Ordered).unwrap();
    let copy = tempdir().unwrap();
    for name in ["records.db", "records.db-wal"] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    rows.commit([put(Table::Node, 2, b"later")], Durability::Synced).unwrap();
    let disk = RecordingDisk::new();
    let copied = Rows::open(copy.path(), disk.clone()).unwrap();
    disk.take();
    copied.flush().unwrap();
    assert_eq!(disk.take()[0], "sync records.db-wal", "the killed process may not have come to it");
    assert_eq!(value(&copied, 1).unwrap(), b"ordered");
    assert_eq!(value(&copied, 2), None);
    assert_eq!(copied.integrity_check().unwrap(), Vec::<String>::new());
}

#[test]
fn purged_bytes_are_in_neither_file() {
    let (dir, _disk, rows) = recorded();
    let secret = b"a wrapped key that must not be found again";
    rows.commit([put(Table::Content, 1, secret), put(Table::Content, 2, b"x")], Durability::Ordered).unwrap();
    rows.commit([delete(Table::Content, 1)], Durability::Synced).unwrap();
    rows.checkpoint_truncate().unwrap();
    for file in ["records.db", "records.db-wal"] {
        let bytes = fs::read(dir.path().join(file)).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{file}");
    }
}

#[test]
fn other_files_and_formats_are_refused() {
    let dir = tempdir().unwrap();
    let open = || Rows::open(dir.path(), Arc::new(RealDisk)).map(drop);
    assert!(matches!(open(), Err(StoreError::Io { .. })), "missing");
    for garbage in [Vec::new(), vec![b'x'; 8192]] {
        fs::write(dir.path().join(FILE), garbage).unwrap();
        assert!(matches!(open(), Err(StoreError::Corrupt(_))));
    }
    fs::remove_file(dir.path().join(FILE)).unwrap();
    Rows::create(dir.path(), Arc::new(RealDisk)).unwrap().close().unwrap();
    assert!(Rows::create(dir.path(), Arc::new(RealDisk)).is_err(), "an existing vault is not overwritten");
    Connection::open(dir.path().join(FILE)).unwrap().pragma_update(None, "user_version", 9).unwrap();
    assert!(matches!(open(), Err(StoreError::Corrupt(text)) if text.contains("format 9")));
}
