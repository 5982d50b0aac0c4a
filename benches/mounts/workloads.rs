//! The work: what applications do to a file system, each piece one row.

use crate::measure::{Random, Results, Row, Target, Unit};
use crate::systems::System;
use rusqlite::Connection;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Plan {
    pub files: usize,
    pub bytes: usize,
    pub tree: Option<PathBuf>,
    /// Groups to run; all when empty.
    pub groups: Vec<String>,
}

const PAGE: usize = 4096;
const PER_FOLDER: usize = 100;
const MIB: usize = 1 << 20;

type Group = fn(&mut Bench) -> io::Result<()>;

/// Everything once on `system`.
pub fn run(plan: &Plan, system: &mut System, results: &mut Results, told: &dyn Fn(&str)) -> io::Result<()> {
    let groups: [(&str, Group); 7] = [
        ("small", small_files),
        ("sync", synced_files),
        ("lists", lists),
        ("stream", streams),
        ("random", random_access),
        ("tree", source_tree),
        ("sqlite", sqlite),
    ];
    let mut bench = Bench { plan, system, results, told };
    for (name, group) in groups {
        if plan.groups.is_empty() || plan.groups.iter().any(|wanted| wanted == name) {
            group(&mut bench)?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    plan: &'a Plan,
    system: &'a mut System,
    results: &'a mut Results,
    told: &'a dyn Fn(&str),
}

impl Bench<'_> {
    fn metadata(&mut self, name: &'static str, amount: usize, work: impl FnOnce(&Path) -> io::Result<()>) {
        self.row(Row { name, unit: Unit::PerSecond, target: Target::Metadata }, amount, work);
    }

    fn twice(&mut self, name: &'static str, amount: usize, work: impl FnOnce(&Path) -> io::Result<()>) {
        self.row(Row { name, unit: Unit::PerSecond, target: Target::TwicePeer }, amount, work);
    }

    fn peer(&mut self, name: &'static str, amount: usize, work: impl FnOnce(&Path) -> io::Result<()>) {
        self.row(Row { name, unit: Unit::PerSecond, target: Target::Peer }, amount, work);
    }

    fn stream(&mut self, name: &'static str, work: impl FnOnce(&Path) -> io::Result<()>) {
        self.row(Row { name, unit: Unit::MibPerSecond, target: Target::Stream }, self.plan.bytes / MIB, work);
    }

    fn row(&mut self, row: Row, amount: usize, work: impl FnOnce(&Path) -> io::Result<()>) {
        (self.told)(row.name);
        let directory = self.system.work();
        self.results.take(row, self.system, amount, || work(&directory));
    }

    /// The i-th small file is in the order of their making; folders hold a hundred.
    fn folders(&self, name: &str) -> io::Result<Vec<PathBuf>> {
        let root = self.system.work().join(name);
        for folder in 0..self.plan.files.div_ceil(PER_FOLDER) {
            fs::create_dir_all(root.join(folder.to_string()))?;
        }
        Ok((0..self.plan.files).map(|i| root.join(format!("{}/file-{i}", i / PER_FOLDER))).collect())
    }
}

fn small_files(b: &mut Bench) -> io::Result<()> {
    let files = b.folders("small")?;
    let other = b.folders("other")?;
    let shuffled = Random::new(1).shuffled(&files);
    let count = files.len();
    let page = noise(PAGE);
    b.twice("create 4 KiB", count, |_| files.iter().try_for_each(|file| fs::write(file, &page)));
    b.twice("create 4 KiB, 2 threads", count, |_| in_two(&other, |file| fs::write(file, &page)));
    b.metadata("stat", count, |_| stat_all(&shuffled));
    b.metadata("open, read, close", count, |_| read_all(&shuffled));
    b.metadata("open, read, close, 2 threads", count, |_| in_two(&shuffled, |file| fs::read(file).map(drop)));
    b.system.drop_kernel_caches()?;
    b.metadata("stat, kernel's caches dropped", count, |_| stat_all(&shuffled));
    b.system.drop_kernel_caches()?;
    b.metadata("open, read, close, kernel's caches dropped", count, |_| read_all(&shuffled));
    b.system.mount_anew()?;
    // The first open of an object has to have its key unwrapped, so this row stands apart from the ceiling.
    b.peer("open, read, close, mounted anew", count, |_| read_all(&shuffled));
    b.metadata("overwrite 4 KiB", count, |_| {
        shuffled.iter().try_for_each(|file| OpenOptions::new().write(true).open(file)?.write_all_at(&page, 0))
    });
    b.peer("rename", 2 * count, |_| {
        shuffled.iter().try_for_each(|file| {
            let aside = file.with_extension("aside");
            fs::rename(file, &aside)?;
            fs::rename(&aside, file)
        })
    });
    b.peer("write new, rename over", count, |_| {
        shuffled.iter().try_for_each(|file| {
            let new = file.with_extension("new");
            fs::write(&new, &page)?;
            fs::rename(&new, file)
        })
    });
    b.twice("unlink", count, |_| shuffled.iter().try_for_each(fs::remove_file));
    let root = b.system.work().join("other");
    b.twice("rm -r", count, |_| command(Command::new("rm").arg("-r").arg(&root)));
    fs::remove_dir_all(b.system.work().join("small"))
}

fn synced_files(b: &mut Bench) -> io::Result<()> {
    let files = b.folders("synced")?;
    let page = noise(PAGE);
    let few = &files[..files.len() / 2];
    let synced = Row { name: "create 4 KiB + fsync", unit: Unit::PerSecond, target: Target::TwicePeerOnDisk };
    b.row(synced, few.len(), |_| {
        few.iter().try_for_each(|file| {
            let mut file = File::create(file)?;
            file.write_all(&page)?;
            file.sync_all()
        })
    });
    b.peer("append 4 KiB + fdatasync", few.len(), |directory| {
        let mut log = OpenOptions::new().create(true).append(true).open(directory.join("log"))?;
        few.iter().try_for_each(|_| {
            log.write_all(&page)?;
            log.sync_data()
        })
    });
    fs::remove_dir_all(b.system.work().join("synced"))
}

fn lists(b: &mut Bench) -> io::Result<()> {
    let files = b.folders("lists")?;
    files.iter().try_for_each(|file| fs::write(file, b"a line\n"))?;
    let root = b.system.work().join("lists");
    let list = || command(Command::new("ls").arg("-lR").arg(&root).stdout(Stdio::null()));
    b.system.mount_anew()?;
    b.twice("ls -lR, mounted anew", files.len(), |_| list());
    b.system.drop_kernel_caches()?;
    b.twice("ls -lR, kernel's caches dropped", files.len(), |_| list());
    b.metadata("ls -lR, warm", files.len(), |_| list());
    b.metadata("find -size, warm", files.len(), |_| {
        command(Command::new("find").arg(&root).args(["-size", "+1M"]).stdout(Stdio::null()))
    });
    fs::remove_dir_all(&root)
}

fn streams(b: &mut Bench) -> io::Result<()> {
    let size = b.plan.bytes;
    for (name, unit) in
        [("write, 4 KiB + fsync", PAGE), ("write, 128 KiB + fsync", 128 << 10), ("write, 1 MiB + fsync", MIB)]
    {
        b.stream(name, |directory| write_file(&directory.join("large"), size, unit));
    }
    for (name, unit) in [("read, 4 KiB, cold", PAGE), ("read, 128 KiB, cold", 128 << 10), ("read, 1 MiB, cold", MIB)] {
        b.system.drop_kernel_caches()?;
        b.stream(name, |directory| read_file(&directory.join("large"), unit));
    }
    b.peer_stream("read, 1 MiB, warm", |directory| read_file(&directory.join("large"), MIB));
    b.peer_stream("cp of the file + fsync", |directory| {
        let (from, to) = (directory.join("large"), directory.join("copy"));
        command(Command::new("cp").arg(from).arg(&to))?;
        File::open(to)?.sync_all()
    });
    fs::remove_file(b.system.work().join("copy"))?;
    fs::remove_file(b.system.work().join("large"))
}

impl Bench<'_> {
    fn peer_stream(&mut self, name: &'static str, work: impl FnOnce(&Path) -> io::Result<()>) {
        self.row(Row { name, unit: Unit::MibPerSecond, target: Target::Peer }, self.plan.bytes / MIB, work);
    }
}

