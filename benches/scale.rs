//! Whether a vault with a million objects is as fast as one with a thousand (issue 3, 9).
//!
//! `scripts/bench scale` builds and calls it. Both vaults do everything in turn; a row's figure is the median of the repeats,
//! for one operation. The small vault is one folder; the large one has a folder of 100,000 beside folders of 1,000. The
//! kernel keeps the store's files in its cache: what is compared is the engine, not a disk's seeks.

#[path = "mounts/measure.rs"]
#[allow(dead_code, reason = "the comparison of systems uses the rest")]
mod measure;
#[path = "mounts/report.rs"]
#[allow(dead_code, reason = "the comparison of systems uses the rest")]
mod report;
#[path = "mounts/systems.rs"]
#[allow(dead_code, reason = "the comparison of systems uses the rest")]
mod systems;

use clap::Parser;
use measure::{Machine, Random};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;
use systems::{Kind, System};

/// A vault with many objects against one with few
#[derive(Parser)]
struct Arguments {
    /// Where everything is put
    #[arg(long, default_value = "/tmp/vaultfs-bench")]
    dir: PathBuf,
    /// Objects of the small vault, all in one folder
    #[arg(long, default_value_t = 1000)]
    small: usize,
    /// Objects of the large vault
    #[arg(long, default_value_t = 1_000_000)]
    large: usize,
    /// Objects of its one large folder
    #[arg(long, default_value_t = 100_000)]
    folder: usize,
    #[arg(long, default_value_t = 9)]
    repeats: usize,
    /// A Markdown file; the part between its scale markers is replaced by the table
    #[arg(long, value_name = "FILE.md")]
    into: Option<PathBuf>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// Objects made, looked up, read and removed in one repeat.
const TOUCHED: usize = 1000;
const PER_FOLDER: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let machine = Machine::now();
    let mut vaults = [
        Filled::up(&arguments.dir.join("small"), arguments.small, arguments.small)?,
        Filled::up(&arguments.dir.join("large"), arguments.large, arguments.folder)?,
    ];
    share_one_cpu()?;
    let mut random = Random::new(std::process::id().into());
    for _ in 0..arguments.repeats {
        for which in random.shuffled(&[0, 1]) {
            vaults[which].measure(&mut random)?;
        }
    }
    let page = table(&vaults, &machine, arguments.repeats);
    println!("{page}");
    if let Some(into) = &arguments.into {
        report::replace(into, "scripts/bench scale", &page)?;
    }
    for vault in vaults {
        vault.system.down()?;
    }
    Ok(())
}

