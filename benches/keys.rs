//! Organizations whose keys are wrapped, many against few, on one token (issue 5, 2).
//!
//! `scripts/bench keys` makes a SoftHSM token, builds this and calls it. Without a mount: the engine alone.

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
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vaultfs::vault::{Caller, ObjectId, Options, Vault};

type Failed = Box<dyn std::error::Error>;

/// Organizations with wrapped keys, many against few
#[derive(Parser)]
struct Arguments {
    /// A token for the keys of both vaults
    #[arg(long)]
    token: String,
    #[arg(long)]
    pin_source: String,
    /// Where the state directories go
    #[arg(long, default_value = "/tmp/vaultfs-bench-keys")]
    dir: PathBuf,
    #[arg(long, default_value_t = 100)]
    few: usize,
    #[arg(long, default_value_t = 100_000)]
    many: usize,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// A Markdown file; the part between its markers is replaced by the table
    #[arg(long, value_name = "FILE.md")]
    into: Option<PathBuf>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// Organizations that are made at the same time.
const MAKERS: usize = 16;
/// Organizations that hold an object, and are opened.
const TOUCHED: usize = 2000;

struct Figures {
    organizations: usize,
    create: f64,
    mount: Vec<f64>,
    first: Vec<f64>,
    again: Vec<f64>,
    /// Bytes resident after the mount, and after opening organizations.
    memory: (u64, u64),
    calls: u64,
}

fn main() -> Result<(), Failed> {
    let arguments = Arguments::parse();
    let machine = Machine::now();
    // The vault of many comes last: what it leaves in memory would count for the other.
    let few = measured(&arguments, arguments.few)?;
    let many = measured(&arguments, arguments.many)?;
    let page = table(&[few, many], &machine, arguments.repeats);
    println!("{page}");
    if let Some(into) = &arguments.into {
        report::replace(into, "scripts/bench keys", &page)?;
    }
    fs::remove_dir_all(&arguments.dir)?;
    Ok(())
}

fn measured(arguments: &Arguments, organizations: usize) -> Result<Figures, Failed> {
    let state = arguments.dir.join(organizations.to_string());
    fs::create_dir_all(&arguments.dir)?;
    Vault::init_residing(&state, &arguments.token, &arguments.pin_source, "wrapped")?;
    let vault = Vault::open(&state, Options::default())?;
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let make = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= organizations {
                    return;
                }
                let name = format!("organization-{number}");
                vault.create_organization(&Caller::daemon(), &name, None, None).expect("it is new");
            }
        };
        (0..MAKERS).for_each(|_| drop(scope.spawn(make)));
    });
    let create = begin.elapsed().as_secs_f64() * 1e6 / organizations as f64;
    let mut random = Random::new(7);
    let mut touched = BTreeSet::new();
    while touched.len() < TOUCHED.min(organizations) {
        touched.insert(random.below(organizations));
    }
    let put = |number: &usize| -> Result<ObjectId, Failed> {
        let path = format!("organization-{number}/object");
        let put = vault.put_object(&Caller::daemon(), path.as_bytes(), None, &mut &b"value"[..])?;
        Ok(put.id.parse().map_err(|()| "an id")?)
    };
    let objects = touched.iter().map(put).collect::<Result<Vec<_>, _>>()?;
    vault.close()?;
    drop(vault);
    let mut figures = Figures {
        organizations,
        create,
        mount: Vec::new(),
        first: Vec::new(),
        again: Vec::new(),
        memory: (0, 0),
        calls: 0,
    };
    for _ in 0..arguments.repeats {
        let begin = Instant::now();
        let vault = Vault::open(&state, Options::default())?;
        figures.mount.push(begin.elapsed().as_secs_f64() * 1e3);
        figures.calls = vault.status().token.calls;
        figures.memory.0 = resident();
        figures.first.push(read_all(&vault, &objects)?);
        figures.again.push(read_all(&vault, &objects)?);
        figures.memory.1 = resident();
        vault.close()?;
    }
    Ok(figures)
}

/// µs for each.
fn read_all(vault: &Arc<Vault>, objects: &[ObjectId]) -> Result<f64, Failed> {
    let begin = Instant::now();
    for id in objects {
        vault.read_object(*id, None, &mut |_| Ok(()))?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / objects.len() as f64)
}

fn resident() -> u64 {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn table([few, many]: &[Figures; 2], machine: &Machine, repeats: usize) -> String {
    let mut page = format!(
        "{}; medians of {repeats} repeats.\n\n| | {} organizations | {} organizations |\n| --- | --: | --: |\n",
        machine.told(),
        few.organizations,
        many.organizations
    );
    let mut row = |name: &str, figure: &dyn Fn(&Figures) -> String| {
        page += &format!("| {name} | {} | {} |\n", figure(few), figure(many));
    };
    row("opening the vault, ms", &|f| format!("{:.0}", median(&f.mount)));
    row("calls of the token for that", &|f| f.calls.to_string());
    row("making an organization, 16 at a time, µs for each", &|f| format!("{:.0}", f.create));
    row("first read of an organization's object, µs", &|f| format!("{:.0}", median(&f.first)));
    row("the same again, µs", &|f| format!("{:.0}", median(&f.again)));
    row("memory after opening, MiB", &|f| (f.memory.0 >> 20).to_string());
    row("memory after reading in 2,000 of them (or all), MiB", &|f| (f.memory.1 >> 20).to_string());
    page
}
