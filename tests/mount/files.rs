//! Contents of files: what ext4 does with sizes, holes, ranges, mappings and locks.

use crate::kernel::{
    Mapping, copy_file_range, errno, fallocate, lock_description, seek, set_flags, statvfs, vault_says,
};
use crate::vault::{Vault, run};
use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

#[test]
fn truncating_and_growing_leaves_zeros() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = create(&f);
    file.write_all_at(&[7; 10_000], 0).unwrap();
    file.set_len(5_000).unwrap();
    file.set_len(20_000).unwrap();
    let mut expected = vec![7; 5_000];
    expected.resize(20_000, 0);
    assert_eq!(fs::read(&f).unwrap(), expected);
    drop(file);
    vault.remount();
    assert_eq!(fs::read(&f).unwrap(), expected);
}

#[test]
fn sparse_files_take_no_room_and_are_found_by_seek() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = create(&f);
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", 512 * MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    for _ in 0..2 {
        let file = File::open(&f).unwrap();
        let known = file.metadata().unwrap();
        assert_eq!(known.len(), 512 * MIB + 3);
        assert!(known.blocks() * 512 < MIB, "{} blocks", known.blocks());
        assert_eq!(seek(&file, 0, libc::SEEK_DATA).unwrap(), 0);
        let hole = seek(&file, 0, libc::SEEK_HOLE).unwrap();
        assert!((5..=MIB).contains(&hole), "{hole}");
        let data = seek(&file, hole as i64, libc::SEEK_DATA).unwrap();
        assert!((511 * MIB..=512 * MIB).contains(&data), "{data}");
        assert_eq!(seek(&file, data as i64, libc::SEEK_HOLE).unwrap(), 512 * MIB + 3);
        assert_eq!(errno(seek(&file, 512 * MIB as i64 + 3, libc::SEEK_DATA)), libc::ENXIO);
        drop(file);
        vault.remount();
    }
}

#[test]
fn files_of_16_tib_are_written_and_read_at_their_end() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let end = 16 * MIB * MIB - 4;
    create(&f).write_all_at(b"last", end).unwrap();
    vault.remount();
    let mut read = [9; 8];
    File::open(&f).unwrap().read_exact_at(&mut read, end - 4).unwrap();
    assert_eq!(&read, b"\0\0\0\0last");
    assert_eq!(fs::metadata(&f).unwrap().len(), 16 * MIB * MIB);
}

/// Two of them are more bytes than 64 bits count.
#[test]
fn the_longest_files_are_counted_however_many_they_are() {
    const LONGEST: u64 = i64::MAX as u64;
    let vault = Vault::up();
    let a = vault.org("a");
    for name in ["one", "two", "three"] {
        create(&a.join(name)).set_len(LONGEST).unwrap();
    }
    create(&a.join("two")).write_all_at(b"end", LONGEST - 3).unwrap();
    for _ in 0..2 {
        assert_eq!(vault_says(&a, "bytes"), (3 * u128::from(LONGEST)).to_string());
        let mut read = [9; 4];
        File::open(a.join("two")).unwrap().read_exact_at(&mut read, LONGEST - 4).unwrap();
        assert_eq!(&read, b"\0end");
        let told = vault.command(&["--json", "org", "show", "a"]).good().json();
        assert_eq!(told["bytes"], u64::MAX, "as much as the number can say");
        vault.command(&["status"]).good();
        vault.command(&["fsck"]).good();
        vault.remount();
    }
    fs::remove_file(a.join("one")).unwrap();
    fs::rename(a.join("three"), a.join("two")).unwrap();
    assert_eq!(vault_says(&a, "bytes"), LONGEST.to_string());
    fs::rename(vault.tombstone("a"), a.join("one")).unwrap();
    assert_eq!(vault_says(&a, "bytes"), (2 * u128::from(LONGEST)).to_string());
    vault.command(&["fsck"]).good();
}

#[test]
fn fallocate_allocates_keeps_the_size_punches_and_zeroes() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = create(&f);
    let mut expected = vec![1; 300_000];
    file.write_all_at(&expected, 0).unwrap();
    fallocate(&file, PUNCH | KEEP, 10_000, 150_000).unwrap();
    expected[10_000..160_000].fill(0);
    assert_eq!(fs::read(&f).unwrap(), expected);
    fallocate(&file, ZERO, 250_000, 100_000).unwrap();
    expected.resize(350_000, 0);
    expected[250_000..].fill(0);
    assert_eq!(fs::read(&f).unwrap(), expected);
    fallocate(&file, ZERO | KEEP, 340_000, 100_000).unwrap();
    fallocate(&file, KEEP, 0, 1_000_000).unwrap();
    assert_eq!(fs::read(&f).unwrap(), expected);
    fallocate(&file, 0, 0, 400_000).unwrap();
    expected.resize(400_000, 0);
    assert_eq!(fs::read(&f).unwrap(), expected);
    assert_eq!(errno(fallocate(&file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)), libc::EOPNOTSUPP);
    drop(file);
    vault.remount();
    assert_eq!(fs::read(&f).unwrap(), expected);
}

