//! Real programs on a real mount. Each has to end well, say nothing on standard error that it would not say on ext4, and
//! leave what it leaves there; then the vault has to pass its own check.

#[path = "support/vault.rs"]
mod vault;

#[path = "programs/archives.rs"]
mod archives;
#[path = "programs/building.rs"]
mod building;
#[path = "programs/databases.rs"]
mod databases;
#[path = "programs/disks.rs"]
mod disks;
#[path = "programs/editing.rs"]
mod editing;
#[path = "programs/git.rs"]
mod git;
#[path = "programs/killing.rs"]
mod killing;
#[path = "programs/packages.rs"]
mod packages;
#[path = "programs/tools.rs"]
mod tools;

use std::path::PathBuf;
use std::process::Command;
use vault::{Done, Vault};

/// A mounted vault with an organization, and a directory outside of it to compare with.
struct Stage {
    vault: Vault,
    organization: PathBuf,
    work: PathBuf,
}

/// What every script can use, apart from `$V`, the organization in which it starts, and `$W`, the directory outside.
const PRELUDE: &str = r#"
trap 'echo "failed at line $((LINENO - 23)): $BASH_COMMAND" >&2' ERR
refused() { # COMMAND…: has to fail
    if "$@"; then echo "not refused: $*" >&2; return 1; fi
}
eventually() { # COMMAND…: has to succeed within ten seconds
    local n
    for n in {1..100}; do if "$@"; then return 0; fi; sleep .1; done
    echo "never: $*" >&2
    return 1
}
same() { # ONE OTHER
    [ "$1" = "$2" ] || { echo "not the same: '$1' and '$2'" >&2; return 1; }
}
shape() { # DIRECTORY: everything that a copy has to keep, but the bytes
    (cd "$1" && find . -mindepth 1 -printf '%P %y %m %U:%G %n %l %t' \( -type d -o -printf ' %s' \) -printf '\n' | sort)
}
attributes() { # DIRECTORY: those that do not belong to the vault
    (cd "$1" && find . -mindepth 1 -print0 | sort -z | xargs -0 getfattr -h -d -m - |
        sed '/^user\.vault\./d' | awk 'BEGIN { RS = ""; ORS = "\n\n" } /\n/')
}
"#;

impl Stage {
    fn new() -> Stage {
        let vault = Vault::up();
        vault.open_to_others();
        let (organization, work) = (vault.org("acme"), vault.directory().join("work"));
        std::fs::create_dir(&work).unwrap();
        Stage { vault, organization, work }
    }

    /// Runs a bash script, which has to end well and say nothing on standard error. Its standard output.
    #[track_caller]
    fn script(&self, text: &str) -> String {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "240", "bash", "-Eeuo", "pipefail", "-c", &[PRELUDE, text].concat()]);
        command.current_dir(&self.organization);
        command.envs([("V", &self.organization), ("W", &self.work), ("HOME", &self.work)]).env("LC_ALL", "C");
        let done = Done::of(&mut command, b"").good();
        assert_eq!(done.err, "", "{}", done.text());
        done.text()
    }

    /// Runs a bash script, then the vault's own check.
    #[track_caller]
    fn passes(&self, text: &str) {
        self.script(text);
        self.vault.command(&["fsck"]).good();
    }
}
