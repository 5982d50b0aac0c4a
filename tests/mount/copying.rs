//! `copy_file_range`: inside a file nothing is stored twice, between files the daemon does the copying.

use crate::kernel::{copy_file_range, errno, seek, vault_says};
use crate::vault::{Vault, run};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const MIB: usize = 1 << 20;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Bytes of which no two places hold the same.
fn value(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n).to_le_bytes()).collect()
}

/// Copies until the source ends or `len` bytes are copied.
fn copy(from: (&Path, u64), to: (&Path, u64), len: usize) -> usize {
    let (mut source, mut target) = (open(from.0), open(to.0));
    source.seek(SeekFrom::Start(from.1)).unwrap();
    target.seek(SeekFrom::Start(to.1)).unwrap();
    let mut copied = 0;
    while copied < len {
        match copy_file_range(&source, &target, len - copied).unwrap() {
            0 => break,
            more => copied += more as usize,
        }
    }
    target.sync_all().unwrap();
    copied
}

/// What the segments take on the disk.
fn stored(vault: &Vault) -> u64 {
    let told = run("du", &[&"-s", &"-B1", &vault.state().join("segments")]);
    told.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_copy_inside_a_file_shares_its_extents() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let first = value(16 * MIB);
    fs::write(&f, &first).unwrap();
    open(&f).sync_all().unwrap();
    // Not surely the first: any process that this one starts closes its copies of our descriptors.
    let version = vault_says(&f, "version");
    let before = stored(&vault);
    assert_eq!(copy((&f, 0), (&f, 16 << 20), 16 * MIB), 16 * MIB);
    // And at odd places, twice removed.
    assert_eq!(copy((&f, (16 << 20) + 12_345), (&f, (40 << 20) + 77), 3_000_001), 3_000_001);
    assert!(stored(&vault) < before + (1 << 20), "{} after {before}", stored(&vault));
    let odd = &first[12_345..12_345 + 3_000_001];
    let whole = |begin: &[u8]| {
        let read = fs::read(&f).unwrap();
        assert!(read[..begin.len()] == *begin && read[begin.len()..16 * MIB] == first[begin.len()..]);
        assert!(read[16 * MIB..32 * MIB] == first[..] && read[40 * MIB + 77..] == *odd);
        assert!(read[32 * MIB..40 * MIB + 77].iter().all(|b| *b == 0));
    };
    whole(&[]);
    // What the original loses, the copies and the first version keep.
    let over = vec![0xAA; 9 * MIB + 5];
    open(&f).write_all_at(&over, 0).unwrap();
    vault.remount();
    whole(&over);
    let old = vault.command(&["object", "get", "--version", &version, "a/f"]).good().out;
    assert!(old == first);
    vault.command(&["fsck"]).good();
    open(&f).set_len(0).unwrap();
    fs::remove_file(&f).unwrap();
    fs::remove_file(vault.tombstone("a")).unwrap();
    vault.remount();
    assert!(stored(&vault) < 2 << 20, "{}", stored(&vault));
}

#[test]
fn a_copy_of_what_was_just_written_is_read_at_once() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = open(&f);
    let mut model = value(300_000);
    file.write_all_at(&model, 0).unwrap();
    for n in 0..60u64 {
        let (from, to, len) = ((n * 4_099) as usize % 250_000, 300_000 + (n * 7_001) as usize, 20_000 + n as usize);
        let (mut source, mut target) = (open(&f), open(&f));
        source.seek(SeekFrom::Start(from as u64)).unwrap();
        target.seek(SeekFrom::Start(to as u64)).unwrap();
        let copied = copy_file_range(&source, &target, len).unwrap() as usize;
        model.resize(model.len().max(to + copied), 0);
        model.copy_within(from..from + copied, to);
        let mark = [n as u8; 5_000];
        file.write_all_at(&mark, from as u64 + 3).unwrap();
        model[from + 3..from + 5_003].copy_from_slice(&mark);
        if n % 10 == 0 {
            file.sync_all().unwrap();
        }
        assert!(fs::read(&f).unwrap() == model, "after {n}");
    }
    drop(file);
    vault.remount();
    assert!(fs::read(&f).unwrap() == model);
    vault.command(&["fsck"]).good();
}

#[test]
fn a_copy_between_organizations_is_encrypted_anew_and_keeps_holes() {
    let vault = Vault::up();
    let (f, g) = (vault.org("a").join("f"), vault.org("b").join("g"));
    let islands = value(2 * MIB);
    let file = open(&f);
    file.write_all_at(&islands, 1 << 30).unwrap();
    file.write_all_at(b"end", 5 << 30).unwrap();
    file.set_len(6 << 30).unwrap();
    assert_eq!(copy((&f, 0), (&g, 0), 7 << 30), 6 << 30);
    let (copied, mut part) = (open(&g), vec![0; islands.len()]);
    assert_eq!(copied.metadata().unwrap().len(), 6 << 30);
    assert!(copied.metadata().unwrap().blocks() * 512 < 4 << 20);
    assert_eq!(seek(&copied, 0, libc::SEEK_DATA).unwrap(), 1 << 30);
    copied.read_exact_at(&mut part, 1 << 30).unwrap();
    assert!(part == islands);
    copied.read_exact_at(&mut part[..4], (5 << 30) - 1).unwrap();
    assert_eq!(&part[..4], b"\0end");
    assert_ne!(vault_says(&f, "key_id"), vault_says(&g, "key_id"));
    // A hole takes the place of what stood there.
    fs::write(&g, vec![1; 100_000]).unwrap();
    assert_eq!(copy((&f, 0), (&g, 50_000), 20_000), 20_000);
    let read = fs::read(&g).unwrap();
    assert!(read.len() == 100_000 && read[50_000..70_000].iter().all(|b| *b == 0) && read[70_000] == 1);
}

#[test]
fn what_copy_file_range_cannot_do_is_refused() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, value(100_000)).unwrap();
    let (source, mut target) = (open(&f), open(&f));
    target.seek(SeekFrom::Start(50_000)).unwrap();
    assert_eq!(errno(copy_file_range(&source, &target, 60_000)), libc::EINVAL);
    let appending = OpenOptions::new().append(true).open(&f).unwrap();
    assert_eq!(errno(copy_file_range(&source, &appending, 10)), libc::EBADF);
    let reading = File::open(&f).unwrap();
    assert_eq!(errno(copy_file_range(&source, &reading, 10)), libc::EBADF);
}
