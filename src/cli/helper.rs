//! As `/sbin/mount.fuse.vaultfs`, a link to this program, for mount(8), fstab(5) and systemd.
//!
//! `mount.fuse.vaultfs SPEC MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, as mount(8) calls it.

use super::exit::Failure;
use super::mount::mount;
use super::options::Options;
use crate::api::user;
use clap::Parser;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mount a vault, as mount(8) asks for it
#[derive(Parser, Debug)]
#[command(name = "mount.fuse.vaultfs")]
pub struct Request {
    /// The state directory
    spec: PathBuf,
    mountpoint: PathBuf,
    /// Without effect: an option that is not known is refused all the same
    #[arg(short)]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short = 'f')]
    fake: bool,
    /// Without effect: there is no mtab
    #[arg(short)]
    no_mtab: bool,
    /// Without effect
    #[arg(short)]
    verbose: bool,
    /// Without effect: mount(8) has entered the namespace
    #[arg(short = 'N')]
    namespace: Option<String>,
    #[arg(short = 't')]
    kind: Option<String>,
    /// Mount options
    #[arg(short)]
    options: Vec<String>,
}

/// What mount(8) asks for, when the program was called as its helper.
pub fn mount_arguments(arguments: &[OsString]) -> Option<clap::error::Result<Request>> {
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    name.starts_with("mount.").then(|| Request::try_parse_from(arguments))
}

impl Request {
    pub fn run(self) -> Result<(), Failure> {
        if let Some(changed) = self.remount() {
            let error = Command::new("mount").args(["-i", "-o", &changed]).arg(&self.mountpoint).exec();
            return Err(Failure::io("mount", error));
        }
        let owner_uid = user().0;
        let options = Options::parse(self.options.iter().map(String::as_str), owner_uid)?;
        if self.fake {
            return Ok(());
        }
        mount(&self.spec, &self.mountpoint, options, false).map(drop)
    }

    /// A remount changes flags that the kernel keeps. `-i` asks mount(8) to do it without this helper.
    fn remount(&self) -> Option<String> {
        const FLAGS: [&str; 11] =
            ["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "relatime"];
        let options = || self.options.iter().flat_map(|options| options.split(','));
        options().any(|option| option == "remount").then(|| {
            let flags = options().filter(|option| FLAGS.contains(option));
            ["remount"].into_iter().chain(flags).collect::<Vec<_>>().join(",")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<clap::error::Result<Request>> {
        mount_arguments(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_programs_name_makes_it_a_helper() {
        for name in ["/sbin/mount.fuse.vaultfs", "mount.vaultfs"] {
            let line = format!("{name} /var/lib/vaultfs /vault -sn -t fuse.vaultfs -o rw,nosuid,keep_versions=3");
            let request = parse(&line).unwrap().unwrap();
            assert_eq!(request.spec, Path::new("/var/lib/vaultfs"));
            assert_eq!(request.mountpoint, Path::new("/vault"));
            assert!(request.sloppy && request.no_mtab && !request.fake);
            assert_eq!(request.remount(), None);
        }
        assert!(parse("/usr/bin/vaultfs mount /s /m").is_none());
        assert_eq!(parse("mount.vaultfs /s").unwrap().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_remount_passes_on_the_kernels_flags_alone() {
        let request = parse("mount.fuse.vaultfs /s /m -o remount,ro,keep_versions=3,noatime").unwrap().unwrap();
        assert_eq!(request.remount().as_deref(), Some("remount,ro,noatime"));
    }
}
