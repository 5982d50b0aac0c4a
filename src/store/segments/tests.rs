use super::*;
use crate::store::RealDisk;
use crate::store::disk::recording::RecordingDisk;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tempfile::{TempDir, tempdir};

const ORG: u32 = 0xa;

fn segments(limit: u64) -> (TempDir, Arc<RecordingDisk>, Segments) {
    let (dir, disk) = (tempdir().unwrap(), RecordingDisk::new());
    let segments = Segments::open(dir.path(), disk.clone(), limit).unwrap();
    disk.take();
    (dir, disk, segments)
}

fn read(segments: &Segments, place: Place, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    segments.read(ORG, place, &mut bytes).unwrap();
    bytes
}

#[test]
fn extents_are_aligned_private_and_read_back() {
    let (dir, _disk, segments) = segments(SEGMENT_LIMIT);
    let first = segments.append(ORG, &[b"", b"ab", b"", b"cde"]).unwrap();
    let large = vec![7; (1 << 20) + 1];
    let second = segments.append(ORG, &[&large]).unwrap();
    let many: Vec<&[u8]> = vec![b"xy"; 3000];
    let third = segments.append(ORG, &many).unwrap();
    assert_eq!([first.offset, second.offset, third.offset], [0, 4096, 4096 + (1 << 20) + 4096]);
    assert_eq!(read(&segments, first, 5), b"abcde");
    assert_eq!(read(&segments, second, large.len()), large);
    assert_eq!(read(&segments, third, 6000), b"xy".repeat(3000));
    let file = fs::metadata(dir.path().join("segments/0000000a/00000000")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(segments.list(ORG).unwrap(), [(0, third.offset + 6000)]);
    assert_eq!(segments.organizations().unwrap(), [ORG]);
}

#[test]
fn reading_past_the_end_names_the_segment_and_the_offset() {
    let (_dir, _disk, segments) = segments(SEGMENT_LIMIT);
    segments.append(ORG, &[b"abc"]).unwrap();
    for (place, text) in [
        (Place { segment: 0, offset: 0 }, "0000000a/00000000 ends within the 4 bytes at offset 0"),
        (Place { segment: 3, offset: 0 }, "0000000a/00000003 is missing"),
    ] {
        let error = segments.read(ORG, place, &mut [0; 4]).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt(what) if what.contains(text)), "{error}");
    }
}

#[test]
fn a_full_segment_is_followed_by_the_next_number() {
    let (_dir, _disk, segments) = segments(3 * 4096);
    let numbers: Vec<_> = (0..5).map(|_| segments.append(ORG, &[&[1; 4000]]).unwrap().segment).collect();
    assert_eq!(numbers, [0, 0, 0, 1, 1]);
    let oversized = segments.append(ORG, &[&[1; 5 * 4096]]).unwrap();
    assert_eq!(oversized, Place { segment: 2, offset: 0 });
    assert_eq!(segments.append(ORG, &[b"x"]).unwrap().segment, 3);
}

#[test]
fn appends_go_on_where_the_records_end_and_never_over_what_is_there() {
    let (dir, _disk, first) = segments(SEGMENT_LIMIT);
    first.append(ORG, &[&[1; 4096]]).unwrap();
    let stray = first.append(ORG, &[&[2; 5000]]).unwrap();
    drop(first);
    let segments = Segments::open(dir.path(), Arc::new(RealDisk), SEGMENT_LIMIT).unwrap();
    segments.set_tail(ORG, 0, 4096);
    let next = segments.append(ORG, &[b"next"]).unwrap();
    assert_eq!(next.offset, 12288);
    assert_eq!(read(&segments, stray, 5000), [2; 5000]);

    let segments = Segments::open(dir.path(), Arc::new(RealDisk), SEGMENT_LIMIT).unwrap();
    segments.set_tail(ORG, 0, 4096);
    segments.trim(ORG, 0, 4096).unwrap();
    segments.trim(ORG, 0, 1 << 30).unwrap();
    assert_eq!(segments.list(ORG).unwrap(), [(0, 4096)]);
    assert_eq!(segments.append(ORG, &[b"next"]).unwrap().offset, 4096);
}

#[test]
fn a_full_disk_leaves_nothing_and_the_next_append_takes_the_same_place() {
    let (_dir, disk, segments) = segments(SEGMENT_LIMIT);
    disk.fail_when(|line| line.starts_with("write").then_some(libc::ENOSPC));
    assert!(matches!(segments.append(ORG, &[b"abc"]), Err(StoreError::Full(_))));
    disk.fail_never();
    assert_eq!(disk.take().last().unwrap(), "truncate 00000000 0");
    assert_eq!(segments.append(ORG, &[b"abc"]).unwrap(), Place { segment: 0, offset: 0 });
}

#[test]
fn sync_reaches_every_file_and_new_directory_once() {
    let (_dir, disk, segments) = segments(SEGMENT_LIMIT);
    segments.append(1, &[b"a"]).unwrap();
    segments.append(1, &[b"b"]).unwrap();
    segments.append(2, &[b"c"]).unwrap();
    disk.take();
    assert_eq!(segments.sync().unwrap(), 2);
    let lines = disk.take();
    assert_eq!(lines[..2], ["sync 00000000", "sync 00000000"]);
    for directory in ["segments", "00000001", "00000002"] {
        assert!(lines.contains(&format!("sync directory {directory}")), "{lines:?}");
    }
    assert_eq!(segments.sync().unwrap(), 0);
    segments.append(2, &[b"d"]).unwrap();
    disk.take();
    assert_eq!(segments.sync().unwrap(), 1);
    assert_eq!(disk.take(), ["sync 00000000"]);
}

