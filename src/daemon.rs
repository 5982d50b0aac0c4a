//! The process behind a vault: it opens the vault, mounts it, answers commands and services, and ends with the mount.
//! Without a mount (`vaultfs serve`) it ends with SIGTERM.
//!
//! ```text
//! detach ── open the vault (PIN, token) ── mount ── leave the terminal ── report ready
//!                                                         │
//!            exit ── close the vault ── stop answering ── unmounted (umount, SIGTERM)
//! ```

pub mod control;
pub mod detach;
mod listen;
pub mod log;
pub mod mounts;
pub mod process;
mod report;

pub use listen::Listen;
pub use report::Report;

use crate::api::{self, Api, Code, Problem};
use crate::audit::Audit;
use crate::fs::{MountOptions, Mounted};
use crate::vault::{AuditHook, Options, Vault};
use control::SOCKET;
use listen::Listener;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// How long requests that are under way may take once the mount is gone.
const LAST_REQUESTS: Duration = Duration::from_secs(2);
/// Requests of commands and services that are worked on at one time; more wait.
const REQUESTS: usize = 128;

/// What to serve, and where. Paths are absolute and canonical.
pub struct Plan {
    pub state: PathBuf,
    /// `None`: it is not mounted.
    pub mount: Option<(PathBuf, MountOptions)>,
    pub listen: Option<Listen>,
    pub vault: Options,
}

/// Serves until the vault is unmounted. The report is told when the mount answers, or why it never will.
pub fn run(plan: Plan, report: Report) -> Result<(), Problem> {
    match start(plan, report.detaches()) {
        Ok(daemon) => daemon.serve(report),
        Err(problem) => {
            report.failed(&problem);
            Err(problem)
        }
    }
}

struct Daemon {
    vault: Arc<Vault>,
    api: Arc<Api>,
    control: UnixListener,
    network: Option<Listener>,
    mounted: Option<(Arc<Mounted>, PathBuf)>,
    runtime: Runtime,
    state: PathBuf,
}

fn start(plan: Plan, detach: bool) -> Result<Daemon, Problem> {
    process::keep_secrets();
    process::raise_file_limit();
    process::keep_buffers();
    log::panics();
    let owner = plan.vault.owner_uid;
    // The PIN is read here: the terminal and the caller's descriptors are still at hand.
    Vault::check(&plan.state).map_err(Problem::from)?;
    let state = plan.state.display();
    let audit = Audit::open(&plan.state, Box::new(|why| log::error(&why)))
        .map_err(|e| failed(format!("cannot open the audit log in {state}/audit: {e}")))?;
    let audit = Arc::new(audit);
    let record = audit.clone();
    let options = Options { audit: AuditHook::new(move |event| record.record(event)), ..plan.vault };
    let vault = Vault::open(&plan.state, options).map_err(Problem::from)?;
    vault.on_report(Box::new(|line| log::warning(&line)));
    let rest = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(REQUESTS)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| failed(format!("cannot start threads: {e}")))?;
        let entered = runtime.enter();
        let network = plan
            .listen
            .as_ref()
            .map(|listen| listen.bind().map_err(|e| failed(format!("cannot listen on {}: {e}", listen.address))));
        let network = network.transpose()?;
        let listens = network.as_ref().map(Listener::address).transpose();
        let daemon = api::shape::Daemon {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            mount_point: plan.mount.as_ref().map(|(point, _)| point.display().to_string()),
            listens: listens.map_err(|e| failed(e.to_string()))?,
        };
        let api = Api::new(vault.clone(), audit, owner, Some(daemon));
        let control =
            control::listen(&plan.state).map_err(|e| failed(format!("cannot listen on {state}/{SOCKET}: {e}")))?;
        drop(entered);
        let mounted = plan.mount.map(|(point, options)| {
            let mounted = Mounted::new(vault.clone(), &point, &options)
                .map_err(|e| failed(format!("cannot mount on {}: {e}{}", point.display(), hint(&e))))?;
            Ok::<_, Problem>((Arc::new(mounted), point))
        });
        let mounted = mounted.transpose()?;
        if detach {
            process::leave_terminal().map_err(|e| failed(format!("cannot leave the terminal: {e}")))?;
            log::to_syslog();
        }
        Ok((api, control, network, mounted, runtime))
    };
    match rest() {
        Ok((api, control, network, mounted, runtime)) => {
            Ok(Daemon { vault, api, control, network, mounted, runtime, state: plan.state })
        }
        Err(problem) => {
            // The reason for not mounting is what counts; nothing was written yet.
            let _ = vault.close();
            Err(problem)
        }
    }
}

fn failed(what: String) -> Problem {
    Problem::new(Code::Failure, what)
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "; is /dev/fuse there? `modprobe fuse` makes it",
        Some(libc::EPERM | libc::EACCES) => "; mount as root, or install fuse3 and own the mount point",
        _ => "",
    }
}

impl Daemon {
    fn serve(self, report: Report) -> Result<(), Problem> {
        let runtime = self.runtime;
        let (stop, stopped) = oneshot::channel();
        let (stop_network, network_stopped) = watch::channel(false);
        let commands = control::answer(self.control, self.api.clone(), stopped);
        let services = self.network.map(|network| network.answer(self.api, network_stopped));
        let answering = runtime.spawn(async {
            match services {
                Some(services) => drop(tokio::join!(commands, services)),
                None => commands.await,
            }
        });
        match self.mounted {
            Some((mounted, point)) => {
                runtime.spawn(unmount_on_signal(mounted.clone(), point.clone()));
                log::info(&format!("{} is mounted on {}", self.state.display(), point.display()));
                std::thread::spawn(move || match answers(&point) {
                    Ok(()) => {
                        mounts::read_further_ahead(&point);
                        report.ready();
                    }
                    Err(e) => report.failed(&failed(format!("the mount does not answer: {e}"))),
                });
                mounted.wait();
            }
            None => {
                log::info(&format!("{} is served", self.state.display()));
                runtime.block_on(end_on_signal(report));
            }
        }
        control::remove(&self.state);
        let _ = (stop.send(()), stop_network.send(true));
        // A client that neither reads nor leaves does not keep the vault open.
        let _ = runtime.block_on(async { tokio::time::timeout(LAST_REQUESTS, answering).await });
        let closed = self.vault.close();
        runtime.shutdown_background();
        match closed {
            Ok(()) => log::info(&format!("{} is closed", self.state.display())),
            Err(ref error) => log::error(&format!("closing {}: {error}", self.state.display())),
        }
        closed.map_err(Problem::from)
    }
}

/// SIGTERM and SIGINT take the mount out of the tree; it ends when those who have files open are done with them.
async fn unmount_on_signal(mounted: Arc<Mounted>, mount_point: PathBuf) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return log::error("cannot take signals: only umount ends this mount");
    };
    loop {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        let mounted = mounted.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || mounted.unmount()).await {
            log::error(&format!("cannot unmount {}: {error}", mount_point.display()));
        }
    }
}

/// Returns with the first SIGTERM or SIGINT.
async fn end_on_signal(report: Report) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return report.failed(&failed("cannot take signals: nothing could end this process".into()));
    };
    report.ready();
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
}

/// Asks the mount one question, as the first user would.
fn answers(mount_point: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(mount_point.as_os_str().as_bytes())?;
    // SAFETY: all zeros are a valid statfs, and statfs(2) only fills it in.
    let asked = unsafe { libc::statfs(path.as_ptr(), &mut std::mem::zeroed()) };
    if asked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
