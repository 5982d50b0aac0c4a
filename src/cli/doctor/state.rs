//! One vault's needs: its state directory, header, PIN, PKCS#11 module and mount point.

use super::Check;
use crate::api::percent;
use crate::api::user;
use crate::cli::Global;
use crate::cli::place::{self, Header};
use crate::daemon::mounts;
use crate::store::StateLock;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// A mount that does not answer for so long is called hung.
const PATIENCE: Duration = Duration::from_secs(3);

pub fn checks(global: &Global) -> Vec<Check> {
    let state = match place::state(global) {
        Ok(state) => state,
        Err(failure) => return vec![Check::problem(failure.to_string(), "`vaultfs init` makes a vault")],
    };
    let mut checks = vec![directory(&state)];
    match Header::peek(&state) {
        Ok(header) => {
            checks.push(match header.format {
                Some(format) => Check::ok(format!("vault.json is a header of format {format}")),
                None => Check::problem("vault.json names no format: it is damaged", "restore it from a copy"),
            });
            checks.extend(header.pin_source.map(|source| pin(&source)));
            checks.extend(header.token.map(|uri| module(&uri)));
        }
        Err(failure) => {
            checks.push(Check::problem(failure.to_string(), "restore vault.json from a copy, or `vaultfs init`"))
        }
    }
    match mounts::of_state(&state) {
        Some(mount) => checks.push(mounted(mount.point)),
        None => {
            checks.extend(StateLock::holder(&state).map(|pid| {
                Check::warning(
                    format!("process {pid} holds the vault, though it is not mounted here"),
                    "wait for that command, or look for a mount in another namespace",
                )
            }));
            checks.extend(bare_mount_point(&state));
        }
    }
    checks
}

fn directory(state: &Path) -> Check {
    let shown = state.display();
    let Ok(found) = state.metadata() else {
        return Check::problem(format!("{shown} cannot be looked at"), "run as its owner");
    };
    let uid = user().0;
    match (found.uid(), found.mode() & 0o077) {
        (owner, _) if owner != uid => {
            Check::problem(format!("{shown} belongs to uid {owner}, and you are uid {uid}"), "run as its owner")
        }
        (_, 0) => Check::ok(format!("{shown} is yours alone")),
        _ => Check::warning(format!("{shown} is open to others"), format!("`chmod 0700 {shown}`")),
    }
}

fn pin(source: &str) -> Check {
    let readable = |path: PathBuf, remedy: &str| match File::open(&path).and_then(|file| file.metadata()) {
        Ok(found) if found.mode() & 0o077 != 0 => Check::problem(
            format!("the PIN in {} can be read by others", path.display()),
            format!("`chmod 0400 {}`", path.display()),
        ),
        Ok(_) => Check::ok(format!("the PIN in {} can be read", path.display())),
        Err(e) => Check::problem(format!("the PIN in {} cannot be read: {e}", path.display()), remedy),
    };
    match source.split_once(':') {
        Some(("file", path)) => {
            readable(path.into(), "put the PIN there, readable by its owner alone, or mount with --pin-source")
        }
        Some(("credential", name)) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(directory) => readable(Path::new(&directory).join(name), "LoadCredential= in the unit"),
            None => Check::ok(format!("the PIN is the credential {name}, which only its systemd unit has")),
        },
        Some(("fd", number)) => Check::ok(format!("the PIN is read from descriptor {number} at each mount")),
        _ => Check::ok("the PIN is asked for at each mount"),
    }
}

