//! `vaultfs mount` and `vaultfs serve`: look before they start the daemon, and return when it answers.

use super::exit::Failure;
use super::options::Options;
use super::output::print_json;
use super::place::Header;
use super::{Global, canonical};
use crate::api::{Code, user};
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
    #[command(flatten)]
    network: Network,
}

/// The API over the network.
#[derive(Args)]
pub struct Network {
    /// Answer the API on this address too: ADDRESS:PORT, or a port of the loopback
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The certificate chain (PEM), for TLS; needed beyond the loopback
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// `vaultfs serve`: the API without a mount.
#[derive(Args)]
pub struct Serve {
    /// The state directory
    state: PathBuf,
    /// Stay in the foreground, the log on standard error
    #[arg(short, long)]
    foreground: bool,
    /// The vault's settings, as in keep_versions=20
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Another token than `init` was told, as a pkcs11: URI
    #[arg(long, value_name = "PKCS11-URI")]
    token: Option<String>,
    /// Another source of the PIN than `init` was told: file:PATH, credential:NAME, fd:N or prompt
    #[arg(long, value_name = "SOURCE")]
    pin_source: Option<String>,
    #[command(flatten)]
    network: Network,
}

impl Network {
    /// Adds what the command line says to what `-o` says.
    fn add_to(self, options: &mut Options) -> Result<(), Failure> {
        options.listen = self.listen.or(options.listen.take());
        options.tls_cert = self.tls_cert.or(options.tls_cert.take());
        options.tls_key = self.tls_key.or(options.tls_key.take());
        Ok(())
    }
}

impl Serve {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let mut options = Options::parse(self.options.iter().map(String::as_str), user().0)?;
        options.token = self.token.or(options.token);
        options.pin_source = self.pin_source.or(options.pin_source);
        self.network.add_to(&mut options)?;
        match start(&self.state, None, options, self.foreground)?.filter(|_| global.json) {
            Some(pid) => print_json(&serde_json::json!({ "pid": pid })),
            None => Ok(()),
        }
    }
}

impl Mount {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let owner_uid = user().0;
        let mut options = Options::parse(self.options.iter().map(String::as_str), owner_uid)?;
        options.token = self.token.or(options.token);
        options.pin_source = self.pin_source.or(options.pin_source);
        self.network.add_to(&mut options)?;
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
    start(state, Some(mountable(point)?), options, foreground)
}

fn start(state: &Path, point: Option<PathBuf>, options: Options, foreground: bool) -> Result<Option<u32>, Failure> {
    let state = canonical(state).map_err(|f| f.about("the state directory"))?;
    let listen = options.listen()?;
    let mut mount = options.mount;
    mount.source = path_text(&state)?;
    let mount = point.map(|point| (point, mount));
    let (owner_uid, owner_gid) = user();
    let source = options.pin_source.clone().or_else(|| Header::peek(&state).ok()?.pin_source);
    let pin = source.and_then(|source| source.strip_prefix("fd:")?.parse().ok());
    let vault = vault::Options {
        token: options.token,
        pin_source: options.pin_source,
        owner_uid,
        owner_gid,
        show_hidden: options.show_hidden,
        settings: options.settings,
        ..vault::Options::default()
    };
    let plan = Plan { state, mount, listen, vault };
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
