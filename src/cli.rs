//! The command line: every command, what it is called, and where it leads.
//!
//! `init`, `mount`, `umount`, `doctor` and `fsck` where nobody serves the vault act by themselves; all others are
//! requests to the vault's API ([`client`]). Called as `mount.fuse.vaultfs` the program is a helper of mount(8) ([`helper`]).

mod apikeys;
mod client;
mod doctor;
mod exit;
mod fsck;
mod helper;
mod keys;
mod mount;
mod objects;
mod options;
mod organizations;
mod output;
mod place;
mod tombstones;
mod umount;
mod vault;

use clap::{Args, Parser, Subcommand};
use exit::Failure;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A vault as a directory: organizations, encrypted objects, keys in a PKCS#11 token.
#[derive(Parser)]
#[command(name = "vaultfs", version, after_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
pub struct Global {
    /// The vault: its state directory or its mount point
    #[arg(long, global = true, value_name = "PATH", env = "VAULTFS_STATE", default_value = "/var/lib/vaultfs")]
    vault: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new vault: its state directory, and its first key in the token
    Init(vault::Init),
    /// Mount a vault on a directory
    Mount(mount::Mount),
    /// Answer the API of a vault without mounting it; ends with SIGTERM
    Serve(mount::Serve),
    /// Unmount a vault; returns when everything is stored and the daemon has ended
    Umount(umount::Umount),
    /// Show the state of the vault and its token
    Status,
    /// Check that everything is authentic and fits together; repair what can be repaired
    Fsck(fsck::Fsck),
    /// Check what a mount needs, and say how to get what is missing
    Doctor,
    /// Organizations: tenants, each with its own keys
    #[command(subcommand)]
    Org(organizations::Org),
    /// Keys: the KEKs of organizations, their rotation and their end
    #[command(subcommand)]
    Key(keys::Key),
    /// Objects: encrypted values with versions
    #[command(subcommand)]
    Object(objects::Object),
    /// Tombstones: deleted objects that can still be restored
    #[command(subcommand)]
    Tombstone(tombstones::Tombstone),
    /// API keys: who may use the vault over the network
    #[command(subcommand)]
    Apikey(apikeys::ApiKey),
}

/// The whole program: from its arguments to its exit code.
pub fn run(arguments: Vec<OsString>) -> u8 {
    let done = match helper::mount_arguments(&arguments) {
        Some(request) => request.unwrap_or_else(|wrong| wrong.exit()).run(),
        None => dispatch(Cli::parse_from(arguments)),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("vaultfs: {failure}");
            failure.exit()
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Init(init) => init.run(global),
        Command::Mount(mount) => mount.run(global),
        Command::Serve(serve) => serve.run(global),
        Command::Umount(umount) => umount.run(global),
        Command::Status => vault::status(global),
        Command::Fsck(fsck) => fsck.run(global),
        Command::Doctor => doctor::run(global),
        Command::Org(org) => org.run(global),
        Command::Key(key) => key.run(global),
        Command::Object(object) => object.run(global),
        Command::Tombstone(tombstone) => tombstone.run(global),
        Command::Apikey(apikey) => apikey.run(global),
    }
}

/// A directory that must be there, by its canonical path.
fn canonical(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|e| Failure::io(path.display(), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_takes_json_and_a_vault() {
        for line in [
            "init /s --token pkcs11:token=t --pin-source file:/pin --json",
            "mount /s /m -f -o ro,keep_versions=3 -o noatime --json",
            "umount /m --json",
            "--vault /s status --json",
            "fsck --repair --report /r --json",
            "org create acme --owner 1000:1000 --mode 0750 --json",
            "key rotate --all --json",
            "key revoke acme customer=c17 --for-ever --json",
            "object list acme/db --vault /s --json",
            "object put acme/db/pw --if-version 3 --json",
            "object get acme/db/pw --version 1 --json",
            "serve /s --listen 127.0.0.1:8200 --tls-cert c --tls-key k --json",
            "apikey create backup --org acme --org two --permission write --json",
            "org set acme --quota-bytes 1000000 --keep-versions-for 30d --json",
            "object restore acme/db/pw --version 1 --json",
            "tombstone restore acme/x~20261123T164100Z~1f3a --to y --json",
        ] {
            let cli = Cli::try_parse_from(["vaultfs"].into_iter().chain(line.split(' ')));
            assert!(cli.unwrap_or_else(|e| panic!("{line}: {e}")).global.json, "{line}");
        }
    }
}