/// `pkcs11:token=vault?module-path=/usr/lib/…` (RFC 7512): the module is a library of the token's maker.
fn module(uri: &str) -> Check {
    let query = uri.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let path = query.split('&').find_map(|pair| pair.strip_prefix("module-path="));
    let Some(path) = path.and_then(|path| percent::decode(path).ok()).and_then(|path| String::from_utf8(path).ok())
    else {
        return Check::warning("the token's URI names no module", "name it: pkcs11:…?module-path=/path/of/module.so");
    };
    if !Path::new(&path).exists() {
        return Check::problem(
            format!("the PKCS#11 module {path} is missing"),
            "install the token's package, or mount with --token",
        );
    }
    // SAFETY: runs the module's initializers, as a mount would; nothing of it is used after it is unloaded.
    let loaded =
        unsafe { libloading::Library::new(&path).and_then(|m| m.get::<*const ()>(b"C_GetFunctionList\0").map(drop)) };
    match loaded {
        Ok(()) => Check::ok(format!("the PKCS#11 module {path} can be loaded")),
        Err(e) => Check::problem(
            format!("{path} is no PKCS#11 module that loads: {e}"),
            "install the module for this machine",
        ),
    }
}

fn mounted(point: PathBuf) -> Check {
    let shown = point.display().to_string();
    let (to, from) = mpsc::channel();
    // On a thread, for a hung mount never lets go of whoever asks it.
    std::thread::spawn(move || to.send(point.metadata().map(drop)));
    match from.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Check::ok(format!("the vault is mounted on {shown} and answers")),
        Ok(Err(e)) => {
            Check::problem(format!("the mount on {shown} is dead: {e}"), format!("`umount {shown}`, then mount again"))
        }
        Err(_) => Check::problem(
            format!("the mount on {shown} does not answer"),
            "the daemon's log says why; `umount -f` ends the wait of its users",
        ),
    }
}

/// What fstab mounts this vault on, as long as it is not: nothing should be written beneath it.
fn bare_mount_point(state: &Path) -> Option<Check> {
    let table = std::fs::read_to_string("/etc/fstab").ok()?;
    let point = fstab_point(&table, state)?;
    let shown = point.display();
    let Ok(found) = point.metadata() else {
        return Some(Check::problem(
            format!("the mount point {shown} of /etc/fstab is missing"),
            format!("`mkdir -m 0 {shown}`"),
        ));
    };
    let remedy = format!("`chmod 0 {shown} && chattr +i {shown}`");
    Some(match (found.mode() & 0o7777, immutable(&point, &found)) {
        (0, true) => Check::ok(format!("nothing can be written beneath {shown} while the vault is away")),
        (0, false) => Check::warning(format!("root can write to {shown} while the vault is away"), remedy),
        _ => Check::warning(format!("files can be written to {shown} while the vault is away"), remedy),
    })
}

fn fstab_point(table: &str, state: &Path) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (source, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = matches!(kind, mounts::TYPE | "vaultfs") && Path::new(source).canonicalize().ok()? == state;
        ours.then(|| point.into())
    })
}

/// `chattr +i`. Unknown counts as no.
fn immutable(path: &Path, found: &Metadata) -> bool {
    let Ok(directory) = File::open(path) else { return false };
    let mut flags: libc::c_long = 0;
    // SAFETY: the ioctl writes at most one long into `flags`.
    let asked = unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) };
    const FS_IMMUTABLE_FL: libc::c_long = 0x10;
    found.is_dir() && asked == 0 && flags & FS_IMMUTABLE_FL != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn fstab_names_the_mount_point() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().canonicalize().unwrap();
        let table =
            format!("# comment\nUUID=1 / ext4 defaults 0 1\n{} /vault fuse.vaultfs nofail 0 0\n", state.display());
        assert_eq!(fstab_point(&table, &state).unwrap(), Path::new("/vault"));
        assert_eq!(fstab_point(&table, Path::new("/elsewhere")), None);
    }

    #[test]
    fn a_pin_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let source = format!("file:{}", path.display());
        assert_eq!(pin(&source).level, Level::Problem);
        std::fs::write(&path, "1234").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(pin(&source).level, Level::Problem);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(pin(&source).level, Level::Ok);
    }

    #[test]
    fn a_module_must_be_named_and_there() {
        assert_eq!(module("pkcs11:token=t").level, Level::Warning);
        let missing = module("pkcs11:token=t?module-path=/no%20where.so&x=y");
        assert_eq!(missing.level, Level::Problem);
        assert!(missing.what.contains("/no where.so"));
    }
}