#[test]
fn appenders_do_not_overwrite_each_other() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    std::thread::scope(|scope| {
        for n in 0..4u8 {
            let f = &f;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(f).unwrap();
                (0..100).for_each(|_| file.write_all(&[b'a' + n; 7]).unwrap());
            });
        }
    });
    let all = fs::read(&f).unwrap();
    assert_eq!(all.len(), 4 * 100 * 7);
    assert!(all.chunks(7).all(|line| line.iter().all(|b| *b == line[0])), "torn lines");
}

#[test]
fn a_descriptor_appends_while_its_flag_says_so_and_a_mapping_through_it_never() {
    for mount in [&[][..], &["-o", "writeback"]] {
        let vault = Vault::up_with(mount);
        let f = vault.org("a").join("f");
        fs::write(&f, "0123456789").unwrap();
        let file = OpenOptions::new().read(true).append(true).open(&f).unwrap();
        let mut mapping = Mapping::shared(&file, 10);
        mapping.write(2, b"MM");
        mapping.sync();
        file.write_all_at(b"A", 0).unwrap();
        set_flags(&file, 0).unwrap();
        file.write_all_at(b"W", 0).unwrap();
        seek(&file, 11, libc::SEEK_SET).unwrap();
        assert_eq!(copy_file_range(&File::open(&f).unwrap(), &file, 1).unwrap(), 1);
        set_flags(&file, libc::O_APPEND).unwrap();
        file.write_all_at(b"A", 5).unwrap();
        drop(mapping);
        assert_eq!(fs::read_to_string(&f).unwrap(), "W1MM456789AWA", "{mount:?}");
    }
}

#[test]
fn shared_mappings_and_reads_see_the_same_bytes() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = create(&f);
    file.set_len(3 * 4096).unwrap();
    let (mut one, two) = (
        Mapping::shared(&file, 3 * 4096),
        Mapping::shared(&File::options().read(true).write(true).open(&f).unwrap(), 3 * 4096),
    );
    one.write(4090, b"across pages");
    assert_eq!(two.read(4090, 12), b"across pages");
    let mut read = [0; 12];
    file.read_exact_at(&mut read, 4090).unwrap();
    assert_eq!(&read, b"across pages");
    file.write_all_at(b"written", 8192).unwrap();
    assert_eq!(one.read(8192, 7), b"written");
    one.sync();
    drop((one, two, file));
    vault.remount();
    let kept = fs::read(&f).unwrap();
    assert_eq!((&kept[4090..4102], &kept[8192..8199]), (&b"across pages"[..], &b"written"[..]));
}

#[test]
fn processes_that_map_and_processes_that_read_and_write_see_the_same_bytes() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    create(&f).set_len(8192).unwrap();
    // One maps and one uses calls; each adds to the number that the other left, in turns.
    let script = r#"
import mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
maps = sys.argv[2] == "1"
page = mmap.mmap(fd, 8192) if maps else None
for turn in range(200):
    sys.stdin.readline()
    for at in (0, 4092, 8184):
        if maps:
            n, = struct.unpack_from("I", page, at)
            struct.pack_into("I", page, at, n + 1)
        else:
            n, = struct.unpack("I", os.pread(fd, 4, at))
            os.pwrite(fd, struct.pack("I", n + 1), at)
        assert n == 2 * turn + maps, (turn, at, n)
    print(turn, flush=True)
"#;
    let start = |maps: &str| {
        let mut python = Command::new("timeout");
        python.args(["60", "/usr/bin/python3", "-c", script]).arg(&f).arg(maps);
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        (child, said)
    };
    let mut both = [start("0"), start("1")];
    for turn in 0..200 {
        for (child, said) in &mut both {
            child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
            let mut line = String::new();
            said.read_line(&mut line).unwrap();
            assert_eq!(line, format!("{turn}\n"));
        }
    }
    for (mut child, _) in both {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(fs::read(&f).unwrap()[4092..4096], 400u32.to_le_bytes());
}

#[test]
fn what_is_written_through_a_mapping_is_data_to_seek_before_it_is_written_back() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let file = create(&f);
    file.set_len(MIB).unwrap();
    assert_eq!(errno(seek(&file, 0, libc::SEEK_DATA)), libc::ENXIO);
    let mut mapping = Mapping::shared(&file, MIB as usize);
    mapping.write(500_000, b"mapped");
    let found = seek(&File::open(&f).unwrap(), 0, libc::SEEK_DATA).unwrap();
    assert!((400_000..=500_000).contains(&found), "{found}");
    mapping.write(500_002, b"again");
    drop(mapping);
    assert_eq!(&fs::read(&f).unwrap()[500_000..500_007], b"maagain");
}

#[test]
fn what_waits_in_the_kernel_is_data_to_seek() {
    let vault = Vault::up_with(&["-o", "writeback"]);
    let f = vault.org("a").join("f");
    let file = create(&f);
    file.write_all_at(b"waits", 0).unwrap();
    assert_eq!(seek(&file, 0, libc::SEEK_DATA).unwrap(), 0);
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE).unwrap(), 5);
}