/// From now on this process, and the daemons that it mounts anew, run on one CPU. On two, whether each request wakes an
/// idle one decides more than the size does: the same create took 100 or 310 µs, from one second to the next.
fn share_one_cpu() -> io::Result<()> {
    // SAFETY: a set is numbers, of which all zero is the empty one; the call reads it.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Filled {
    system: System,
    objects: usize,
    /// Of them, in the folder `0`.
    largest: usize,
    /// µs for one operation, of each repeat.
    took: BTreeMap<Measured, Vec<f64>>,
    memory: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Measured {
    Mount,
    List,
    LookUp,
    LookUpAnywhere,
    Read,
    Create,
    CreateInLargest,
    Rename,
    Unlink,
}

impl Measured {
    const ALL: [(Measured, &str); 9] = [
        (Measured::Mount, "mount after a clean unmount"),
        (Measured::List, "`ls -l` of the largest folder, mounted anew, for each entry"),
        (Measured::LookUp, "stat in the largest folder, mounted anew"),
        (Measured::LookUpAnywhere, "stat anywhere, mounted anew"),
        (Measured::Read, "open, read, close anywhere, mounted anew"),
        (Measured::Create, "create in a new folder"),
        (Measured::CreateInLargest, "create in the largest folder"),
        (Measured::Rename, "rename in the largest folder"),
        (Measured::Unlink, "unlink in the largest folder"),
    ];
}

impl Filled {
    fn up(root: &Path, objects: usize, largest: usize) -> io::Result<Filled> {
        let system = System::up(Kind::Vaultfs, root, None)?;
        let vault = Filled { system, objects, largest, took: BTreeMap::new(), memory: 0 };
        for number in 0..objects {
            let path = vault.path(number);
            if number == 0 || (number >= largest && (number - largest).is_multiple_of(PER_FOLDER)) {
                fs::create_dir(path.parent().expect("it is in a folder"))?;
                if io::stderr().is_terminal() {
                    eprint!("\r\x1b[Kmaking {number} of {objects}");
                }
            }
            fs::write(path, format!("value {number}\n"))?;
        }
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        Ok(vault)
    }

    fn path(&self, number: usize) -> PathBuf {
        let folder = number.checked_sub(self.largest).map_or(0, |beyond| 1 + beyond / PER_FOLDER);
        self.system.work().join(folder.to_string()).join(format!("object-{number}"))
    }

    fn measure(&mut self, random: &mut Random) -> io::Result<()> {
        let mut pick = |from: usize| -> Vec<PathBuf> { distinct(random, from).map(|n| self.path(n)).collect() };
        let (largest, anywhere, read) = (pick(self.largest), pick(self.objects), pick(self.objects));
        let (work, folder) = (self.system.work(), self.system.work().join("0"));
        let new: Vec<PathBuf> = (0..TOUCHED).map(|n| folder.join(format!("new-{n}"))).collect();
        let renamed: Vec<PathBuf> = (0..TOUCHED).map(|n| folder.join(format!("renamed-{n}"))).collect();
        let stat = |paths: &[PathBuf]| paths.iter().try_for_each(|path| path.symlink_metadata().map(drop));
        // A path to an object in a folder of its own would be two operations: the folders are looked up before.
        let enter = |paths: &[PathBuf]| paths.iter().try_for_each(|path| path.parent().map_or(Ok(()), exists));

        self.system.unmount()?;
        let begin = Instant::now();
        self.system.mount()?;
        self.note(Measured::Mount, 1, begin.elapsed());
        enter(&largest)?;
        self.timed(Measured::LookUp, TOUCHED, || stat(&largest))?;
        self.system.remount()?;
        enter(&anywhere)?;
        self.timed(Measured::LookUpAnywhere, TOUCHED, || stat(&anywhere))?;
        self.system.remount()?;
        enter(&read)?;
        self.timed(Measured::Read, TOUCHED, || read.iter().try_for_each(|path| fs::read(path).map(drop)))?;
        self.system.remount()?;
        self.timed(Measured::List, self.largest, || {
            fs::read_dir(&folder)?.try_for_each(|entry| entry?.metadata().map(drop))
        })?;
        let fresh = work.join("fresh");
        fs::create_dir(&fresh)?;
        self.timed(Measured::Create, TOUCHED, || {
            (0..TOUCHED).try_for_each(|n| fs::write(fresh.join(n.to_string()), "value\n"))
        })?;
        self.timed(Measured::CreateInLargest, TOUCHED, || new.iter().try_for_each(|path| fs::write(path, "value\n")))?;
        self.timed(Measured::Rename, TOUCHED, || {
            new.iter().zip(&renamed).try_for_each(|(from, to)| fs::rename(from, to))
        })?;
        self.timed(Measured::Unlink, TOUCHED, || renamed.iter().try_for_each(fs::remove_file))?;
        fs::remove_dir_all(&fresh)?;
        self.memory = self.memory.max(self.system.peak_memory());
        Ok(())
    }

    fn timed(&mut self, what: Measured, operations: usize, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let begin = Instant::now();
        work()?;
        self.note(what, operations, begin.elapsed());
        Ok(())
    }

    fn note(&mut self, what: Measured, operations: usize, took: std::time::Duration) {
        self.took.entry(what).or_default().push(took.as_secs_f64() * 1e6 / operations as f64);
    }

    fn median(&self, what: Measured) -> f64 {
        let mut sorted = self.took[&what].clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn exists(folder: &Path) -> io::Result<()> {
    folder.metadata().map(drop)
}

/// As many as are touched, none of them twice: what was asked for once is in the kernel's cache.
fn distinct(random: &mut Random, from: usize) -> impl Iterator<Item = usize> {
    let mut seen = HashSet::new();
    while seen.len() < TOUCHED.min(from) {
        seen.insert(random.below(from));
    }
    seen.into_iter()
}

fn table([small, large]: &[Filled; 2], machine: &Machine, repeats: usize) -> String {
    let mut page = format!(
        "{}; medians of {repeats} repeats in turn, µs for one operation.\n\n| | {} objects | {} objects, {} in one folder | ratio |\n| --- | --: | --: | --: |\n",
        machine.told(),
        small.objects,
        large.objects,
        large.largest
    );
    for (what, name) in Measured::ALL {
        let (few, many) = (small.median(what), large.median(what));
        page += &format!("| {name} | {few:.0} | {many:.0} | {:.2} |\n", many / few);
    }
    let mib = |bytes: u64| bytes >> 20;
    page += &format!("| peak memory of the daemon, MiB | {} | {} | |\n", mib(small.memory), mib(large.memory));
    page
}