fn random_access(b: &mut Bench) -> io::Result<()> {
    let pages = b.plan.bytes / PAGE;
    let count = b.plan.files.min(pages);
    let path = b.system.work().join("random");
    write_file(&path, b.plan.bytes, MIB)?;
    let order = |seed| {
        let mut random = Random::new(seed);
        (0..count).map(move |_| (random.below(pages) * PAGE) as u64).collect::<Vec<u64>>()
    };
    let (page, mut room) = (Aligned::noise(), Aligned::noise());
    b.system.drop_kernel_caches()?;
    b.peer("random read 4 KiB, cold", count, |_| {
        let file = File::open(&path)?;
        order(1).iter().try_for_each(|at| file.read_exact_at(&mut room.0, *at))
    });
    b.peer("random read 4 KiB, O_DIRECT", count, |_| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path)?;
        order(2).iter().try_for_each(|at| file.read_exact_at(&mut room.0, *at))
    });
    b.system.drop_kernel_caches()?;
    b.peer("random read 4 KiB, mmap, cold", count, |_| {
        let map = Map::of(&OpenOptions::new().read(true).write(true).open(&path)?, b_len(&path)?)?;
        order(3).iter().for_each(|at| {
            std::hint::black_box(map.byte(*at as usize));
        });
        Ok(())
    });
    b.peer("random write 4 KiB, fsync at the end", count, |_| {
        let file = OpenOptions::new().write(true).open(&path)?;
        order(4).iter().try_for_each(|at| file.write_all_at(&page.0, *at))?;
        file.sync_all()
    });
    b.peer("random write 4 KiB, O_DIRECT", count, |_| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path)?;
        order(5).iter().try_for_each(|at| file.write_all_at(&page.0, *at))
    });
    b.peer("random write 4 KiB, mmap, msync at the end", count, |_| {
        let map = Map::of(&OpenOptions::new().read(true).write(true).open(&path)?, b_len(&path)?)?;
        order(6).iter().for_each(|at| map.set(*at as usize, 7));
        map.sync()
    });
    let few = count / 4;
    b.peer("random write 4 KiB + fsync each", few, |_| {
        let file = OpenOptions::new().write(true).open(&path)?;
        order(7)[..few].iter().try_for_each(|at| {
            file.write_all_at(&page.0, *at)?;
            file.sync_all()
        })
    });
    fs::remove_file(&path)
}