#[test]
fn direct_io_reads_what_others_wrote() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let (from, to) = (format!("of={}", f.display()), format!("if={}", f.display()));
    run("dd", &[&"if=/dev/zero", &from, &"bs=64k", &"count=3", &"oflag=direct", &"status=none"]);
    assert_eq!(fs::read(&f).unwrap(), vec![0; 3 << 16]);
    fs::write(&f, vec![b'x'; 1 << 16]).unwrap();
    let read = run("dd", &[&to, &"bs=64k", &"iflag=direct", &"status=none"]);
    assert!(read.len() == 1 << 16 && read.bytes().all(|b| b == b'x'));
}

#[test]
fn copy_file_range_copies() {
    let vault = Vault::up();
    let a = vault.org("a");
    let value: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    fs::write(a.join("f"), &value).unwrap();
    let (from, to) = (File::open(a.join("f")).unwrap(), create(&a.join("g")));
    let mut copied = 0;
    while copied < value.len() {
        copied += copy_file_range(&from, &to, value.len() - copied).unwrap() as usize;
    }
    drop(to);
    assert_eq!(fs::read(a.join("g")).unwrap(), value);
}

#[test]
fn locks_hold_between_descriptors() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    let (one, two) = (create(&f), File::options().read(true).write(true).open(&f).unwrap());
    one.lock().unwrap();
    assert!(two.try_lock().is_err());
    one.unlock().unwrap();
    two.try_lock().unwrap();
    lock_description(&one).unwrap();
    assert_eq!(errno(lock_description(&two)), libc::EAGAIN);
}

#[test]
fn a_write_clears_set_uid_for_others_than_root() {
    use std::os::unix::process::CommandExt;
    let vault = Vault::up();
    vault.open_to_others();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    fs::set_permissions(a.join("f"), PermissionsExt::from_mode(0o6777)).unwrap();
    let script = ["-c", "echo y >> \"$0\""];
    let wrote = std::process::Command::new("sh").args(script).arg(a.join("f")).uid(65534).gid(65534).status();
    assert!(wrote.unwrap().success());
    assert_eq!(fs::metadata(a.join("f")).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn df_shows_the_file_system_of_the_state_directory_and_du_stored_blocks() {
    let vault = Vault::up();
    let f = vault.org("a").join("f");
    fs::write(&f, vec![5; 3_000_000]).unwrap();
    File::open(&f).unwrap().sync_all().unwrap();
    let (mount, state) = (statvfs(vault.point()), statvfs(vault.state()));
    assert_eq!(mount.f_blocks * mount.f_frsize, state.f_blocks * state.f_frsize);
    assert_eq!(mount.f_namemax, 255);
    let known = fs::metadata(&f).unwrap();
    assert_eq!(known.len(), 3_000_000);
    assert!((3_000_000..4_500_000).contains(&(known.blocks() * 512)), "{}", known.blocks() * 512);
}

#[test]
fn a_read_only_mount_refuses_writes() {
    let vault = Vault::up();
    fs::write(vault.org("a").join("f"), "x").unwrap();
    vault.umount();
    vault.mount(&["-o", "ro"]);
    assert_eq!(fs::read(vault.at("a/f")).unwrap(), b"x");
    assert_eq!(errno(fs::write(vault.at("a/f"), "y")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(vault.at("b"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(vault.at("a/f"))), libc::EROFS);
}

#[test]
fn what_the_transport_lacks_is_refused_as_kernels_expect() {
    let vault = Vault::up();
    let a = vault.org("a");
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&a);
    assert_eq!(errno(unnamed), libc::EOPNOTSUPP);
    run("sync", &[&"-f", &a]);
}

#[test]
fn a_running_program_is_not_truncated_by_an_open_that_is_refused() {
    let vault = Vault::up();
    let program = vault.org("a").join("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    let size = fs::metadata(&program).unwrap().len();
    let mut running = std::process::Command::new(&program).arg("30").spawn().unwrap();
    let truncating = OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(&program);
    let alive = running.try_wait().unwrap().is_none();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(errno(truncating), libc::ETXTBSY);
    assert!(alive, "the program lost its pages");
    assert_eq!(fs::metadata(&program).unwrap().len(), size);
    // Now that it has ended: the same open truncates.
    drop(OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(&program).unwrap());
    assert_eq!(fs::metadata(&program).unwrap().len(), 0);
}

#[test]
fn the_kernel_reads_further_ahead_than_fuse_begins_with() {
    let vault = Vault::up();
    let device = fs::metadata(vault.point()).unwrap().dev();
    let ahead = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    // Where /sys may only be read, as in a container, it stays as FUSE begins.
    let may = OpenOptions::new().write(true).open(&ahead).is_ok();
    assert_eq!(fs::read_to_string(ahead).unwrap().trim(), if may { "256" } else { "128" });
}
