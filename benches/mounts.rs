//! The same work on this mount, its peers, the bare disk and the ceiling, interleaved, in one run.
//!
//! `scripts/bench` builds it, installs the peers and calls it; `docs/performance.md` holds what it printed. A single wall-clock
//! comparison says little here, because where client and daemon land on the CPUs moves it by a factor: so each system does
//! everything once in each repeat, in an order that chance decides, medians stand with minimum and maximum, and beside them
//! the CPU time of client and daemon, which a busy machine moves least.

#[path = "mounts/ceiling.rs"]
mod ceiling;
#[path = "mounts/measure.rs"]
mod measure;
#[path = "mounts/report.rs"]
mod report;
#[path = "mounts/systems.rs"]
mod systems;
#[path = "mounts/workloads.rs"]
mod workloads;

use clap::Parser;
use measure::Results;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use systems::{Kind, System};

/// Benchmarks of mounted file systems against each other
#[derive(Parser)]
struct Arguments {
    /// Where everything is put: states, mounts, the tree; on the disk to be measured
    #[arg(long, default_value = "/tmp/vaultfs-bench")]
    dir: PathBuf,
    /// The systems, of vaultfs, gocryptfs, cryfs, securefs, encfs, disk, ceiling
    #[arg(long, value_delimiter = ',', default_value = "vaultfs,gocryptfs,cryfs,securefs,encfs,disk,ceiling")]
    systems: Vec<Kind>,
    /// Only groups of rows whose names contain one of these words: small, sync, lists, stream, random, tree, sqlite
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
    /// How often each system does everything
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Small files of 4 KiB
    #[arg(long, default_value_t = 2000)]
    files: usize,
    /// The large file, in MiB
    #[arg(long, default_value_t = 128)]
    mib: usize,
    /// A tar archive of a source tree, for the rows about unpacking it
    #[arg(long)]
    tree: Option<PathBuf>,
    /// Options of the vaultfs mount
    #[arg(long, value_name = "OPTIONS")]
    mount_options: Option<String>,
    /// A Markdown file; the part between its bench markers is replaced by the tables, and FILE.svg beside it is the chart
    #[arg(long, value_name = "FILE.md")]
    into: Option<PathBuf>,
    /// Serves the in-memory file system on this directory, and nothing else
    #[arg(long, value_name = "DIR", hide = true)]
    ceiling: Option<PathBuf>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    if let Some(point) = &arguments.ceiling {
        return Ok(ceiling::serve(point)?);
    }
    std::fs::create_dir_all(&arguments.dir)?;
    let plan = workloads::Plan {
        files: arguments.files,
        bytes: arguments.mib << 20,
        tree: arguments.tree.clone(),
        groups: arguments.groups.clone(),
    };
    let started = measure::Machine::now();
    let mut results = Results::default();
    let mut seed = measure::Random::new(std::process::id() as u64);
    for repeat in 1..=arguments.repeats {
        for &kind in &seed.shuffled(&arguments.systems) {
            let mut system = System::up(kind, &arguments.dir, arguments.mount_options.as_deref())?;
            let told = |row: &str| progress(&format!("repeat {repeat} of {}, {kind}: {row}", arguments.repeats));
            workloads::run(&plan, &mut system, &mut results, &told)?;
            system.down()?;
        }
    }
    progress("");
    let page = report::markdown(&results, &arguments.systems, &started);
    println!("{page}");
    if let Some(into) = &arguments.into {
        report::replace(into, "scripts/bench", &page)?;
        std::fs::write(into.with_extension("svg"), report::chart(&results, &arguments.systems))?;
    }
    Ok(())
}

/// One line that is written over; nothing where nobody looks.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = std::io::stderr().flush();
    }
}