fn source_tree(b: &mut Bench) -> io::Result<()> {
    let Some(tar) = b.plan.tree.clone() else { return Ok(()) };
    let members = Command::new("tar").arg("-tf").arg(&tar).output()?;
    let count = members.stdout.iter().filter(|byte| **byte == b'\n').count();
    let root = b.system.work().join("tree");
    fs::create_dir(&root)?;
    b.twice("tar x of a source tree", count, |_| {
        command(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&root))
    });
    b.system.drop_kernel_caches()?;
    b.peer("sha256sum of each file, cold", count, |_| {
        let script = "find . -type f -print0 | xargs -0 sha256sum >/dev/null";
        command(Command::new("sh").args(["-c", script]).current_dir(&root))
    });
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "safe.directory=*", "-c", "gc.auto=0"]).args(arguments).current_dir(&root);
        command(git.stdout(Stdio::null()).stderr(Stdio::null()))
    };
    git(&["init"])?;
    b.peer("git add", count, |_| git(&["add", "--all"]));
    b.peer("git status", count, |_| git(&["status", "--short"]));
    b.twice("rm -r of the tree", count, |_| command(Command::new("rm").arg("-r").arg(&root)));
    Ok(())
}

fn sqlite(b: &mut Bench) -> io::Result<()> {
    const TRANSACTIONS: usize = 200;
    for (name, mode) in [("SQLite transactions, rollback journal", "DELETE"), ("SQLite transactions, WAL", "WAL")] {
        b.peer(name, TRANSACTIONS, |directory| {
            let path = directory.join(format!("{mode}.db"));
            transactions(&path, mode, TRANSACTIONS).map_err(io::Error::other)
        });
    }
    Ok(())
}

fn transactions(path: &Path, mode: &str, count: usize) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", mode)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value TEXT)", [])?;
    for id in 0..count {
        connection.execute("INSERT INTO t VALUES (?1, ?2)", (id as i64, "a value of some length, as they are"))?;
    }
    Ok(())
}

fn stat_all(files: &[PathBuf]) -> io::Result<()> {
    files.iter().try_for_each(|file| file.symlink_metadata().map(drop))
}

fn read_all(files: &[PathBuf]) -> io::Result<()> {
    files.iter().try_for_each(|file| fs::read(file).map(drop))
}

fn in_two(files: &[PathBuf], work: impl Fn(&PathBuf) -> io::Result<()> + Sync) -> io::Result<()> {
    let (one, other) = files.split_at(files.len() / 2);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| one.iter().try_for_each(&work));
        other.iter().try_for_each(&work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn write_file(path: &Path, size: usize, unit: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let data = noise(unit);
    for _ in 0..size / unit {
        file.write_all(&data)?;
    }
    file.sync_all()
}

fn read_file(path: &Path, unit: usize) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut room = vec![0; unit];
    while file.read(&mut room)? > 0 {}
    Ok(())
}

fn b_len(path: &Path) -> io::Result<usize> {
    Ok(path.metadata()?.len() as usize)
}

fn command(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}

/// What does not compress.
fn noise(size: usize) -> Vec<u8> {
    let mut random = Random::new(size as u64);
    (0..size).map(|_| random.below(256) as u8).collect()
}

/// A page where O_DIRECT wants it.
#[repr(align(4096))]
struct Aligned([u8; PAGE]);

impl Aligned {
    fn noise() -> Box<Aligned> {
        let mut page = Box::new(Aligned([0; PAGE]));
        page.0.copy_from_slice(&noise(PAGE));
        page
    }
}

/// A shared mapping of a whole file.
struct Map {
    address: *mut u8,
    length: usize,
}

impl Map {
    fn of(file: &File, length: usize) -> io::Result<Map> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of nothing that Rust owns; the result is checked.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { address: address.cast(), length })
    }

    fn byte(&self, at: usize) -> u8 {
        assert!(at < self.length);
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { self.address.add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < self.length);
        // SAFETY: inside the mapping, which lives as long as `self` and is written by this thread alone.
        unsafe { self.address.add(at).write_volatile(byte) }
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping, which lives as long as `self`.
        match unsafe { libc::msync(self.address.cast(), self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, which nobody uses any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}
