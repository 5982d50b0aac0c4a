//! The systems: how each is made, mounted, mounted anew, and who of its processes does the work.

use clap::ValueEnum;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, ValueEnum)]
pub enum Kind {
    Vaultfs,
    Gocryptfs,
    Cryfs,
    Securefs,
    Encfs,
    Disk,
    Ceiling,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Vaultfs => "vaultfs",
            Kind::Gocryptfs => "gocryptfs",
            Kind::Cryfs => "CryFS",
            Kind::Securefs => "securefs",
            Kind::Encfs => "EncFS",
            Kind::Disk => "bare disk",
            Kind::Ceiling => "ceiling",
        })
    }
}

/// One system, mounted.
pub struct System {
    pub kind: Kind,
    dir: PathBuf,
    mount_options: Option<String>,
    daemon: Daemon,
}

enum Daemon {
    None,
    /// In the foreground, below this process.
    Child(Child),
    /// vaultfs, as `scripts/harness` left it.
    Own(u32),
}

const PASSWORD: &str = "bench bench bench";

impl System {
    /// Made anew and mounted.
    pub fn up(kind: Kind, root: &Path, mount_options: Option<&str>) -> io::Result<System> {
        let dir = root.join(format!("{kind:?}").to_lowercase());
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("mnt"))?;
        fs::create_dir_all(dir.join("store"))?;
        fs::write(dir.join("password"), PASSWORD)?;
        let mount_options = mount_options.map(str::to_owned);
        let mut system = System { kind, dir, mount_options, daemon: Daemon::None };
        system.make()?;
        system.mount()?;
        fs::create_dir(system.mount_point().join("work"))?;
        Ok(system)
    }

    /// An empty directory of the mounted system; for vaultfs an organization.
    pub fn work(&self) -> PathBuf {
        self.mount_point().join("work")
    }

    /// Nothing is in the kernel's caches, and unless it would be lost, nothing in the daemon's.
    pub fn mount_anew(&mut self) -> io::Result<()> {
        if !matches!(self.kind, Kind::Disk | Kind::Ceiling) {
            self.remount()?;
        }
        self.drop_kernel_caches()
    }

    /// Nothing is in the daemon's caches; the kernel may have the store's files.
    pub fn remount(&mut self) -> io::Result<()> {
        self.unmount()?;
        self.mount()
    }

    pub fn drop_kernel_caches(&self) -> io::Result<()> {
        // SAFETY: takes nothing and cannot fail.
        unsafe { libc::sync() };
        fs::write("/proc/sys/vm/drop_caches", "3")
    }

    pub fn down(mut self) -> io::Result<()> {
        self.unmount()?;
        fs::remove_dir_all(&self.dir)
    }

    /// Seconds of CPU that the daemon has had, threads that ended included.
    pub fn cpu(&self) -> f64 {
        let Some(pid) = self.pid() else { return 0.0 };
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `clock` and `time` outlive the calls, which fill them; a pid that has gone is an error, and leaves zero.
        unsafe {
            if libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) == 0 {
                libc::clock_gettime(clock, &mut time);
            }
        }
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }

    /// The daemon's highest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = self.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let line = status.as_deref().unwrap_or("").lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
    }

    fn pid(&self) -> Option<u32> {
        match &self.daemon {
            Daemon::None => None,
            Daemon::Child(child) => Some(child.id()),
            Daemon::Own(pid) => Some(*pid),
        }
    }

    fn mount_point(&self) -> PathBuf {
        if self.kind == Kind::Disk { self.dir.join("store") } else { self.dir.join("mnt") }
    }

    fn make(&self) -> io::Result<()> {
        let (store, password) = (self.dir.join("store"), self.dir.join("password"));
        let command = match self.kind {
            Kind::Gocryptfs => Command::new("gocryptfs")
                .args(["-q", "-init", "-scryptn", "10", "-passfile"])
                .arg(password)
                .arg(store)
                .status(),
            Kind::Securefs => Command::new("securefs")
                .args(["create", "--rounds", "1", "--pass", PASSWORD])
                .arg(store)
                .stdout(Stdio::null())
                .status(),
            // The others make their store when it is first mounted.
            _ => return Ok(()),
        };
        succeeded(command?)
    }

    pub fn mount(&mut self) -> io::Result<()> {
        let (store, point) = (self.dir.join("store"), self.dir.join("mnt"));
        let mut command = match self.kind {
            Kind::Disk => return Ok(()),
            Kind::Vaultfs => return self.mount_vault(),
            Kind::Ceiling => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("--ceiling").arg(&point);
                command
            }
            Kind::Gocryptfs => {
                let mut command = Command::new("gocryptfs");
                command
                    .args(["-q", "-fg", "-allow_other", "-passfile"])
                    .arg(self.dir.join("password"))
                    .arg(&store)
                    .arg(&point);
                command
            }
            Kind::Securefs => {
                let mut command = Command::new("securefs");
                command.args(["mount", "--pass", PASSWORD]).arg(&store).arg(&point);
                command
            }
            Kind::Cryfs => {
                let mut command = Command::new("cryfs");
                command.args(["-f", "--allow-replaced-filesystem"]).arg(&store).arg(&point);
                command.env("CRYFS_FRONTEND", "noninteractive").env("CRYFS_NO_UPDATE_CHECK", "true");
                command.env("CRYFS_LOCAL_STATE_DIR", self.dir.join("local"));
                command.stdin(fs::File::open(self.dir.join("password"))?);
                command
            }
            Kind::Encfs => {
                let mut command = Command::new("encfs");
                command.args(["-f", "--standard", "--extpass"]).arg(format!("echo {PASSWORD}"));
                command.arg(&store).arg(&point);
                command
            }
        };
        let log = fs::File::create(self.dir.join("daemon.log"))?;
        self.daemon = Daemon::Child(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        let until = Instant::now() + Duration::from_secs(60);
        while !is_mounted(&point) {
            if Instant::now() > until {
                return Err(io::Error::other(format!(
                    "{} did not mount: see {}",
                    self.kind,
                    self.dir.join("daemon.log").display()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn mount_vault(&mut self) -> io::Result<()> {
        let mut command = harness("up", &self.dir);
        if let Some(options) = &self.mount_options {
            command.args(["--", "-o", options]);
        }
        let output = command.stderr(Stdio::piped()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let exports = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid =
            exports.lines().find_map(|line| line.strip_prefix("export VAULTFS_PID=")?.trim_matches('\'').parse().ok());
        self.daemon = Daemon::Own(pid.ok_or_else(|| io::Error::other("scripts/harness names no pid"))?);
        Ok(())
    }

    pub fn unmount(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.daemon, Daemon::None) {
            Daemon::None => Ok(()),
            Daemon::Own(_) => succeeded(harness("down", &self.dir).status()?),
            Daemon::Child(mut child) => {
                succeeded(Command::new("umount").arg(self.dir.join("mnt")).status()?)?;
                child.wait().map(drop)
            }
        }
    }
}

fn harness(command: &str, dir: &Path) -> Command {
    let mut harness = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/harness"));
    harness.arg(command).arg(dir);
    harness
}

fn is_mounted(point: &Path) -> bool {
    let point = point.to_string_lossy();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&*point))
}

fn succeeded(status: std::process::ExitStatus) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}
