//! Mounting a vault, waiting for the end of the mount, and ending it.

use crate::fs::dispatch::Dispatch;
use crate::fs::invalidation;
use crate::fs::transport::Transport;
use crate::vault::Vault;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

/// How to mount; permissions are always checked by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What `/proc/mounts` shows as the device: the canonical state directory.
    pub source: String,
    /// Whoever mounts. Only root may have devices and set-uid programs, and they work for root unless refused.
    pub owner_uid: u32,
    /// Others than the owner may use the mount.
    pub allow_other: bool,
    pub read_only: bool,
    pub dev: bool,
    pub suid: bool,
    pub exec: bool,
    pub atime: bool,
    /// The kernel collects writes and hands them over later: faster for small ones, errors come at `fsync` and `close`.
    pub writeback: bool,
}

impl MountOptions {
    pub fn new(source: String, owner_uid: u32) -> MountOptions {
        let root = owner_uid == 0;
        MountOptions {
            source,
            owner_uid,
            allow_other: root,
            read_only: false,
            dev: root,
            suid: root,
            exec: true,
            atime: true,
            writeback: false,
        }
    }

    /// Takes one word of `-o`; false for one that is not for this layer.
    pub fn apply(&mut self, word: &str) -> bool {
        let (option, value) = match word {
            "allow_other" => (&mut self.allow_other, true),
            "ro" => (&mut self.read_only, true),
            "rw" => (&mut self.read_only, false),
            "dev" => (&mut self.dev, true),
            "nodev" => (&mut self.dev, false),
            "suid" => (&mut self.suid, true),
            "nosuid" => (&mut self.suid, false),
            "exec" => (&mut self.exec, true),
            "noexec" => (&mut self.exec, false),
            "atime" => (&mut self.atime, true),
            "noatime" => (&mut self.atime, false),
            "writeback" => (&mut self.writeback, true),
            "default_permissions" => return true,
            _ => return false,
        };
        *option = value;
        true
    }

    fn config(&self) -> Config {
        let root = self.owner_uid == 0;
        let either = |wanted, yes, no| if wanted { yes } else { no };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(self.source.clone()),
            // Not `MountOption::Subtype`: where fuser mounts by itself, as root, that sets only the source.
            MountOption::CUSTOM("subtype=vaultfs".to_owned()),
            MountOption::DefaultPermissions,
            either(self.read_only, MountOption::RO, MountOption::RW),
            either(self.dev && root, MountOption::Dev, MountOption::NoDev),
            either(self.suid && root, MountOption::Suid, MountOption::NoSuid),
            either(self.exec, MountOption::Exec, MountOption::NoExec),
            either(self.atime, MountOption::Atime, MountOption::NoAtime),
        ];
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        // One loop for each CPU: measured, one in all is three times slower and more than these are slower too.
        config.n_threads = Some(thread::available_parallelism().map_or(2, usize::from).max(2));
        config
    }
}

/// A mounted vault. The vault itself is closed by whoever opened it, after [`Mounted::wait`].
pub struct Mounted {
    mountpoint: PathBuf,
    end: Arc<End>,
    /// Never dropped: when our mount is gone, fuser 0.18 would unmount whatever then stands at its path, such as the file
    /// system that it had covered (seen; `is_mounted` takes the poll result the wrong way round). It keeps a descriptor.
    _session: ManuallyDrop<BackgroundSession>,
}

impl Mounted {
    /// Mounts; the mount works when this returns. `mountpoint` is an existing directory.
    pub fn new(vault: Arc<Vault>, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
        let mountpoint = mountpoint.canonicalize()?;
        let end = Arc::new(End::default());
        let (changes, changed) = mpsc::channel();
        let notifier = Arc::new(OnceLock::new());
        let transport = Transport {
            dispatch: Dispatch::new(vault.clone())?,
            writeback: options.writeback,
            atime: options.atime && !options.read_only,
            notifier: notifier.clone(),
            _end: EndOnDrop(end.clone()),
        };
        let session = Session::new(transport, &mountpoint, &options.config())?;
        notifier.get_or_init(|| session.notifier());
        invalidation::forward(changed, session.notifier())?;
        vault.on_change(Box::new(move |change| {
            // Nobody listens only after the end of the mount.
            let _ = changes.send(change);
        }));
        Ok(Mounted { mountpoint, end, _session: ManuallyDrop::new(session.spawn()?) })
    }

    /// Until it is unmounted, by whomever, and every request has been answered.
    pub fn wait(&self) {
        let mut ended = self.end.ended.lock();
        while !*ended {
            self.end.changed.wait(&mut ended);
        }
    }

    /// Takes the mount out of the tree at once; those who still have files open may finish, and only then it ends.
    pub fn unmount(&self) -> io::Result<()> {
        if *self.end.ended.lock() {
            return Ok(());
        }
        match detach(&self.mountpoint) {
            // Unmounted by another meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => detach_as_user(&self.mountpoint),
            outcome => outcome,
        }
    }
}

#[derive(Default)]
struct End {
    ended: Mutex<bool>,
    changed: Condvar,
}

/// Goes down with the transport, whatever ended its loops.
pub struct EndOnDrop(Arc<End>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        *self.0.ended.lock() = true;
        self.0.changed.notify_all();
    }
}

fn detach(mountpoint: &Path) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that outlives the call, which keeps no pointer.
    match unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What others than root may unmount, they unmount through FUSE's set-uid program.
fn detach_as_user(mountpoint: &Path) -> io::Result<()> {
    let status = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("fusermount3: {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_set_uid_programs_are_for_root_unless_refused() {
        let allows = |uid, words: &[&str]| {
            let mut options = MountOptions::new("/state".to_owned(), uid);
            assert!(words.iter().all(|word| options.apply(word)));
            let given = options.config().mount_options;
            (given.contains(&MountOption::Dev), given.contains(&MountOption::Suid))
        };
        assert_eq!(allows(0, &[]), (true, true));
        assert_eq!(allows(0, &["nodev", "nosuid"]), (false, false));
        assert_eq!(allows(1000, &["dev", "suid"]), (false, false));
    }

    #[test]
    fn others_are_let_in_by_default_for_root_only() {
        let acl = |uid| MountOptions::new("/state".to_owned(), uid).config().acl;
        assert_eq!((acl(0), acl(1000)), (SessionACL::All, SessionACL::Owner));
    }

    #[test]
    fn words_for_other_layers_are_left_to_them() {
        let mut options = MountOptions::new("/state".to_owned(), 0);
        let before = options.clone();
        assert!(!options.apply("show_hidden"));
        assert!(!options.apply("keep_versions=3"));
        assert_eq!(options, before);
    }
}
