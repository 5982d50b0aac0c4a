//! The process behind a mount: it opens the vault, mounts it, answers commands, and ends with the mount.
//!
//! ```text
//! detach ── open the vault (PIN, token) ── mount ── leave the terminal ── report ready
//!                                                         │
//!            exit ── close the vault ── stop answering ── unmounted (umount, SIGTERM)
//! ```

pub mod control;
pub mod detach;
pub mod log;
pub mod mounts;
pub mod process;
mod report;

pub use report::Report;

use crate::api::{self, Api, Code, Problem};
use crate::audit::Audit;
use crate::fs::{MountOptions, Mounted};
use crate::vault::{AuditHook, Options, Vault};
use control::SOCKET;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long requests that are under way may take once the mount is gone.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// What to mount where. Both paths are absolute and canonical.
pub struct Plan {
    pub state: PathBuf,
    pub mount_point: PathBuf,
    pub mount: MountOptions,
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
    mounted: Arc<Mounted>,
    runtime: Runtime,
    state: PathBuf,
    mount_point: PathBuf,
}

fn start(plan: Plan, detach: bool) -> Result<Daemon, Problem> {
    process::keep_secrets();
    process::raise_file_limit();
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
    let rest = || {
        let daemon = api::shape::Daemon {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            mount_point: plan.mount_point.display().to_string(),
        };
        let api = Api::new(vault.clone(), audit, owner, Some(daemon));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|e| failed(format!("cannot start threads: {e}")))?;
        let control = {
            let _entered = runtime.enter();
            control::listen(&plan.state).map_err(|e| failed(format!("cannot listen on {state}/{SOCKET}: {e}")))?
        };
        let mounted = Mounted::new(vault.clone(), &plan.mount_point, &plan.mount)
            .map_err(|e| failed(format!("cannot mount on {}: {e}{}", plan.mount_point.display(), hint(&e))))?;
        let mounted = Arc::new(mounted);
        if detach {
            process::leave_terminal().map_err(|e| failed(format!("cannot leave the terminal: {e}")))?;
            log::to_syslog();
        }
        Ok((api, control, mounted, runtime))
    };
    match rest() {
        Ok((api, control, mounted, runtime)) => {
            Ok(Daemon { vault, api, control, mounted, runtime, state: plan.state, mount_point: plan.mount_point })
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
        let answering = runtime.spawn(control::answer(self.control, self.api, stopped));
        runtime.spawn(unmount_on_signal(self.mounted.clone(), self.mount_point.clone()));
        let mount_point = self.mount_point.clone();
        std::thread::spawn(move || match answers(&mount_point) {
            Ok(()) => report.ready(),
            Err(e) => report.failed(&failed(format!("the mount does not answer: {e}"))),
        });
        log::info(&format!("{} is mounted on {}", self.state.display(), self.mount_point.display()));

        self.mounted.wait();
        control::remove(&self.state);
        let _ = stop.send(());
        // A client that neither reads nor leaves does not keep the vault open.
        let _ = runtime.block_on(async { tokio::time::timeout(LAST_REQUESTS, answering).await });
        let closed = self.vault.close();
        runtime.shutdown_background();
        match closed {
            Ok(()) => log::info(&format!("{} is unmounted and closed", self.state.display())),
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

/// Asks the mount one question, as the first user would.
fn answers(mount_point: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(mount_point.as_os_str().as_bytes())?;
    // SAFETY: all zeros are a valid statfs, and statfs(2) only fills it in.
    let asked = unsafe { libc::statfs(path.as_ptr(), &mut std::mem::zeroed()) };
    if asked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
