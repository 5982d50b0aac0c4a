//! O_DIRECT: at any offset and length, and together with mappings and the page cache.

use crate::kernel::Mapping;
use crate::vault::Vault;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path).unwrap()
}

/// ext4 refuses these with EINVAL; a file system that need not bypasses no sector, and takes them.
#[test]
fn direct_io_needs_no_alignment() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let (direct, buffered) = (open(&f, libc::O_DIRECT), open(&f, 0));
    let mut expected = vec![0; 3_000_000];
    for (n, (at, len)) in
        [(0, 1), (1, 4095), (4095, 2), (511, 513), (8190, 1_048_579), (1_300_001, 1_699_999)].into_iter().enumerate()
    {
        let bytes = vec![n as u8 + 1; len];
        direct.write_all_at(&bytes, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(&bytes);
        let mut read = vec![0xee; len + 7];
        let most = direct.read_at(&mut read, at as u64).unwrap();
        assert!(most >= len && read[..most] == expected[at..at + most], "{at} {len}");
        buffered.read_exact_at(&mut read[..len], at as u64).unwrap();
        assert_eq!(read[..len], bytes[..]);
    }
    let mut past = [9; 10];
    assert_eq!(direct.read_at(&mut past, 3_000_000 - 3).unwrap(), 3);
    assert_eq!(direct.read_at(&mut past, 3_000_000).unwrap(), 0);
    drop((direct, buffered));
    vault.remount();
    assert!(fs::read(&f).unwrap() == expected);
}

#[test]
fn direct_io_and_a_mapping_see_one_another() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let direct = open(&f, libc::O_DIRECT);
    direct.write_all_at(&[1; 65_536], 0).unwrap();
    let mut mapping = Mapping::shared(&open(&f, 0), 65_536);
    assert_eq!(mapping.read(0, 65_536), [1; 65_536]);
    mapping.write(5000, b"mapped");
    let mut read = [0; 6];
    direct.read_exact_at(&mut read, 5000).unwrap();
    assert_eq!(&read, b"mapped", "written through the mapping and not synced");
    direct.write_all_at(b"direct", 5003).unwrap();
    assert_eq!(mapping.read(4999, 11), b"\x01mapdirect\x01", "the page that the mapping had changed");
    mapping.write(9000, b"later");
    direct.write_all_at(&[2; 4096], 8192 + 4096).unwrap();
    mapping.sync();
    assert_eq!(mapping.read(12_288, 4096), [2; 4096]);
    drop((mapping, direct));
    vault.remount();
    let kept = fs::read(&f).unwrap();
    assert_eq!(&kept[4999..5010], b"\x01mapdirect\x01");
    assert_eq!((&kept[9000..9005], &kept[12_288..12_290]), (&b"later"[..], &[2, 2][..]));
}

/// A mapping from whose pages O_DIRECT writes, into the same file.
#[test]
fn direct_io_from_a_mapping_of_the_same_file() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = open(&f, 0);
    file.write_all_at(&[7; 8192], 0).unwrap();
    file.set_len(16_384).unwrap();
    let mapping = Mapping::shared(&file, 16_384);
    let direct = open(&f, libc::O_DIRECT);
    // SAFETY: the mapping lives through the call, and the bytes read are not those written.
    let source = unsafe { std::slice::from_raw_parts(mapping.address(), 8192) };
    direct.write_all_at(source, 8192).unwrap();
    assert_eq!(mapping.read(0, 16_384), [7; 16_384]);
}