#[test]
fn names_that_a_killed_process_made_are_synced_with_the_first_append() {
    let (dir, _disk, killed) = segments(SEGMENT_LIMIT);
    killed.append(ORG, &[b"not synced"]).unwrap();
    drop(killed);
    let disk = RecordingDisk::new();
    let segments = Segments::open(dir.path(), disk.clone(), SEGMENT_LIMIT).unwrap();
    segments.append(ORG, &[b"x"]).unwrap();
    segments.sync().unwrap();
    let lines = disk.take();
    let state = dir.path().file_name().unwrap().to_str().unwrap();
    for directory in [state, "segments", "0000000a"] {
        assert!(lines.contains(&format!("sync directory {directory}")), "{lines:?}");
    }
}

#[test]
fn after_a_failed_sync_nothing_is_written() {
    let (_dir, disk, segments) = segments(SEGMENT_LIMIT);
    let place = segments.append(ORG, &[b"abc"]).unwrap();
    disk.fail_when(|line| line.starts_with("sync").then_some(libc::EIO));
    assert!(segments.sync().is_err());
    disk.fail_never();
    disk.take();
    for refused in [
        segments.append(ORG, &[b"x"]).map(drop),
        segments.sync().map(drop),
        segments.punch(ORG, place, 3),
        segments.trim(ORG, 0, 0),
        segments.remove(ORG, 0),
        segments.remove_organization(ORG),
    ] {
        assert!(refused.unwrap_err().to_string().contains("an earlier sync failed; remount"));
    }
    assert_eq!(disk.take(), Vec::<String>::new());
    assert_eq!(read(&segments, place, 3), b"abc");
}

#[test]
fn a_sync_that_finds_no_space_is_a_failed_sync_and_not_a_full_disk() {
    for what in ["sync 00000000", "sync directory"] {
        let (_dir, disk, segments) = segments(SEGMENT_LIMIT);
        segments.append(ORG, &[b"abc"]).unwrap();
        disk.fail_when(move |line| line.starts_with(what).then_some(libc::ENOSPC));
        let error = segments.sync().unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        disk.fail_never();
        assert!(segments.append(ORG, &[b"x"]).is_err());
    }
}

#[test]
fn punching_gives_blocks_back_and_leaves_the_neighbours() {
    let (dir, _disk, segments) = segments(SEGMENT_LIMIT);
    let extents = [1u8, 2, 3].map(|byte| segments.append(ORG, &[&vec![byte; 300_001]]).unwrap());
    segments.sync().unwrap();
    let blocks = || fs::metadata(dir.path().join("segments/0000000a/00000000")).unwrap().blocks() * 512;
    let before = blocks();
    segments.punch(ORG, extents[1], 300_001).unwrap();
    assert!(before - blocks() >= 300_001, "{before} {}", blocks());
    assert_eq!(read(&segments, extents[0], 300_001), vec![1; 300_001]);
    assert_eq!(read(&segments, extents[1], 300_001), vec![0; 300_001]);
    assert_eq!(read(&segments, extents[2], 300_001), vec![3; 300_001]);
    segments.punch(ORG, extents[2], 300_001).unwrap();
    assert_eq!(segments.list(ORG).unwrap()[0].1, extents[2].offset + 300_001, "the length stays");
    segments.punch(ORG, Place { segment: 9, offset: 0 }, 1).unwrap();
}

#[test]
fn removed_segments_stay_removed_and_their_numbers_unused() {
    let (dir, _disk, segments) = segments(4096);
    for _ in 0..3 {
        segments.append(ORG, &[b"x"]).unwrap();
    }
    segments.remove(ORG, 2).unwrap();
    segments.remove(ORG, 2).unwrap();
    assert_eq!(segments.append(ORG, &[b"y"]).unwrap(), Place { segment: 3, offset: 0 });
    let numbers: Vec<u32> = segments.list(ORG).unwrap().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [0, 1, 3]);
    fs::write(dir.path().join("segments/foreign"), b"").unwrap();
    segments.remove_organization(ORG).unwrap();
    segments.remove_organization(ORG).unwrap();
    assert_eq!((segments.organizations().unwrap(), segments.list(ORG).unwrap()), (vec![], vec![]));
    assert_eq!(segments.append(ORG, &[b"z"]).unwrap(), Place { segment: 4, offset: 0 });
    segments.sync().unwrap();
}

#[test]
fn open_descriptors_are_bounded() {
    let dir = tempdir().unwrap();
    let segments = Segments::open(dir.path(), Arc::new(RealDisk), SEGMENT_LIMIT).unwrap();
    let places: Vec<_> = (0..300).map(|org| segments.append(org, &[&org.to_be_bytes()]).unwrap()).collect();
    for (org, place) in (0..300u32).zip(places) {
        let mut bytes = [0; 4];
        segments.read(org, place, &mut bytes).unwrap();
        assert_eq!(bytes, org.to_be_bytes());
    }
    let ours = |entry: io::Result<fs::DirEntry>| {
        fs::read_link(entry.unwrap().path()).is_ok_and(|target| target.starts_with(dir.path()))
    };
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| ours(entry).then_some(())).count();
    assert!((1..=64).contains(&open), "{open}");
}

#[test]
fn threads_append_to_one_organization_without_overlap() {
    let (_dir, _disk, segments) = segments(64 << 10);
    let append =
        &|byte: u8| -> Vec<Place> { (0..50).map(|_| segments.append(ORG, &[&[byte; 5000]]).unwrap()).collect() };
    let appended = std::thread::scope(|threads| {
        let threads = [1, 2, 3, 4].map(|byte| (byte, threads.spawn(move || append(byte))));
        threads.map(|(byte, thread)| (byte, thread.join().unwrap()))
    });
    for (byte, places) in appended {
        for place in places {
            assert_eq!(read(&segments, place, 5000), [byte; 5000]);
        }
    }
}
