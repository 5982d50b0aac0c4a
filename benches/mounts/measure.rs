//! What a row is, and what one measurement of it holds.

use std::collections::HashMap;
use std::time::Instant;

use crate::systems::{Kind, System};

/// What the project asks of a row (issue 3): ratios of medians in one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Names and attributes: twice gocryptfs, and 0.8 of the ceiling.
    TwicePeer,
    /// Twice gocryptfs; the ceiling, which has no disk, says nothing.
    TwicePeerOnDisk,
    /// Names and attributes: gocryptfs (or 0.9 of a ceiling that is itself below 1.1 of it), and 0.8 of the ceiling.
    Metadata,
    /// 0.7 of the lower of ceiling and bare disk, and gocryptfs.
    Stream,
    /// gocryptfs, or 0.9 of a ceiling that is itself below 1.1 of it.
    Peer,
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub unit: Unit,
    pub target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    PerSecond,
    MibPerSecond,
}

/// One time through a row.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// In the row's unit.
    pub rate: f64,
    /// CPU microseconds for each operation (or MiB): of the client, of the daemon.
    pub cpu: (f64, f64),
}

#[derive(Default)]
pub struct Results {
    /// In the order in which rows were first met.
    pub rows: Vec<Row>,
    samples: HashMap<(&'static str, Kind), Vec<Sample>>,
    failures: HashMap<(&'static str, Kind), String>,
    /// Peak memory of the daemon, in bytes.
    memory: HashMap<Kind, u64>,
}

impl Results {
    /// Runs `work`, which does `amount` operations (or MiB), and keeps what it took, or that it failed.
    pub fn take(&mut self, row: Row, system: &System, amount: usize, work: impl FnOnce() -> std::io::Result<()>) {
        if !self.rows.iter().any(|known| known.name == row.name) {
            self.rows.push(row);
        }
        let (client, daemon, begin) = (client_cpu(), system.cpu(), Instant::now());
        let outcome = work();
        let seconds = begin.elapsed().as_secs_f64();
        let each = |before: f64, after: f64| (after - before) * 1e6 / amount as f64;
        let cpu = (each(client, client_cpu()), each(daemon, system.cpu()));
        let key = (row.name, system.kind);
        match outcome {
            Ok(()) => self.samples.entry(key).or_default().push(Sample { rate: amount as f64 / seconds, cpu }),
            Err(error) => {
                self.failures.insert(key, error.to_string());
            }
        }
        let peak = self.memory.entry(system.kind).or_default();
        *peak = (*peak).max(system.peak_memory());
    }

    /// Median, least and most.
    pub fn rates(&self, row: &Row, kind: Kind) -> Option<[f64; 3]> {
        spread(self.of(row, kind)?.iter().map(|sample| sample.rate))
    }

    pub fn cpu(&self, row: &Row, kind: Kind) -> Option<(f64, f64)> {
        let samples = self.of(row, kind)?;
        let median = |part: fn(&Sample) -> f64| spread(samples.iter().map(part)).map(|[median, ..]| median);
        Some((median(|s| s.cpu.0)?, median(|s| s.cpu.1)?))
    }

    pub fn failure(&self, row: &Row, kind: Kind) -> Option<&str> {
        self.failures.get(&(row.name, kind)).map(String::as_str)
    }

    pub fn memory(&self, kind: Kind) -> Option<u64> {
        self.memory.get(&kind).copied().filter(|bytes| *bytes > 0)
    }

    pub fn repeats(&self) -> usize {
        self.samples.values().map(Vec::len).max().unwrap_or(0)
    }

    fn of(&self, row: &Row, kind: Kind) -> Option<&Vec<Sample>> {
        self.samples.get(&(row.name, kind))
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() {
        0 => return None,
        odd if odd % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    };
    Some([median, sorted[0], sorted[sorted.len() - 1]])
}

/// Seconds of CPU that this process and the commands that it waited for have had.
fn client_cpu() -> f64 {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].iter().map(|who| usage(*who)).sum()
}

fn usage(who: libc::c_int) -> f64 {
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call, which fills it.
    unsafe { libc::getrusage(who, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// What else the machine was doing.
pub struct Machine {
    load: String,
}

impl Machine {
    pub fn now() -> Machine {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Machine { load: load.split(' ').take(3).collect::<Vec<_>>().join(" ") }
    }

    pub fn told(&self) -> String {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        format!("{cpus} CPUs, Linux {}, load {} before and {} after", kernel.trim(), self.load, Machine::now().load)
    }
}

/// A small generator, so that every system meets the same order (xorshift64*, Vigna 2016).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    pub fn shuffled<T: Clone>(&mut self, items: &[T]) -> Vec<T> {
        let mut items = items.to_vec();
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
        items
    }
}
