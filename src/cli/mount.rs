//! `vaultfs mount`: looks before it mounts, starts the daemon, and returns when the mount answers.

use super::exit::Failure;
use super::options::Options;
use super::output::print_json;
use super::place::Header;
use super::{Global, canonical};
use crate::api::{Code, Peer};
use crate::daemon::detach::{Side, detach};
use crate::daemon::{self, Plan, Report, mounts};
use crate::vault;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Mount {
    /// The state directory
    state: PathBuf,
    /// An empty directory
    mountpoint: PathBuf,
    /// Stay in the foreground, the log on standard error
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, as in mount(8), and the vault's settings, as in keep_versions=20
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Another token than `init` was told, as a pkcs11: URI
    #[arg(long, value_name = "PKCS11-URI")]
    token: Option<String>,
    /// Another source of the PIN than `init` was told: file:PATH, credential:NAME, fd:N or prompt
    #[arg(long, value_name = "SOURCE")]
    pin_source: Option<String>,
}

impl Mount {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let owner_uid = Peer::this_process().uid.unwrap_or(u32::MAX);
        let mut options = Options::parse(self.options.iter().map(String::as_str), owner_uid)?;
        options.token = self.token.or(options.token);
        options.pin_source = self.pin_source.or(options.pin_source);
        let (state, point) = (self.state, self.mountpoint);
        let pid = mount(&state, &point, options, self.foreground)?;
        match pid.filter(|_| global.json) {
            Some(pid) => print_json(&serde_json::json!({ "mount_point": canonical(&point)?, "pid": pid })),
            None => Ok(()),
        }
    }
}

/// Mounts. The daemon's pid when it answers; nothing after a mount in the foreground has ended.
pub fn mount(state: &Path, point: &Path, options: Options, foreground: bool) -> Result<Option<u32>, Failure> {
    let mount_point = mountable(point)?;
    let state = canonical(state).map_err(|f| f.about("the state directory"))?;
    let peer = Peer::this_process();
    let mut mount = options.mount;
    mount.source = path_text(&state)?;
    let source = options.pin_source.clone().or_else(|| Header::peek(&state).ok()?.pin_source);
    let pin = source.and_then(|source| source.strip_prefix("fd:")?.parse().ok());
    let vault = vault::Options {
        token: options.token,
        pin_source: options.pin_source,
        owner_uid: peer.uid.unwrap_or(0),
        owner_gid: peer.gid,
        show_hidden: options.show_hidden,
        settings: options.settings,
        ..vault::Options::default()
    };
    let plan = Plan { state, mount_point, mount, vault };
    if foreground {
        return Ok(daemon::run(plan, Report::ServiceManager).map(|()| None)?);
    }
    match detach(pin).map_err(|e| Failure::io("cannot start the daemon", e))? {
        Side::Command(daemon) => Ok(Some(daemon.for_mount()?)),
        // What went wrong before the mount answered the command has heard and says; later, the log.
        Side::Daemon(report) => daemon::process::end(daemon::run(plan, report).is_err().into()),
    }
}

/// The canonical mount point, if it is a directory on which no vault lies yet.
fn mountable(point: &Path) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(point).map_err(|e| Failure::io(point.display(), e))?;
    let taken = |path: &Path| match mounts::vault_on(path) {
        Some(mount) => {
            let (state, path) = (mount.source.display(), path.display());
            let taken = match path_answers(point) {
                true => format!("{path}: the vault of {state} is mounted here already"),
                false => format!("{path}: a dead mount of {state} lies here; `umount {path}`, then mount again"),
            };
            Err(Failure::new(Code::Exists, taken))
        }
        None => Ok(()),
    };
    // Before the path is touched: a mount whose daemon was killed answers nothing.
    taken(&absolute)?;
    let canonical = canonical(point).map_err(|f| f.about("the mount point"))?;
    taken(&canonical)?;
    if !canonical.is_dir() {
        return Err(Failure::usage(format!("the mount point: {}: not a directory", point.display())));
    }
    Ok(canonical)
}

fn path_answers(point: &Path) -> bool {
    point.metadata().is_ok()
}

/// The state directory is the mount's source, which the kernel keeps as text.
fn path_text(state: &Path) -> Result<String, Failure> {
    let text = state.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("{}: a state directory's path is UTF-8", state.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_a_directory_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(mountable(directory.path()).is_ok());
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(mountable(&file).unwrap_err().to_string().contains("not a directory"));
        assert_eq!(mountable(&directory.path().join("none")).unwrap_err().exit(), 3);
    }
}
