//! Random operations on two files, through buffered, O_DIRECT and appending descriptors and shared mappings. What is read is
//! compared at once with what it must be; the whole, and where it has data, now and then and after mounting anew.
//!
//! fsx (`scripts/suites/fsx`) knows neither O_DIRECT nor zero range nor a second file. `OPERATIONS=100000 cargo test
//! --test mount random_operations` runs longer.

use crate::kernel::{Mapping, fallocate, seek};
use crate::vault::Vault;
use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

const LONGEST: usize = 400_000;

/// xorshift64*: the same operations for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    /// Half of the ranges begin and end at pages, as O_DIRECT is used; the others anywhere.
    fn range(&mut self, end: usize) -> (usize, usize) {
        let (mut at, mut len) = (self.below(end), 1 + self.below(70_000));
        if self.below(2) == 0 {
            (at, len) = (at & !4095, len.next_multiple_of(4096));
        }
        (at, len.min(end - at))
    }
}

struct Exercised {
    path: PathBuf,
    /// Buffered, O_DIRECT, O_APPEND.
    opens: [File; 3],
    expected: Vec<u8>,
}

impl Exercised {
    fn open(path: PathBuf, expected: Vec<u8>) -> Exercised {
        let opens = [0, libc::O_DIRECT, libc::O_APPEND].map(|flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
            options.open(&path).unwrap()
        });
        Exercised { path, opens, expected }
    }

    /// Makes a file at least as long as what is about to be changed in it.
    fn reach(&mut self, end: usize) {
        self.expected.resize(self.expected.len().max(end), 0);
    }

    fn check_all(&self, done: &str) {
        // Before the read, whose close has the kernel write back what it holds.
        let size = self.expected.len() as i64;
        let mut at = 0;
        while at < size {
            let data = seek(&self.opens[0], at, libc::SEEK_DATA).map_or(size, |found| found as i64);
            let hole = &self.expected[at as usize..data as usize];
            assert!(hole.iter().all(|b| *b == 0), "data in the hole {at}..{data} after {done}");
            at = if data < size { seek(&self.opens[0], data, libc::SEEK_HOLE).unwrap() as i64 } else { size };
        }
        let read = fs::read(&self.path).unwrap();
        assert_eq!(read.len(), self.expected.len(), "length after {done}");
        same(&read, &self.expected, 0, done);
    }
}

#[track_caller]
fn same(read: &[u8], expected: &[u8], at: usize, done: &str) {
    if let Some(n) = read.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {} is {} and not {} after {done}", at + n, read[n], expected[n]);
    }
}

fn copy(from: &File, at: usize, to: &File, to_at: usize, len: usize) {
    let (mut at, mut to_at, mut left) = (at as i64, to_at as i64, len);
    while left > 0 {
        // SAFETY: both descriptors are open and both offsets live through the call.
        let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, left, 0) };
        assert!(copied > 0, "{}", std::io::Error::last_os_error());
        left -= copied as usize;
    }
}

/// One operation; what it was.
fn step(random: &mut Random, files: &mut [Exercised; 2], number: u8) -> String {
    let which = random.below(2);
    let [one, two] = files;
    let (file, other) = if which == 0 { (one, two) } else { (two, one) };
    let through = random.below(2);
    let descriptor = file.opens[through].try_clone().unwrap();
    let (at, len) = random.range(LONGEST);
    let end = at + len;
    let what = random.below(13);
    let done = format!("{what} of {at}..{end} in {which} through {through}");
    match what {
        0 | 1 => {
            let mut read = vec![0; len];
            let n = descriptor.read_at(&mut read, at as u64).unwrap();
            let expected = &file.expected[at.min(file.expected.len())..end.min(file.expected.len())];
            assert_eq!(n, expected.len(), "{done}");
            same(&read, expected, at, &done);
        }
        2 | 3 => {
            let bytes = vec![number; len];
            descriptor.write_all_at(&bytes, at as u64).unwrap();
            file.reach(end);
            file.expected[at..end].copy_from_slice(&bytes);
        }
        4 if file.expected.len() + len < LONGEST => {
            file.opens[2].write_all(&vec![number; len]).unwrap();
            file.expected.resize(file.expected.len() + len, number);
        }
        4 | 5 => {
            descriptor.set_len(at as u64).unwrap();
            file.expected.resize(at, 0);
        }
        6 => {
            fallocate(&descriptor, PUNCH | KEEP, at as i64, len as i64).unwrap();
            let size = file.expected.len();
            file.expected[at.min(size)..end.min(size)].fill(0);
        }
        7 => {
            let keep = random.below(2) == 0;
            fallocate(&descriptor, if keep { ZERO | KEEP } else { ZERO }, at as i64, len as i64).unwrap();
            if !keep {
                file.reach(end);
            }
            let size = file.expected.len();
            file.expected[at.min(size)..end.min(size)].fill(0);
        }
        8 => {
            let keep = random.below(2) == 0;
            fallocate(&descriptor, if keep { KEEP } else { 0 }, at as i64, len as i64).unwrap();
            if !keep {
                file.reach(end);
            }
        }
        9 | 10 if end <= file.expected.len() => {
            let mut mapping = Mapping::shared(&file.opens[0], end);
            same(&mapping.read(at, len), &file.expected[at..end], at, &done);
            mapping.write(at, &vec![number; len]);
            file.expected[at..end].fill(number);
            if random.below(2) == 0 {
                mapping.sync();
            }
        }
        11 if end <= file.expected.len() => {
            let to = random.below(LONGEST - len);
            copy(&descriptor, at, &other.opens[through], to, len);
            other.reach(to + len);
            other.expected[to..to + len].copy_from_slice(&file.expected[at..end]);
        }
        12 if end * 2 <= file.expected.len() => {
            // Within one file, to where it does not overlap.
            copy(&descriptor, at, &file.opens[0], end, len);
            file.expected.copy_within(at..end, end);
        }
        _ => descriptor.sync_data().unwrap(),
    }
    done
}

fn exercise(seed: u64, mount: &[&str]) {
    let operations = std::env::var("OPERATIONS").map_or(1500, |text| text.parse().unwrap());
    let vault = Vault::up_with(mount);
    let organization = vault.org("a");
    let open = |name: &str, expected: Vec<u8>| Exercised::open(organization.join(name), expected);
    let mut files = [open("f", Vec::new()), open("g", Vec::new())];
    let mut random = Random(seed);
    let mut done = String::new();
    for number in 1..=operations {
        done = format!("seed {seed}, operation {number}: {}", step(&mut random, &mut files, number as u8));
        if number % 100 == 0 {
            files.iter().for_each(|file| file.check_all(&done));
        }
        if number % 500 == 0 {
            let expected = files.map(|file| file.expected);
            vault.umount();
            vault.mount(mount);
            let [f, g] = expected;
            files = [open("f", f), open("g", g)];
            files.iter().for_each(|file| file.check_all(&done));
        }
    }
    files.iter().for_each(|file| file.check_all(&done));
}

#[test]
fn random_operations_through_every_kind_of_descriptor_and_mapping_agree() {
    std::thread::scope(|scope| {
        for seed in [1, 20] {
            scope.spawn(move || exercise(seed, &[]));
        }
    });
}

#[test]
fn random_operations_agree_in_writeback_mode_too() {
    exercise(300, &["-o", "writeback"]);
}
